"""Sums, products, quotients, softmax and attention: operators of several values that may all depend on the input."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acertlab.bounds.box import Box
from acertlab.bounds.rules.batch_invariance import batch_invariant_matmul
from acertlab.bounds.rules.elementwise import at_both_ends, reciprocal, unimodal
from acertlab.bounds.rules.operators import aten


def _ends(value: Any) -> tuple[Any, Any]:
    return (value.lower, value.upper) if isinstance(value, Box) else (value, value)


def add(op: Any, a: Any, b: Any, *, alpha: float = 1) -> Box:
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b if alpha == 1 else mul(op, b, alpha))
    return Box(a_low + b_low, a_high + b_high)


def sub(op: Any, a: Any, b: Any, *, alpha: float = 1) -> Box:
    if a is b and alpha == 1:
        return Box(torch.zeros_like(a.lower), torch.zeros_like(a.lower))
    (a_low, a_high), (b_low, b_high) = _ends(a), _ends(b if alpha == 1 else mul(op, b, alpha))
    return Box(a_low - b_high, a_high - b_low)


def mul(op: Any, a: Any, b: Any) -> Any:
    """A constant turns the ends or keeps them; of two boxes, the extremes are among the products of their ends."""
    if a is b and isinstance(a, Box):  # small whole numbers are one object, too
        return unimodal(torch.square, 0.0, a)
    if isinstance(b, Box):
        if isinstance(a, Box):
            first, second = mul(op, a, b.lower), mul(op, a, b.upper)
            return Box(torch.minimum(first.lower, second.lower), torch.maximum(first.upper, second.upper))
        a, b = b, a
    if not isinstance(a, Box):
        return a * b
    low, high = a.lower * b, a.upper * b
    if isinstance(b, (int, float)):
        return Box(low, high) if b >= 0 else Box(high, low)
    return Box(torch.minimum(low, high), torch.maximum(low, high))


def div(op: Any, a: Any, b: Any, *, rounding_mode: str | None = None) -> Box:
    if rounding_mode is not None:
        raise TypeError("model: a division that is rounded to whole numbers has no interval rule")
    if isinstance(b, Box):
        return mul(op, reciprocal(b), a)
    low, high = a.lower / b, a.upper / b
    return Box(torch.minimum(low, high), torch.maximum(low, high))


def _glu(op: Any, box: Box, dim: int = -1) -> Box:
    """The first half times the sigmoid of the second."""
    low, high = box.lower.chunk(2, dim), box.upper.chunk(2, dim)
    return mul(op, Box(low[0], high[0]), Box(low[1].sigmoid(), high[1].sigmoid()))


def bilinear(f: Callable[[Tensor, Tensor], Tensor], a: Any, b: Any) -> Box:
    """Centre and radius form, as Eq. (16)-(17); of two boxes (c + d)(c' + d') with |d| <= r, |d'| <= r'."""
    if not isinstance(b, Box):
        center, radius = f(a.center, b), f(a.radius, b.abs())
    elif not isinstance(a, Box):
        center, radius = f(a, b.center), f(a.abs(), b.radius)
    else:
        center = f(a.center, b.center)
        radius = f(a.center.abs(), b.radius) + f(a.radius, b.center.abs() + b.radius)
    return Box(center - radius, center + radius)


def matmul(op: Any, a: Any, b: Any) -> Any:
    if not isinstance(a, Box) and not isinstance(b, Box):
        return batch_invariant_matmul(a, b)
    return bilinear(batch_invariant_matmul, a, b)


def _addcmul(op: Any, a: Any, b: Any, c: Any, *, value: float = 1) -> Box:
    return add(op, a, mul(op, mul(op, b, c), value))


def _addcdiv(op: Any, a: Any, b: Any, c: Any, *, value: float = 1) -> Box:
    quotient = div(op, b, c) if isinstance(b, Box) or isinstance(c, Box) else b / c
    return add(op, a, mul(op, quotient, value))


def _lerp(op: Any, a: Any, b: Any, weight: Any) -> Box:
    if isinstance(weight, Box):
        raise TypeError("model: lerp with a weight that depends on the input has no interval rule")
    return add(op, mul(op, a, 1 - weight), mul(op, b, weight))


def _einsum(op: Any, equation: str, operands: list[Any], **_: Any) -> Box:
    if len(operands) == 1:  # diagonals, sums and changes of shape
        return at_both_ends(op, equation, operands)
    if len(operands) != 2:
        raise TypeError(f"model: an einsum of {len(operands)} tensors has no interval rule; only of two")
    return bilinear(lambda a, b: op(equation, [a, b]), *operands)


def linear(op: Any, x: Any, weight: Any, bias: Any = None) -> Box:
    """F.linear whose weight depends on the input as well."""
    turned = Box(weight.lower.mT, weight.upper.mT) if isinstance(weight, Box) else weight.mT
    out = matmul(op, x, turned)
    return out if bias is None else add(op, out, bias)


def addmm(op: Any, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Box:
    return add(
        op,
        mul(op, bias, beta) if beta != 1 else bias,
        mul(op, matmul(op, a, b), alpha) if alpha != 1 else matmul(op, a, b),
    )


# ---- softmax and attention -----------------------------------------------------------------------------------------


def softmax(op: Any, box: Box, dim: int, *_: Any) -> Box:
    """Largest where its own logit is and the others are least: e^u / (e^u + sum of the others' e^l), and vice versa."""

    return _against_others(torch.sigmoid, box, dim)


def _log_softmax(op: Any, box: Box, dim: int, *_: Any) -> Box:
    return _against_others(F.logsigmoid, box, dim)


def _against_others(f: Callable[[Tensor], Tensor], box: Box, dim: int) -> Box:
    low, high = _logsumexp_of_others(box.lower, dim), _logsumexp_of_others(box.upper, dim)
    return Box(f(box.lower - high), f(box.upper - low))


def _logsumexp_of_others(x: Tensor, dim: int) -> Tensor:
    """log of the sum of e^x over all others along ``dim``, without cancellation: from the left, and from the right."""
    if x.shape[dim] == 1:
        return torch.full_like(x, -torch.inf)
    blank = torch.full_like(x.narrow(dim, 0, 1), -torch.inf)
    left = torch.cat([blank, x.narrow(dim, 0, x.shape[dim] - 1)], dim).logcumsumexp(dim)
    right = torch.cat([blank, x.flip(dim).narrow(dim, 0, x.shape[dim] - 1)], dim).logcumsumexp(dim).flip(dim)
    return torch.logaddexp(left, right)


def attention(
    op: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Box:
    """softmax(Q K^T scale) V: the weights lie in [0, 1] and add up to 1, so that outputs are averages of the values."""
    if dropout or enable_gqa or isinstance(mask, Box):
        raise TypeError("model: attention with dropout, grouped heads or a mask that depends on the input has no rule")
    shape = query.lower.shape if isinstance(query, Box) else query.shape
    turned = Box(key.lower.mT, key.upper.mT) if isinstance(key, Box) else key.mT
    scores = mul(op, matmul(op, query, turned), 1 / math.sqrt(shape[-1]) if scale is None else scale)
    scores = scores if isinstance(scores, Box) else Box(scores, scores)  # of constant queries and keys
    if causal:
        mask = torch.ones(scores.lower.shape[-2:], dtype=torch.bool, device=scores.lower.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = Box(*(end.masked_fill(~mask, -torch.inf) for end in (scores.lower, scores.upper)))
    elif mask is not None:
        scores = add(op, scores, mask)
    weights = softmax(op, scores, -1)
    if not isinstance(value, Box):
        return matmul(op, weights, value)
    product = matmul(op, weights, value)
    least, most = value.lower.amin(-2, keepdim=True), value.upper.amax(-2, keepdim=True)
    return Box(torch.maximum(product.lower, least), torch.minimum(product.upper, most))


RULES = {
    **{aten.add: add, aten.sub: sub, aten.rsub: lambda op, a, b, alpha=1: sub(op, b, a, alpha=alpha)},
    **{aten.mul: mul, aten.multiply: mul, aten.subtract: sub, aten.divide: div, aten.div: div, aten.true_divide: div},
    **dict.fromkeys((aten.matmul, aten.mm, aten.bmm), matmul),
    **{aten.einsum: _einsum, aten.addcmul: _addcmul, aten.addcdiv: _addcdiv, aten.lerp: _lerp, aten.baddbmm: addmm},
    **{aten.linear: linear, aten.addmm: addmm, aten.glu: _glu, aten.scaled_dot_product_attention: attention},
    **dict.fromkeys((aten.softmax, aten._softmax), softmax),
    **dict.fromkeys((aten.log_softmax, aten._log_softmax), _log_softmax),
}
