"""Boxes: all inputs between a lower and an upper end, elementwise; those around a sample are its l_inf ball."""

import hashlib
import math
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

TOLD = 64  # numbers of an end or a scale that a report holds one by one


class Ends(NamedTuple):
    """A `Domain` for inputs of one dtype and device."""

    low: Any  # a number, or a tensor that broadcasts to a sample; None: no end
    high: Any
    scale: Tensor | None  # None: 1


@dataclass(frozen=True, eq=False)
class Domain:
    """Which inputs are valid, and how far each of their numbers may move: the ball is x +- eps * eps_scale, cut to it.

    Args:
        low, high: the ends, low <= high: numbers, or arrays that broadcast to one sample, such as one number a feature;
            None or infinity: no end.
        eps_scale: how far a number may move for each unit of eps, >= 0, likewise; where it is 0 a number is held fixed.

    Raises:
        ValueError: NaN, negative scales, or an end beyond the other.

    Example:
        >>> held = al.Domain(eps_scale=torch.tensor([1.0, 0.0]))  # the second pixel stays as it is
        >>> al.certified_radius(model, x, y, eps_max=0.7, domain=held).radius  # where 0.2 + eps meets 0.7
        tensor([0.5000])
    """

    low: Any = 0.0
    high: Any = 1.0
    eps_scale: Any = 1.0
    _ends: dict[tuple[torch.dtype, torch.device], Ends] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:  # in numpy, on the host: a training step that makes one waits for no device
        missing = {"low": -math.inf, "high": math.inf, "eps_scale": 1.0}
        parts = {n: _numbers(n, none if getattr(self, n) is None else getattr(self, n)) for n, none in missing.items()}
        for name, part in parts.items():
            object.__setattr__(self, name, torch.from_numpy(part) if part.ndim else part.item())
        low, high, scale = parts.values()
        if (wrong := ~(scale >= 0) | np.isinf(scale)).any():
            raise ValueError(f"eps_scale: {_first(scale, wrong)} is not a finite number >= 0")
        try:
            wrong = ~(low <= high)
        except ValueError as error:
            raise ValueError(f"high: shape {high.shape} does not go with low's {low.shape}") from error
        if wrong.any():
            low, high = np.broadcast_to(low, wrong.shape), np.broadcast_to(high, wrong.shape)
            raise ValueError(f"low: {_first(low, wrong)} is not <= high, {_first(high, wrong)}")

    @classmethod
    def of(cls, given: "DomainLike") -> "Domain":
        """What stands for a domain: one, two numbers in order, or None."""
        if isinstance(given, Domain):
            return given
        pair = isinstance(given, (tuple, list)) and len(given) == 2 and all(isinstance(end, Real) for end in given)
        if given is not None and not (pair and given[0] < given[1]):
            raise ValueError(
                f"domain: {given!r} is not (low, high) with low < high, nor None; acertlab.Domain takes arrays as ends"
            )
        return cls(None, None) if given is None else cls(*map(float, given))

    @property
    def width(self) -> float:
        """The eps from which on every ball is all of it, wherever its centre; infinite where there is none."""
        low, high, scale = (torch.as_tensor(e, dtype=torch.float64) for e in (self.low, self.high, self.eps_scale))
        return torch.where(scale > 0, (high - low) / scale, 0.0).max().item() or math.inf

    def ends(self, x: Tensor) -> Ends:
        """In the dtype and on the device of ``x``."""
        key = x.dtype, x.device
        if key not in self._ends:
            low, high = (None if isinstance(end, float) and math.isinf(end) else end for end in (self.low, self.high))
            low, high = (end.to(x) if isinstance(end, Tensor) else end for end in (low, high))
            one = isinstance(self.eps_scale, float) and self.eps_scale == 1
            self._ends[key] = Ends(low, high, None if one else torch.as_tensor(self.eps_scale).to(x))
        return self._ends[key]

    def filled(self, x: Tensor, low: Tensor | float, high: Tensor | float) -> tuple[Tensor, Tensor]:
        """Both ends like ``x`` (B, ...), and ``low`` or ``high`` where there is none."""
        ends, blank = self.ends(x), torch.zeros_like(x)
        least = blank + (-math.inf if ends.low is None else ends.low)
        most = blank + (math.inf if ends.high is None else ends.high)
        return torch.where(least.isfinite(), least, low), torch.where(most.isfinite(), most, high)

    def holding(self, x: Tensor) -> "Domain":
        """With ends no narrower than their rounding to the dtype of ``x``, by which its numbers were judged."""
        if x.dtype == torch.float64:
            return self
        low, high = (torch.as_tensor(end, dtype=torch.float64) for end in (self.low, self.high))
        low, high = torch.minimum(low, low.to(x.dtype).double()), torch.maximum(high, high.to(x.dtype).double())
        return Domain(low, high, self.eps_scale)

    def plain(self) -> Any:
        """(low, high), or by name where there is more to tell, as JSON has it: numbers, lists, of long ones a hash."""
        if all(isinstance(part, float) for part in (self.low, self.high, self.eps_scale)) and self.eps_scale == 1:
            return (self.low, self.high) if math.isfinite(self.low) or math.isfinite(self.high) else None
        parts = {"low": self.low, "high": self.high, "eps_scale": self.eps_scale}
        return {name: _told(part) if isinstance(part, Tensor) else part for name, part in parts.items()}


