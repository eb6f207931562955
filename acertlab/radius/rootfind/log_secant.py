"""The log secant: a safeguarded secant in log eps against log(f(eps) - f(0)), on whole batches; the default solver.

A certified margin grows from f(0) < 0 like a power of eps: with exponent 1 while no ReLU changes its state, with a much
larger one where many do. On double logarithmic axes that is nearly a line, so the secant converges from its first
steps, where a secant in eps itself starts badly. The exponent is each element's own, known from its second evaluation
on, so that no element's result depends on the others.
"""

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from acertlab.radius.rootfind.iterate import (
    Bracket,
    RootEstimate,
    RootProblem,
    Rows,
    Sizes,
    StoppingRule,
    iterate,
    unfinished,
)

EXPONENT = 1.75  # before an element has two points of its own; margins of trained networks have 1 to 5
LINEAR = 512  # next to its root f is a line, to this share of the distance from which the line is known
PATIENCE = 12  # evaluations; what is not done by then, such as a jump, is bisected every other time
DOUBT = 0.3  # relative error of a slope that is not an element's own, and of one that spans a kink
BEYOND = 0.15  # of the width that a bracket should have: how far beyond the root its other end is looked for
GUARD = 32  # units of rounding that the certified end keeps from the root
SLACK = 4  # evaluations of an estimate more than a bisection would take, at most: it may be lucky at first


def rounding_guard(eps: Tensor, tolerance: Tensor, unit: Tensor | float = 0.0) -> Tensor:
    """How far both ends of a bracket should be from a root at ``eps``: roundings must not decide their signs.

    ``unit`` (B,) is one rounding of f as a distance in eps; one of eps itself counts in any case.
    """
    return torch.minimum(GUARD * (torch.finfo(eps.dtype).eps * eps).clamp(min=unit), 0.3 * tolerance)


