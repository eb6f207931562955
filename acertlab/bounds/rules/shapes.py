"""Changes of shape, pooling, padding and selection: each result is one of the inputs, or rises with them."""

import operator
from functools import partial
from typing import Any

import torch

from acertlab.bounds.box import Box
from acertlab.bounds.rules.batch_invariance import batch_invariant_matmul
from acertlab.bounds.rules.elementwise import at_both_ends
from acertlab.bounds.rules.operators import aten


def of_shape(op: Any, box: Box, *args: Any, **kwargs: Any) -> Any:
    """What only the shape, dtype and device decide."""
    return op(box.lower if isinstance(box, Box) else box, *args, **kwargs)


def _average_pool(
    op: Any,
    box: Box,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Box:
    if (divisor or 1) < 0:
        raise ValueError(f"model: average pooling with divisor_override = {divisor} < 0 is not monotone")
    return at_both_ends(op, box, kernel, stride, padding, ceil_mode, count_include_pad, divisor)


def _index(op: Any, x: Any, indices: list[Any]) -> Box:
    if any(isinstance(i, Box) for i in indices):
        raise TypeError("model: an index that depends on the input has no interval rule")
    return at_both_ends(op, x, indices)


def _fill(op: Any, x: Box, value: Any) -> Box:
    end = value if isinstance(value, Box) else Box(*[op(x.lower, value)] * 2)
    return Box(*(e.expand_as(x.lower) for e in (end.lower, end.upper)))


def _where(op: Any, condition: Any, *values: Any) -> Box:
    if isinstance(condition, Box):
        raise TypeError("model: where, with a condition that depends on the input, has no interval rule")
    return at_both_ends(op, condition, *values)


def _bicubic(op: Any, box: Box, *args: Any) -> Box:
    """c' = A c, r' = |A| r: the same weights, of both signs, for all rows, and for all columns."""
    height, width = box.lower.shape[-2:]
    eye = partial(torch.eye, dtype=box.lower.dtype, device=box.lower.device)
    down = op(eye(height).view(height, 1, height, 1).expand(-1, -1, -1, width), *args)[:, 0, :, 0].abs()
    across = op(eye(width).view(width, 1, 1, width).expand(-1, -1, height, -1), *args)[:, 0, 0].abs()
    center, radius = op(box.center, *args), batch_invariant_matmul(box.radius, across)
    radius = batch_invariant_matmul(radius.mT, down).mT
    return Box(center - radius, center + radius)


def _scatter(op: Any, *args: Any, **kwargs: Any) -> Box:
    if {"multiply", "prod"}.intersection(a for a in (*args, *kwargs.values()) if isinstance(a, str)):
        raise TypeError("model: a scatter that multiplies is not monotone; no rule bounds it")
    return at_both_ends(op, *args, **kwargs)


def _index_add(op: Any, x: Any, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Box:
    if alpha < 0:
        raise ValueError(f"model: index_add with alpha = {alpha} < 0 is not monotone; no rule bounds it")
    return at_both_ends(op, x, dim, index, source, alpha=alpha)


def _grid_sample(op: Any, x: Any, grid: Any, mode: int, padding: int, align: bool) -> Box:
    if isinstance(grid, Box) or mode == 2:
        raise TypeError("model: grid_sample has an interval rule for a constant grid only, and none for mode='bicubic'")
    return at_both_ends(op, x, grid, mode, padding, align)


SELECTION = (  # no rounding: each result is one of the inputs, or a constant
    *(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten, aten.squeeze, aten.unsqueeze),
    *(aten.permute, aten.transpose, aten.t, aten.mT, aten.numpy_T, aten.movedim, aten.swapaxes, aten.expand),
    *(aten.expand_as, aten.repeat, aten.tile, aten.flip, aten.roll, aten.narrow, aten.slice, aten.select),
    *(aten.index_select, aten.gather, aten.unbind, aten.unfold, aten.diagonal, aten.pad, aten.constant_pad_nd),
    *(aten.view_as, aten.reshape_as, aten.cat, aten.concat, aten.stack, aten.chunk, aten.split, aten.split_with_sizes),
    *(aten.reflection_pad1d, aten.reflection_pad2d, aten.reflection_pad3d, aten.replication_pad1d),
    *(aten.replication_pad2d, aten.replication_pad3d, aten.pixel_shuffle),
    *(aten.pixel_unshuffle, aten.channel_shuffle, aten.native_channel_shuffle, aten.masked_fill, aten.im2col),
    *(aten.max_pool1d, aten.max_pool2d, aten.max_pool3d, aten.max_pool2d_with_indices, aten.max_pool3d_with_indices),
    *(aten.adaptive_max_pool1d, aten.adaptive_max_pool2d, aten.adaptive_max_pool3d, aten.max, aten.min, aten.amax),
    *(aten.amin, aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d, aten._unsafe_index),
    *(aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d, aten._upsample_nearest_exact3d, aten.cummax),
    *(aten.slice_scatter, aten.select_scatter, aten.diagonal_scatter, aten.copy, aten.triu, aten.tril),
)
AVERAGES = (  # sums and averages: what they round is the sum
    *(aten.mean, aten.sum, aten.cumsum, aten.avg_pool1d, aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d),
    *(aten.adaptive_avg_pool3d, aten._adaptive_avg_pool2d, aten._adaptive_avg_pool3d, aten.logsumexp),
    *(aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d, aten._upsample_bilinear2d_aa),
)
ORDER = (aten.sort, aten.topk, aten.kthvalue, aten.median, aten.cummin, aten.aminmax)  # none falls where an input rises
SIZES = (
    *(aten.sym_size, aten.sym_numel, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.new_zeros),
    *(aten.new_ones, aten.new_full, aten.new_empty, aten.sym_stride),
)
RULES = {
    **dict.fromkeys((*SELECTION, *AVERAGES, *ORDER, aten.index_copy, aten.index_put, aten.col2im), at_both_ends),
    **dict.fromkeys((aten.scatter, aten.scatter_add, aten.scatter_reduce), _scatter),
    **{aten.index_add: _index_add, aten.grid_sampler: _grid_sample},
    **dict.fromkeys((aten.avg_pool2d, aten.avg_pool3d), _average_pool),
    **{aten.index: _index, aten.where: _where, aten.fill: _fill},
    **{operator.getitem: lambda op, values, index: values[index]},
    **dict.fromkeys(SIZES, of_shape),
    **dict.fromkeys((aten.upsample_bicubic2d, aten._upsample_bicubic2d_aa), _bicubic),
}