def _told(part: Tensor) -> Any:
    digest = hashlib.sha256(part.contiguous().numpy().data).hexdigest()
    return part.tolist() if part.numel() <= TOLD else f"{tuple(part.shape)} sha256 {digest}"


DomainLike = Domain | tuple[float, float] | None


def _numbers(name: str, value: ArrayLike | Tensor) -> np.ndarray:
    """A number or an array, in float64."""
    try:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.kind not in "fiu":
            raise TypeError
        found = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: must be a number or an array of real numbers, not {value!r}") from error
    if np.isnan(found).any():
        raise ValueError(f"{name}: holds NaN")
    return found


def _first(values: np.ndarray, where: np.ndarray) -> str:
    index = tuple(np.argwhere(where)[0].tolist())
    return f"{values[index]:.6g}" + (f" at {index[0] if len(index) == 1 else index}" if index else "")


@dataclass(frozen=True)
class Box:
    """All points between ``lower`` and ``upper``, elementwise.

    Args:
        lower: any floating shape, usually (B, ...).
        upper: the same shape and dtype.

    Raises:
        TypeError: an end is not a floating tensor, or the dtypes differ.
        ValueError: the shapes differ.

    Example:
        >>> al.Box.around(x, 0.25).upper  # ends at 1, where pixels do
        tensor([[0.4500, 0.9500]])
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
        if self.lower.device != self.upper.device:
            raise ValueError(f"upper: is on {self.upper.device}, lower on {self.lower.device}; move one of them")

    @property
    def center(self) -> Tensor:
        return (self.lower + self.upper).mul_(0.5)

    @property
    def radius(self) -> Tensor:
        """Half the width of every interval, same shape as ``lower``."""
        return (self.upper - self.lower).mul_(0.5)

    @classmethod
    def around(cls, x: Tensor, eps: float | Tensor, domain: DomainLike = (0.0, 1.0)) -> "Box":
        """Eq. (1): the l_inf ball around ``x`` (B, ...), cut to the domain; pixel units.

        ``eps`` >= 0 is a float, or (B,) with one radius a sample; ``domain`` (low, high) of valid pixels that hold x,
        None for the uncut ball of Theorem A.2, or a `Domain`. ValueError where x or eps is NaN, negative, outside the
        domain or of the wrong shape.
        """
        check_input(x, domain)
        return ball(x, check_eps(eps, x), domain)


def check_input(x: Tensor, domain: DomainLike) -> None:
    """Refuses inputs that cannot be the centre of a box: not floating, NaN, or outside the domain."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        what = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: must be a floating-point tensor with values in the domain {domain}, not {what}")
    low, high = x.detach().aminmax() if x.numel() else (x.new_zeros(()), x.new_zeros(()))  # no copy: x may be large
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"x: holds {int((~torch.isfinite(x)).sum())} NaN or infinite values; all must be finite")
    ends = Domain.of(domain).ends(x)
    for name, part in ends._asdict().items():
        if isinstance(part, Tensor) and not _broadcasts(part.shape, x.shape[1:]):
            name = "eps_scale" if name == "scale" else name
            raise ValueError(
                f"domain: {name} of shape {tuple(part.shape)} does not broadcast to one sample, {tuple(x.shape[1:])}"
            )
    if not x.numel():
        return
    if isinstance(ends.low, Tensor) or isinstance(ends.high, Tensor):
        outside = x < (-math.inf if ends.low is None else ends.low)
        outside |= x > (math.inf if ends.high is None else ends.high)
        if outside.any():
            first = _first(x.detach().cpu().numpy(), outside.cpu().numpy())
            raise ValueError(f"x: {first} lies outside the domain; give inputs in it, or another domain")
    elif (ends.low is not None and low < ends.low) or (ends.high is not None and high > ends.high):
        grey = "; here domain=(0, 255), where eps counts grey levels" if low >= 0 and 1 < high <= 255 else ""
        raise ValueError(
            f"x: values from {low:.4g} to {high:.4g} lie outside the domain {Domain.of(domain).plain()}; give pixels "
            f"in that range (put the normalisation into the model: acertlab.models.Normalize), or another domain{grey}"
        )


def _broadcasts(shape: torch.Size, to: torch.Size) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(to), strict=False))


