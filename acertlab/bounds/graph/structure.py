"""The captured graph of a network: ATen operators in order, and what the bounds ask about them."""

import operator
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_unflatten

from acertlab.bounds.graph.plan import Plan
from acertlab.bounds.rules.operators import BATCH_NORMS, operation_of, packet

_library = torch.library.Library("acertlab", "DEF")
_library.define("whole_module(Tensor[] inputs, int index) -> Tensor")
whole_shapes: ContextVar[list[tuple[int, ...]]] = ContextVar("what the modules that stay whole return, a sample")


@torch.library.register_fake("acertlab::whole_module", lib=_library)
def _blank_result(inputs: list[Tensor], index: int) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape[0], *whole_shapes.get()[index])


WHOLE_MODULE = torch.ops.acertlab.whole_module


@dataclass(frozen=True)
class WholeCall:
    """One call of a module that stays whole: how its arguments are rebuilt from the tensors among them."""

    path: str
    structure: Any  # of (args, kwargs), see torch.utils._pytree
    leaves: tuple[Any, ...]  # None where a tensor belongs

    def arguments(self, tensors: list[Any]) -> tuple[tuple, dict]:
        given = iter(tensors)
        return tree_unflatten([next(given) if leaf is None else leaf for leaf in self.leaves], self.structure)


@dataclass(frozen=True, eq=False)
class Graph:
    """What a network computes, as a functional graph of ATen operators for batches of any size."""

    nodes: tuple[fx.Node, ...]  # in order, those on which the output depends; of BatchNorm the first output
    input: fx.Node  # the sample's placeholder
    output: fx.Node  # whose value is the network's
    sources: dict[fx.Node, str | Tensor]  # of other placeholders: a dotted name, or a tensor found otherwise
    dependent: frozenset[fx.Node]  # on the input; the others are the same in each pass
    whole: tuple[WholeCall, ...]  # calls of modules that stay whole, by their operator's index

    def __deepcopy__(self, memo: dict) -> "Graph":
        return self  # never changed, and of its nodes' values only shapes are known

    @cached_property
    def plan(self) -> Plan:
        """What is asked of the graph at each preparation, found once."""
        return Plan.of(self.nodes, self.input, self.output, self.dependent)

    def lookup(self, model: nn.Module) -> dict[fx.Node, Tensor]:
        """The tensors of ``model`` that the graph takes beside its input."""
        return {
            node: operator.attrgetter(source)(model) if isinstance(source, str) else source
            for node, source in self.sources.items()
        }

    def constants(self, model: nn.Module) -> dict[fx.Node, Any]:
        """All values that are the same in each pass: `lookup`, and what forward makes of those alone."""
        values: dict[fx.Node, Any] = {**self.lookup(model)}
        for node in self.plan.constants:
            values[node] = self.call(model, node, *map_arg((node.args, node.kwargs), values.__getitem__))
        return values

    def call(self, model: nn.Module, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        """The node's operator on values."""
        if packet(node) is WHOLE_MODULE:
            whole = self.whole[args[1]]
            args, kwargs = whole.arguments(args[0])
            return model.get_submodule(whole.path).forward(*args, **kwargs)
        value = operation_of(node)(*args, **kwargs)
        return value[0] if packet(node) in BATCH_NORMS and isinstance(value, tuple) else value

    def run(self, model: nn.Module, x: Tensor, record: Callable[[fx.Node, Any], None] | None = None) -> Tensor:
        """The network at the points x (B, ...), operator by operator; ``record`` is told every value."""
        values: dict[fx.Node, Any] = {self.input: x, **self.lookup(model)}
        for node in self.nodes:
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = self.call(model, node, args, kwargs)
            if record is not None:
                record(node, values[node])
        return values[self.output]
