"""Where rising functions cross zero: a safeguarded secant in log eps against log(f(eps) - f(0)), on whole batches.

A certified margin grows from f(0) < 0 like a power of eps: with exponent 1 while no ReLU changes its state, with a much
larger one where many do. On double logarithmic axes that is nearly a line, so the secant converges from its first
steps, where a secant in eps itself starts badly. The exponent is each element's own, known from its second evaluation
on, so that no element's result depends on the others. As in `acertlab.rootfind` two pure functions, `propose` and
`accept`, serve both the path that drops finished elements and the one without host synchronisation.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EXPONENT = 1.75  # before an element has two points of its own; margins of trained networks have 1 to 5
LINEAR = 512  # next to its root f is a line, to this share of the distance from which the line is known
PATIENCE = 12  # evaluations; what is not done by then, such as a jump, is bisected every other time
DOUBT = 0.3  # relative error of a slope that is not an element's own, and of one that spans a kink
BEYOND = 0.15  # of the width that a bracket should have: how far beyond the root its other end is looked for
GUARD = 32  # units of rounding that the certified end keeps from the root


def guard(eps: Tensor, tolerance: Tensor) -> Tensor:
    """How far both ends of a bracket should be from a root at ``eps``: roundings must not decide their signs."""
    return torch.minimum(GUARD * torch.finfo(eps.dtype).eps * eps, 0.3 * tolerance)


class Trail(NamedTuple):
    """What is known of each element, (B,) each. Invariant: f_lower < 0, and f_upper > 0 where upper is finite."""

    lower: Tensor  # largest eps seen with f < 0; at first 0
    f_lower: Tensor
    upper: Tensor  # smallest eps seen with f > 0; inf: none yet
    f_upper: Tensor
    u: Tensor  # log of the newest eps; NaN before the first
    g: Tensor  # log((f - f(0)) / -f(0)) there: 0 at the root
    slope: Tensor  # du / dg through the last two points, or 1 / exponent
    step: Tensor  # |log| length of the last step of the secant; 0 before the first
    earlier: Tensor  # and of the one before it
    aim: Tensor  # the sign of f that the newest eps was chosen to have; 0: either
    misses: Tensor  # how often in a row f had the other sign

    @classmethod
    def start(
        cls,
        lower: Tensor,
        f_lower: Tensor,
        guess: Tensor | None = None,
        slope: Tensor | float = 1 / EXPONENT,
    ) -> "Trail":
        """Before any evaluation above ``lower``; the first is at ``guess``, or, where that is none, at the cap."""
        zero, inf = torch.zeros_like(lower), torch.full_like(lower, math.inf)
        u = torch.full_like(lower, math.nan) if guess is None else guess.log()
        return cls(lower, f_lower, inf, inf, u, zero, zero + slope, zero, zero, zero, zero)

    def done(self, cap: float, xtol: float, rtol: float) -> Tensor:
        """(B,) bool: the bracket is narrow, with room for one more guard; or f < 0 at the cap."""
        tolerance = xtol + rtol * self.lower
        narrow = self.upper - self.lower + guard(self.lower, tolerance) <= tolerance
        return narrow | (self.lower >= cap)

    def estimate(self) -> Tensor:
        """(B,) where the secant crosses zero; NaN before the first point."""
        return torch.exp(self.u - self.g * self.slope)

    def crossing(self, f_zero: Tensor) -> Tensor:
        """(B,) where the line through the ends of the bracket crosses zero; NaN where there is no upper end."""
        grown, more = (torch.log((f - f_zero) / -f_zero) for f in (self.f_lower, self.f_upper))
        power = (self.lower.log() - grown * (self.upper / self.lower).log() / (more - grown)).exp()
        line = self.lower + (self.upper - self.lower) * (self.f_lower / (self.f_lower - self.f_upper))
        return torch.where(power.isfinite(), power, line).clamp(self.lower, self.upper)  # lower is 0 at first

    def error(self, first: float = math.inf, least: float = 0.0) -> Tensor:
        """(B,) that of the estimate, predicted from the shrinking of the last two steps; inf while nothing is known.

        ``first``: relative error of the slope before an element has two points of its own; ``least``: and ever after,
        since two points on either side of a kink may deceive.
        """
        length = (self.g * self.slope).abs()
        share = torch.where(self.step > 0, length / self.step, first).clamp(min=least)
        error = torch.nan_to_num((self.estimate() - self.u.exp()).abs() * share, nan=math.inf)
        return torch.where((length == 0) & (self.step == 0), math.inf, error)  # a guess, not evaluated yet

    def propose(self, cap: float, xtol: float, rtol: float, bisect: bool = False) -> tuple["Trail", Tensor]:
        """Where to look next.

        Far from the root: at the secant's estimate. Once its error, as the lengths of the last steps predict it, is far
        below the tolerance: less than half a tolerance above the estimate, unless the bracket has an upper end that
        will do; and then a guard below the estimate, which now is exact where f is linear so close to its root: the
        radius. Both distances grow fourfold as often as they miss the sign they aim at. Where the secant fails (its
        estimate is outside the bracket, or its steps do not shrink), or with ``bisect``: in the middle of the bracket,
        or at the cap.
        """
        upper, eps = self.upper, torch.finfo(self.lower.dtype).eps
        guess, length = self.estimate(), (self.g * self.slope).abs()
        tolerance = xtol + rtol * torch.where(self.lower > 0, self.lower, guess)
        growth = 4.0**self.misses

        near = self.error() < tolerance / 4
        high = upper - guess + guard(guess, tolerance) < 0.9 * tolerance  # its uncertified end will do
        away = torch.maximum(guard(guess, tolerance), guess * length / LINEAR)
        below = torch.minimum(guess, upper) - away * growth
        above = torch.maximum(guess, self.lower) + (0.34 * tolerance).clamp(min=4 * eps * guess) * growth
        point = torch.where(near, torch.where(high, below, above), guess)
        trail, point, failed = self._within(point, cap, near, bisect)
        aim = torch.where(near & ~failed, torch.where(high, -1.0, 1.0), 0.0).to(point)
        return trail._replace(aim=aim), point

    def brace(self, cap: float, width: Tensor, left: float) -> tuple["Trail", Tensor]:
        """Where to look next for a bracket of ``width`` (B,): fewer evaluations than by `propose`, if it is wide.

        At the secant's estimate; but once its error is far below the width, beyond it, on the side where the bracket is
        wide. In any case so close to the bracket's middle that bisection could end the search in ``left`` more
        evaluations (the projection of the ITP method: Oliveira and Takahashi, ACM TOMS 47(1), 2020).
        """
        guess = self.estimate()
        near = self.error(DOUBT, DOUBT) < width / 4
        away = BEYOND * width * 4.0**self.misses
        above = (guess - self.lower <= width / 2) | ((self.upper - guess > width / 2) & (self.g < 0))
        beyond = torch.where(above, torch.maximum(guess, self.lower) + away, torch.minimum(guess, self.upper) - away)
        trail, point, failed = self._within(torch.where(near, beyond, guess), cap, near, bisect=False)
        aim = torch.where(near & ~failed, torch.where(above, 1.0, -1.0), 0.0).to(point)
        half = (self.upper.clamp(max=cap) - self.lower) / 2
        reach = (width * 2.0**left - half).clamp(min=0.0)
        point = point.clamp(self.lower + half - reach, self.lower + half + reach)
        return trail._replace(aim=aim), torch.where(self.upper.isinf() & (2 * half <= width), cap, point)

    def _within(self, point: Tensor, cap: float, near: Tensor, bisect: bool) -> tuple["Trail", Tensor, Tensor]:
        """The step to ``point``, or to the middle where that fails; and where it did."""
        lower, upper, length = self.lower, self.upper, (self.g * self.slope).abs()
        lame = (length > self.earlier) & (self.earlier > 0) & ~near
        failed = ~(point > lower) | ~(point < upper) | lame | bisect
        middle = torch.where(upper > 8 * lower, torch.maximum((lower * upper).sqrt(), upper / 8), (lower + upper) / 2)
        point = torch.where(failed, middle, point)
        at_cap = point >= cap * (1 - 8 * torch.finfo(lower.dtype).eps)  # exp(log(cap)) may be a rounding below it
        point = torch.where(upper.isinf() & (failed | at_cap), cap, point)
        return self._replace(step=length, earlier=torch.where(failed, 0.0, self.step)), point, failed

    def accept(self, eps: Tensor, f: Tensor, f_zero: Tensor) -> "Trail":
        """Takes in f(eps)."""
        negative = f < 0
        u, g = eps.log(), torch.log((f - f_zero) / -f_zero)
        slope = (u - self.u) / (g - self.g)
        missed = (self.aim != 0) & (negative != (self.aim < 0))
        return self._replace(
            lower=torch.where(negative, eps, self.lower),
            f_lower=torch.where(negative, f, self.f_lower),
            upper=torch.where(negative, self.upper, eps),
            f_upper=torch.where(negative, self.f_upper, f),
            u=u,
            g=g,
            slope=torch.where(slope.isfinite() & (slope > 0), slope, self.slope),
            misses=torch.where(missed, self.misses + 1, 0.0),
        )


def cross(
    f: Callable[..., Tensor],
    trail: Trail,
    f_zero: Tensor,
    cap: float,
    args: tuple[Tensor, ...],
    *,
    xtol: float,
    rtol: float,
    maxiter: int,
) -> tuple[Trail, Tensor]:
    """Narrows every bracket to ``xtol + rtol * lower``, or finds f < 0 at the cap; finished elements are dropped.

    Args:
        f: f(eps, *args), (B,) -> (B,); never 0 or NaN. Where it is not rising, a crossing is found all the same.
        trail: of `Trail.start`.
        f_zero: (B,) f at 0, < 0.
        cap: largest eps of interest.
        args: tensors of leading dimension B, cut down together with eps.
        xtol, rtol: tolerances of the bracket.
        maxiter: evaluations at most, the one at the cap not counted.

    Returns:
        The trail, and (B,) int64 evaluations. What is not `Trail.done` then has taken all of its evaluations; its
        upper end is finite.
    """

    def propose(trail: Trail, n: int) -> tuple[Trail, Tensor]:
        trail, point = trail.propose(cap, xtol, rtol, bisect=n > PATIENCE and n % 2 == 0)
        return trail, torch.where(trail.upper.isinf(), cap, point) if n == maxiter else point

    return advance(f, trail, f_zero, args, maxiter + 1, lambda trail: trail.done(cap, xtol, rtol), propose)


def advance(
    f: Callable[..., Tensor],
    trail: Trail,
    f_zero: Tensor,
    args: tuple[Tensor, ...],
    rounds: int,
    done: Callable[[Trail], Tensor],
    propose: Callable[[Trail, int], tuple[Trail, Tensor]],
    sizes: Sequence[int] = (),
) -> tuple[Trail, Tensor]:
    """Rounds of evaluations, at ``propose(trail, round)``, of elements that are not ``done(trail)``; see `cross`.

    Args:
        sizes: where the host shall not wait to hear how many are left: with how many elements each round goes on, none
            larger than the one before. Those whose brackets are widest do; the others stay as they are.
    """
    calls = torch.zeros_like(f_zero, dtype=torch.int64)
    whole, active = None, None
    for n in range(rounds):
        todo = ~done(trail)
        # the first is the one host synchronisation of a round
        keep = widest(trail, todo, sizes[n]) if sizes else todo.nonzero().squeeze(1)
        if not len(keep):
            break
        if len(keep) < len(trail.lower):
            whole = _write_back(whole, active, (calls, *trail))
            active = keep if active is None else active[keep]
            calls, f_zero, todo, *rows = (t.index_select(0, keep) for t in (calls, f_zero, todo, *trail))
            trail, args = Trail._make(rows), tuple(arg.index_select(0, keep) for arg in args)
        new, point = propose(trail, n)
        new = new.accept(point, f(point, *args), f_zero)
        trail = Trail._make(torch.where(todo, b, a) for a, b in zip(trail, new, strict=True)) if sizes else new
        calls = calls + todo
    calls, *rows = _write_back(whole, active, (calls, *trail))
    return Trail._make(rows), calls


def widest(trail: Trail, todo: Tensor, size: int) -> Tensor:
    """The indices of ``size`` elements: those ``todo`` with the widest brackets, and others where there are fewer."""
    if size >= len(todo):
        return torch.arange(len(todo), device=todo.device)
    width = torch.where(todo, trail.upper - trail.lower, -1.0)
    return width.sort(descending=True, stable=True).indices[:size]


def _write_back(whole: tuple | None, active: Tensor | None, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Puts what the remaining elements have now into the tensors of all."""
    if whole is None:
        return rows
    return tuple(old.index_copy(0, active, new) for old, new in zip(whole, rows, strict=True))
