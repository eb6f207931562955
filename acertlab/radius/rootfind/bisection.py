"""Bisection, as scipy.optimize.bisect."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.radius.rootfind.bracketed import MAXITER, RTOL, XTOL, RootResult, solve
from acertlab.radius.rootfind.iterate import StoppingRule


def bisect(
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
    """Bisection, element by element the same decisions as `scipy.optimize.bisect`; call and result as `brentq`.

    Stopping rule, asked after each evaluation of a midpoint: f(root) == 0, or the halved width < xtol + rtol |root|,
    where root is that midpoint. At MAXITER root is the end of the bracket on a's side, as in scipy.

    Example:
        >>> al.bisect(lambda t: t**2 - 2, 0.0, 2.0).root
        tensor([1.4142], dtype=torch.float64)
    """
    return solve(_Bisect, f, (a, b, fa, fb), args, StoppingRule(xtol, rtol, maxiter), compact)


class _Bisect(NamedTuple):
    """Invariants: the root lies between `near`, where f has the sign of f(a), and `far`."""

    cur: Tensor  # (2, B) the midpoint if it is the root, else near
    near: Tensor  # (2, B)
    far: Tensor  # (2, B)
    half: Tensor  # (B,) signed distance from near to the last midpoint

    asks_ends, asks_last = False, True

    @classmethod
    def start(cls, a: Tensor, b: Tensor) -> "_Bisect":
        return cls(a, a, b, b[0] - a[0])

    def propose(self, xtol: float, rtol: float) -> tuple["_Bisect", Tensor, Tensor]:
        done = (self.cur[1] == 0) | (self.half.abs() < self.cur[0].abs() * rtol + xtol)
        half = self.half * 0.5
        return self._replace(cur=torch.where(done, self.cur, self.near), half=half), self.near[0] + half, done

    def accept(self, new: Tensor) -> "_Bisect":
        same = (new[1] < 0) == (self.near[1] < 0)
        return _Bisect(new, torch.where(same, new, self.near), torch.where(same, self.far, new), self.half)

    @property
    def root(self) -> Tensor:
        return self.cur

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.near, self.far
