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


@dataclass(frozen=True)
class Plan:
    """How bounds go through a graph."""

    constants: tuple[fx.Node, ...]  # the same in each pass, in order; computed once
    nodes: tuple[fx.Node, ...]  # those that each pass computes, in order
    affine: dict[fx.Node, AffineCall]  # with constant weights
    norms: dict[fx.Node, NormCall]
    standard: dict[fx.Node, StandardCall]  # (x - mean) / std
    folded: dict[fx.Node, fx.Node]  # from a BatchNorm to the affine operator whose work it does as well
    boxed: frozenset[fx.Node]  # whose values are boxes
    last_uses: dict[fx.Node, list[fx.Node]]  # from a node to those whose values nobody asks for after it
    owners: frozenset[fx.Node]  # ReLUs of what an affine operator made for them alone, where they may work in place
    head: fx.Node | None  # the final linear operator, where the network ends in one

    @classmethod
    def of(cls, graph: Sequence[fx.Node], entry: fx.Node, output: fx.Node, dependent: frozenset[fx.Node]) -> "Plan":
        affine: dict[fx.Node, AffineCall] = {}
        norms: dict[fx.Node, NormCall] = {}
        standard: dict[fx.Node, StandardCall] = {}
        folded: dict[fx.Node, fx.Node] = {}
        boxed = {entry}
        for node in graph:
            if packet(node) in SIZES or boxed.isdisjoint(node.all_input_nodes):
                continue
            boxed.add(node)
            if call := as_affine(node, dependent):
                affine[node] = call
            elif norm := as_batch_norm(node):
                norms[node] = norm
                if _is_folded(node, norm, affine.get(norm.input)):
                    folded[node] = norm.input
            elif quotient := as_standardisation(node, dependent):
                standard[node] = quotient
        gone = {*folded.values(), *(quotient.difference for quotient in standard.values())}
        nodes = tuple(node for node in graph if node in dependent and node not in gone)
        last = {source: node for node in nodes for source in _sources(node, affine, norms | standard, folded)}
        last_uses: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last.items():
            if source in dependent and source is not output:
                last_uses.setdefault(node, []).append(source)
        works = (affine.keys() - gone) | folded.keys()
        owners = {n for n in nodes if packet(n) is aten.relu and n.args[0] in works and len(n.args[0].users) == 1}
        head = folded.get(output, output)
        is_linear = head in affine and affine[head].operation is F.linear and len(size_of(affine[head].input)) == 2
        constants = tuple(node for node in graph if node not in dependent)
        head, boxes, relus = output if is_linear else None, frozenset(boxed), frozenset(owners)
        return cls(constants, nodes, affine, norms, standard, folded, boxes, last_uses, relus, head)

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values enter what this one does in a pass."""
        return _sources(node, self.affine, self.norms | self.standard, self.folded)


def _sources(
    node: fx.Node,
    affine: dict[fx.Node, AffineCall],
    norms: dict[fx.Node, NormCall | StandardCall],
    folded: dict[fx.Node, fx.Node],
) -> list[fx.Node]:
    call = affine.get(folded.get(node, node)) or norms.get(node)
    return node.all_input_nodes if call is None else [call.input]


def _is_folded(node: fx.Node, norm: NormCall, before: AffineCall | None) -> bool:
    """Whether the affine operator before a BatchNorm does its work.

    By the statistics of one step it stays apart between a fully connected layer and a ReLU: the layer's weights are
    more than a batch's outputs, and scaling them costs more.
    """
    if before is None or not before.foldable or len(norm.input.users) != 1:
        return False
    feeds_relu = bool(node.users) and all(packet(user) is aten.relu for user in node.users)
    return not (norm.by_batch and before.operation is F.linear and feeds_relu)
