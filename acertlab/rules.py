"""Boxes, and one interval rule for every layer and function a network is made of.

`rule` is dispatched on a layer's type; `FUNCTIONS` and `METHODS` are the tables for what a traced forward calls besides
layers. Everything is differentiable.

Source: Gowal et al. 2019; Appendix A.1 of the ACERT paper, Eq. (14)-(19).
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

Domain = tuple[float, float] | None


@dataclass(frozen=True)
class Box:
    """All points between ``lower`` and ``upper``, elementwise.

    Args:
        lower: any floating shape, usually (B, ...).
        upper: the same shape and dtype.

    Raises:
        TypeError: an end is not a floating tensor, or the dtypes differ.
        ValueError: the shapes differ.
    """

    lower: Tensor
    upper: Tensor

    def __post_init__(self) -> None:
        for name, end in (("lower", self.lower), ("upper", self.upper)):
            if not isinstance(end, Tensor) or not end.is_floating_point():
                what = end.dtype if isinstance(end, Tensor) else type(end).__name__
                raise TypeError(f"{name}: a box's end must be a floating-point tensor, not {what}")
        if self.lower.shape != self.upper.shape:
            raise ValueError(f"upper: shape {tuple(self.upper.shape)} differs from lower's {tuple(self.lower.shape)}")
        if self.lower.dtype != self.upper.dtype:
            raise TypeError(f"upper: dtype {self.upper.dtype} differs from lower's {self.lower.dtype}")

    @property
    def center(self) -> Tensor:
        return (self.lower + self.upper).mul_(0.5)

    @property
    def radius(self) -> Tensor:
        """Half the width of every interval, same shape as ``lower``."""
        return (self.upper - self.lower).mul_(0.5)

    @classmethod
    def around(cls, x: Tensor, eps: float | Tensor, domain: Domain = (0.0, 1.0)) -> "Box":
        """Eq. (1): the l_inf ball around ``x``, cut to the domain.

        Args:
            x: (B, ...) inputs, in pixel units, inside ``domain``.
            eps: radius in pixel units, >= 0; a float, or a (B,) tensor with one radius a sample.
            domain: (low, high) of valid pixels, or None for the uncut ball of Theorem A.2.

        Raises:
            ValueError: NaN in ``x`` or ``eps``, ``x`` outside the domain, ``eps`` negative or of the wrong shape.
        """
        check_input(x, domain)
        return ball(x, check_eps(eps, x), domain)


def check_input(x: Tensor, domain: Domain) -> None:
    """Refuses inputs that cannot be the centre of a box: not floating, NaN, or outside the domain."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: must be a floating-point tensor with values in the domain {domain}, not {what}")
    if not torch.isfinite(x).all():
        raise ValueError(f"x: holds {int((~torch.isfinite(x)).sum())} NaN or infinite values; all must be finite")
    if domain is None:
        return
    if not (isinstance(domain, (tuple, list)) and len(domain) == 2 and domain[0] < domain[1]):
        raise ValueError(f"domain: {domain!r} is not (low, high) with low < high, nor None")
    if x.numel() and (x.min() < domain[0] or x.max() > domain[1]):
        raise ValueError(
            f"x: values from {x.min():.4g} to {x.max():.4g} lie outside the domain {tuple(domain)}; give pixels in "
            "that range (normalisation belongs into the model, see acertlab.models.Normalize), or another domain"
        )


def check_eps(eps: float | Tensor, x: Tensor) -> float | Tensor:
    """Refuses radii that are negative, NaN, or neither a number nor (B,); returns them in the dtype of ``x``."""
    values = torch.as_tensor(eps, dtype=x.dtype, device=x.device)
    if values.dim() > 1 or (values.dim() == 1 and values.shape[0] != x.shape[0]):
        raise ValueError(f"eps: shape {tuple(values.shape)} is neither a number nor ({x.shape[0]},), one a sample")
    if not (torch.isfinite(values) & (values >= 0)).all():
        raise ValueError("eps: must be finite and >= 0 (pixel units)" + (f", not {eps}" if values.dim() == 0 else ""))
    return values if isinstance(eps, Tensor) else eps


def ball(x: Tensor, eps: float | Tensor, domain: Domain = (0.0, 1.0)) -> Box:
    """`Box.around` without its checks, for hot paths."""
    if isinstance(eps, Tensor) and eps.dim() == 1:
        eps = eps.view(-1, *[1] * (x.dim() - 1))
    lower, upper = x - eps, x + eps
    return Box(lower, upper) if domain is None else Box(lower.clamp(min=domain[0]), upper.clamp(max=domain[1]))


# ---- rules, one a layer -------------------------------------------------------------------------------------------


