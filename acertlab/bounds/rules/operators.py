"""ATen's operators as nodes of a graph: their names, and where in a model they were called."""

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
BATCH_NORMS = (
    *(aten._native_batch_norm_legit_no_training, aten._native_batch_norm_legit_functional),
    *(aten._native_batch_norm_legit, aten.native_batch_norm, aten.batch_norm, aten._batch_norm_with_update_functional),
)


def arguments_of(node: fx.Node) -> tuple[Any, ...]:
    """What it is called with, by position: nodes, numbers, lists, ..., as its operator has them."""
    return node.args


def operation_of(node: fx.Node) -> Any:
    """The operator itself, to be called."""
    return node.target


def size_of(node: fx.Node) -> torch.Size:
    """The shape of its value when it was captured, with the batch's size left open; empty of what is no tensor."""
    return getattr(node.meta["val"], "shape", torch.Size())


def packet(node: Any) -> Any:
    """The operator without its overload: aten.add of aten.add.Tensor and aten.add.Scalar."""
    return getattr(node.target, "overloadpacket", node.target)


def name_of(node: fx.Node) -> str:
    return getattr(packet(node), "__name__", str(node.target))


def module_of(node: fx.Node) -> tuple[str, str]:
    """The dotted path and the type of the innermost module in whose forward a node is; empty: the model's own."""
    path, kind = list((node.meta.get("nn_module_stack") or {"": ("", "")}).values())[-1]
    return path, (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]


def place(node: fx.Node) -> str:
    """Where in the model a node is: the operator, and the module's dotted path and type."""
    path, kind = module_of(node)
    inside = f"'{path}' of type {kind}" if path else "the model's own forward"
    return f"operator '{name_of(node)}' in {inside}"
