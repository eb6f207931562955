"""Chandrupatla's method."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.radius.rootfind.bracketed import MAXITER, RTOL, XTOL, RootResult, solve
from acertlab.radius.rootfind.iterate import StoppingRule


def chandrupatla(
    f: Callable[..., Tensor],
    a: Tensor | float,
    b: Tensor | float,
    *,
    args: tuple[Tensor, ...] = (),
    xtol: float = XTOL,
    rtol: float = RTOL,
    maxiter: int = MAXITER,
    fa: Tensor | float | None = None,
    fb: Tensor | float | None = None,
    compact: bool = True,
) -> RootResult:
    """Chandrupatla's method (1997), the same decisions as `scipy.optimize.elementwise.find_root`; called as `brentq`.

    Stopping rule, asked of the ends and after each evaluation: f(root) == 0, or |upper - lower| < xtol + rtol |root|,
    where root is the end with the smaller |f|. This is scipy's with xatol = xtol, xrtol = rtol, fatol = frtol = 0.
    Unlike scipy, a single NaN from f ends the search (NONFINITE), and where f is 0 at both ends root is a, not b.

    Source: T. R. Chandrupatla, Advances in Engineering Software 28(3), 145-149 (1997), Figure 1; P. O. J. Scherer,
        Computational Physics, "Roots and Extremal Points".

    Example:
        >>> al.chandrupatla(lambda t: t**2 - 2, 0.0, 2.0).root
        tensor([1.4142], dtype=torch.float64)
    """
    return solve(_Chandrupatla, f, (a, b, fa, fb), args, StoppingRule(xtol, rtol, maxiter), compact)


class _Chandrupatla(NamedTuple):
    """Invariants: the root lies between `cur` and `opp` (the paper's x1, x2); `old` (x3) is the end dropped last."""

    cur: Tensor  # (2, B) newest point
    opp: Tensor  # (2, B)
    old: Tensor  # (2, B)

    asks_ends, asks_last = True, True

    @classmethod
    def start(cls, a: Tensor, b: Tensor) -> "_Chandrupatla":
        return cls(a, b, b)

    def propose(self, xtol: float, rtol: float) -> tuple["_Chandrupatla", Tensor, Tensor]:
        best = self.root
        (x1, f1), (_, f2), (_, f3) = self
        d12, d32, (dx31, df31) = self.cur - self.opp, self.old - self.opp, self.old - self.cur
        (dx12, df12), df32 = d12, d32[1]
        tol, width = best[0].abs() * rtol + xtol, dx12.abs()
        done = (best[1] == 0) | (width < tol)

        xi, phi = d12 / d32
        smooth = (1 - (1 - xi).sqrt() < phi) & (phi < xi.sqrt())  # inverse quadratic is monotone; False for NaN
        quadratic = f1 / df12 * f3 / df32 - dx31 / dx12 * f1 / df31 * f2 / df32
        margin = 0.5 * tol / width  # of the step to the ends
        t = quadratic.masked_fill(~smooth, 0.5).clamp(margin, 1 - margin)
        return self, x1 - t * dx12, done

    def accept(self, new: Tensor) -> "_Chandrupatla":
        same = (new[1] < 0) == (self.cur[1] < 0)
        opp, old = torch.where(same, self.opp, self.cur), torch.where(same, self.cur, self.opp)
        return _Chandrupatla(new, opp, old)

    @property
    def root(self) -> Tensor:
        return torch.where(self.cur[1].abs() < self.opp[1].abs(), self.cur, self.opp)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.cur, self.opp
