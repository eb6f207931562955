"""One interval rule for every layer a network is made of.

`rule` is dispatched on a layer's type; what a traced forward calls besides layers is in `acertlab.functions`.
Everything is differentiable.

Source: Gowal et al. 2019; Appendix A.1 of the ACERT paper, Eq. (14)-(19).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from acertlab.box import Box
from acertlab.fused import sum_and_difference

BATCH_STATISTICS = (
    "model: a BatchNorm would normalise with the statistics of a batch, so no sample has a bound of its own; "
    "call model.eval() (and keep track_running_stats=True), or, in training, pass the statistics of clean_pass"
)


@singledispatch
def rule(layer: nn.Module, box: Box) -> Box:
    """The box that holds ``layer(x)`` for every x in ``box``; dispatched on the type of ``layer``.

    Give your own layer a rule with::

        @acertlab.rule.register(MyLayer)
        def my_rule(layer, box):
            return acertlab.Box(lower, upper)
    """
    raise TypeError(f"no interval rule for a layer of type {type(layer).__name__}")


def evaluate(layer: "nn.Module | Affine | Scale", x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What a prepared layer does to a point instead of a box."""
    if isinstance(layer, Affine):
        return layer.operation(x, layer.weight, layer.bias)
    if isinstance(layer, Scale):
        scale, shift = layer.spread(x.dim() - 2)
        return x * scale + shift
    return layer(x, *args, **kwargs)


def has_rule(layer: nn.Module) -> bool:
    """Whether `rule` bounds what ``layer`` computes: not where it inherits a rule, but has a forward of its own."""
    known = next((kind for kind in type(layer).__mro__ if kind in rule.registry), object)
    return known is not object and "forward" not in vars(layer) and type(layer).forward is known.forward


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
    def of_layer(cls, layer: nn.Module, norm: "Scale | None" = None) -> "IntervalAffine":
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


FEWEST = 16  # rows from which on a matrix product on a CPU sums in the same order whatever their number (measured)
ALIGNED = 4  # numbers; where rows are a multiple of it long, the order does not depend on where a row begins (measured)


