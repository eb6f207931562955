"""A network in two parts: everything up to a ReLU, and the rest."""

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import fx, nn

from acertlab.models.initialisation import LayerTracer

RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")  # functions and methods
_known: WeakKeyDictionary[nn.Module, dict[int, tuple[nn.Module, nn.Module]]] = WeakKeyDictionary()


def split(model: nn.Module, relus: int) -> tuple[nn.Module, nn.Module]:
    """A network's first part and its last, which holds ``relus`` >= 1 of its ReLUs: model(x) = last(first(x)).

    The first part ends with a ReLU. Both share the model's layers, by the same names. They are remembered for the
    model, whose structure must stay as it is.

    Raises:
        TypeError: ``torch.fx`` cannot trace the model.
        ValueError: no ReLU is left for the first part, or more than one value passes from it to the last, as within a
            residual block; the message says how many ReLUs can be split off.
    """
    parts = _known.setdefault(model, {})
    if relus not in parts:
        parts[relus] = _split(model, relus)
    return parts[relus]


def _split(model: nn.Module, relus: int) -> tuple[nn.Module, nn.Module]:
    try:
        nodes = list(LayerTracer().trace(model).nodes)
    except Exception as error:  # torch.fx raises many kinds
        raise TypeError(
            f"model: torch.fx cannot trace {type(model).__name__}, and so not split it: {error}. Write forward without "
            "control flow that depends on the data"
        ) from error
    ends = [node for node in nodes if _is_relu(model, node)]
    accepted = [n for n in range(1, len(ends)) if _is_passage(nodes, ends[-1 - n])]
    if relus not in accepted:
        raise ValueError(
            f"classifier_relus = {relus}: accepted is how many of the {len(ends)} ReLUs of this {type(model).__name__} "
            "come after another one from which a single value goes on, here "
            + (", ".join(str(n) for n in accepted) or "none")
        )
    end = ends[-1 - relus]
    place = nodes.index(end) + 1
    return _part(model, nodes[:place], None, end), _part(model, nodes[place:-1], end, nodes[-1].all_input_nodes[0])


def _is_relu(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), nn.ReLU)
    return node.op.startswith("call") and node.target in RELUS


def _is_passage(nodes: list[fx.Node], end: fx.Node) -> bool:
    """Whether nothing computed before ``end`` is used after it."""
    place = nodes.index(end)
    before = {node for node in nodes[:place] if node.op != "get_attr"}
    return not any(before & set(node.all_input_nodes) for node in nodes[place + 1 :])


def _part(model: nn.Module, nodes: Iterable[fx.Node], entry: fx.Node | None, result: fx.Node) -> nn.Module:
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    if entry is not None:
        copies[entry] = graph.placeholder("features")

    def copy(node: fx.Node) -> fx.Node:
        if node not in copies:  # a parameter that the part before also uses
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in nodes:
        copies[node] = graph.node_copy(node, copy)
    graph.output(copies[result])
    return fx.GraphModule(model, graph)
