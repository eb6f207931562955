"""Operators with a proved rounding bound: those that do not round, and rules for those that do.

Each rule is called with the `Rounding`, the operator's interval rule, the operator and its arguments.
"""

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor

from acertlab.bounds.box import Box
from acertlab.bounds.rules.operators import aten
from acertlab.bounds.rules.products import mul
from acertlab.bounds.rules.shapes import ORDER, SELECTION, SIZES
from acertlab.bounds.sound.rounding import Rounding, magnitude_of

EXACT = {*SELECTION, *ORDER, *SIZES, aten.relu, aten.relu6, aten.neg, aten.abs, aten.maximum, aten.minimum, aten.detach}
EXACT |= {aten.index, aten.clone, operator.getitem, aten.zeros, aten.ones, aten.sign}
EXACT -= {aten.pad, aten.constant_pad_nd, aten.masked_fill, aten.full_like, aten.new_full}  # constants may round


def _add(rounding: Rounding, plain: Callable, op: Any, a: Any, b: Any, *, alpha: float = 1) -> Box:
    b = b if alpha == 1 else _mul(rounding, mul, op, b, alpha)
    return rounding.outward(plain(op, a, b), magnitude_of(a) + magnitude_of(b), 2)


def _mul(rounding: Rounding, plain: Callable, op: Any, a: Any, b: Any) -> Any:
    out = plain(op, a, b)
    return (
        rounding.outward(out, magnitude_of(out), 2, magnitude_of(a) + magnitude_of(b)) if isinstance(out, Box) else out
    )


def _div(rounding: Rounding, plain: Callable, op: Any, a: Any, b: Any, **kwargs: Any) -> Box:
    """Covers the product with a rounded reciprocal, too."""
    if isinstance(b, Box):
        raise TypeError("model: sound: no rounding bound is proved for a division by an activation")
    out, size = plain(op, a, b, **kwargs), rounding.normal(magnitude_of(b))
    return rounding.outward(out, magnitude_of(out), 4, magnitude_of(a) + size + 1 / size)


def _with_slope(rounding: Rounding, plain: Callable, op: Any, box: Box, *args: Any) -> Box:
    out = plain(op, box, *args)
    return rounding.outward(out, magnitude_of(out), 2, magnitude_of(box))


def _with_constants(rounding: Rounding, plain: Callable, op: Any, box: Box, *args: Any, **kwargs: Any) -> Box:
    """What rounds its constants only: clamps, padding with a value."""
    out = plain(op, box, *args, **kwargs)
    return rounding.outward(out, magnitude_of(out), 1)


def _average(terms_of: Callable[..., int]) -> Callable[..., Box]:
    """Sums and averages of as many numbers as ``terms_of`` says."""

    def bounds(rounding: Rounding, plain: Callable, op: Any, box: Box, *args: Any, **kwargs: Any) -> Box:
        if kwargs.get("dtype") is not None:
            raise TypeError("model: sound: no rounding bound is proved for a sum in another dtype; leave dtype away")
        out, size = plain(op, box, *args, **kwargs), op(magnitude_of(box), *args, **kwargs)
        return rounding.outward(out, size, terms_of(box.lower, out.lower, *args) + 2)

    return bounds


def _all(x: Tensor, out: Tensor, *_: Any) -> int:
    return x.numel() // max(1, out.numel())


def _window(d: int) -> Callable[..., int]:
    def terms(x: Tensor, out: Tensor, kernel: Any, *rest: Any) -> int:
        divisor = rest[4] if len(rest) > 4 else None
        side = [kernel] if isinstance(kernel, int) else list(kernel)
        return max(math.prod(side) ** (d if len(side) == 1 else 1), divisor or 1)

    return terms


def _of_a_channel(d: int) -> Callable[..., int]:
    return lambda x, out, *_: math.prod(x.shape[-d:])  # at most all of a channel


RULES: dict[Any, Callable[..., Any]] = {
    **{aten.add: _add, aten.sub: _add, aten.mul: _mul, aten.div: _div},
    **dict.fromkeys((aten.leaky_relu, aten.prelu, aten._prelu_kernel), _with_slope),
    **dict.fromkeys(
        (aten.hardtanh, aten.clamp, aten.clamp_min, aten.clamp_max, aten.pad, aten.constant_pad_nd), _with_constants
    ),
    **dict.fromkeys((aten.mean, aten.sum), _average(_all)),
    **{getattr(aten, f"avg_pool{d}d"): _average(_window(d)) for d in (1, 2, 3)},
    **{getattr(aten, f"adaptive_avg_pool{d}d"): _average(_of_a_channel(d)) for d in (1, 2, 3)},
}