class SecantState(NamedTuple):
    """What is known of each element, (B,) each. Invariant: f_lower < 0, and f_upper > 0 where upper is finite."""

    lower: Tensor  # largest eps seen with f < 0; at first 0
    f_lower: Tensor
    upper: Tensor  # smallest eps seen with f > 0; inf: none yet
    f_upper: Tensor
    log_eps: Tensor  # of the newest eps; NaN before the first
    log_growth: Tensor  # log((f - f(0)) / -f(0)) there: 0 at the root
    slope: Tensor  # d log_eps / d log_growth through the last two points, or 1 / exponent
    step: Tensor  # |log| length of the last step of the secant; 0 before the first
    earlier: Tensor  # and of the one before it
    aim: Tensor  # the sign of f that the newest eps was chosen to have; 0: either
    misses: Tensor  # how often in a row f had the other sign

    @classmethod
    def start(
        cls, lower: Tensor, f_lower: Tensor, guess: Tensor | None = None, slope: Tensor | None = None
    ) -> "SecantState":
        """Before any evaluation above ``lower``; the first is at ``guess``, or, where that is none, at the cap."""
        zero, inf = torch.zeros_like(lower), torch.full_like(lower, math.inf)
        log_eps = torch.full_like(lower, math.nan) if guess is None else guess.log()
        slope = zero + (1 / EXPONENT if slope is None else slope)
        return cls(lower, f_lower, inf, inf, log_eps, zero, slope, step=zero, earlier=zero, aim=zero, misses=zero)

    def done(self, cap: float, xtol: float, rtol: float) -> Tensor:
        """(B,) bool: the bracket is narrow, with room for one more guard; or f < 0 at the cap."""
        tolerance = xtol + rtol * self.lower
        narrow = self.upper - self.lower + rounding_guard(self.lower, tolerance) <= tolerance
        return narrow | (self.lower >= cap)

    def estimate(self) -> Tensor:
        """(B,) where the secant crosses zero; NaN before the first point."""
        return torch.exp(self.log_eps - self.log_growth * self.slope)

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
        length = (self.log_growth * self.slope).abs()
        share = torch.where(self.step > 0, length / self.step, first).clamp(min=least)
        error = torch.nan_to_num((self.estimate() - self.log_eps.exp()).abs() * share, nan=math.inf)
        return torch.where((length == 0) & (self.step == 0), math.inf, error)  # a guess, not evaluated yet

    def propose(self, cap: float, xtol: float, rtol: float, bisect: bool = False) -> tuple["SecantState", Tensor]:
        """Where to look next.

        Far from the root: at the secant's estimate. Once its error, as the lengths of the last steps predict it, is far
        below the tolerance: less than half a tolerance above the estimate, unless the bracket has an upper end that
        will do; and then a guard below the estimate, which now is exact where f is linear so close to its root: the
        radius. Both distances grow fourfold as often as they miss the sign they aim at. Where the secant fails (its
        estimate is outside the bracket, or its steps do not shrink), or with ``bisect``: in the middle of the bracket,
        or at the cap.
        """
        upper, eps = self.upper, torch.finfo(self.lower.dtype).eps
        guess, length = self.estimate(), (self.log_growth * self.slope).abs()
        tolerance = xtol + rtol * torch.where(self.lower > 0, self.lower, guess)
        growth = 4.0**self.misses

        near = self.error() < tolerance / 4
        high = upper - guess + rounding_guard(guess, tolerance) < 0.9 * tolerance  # its uncertified end will do
        away = torch.maximum(rounding_guard(guess, tolerance), guess * length / LINEAR)
        below = torch.minimum(guess, upper) - away * growth
        above = torch.maximum(guess, self.lower) + (0.34 * tolerance).clamp(min=4 * eps * guess) * growth
        point = torch.where(near, torch.where(high, below, above), guess)
        state, point, failed = self._within(point, cap, near, bisect)
        aim = torch.where(near & ~failed, torch.where(high, -1.0, 1.0), 0.0).to(point)
        return state._replace(aim=aim), point

    def propose_for_width(self, cap: float, width: Tensor, left: float) -> tuple["SecantState", Tensor]:
        """Where to look next for a bracket of ``width`` (B,): fewer evaluations than by `propose`, if it is wide.

        At the secant's estimate; but once its error is far below the width, beyond it, on the side where the bracket is
        wide. In any case so close to the bracket's middle that bisection could end the search in ``left`` more
        evaluations (the projection of the ITP method: Oliveira and Takahashi, ACM TOMS 47(1), 2020).
        """
        guess = self.estimate()
        near = self.error(DOUBT, DOUBT) < width / 4
        away = BEYOND * width * 4.0**self.misses
        above = (guess - self.lower <= width / 2) | ((self.upper - guess > width / 2) & (self.log_growth < 0))
        beyond = torch.where(above, torch.maximum(guess, self.lower) + away, torch.minimum(guess, self.upper) - away)
        state, point, failed = self._within(torch.where(near, beyond, guess), cap, near, bisect=False)
        aim = torch.where(near & ~failed, torch.where(above, 1.0, -1.0), 0.0).to(point)
        half = (self.upper.clamp(max=cap) - self.lower) / 2
        reach = (width * 2.0**left - half).clamp(min=0.0)
        point = point.clamp(self.lower + half - reach, self.lower + half + reach)
        return state._replace(aim=aim), torch.where(self.upper.isinf() & (2 * half <= width), cap, point)

    def _within(self, point: Tensor, cap: float, near: Tensor, bisect: bool) -> tuple["SecantState", Tensor, Tensor]:
        """The step to ``point``, or to the middle where that fails; and where it did."""
        lower, upper, length = self.lower, self.upper, (self.log_growth * self.slope).abs()
        slow = (length > self.earlier) & (self.earlier > 0) & ~near
        failed = ~(point > lower) | ~(point < upper) | slow | bisect
        middle = torch.where(upper > 8 * lower, torch.maximum((lower * upper).sqrt(), upper / 8), (lower + upper) / 2)
        point = torch.where(failed, middle, point)
        at_cap = point >= cap * (1 - 8 * torch.finfo(lower.dtype).eps)  # exp(log(cap)) may be a rounding below it
        point = torch.where(upper.isinf() & (failed | at_cap), cap, point)
        return self._replace(step=length, earlier=torch.where(failed, 0.0, self.step)), point, failed

    def accept(self, eps: Tensor, f: Tensor, f_zero: Tensor) -> "SecantState":
        """Takes in f(eps)."""
        negative = f < 0
        log_eps, log_growth = eps.log(), torch.log((f - f_zero) / -f_zero)
        slope = (log_eps - self.log_eps) / (log_growth - self.log_growth)
        missed = (self.aim != 0) & (negative != (self.aim < 0))
        return self._replace(
            lower=torch.where(negative, eps, self.lower),
            f_lower=torch.where(negative, f, self.f_lower),
            upper=torch.where(negative, self.upper, eps),
            f_upper=torch.where(negative, self.f_upper, f),
            log_eps=log_eps,
            log_growth=log_growth,
            slope=torch.where(slope.isfinite() & (slope > 0), slope, self.slope),
            misses=torch.where(missed, self.misses + 1, 0.0),
        )


