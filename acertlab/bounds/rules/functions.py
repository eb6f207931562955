"""What a traced forward calls besides layers: one interval rule for every function and method, in two tables.

Each rule is differentiable, as those of `acertlab.rules`.
"""

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from acertlab.bounds.box import Box
from acertlab.bounds.rules.affine import BATCH_STATISTICS, TRANSPOSED, convolve, normalisation, scaled
from acertlab.bounds.rules.batch_invariance import batch_invariant_matmul
from acertlab.bounds.rules.dispatch import rule
from acertlab.bounds.rules.layers import (
    at_both_ends,
    interpolate,
    piecewise_linear,
    refuse_active_dropout,
    refuse_softmax,
    relu,
    unimodal,
)


def _as_layer(kind: type[nn.Module]) -> Callable[..., Box]:
    """The rule of an activation called as a function: its arguments are those of the layer's constructor."""
    return lambda box, *args, **kwargs: rule(kind(*args, **kwargs), box)


def _ends(value: Any) -> tuple[Any, Any]:
    return (value.lower, value.upper) if isinstance(value, Box) else (value, value)


def _add(a: Any, b: Any, *, alpha: float = 1) -> Box:
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b if alpha == 1 else _mul(b, alpha))
    return Box(a_low + b_low, a_high + b_high)


def _sub(a: Any, b: Any, *, alpha: float = 1) -> Box:
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b if alpha == 1 else _mul(b, alpha))
    return Box(a_low - b_high, a_high - b_low)


def _mul(a: Any, b: Any) -> Any:
    """A constant turns the ends or keeps them; of two boxes, the extremes are among the products of their ends."""
    if a is b:
        return _power(a, 2)
    if isinstance(b, Box):
        if isinstance(a, Box):
            first, second = _mul(a, b.lower), _mul(a, b.upper)
            return Box(torch.minimum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
        a, b = b, a
    if not isinstance(a, Box):
        return a * b
    low, high = a.lower * b, a.upper * b
    return Box(torch.minimum(low, high), torch.maximum(low, high))


def _div(a: Any, b: Any) -> Box:
    if isinstance(b, Box):
        raise TypeError("model: division by an activation has no interval rule; only division by constants")
    low, high = a.lower / b, a.upper / b
    return Box(torch.minimum(low, high), torch.maximum(low, high))


def _power(a: Any, exponent: Any) -> Any:
    if not isinstance(a, Box):
        return a**exponent
    if exponent not in range(1, 65):
        raise TypeError(f"model: a power {exponent!r} has no interval rule; only whole numbers from 1 to 64")
    f = partial(torch.pow, exponent=exponent)
    return at_both_ends(f)(a) if exponent % 2 else unimodal(f, 0.0, a)


def _matmul(a: Any, b: Any) -> Box:
    """Centre and radius form, as Eq. (16)-(17), with the constant matrix on either side."""
    if isinstance(a, Box) and isinstance(b, Box):
        raise TypeError("model: a matrix product of two activations has no interval rule; only with constants")
    box, matrix = (a, b) if isinstance(a, Box) else (b, a)
    product = batch_invariant_matmul if box is a else (lambda x, w: batch_invariant_matmul(w, x))
    center, radius = product(box.center, matrix), product(box.radius, matrix.abs())
    return Box(center - radius, center + radius)


class _Values(NamedTuple):
    """What is known of torch.max(x, dim): its values, not where they are."""

    values: Box


def _max_or_min(along: Callable[..., Tensor], pairwise: Callable[..., Tensor]) -> Callable[..., Any]:
    """torch.max and torch.min: of two tensors, of a whole tensor, or along a dimension."""

    def bounds(x: Any, other: Any = None, keepdim: bool = False, *, dim: int | None = None) -> Any:
        if isinstance(other, (Box, Tensor)):
            return at_both_ends(pairwise)(x, other)
        dim = other if dim is None else dim
        return at_both_ends(along)(x) if dim is None else _Values(at_both_ends(along)(x, dim, keepdim))

    return bounds


def _attribute(value: Any, name: str) -> Any:
    """x.shape, x.dtype, ...; x.T and x.mT hold values, so both ends are asked."""
    low, high = (getattr(end, name) for end in _ends(value))
    return Box(low, high) if isinstance(value, Box) and isinstance(low, Tensor) else low


def _of_shape(f: Callable[..., Tensor], box: Box, *args: Any, **kwargs: Any) -> Tensor:
    return f(box.lower, *args, **kwargs)


def _functional_relu(box: Box, inplace: bool = False) -> Box:
    return relu(None, box)


def _functional_batch_norm(
    box: Box,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Box:
    if training or mean is None or var is None:
        raise ValueError(BATCH_STATISTICS)
    return scaled(normalisation(mean, var, weight, bias, eps), box)


RELU_FUNCTIONS = (F.relu, torch.relu, torch.relu_)
RELU_METHODS = ("relu", "relu_")
FUNCTIONS: dict[Callable, Callable[..., Any]] = {
    **dict.fromkeys(RELU_FUNCTIONS, _functional_relu),
    **{
        f: _as_layer(kind)
        for f, kind in {
            **{F.leaky_relu: nn.LeakyReLU, F.elu: nn.ELU, F.celu: nn.CELU, F.selu: nn.SELU, F.softplus: nn.Softplus},
            **{F.gelu: nn.GELU, F.silu: nn.SiLU, F.mish: nn.Mish, F.hardswish: nn.Hardswish, F.relu6: nn.ReLU6},
            **{F.hardtanh: nn.Hardtanh, F.hardsigmoid: nn.Hardsigmoid, F.logsigmoid: nn.LogSigmoid},
            **{F.softsign: nn.Softsign, F.tanhshrink: nn.Tanhshrink},
            **{F.avg_pool2d: nn.AvgPool2d, F.avg_pool3d: nn.AvgPool3d},
        }.items()
    },
    **dict.fromkeys((F.prelu, torch.prelu), lambda box, weight: piecewise_linear(lambda x: F.prelu(x, weight), box)),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout), refuse_active_dropout),
    stochastic_depth: lambda box, p, mode, training=True: refuse_active_dropout(box, p, training),
    **dict.fromkeys((F.softmax, F.log_softmax, torch.softmax, torch.log_softmax), refuse_softmax),
    **{f: partial(convolve, f) for f in (F.linear, F.conv1d, F.conv2d, F.conv3d, *TRANSPOSED.values())},
    F.batch_norm: _functional_batch_norm,
    F.interpolate: interpolate,
    getattr: _attribute,
    **{f: partial(_of_shape, f) for f in (torch.zeros_like, torch.ones_like, torch.full_like)},
    **dict.fromkeys((operator.add, operator.iadd, torch.add), _add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), _sub),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, torch.multiply), _mul),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, torch.divide), _div),
    **dict.fromkeys((operator.neg, torch.neg), lambda box: Box(-box.upper, -box.lower)),
    **dict.fromkeys((operator.pow, torch.pow), _power),
    torch.square: lambda box: _power(box, 2),
    **dict.fromkeys((operator.abs, torch.abs), lambda box: unimodal(torch.abs, 0.0, box)),
    **dict.fromkeys((operator.matmul, torch.matmul, torch.mm), _matmul),
    torch.max: _max_or_min(torch.amax, torch.maximum),
    torch.min: _max_or_min(torch.amin, torch.minimum),
    **{
        f: at_both_ends(f)
        for f in (
            *(torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, torch.clamp, torch.clip, torch.where),
            *(torch.maximum, torch.minimum, torch.amax, torch.amin, torch.mean, torch.sum),
            *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d),
            *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
            *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
            *(torch.cat, torch.concat, torch.stack, torch.chunk, torch.split, torch.unbind, operator.getitem),
            *(torch.flatten, torch.unflatten, torch.reshape, torch.squeeze, torch.unsqueeze, torch.permute),
            *(torch.transpose, torch.swapaxes, torch.movedim, torch.flip, torch.roll, torch.narrow),
            *(torch.index_select, F.pad, F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle),
        )
    },
}


