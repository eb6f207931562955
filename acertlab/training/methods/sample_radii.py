"""The radii that training uses (Eq. 9): estimates, which need NOT be certified, from few passes, and their history.

Each lies between two radii that were evaluated, one certified and one not, at most a tolerance apart (on a GPU, where
the number of passes is fixed, nearly each). Predictions of a secant's error can mostly be believed, but not always:
margins have plateaus and kinks. A search begins where the network's own margins have grown by the clean margin
(`acertlab.growth`); by how much a sample's margin grows faster or slower than those is remembered from epoch to epoch.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.bounds.rules.batch_invariance import TILE
from acertlab.radius.rootfind.log_secant import Trail, advance
from acertlab.radius.search import METHODS, Growth, begin

SLACK = 4  # evaluations more than a bisection would take, at most: a search may be lucky at first


class Estimates(NamedTuple):
    """Radii of a batch and what the next search for them wants to know; (B,) each, without gradient."""

    radius: Tensor  # in [0, eps_max]; 0 where misclassified, tied or not finite
    factor: Tensor  # the network's growth over that of the sample's margin, where it was last evaluated; 1: unknown
    calls: Tensor  # int64, bound passes spent

    @classmethod
    def given(cls, radius: Tensor) -> "Estimates":
        """Radii (B,) that nobody searched for."""
        return cls(radius, torch.ones_like(radius), torch.zeros_like(radius, dtype=torch.int64))

    def of(self, index: Tensor) -> "Estimates":
        """Those of the samples at ``index``."""
        return Estimates._make(row.index_select(0, index) for row in self)

    def update_(self, index: Tensor, new: "Estimates") -> None:
        """Replaces those of the samples at ``index``, in place."""
        for row, value in zip(self, new, strict=True):
            row.index_copy_(0, index, value)


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
    halve_after: int | None = None,
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
        xtol, rtol: tolerances (pixel units, relative). The log secant stops at a bracket of xtol + rtol * radius: no
            error is larger, unless maxiter comes first, and most are far smaller. The other solvers stop by their own
            rule, and the radius is their last iterate.
        maxiter: passes at most, the one at eps_max not counted; 0: eps_max for every correctly classified sample
            (ACERT-fast).
        compact: drop samples that are done; False, for a GPU: a fixed number of passes, and no host-device
            synchronisation.
        halve_after: without ``compact``, after so many passes half as many samples take part, and half as many again
            every other pass, down to `TILE`: those with the widest brackets. Should more want to go on, they keep the
            brackets that they have. None: the whole batch takes part in all passes. For solver="log-secant".
        growth: what tells where to begin; None: the cap. For solver="log-secant".
        history: of the same samples, an epoch ago, by which ``growth`` is corrected. A bad one costs passes.
    """
    with torch.no_grad():
        clean = clean.detach()
        correct = clean < 0
        cap = torch.full_like(clean, eps_max)
        most = torch.where(correct, cap, 0.0)
        if maxiter == 0:
            return Estimates.given(most)
        if solver != "log-secant":
            search = _brackets if compact else _brackets_without_sync
            radius, calls = search(margin, args, solver, clean, cap, most, xtol, rtol, maxiter)
            return Estimates.given(radius)._replace(calls=calls)
        unknown = Estimates.given(torch.zeros_like(clean))
        factor = unknown.factor if history is None else history.factor
        search = partial(_by_secant, margin, eps_max, xtol, rtol, maxiter, growth, halve_after)
        if not compact:
            below = torch.where(correct, clean, -1.0)  # of samples that are not searched for
            found = search(args, below, factor, correct)
            rest = unknown._replace(factor=factor)
            return Estimates._make(torch.where(correct, b, a) for a, b in zip(rest, found, strict=True))
        at = correct.nonzero().squeeze(1)
        *some, below, known = (row.index_select(0, at) for row in (*args, clean, factor))
        estimates = unknown._replace(factor=factor.clone())
        estimates.update_(at, search(tuple(some), below, known))
        return estimates


def _by_secant(margin, cap, xtol, rtol, maxiter, growth, halve_after, args, clean, factor, todo=None) -> Estimates:
    """Of samples whose ``clean`` < 0; with ``todo`` those alone, without host-device synchronisation."""
    rtol = max(rtol, 8 * torch.finfo(clean.dtype).eps)
    most = math.log2(max(1.0, cap / xtol)) + SLACK
    rounds = min(maxiter, math.ceil(most)) + 1  # and the cap
    lower, sizes = torch.zeros_like(clean), ()
    if todo is not None:
        lower = lower.masked_fill(~todo, cap)  # done
        halve_after = rounds if halve_after is None else halve_after
        sizes = [_size(len(clean), max(0, n - halve_after + 2) // 2) for n in range(rounds)]
    trail = begin(growth, lower, clean, clean * factor)

    def done(trail: Trail) -> Tensor:
        return (trail.upper - trail.lower <= xtol + rtol * trail.lower) | (trail.lower >= cap)

    def propose(trail: Trail, n: int) -> tuple[Trail, Tensor]:
        return trail.brace(cap, xtol + rtol * trail.lower, most - n - 1)

    trail, calls = advance(margin, trail, clean, args, rounds, done, propose, sizes)
    radius = torch.where(trail.upper.isfinite(), trail.crossing(clean), (trail.lower + cap) / 2)
    radius = torch.where(trail.lower < cap, radius, cap)
    return Estimates(radius, factor if growth is None else growth.factor(trail.u, trail.g, clean), calls)


def _size(rows: int, halved: int) -> int:
    """How many rows are left of a batch that was halved so often; never fewer than a tile, if there are so many."""
    return max(min(rows, TILE), math.ceil(rows / 2**halved))


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