class LogSecant:
    """The log secant as a `acertlab.radius.rootfind.solvers.Solver`."""

    extrapolates: ClassVar[bool] = True

    def narrow(self, problem: RootProblem, start: Bracket, stop: StoppingRule) -> Bracket:
        """Brackets no wider than the tolerance, or f < 0 at the cap; see `Solver.narrow`.

        What is not narrow then has taken all of its evaluations; its upper end is finite.
        """
        xtol, rtol = stop.xtol, max(stop.rtol, 8 * torch.finfo(start.lower.dtype).eps)
        cap = torch.tensor(problem.cap, dtype=start.lower.dtype).item()  # as it is evaluated

        def going_on(state: SecantState) -> Tensor:
            return ~state.done(cap, xtol, rtol)

        def propose(state: SecantState, n: int) -> tuple[SecantState, Tensor]:
            state, point = state.propose(cap, xtol, rtol, bisect=n > PATIENCE and n % 2 == 0)
            return state, torch.where(state.upper.isinf(), cap, point) if n == stop.maxiter else point

        state = SecantState.start(start.lower, start.f_lower, problem.guess, problem.slope)
        state, calls = _iterate(problem, state, stop.maxiter + 1, going_on, propose)
        narrow = state.done(cap, xtol, rtol) & state.upper.isfinite()
        return Bracket(state.lower, state.f_lower, state.upper, state.f_upper, narrow, calls)

    def estimate(self, problem: RootProblem, stop: StoppingRule, wanted: Tensor | None, size: Sizes) -> RootEstimate:
        """Roots inside brackets of the tolerance's width, few of which take more passes than a bisection would.

        See `Solver.estimate`. No error is larger than the tolerance, unless maxiter comes first; most are far smaller.
        """
        f_zero, cap, xtol = problem.at_zero, problem.cap, stop.xtol
        rtol = max(stop.rtol, 8 * torch.finfo(f_zero.dtype).eps)
        most = math.log2(max(1.0, cap / xtol)) + SLACK
        rounds = min(stop.maxiter, math.ceil(most)) + 1  # and the cap

        def going_on(state: SecantState) -> Tensor:
            return ~((state.upper - state.lower <= xtol + rtol * state.lower) | (state.lower >= cap))

        def propose(state: SecantState, n: int) -> tuple[SecantState, Tensor]:
            return state.propose_for_width(cap, xtol + rtol * state.lower, most - n - 1)

        lower = torch.zeros_like(f_zero)
        if wanted is not None:
            lower = lower.masked_fill(~wanted, cap)  # done
            size = size or (lambda n: len(f_zero))
        state = SecantState.start(lower, f_zero, problem.guess, problem.slope)
        state, calls = _iterate(problem, state, rounds, going_on, propose, size)
        root = torch.where(state.upper.isfinite(), state.crossing(f_zero), (state.lower + cap) / 2)
        root = torch.where(state.lower < cap, root, cap)
        return RootEstimate(root, state.log_eps, state.log_growth, calls)


def _iterate(
    problem: RootProblem,
    state: SecantState,
    rounds: int,
    going_on: Callable[[SecantState], Tensor],
    propose: Callable[[SecantState, int], tuple[SecantState, Tensor]],
    size: Sizes = None,
) -> tuple[SecantState, Tensor]:
    """Rounds of evaluations, where ``propose`` says, of the elements that are ``going_on``.

    With ``size`` the host does not wait to hear how many are left: it says with how many elements each round goes on.
    Those whose brackets are widest do; the others stay as they are.
    """

    def step(rows: Rows, todo: Tensor, args: Rows, n: int) -> Rows:
        f_zero, *others = args
        old = SecantState(*rows)
        new, point = propose(old, n)
        new = new.accept(point, problem.f(point, *others), f_zero)
        return tuple(torch.where(todo, b, a) for a, b in zip(old, new, strict=True)) if size else new

    def select(rows: Rows, todo: Tensor, n: int) -> Tensor:
        return widest_brackets(SecantState(*rows), todo, size(n)) if size else unfinished(rows, todo, n)

    args = (problem.at_zero, *problem.args)
    rows, calls = iterate(state, args, rounds, lambda rows: going_on(SecantState(*rows)), step, select)
    return SecantState(*rows), calls


def widest_brackets(state: SecantState, todo: Tensor, size: int) -> Tensor:
    """The indices of ``size`` elements: those ``todo`` with the widest brackets, and others where there are fewer."""
    if size >= len(todo):
        return torch.arange(len(todo), device=todo.device)
    width = torch.where(todo, state.upper - state.lower, -1.0)
    return width.sort(descending=True, stable=True).indices[:size]
