"""Affine operators with constant weights: prepared once, with a BatchNorm that follows folded in.

Source: Gowal et al. 2019; Appendix A.1 of the ACERT paper, Eq. (16)-(17).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from acertlab.bounds.box import Box
from acertlab.bounds.rules.batch_invariance import batch_invariant
from acertlab.bounds.rules.operators import BATCH_NORMS, arguments_of, aten, packet, size_of

CONVOLUTIONS = (aten.conv1d, aten.conv2d, aten.conv3d, aten._convolution_mode)
TRANSPOSED = (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d)
ANY_CONVOLUTION = (aten.convolution, aten._convolution)  # of any dimension, transposed or not
REPEATING = {aten.pad, *(getattr(aten, f"{kind}_pad{d}d") for kind in ("reflection", "replication") for d in (1, 2, 3))}
Operation = Callable[[Tensor, Tensor, Tensor | None], Tensor]


BATCH_STATISTICS = (
    "model: a BatchNorm would normalise with the statistics of a batch, so no sample has a bound of its own; "
    "call model.eval() (and keep track_running_stats=True), or, in training, pass the statistics of clean_pass"
)


@dataclass(frozen=True)
class AffineCall:
    """An affine operator as a node of a graph: operation(input, weight, bias)."""

    input: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    operation: Operation  # F.linear, or a convolution with its stride, ...
    turned: bool = False  # the weight is the transposed of F.linear's
    transposed: bool = False  # a transposed convolution, whose weight has the outputs in dimension 1
    stride: int = 1  # of a convolution: the product over its dimensions
    repeats: "Repeats | None" = None  # of a convolution after a padding by values of the input

    @property
    def foldable(self) -> bool:
        """Whether outputs have their channel, or feature, in dimension 1, and the weight in dimension 0."""
        return len(size_of(self.input)) == 2 if self.operation is F.linear else not self.transposed


def as_affine(node: fx.Node, dependent: frozenset[fx.Node]) -> AffineCall | None:
    """The node as an affine operator, where it is one and its weight and bias do not depend on the input."""
    operation = packet(node)
    args: Any = arguments_of(node)
    if operation is aten.linear:
        call = AffineCall(args[0], args[1], args[2] if len(args) > 2 else None, F.linear)
    elif operation is aten.addmm and len(args) == 3 and not node.kwargs and len(size_of(args[0])) == 1:
        call = AffineCall(args[1], args[2], args[0], F.linear, turned=True)
    elif operation in (aten.mm, aten.matmul) and len(size_of(args[1])) == 2 <= len(size_of(args[0])):
        call = AffineCall(args[0], args[1], None, F.linear, turned=True)
    elif operation in (*CONVOLUTIONS, *TRANSPOSED, *ANY_CONVOLUTION):
        sizes = args[3:]
        turned = operation in TRANSPOSED or (operation in ANY_CONVOLUTION and sizes[3])
        stride = sizes[0] if sizes else 1
        call = AffineCall(
            args[0],
            args[1],
            args[2] if len(args) > 2 else None,
            partial(_convolve, cast(Any, node.target), sizes),
            transposed=turned,
            stride=stride if isinstance(stride, int) else math.prod(stride),
            repeats=None if turned else _repeats(args[0], size_of(args[1])[2:], sizes),
        )
    else:
        return None
    constant = call.weight not in dependent and call.bias not in dependent
    return call if constant and call.input in dependent else None


def _convolve(target: Callable[..., Tensor], sizes: tuple, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return target(x, weight, bias, *sizes)


class Run(NamedTuple):
    """Neighbouring outputs of a convolution, along one axis, whose windows repeat values alike."""

    entering: slice  # what their windows read of the padded input
    first: tuple[int, ...]  # for each tap of the kernel the first one that reads the same value


@dataclass(frozen=True)
class Repeats:
    """Which outputs of a convolution read a value twice, since the padding before it repeats values of the input.

    There |W| r of the padded radius is too wide: the weights of one value must be added before the magnitude is taken.
    Blocks of outputs that repeat alike, 9 of a kernel of 3 x 3 after one reflected row and column, are convolutions
    with weights of their own, so that each output is still computed once.
    """

    runs: tuple[tuple[Run, ...], ...]  # along each axis

    def magnitudes(self, weight: Tensor) -> list[Tensor]:
        """|A|, block by block: what reads one value is added, at the place of its first tap."""
        blocks = []
        for block in itertools.product(*self.runs):
            merged = weight
            for axis, run in enumerate(block, 2):
                sums = [torch.zeros_like(tap) for tap in merged.unbind(axis)]
                for tap, first in zip(merged.unbind(axis), run.first, strict=True):
                    sums[first] = sums[first] + tap
                merged = torch.stack(sums, axis)
            blocks.append(merged.abs())
        return blocks

    def radius(self, operation: Operation, magnitudes: Sequence[Tensor], radius: Tensor) -> Tensor:
        """|A| r of the padded radius, the blocks put together."""
        places = [(..., *(run.entering for run in block)) for block in itertools.product(*self.runs)]
        parts = [batch_invariant(operation, radius[p], m, None) for p, m in zip(places, magnitudes, strict=True)]
        for axis, runs in reversed([*enumerate(self.runs, 2)]):
            parts = [torch.cat(parts[i : i + len(runs)], axis) for i in range(0, len(parts), len(runs))]
        return parts[0]


def _repeats(padded: fx.Node, kernel: Sequence[int], sizes: tuple) -> Repeats | None:
    """What the padding before a convolution of this kernel repeats inside its windows, if anything.

    ``padded`` enters the convolution, ``sizes`` are its stride, padding and dilation, as far as they are given.
    """
    args: Any = arguments_of(padded) or (None,)
    x, how = args[0], args[1:]
    stride, zeros, dilation = (*sizes, *(1, 0, 1)[len(sizes) :])[:3]
    constant = packet(padded) is aten.pad and how[1:2] in ((), ("constant",))
    if (
        packet(padded) not in REPEATING
        or constant
        or padded.kwargs
        or zeros not in (0, [0], [0] * len(kernel), "valid")
    ):
        return None
    inside, axes = size_of(x)[-len(kernel) :], []
    for axis, size in enumerate(inside):
        place = torch.arange(float(size), device="cpu").view(-1, *[1] * (len(inside) - axis - 1)).expand(1, 1, *inside)
        source = cast(Any, padded.target)(place, *how).movedim(2 + axis, 0).flatten(1)[:, 0].tolist()
        step, apart = (s if isinstance(s, int) else s[axis % len(s)] for s in (stride, dilation))
        reach, runs = apart * (kernel[axis] - 1) + 1, []
        windows = [source[i : i + reach : apart] for i in range(0, len(source) - reach + 1, step)]
        firsts = [tuple(map(window.index, window)) for window in windows]
        for first, alike in itertools.groupby(range(len(firsts)), firsts.__getitem__):
            outputs = [*alike]
            runs.append(Run(slice(outputs[0] * step, outputs[-1] * step + reach), first))
        axes.append(tuple(runs))
    return Repeats(tuple(axes)) if any(len({*run.first}) < len(run.first) for runs in axes for run in runs) else None


@dataclass(frozen=True)
class Affine:
    """A linear or convolutional layer with BatchNorm folded in: W, bias, and how they are applied."""

    weight: Tensor
    bias: Tensor | None
    operation: Operation


@dataclass(frozen=True)
class IntervalAffine(Affine):
    """A layer prepared for interval bounds: the half of a box's centre and radius is in the weights, exactly."""

    half: Tensor  # W / 2
    half_magnitude: Tensor  # |W| / 2
    repeats: Repeats | None = None
    half_magnitudes: Sequence[Tensor] = ()  # |A| / 2, of each block of outputs that `repeats` tells apart

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        operation: Operation,
        norm: "Scale | None" = None,
        repeats: Repeats | None = None,
    ) -> Any:
        if norm is not None:
            weight = weight * norm.scale.view(-1, *[1] * (weight.dim() - 1))
            bias = norm.shift if bias is None else norm.shift + bias * norm.scale
        half = weight * 0.5
        blocks = () if repeats is None else repeats.magnitudes(half)
        return cls(weight, bias, operation, half, half.abs(), repeats, blocks)

    def propagate(self, box: Box) -> Box:
        """Eq. (16)-(17) in centre and radius form: c' = W c + b, r' = |W| r, see `Repeats`."""
        width = box.upper - box.lower
        center = batch_invariant(self.operation, box.upper + box.lower, self.half, self.bias)
        if self.repeats is None:
            radius = batch_invariant(self.operation, width, self.half_magnitude, None)
        else:
            radius = self.repeats.radius(self.operation, self.half_magnitudes, width)
        if center.requires_grad or radius.requires_grad:
            return Box(center - radius, center + radius)
        return Box(center - radius, center.add_(radius))

    def evaluate(self, x: Tensor) -> Tensor:
        return self.operation(x, self.weight, self.bias)