@singledispatch
def rule(layer: nn.Module, box: Box) -> Box:
    """The box that holds ``layer(x)`` for every x in ``box``; dispatched on the type of ``layer``.

    Give your own layer a rule with::

        @acertlab.rule.register(MyLayer)
        def my_rule(layer, box):
            return acertlab.Box(lower, upper)
    """
    raise TypeError(f"no interval rule for a layer of type {type(layer).__name__}")


def has_rule(layer: nn.Module) -> bool:
    return rule.dispatch(type(layer)) is not rule.dispatch(object)


@dataclass(frozen=True)
class Affine:
    """A linear or convolutional layer prepared for bounds: W, |W| and the bias, BatchNorm folded in."""

    weight: Tensor
    magnitude: Tensor  # |W|
    bias: Tensor | None
    operation: Callable[[Tensor, Tensor, Tensor | None], Tensor]  # F.linear, or a convolution with its stride, ...

    @classmethod
    def of(cls, layer: nn.Module, norm: "Scale | None" = None) -> "Affine":
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            weight = weight * norm.scale.view(-1, *[1] * (weight.dim() - 1))
            bias = norm.shift if bias is None else norm.shift + bias * norm.scale
        return cls(weight, weight.abs(), bias, F.linear if isinstance(layer, nn.Linear) else layer._conv_forward)


@dataclass(frozen=True)
class Scale:
    """A per-channel affine map x -> scale x + shift: Normalize, or a BatchNorm that follows no affine layer."""

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)


@rule.register(Affine)
def _affine(layer: Affine, box: Box) -> Box:
    """Eq. (16)-(17) in centre and radius form: c' = W c + b, r' = |W| r."""
    center = layer.operation(box.center, layer.weight, layer.bias)
    radius = layer.operation(box.radius, layer.magnitude, None)
    return Box(center - radius, center.add_(radius))


@rule.register(nn.Linear)
@rule.register(nn.Conv1d)
@rule.register(nn.Conv2d)
def _linear_or_convolution(layer: nn.Module, box: Box) -> Box:
    return _affine(Affine.of(layer), box)


@rule.register(Scale)
def _scale(layer: Scale, box: Box) -> Box:
    shape = (1, -1, *[1] * (box.lower.dim() - 2))
    scale, shift = layer.scale.view(shape), layer.shift.view(shape)
    center, radius = box.center * scale + shift, box.radius * scale.abs()
    return Box(center - radius, center + radius)


@rule.register(_BatchNorm)
def _batch_norm(layer: _BatchNorm, box: Box) -> Box:
    return _scale(batch_norm_scale(layer), box)


def batch_norm_scale(layer: _BatchNorm, statistics: tuple[Tensor, Tensor] | None = None) -> Scale:
    """BatchNorm as an affine map, from ``statistics`` (mean, variance) or, without them, its running statistics."""
    if statistics is None and (layer.training or layer.running_mean is None):
        raise ValueError(
            "model: a BatchNorm would normalise with the statistics of a batch, so no sample has a bound of its own; "
            "call model.eval() (and keep track_running_stats=True), or, in training, pass the statistics of clean_pass"
        )
    mean, var = (layer.running_mean, layer.running_var) if statistics is None else statistics
    scale = torch.rsqrt(var + layer.eps)
    if layer.weight is not None:
        scale = scale * layer.weight
    return Scale(scale, -mean * scale if layer.bias is None else layer.bias - mean * scale)


@rule.register(nn.ReLU)
def _relu(layer: nn.ReLU, box: Box) -> Box:
    return Box(box.lower.relu(), box.upper.relu())  # never in place: others may hold the box


def _monotone(layer: nn.Module, box: Box) -> Box:
    """Eq. (18)-(19): a non-decreasing map acts on each end (elementwise, or pooling, or a change of shape)."""
    if getattr(layer, "inplace", False):
        box = Box(box.lower.clone(), box.upper.clone())
    return Box(layer.forward(box.lower), layer.forward(box.upper))


for _kind in (
    *(nn.ReLU6, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.Hardsigmoid, nn.Softplus, nn.SELU),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.ZeroPad2d),
):
    rule.register(_kind)(_monotone)


@rule.register(nn.LeakyReLU)
@rule.register(nn.ELU)
def _monotone_if_positive(layer: nn.LeakyReLU | nn.ELU, box: Box) -> Box:
    parameter = "negative_slope" if isinstance(layer, nn.LeakyReLU) else "alpha"
    if getattr(layer, parameter) < 0:
        raise ValueError(f"model: {type(layer).__name__} with {parameter} < 0 is not monotone; no rule bounds it")
    return _monotone(layer, box)


