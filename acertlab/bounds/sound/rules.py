"""Boxes with the rounding error of every operation added, one rule a layer: what `acertlab.sound` is made of.

u is a unit roundoff (2^-53 of float64, 2^-24 of float32) and gamma_k = k u / (1 - k u). In whatever order they are
summed, each of n products and a bias is rounded at most n + 1 times on its way into the sum, so that computed and exact
sums differ by at most gamma_{n+1} (|W||x| + |b|) (Higham, Sec. 3.1 and 3.5). BatchNorm, folded or apart, multiplies
each term by at most 10 more factors (1 + d), |d| <= u: var + eps, square root and reciprocal, or a reciprocal square
root to 2 ulp; the products with weight and W; the sums with mean and bias. With alpha the BatchNorm's scale,
W' = alpha W and B = |alpha| (|b| + |mean|) + |bias of the BatchNorm|, the error stays below gamma_{n+18} (|W'||x| + B):
the 18 also hold the roundings of W', of centre and radius, and of the ends of the boxes. For every x in the box
|x - c| <= r and |x| <= m = |c| + r but for a few of these roundings, and thus

    c' = W' c + b',    r' = |W'| (r + g m) + g B,    g = gamma_{n+18}

hold all results, at no third convolution. |W'| and g B are scaled up by 1 + 2 gamma_{n+18}, for the roundings of r'
itself. Where the box must hold what float32 *computes*, g is the sum of float32's gamma, for the evaluation that is
spoken of, and float64's, for this pass.

Elsewhere (averages, sums, products, leaky ReLU) the ends move outwards by gamma_{k+18} times the size of what is
rounded k times. ReLU, max pooling and changes of shape do not round.

Underflow, with results and operands flushed to zero at worst, errs by less than the smallest normal number a term,
times weights, inputs and BatchNorm's factors: that goes into |W'| and g B, with 2^10 to spare. Where an intermediate
result could overflow, or anything is not finite, bounds become NaN, which certifies nothing.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import StochasticDepth

from acertlab.bounds.box import Box
from acertlab.bounds.rules.affine import BATCH_STATISTICS, Affine, Convolution, Normalize
from acertlab.bounds.rules.dispatch import has_rule, rule
from acertlab.bounds.rules.functions import FUNCTIONS, TENSOR_METHODS

SPARE = 18  # roundings beyond those of the sum itself, see above
COLUMNS = 2**17  # numbers in the table that a convolution is unrolled into: as many as stay in the cache


@dataclass(frozen=True)
class Rounding:
    """What is known of the arithmetic that the bounds must cover.

    Attributes:
        units: unit roundoffs whose errors add up: float64's, of this pass, and that of the evaluation it speaks for.
        smallest: least normal number.
        limit: a quarter of the largest number.
    """

    units: tuple[float, ...]
    smallest: float
    limit: float

    def gamma(self, roundings: int) -> float:
        """Relative error after so many roundings, and `SPARE` more."""
        return sum(_gamma(roundings + SPARE, unit) for unit in self.units)

    @property
    def flushed(self) -> float:
        """Error of one term by underflow, relative to what it is multiplied by."""
        return 2.0**10 * self.smallest

    def normal(self, x: Tensor) -> Tensor:
        """``x`` where it is positive and neither near underflow nor near overflow, else NaN."""
        return torch.where((x >= 4 * self.smallest) & (x < self.limit), x, torch.nan)

    def outward(self, box: Box, size: Tensor, roundings: int, operands: Tensor | float = 0.0) -> Box:
        """The box with its ends moved outwards by the error of a few roundings.

        Args:
            box: bounds in exact arithmetic, computed in float64 by as many roundings.
            size: what the roundings are relative to: the result's magnitude, or, of a sum, that of its terms.
            roundings: of each term.
            operands: sum of the factors' magnitudes, in products.
        """
        reach = size * roundings + operands
        slack = self.gamma(roundings) * size + self.flushed * (roundings + operands)
        slack = torch.where(reach < self.limit, slack, torch.inf)  # inf - inf is NaN
        return Box(box.lower - slack, box.upper + slack)


def _gamma(k: int, unit: float) -> float:
    return k * unit / (1 - k * unit) if k * unit < 0.5 else math.inf


DOUBLE, SINGLE = 2.0**-53, 2.0**-24
ROUNDINGS: dict[bool | str, Rounding] = {
    True: Rounding((DOUBLE,), 2.0**-1022, 2.0**1022),
    "float32": Rounding((SINGLE, DOUBLE), 2.0**-126, 2.0**126),
}


def _magnitude(value: Any) -> Tensor:
    """The largest magnitude in every interval of a box; the magnitude of a constant."""
    return torch.maximum(-value.lower, value.upper) if isinstance(value, Box) else torch.as_tensor(value).double().abs()


# ---- affine layers ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Norm:
    """x -> (x - mean) * inverse * weight + bias per channel, (C,) float64 each."""

    mean: Tensor
    inverse: Tensor  # 1 / the standard deviation, rounded at most three times
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, mean: Tensor, inverse: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> "Norm":
        weight = torch.ones_like(mean) if weight is None else weight
        return cls(mean, inverse, weight, torch.zeros_like(mean) if bias is None else bias)

    @classmethod
    def of_batch_norm(cls, rounding: Rounding, layer: _BatchNorm) -> "Norm":
        if layer.training or layer.running_mean is None or layer.running_var is None:
            raise ValueError(BATCH_STATISTICS)
        var = torch.where(layer.running_var >= 0, layer.running_var, torch.nan)
        inverse = 1 / rounding.normal(var + layer.eps).sqrt()  # rsqrt has no stated accuracy
        return cls.of(layer.running_mean, inverse, layer.weight, layer.bias)


@dataclass(frozen=True)
class RoundedAffine(Affine):
    """W' and b' in float64, with the magnitudes by which rounding errors are bounded; see the module."""

    magnitude: Tensor  # |W'|, scaled up
    slack: Tensor  # g B, and what underflow may add
    gain: float  # g
    scale: float  # 1 + 2 gamma_{n+18} of float64: covers the roundings of a radius
    reach: float  # times 1 + the largest input: no intermediate result is larger

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        operation: Callable[..., Tensor],
        rounding: Rounding,
        norm: Norm | None = None,
    ) -> "RoundedAffine":
        weight, n = weight.double(), weight[0].numel()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.double()
        norm = norm or Norm.of(torch.zeros_like(bias), torch.ones_like(bias))
        shape = (-1, *[1] * (weight.dim() - 1))
        alpha = norm.inverse * norm.weight
        shift = (bias - norm.mean) * alpha + norm.bias
        sizes = bias.abs() + norm.mean.abs()
        gain, scale = rounding.gamma(n), 1 + 2 * _gamma(n + SPARE, DOUBLE)
        # what an underflow is multiplied by: any of the factors, in any order
        factor = (1 + norm.inverse.abs()) * (1 + norm.weight.abs())
        spread = factor.view(shape) * (1 + weight.abs())
        total = spread.reshape(len(weight), -1).sum(1) + factor * (1 + sizes) + norm.bias.abs()
        scaled = weight * alpha.view(shape)
        magnitude = scaled.abs() * scale + rounding.flushed / gain * spread
        slack = (gain * (alpha.abs() * sizes + norm.bias.abs()) + rounding.flushed * total) * scale
        return cls(scaled, shift, operation, magnitude, slack, gain, scale, float(total.max()) / rounding.limit)

    @classmethod
    def of_layer(cls, rounding: Rounding, layer: nn.Linear | Convolution, norm: Norm | None = None) -> "RoundedAffine":
        operation = F.linear if isinstance(layer, nn.Linear) else _few_at_a_time(layer)
        return cls.of(layer.weight, layer.bias, operation, rounding, norm)

    def split(self, box: Box) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, radius and |c| + r; the radius of a sample that might overflow is NaN."""
        center, radius = box.center, box.radius
        size = center.abs().add_(radius)
        peak = size.amax(tuple(range(1, size.dim())))
        unsafe = ~((1 + peak) * self.reach < 1)  # NaN too
        if unsafe.any():
            radius[unsafe] = torch.nan
        return center, radius, size


