"""A piecewise linear network written with affine maps and ReLUs alone, as sparse matrices in double precision.

One nonlinearity is enough: max(a, b) = b + relu(a - b), and a function of one number with kinks at k_j is
s a + c + sum_j t_j relu(a - k_j). Affine operators are unrolled: run on a batch, their gradient is their matrix.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from acertlab.bounds.graph.structure import WHOLE_MODULE, Graph
from acertlab.bounds.rules.affine import NormCall
from acertlab.bounds.rules.operators import BATCH_NORMS, arguments_of, aten, packet, place, size_of
from acertlab.bounds.rules.shapes import AVERAGES, SELECTION, SIZES

ACCEPTED = (
    "affine operators, changes of shape, BatchNorm, average pooling, sums, ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh, "
    "clamp, abs, max pooling, max and min"
)
MOST_RELUS = 4096
NUMBERS = 2**22  # of an operator's matrix at once

MAXIMA = (
    *(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices),
    *(aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.amax, aten.max),
)
MINIMA = (aten.amin, aten.min)
OF_TWO = (aten.maximum, aten.minimum)
SAME = (aten._to_copy, aten.to, aten.type_as, aten.detach, aten.clone, aten.alias, aten.contiguous)
BILINEAR = (  # affine, where one argument alone depends on the input
    *(aten.linear, aten.addmm, aten.mm, aten.matmul, aten.bmm, aten.mul, aten.multiply, aten.einsum),
    *(aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution),
    *(aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d),
)
PRELU = (aten.prelu, aten._prelu_kernel)
KINKED = (
    *(aten.relu, aten.leaky_relu, *PRELU, aten.relu6, aten.hardtanh, aten.abs),
    *(aten.clamp, aten.clip, aten.clamp_min, aten.clamp_max),
)
QUOTIENTS = (aten.div, aten.divide, aten.true_divide)
AFFINE = {
    *(set(SELECTION) - {*MAXIMA, *MINIMA, aten.cummax}),
    *(set(AVERAGES) - {aten.logsumexp}),
    *(aten.avg_pool2d, aten.avg_pool3d, aten.index, aten.where, aten.neg, aten.negative),
    *(aten.add, aten.sub, aten.subtract, aten.rsub, *QUOTIENTS, *BILINEAR, *BATCH_NORMS),
}


@dataclass(frozen=True)
class AffineMap:
    """v -> matrix v + offset, v being the inputs and all ReLUs' outputs so far; of a value of this shape."""

    matrix: Any  # a sparse.csr_array, (rows, len(v)), perhaps with fewer columns: later ones are zero
    offset: np.ndarray  # (rows,)
    shape: tuple[int, ...]  # a sample's

    def columns(self, n: int) -> Any:
        matrix = self.matrix.copy()
        matrix.resize((matrix.shape[0], n))
        return matrix

    def then(self, matrix: sparse.csr_array, shape: tuple[int, ...] | None = None) -> "AffineMap":
        """After it, a linear map."""
        return AffineMap(matrix @ self.matrix, matrix @ self.offset, self.shape if shape is None else shape)

    def plus(self, other: "AffineMap") -> "AffineMap":
        n = max(self.matrix.shape[1], other.matrix.shape[1])
        return AffineMap(self.columns(n) + other.columns(n), self.offset + other.offset, self.shape)

    def scaled(self, factors: np.ndarray | float) -> "AffineMap":
        diagonal = sparse.diags_array(np.broadcast_to(np.asarray(factors, float), len(self.offset)))
        return self.then(sparse.csr_array(diagonal))

    def moved(self, by: np.ndarray | float) -> "AffineMap":
        return AffineMap(self.matrix, self.offset + by, self.shape)


