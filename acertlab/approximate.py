"""The radii that training uses (Eq. 9): estimates, which need NOT be certified, from few passes, and their history.

A radius of the last epoch, corrected by the new clean margin, is a good start, and mostly a secant's prediction of its
own error can be believed. Not always: margins have plateaus and kinks. So each estimate lies between two radii that
were evaluated, one certified and one not.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.growth import Growth
from acertlab.logsecant import EXPONENT, Trail, advance
from acertlab.radius import METHODS

DOUBT = 0.3  # relative error of an exponent that an earlier epoch found (MNIST and CIFAR-10, small CNN: the median)
STEEPEST = 5.0  # exponents that are kept for the next epoch are between 1 and this
PATIENCE = 6  # evaluations; what is not done by then, such as a plateau just below 0, is bisected every other time


class Estimates(NamedTuple):
    """Radii of a batch and what the next search for them wants to know; (B,) each, without gradient."""

    radius: Tensor  # in [0, eps_max]; 0 where misclassified, tied or not finite
    slope: Tensor  # d log radius / d log margin: 1 / exponent
    margin: Tensor  # the clean margin; 0 where the radius is not inside (0, eps_max): it foretells nothing
    calls: Tensor  # int64, bound passes spent

    @classmethod
    def none(cls, like: Tensor) -> "Estimates":
        """For as many samples as ``like`` (B,) has, of which nothing is known yet."""
        zero = torch.zeros_like(like)
        return cls(zero, zero + 1 / EXPONENT, zero.clone(), torch.zeros_like(like, dtype=torch.int64))

    @classmethod
    def given(cls, radius: Tensor) -> "Estimates":
        """Radii that nobody searched for."""
        return cls.none(radius)._replace(radius=radius)

    def of(self, index: Tensor) -> "Estimates":
        """Those of the samples at ``index``."""
        return Estimates._make(row.index_select(0, index) for row in self)

    def update_(self, index: Tensor, new: "Estimates") -> None:
        """Replaces those of the samples at ``index``, in place."""
        for row, value in zip(self, new, strict=True):
            row.index_copy_(0, index, value)

    def guess(self, clean: Tensor) -> Tensor:
        """Where the radii are to be expected now: radius (margin_new / margin_old)^(1/p); NaN where that is unknown."""
        moved = self.radius * (clean / self.margin).clamp(1e-2, 1e2) ** self.slope
        return torch.where(self.margin < 0, moved, math.nan)


def approximate_radius(
    margin: Callable[..., Tensor],
    args: tuple[Tensor, ...],
    clean: Tensor,
    eps_max: float,
    *,
    solver: str = "log-secant",
    xtol: float = 1e-6,
    rtol: float = 1e-4,
    width: float = math.inf,
    maxiter: int = 10,
    compact: bool = True,
    history: Estimates | None = None,
    growth: Growth | None = None,
) -> Estimates:
    """Estimates of the certified radii, capped by eps_max.

    Args:
        margin: margin(eps, *args) -> (B,) at radii eps (B,), such as `acertlab.radius.margin_function`'s.
        args: tensors with leading dimension B, cut down together with eps as samples are done.
        clean: (B,) the margins at 0; < 0: correctly classified.
        eps_max: the largest radius of interest, pixel units.
        solver: "log-secant", or a name of `acertlab.radius.METHODS`.
        xtol, rtol: tolerances (pixel units, relative). The log secant stops where the error it predicts is within them;
            the other solvers at their own rule, and the radius is their last iterate.
        width: for solver="log-secant", pixel units: the prediction is believed only between two radii at most so far
            apart, one certified and one not. Where the passes do not run out before, no error is larger.
        maxiter: passes at most, the one at eps_max not counted; 0: eps_max for every correctly classified sample
            (ACERT-fast).
        compact: drop samples that are done; False: full batches, a fixed number of passes, and no host-device
            synchronisation (for a GPU).
        history: of the same samples, an epoch ago; for solver="log-secant". A bad one costs passes.
        growth: without a history, what tells where to begin; for solver="log-secant".
    """
    with torch.no_grad():
        clean = clean.detach()
        cap, slope = torch.full_like(clean, eps_max), torch.full_like(clean, 1 / EXPONENT)
        most = torch.where(clean < 0, cap, 0.0)
        if maxiter == 0:
            return Estimates(most, slope, clean, torch.zeros_like(clean, dtype=torch.int64))
        if solver != "log-secant":
            search = _brackets if compact else _brackets_without_sync
            radius, calls = search(margin, args, solver, clean, cap, most, xtol, rtol, maxiter)
            return Estimates(radius, slope, clean, calls)
        if not compact:
            below = torch.where(clean < 0, clean, -1.0)  # of samples that are not searched for
            known = (history, growth)
            found = _by_secant(margin, args, below, eps_max, xtol, rtol, width, maxiter + 1, known, clean < 0)
            unknown = Estimates.none(clean)
            return Estimates._make(torch.where(clean < 0, b, a) for a, b in zip(unknown, found, strict=True))
        at = (clean < 0).nonzero().squeeze(1)
        some = tuple(arg.index_select(0, at) for arg in args)
        known = (None if history is None else history.of(at), growth)
        found = _by_secant(margin, some, clean.index_select(0, at), eps_max, xtol, rtol, width, maxiter + 1, known)
        estimates = Estimates.none(clean)
        estimates.update_(at, found)
        return estimates


def _by_secant(margin, args, clean, cap, xtol, rtol, width, rounds, known, todo=None) -> Estimates:
    """Of samples whose ``clean`` < 0; with ``todo`` those alone, without host-device synchronisation."""
    trail = _begin(clean, *known)

    def done(trail: Trail) -> Tensor:
        bracket, tolerance = trail.upper - trail.lower, xtol + rtol * trail.lower
        near = (trail.error(DOUBT) <= tolerance) | (bracket <= tolerance)
        return (near & (bracket <= width)) | (trail.lower >= cap)

    def propose(trail: Trail, n: int) -> tuple[Trail, Tensor]:
        return trail.brace(cap, width, DOUBT, bisect=n >= PATIENCE and n % 2 == 0)

    if todo is None:
        trail, calls = advance(margin, trail, clean, args, rounds, done, propose)
    else:
        calls = torch.zeros_like(clean, dtype=torch.int64)
        for n in range(rounds):
            go_on = todo & ~done(trail)
            new, point = propose(trail, n)
            new = new.accept(point, margin(point, *args), clean)
            trail = Trail._make(torch.where(go_on, b, a) for a, b in zip(trail, new, strict=True))
            calls = calls + go_on
    inside = trail.lower < cap
    radius = torch.where(inside, _inside(trail, cap), cap)
    slope = torch.where(inside, trail.slope, 1 / EXPONENT).clamp(1 / STEEPEST, 1.0)
    return Estimates(radius, slope, torch.where(inside, clean, 0.0), calls)


def _begin(clean: Tensor, history: Estimates | None, growth: Growth | None) -> Trail:
    nothing = torch.zeros_like(clean)
    if history is not None:
        doubt = torch.where(history.margin < 0, DOUBT, math.inf).to(clean)
        return Trail.start(nothing, clean, history.guess(clean), history.slope, doubt)
    if growth is None:
        return Trail.start(nothing, clean)
    guess = growth.guess(clean)
    return Trail.start(nothing, clean, guess, growth.slope(guess))


def _inside(trail: Trail, cap: float) -> Tensor:
    """The estimate, within what was seen; where there is none, the middle of that."""
    upper = trail.upper.clamp(max=cap)
    estimate = trail.estimate()
    return torch.where(estimate.isfinite(), estimate, (trail.lower + upper) / 2).clamp(trail.lower, upper)


def _brackets(margin, args, solver, clean, cap, most, xtol, rtol, maxiter) -> tuple[Tensor, Tensor]:
    calls = torch.zeros_like(clean, dtype=torch.int64)
    correct = (clean < 0).nonzero().squeeze(1)
    at_cap = margin(cap[correct], *(arg[correct] for arg in args))
    calls[correct] += 1
    inside, at_cap = correct[at_cap > 0], at_cap[at_cap > 0]
    if len(inside):
        a, b, some = torch.zeros_like(at_cap), cap[inside], tuple(arg[inside] for arg in args)
        tolerances = {"xtol": xtol, "rtol": rtol, "maxiter": maxiter}
        found = METHODS[solver](margin, a, b, args=some, fa=clean[inside], fb=at_cap, **tolerances)
        most = most.index_put((inside,), found.root)
        calls[inside] += found.function_calls
    return most, calls


def _brackets_without_sync(margin, args, solver, clean, cap, most, xtol, rtol, maxiter) -> tuple[Tensor, Tensor]:
    at_cap = margin(cap, *args)
    tolerances = {"xtol": xtol, "rtol": rtol, "maxiter": maxiter}
    found = METHODS[solver](
        margin, torch.zeros_like(cap), cap, args=args, fa=clean, fb=at_cap, compact=False, **tolerances
    )
    radius = torch.where((clean < 0) & (at_cap > 0), found.root, most)
    return radius, found.function_calls + 1
