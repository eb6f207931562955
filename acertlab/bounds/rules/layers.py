"""One interval rule for every layer a network is made of.

`rule` is dispatched on a layer's type; what a traced forward calls besides layers is in `acertlab.functions`.
Everything is differentiable.

Source: Gowal et al. 2019; Appendix A.1 of the ACERT paper, Eq. (14)-(19).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from acertlab.bounds.box import Box
from acertlab.bounds.rules.dispatch import rule


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
        return unimodal(layer.forward, valley, box)
    kind = next(kind for kind in VALLEYS if isinstance(layer, kind))
    return unimodal(kind(), VALLEYS[kind], box)  # a new one: not in place


def unimodal(f: Callable[[Tensor], Tensor], valley: float, box: Box) -> Box:
    """Falls to one minimum, then rises: the least value is at the point of the box nearest to that minimum."""
    nearest = torch.maximum(box.lower, torch.minimum(box.upper, torch.full_like(box.lower, valley)))
    return Box(f(nearest), torch.maximum(f(box.lower), f(box.upper)))


@rule.register(nn.PReLU)
def piecewise_linear(f: Callable[[Tensor], Tensor], box: Box) -> Box:
    """Two lines that meet at 0, rising or, with a negative slope, a valley: extremes are at the ends or at 0."""
    lower, upper = f(box.lower), f(box.upper)
    crosses = (box.lower < 0) & (box.upper > 0)
    low = torch.minimum(lower, upper)
    return Box(torch.where(crosses, low.clamp(max=0.0), low), torch.maximum(lower, upper))


def at_both_ends(f: Callable[..., Any]) -> Callable[..., Any]:
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
    return at_both_ends(F.interpolate)(box, size, scale_factor, mode, *args, **kwargs)


@rule.register(nn.Dropout)
@rule.register(nn.Dropout1d)
@rule.register(nn.Dropout2d)
@rule.register(nn.Dropout3d)
@rule.register(nn.AlphaDropout)
@rule.register(nn.FeatureAlphaDropout)
def _dropout(layer: _DropoutNd, box: Box) -> Box:
    return refuse_active_dropout(box, layer.p, layer.training)


def refuse_active_dropout(box: Box, p: float = 0.5, training: bool = True, inplace: bool = False) -> Box:
    if training and p > 0:
        raise ValueError(f"model: Dropout with p={p} is active, so outputs are random; call model.eval() first")
    return box


@rule.register(StochasticDepth)
def _stochastic_depth(layer: StochasticDepth, box: Box) -> Box:
    return refuse_active_dropout(box, layer.p, layer.training)


@rule.register(nn.Softmax)
@rule.register(nn.LogSoftmax)
@rule.register(nn.Softmax2d)
def refuse_softmax(*args: Any, **kwargs: Any) -> Box:
    raise TypeError(
        "model: a softmax has no interval rule. If it is the last layer, drop it (put nn.Identity() there): margins "
        "are differences of logits, and the softmax of logits has the same order"
    )