def _few_at_a_time(layer: Convolution) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """A convolution, a few samples at a time on the CPU: 3 x faster.

    There torch unrolls the input of a float64 convolution into one table for the whole batch, far larger than a cache.
    """

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type != "cpu" or x.dim() != weight.dim() or not len(x):
            return layer._conv_forward(x, weight, bias)
        unrolled = x[0].numel() * weight[0, 0].numel() // math.prod(layer.stride)
        parts = x.split(max(1, COLUMNS // max(1, unrolled)))
        return torch.cat([layer._conv_forward(part, weight, bias) for part in parts])

    return convolve


def _per_channel(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    return x * weight.view(shape) + bias.view(shape)


# ---- rules, one a layer -------------------------------------------------------------------------------------------
@singledispatch
def sound_rule(layer: nn.Module, box: Box, rounding: Rounding) -> Box:
    """The box that holds ``layer(x)`` for every x in ``box``, rounding errors included; dispatched on the layer's type.

    Give your own layer a rule, beside that of `acertlab.rule`, with::

        @acertlab.sound.sound_rule.register(MyLayer)
        def my_sound_rule(layer, box, rounding):
            ...
            return rounding.outward(acertlab.Box(lower, upper), size, roundings)

    ``layer`` is a float64 copy, ``box`` float64. The result must hold the layer's exact values or, where ``rounding``
    is `ROUNDINGS["float32"]`, whatever float32 computes of computed inputs.
    """
    raise TypeError(f"no rounding bound is proved for a layer of type {type(layer).__name__}")


@sound_rule.register(RoundedAffine)
def _affine(layer: RoundedAffine, box: Box, rounding: Rounding) -> Box:
    center, radius, size = layer.split(box)
    center = layer.operation(center, layer.weight, layer.bias)
    radius = layer.operation(radius.add_(size, alpha=layer.gain), layer.magnitude, layer.slack)
    return Box(center - radius, center.add_(radius))


def has_sound_rule(layer: nn.Module) -> bool:
    """As `acertlab.rules.has_rule`."""
    known = next((kind for kind in type(layer).__mro__ if kind in sound_rule.registry), object)
    return known is not object and type(layer).forward is getattr(known, "forward", None) and has_rule(layer)


@sound_rule.register(nn.Linear)
@sound_rule.register(nn.Conv1d)
@sound_rule.register(nn.Conv2d)
@sound_rule.register(nn.Conv3d)
def _linear_or_convolution(layer: nn.Linear | Convolution, box: Box, rounding: Rounding) -> Box:
    return _affine(RoundedAffine.of_layer(rounding, layer), box, rounding)


@sound_rule.register(Norm)
def _norm(norm: Norm, box: Box, rounding: Rounding) -> Box:
    return _affine(RoundedAffine.of(torch.ones_like(norm.mean), None, _per_channel, rounding, norm), box, rounding)


@sound_rule.register(nn.BatchNorm1d)
@sound_rule.register(nn.BatchNorm2d)
@sound_rule.register(nn.BatchNorm3d)
@sound_rule.register(nn.SyncBatchNorm)
def _batch_norm(layer: _BatchNorm, box: Box, rounding: Rounding) -> Box:
    return _norm(Norm.of_batch_norm(rounding, layer), box, rounding)


@sound_rule.register(Normalize)
def _normalize(layer: Normalize, box: Box, rounding: Rounding) -> Box:
    return _norm(Norm.of(layer.mean, 1 / rounding.normal(layer.std)), box, rounding)


def _exact(layer: nn.Module, box: Box, rounding: Rounding) -> Box:
    return rule(layer, box)


EXACT = (
    *(nn.ReLU, nn.ReLU6, nn.Identity, nn.Flatten, nn.Unflatten, StochasticDepth),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
for _kind in EXACT:
    sound_rule.register(_kind)(_exact)


def _with_slope(rounding: Rounding, f: Callable[..., Box], box: Box, *args: Any, **kwargs: Any) -> Box:
    out = f(box, *args, **kwargs)
    return rounding.outward(out, _magnitude(out), 2, _magnitude(box))


@sound_rule.register(nn.LeakyReLU)
@sound_rule.register(nn.PReLU)
def _leaky_relu(layer: nn.LeakyReLU | nn.PReLU, box: Box, rounding: Rounding) -> Box:
    return _with_slope(rounding, partial(rule, layer), box)


def _with_constants(rounding: Rounding, f: Callable[..., Box], box: Box, *args: Any, **kwargs: Any) -> Box:
    """The rule of what rounds its constants only: clamps, padding with a value."""
    out = f(box, *args, **kwargs)
    return rounding.outward(out, _magnitude(out), 1)


@sound_rule.register(nn.Hardtanh)
def _hardtanh(layer: nn.Hardtanh, box: Box, rounding: Rounding) -> Box:
    return _with_constants(rounding, partial(rule, layer), box)


def _average(rounding: Rounding, f: Callable, box: Box, *args: Any, terms: int | None = None, **kwargs: Any) -> Box:
    """The rule of sums and averages; without a number of terms, all inputs that fall to an output count."""
    if kwargs.get("dtype") is not None:
        raise TypeError("model: sound: no rounding bound is proved for a sum in another dtype; leave dtype away")
    lower, upper, size = (f(x, *args, **kwargs) for x in (box.lower, box.upper, _magnitude(box)))
    terms = box.lower.numel() // max(1, lower.numel()) if terms is None else terms
    return rounding.outward(Box(lower, upper), size, terms + 2)


def _average_pool(d: int, layer: nn.AvgPool1d | nn.AvgPool2d | nn.AvgPool3d, box: Box, rounding: Rounding) -> Box:
    divisor = getattr(layer, "divisor_override", None) or 1
    if divisor < 0:
        raise ValueError(f"model: {type(layer).__name__} with divisor_override = {divisor} < 0 is not monotone")
    side = layer.kernel_size
    window = side**d if isinstance(side, int) else math.prod(side)
    return _average(rounding, layer.forward, box, terms=max(window, divisor))


def _adaptive_average_pool(d: int, layer: nn.Module, box: Box, rounding: Rounding) -> Box:
    return _average(rounding, layer.forward, box, terms=math.prod(box.lower.shape[-d:]))  # at most all of a channel


POOLS = {  # by the name of the function
    **{f"avg_pool{d}d": getattr(nn, f"AvgPool{d}d") for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": getattr(nn, f"AdaptiveAvgPool{d}d") for d in (1, 2, 3)},
}
for _function, _kind in POOLS.items():
    _pool = _adaptive_average_pool if _function.startswith("adaptive") else _average_pool
    sound_rule.register(_kind)(partial(_pool, int(_function[-2])))


# ---- functions and methods met in a traced forward ----------------------------------------------------------------
def _add(rounding: Rounding, f: Callable[..., Box], a: Any, b: Any, *, alpha: float = 1) -> Box:
    b = b if alpha == 1 else _mul(rounding, FUNCTIONS[operator.mul], b, alpha)
    return rounding.outward(f(a, b), _magnitude(a) + _magnitude(b), 2)


def _mul(rounding: Rounding, f: Callable[..., Any], a: Any, b: Any) -> Any:
    out = f(a, b)
    return rounding.outward(out, _magnitude(out), 2, _magnitude(a) + _magnitude(b)) if isinstance(out, Box) else out


def _div(rounding: Rounding, f: Callable[..., Box], a: Any, b: Any) -> Box:
    """Covers the product with a rounded reciprocal, too."""
    out, size = f(a, b), rounding.normal(_magnitude(b))
    return rounding.outward(out, _magnitude(out), 4, _magnitude(a) + size + 1 / size)


def _linear(rounding: Rounding, f: Callable, box: Box, weight: Tensor, bias: Any = None, *args: Any, **kw: Any) -> Box:
    if not isinstance(box, Box) or isinstance(weight, Box) or isinstance(bias, Box):
        return FUNCTIONS[f](box, weight, bias, *args, **kw)  # refuses it
    return _affine(RoundedAffine.of(weight, bias, lambda x, w, b: f(x, w, b, *args, **kw), rounding), box, rounding)


def _called_pool(kind: type[nn.Module], rounding: Rounding, f: Callable, box: Box, *args: Any, **kwargs: Any) -> Box:
    return sound_rule(kind(*args, **kwargs), box, rounding)


UNROUNDED = {
    *("relu", "relu6", "neg", "abs", "max", "min", "maximum", "minimum", "amax", "amin"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "stochastic_depth"),
    *("cat", "concat", "stack", "chunk", "split", "unbind", "getitem", "getattr", "size", "dim", "numel", "view"),
    *("view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "swapaxes"),
    *("movedim", "t", "flip", "roll", "narrow", "index_select", "expand", "expand_as", "repeat", "contiguous", "clone"),
    *("detach", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
}
BY_RULE = {  # called with the rounding and the rule in functions.FUNCTIONS or TENSOR_METHODS
    **dict.fromkeys(("add", "iadd", "sub", "isub"), _add),
    **dict.fromkeys(("mul", "imul", "multiply"), _mul),
    **dict.fromkeys(("div", "divide", "truediv", "itruediv"), _div),
    **dict.fromkeys(("leaky_relu", "prelu"), _with_slope),
    **dict.fromkeys(("hardtanh", "clamp", "clip", "pad"), _with_constants),
}
BY_FUNCTION = {  # called with the rounding and the function itself
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), _linear),
    **dict.fromkeys(("mean", "sum"), _average),
    **{name: partial(_called_pool, kind) for name, kind in POOLS.items()},
}
PLAIN = (dict(FUNCTIONS), dict(TENSOR_METHODS))  # not what users add to them: nothing is proved of that


def name_of(function: Callable | str) -> str:
    """ "relu" of F.relu, torch.relu_ and "relu_"."""
    return (function if isinstance(function, str) else getattr(function, "__name__", "")).rstrip("_")


def sound_tables(rounding: Rounding) -> list[dict[Any, Callable[..., Any]]]:
    """The functions and the methods of `acertlab.functions` that have a proved rounding bound, with their rules."""
    tables: list[dict[Any, Callable[..., Any]]] = [{}, {}]
    for plain, table in zip(PLAIN, tables, strict=True):
        for key, call in plain.items():
            name = name_of(key)
            if name in UNROUNDED:
                table[key] = call
            elif name in BY_RULE:
                table[key] = partial(BY_RULE[name], rounding, call)
            elif name in BY_FUNCTION:
                table[key] = partial(BY_FUNCTION[name], rounding, getattr(Tensor, key) if isinstance(key, str) else key)
    return tables