@dataclass(frozen=True)
class Scale:
    """A per-channel affine map x -> scale x + shift: a BatchNorm that follows no affine layer."""

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)

    @classmethod
    def of(cls, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> "Scale":
        scale = torch.rsqrt(var + eps)
        if weight is not None:
            scale = scale * weight
        return cls(scale, -mean * scale if bias is None else bias - mean * scale)

    def spread(self, pixels: int) -> tuple[Tensor, Tensor]:
        """Both, as they apply to (B, C, ...) with so many dimensions of pixels."""
        shape = (-1, *[1] * pixels)
        return self.scale.view(shape), self.shift.view(shape)

    def propagate(self, box: Box) -> Box:
        scale, shift = self.spread(box.lower.dim() - 2)
        center, radius = box.center * scale + shift, box.radius * scale.abs()
        return Box(center - radius, center + radius)

    def evaluate(self, x: Tensor) -> Tensor:
        scale, shift = self.spread(x.dim() - 2)
        return x * scale + shift


@dataclass(frozen=True)
class Standardisation(Scale):
    """(x - mean) / std per channel, as `Normalize` does; as a scale and a shift, but at points."""

    mean: Tensor  # (C,)
    std: Tensor  # (C,)

    def evaluate(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)


@dataclass(frozen=True)
class StandardCall:
    """A quotient (x - mean) / std as a node of a graph, with one constant of each a channel."""

    input: fx.Node
    difference: fx.Node
    mean: fx.Node
    std: fx.Node


def as_standardisation(node: fx.Node, dependent: frozenset[fx.Node]) -> StandardCall | None:
    """The node as such a quotient, where it is one."""
    if packet(node) is not aten.div or len(node.args) != 2 or node.kwargs:
        return None
    difference, std = arguments_of(node)
    if (
        packet(difference) is not aten.sub
        or len(difference.args) != 2
        or difference.kwargs
        or len(difference.users) > 1
    ):
        return None
    x, mean, *_ = arguments_of(difference)
    constants = all(isinstance(n, fx.Node) and n not in dependent for n in (mean, std))
    if x not in dependent or not constants or len(size := size_of(x)) < 2:
        return None
    per_channel = (1, size[1], *[1] * (len(size) - 2))
    if any(tuple(size_of(n)) != per_channel for n in (mean, std)):
        return None
    return StandardCall(x, difference, mean, std)


@dataclass(frozen=True)
class NormCall:
    """A BatchNorm as a node of a graph."""

    input: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    mean: fx.Node | None
    var: fx.Node | None
    by_batch: bool  # normalises with the batch's own statistics
    eps: float


def as_batch_norm(node: fx.Node) -> NormCall | None:
    """The node as a BatchNorm, where it is one."""
    operation = packet(node)
    if operation not in BATCH_NORMS:
        return None
    x, weight, bias, *rest = arguments_of(node)
    if node.target is aten._native_batch_norm_legit.no_stats:  # training, momentum, eps
        return NormCall(x, weight, bias, None, None, True, rest[2])
    mean, var, *rest = rest
    if operation is aten._native_batch_norm_legit_no_training:  # momentum, eps
        return NormCall(x, weight, bias, mean, var, False, rest[1])
    if operation is aten._batch_norm_with_update_functional:  # momentum, eps
        return NormCall(x, weight, bias, mean, var, True, rest[1])
    by_batch, _, eps, *_ = rest
    return NormCall(x, weight, bias, mean, var, by_batch, eps)


def _of_constant_weight(op: Any, *args: Any, **kwargs: Any) -> Box:
    name = op.overloadpacket.__name__
    raise TypeError(f"model: {name} has no interval rule where its weight or bias depends on the input")


RULES = dict.fromkeys((*CONVOLUTIONS, *TRANSPOSED, *ANY_CONVOLUTION), _of_constant_weight)


class Normalize(nn.Module):
    """(x - mean) / std per channel, as the first layer of a model.

    Args:
        mean: one value a channel, in pixel units.
        std: the same length, > 0.

    Raises:
        ValueError: lengths differ, or a std that is not positive.

    Example:
        >>> al.Normalize(mean=[0.5], std=[0.25])(torch.full((1, 1, 1, 2), 0.75))
        tensor([[[[1., 1.]]]])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ValueError(f"std: {len(std)} values for {len(mean)} means; give one of each a channel")
        if min(std) <= 0:
            raise ValueError(f"std: {tuple(std)} holds a value <= 0; standard deviations are positive")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)
