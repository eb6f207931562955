"""Boxes: all inputs between a lower and an upper end, elementwise; those around a sample are its l_inf ball."""

from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

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
    low, high = x.detach().aminmax() if x.numel() else (x.new_zeros(()), x.new_zeros(()))  # no copy: x may be large
    if not (low.isfinite() and high.isfinite()):
        raise ValueError(f"x: holds {int((~torch.isfinite(x)).sum())} NaN or infinite values; all must be finite")
    check_domain(domain)
    if domain is not None and x.numel() and (low < domain[0] or high > domain[1]):
        raise ValueError(
            f"x: values from {low:.4g} to {high:.4g} lie outside the domain {tuple(domain)}; give pixels in "
            "that range (normalisation belongs into the model, see acertlab.models.Normalize), or another domain"
        )


def check_domain(domain: Domain) -> None:
    """Refuses what is neither None nor two numbers in order."""
    pair = isinstance(domain, (tuple, list)) and len(domain) == 2 and all(isinstance(end, Real) for end in domain)
    if domain is not None and not (pair and domain[0] < domain[1]):
        raise ValueError(f"domain: {domain!r} is not (low, high) with low < high, nor None")


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


def ball(x: Tensor, eps: float | Tensor, domain: Domain = (0.0, 1.0)) -> Box:
    """`Box.around` without its checks, for hot paths."""
    if isinstance(eps, Tensor) and eps.dim() == 1:
        eps = eps.view(-1, *[1] * (x.dim() - 1))
    lower, upper = x - eps, x + eps
    return Box(lower, upper) if domain is None else Box(lower.clamp(min=domain[0]), upper.clamp(max=domain[1]))
