"""Brent's method, decision by decision scipy's."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.radius.rootfind.bracketed import MAXITER, RTOL, XTOL, RootResult, solve
from acertlab.radius.rootfind.iterate import StoppingRule


def brentq(
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
    """Brent's method (Brent 1973, chapter 4), element by element the same decisions as `scipy.optimize.brentq`.

    Stopping rule: f(root) == 0, or |upper - lower| < xtol + rtol |root|, where root is the end with the smaller |f|.
    As in scipy the rule is asked at the start of an iteration, so not of what the last of `maxiter` evaluations found.

    Numerical events never raise: they end the search of their element alone, and `status` says how. A NaN from f is
    NONFINITE; an infinite value counts by its sign (no interpolation succeeds with it, so the step is a bisection).

    Args:
        f: f(x, *args), (B,) -> (B,), elementwise; called without gradient.
        a, b: ends of the brackets in either order, (B,) float32 or float64, or numbers; f(a), f(b) differ in sign.
        args: tensors of leading dimension B, cut down together with x as elements finish. With no args f always gets
            the full batch: finished elements at their last point again, which is neither used nor counted.
        xtol: absolute tolerance, > 0; raised to finfo(dtype).tiny.
        rtol: relative tolerance, >= 0; raised to 4 finfo(dtype).eps (scipy refuses less than that of float64).
        maxiter: largest number of iterations, >= 0.
        fa, fb: f(a) and f(b) if already known, (B,) or numbers: then not evaluated.
        compact: True stops when all are done, never evaluates a finished element again where there are args, and
            synchronises with the host once an iteration. False evaluates the full batch exactly `maxiter` times after
            the ends, and never synchronises.

    Source: R. P. Brent, Algorithms for Minimization without Derivatives (1973), ch. 4; P. O. J. Scherer, Computational
        Physics, "Roots and Extremal Points"; decisions checked against scipy.optimize.brentq.

    Example:
        >>> squares = torch.tensor([2.0, 9.0], dtype=torch.float64)
        >>> al.brentq(lambda t: t**2 - squares, torch.zeros_like(squares), squares).root  # both at once
        tensor([1.4142, 3.0000], dtype=torch.float64)
    """
    return solve(_Brent, f, (a, b, fa, fb), args, StoppingRule(xtol, rtol, maxiter), compact)


class _Brent(NamedTuple):
    """Invariants: the root lies between `cur` and `opp`; `pre` is the estimate before `cur` (or equals `opp`)."""

    cur: Tensor  # (2, B) newest point
    opp: Tensor  # (2, B) the other end of the bracket
    pre: Tensor  # (2, B)
    step: Tensor  # (B,) the step that led to cur
    last: Tensor  # (B,) the step before it

    asks_ends, asks_last = True, False  # is the stopping rule asked of the ends alone, of the last evaluation

    @classmethod
    def start(cls, a: Tensor, b: Tensor) -> "_Brent":
        return cls(b, a, a, b[0] - a[0], b[0] - a[0])

    def propose(self, xtol: float, rtol: float) -> tuple["_Brent", Tensor, Tensor]:
        swap = self.opp[1].abs() < self.cur[1].abs()  # cur becomes the better end
        pre = torch.where(swap, self.cur, self.pre)
        cur, opp = torch.where(swap, self.opp, self.cur), torch.where(swap, self.cur, self.opp)
        (x, fx), (dx_pre, df_pre), (dx_opp, df_opp) = cur, pre - cur, opp - cur
        delta = (x.abs() * rtol + xtol) * 0.5
        half = dx_opp * 0.5
        size = half.abs()
        done = (fx == 0) | (size < delta)
        slope_pre, slope_opp = df_pre / dx_pre, df_opp / dx_opp
        quadratic = fx * (opp[1] * slope_opp - pre[1] * slope_pre) / (slope_opp * slope_pre * (opp[1] - pre[1]))
        try_ = -torch.where(pre[0] == opp[0], fx * dx_pre / df_pre, quadratic)  # two points left: the secant
        last = self.last.abs()
        good = (last > delta) & (fx.abs() < pre[1].abs())  # the last steps made progress
        good &= 2 * try_.abs() < torch.minimum(last, 3 * size - delta)  # False for NaN: bisect
        last, step = torch.where(good, self.step, half), torch.where(good, try_, half)
        x = x + torch.where(step.abs() > delta, step, torch.copysign(delta, half))
        return _Brent(cur, opp, pre, step, last), x, done

    def accept(self, new: Tensor) -> "_Brent":
        crossed = (new[1] < 0) != (self.cur[1] < 0)
        step = new[0] - self.cur[0]
        return _Brent(
            cur=new,
            opp=torch.where(crossed, self.cur, self.opp),
            pre=self.cur,
            step=torch.where(crossed, step, self.step),
            last=torch.where(crossed, step, self.last),
        )

    @property
    def root(self) -> Tensor:
        return self.cur

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        return self.cur, self.opp