def check_eps(eps: float | Tensor, x: Tensor) -> float | Tensor:
    """Refuses radii that are negative, NaN, or neither a number nor (B,); returns them in the dtype of ``x``."""
    if isinstance(eps, Tensor):
        real = not (eps.is_complex() or eps.is_meta or eps.dtype == torch.bool)
    else:
        real = isinstance(eps, Real) and not isinstance(eps, bool)
    if not real:
        what = f"a tensor of {eps.dtype} on {eps.device}" if isinstance(eps, Tensor) else type(eps).__name__
        raise TypeError(f"eps: must be a real number, or a (B,) tensor of them, in pixel units; not {what}")
    values = torch.as_tensor(eps if isinstance(eps, Tensor) else float(eps), dtype=x.dtype, device=x.device)
    if values.dim() > 1 or (values.dim() == 1 and values.shape[0] != x.shape[0]):
        raise ValueError(f"eps: shape {tuple(values.shape)} is neither a number nor ({x.shape[0]},), one a sample")
    if not (torch.isfinite(values) & (values >= 0)).all():
        raise ValueError("eps: must be finite and >= 0 (pixel units)" + (f", not {eps}" if values.dim() == 0 else ""))
    return values if isinstance(eps, Tensor) else float(eps)


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, ...), to broadcast against x (B, ...)."""
    return values.view(-1, *[1] * (x.dim() - 1))


def ball(x: Tensor, eps: float | Tensor, domain: DomainLike = (0.0, 1.0)) -> Box:
    """`Box.around` without its checks, for hot paths."""
    if isinstance(eps, Tensor) and eps.dim() == 1:
        eps = per_sample(eps, x)
    low, high, scale = domain.ends(x) if isinstance(domain, Domain) else Ends(*(domain or (None, None)), None)
    reach = eps if scale is None else _rounded_up(eps * scale)
    lower, upper = x - reach, x + reach
    return Box(lower if low is None else lower.clamp(min=low), upper if high is None else upper.clamp(max=high))


def _rounded_up(product: Tensor) -> Tensor:
    """A product >= 0, no less than in exact arithmetic, and 0 where it is; differentiable."""
    at = product.detach()
    return product + torch.where(at > 0, at.nextafter(torch.full_like(at, torch.inf)) - at, 0.0)


def inner_ball(x: Tensor, eps: Tensor, domain: DomainLike) -> tuple[Tensor, Tensor]:
    """Ends of the ball cut to the domain; one that rounding put further away than eps moves back towards x."""
    box, limit = ball(x, eps, domain), per_sample(eps, x)
    if (scale := Domain.of(domain).ends(x).scale) is not None:  # no more than the product in exact arithmetic
        limit = (limit.double() * scale.double()).nextafter(torch.zeros((), dtype=torch.float64, device=x.device))
        limit = rounded(limit, x.dtype, -torch.inf)
        box = Box(torch.maximum(box.lower, x - limit), torch.minimum(box.upper, x + limit))
    lower, upper = (torch.where(difference(end, x) > limit, end.nextafter(x), end) for end in (box.lower, box.upper))
    return lower, upper


def distance(point: Tensor, x: Tensor, domain: DomainLike = None) -> Tensor:
    """The least eps whose ball holds ``point``, max |point - x| / eps_scale, (B,); never less than it is exactly."""
    away, scale = difference(point, x), Domain.of(domain).ends(x).scale
    if scale is not None:
        exact, scale = away.double(), scale.double()
        quotient = exact / scale
        if x.dtype == torch.float64:  # whose product with the scale would be rounded
            away = quotient.nextafter(torch.full_like(quotient, torch.inf))
        else:
            away = rounded(quotient, x.dtype, torch.inf)
            away = torch.where(away.double() * scale < exact, away.nextafter(torch.full_like(away, torch.inf)), away)
        away = torch.where(exact == 0, 0.0, away)
    return away.flatten(1).amax(1)


def difference(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| elementwise, rounded up: what float64 lost is recovered (Knuth's TwoSum) and decides."""
    dtype, a, b = a.dtype, a.double(), b.double()
    difference = a - b
    minus_b = difference - a
    lost = (a - (difference - minus_b)) - (b + minus_b)
    size = difference.abs()
    size = torch.where(lost * difference.sign() > 0, size.nextafter(torch.full_like(a, torch.inf)), size)
    return rounded(size, dtype, torch.inf)


def rounded(value: Tensor, dtype: torch.dtype, towards: float) -> Tensor:
    """``value`` in ``dtype``, rounded towards -inf or inf."""
    rounded = value.to(dtype)
    wrong = rounded.to(value.dtype) < value if towards > 0 else rounded.to(value.dtype) > value
    return torch.where(wrong, rounded.nextafter(torch.full_like(rounded, towards)), rounded)