@dataclass(frozen=True)
class ReluNetwork:
    """v = (x, relu(layer_1(v)), relu(layer_2(v)), ...) and logits head(v): each layer sees what was before it."""

    inputs: int
    layers: tuple[AffineMap, ...]
    head: AffineMap

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(B, inputs) -> (B, classes)."""
        v = x.T
        for layer in self.layers:
            v = np.vstack([v, np.maximum(layer.matrix @ v + layer.offset[:, None], 0)])
        return (self.head.columns(len(v)) @ v + self.head.offset[:, None]).T


def as_relu_network(model: nn.Module, graph: Graph) -> ReluNetwork:
    """The captured graph of ``model`` as a `ReluNetwork`, in double precision.

    TypeError names an operator that is not piecewise linear, or too hard to write so; ValueError for more ReLUs than a
    mixed-integer program can be hoped to decide.
    """
    return _Unrolling(model, graph).network()


class _Unrolling:
    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.model, self.graph = model, graph
        with torch.no_grad():
            self.values = {node: _double(value) for node, value in graph.constants(model).items()}
        shape = tuple(graph.input.meta["val"].shape[1:])
        self.size = prod(shape)
        self.inputs = self.size
        start = AffineMap(sparse.csr_array(sparse.eye_array(self.size)), np.zeros(self.size), shape)
        self.maps: dict[fx.Node, Any] = {graph.input: start}
        self.layers: list[AffineMap] = []

    def network(self) -> ReluNetwork:
        self._check_relus(sum(prod(size_of(node)[1:]) for node in self.graph.nodes if packet(node) in KINKED))
        for node in self.graph.nodes:
            if node in self.graph.dependent and packet(node) not in SIZES and self._inputs(node):
                self.maps[node] = self._map(node)
        return ReluNetwork(self.inputs, tuple(self.layers), self.maps[self.graph.output])

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if source in self.maps]

    def _map(self, node: fx.Node) -> Any:
        op, inputs = packet(node), self._inputs(node)
        args: Any = arguments_of(node)
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not value.is_floating_point():
            raise self._refused(node)
        if op is operator.getitem:
            return self.maps[args[0]][args[1]]
        if op in SAME:
            return self.maps[args[0]]
        if op in OF_TWO or (op in (aten.max, aten.min) and len(args) > 1 and isinstance(args[1], fx.Node)):
            return self._of_two(node)
        if op in (*MAXIMA, *MINIMA):
            return self._extreme(node)
        every: list[fx.Node] = []
        map_arg((node.args, node.kwargs), every.append)
        once = sum(source in self.maps for source in every) == 1
        if op in KINKED and once and (op in PRELU or len(every) == 1):
            return self._kinked(node)
        if (
            op not in AFFINE
            or (op in BILINEAR and not once)
            or (op in QUOTIENTS and (inputs != [args[0]] or not once or node.kwargs))
            or (isinstance(call := self.graph.plan.calls.get(node), NormCall) and call.by_batch)
        ):
            raise self._refused(node)
        return self._unrolled(node, inputs)

    def _refused(self, node: fx.Node) -> TypeError:
        is_whole = packet(node) is WHOLE_MODULE
        what = f"module '{self.graph.whole[arguments_of(node)[1]].path}'" if is_whole else place(node)
        return TypeError(f"model: {what} is not piecewise linear as bound='exact' needs it; accepted are {ACCEPTED}")

    # ---- affine operators

    def _unrolled(self, node: fx.Node, inputs: list[fx.Node]) -> Any:
        """What an affine operator returns, one map or several: its own matrix after the maps of its inputs."""
        blank = {source: torch.zeros(1, *self.maps[source].shape, dtype=torch.float64) for source in inputs}
        at_zero = self._run(node, blank)
        if isinstance(at_zero, (tuple, list)):
            return [self._part(node, inputs, lambda out, i=i: out[i], part) for i, part in enumerate(at_zero)]
        return self._part(node, inputs, lambda out: out, at_zero)

    def _part(
        self, node: fx.Node, inputs: list[fx.Node], pick: Callable[[Any], Tensor], at_zero: Tensor | None
    ) -> AffineMap | None:
        """One result of an affine operator. Row i of its matrix is its gradient, taken of row i of a batch."""
        if at_zero is None:
            return None
        rows, shape = at_zero[0].numel(), tuple(at_zero.shape[1:])
        out = AffineMap(sparse.csr_array((rows, self.size)), at_zero.detach().flatten().numpy().copy(), shape)
        parts: list[list[sparse.csr_array]] = [[] for _ in inputs]
        for some in torch.arange(rows).split(self._batch(inputs)):
            leaves = [
                torch.zeros(len(some), *self.maps[source].shape, dtype=torch.float64, requires_grad=True)
                for source in inputs
            ]
            with torch.enable_grad():
                result = pick(self._run(node, dict(zip(inputs, leaves, strict=True)))).reshape(len(some), -1)
                own = result.gather(1, some.unsqueeze(1)).sum()
            gradients = torch.autograd.grad(own, leaves, allow_unused=True, materialize_grads=True)
            for part, gradient in zip(parts, gradients, strict=True):
                part.append(sparse.csr_array(gradient.reshape(len(some), -1).numpy()))
        for source, part in zip(inputs, parts, strict=True):
            out = out.plus(self.maps[source].then(sparse.csr_array(sparse.vstack(part)), shape))
        return out

    def _batch(self, inputs: list[fx.Node]) -> int:
        """Rows of a batch of values of these that do not fill the memory."""
        return max(1, NUMBERS // sum(max(1, prod(self.maps[source].shape)) for source in inputs))

    def _run(self, node: fx.Node, leaves: dict[fx.Node, Tensor]) -> Any:
        """The operator on a batch of values of its inputs; sizes are those of this batch."""
        batch = len(next(iter(leaves.values())))
        known: dict[fx.Node, Any] = dict(leaves)

        def value(source: fx.Node) -> Any:
            if source in known:
                return known[source]
            if source in self.values:
                return self.values[source]
            if source in self.maps:
                known[source] = torch.zeros(batch, *self.maps[source].shape, dtype=torch.float64)
            else:  # a size, and what is made of sizes
                known[source] = call(source)
            return known[source]

        def call(called: fx.Node) -> Any:
            return _double(self.graph.call(self.model, called, *map_arg((called.args, called.kwargs), value)))

        return call(node)

    # ---- ReLUs

    def _relu(self, before: AffineMap) -> AffineMap:
        n = len(before.offset)
        self._check_relus(self.size + n - self.inputs)
        self.layers.append(AffineMap(before.columns(self.size), before.offset, before.shape))
        new = sparse.csr_array((np.ones(n), (np.arange(n), self.size + np.arange(n))), shape=(n, self.size + n))
        self.size += n
        return AffineMap(new, np.zeros(n), before.shape)

    def _check_relus(self, count: int) -> None:
        if count > MOST_RELUS:
            raise ValueError(
                f"model: has {count} ReLUs or more (a maximum of k numbers counts as k - 1); bound='exact' takes up to "
                f"{MOST_RELUS}. Choose another bound, or export_vnnlib and a verifier made for large networks"
            )

    def _kinked(self, node: fx.Node) -> AffineMap:
        """A function of one number, as s a + c + sum of t relu(a - k)."""
        op, a = packet(node), self.maps[arguments_of(node)[0]]
        rest = list(arguments_of(node)[1:])
        slope, offset, kinks = 0.0, 0.0, [(1.0, 0.0)]
        if op is aten.leaky_relu:
            slope = rest[0] if rest else 0.01
            kinks = [(1 - slope, 0.0)]
        elif op in PRELU:
            weight = self.values[rest[0]].flatten().view(-1, *[1] * (len(a.shape) - 1))
            slope = weight.expand(a.shape).flatten().numpy()
            kinks = [(1 - slope, 0.0)]
        elif op is aten.abs:
            slope, kinks = -1.0, [(2.0, 0.0)]
        elif op is not aten.relu:
            low, high = _ends(op, rest, node.kwargs)
            slope, offset = (1.0, 0.0) if low is None else (0.0, float(low))
            kinks = [(t, float(k)) for t, k in ((1.0, low), (-1.0, high)) if k is not None]
        out = a.scaled(slope).moved(offset)
        for turn, kink in kinks:
            out = out.plus(self._relu(a.moved(-kink)).scaled(turn))
        return out

    def _larger(self, a: AffineMap, b: AffineMap) -> AffineMap:
        return b.plus(self._relu(a.plus(b.scaled(-1.0))))

    def _of_two(self, node: fx.Node) -> AffineMap:
        sign = -1.0 if packet(node) in (aten.minimum, aten.min) else 1.0
        shape = tuple(node.meta["val"].shape[1:])
        a, b = (self._spread(source, shape).scaled(sign) for source in node.args[:2])
        return self._larger(a, b).scaled(sign)

    def _spread(self, source: Any, shape: tuple[int, ...]) -> AffineMap:
        """An argument, constant or not, as it broadcasts to ``shape``."""
        if source not in self.maps:
            value = self.values[source].expand(1, *shape)[0].flatten().numpy()
            return AffineMap(sparse.csr_array((len(value), self.size)), value, shape)
        before = self.maps[source]
        rows = torch.arange(len(before.offset)).view(1, *before.shape).expand(1, *shape).flatten().numpy()
        return before.then(_picking(rows, len(before.offset)), shape)

    def _extreme(self, node: fx.Node) -> Any:
        """The maximum over windows, round by round: which numbers a window holds, unit vectors tell."""
        sign = -1.0 if packet(node) in MINIMA else 1.0
        (source,) = self._inputs(node)
        before = self.maps[source].scaled(sign)
        several, shape, found = False, (), []
        for some in torch.arange(len(before.offset)).split(self._batch([source])):
            units = F.one_hot(some, len(before.offset)).double().view(-1, *before.shape)
            out = self._run(node, {source: sign * units})
            several = isinstance(out, (tuple, list))
            out = out[0] if several else out
            shape = tuple(out.shape[1:])
            found.append((out.reshape(len(some), -1) == sign).nonzero() + torch.tensor([some[0].item(), 0]))
        member, owner = (column.numpy() for column in torch.cat(found).unbind(1))
        order = np.argsort(owner, kind="stable")
        candidates, owner = before.then(_picking(member[order], len(before.offset))), owner[order]
        while len(owner) > len(np.unique(owner)):
            turn = np.arange(len(owner)) - np.searchsorted(owner, owner)  # within its window
            last = np.append(owner[1:] != owner[:-1], True)
            first = np.flatnonzero((turn % 2 == 0) & ~last)
            alone = np.flatnonzero((turn % 2 == 0) & last)
            n = len(owner)
            larger = self._larger(candidates.then(_picking(first, n)), candidates.then(_picking(first + 1, n)))
            joined = _stacked(larger, candidates.then(_picking(alone, n)))
            owner = np.concatenate([owner[first], owner[alone]])
            order = np.argsort(owner, kind="stable")
            candidates, owner = joined.then(_picking(order, len(owner))), owner[order]
        result = AffineMap(candidates.matrix, candidates.offset, shape).scaled(sign)
        return (result, None) if several else result


def _ends(op: Any, rest: list[Any], named: dict[str, Any]) -> tuple[Any, Any]:
    """Where a clamp begins and ends; None: it does not."""
    low, high = {aten.relu6: (0.0, 6.0), aten.hardtanh: (-1.0, 1.0)}.get(op, (None, None))
    if op is aten.clamp_max:
        return None, rest[0]
    low, high = (*rest, *(low, high)[len(rest) :])
    return named.get("min", low), named.get("max", high)


def _double(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(map(_double, value))
    return value.double().cpu() if isinstance(value, Tensor) and value.is_floating_point() else value


def _picking(rows: np.ndarray, n: int) -> sparse.csr_array:
    return sparse.csr_array((np.ones(len(rows)), (np.arange(len(rows)), rows)), shape=(len(rows), n))


def _stacked(a: AffineMap, b: AffineMap) -> AffineMap:
    n = max(a.matrix.shape[1], b.matrix.shape[1])
    matrix = sparse.csr_array(sparse.vstack([a.columns(n), b.columns(n)]))
    return AffineMap(matrix, np.concatenate([a.offset, b.offset]), a.shape)
