"""Interval rules of affine layers: Linear, convolutions, BatchNorm folded into them, Normalize.

Source: Gowal et al. 2019; Appendix A.1 of the ACERT paper, Eq. (14)-(17).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acertlab.bounds.box import Box
from acertlab.bounds.rules.batch_invariance import batch_invariant
from acertlab.bounds.rules.dispatch import rule

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
BATCH_STATISTICS = (
    "model: a BatchNorm would normalise with the statistics of a batch, so no sample has a bound of its own; "
    "call model.eval() (and keep track_running_stats=True), or, in training, pass the statistics of clean_pass"
)


def evaluate(layer: "nn.Module | Affine | Scale", x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a prepared layer does to a point instead of a box."""
    if isinstance(layer, Affine):
        return layer.operation(x, layer.weight, layer.bias)
    if isinstance(layer, Scale):
        scale, shift = layer.spread(x.dim() - 2)
        return x * scale + shift
    return layer(x, *args, **kwargs)


@dataclass(frozen=True)
class Affine:
    """A linear or convolutional layer with BatchNorm folded in: W, bias, and how they are applied."""

    weight: Tensor
    bias: Tensor | None
    operation: Callable[[Tensor, Tensor, Tensor | None], Tensor]  # F.linear, or a convolution with its stride, ...


@dataclass(frozen=True)
class IntervalAffine(Affine):
    """A layer prepared for interval bounds: the half of a box's centre and radius is in the weights, exactly."""

    half: Tensor  # W / 2
    half_magnitude: Tensor  # |W| / 2

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, operation: Callable[..., Tensor]) -> "IntervalAffine":
        half = weight * 0.5
        return cls(weight, bias, operation, half, half.abs())

    @classmethod
    def of_layer(cls, layer: nn.Linear | Convolution, norm: "Scale | None" = None) -> "IntervalAffine":
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            weight = weight * norm.scale.view(-1, *[1] * (weight.dim() - 1))
            bias = norm.shift if bias is None else norm.shift + bias * norm.scale
        return cls.of(weight, bias, F.linear if isinstance(layer, nn.Linear) else layer._conv_forward)


@dataclass(frozen=True)
class Scale:
    """A per-channel affine map x -> scale x + shift: Normalize, or a BatchNorm that follows no affine layer."""

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)

    def spread(self, pixels: int) -> tuple[Tensor, Tensor]:
        """Both, as they apply to (B, C, ...) with so many dimensions of pixels."""
        shape = (-1, *[1] * pixels)
        return self.scale.view(shape), self.shift.view(shape)


@rule.register(IntervalAffine)
def _affine(layer: IntervalAffine, box: Box) -> Box:
    """Eq. (16)-(17) in centre and radius form: c' = W c + b, r' = |W| r."""
    center = batch_invariant(layer.operation, box.upper + box.lower, layer.half, layer.bias)
    radius = batch_invariant(layer.operation, box.upper - box.lower, layer.half_magnitude, None)
    if center.requires_grad or radius.requires_grad:
        return Box(center - radius, center + radius)
    return Box(center - radius, center.add_(radius))


@rule.register(nn.Linear)
@rule.register(nn.Conv1d)
@rule.register(nn.Conv2d)
@rule.register(nn.Conv3d)
def _linear_or_convolution(layer: nn.Linear | Convolution, box: Box) -> Box:
    return _affine(IntervalAffine.of_layer(layer), box)


TRANSPOSED = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


@rule.register(nn.ConvTranspose1d)
@rule.register(nn.ConvTranspose2d)
@rule.register(nn.ConvTranspose3d)
def _transposed_convolution(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, box: Box) -> Box:
    function = next(f for kind, f in TRANSPOSED.items() if isinstance(layer, kind))
    sizes = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    return convolve(function, box, layer.weight, layer.bias, *sizes)


def convolve(f: Callable[..., Tensor], box: Box, weight: Tensor, bias: Tensor | None = None, *args, **kwargs) -> Box:
    """The rule of F.linear and of every convolution, whose weight and bias must not depend on the input."""
    if not isinstance(box, Box) or isinstance(weight, Box) or isinstance(bias, Box):
        raise TypeError(f"model: {f.__name__} has no interval rule where its weight or bias depends on the input")
    return _affine(IntervalAffine.of(weight, bias, lambda x, w, b: f(x, w, b, *args, **kwargs)), box)


@rule.register(Scale)
def scaled(layer: Scale, box: Box) -> Box:
    scale, shift = layer.spread(box.lower.dim() - 2)
    center, radius = box.center * scale + shift, box.radius * scale.abs()
    return Box(center - radius, center + radius)


@rule.register(nn.BatchNorm1d)
@rule.register(nn.BatchNorm2d)
@rule.register(nn.BatchNorm3d)
@rule.register(nn.SyncBatchNorm)
def _batch_norm(layer: _BatchNorm, box: Box) -> Box:
    return scaled(batch_norm_scale(layer), box)


def batch_norm_scale(layer: _BatchNorm, statistics: tuple[Tensor, Tensor] | None = None) -> Scale:
    """BatchNorm as an affine map, from ``statistics`` (mean, variance) or, without them, its running statistics."""
    if statistics is None:
        if layer.training or layer.running_mean is None or layer.running_var is None:
            raise ValueError(BATCH_STATISTICS)
        statistics = layer.running_mean, layer.running_var
    return normalisation(*statistics, layer.weight, layer.bias, layer.eps)


def normalisation(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Scale:
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    return Scale(scale, -mean * scale if bias is None else bias - mean * scale)


class Normalize(nn.Module):
    """(x - mean) / std per channel, as the first layer of a model.

    Args:
        mean: one value a channel, in pixel units.
        std: the same length, > 0.

    Raises:
        ValueError: lengths differ, or a std that is not positive.
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


@rule.register(Normalize)
def _normalize(layer: Normalize, box: Box) -> Box:
    return rule(Scale(1 / layer.std, -layer.mean / layer.std), box)


Stats = Sequence[float] | None