@rule.register(nn.GELU)
@rule.register(nn.SiLU)
def _one_valley(layer: nn.GELU | nn.SiLU, box: Box) -> Box:
    """Falls to one minimum, then rises: the least value is at the point of the box nearest to that minimum."""
    if isinstance(layer, nn.SiLU):
        valley, f = -1.2784645427610738, F.silu
    else:
        valley = -0.7517915246935645 if layer.approximate == "none" else -0.7524614220710163
        f = layer.forward
    nearest = torch.maximum(box.lower, torch.minimum(box.upper, torch.full_like(box.lower, valley)))
    return Box(f(nearest), torch.maximum(f(box.lower), f(box.upper)))


@rule.register(_DropoutNd)
def _dropout(layer: _DropoutNd, box: Box) -> Box:
    return _no_dropout(box, layer.p, layer.training)


def _no_dropout(box: Box, p: float = 0.5, training: bool = True, inplace: bool = False) -> Box:
    if training and p > 0:
        raise ValueError(f"model: Dropout with p={p} is active, so outputs are random; call model.eval() first")
    return box


# ---- functions and methods met in a traced forward ----------------------------------------------------------------


def _each_end(f: Callable[..., Tensor]) -> Callable[..., Box]:
    """The rule of a non-decreasing function of its first argument."""
    return lambda box, *args, **kwargs: Box(f(box.lower, *args, **kwargs), f(box.upper, *args, **kwargs))


def _ends(value: Any) -> tuple[Any, Any]:
    return (value.lower, value.upper) if isinstance(value, Box) else (value, value)


def _add(a: Any, b: Any) -> Box:
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b)
    return Box(a_low + b_low, a_high + b_high)


def _sub(a: Any, b: Any) -> Box:
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b)
    return Box(a_low - b_high, a_high - b_low)


def _mul(a: Any, b: Any) -> Box:
    if isinstance(a, Box) and isinstance(b, Box):
        raise TypeError("model: a product of two activations has no interval rule here; only products with constants")
    box, factor = (a, b) if isinstance(a, Box) else (b, a)
    low, high = box.lower * factor, box.upper * factor
    return Box(torch.minimum(low, high), torch.maximum(low, high))


def _div(a: Any, b: Any) -> Box:
    if isinstance(b, Box):
        raise TypeError("model: division by an activation has no interval rule; only division by constants")
    return _mul(a, 1 / b)


def _cat(parts: list[Box | Tensor], dim: int = 0) -> Box:
    lowers, uppers = zip(*map(_ends, parts), strict=True)
    return Box(torch.cat(lowers, dim), torch.cat(uppers, dim))


def _functional_relu(box: Box, inplace: bool = False) -> Box:
    return _relu(None, box)


def _functional_leaky_relu(box: Box, negative_slope: float = 0.01, inplace: bool = False) -> Box:
    return _monotone_if_positive(nn.LeakyReLU(negative_slope), box)


def _functional_linear(box: Box, weight: Tensor, bias: Tensor | None = None) -> Box:
    return _affine(Affine(weight, weight.abs(), bias, F.linear), box)


RELU_FUNCTIONS = (F.relu, torch.relu, torch.relu_)
RELU_METHODS = ("relu", "relu_")
FUNCTIONS: dict[Callable, Callable[..., Any]] = {
    **dict.fromkeys(RELU_FUNCTIONS, _functional_relu),
    F.leaky_relu: _functional_leaky_relu,
    F.gelu: lambda box, approximate="none": _one_valley(nn.GELU(approximate), box),
    F.silu: lambda box, inplace=False: _one_valley(nn.SiLU(), box),
    F.dropout: _no_dropout,
    F.linear: _functional_linear,
    torch.cat: _cat,
    getattr: lambda box, name: getattr(box.lower, name),  # x.shape
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _sub),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), _mul),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div), _div),
    **dict.fromkeys((operator.neg, torch.neg), lambda box: Box(-box.upper, -box.lower)),
    **{
        f: _each_end(f)
        for f in (
            *(torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, F.softplus),
            *(F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d),
            *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
            *(torch.flatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute, torch.transpose),
            *(torch.mean, torch.sum, operator.getitem),
        )
    },
}


def _method(name: str) -> Callable[..., Box]:
    return _each_end(lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs))


METHODS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(RELU_METHODS, _functional_relu),
    **dict.fromkeys(("add", "add_"), _add),
    **dict.fromkeys(("sub", "sub_"), _sub),
    **dict.fromkeys(("mul", "mul_"), _mul),
    **dict.fromkeys(("div", "div_"), _div),
    "size": lambda box, *args: box.lower.size(*args),
    "dim": lambda box: box.lower.dim(),
    **{
        name: _method(name)
        for name in (
            *("tanh", "sigmoid", "flatten", "view", "reshape", "squeeze", "unsqueeze", "permute", "transpose"),
            *("contiguous", "mean", "sum"),
        )
    },
}
