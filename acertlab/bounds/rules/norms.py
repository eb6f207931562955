"""Norms over the numbers of a sample: LayerNorm, GroupNorm, InstanceNorm, RMSNorm, variances and lengths."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acertlab.bounds.box import Box
from acertlab.bounds.rules.elementwise import unimodal
from acertlab.bounds.rules.operators import aten
from acertlab.bounds.rules.products import add, mul


def centred(box: Box, dims: tuple[int, ...], n: int) -> Box:
    """x - mean(x) over ``dims``, of n numbers: exact, since x_i weighs 1 - 1/n in it and the others -1/n."""
    low_mean, high_mean = box.lower.mean(dims, keepdim=True), box.upper.mean(dims, keepdim=True)
    return Box(
        box.lower * (1 - 1 / n) - (high_mean - box.upper / n), box.upper * (1 - 1 / n) - (low_mean - box.lower / n)
    )


def _sum_of_others(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.sum(dims, keepdim=True) - x


def _spread_of_others(box: Box, dims: tuple[int, ...], n: int) -> tuple[Tensor, Tensor]:
    """Bounds of the sum of (x_j - mean)^2 over all j but one, about the mean of those alone; for each one.

    It is the least sum of (x_j - m)^2 over m, so that any m gives an upper bound; over the box it is the least
    f(m) = sum of dist(m, [l_j, u_j])^2, which is convex: with the slope at any m, and the m that can be means, a lower
    bound. Both are good near the m where f is least, to which a few Newton steps lead.
    """
    lower, upper = box.lower, box.upper
    with torch.no_grad():
        middle = m = box.center.mean(dims, keepdim=True)
        for _ in range(5):
            ends = torch.where(upper < m, upper, lower)
            outside = (upper < m) | (lower > m)
            count = outside.sum(dims, keepdim=True)
            m = torch.where(count > 0, (ends * outside).sum(dims, keepdim=True) / count, m)
    gap = m - torch.minimum(torch.maximum(m, lower), upper)
    slope = 2 * _sum_of_others(gap, dims)
    least_mean, most_mean = (_sum_of_others(end, dims) / (n - 1) for end in (lower, upper))
    least = _sum_of_others(gap * gap, dims) + torch.minimum(slope * (least_mean - m), slope * (most_mean - m))
    most = _sum_of_others(torch.maximum((lower - middle) ** 2, (upper - middle) ** 2), dims)
    return least.clamp(min=0.0), most


def _normalised(box: Box, dims: tuple[int, ...], eps: float, *, subtract_mean: bool = True) -> Box:
    """(x - mean) / sqrt(mean((x - mean)^2) + eps) over ``dims``.

    Each is d / sqrt((d^2 + rest) / n + eps) with d its own deviation and rest the sum of the others' squares, which
    rises with d and falls with rest where d > 0, so that the ends of d and of rest bound it: exactly, where no mean is
    subtracted. Else the others' squares about their own mean are a second rest, with n / (n - 1) d^2 in place of d^2,
    and the better of both counts: 1.2 to 1.5 times the exact width from 8 numbers on, by the median
    (tests/bounds/test_tightness.py). By Cauchy's inequality it is never beyond sqrt(n - 1) either, since the deviations
    add up to 0 (sqrt(n) without a mean).
    """
    n = math.prod(box.lower.shape[d] for d in dims)
    own = centred(box, dims, n) if subtract_mean else box
    squares = unimodal(torch.square, 0.0, own)
    rests = [(_sum_of_others(squares.lower, dims).clamp(min=0.0), _sum_of_others(squares.upper, dims), 1.0)]
    if subtract_mean and n > 2:
        rests.append((*_spread_of_others(box, dims, n), n / (n - 1)))
    most = math.sqrt(n - 1 if subtract_mean else n)
    lower, upper = torch.full_like(own.lower, -most), torch.full_like(own.upper, most)
    for least, largest, weight in rests:

        def value(d: Tensor, rest: Tensor, weight: float = weight) -> Tensor:
            return d / ((weight * d * d + rest) / n + eps).sqrt()

        low = torch.where(own.lower < 0, value(own.lower, least), value(own.lower, largest))
        high = torch.where(own.upper > 0, value(own.upper, least), value(own.upper, largest))
        lower, upper = torch.maximum(lower, low), torch.minimum(upper, high)
    return Box(lower, upper)


def layer_norm(
    op: Any, box: Box, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Box:
    return _affine(_normalised(box, tuple(range(-len(shape), 0)), eps), weight, bias)


def _rms_norm(op: Any, box: Box, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Box:
    eps = torch.finfo(box.lower.dtype).eps if eps is None else eps
    return _affine(_normalised(box, tuple(range(-len(shape), 0)), eps, subtract_mean=False), weight, None)


def _group_norm(
    op: Any, box: Box, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Box:
    shape = box.lower.shape
    grouped = Box(*(end.reshape(shape[0], groups, -1) for end in (box.lower, box.upper)))
    out = _normalised(grouped, (2,), eps)
    out = Box(out.lower.reshape(shape), out.upper.reshape(shape))
    per_channel = [None if t is None else t.view(-1, *[1] * (len(shape) - 2)) for t in (weight, bias)]
    return _affine(out, *per_channel)


def _instance_norm(op: Any, box: Box, weight: Any, bias: Any, *rest: Any) -> Box:
    _mean, _var, use_input, _momentum, eps, *_ = rest
    if not use_input:
        raise TypeError("model: InstanceNorm with running statistics has no interval rule")
    return _group_norm(op, box, box.lower.shape[1], weight, bias, eps)


def _affine(box: Box, weight: Any, bias: Any) -> Box:
    box = box if weight is None else mul(None, box, weight)
    return box if bias is None else add(None, box, bias)


def _vector_norm(
    op: Any, box: Box, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Box:
    size = unimodal(torch.abs, 0.0, box)
    return Box(*(op(end, ord, dim, keepdim, dtype=dtype) for end in (size.lower, size.upper)))


def _variance(
    op: Any, box: Box, dim: Any, unbiased: bool = True, keepdim: bool = False, *, correction: float | None = None
) -> Box:
    """The sum of (x_i - mean)^2 over n - correction: below, of each deviation alone; above, about any other number."""
    dims = tuple(range(box.lower.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    n = math.prod(box.lower.shape[d] for d in dims)
    middle = box.center.mean(dims, keepdim=True)
    least = unimodal(torch.square, 0.0, centred(box, dims, n)).lower.sum(dims, keepdim)
    most = torch.maximum((box.lower - middle) ** 2, (box.upper - middle) ** 2).sum(dims, keepdim)
    count = n - (int(unbiased) if correction is None else correction)
    return Box(least / count, most / count)


def _deviation(op: Any, box: Box, *args: Any, **kwargs: Any) -> Box:
    out = _variance(op, box, *args, **kwargs)
    return Box(out.lower.sqrt(), out.upper.sqrt())


RULES = {
    **{aten.layer_norm: layer_norm, aten.rms_norm: _rms_norm, aten.group_norm: _group_norm},
    **{aten.instance_norm: _instance_norm, aten.linalg_vector_norm: _vector_norm},
    **{aten.var: _variance, aten.std: _deviation},
}