def alike(operation: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """operation(x, weight, bias), of which no row depends on how many others there are, or on its place among them.

    Few rows go to another kernel of a matrix product, with another order of summation, and so do images of one pixel in
    a convolution; on some processors (AVX2) so do all rows where there is a single output, where one factor is a
    transposed view, and where rows begin at another fraction of 16 bytes.
    """
    if x.device.type != "cpu" or not (weight.dim() == 2 or x.shape[2:].numel() == 1):
        return operation(x, weight, bias)
    linear, rows = operation is F.linear, len(x)
    if linear and len(weight) == 1:
        return alike(operation, x, weight.expand(2, -1), None if bias is None else bias.expand(2))[..., :1]
    missing, rest = max(0, FEWEST - rows), -x.shape[-1] % ALIGNED if linear else 0
    if rest:
        weight = F.pad(weight, (0, rest))
    if missing or rest:
        x = F.pad(x, (0, rest, *[0, 0] * (x.dim() - 2), 0, missing))
    if linear:
        x, weight = x.contiguous(), weight.contiguous()
    return operation(x, weight, bias)[:rows]


def matmul_alike(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, see `alike`: where one of them is a matrix, it is the weight of the other's rows."""
    if b.dim() == 2 <= a.dim():
        return alike(F.linear, a, b.mT, None)
    if a.dim() == 2 < b.dim():
        return alike(F.linear, b.mT, a, None).mT
    return a @ b


@rule.register(IntervalAffine)
def _affine(layer: IntervalAffine, box: Box) -> Box:
    """Eq. (16)-(17) in centre and radius form: c' = W c + b, r' = |W| r."""
    both, width = sum_and_difference(box.upper, box.lower)
    center = alike(layer.operation, both, layer.half, layer.bias)
    radius = alike(layer.operation, width, layer.half_magnitude, None)
    if center.requires_grad or radius.requires_grad:
        upper, lower = sum_and_difference(center, radius)
        return Box(lower, upper)
    return Box(center - radius, center.add_(radius))


@rule.register(nn.Linear)
@rule.register(nn.Conv1d)
@rule.register(nn.Conv2d)
@rule.register(nn.Conv3d)
def _linear_or_convolution(layer: nn.Module, box: Box) -> Box:
    return _affine(IntervalAffine.of_layer(layer), box)


TRANSPOSED = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


@rule.register(nn.ConvTranspose1d)
@rule.register(nn.ConvTranspose2d)
@rule.register(nn.ConvTranspose3d)
def _transposed_convolution(layer: nn.Module, box: Box) -> Box:
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
    if statistics is None and (layer.training or layer.running_mean is None):
        raise ValueError(BATCH_STATISTICS)
    mean, var = (layer.running_mean, layer.running_var) if statistics is None else statistics
    return normalisation(mean, var, layer.weight, layer.bias, layer.eps)


def normalisation(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Scale:
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight
    return Scale(scale, -mean * scale if bias is None else bias - mean * scale)


@rule.register(nn.ReLU)
def relu(layer: nn.ReLU, box: Box) -> Box:
    return Box(box.lower.relu(), box.upper.relu())  # never in place: others may hold the box


def _monotone(layer: nn.Module, box: Box) -> Box:
    """Eq. (18)-(19): a non-decreasing map acts on each end (elementwise, or pooling, or a change of shape)."""
    if getattr(layer, "inplace", False):
        box = Box(box.lower.clone(), box.upper.clone())
    return Box(layer.forward(box.lower), layer.forward(box.upper))


for _kind in (
    *(nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.SELU, nn.LogSigmoid, nn.Softsign, nn.Tanhshrink),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
):
    rule.register(_kind)(_monotone)


@rule.register(nn.LeakyReLU)
@rule.register(nn.ELU)
@rule.register(nn.CELU)
def _monotone_if_positive(layer: nn.LeakyReLU | nn.ELU | nn.CELU, box: Box) -> Box:
    parameter = "negative_slope" if isinstance(layer, nn.LeakyReLU) else "alpha"
    if getattr(layer, parameter) < 0:
        raise ValueError(f"model: {type(layer).__name__} with {parameter} < 0 is not monotone; no rule bounds it")
    return _monotone(layer, box)


@rule.register(nn.AvgPool2d)
@rule.register(nn.AvgPool3d)
def _average_pool(layer: nn.AvgPool2d | nn.AvgPool3d, box: Box) -> Box:
    if (layer.divisor_override or 1) < 0:
        raise ValueError(
            f"model: {type(layer).__name__} with divisor_override = {layer.divisor_override} < 0 is not monotone"
        )
    return _monotone(layer, box)


@rule.register(nn.Softplus)
def _softplus(layer: nn.Softplus, box: Box) -> Box:
    """Rises to x = threshold / beta, drops to x there (torch's cut-off), and rises again."""
    if layer.beta <= 0:
        raise ValueError(f"model: Softplus with beta = {layer.beta} <= 0 has no interval rule")
    lower, upper = layer(box.lower), layer(box.upper)
    cut = torch.full_like(lower, layer.threshold / layer.beta)
    across = (box.lower * layer.beta <= layer.threshold) & (box.upper * layer.beta > layer.threshold)
    return Box(
        torch.where(across, torch.minimum(lower, cut), lower),
        torch.where(across, torch.maximum(upper, F.softplus(cut, layer.beta, torch.inf)), upper),
    )


VALLEYS = {nn.SiLU: -1.2784645427610738, nn.Mish: -1.1924371219615398, nn.Hardswish: -1.5}


@rule.register(nn.GELU)
@rule.register(nn.SiLU)
@rule.register(nn.Mish)
@rule.register(nn.Hardswish)
def _one_valley(layer: nn.GELU | nn.SiLU | nn.Mish | nn.Hardswish, box: Box) -> Box:
    if isinstance(layer, nn.GELU):
        valley = -0.7517915246935645 if layer.approximate == "none" else -0.7524614220710163
        return with_valley(layer.forward, valley, box)
    kind = next(kind for kind in VALLEYS if isinstance(layer, kind))
    return with_valley(kind(), VALLEYS[kind], box)  # a new one: not in place


def with_valley(f: Callable[[Tensor], Tensor], valley: float, box: Box) -> Box:
    """Falls to one minimum, then rises: the least value is at the point of the box nearest to that minimum."""
    nearest = torch.maximum(box.lower, torch.minimum(box.upper, torch.full_like(box.lower, valley)))
    return Box(f(nearest), torch.maximum(f(box.lower), f(box.upper)))


@rule.register(nn.PReLU)
def two_lines(f: Callable[[Tensor], Tensor], box: Box) -> Box:
    """Two lines that meet at 0, rising or, with a negative slope, a valley: extremes are at the ends or at 0."""
    lower, upper = f(box.lower), f(box.upper)
    crosses = (box.lower < 0) & (box.upper > 0)
    low = torch.minimum(lower, upper)
    return Box(torch.where(crosses, low.clamp(max=0.0), low), torch.maximum(lower, upper))


def each_end(f: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of a function that is non-decreasing in every box among its arguments; a tuple of results stays one."""

    def bounds(*args: Any, **kwargs: Any) -> Any:
        lows, highs = (
            map_aggregate((args, kwargs), lambda a, end=end: getattr(a, end) if isinstance(a, Box) else a)
            for end in ("lower", "upper")
        )
        return _boxes(f(*lows[0], **lows[1]), f(*highs[0], **highs[1]))

    return bounds


def _boxes(low: Any, high: Any) -> Any:
    return tuple(map(_boxes, low, high)) if isinstance(low, (tuple, list)) else Box(low, high)


@rule.register(nn.Upsample)
def _upsample(layer: nn.Upsample, box: Box) -> Box:
    sizes = (layer.size, layer.scale_factor, layer.mode, layer.align_corners)
    return interpolate(box, *sizes, recompute_scale_factor=layer.recompute_scale_factor)


def interpolate(box: Box, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *args, **kwargs) -> Box:
    if mode == "bicubic":
        raise ValueError("model: bicubic interpolation is not monotone; no rule bounds it. Use mode='bilinear'")
    return each_end(F.interpolate)(box, size, scale_factor, mode, *args, **kwargs)


@rule.register(nn.Dropout)
@rule.register(nn.Dropout1d)
@rule.register(nn.Dropout2d)
@rule.register(nn.Dropout3d)
@rule.register(nn.AlphaDropout)
@rule.register(nn.FeatureAlphaDropout)
def _dropout(layer: nn.Module, box: Box) -> Box:
    return no_dropout(box, layer.p, layer.training)


def no_dropout(box: Box, p: float = 0.5, training: bool = True, inplace: bool = False) -> Box:
    if training and p > 0:
        raise ValueError(f"model: Dropout with p={p} is active, so outputs are random; call model.eval() first")
    return box


@rule.register(StochasticDepth)
def _stochastic_depth(layer: StochasticDepth, box: Box) -> Box:
    return no_dropout(box, layer.p, layer.training)


@rule.register(nn.Softmax)
@rule.register(nn.LogSoftmax)
@rule.register(nn.Softmax2d)
def no_softmax(*args: Any, **kwargs: Any) -> Box:
    raise TypeError(
        "model: a softmax has no interval rule. If it is the last layer, drop it (put nn.Identity() there): margins "
        "are differences of logits, and the softmax of logits has the same order"
    )
