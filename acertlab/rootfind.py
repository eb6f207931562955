"""Roots of many scalar functions at once, each in its own bracket, on any device: `brentq`, `bisect`, `chandrupatla`.

A *point* is a (2, B) tensor: x in row 0, f(x) in row 1. A method is a state of a few points with two pure functions:
`propose` (has the element finished, and if not, where to look next) and `accept` (take in what was found there). Both
the path that drops finished elements and the path without host synchronisation run these same two functions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64)
_XTOL, _RTOL, _MAXITER = 2e-12, 8.881784197001252e-16, 100  # scipy.optimize.brentq's


class RootStatus(IntEnum):
    """How the search of one element ended; `.sentence` says it in words."""

    sentence: str

    def __new__(cls, value: int, sentence: str) -> "RootStatus":
        status = int.__new__(cls, value)
        status._value_, status.sentence = value, sentence
        return status

    CONVERGED = 0, "The root was found to the requested tolerance, or f is exactly 0 there."
    SIGN_ERROR = -1, "f has the same sign at both ends of the bracket."
    MAXITER = -2, "The maximum number of iterations was reached; the bracket still holds the root."
    NONFINITE = -3, "An end of the bracket (or their distance) is not finite, or f returned NaN."


_RUNNING = RootStatus.MAXITER  # what an element is called until something else happens to it


@dataclass(frozen=True)
class RootResult:
    """What a search found; every field is a (B,) tensor on the device of the bracket and carries no gradient.

    Attributes:
        root: the estimate; NaN where the status is SIGN_ERROR or NONFINITE.
        lower, upper: the last bracket, lower <= root <= upper, both evaluated, exactly one of `f_lower`, `f_upper`
            negative; but lower = upper = root where f_root is exactly 0. SIGN_ERROR or bad ends: the ends as given,
            sorted; after a NaN inside: the bracket before it.
        f_root, f_lower, f_upper: f evaluated at root, lower and upper.
        iterations, function_calls: int64, counted as scipy counts them (known `fa`, `fb` are no calls).
        status: int8, a `RootStatus`.
    """

    root: Tensor
    lower: Tensor
    upper: Tensor
    f_root: Tensor
    f_lower: Tensor
    f_upper: Tensor
    iterations: Tensor
    function_calls: Tensor
    status: Tensor

    @property
    def converged(self) -> Tensor:
        """(B,) bool: the status is CONVERGED."""
        return self.status == RootStatus.CONVERGED


def brentq(
    f: Callable[..., Tensor],
    a: Tensor | float,
    b: Tensor | float,
    *,
    args: tuple[Tensor, ...] = (),
    xtol: float = _XTOL,
    rtol: float = _RTOL,
    maxiter: int = _MAXITER,
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

    Returns:
        RootResult.

    Raises:
        TypeError, ValueError: an argument, or what f returned, is of the wrong kind, shape or range.

    Source: R. P. Brent, Algorithms for Minimization without Derivatives (1973), ch. 4; P. O. J. Scherer, Computational
        Physics, "Roots and Extremal Points"; decisions checked against scipy.optimize.brentq.
    """
    return _solve(_Brent, f, a, b, args, xtol, rtol, maxiter, fa, fb, compact)


def bisect(
    f: Callable[..., Tensor],
    a: Tensor | float,
    b: Tensor | float,
    *,
    args: tuple[Tensor, ...] = (),
    xtol: float = _XTOL,
    rtol: float = _RTOL,
    maxiter: int = _MAXITER,
    fa: Tensor | float | None = None,
    fb: Tensor | float | None = None,
    compact: bool = True,
) -> RootResult:
    """Bisection, element by element the same decisions as `scipy.optimize.bisect`; call and result as `brentq`.

    Stopping rule, asked after each evaluation of a midpoint: f(root) == 0, or the halved width < xtol + rtol |root|,
    where root is that midpoint. At MAXITER root is the end of the bracket on a's side, as in scipy.
    """
    return _solve(_Bisect, f, a, b, args, xtol, rtol, maxiter, fa, fb, compact)


