"""What a captured graph tells before any weights are known: what is affine, what is folded, what is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import fx

from acertlab.bounds.rules.affine import (
    AffineCall,
    NormCall,
    StandardCall,
    as_affine,
    as_batch_norm,
    as_standardisation,
)
from acertlab.bounds.rules.operators import aten, packet, size_of
from acertlab.bounds.rules.shapes import SIZES

Call = AffineCall | NormCall | StandardCall


@dataclass(frozen=True)
class Plan:
    """How bounds go through a graph."""

    constants: tuple[fx.Node, ...]  # the same in each pass, in order; computed once
    nodes: tuple[fx.Node, ...]  # those that each pass computes, in order
    calls: dict[fx.Node, Call]  # of the operators that are prepared: affine ones, BatchNorms, (x - mean) / std
    folded: dict[fx.Node, fx.Node]  # from a BatchNorm to the affine operator whose work it does as well
    boxed: frozenset[fx.Node]  # whose values are boxes
    last_uses: dict[fx.Node, list[fx.Node]]  # from a node to those whose values nobody asks for after it
    owners: frozenset[fx.Node]  # ReLUs of what an affine operator made for them alone, where they may work in place
    head: fx.Node | None  # the final linear operator, where the network ends in one

    @classmethod
    def of(cls, graph: Sequence[fx.Node], entry: fx.Node, output: fx.Node, dependent: frozenset[fx.Node]) -> "Plan":
        calls: dict[fx.Node, Call] = {}
        folded: dict[fx.Node, fx.Node] = {}
        boxed = {entry}
        for node in graph:
            if packet(node) in SIZES or boxed.isdisjoint(node.all_input_nodes):
                continue
            boxed.add(node)
            if call := as_affine(node, dependent) or as_batch_norm(node) or as_standardisation(node, dependent):
                calls[node] = call
                if isinstance(call, NormCall) and _is_folded(node, call, calls.get(call.input)):
                    folded[node] = call.input
        gone = {*folded.values(), *(call.difference for call in calls.values() if isinstance(call, StandardCall))}
        nodes = tuple(node for node in graph if node in dependent and node not in gone)
        last = {source: node for node in nodes for source in _sources(node, calls, folded)}
        last_uses: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            if source in dependent and source is not output:
                last_uses.setdefault(node, []).append(source)
        works = {node for node in nodes if isinstance(calls.get(folded.get(node, node)), AffineCall)}
        owners = {n for n in nodes if packet(n) is aten.relu and n.args[0] in works and len(n.args[0].users) == 1}
        end = calls.get(folded.get(output, output))
        is_linear = isinstance(end, AffineCall) and end.operation is F.linear and len(size_of(end.input)) == 2
        constants = tuple(node for node in graph if node not in dependent)
        head, boxes, relus = output if is_linear else None, frozenset(boxed), frozenset(owners)
        return cls(constants, nodes, calls, folded, boxes, last_uses, relus, head)

    def call(self, node: fx.Node) -> Call | None:
        """What the node does in a pass, where it is prepared for it; of a folded BatchNorm the affine operator."""
        return self.calls.get(self.folded.get(node, node))

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values enter what this one does in a pass."""
        return _sources(node, self.calls, self.folded)


def _sources(node: fx.Node, calls: dict[fx.Node, Call], folded: dict[fx.Node, fx.Node]) -> list[fx.Node]:
    call = calls.get(folded.get(node, node))
    return node.all_input_nodes if call is None else [call.input]


def _is_folded(node: fx.Node, norm: NormCall, before: Call | None) -> bool:
    """Whether the affine operator before a BatchNorm does its work.

    By the statistics of one step it stays apart between a fully connected layer and a ReLU: the layer's weights are
    more than a batch's outputs, and scaling them costs more.
    """
    if not isinstance(before, AffineCall) or not before.foldable or len(norm.input.users) != 1:
        return False
    feeds_relu = bool(node.users) and all(packet(user) is aten.relu for user in node.users)
    return not (norm.by_batch and before.operation is F.linear and feeds_relu)