def _method(name: str) -> Callable[..., Any]:
    return at_both_ends(lambda x, *args, **kwargs: getattr(x, name)(*args, **kwargs))


TENSOR_METHODS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(RELU_METHODS, _functional_relu),
    **dict.fromkeys(("add", "add_"), _add),
    **dict.fromkeys(("sub", "sub_"), _sub),
    **dict.fromkeys(("mul", "mul_"), _mul),
    **dict.fromkeys(("div", "div_"), _div),
    **dict.fromkeys(("softmax", "log_softmax"), refuse_softmax),
    **{name: FUNCTIONS[getattr(torch, name)] for name in ("neg", "pow", "square", "abs", "matmul", "max", "min")},
    **{f"{name}_": _method(name) for name in ("tanh", "sigmoid", "clamp", "clip")},  # not in place
    **{name: partial(_of_shape, getattr(Tensor, name)) for name in ("size", "dim", "numel")},
    **{
        name: _method(name)
        for name in (
            *("tanh", "sigmoid", "clamp", "clip", "maximum", "minimum", "amax", "amin", "mean", "sum"),
            *("flatten", "unflatten", "view", "view_as", "reshape", "squeeze", "unsqueeze", "permute", "transpose"),
            *("swapaxes", "movedim", "t", "contiguous", "clone", "detach", "expand", "expand_as", "repeat", "flip"),
            *("roll", "narrow", "index_select", "chunk", "split", "unbind", "to", "float", "double", "type_as"),
        )
    },
}
