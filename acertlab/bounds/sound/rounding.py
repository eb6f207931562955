"""How far rounding errors move the ends of a box: the argument, and affine operators with their errors bounded.

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
itself. Where a padding repeats values, |W'| r becomes |A| r, A being W' with the weights of a value that is read
twice added: their sums are rounded fewer than n times, by less than gamma_n |W'| r, for which g m is taken twice.
Where the box must hold what float32 *computes*, g is the sum of float32's gamma, for the evaluation that is spoken
of, and float64's, for this pass.

Elsewhere (averages, sums, products, leaky ReLU) the ends move outwards by gamma_{k+18} times the size of what is
rounded k times. ReLU, max pooling and changes of shape do not round.

Underflow, with results and operands flushed to zero at worst, errs by less than the smallest normal number a term,
times weights, inputs and BatchNorm's factors: that goes into |W'| and g B, with 2^10 to spare. Where an intermediate
result could overflow, or anything is not finite, bounds become NaN, which certifies nothing.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from acertlab.bounds.box import Box
from acertlab.bounds.rules.affine import Affine, Operation, Repeats
from acertlab.bounds.rules.dispatch import has_rule

SPARE = 18  # roundings beyond those of the sum itself, see above
COLUMNS = 2**17  # numbers in the table that a convolution is unrolled into: as many as stay in the cache


@dataclass(frozen=True)
class Rounding:
    """What is known of the arithmetic that the bounds must cover."""

    units: tuple[float, ...]  # unit roundoffs: float64's, of this pass, and that of the evaluation it speaks for
    smallest: float  # least normal number
    limit: float  # a quarter of the largest number

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
        """The box, computed in float64, with its ends moved outwards by the error of a few roundings of each term.

        They are relative to ``size``, the result's magnitude or, of a sum, that of its terms; in products ``operands``
        is the sum of the factors' magnitudes.
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


def magnitude_of(value: Any) -> Tensor:
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


@dataclass(frozen=True)
class RoundedAffine(Affine):
    """W' and b' in float64, with the magnitudes by which rounding errors are bounded; see the module."""

    magnitude: Tensor  # |W'|, scaled up
    slack: Tensor  # g B, and what underflow may add
    gain: float  # g
    scale: float  # 1 + 2 gamma_{n+18} of float64: covers the roundings of a radius
    reach: float  # times 1 + the largest input: no intermediate result is larger
    repeats: Repeats | None = None
    magnitudes: Sequence[Tensor] = ()  # of the blocks of outputs that `repeats` tells apart

    @classmethod
    def of(
        cls,
        weight: Tensor,
        bias: Tensor | None,
        operation: Operation,
        rounding: Rounding,
        norm: Norm | None = None,
        repeats: Repeats | None = None,
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
        blocks = () if repeats is None else [block * scale for block in repeats.magnitudes(scaled)]
        reach = float(total.max()) / rounding.limit
        return cls(scaled, shift, operation, magnitude, slack, gain, scale, reach, repeats, blocks)

    def propagate(self, box: Box) -> Box:
        """c' = W' c + b', r' = |W'| (r + g m) + g B, or |A| r + 2 |W'| g m + g B, see the module."""
        center, radius, size = self.split(box)
        center = self.operation(center, self.weight, self.bias)
        if self.repeats is None:
            radius = self.operation(radius.add_(size, alpha=self.gain), self.magnitude, self.slack)
        else:
            apart = self.repeats.radius(self.operation, self.magnitudes, radius)
            radius = self.operation(size.mul_(2 * self.gain), self.magnitude, self.slack).add_(apart)
        return Box(center - radius, center.add_(radius))

    def split(self, box: Box) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, radius and |c| + r; the radius of a sample that might overflow is NaN."""
        center, radius = box.center, box.radius
        size = center.abs().add_(radius)
        peak = size.amax(tuple(range(1, size.dim())))
        unsafe = ~((1 + peak) * self.reach < 1)  # NaN too
        if unsafe.any():
            radius[unsafe] = torch.nan
        return center, radius, size


def few_at_a_time(operation: Operation, stride: int) -> Operation:
    """A convolution, a few samples at a time on the CPU: 3 x faster.

    There torch unrolls the input of a float64 convolution into one table for the whole batch, far larger than a cache.
    ``stride`` is the product of the convolution's strides.
    """

    def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if x.device.type != "cpu" or x.dim() != weight.dim() or not len(x):
            return operation(x, weight, bias)
        unrolled = x[0].numel() * weight[0, 0].numel() // stride
        parts = x.split(max(1, COLUMNS // max(1, unrolled)))
        return torch.cat([operation(part, weight, bias) for part in parts])

    return convolve


def per_channel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The operation of a BatchNorm that follows no affine operator."""
    shape = (1, -1, *[1] * (x.dim() - 2))
    return x * weight.view(shape) + (0.0 if bias is None else bias.view(shape))


# ---- rules of users' own
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


def has_sound_rule(layer: nn.Module) -> bool:
    """As `acertlab.rules.has_rule`."""
    known = next((kind for kind in type(layer).__mro__ if kind in sound_rule.registry), object)
    return known is not object and type(layer).forward is getattr(known, "forward", None) and has_rule(layer)
