"""SOLVERS: every root finder that a radius can be searched with, under its name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from acertlab.radius.rootfind.bisection import bisect
from acertlab.radius.rootfind.bracketed import RootResult
from acertlab.radius.rootfind.brent import brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla
from acertlab.radius.rootfind.iterate import Bracket, RootEstimate, RootProblem, Sizes, StoppingRule
from acertlab.radius.rootfind.log_secant import LogSecant


class Solver(Protocol):
    """What a search for radii wants of a root finder."""

    # Whether one point is enough to begin, so that a prediction of the root is of use; such a solver stops an estimate
    # by its bracket's width.
    extrapolates: ClassVar[bool]

    def narrow(self, problem: RootProblem, start: Bracket, stop: StoppingRule) -> Bracket:
        """Narrow brackets of the roots, from ``start`` without an upper end; or f < 0 at the cap: it stays infinite."""
        ...

    def estimate(self, problem: RootProblem, stop: StoppingRule, wanted: Tensor | None, size: Sizes) -> RootEstimate:
        """Roots from few evaluations, for a training step.

        With ``wanted`` (B,) bool these elements alone matter, and the host must not wait for the device: the number of
        evaluations is fixed, and ``size`` tells with how many elements each round may go on; None: with all. Without,
        all matter, and finished ones are dropped.
        """
        ...


@dataclass(frozen=True)
class FromBothEnds:
    """A method that wants both ends of its brackets, as a `Solver`."""

    method: Callable[..., RootResult]  # called as `brentq`

    extrapolates: ClassVar[bool] = False

    def narrow(self, problem: RootProblem, start: Bracket, stop: StoppingRule) -> Bracket:
        """Brackets between the cap and ends on both sides of the guess; see `Solver.narrow`."""
        found, guess = start, problem.guess
        for point in () if guess is None else [(guess * factor).clamp(max=problem.cap) for factor in (1.01, 0.99)]:
            found = evaluate_at(problem, found, point, point > found.lower)
        found = evaluate_at(problem, found, torch.full_like(found.lower, problem.cap), found.upper.isinf())
        inside = found.upper.isfinite().nonzero().squeeze(1)
        if not len(inside):
            return found
        a, fa, b, fb = (end[inside] for end in found[:4])
        args = tuple(arg[inside] for arg in problem.args)
        # an eighth of the tolerance for the method, hardly slower at its speed; the rest is for moving the ends later
        how = {"xtol": stop.xtol / 8, "rtol": stop.rtol / 8, "maxiter": stop.maxiter}
        root = self.method(problem.f, a, b, args=args, fa=fa, fb=fb, **how)
        ends = (root.lower, root.f_lower, root.upper, root.f_upper, root.converged)
        rows = [old.index_put((inside,), end) for old, end in zip(found[:5], ends, strict=True)]
        return Bracket._make([*rows, found.calls.index_add(0, inside, root.function_calls)])

    def estimate(self, problem: RootProblem, stop: StoppingRule, wanted: Tensor | None, size: Sizes) -> RootEstimate:
        """The method's last iterate, by its own stopping rule; see `Solver.estimate`."""
        zero, cap = torch.zeros_like(problem.at_zero), torch.full_like(problem.at_zero, problem.cap)
        at_cap = problem.f(cap, *problem.args)
        known = {"args": problem.args, "fa": problem.at_zero, "fb": at_cap}
        found = self.method(problem.f, zero, cap, **known, **stop._asdict(), compact=wanted is None)
        root = torch.where(at_cap > 0, found.root, cap)
        return RootEstimate(root, root.log(), zero, found.function_calls + 1)


def evaluate_at(problem: RootProblem, bracket: Bracket, point: Tensor, where: Tensor) -> Bracket:
    """Evaluates ``point`` (B,) ``where`` asked, and moves to it the ends of the brackets that it lies in."""
    value = problem.evaluate(point, where)
    low, high = (value < 0) & (point > bracket.lower), (value > 0) & (point < bracket.upper)
    return bracket.moved(point, value, low, high, where)


SOLVERS: dict[str, Solver] = {
    "brentq": FromBothEnds(brentq),
    "bisect": FromBothEnds(bisect),
    "chandrupatla": FromBothEnds(chandrupatla),
    "log-secant": LogSecant(),  # the default
}