def chandrupatla(
    f: Callable[..., Tensor],
    a: Tensor | float,
    b: Tensor | float,
    *,
    args: tuple[Tensor, ...] = (),
    xtol: float = _XTOL,
    rtol: float = _RTOL,
    maxiter: int = _MAXITER,
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
    """
    return _solve(_Chandrupatla, f, a, b, args, xtol, rtol, maxiter, fa, fb, compact)


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


@torch.no_grad()
def _solve(method, f, a, b, args, xtol, rtol, maxiter, fa, fb, compact) -> RootResult:
    """Checks the call, then runs one method over the batch (the public functions describe the arguments)."""
    _check_call(f, args, xtol, rtol, maxiter)
    a, b, fa, fb = _batch(a, b, fa, fb, args)
    info = torch.finfo(a.dtype)
    xtol, rtol = max(float(xtol), info.tiny), max(float(rtol), 4 * info.eps)
    calls_at_ends = (fa is None) + (fb is None)
    fa = _evaluate(f, a, args) if fa is None else fa
    fb = _evaluate(f, b, args) if fb is None else fb

    ends = torch.stack([a, fa]), torch.stack([b, fb])
    finite = (b - a).isfinite() & ~fa.isnan() & ~fb.isnan()
    exact = (fa == 0) | (fb == 0)
    started = finite & ~exact & ((fa < 0) != (fb < 0))
    status = torch.full_like(a, RootStatus.SIGN_ERROR, dtype=torch.int8).masked_fill(exact, RootStatus.CONVERGED)
    status = status.masked_fill(started, _RUNNING).masked_fill(~finite, RootStatus.NONFINITE)

    state, status, calls = _iterate(method, f, method.start(*ends), status, args, xtol, rtol, maxiter, compact)

    found = status == RootStatus.CONVERGED
    root = torch.where(started, state.root, torch.where(fa == 0, *ends))
    root = root.masked_fill(~found & (status != RootStatus.MAXITER), math.nan)
    one, two = (torch.where(root[1] == 0, root, end) for end in state.ends)
    lower, upper = torch.where(one[0] <= two[0], one, two), torch.where(one[0] <= two[0], two, one)
    iterations = calls if method.asks_last else calls + (found & started)  # asking opened one more iteration
    (x, fx), (x_lower, f_lower), (x_upper, f_upper) = root, lower, upper
    return RootResult(x, x_lower, x_upper, fx, f_lower, f_upper, iterations, calls + calls_at_ends, status)


def _iterate(method, f, state, status, args, xtol, rtol, maxiter, compact):
    """The loop of both paths. Returns the final state, status and calls of f (B,) of the full batch."""
    calls = torch.zeros_like(status, dtype=torch.int64)
    full, active = None, None  # once elements were dropped: everybody's last tensors; who is still carried along
    for n in range(maxiter + method.asks_last):
        state, x, done = state.propose(xtol, rtol)
        if n or method.asks_ends:
            status = status.masked_fill(done & (status == _RUNNING), RootStatus.CONVERGED)
        if n == maxiter:
            break
        alive = status == _RUNNING
        if compact:
            keep = alive.nonzero().squeeze(1)  # the one host synchronisation of an iteration
            if len(keep) == 0:
                break
            if args and len(keep) < len(alive):
                full = _write_back(full, active, (status, calls, *state))
                active = keep if active is None else active[keep]
                status, calls, x, alive, *state = (t.index_select(-1, keep) for t in (status, calls, x, alive, *state))
                state, args = method._make(state), tuple(arg.index_select(0, keep) for arg in args)
        x = torch.where(alive, x, state.cur[0])
        fx = _evaluate(f, x, args)
        calls = calls + alive
        status = status.masked_fill(alive & fx.isnan(), RootStatus.NONFINITE)
        # A finished element is given its own point once more, which changes neither its root nor its bracket.
        state = state.accept(torch.where(status == _RUNNING, torch.stack([x, fx]), state.cur))
    status, calls, *state = _write_back(full, active, (status, calls, *state))
    return method._make(state), status, calls


def _write_back(full, active, carried):
    """Puts what the carried elements have now into the tensors of the full batch."""
    if full is None:
        return carried
    return tuple(whole.index_copy(-1, active, part) for whole, part in zip(full, carried, strict=True))


def _evaluate(f, x: Tensor, args: tuple[Tensor, ...]) -> Tensor:
    """f(x, *args), checked, in x's dtype; f is not asked about an empty batch."""
    if x.numel() == 0:
        return x
    fx = f(x.clone(), *args)  # f may overwrite it
    if not isinstance(fx, Tensor) or fx.is_complex():
        raise TypeError(f"f returned {_kind(fx)}; accepted: a real tensor of x's shape")
    if fx.shape != x.shape or fx.device != x.device:
        raise ValueError(
            f"f returned shape {tuple(fx.shape)} on {fx.device} for x of shape {tuple(x.shape)} on {x.device}; "
            "accepted: the shape and device of x"
        )
    return fx.to(x.dtype)


def _check_call(f, args, xtol, rtol, maxiter) -> None:
    """Raises for the arguments that are not tensors of the batch."""
    if not callable(f):
        raise TypeError(f"f is {_kind(f)}; accepted: a function f(x, *args)")
    if not isinstance(args, tuple | list) or not all(isinstance(arg, Tensor) for arg in args):
        raise TypeError(f"args is {_kind(args)}; accepted: a tuple of tensors of leading dimension B")
    for name, value, kind, accepted in (
        ("xtol", xtol, Real, "a finite number > 0"),
        ("rtol", rtol, Real, "a finite number >= 0"),
        ("maxiter", maxiter, Integral, "an integer >= 0"),
    ):
        if isinstance(value, bool) or not isinstance(value, kind):
            raise TypeError(f"{name} is {_kind(value)}; accepted: {accepted}")
        if not 0 <= value < math.inf or (value == 0 and name == "xtol"):
            raise ValueError(f"{name} is {value}; accepted: {accepted}")


def _batch(a, b, fa, fb, args) -> list[Tensor | None]:
    """a, b, fa, fb as own (B,) tensors of one dtype and device (None stays None), or one clear error."""
    given = {"a": a, "b": b} | {name: value for name, value in (("fa", fa), ("fb", fb)) if value is not None}
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, Tensor | Real):
            raise TypeError(f"{name} is {_kind(value)}; accepted: a tensor (B,) or a number")
        if isinstance(value, Tensor) and value.dtype not in _DTYPES:
            raise TypeError(f"{name} has dtype {value.dtype}; accepted: torch.float32, torch.float64")
        if isinstance(value, Tensor) and value.dim() > 1:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; accepted: (B,) or a single number")

    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    tensors |= {f"args[{i}]": arg for i, arg in enumerate(args)}
    batched = {name: t for name, t in tensors.items() if t.dim() or name.startswith("args")}
    leader, size = next(((name, t.shape[:1]) for name, t in batched.items()), (None, (1,)))
    for name, t in batched.items():
        if t.dim() == 0 or t.shape[:1] != size:
            raise ValueError(f"{name} has shape {tuple(t.shape)}; accepted: the leading dimension of {leader}, {size}")
    anchor, like = next(iter(tensors.items()), (None, torch.empty(0, dtype=torch.float64)))
    for name in tensors.keys() & given.keys():
        if given[name].device != like.device:
            raise ValueError(f"{name} is on {given[name].device}; accepted: {like.device}, the device of {anchor}")
    dtypes = [t.dtype for name, t in tensors.items() if name in ("a", "b")] or [t.dtype for t in tensors.values()]
    dtype = max((d for d in dtypes if d in _DTYPES), key=_DTYPES.index, default=torch.float64)

    def own(value: Tensor | float) -> Tensor:
        value = value if isinstance(value, Tensor) else torch.full((), float(value), dtype=dtype, device=like.device)
        return value.to(dtype).expand(size).clone()

    return [own(given[name]) if name in given else None for name in ("a", "b", "fa", "fb")]


def _kind(value) -> str:
    """A value that is of the wrong type, for an error message."""
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{value!r} ({type(value).__name__})"
