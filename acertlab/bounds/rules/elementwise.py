"""Functions of one number, applied to each: where they rise, fall and turn.

Each rule is called with the operator and its arguments, boxes where they depend on the input; all are differentiable.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from acertlab.bounds.box import Box
from acertlab.bounds.rules.operators import aten, packet

ROUNDINGS = 16  # that an input of a function with jumps may be off by


def at_both_ends(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """An operator that is non-decreasing in every box among its arguments; several results stay several."""
    lows, highs = (
        map_aggregate((args, kwargs), lambda a, end=end: getattr(a, end) if isinstance(a, Box) else a)
        for end in ("lower", "upper")
    )
    return _boxes(op(*lows[0], **lows[1]), op(*highs[0], **highs[1]))


def _boxes(low: Any, high: Any) -> Any:
    if isinstance(low, (tuple, list)):
        return tuple(map(_boxes, low, high))
    return Box(low, high) if low.is_floating_point() else None  # where a maximum is: not known


def _jump(op: Callable[..., Tensor], box: Box, *args: Any, **kwargs: Any) -> Box:
    """Rises by jumps, which make a rounding of its input as large as they are: the ends are some roundings wider."""
    slack = ROUNDINGS * torch.finfo(box.lower.dtype).eps * torch.maximum(box.lower.abs(), box.upper.abs())
    return Box(op(box.lower - slack, *args, **kwargs), op(box.upper + slack, *args, **kwargs))


def falling(op: Callable[..., Tensor], box: Box, *args: Any, **kwargs: Any) -> Box:
    return Box(op(box.upper, *args, **kwargs), op(box.lower, *args, **kwargs))


def unimodal(f: Callable[[Tensor], Tensor], valley: float, box: Box) -> Box:
    """Falls to one minimum, then rises: the least value is at the point of the box nearest to that minimum."""
    nearest = torch.maximum(box.lower, torch.minimum(box.upper, torch.full_like(box.lower, valley)))
    return Box(f(nearest), torch.maximum(f(box.lower), f(box.upper)))


def _with_valley(valley: float) -> Callable[..., Box]:
    return lambda op, box, *args, **kwargs: unimodal(lambda x: op(x, *args, **kwargs), valley, box)


def _gelu(op: Any, box: Box, *, approximate: str = "none") -> Box:
    valley = -0.7517915246935645 if approximate == "none" else -0.7524614220710163
    return unimodal(partial(op, approximate=approximate), valley, box)


def _slope(name: str, default: float) -> Callable[..., Box]:
    """Rises unless its parameter is negative."""

    def bounds(op: Any, box: Box, parameter: float = default, *args: Any) -> Box:
        if parameter < 0:
            raise ValueError(f"model: {op.overloadpacket.__name__} with {name} < 0 is not monotone; no rule bounds it")
        return at_both_ends(op, box, parameter, *args)

    return bounds


def _elu(op: Any, box: Box, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Box:
    if min(alpha, scale, input_scale) < 0:
        raise ValueError("model: elu with alpha < 0 is not monotone; no rule bounds it")
    return at_both_ends(op, box, alpha, scale, input_scale)


def _prelu(op: Any, box: Box, weight: Tensor) -> Box:
    """Two lines that meet at 0, rising or, with a negative slope, a valley: extremes are at the ends or at 0."""
    lower, upper = op(box.lower, weight), op(box.upper, weight)
    crosses = (box.lower < 0) & (box.upper > 0)
    low = torch.minimum(lower, upper)
    return Box(torch.where(crosses, low.clamp(max=0.0), low), torch.maximum(lower, upper))


def _softplus(op: Any, box: Box, beta: float = 1.0, threshold: float = 20.0) -> Box:
    """Rises to x = threshold / beta, drops to x there (torch's cut-off), and rises again."""
    if beta <= 0:
        raise ValueError(f"model: Softplus with beta = {beta} <= 0 has no interval rule")
    lower, upper = op(box.lower, beta, threshold), op(box.upper, beta, threshold)
    cut = torch.full_like(lower, threshold / beta)
    across = (box.lower * beta <= threshold) & (box.upper * beta > threshold)
    return Box(
        torch.where(across, torch.minimum(lower, cut), lower),
        torch.where(across, torch.maximum(upper, F.softplus(cut, beta, torch.inf)), upper),
    )


def _threshold(op: Any, box: Box, threshold: float, value: float) -> Box:
    if value > threshold:
        raise ValueError(f"model: threshold with value {value} > threshold {threshold} is not monotone")
    return at_both_ends(op, box, threshold, value)


def pattern_of(node: fx.Node) -> tuple[Callable[[Tensor], Tensor], fx.Node] | None:
    """x / (|x| + 1) and x - tanh(x), which torch writes out, as the one function that they are, which rises; and x."""
    if packet(node) not in (aten.div, aten.sub) or len(node.args) != 2 or node.kwargs:
        return None
    x, other = node.args
    if not isinstance(x, fx.Node) or not isinstance(other, fx.Node) or other.op != "call_function":
        return None
    if packet(node) is aten.sub:
        return (F.tanhshrink, x) if packet(other) is aten.tanh and other.args == (x,) else None
    inner = other.args[0] if packet(other) is aten.add and other.args[1:] == (1,) and not other.kwargs else None
    is_softsign = isinstance(inner, fx.Node) and packet(inner) is aten.abs and inner.args == (x,)
    return (F.softsign, x) if is_softsign else None


def _power(op: Any, a: Any, exponent: Any) -> Box:
    """Whole powers of all numbers; others of boxes that hold none below 0, else NaN: they rise there, or fall."""
    if not isinstance(a, Box) or isinstance(exponent, Box):
        raise TypeError("model: a power with an exponent that depends on the input has no interval rule")
    if isinstance(exponent, (int, float)) and exponent < 0:
        return reciprocal(_power(op, a, -exponent))
    if isinstance(exponent, (int, float)) and exponent in range(65):
        f = partial(torch.pow, exponent=exponent)
        return at_both_ends(f, a) if exponent % 2 else unimodal(f, 0.0, a)
    ends, unknown = (op(a.lower, exponent), op(a.upper, exponent)), torch.where(a.lower < 0, torch.nan, 0.0)
    return Box(torch.minimum(*ends) + unknown, torch.maximum(*ends) + unknown)


def reciprocal(box: Box) -> Box:
    """1 / x; of a box that holds 0, all numbers."""
    inside = (box.lower <= 0) & (box.upper >= 0)
    lower, upper = 1 / box.upper, 1 / box.lower
    return Box(lower.masked_fill(inside, -torch.inf), upper.masked_fill(inside, torch.inf))


def _sqrt(op: Any, box: Box) -> Box:
    """NaN where the box holds numbers below 0: nothing is certified of those."""
    return Box(op(box.lower), op(box.upper) + 0 * op(box.lower))


def _rsqrt(op: Any, box: Box) -> Box:
    upper = op(box.lower)
    return Box(op(box.upper) + 0 * upper, upper)


def _log(op: Any, box: Box) -> Box:
    return Box(op(box.lower), op(box.upper) + 0 * op(box.lower).nan_to_num(neginf=0.0))


def _wave(peak: float) -> Callable[..., Box]:
    """sin or cos, of period 2 pi, with its maximum 1 at ``peak``: the ends, and 1 or -1 where a turn is inside."""

    def bounds(op: Any, box: Box) -> Box:
        lower, upper = op(box.lower), op(box.upper)

        def holds(turn: float) -> Tensor:  # a little more than the box, since turns are rounded
            slack = 1e-5 if box.lower.dtype == torch.float32 else 1e-12
            slack = slack * (1 + torch.maximum(box.lower.abs(), box.upper.abs()))
            first = torch.ceil((box.lower - slack - turn) / (2 * math.pi)) * (2 * math.pi) + turn
            return first <= box.upper + slack

        low, high = torch.minimum(lower, upper), torch.maximum(lower, upper)
        return Box(low.masked_fill(holds(peak + math.pi), -1.0), high.masked_fill(holds(peak), 1.0))

    return bounds


def _to_copy(op: Any, box: Box, **kwargs: Any) -> Box:
    """Rounding to another format never turns the order of two numbers."""
    if kwargs.get("dtype") is not None and not kwargs["dtype"].is_floating_point:
        raise TypeError(f"model: a cast to {kwargs['dtype']} has no interval rule; only to floating-point numbers")
    return at_both_ends(op, box, **kwargs)


RISING = (
    *(aten.relu, aten.relu6, aten.tanh, aten.sigmoid, aten.hardtanh, aten.hardsigmoid, aten.selu, aten.log_sigmoid),
    *(aten.clamp, aten.clip, aten.clamp_min, aten.clamp_max),
    *(aten.exp, aten.expm1, aten.erf, aten.atan, aten.asinh, aten.sinh),
    *(aten.maximum, aten.minimum, aten.type_as, aten.detach, aten.to, aten.softshrink),
    *(aten.exp2, aten.logaddexp, aten.logcumsumexp),
)
JUMPING = (aten.sign, aten.floor, aten.ceil, aten.round, aten.trunc, aten.hardshrink)
RULES = {
    **dict.fromkeys(RISING, at_both_ends),
    **dict.fromkeys(JUMPING, _jump),
    **{aten._to_copy: _to_copy, aten.threshold: _threshold, aten.pow: _power},
    **{aten.leaky_relu: _slope("negative_slope", 0.01), aten.celu: _slope("alpha", 1.0), aten.elu: _elu},
    **{aten.prelu: _prelu, aten._prelu_kernel: _prelu, aten.softplus: _softplus, aten.gelu: _gelu},
    **{aten.silu: _with_valley(-1.2784645427610738), aten.mish: _with_valley(-1.1924371219615398)},
    **{aten.hardswish: _with_valley(-1.5), aten.abs: _with_valley(0.0), aten.square: _with_valley(0.0)},
    **{aten.cosh: _with_valley(0.0), aten.absolute: _with_valley(0.0)},
    **dict.fromkeys((aten.neg, aten.negative, aten.erfc), falling),
    **{aten.reciprocal: lambda op, box: reciprocal(box), aten.sqrt: _sqrt, aten.rsqrt: _rsqrt},
    **dict.fromkeys((aten.log, aten.log2, aten.log10, aten.log1p), _log),
    **{aten.sin: _wave(math.pi / 2), aten.cos: _wave(0.0)},
}
