"""The radii that training uses (Eq. 9): estimates, which need NOT be certified, from few passes, and their history.

A radius of the last epoch, corrected by the new clean margin, is a good start: mostly one pass tells whether it still
holds, and corrects it once more. How far to trust that is decided sample by sample: the estimate's own error, predicted
from the length of its last correction, must be within the tolerance, or another pass is spent.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.logsecant import EXPONENT, Trail
from acertlab.radius import METHODS

DOUBT = 0.3  # relative error of an exponent that an earlier epoch found (MNIST and CIFAR-10, small CNN: the median)


class Estimates(NamedTuple):
    """Radii of a batch and what the next search for them wants to know; (B,) each, without gradient."""

    radius: Tensor  # in [0, eps_max]; 0 where misclassified, tied or not finite
    slope: Tensor  # d log radius / d log margin: 1 / exponent
    margin: Tensor  # the clean margin; 0 where the radius is not inside (0, eps_max): it foretells nothing
    calls: Tensor  # int64, bound passes spent

    @classmethod
    def none(cls, n: int, device: torch.device | None = None) -> "Estimates":
        """For ``n`` samples of which nothing is known yet."""
        zero = torch.zeros(n, device=device)
        return cls(zero, zero + 1 / EXPONENT, zero.clone(), torch.zeros(n, dtype=torch.int64, device=device))

    @classmethod
    def given(cls, radius: Tensor) -> "Estimates":
        """Radii that nobody searched for."""
        return cls.none(len(radius), radius.device)._replace(radius=radius)

    def of(self, index: Tensor) -> "Estimates":
        """Those of the samples at ``index``."""
        return Estimates._make(row[index] for row in self)

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
    maxiter: int = 10,
    compact: bool = True,
    history: Estimates | None = None,
) -> Estimates:
    """Estimates of the certified radii, capped by eps_max.

    Args:
        margin: margin(eps, *args) -> (B,) at radii eps (B,), such as `acertlab.radius.margin_function`'s.
        args: tensors with leading dimension B, cut down together with eps as samples are done.
        clean: (B,) the margins at 0; < 0: correctly classified.
        eps_max: the largest radius of interest, pixel units.
        solver: "log-secant", or a name of `acertlab.radius.METHODS`.
        xtol, rtol: tolerances (pixel units, relative). The log secant stops where the error it predicts is within them,
            without closing the bracket; the other solvers at their own rule, and the radius is their last iterate.
        maxiter: passes at most, the one at eps_max not counted; 0: eps_max for every correctly classified sample
            (ACERT-fast).
        compact: drop samples that are done; False: full batches, a fixed number of passes, and no host-device
            synchronisation (for a GPU).
        history: of the same samples, an epoch ago; for solver="log-secant". A bad one costs passes.
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
        guess = None if history is None else history.guess(clean)
        below = torch.where(clean < 0, clean, -1.0)  # of samples that are not searched for
        doubt = math.inf if history is None else torch.where(history.margin < 0, DOUBT, math.inf).to(clean)
        known = slope if history is None else history.slope
        trail = Trail.start(torch.zeros_like(clean), below, guess, known, doubt)
        trail, calls = _follow(margin, args, trail, clean, below, eps_max, xtol, rtol, maxiter + 1, compact)
        inside = (clean < 0) & (trail.lower < eps_max)
        radius = torch.where(inside, _inside(trail, eps_max), most)
        return Estimates(radius, torch.where(inside, trail.slope, slope), torch.where(inside, clean, 0.0), calls)


def _follow(margin, args, trail, clean, below, cap, xtol, rtol, passes, compact) -> tuple[Trail, Tensor]:
    """Up to ``passes`` rounds of the secant, of those whose estimate is not good enough yet."""
    calls = torch.zeros_like(clean, dtype=torch.int64)
    for _ in range(passes):
        enough = (trail.error(DOUBT) <= xtol + rtol * trail.estimate()) & (trail.estimate() < cap)
        todo = (clean < 0) & ~enough & (trail.lower < cap) & ((trail.upper - trail.lower) > xtol)
        if not compact:
            new, point = trail.propose(cap, xtol, rtol)
            new = new.accept(point, margin(point, *args), below)
            trail = Trail._make(torch.where(todo, b, a) for a, b in zip(trail, new, strict=True))
            calls = calls + todo
            continue
        at = todo.nonzero().squeeze(1)
        if not len(at):
            break
        some, point = Trail._make(row[at] for row in trail).propose(cap, xtol, rtol)
        some = some.accept(point, margin(point, *(arg[at] for arg in args)), below[at])
        trail = Trail._make(row.index_copy(0, at, new) for row, new in zip(trail, some, strict=True))
        calls = calls.index_add(0, at, torch.ones_like(at))
    return trail, calls


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
