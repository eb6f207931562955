"""Roots of many scalar functions at once, each in a bracket of its own: what brentq, bisect and chandrupatla share.

A *point* is a (2, B) tensor: x in row 0, f(x) in row 1. A method is a state of a few points with two pure functions:
`propose` (has the element finished, and if not, where to look next) and `accept` (take in what was found there).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from numbers import Real
from typing import Any, Self

import torch
from torch import Tensor

from acertlab._validation import Within, check
from acertlab.radius.rootfind.iterate import Rows, StoppingRule, iterate, unfinished

_DTYPES = (torch.float32, torch.float64)
XTOL, RTOL, MAXITER = 2e-12, 8.881784197001252e-16, 100  # scipy.optimize.brentq's


class Status(IntEnum):
    """A number, and a `.sentence` that says it in words."""

    sentence: str

    def __new__(cls, value: int, sentence: str) -> Self:
        status = int.__new__(cls, value)
        status._value_, status.sentence = value, sentence
        return status


class RootStatus(Status):
    """How the search of one element ended; `.sentence` says it in words.

    Example:
        >>> al.RootStatus.SIGN_ERROR.sentence
        'f has the same sign at both ends of the bracket.'
    """

    CONVERGED = 0, "The root was found to the requested tolerance, or f is exactly 0 there."
    SIGN_ERROR = -1, "f has the same sign at both ends of the bracket."
    MAXITER = -2, "The maximum number of iterations was reached; the bracket still holds the root."
    NONFINITE = -3, "An end of the bracket (or their distance) is not finite, or f returned NaN."


Ends = tuple[Tensor | float, Tensor | float, Tensor | float | None, Tensor | float | None]  # a, b, f(a), f(b)
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

    Example:
        >>> found = al.bisect(lambda t: t**2 - 2, 0.0, 2.0)
        >>> found.lower <= 2**0.5 <= found.upper
        tensor([True])
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


@torch.no_grad()
def solve(
    method: Any, f: Callable[..., Tensor], ends: Ends, args: Rows, stop: StoppingRule, compact: bool
) -> RootResult:
    """Checks the call, then runs one method over the batch; see `brentq` for the arguments.

    ``method`` is the class of its states: a NamedTuple of points (2, B) and numbers (B,), such as `_Brent`.
    """
    _check_call(f, args, stop)
    a, b, fa, fb = _batch(ends, args)
    info = torch.finfo(a.dtype)
    xtol, rtol = max(float(stop.xtol), info.tiny), max(float(stop.rtol), 4 * info.eps)
    calls_at_ends = (fa is None) + (fb is None)
    fa = _evaluate(f, a, args) if fa is None else fa
    fb = _evaluate(f, b, args) if fb is None else fb

    points = torch.stack([a, fa]), torch.stack([b, fb])
    finite = (b - a).isfinite() & ~fa.isnan() & ~fb.isnan()
    exact = (fa == 0) | (fb == 0)
    started = finite & ~exact & ((fa < 0) != (fb < 0))
    status = torch.full_like(a, RootStatus.SIGN_ERROR, dtype=torch.int8).masked_fill(exact, RootStatus.CONVERGED)
    status = status.masked_fill(started, _RUNNING).masked_fill(~finite, RootStatus.NONFINITE)

    def proposed(state: Any, status: Tensor, ask: bool) -> Rows:
        state, x, done = state.propose(xtol, rtol)
        status = status.masked_fill(done & (status == _RUNNING), RootStatus.CONVERGED) if ask else status
        return status, x, *state

    def step(rows: Rows, todo: Tensor, args: Rows, n: int) -> Rows:
        status, x, *rest = rows
        state = method._make(rest)
        x = torch.where(todo, x, state.cur[0])
        fx = _evaluate(f, x, args)
        status = status.masked_fill(todo & fx.isnan(), RootStatus.NONFINITE)
        # A finished element is given its own point once more, which changes neither its root nor its bracket.
        state = state.accept(torch.where(status == _RUNNING, torch.stack([x, fx]), state.cur))
        last = n + 1 == stop.maxiter and not state.asks_last
        return (status, x, *state) if last else proposed(state, status, ask=True)

    def select(rows: Rows, todo: Tensor, n: int) -> Tensor | None:
        left = unfinished(rows, todo, n) if compact else None
        return None if left is not None and len(left) and not args else left  # with no args f wants the full batch

    state = method.start(*points)
    looks = stop.maxiter or state.asks_last
    rows = proposed(state, status, ask=state.asks_ends) if looks else (status, a, *state)
    (status, _, *rest), calls = iterate(rows, args, stop.maxiter, lambda rows: rows[0] == _RUNNING, step, select)
    state = method._make(rest)

    found = status == RootStatus.CONVERGED
    root = torch.where(started, state.root, torch.where(fa == 0, *points))
    root = root.masked_fill(~found & (status != RootStatus.MAXITER), math.nan)
    one, two = (torch.where(root[1] == 0, root, end) for end in state.ends)
    lower, upper = torch.where(one[0] <= two[0], one, two), torch.where(one[0] <= two[0], two, one)
    iterations = calls if state.asks_last else calls + (found & started)  # asking opened one more iteration
    (x, fx), (x_lower, f_lower), (x_upper, f_upper) = root, lower, upper
    return RootResult(x, x_lower, x_upper, fx, f_lower, f_upper, iterations, calls + calls_at_ends, status)


def _evaluate(f: Callable[..., Tensor], x: Tensor, args: Rows) -> Tensor:
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


def _check_call(f: object, args: object, stop: StoppingRule) -> None:
    """Raises for the arguments that are not tensors of the batch."""
    if not callable(f):
        raise TypeError(f"f is {_kind(f)}; accepted: a function f(x, *args)")
    if not isinstance(args, tuple | list) or not all(isinstance(arg, Tensor) for arg in args):
        raise TypeError(f"args is {_kind(args)}; accepted: a tuple of tensors of leading dimension B")
    check("xtol", stop.xtol, Within(0, open_low=True))
    check("rtol", stop.rtol, Within(0))
    check("maxiter", stop.maxiter, Within(0, kind=int))


def _batch(ends: Ends, args: Rows) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """a, b, fa, fb as own (B,) tensors of one dtype and device (None stays None), or one clear error."""
    a, b, fa, fb = ends
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
        if tensors[name].device != like.device:
            raise ValueError(f"{name} is on {tensors[name].device}; accepted: {like.device}, the device of {anchor}")
    dtypes = [t.dtype for name, t in tensors.items() if name in ("a", "b")] or [t.dtype for t in tensors.values()]
    dtype = max((d for d in dtypes if d in _DTYPES), key=_DTYPES.index, default=torch.float64)

    def own(value: Tensor | float) -> Tensor:
        value = value if isinstance(value, Tensor) else torch.full((), float(value), dtype=dtype, device=like.device)
        return value.to(dtype).expand(size).clone()

    return own(a), own(b), None if fa is None else own(fa), None if fb is None else own(fb)


def _kind(value: object) -> str:
    """A value that is of the wrong type, for an error message."""
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"{value!r} ({type(value).__name__})"
