"""The radii of a training step (Eq. 9): estimates, which need NOT be certified, from few passes, and their history.

Each lies between two radii that were evaluated, one certified and one not, at most a tolerance apart (on a GPU, where
the number of passes is fixed, nearly each). Predictions of a secant's error can mostly be believed, but not always:
margins have plateaus and kinks. A search begins where the network's own margins have grown by the clean margin
(`MarginGrowth`); by how much a sample's margin grows faster or slower than those is remembered from epoch to epoch.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from acertlab.bounds.rules.batch_invariance import TILE
from acertlab.radius.rootfind.iterate import RootProblem, StoppingRule
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import MarginGrowth, first_guess


class RadiusEstimates(NamedTuple):
    """Radii of a batch and what the next search for them wants to know; (B,) each, without gradient."""

    radius: Tensor  # in [0, eps_max]; 0 where misclassified, tied or not finite
    factor: Tensor  # the network's growth over that of the sample's margin, where it was last evaluated; 1: unknown
    calls: Tensor  # int64, bound passes spent

    @classmethod
    def fixed(cls, radius: Tensor) -> "RadiusEstimates":
        """Given radii (B,), without a search."""
        return cls(radius, torch.ones_like(radius), torch.zeros_like(radius, dtype=torch.int64))

    def of(self, index: Tensor) -> "RadiusEstimates":
        """Those of the samples at ``index``."""
        return RadiusEstimates._make(row.index_select(0, index) for row in self)

    def update_(self, index: Tensor, new: "RadiusEstimates") -> None:
        """Replaces those of the samples at ``index``, in place."""
        for row, value in zip(self, new, strict=True):
            row.index_copy_(0, index, value)


class SampleSearch(NamedTuple):
    """How the radii of a training step are searched for.

    The log secant stops at a bracket of xtol + rtol * radius: no error is larger, unless maxiter comes first, and most
    are far smaller. The other solvers stop by their own rule, and the radius is their last iterate.
    """

    solver: str = "log-secant"  # or another key of `SOLVERS`
    xtol: float = 1e-6  # pixel units
    rtol: float = 1e-4
    maxiter: int = 10  # passes, the one at eps_max not counted; 0: eps_max where classified correctly (ACERT-fast)
    compact: bool = True  # drop samples that are done; False, for a GPU: a fixed number of passes, without host sync
    # without `compact`, for the log secant: after so many passes half as many samples take part, and half as many again
    # every other pass, down to `TILE`: those with the widest brackets. Should more want to go on, they keep the
    # brackets that they have. None: the whole batch takes part in all passes
    halve_after: int | None = None


def approximate_radius(
    margin: Callable[..., Tensor],
    args: tuple[Tensor, ...],
    clean: Tensor,
    eps_max: float,
    settings: SampleSearch,
    *,
    history: RadiusEstimates | None = None,
    growth: MarginGrowth | None = None,
) -> RadiusEstimates:
    """Certified radii of a batch, estimated to a tolerance and capped by eps_max (pixel units).

    ``margin``(eps, *args) -> (B,) at radii eps (B,) is such as `margin_function`'s, ``args`` of leading dimension B;
    ``clean`` (B,) are the margins at 0, < 0: correctly classified. ``growth`` tells where to begin (None: at the cap;
    for the log secant), corrected by the ``history`` of the same samples an epoch ago; a bad one costs passes.
    """
    with torch.no_grad():
        clean = clean.detach()
        correct = clean < 0
        if settings.maxiter == 0:
            return RadiusEstimates.fixed(torch.where(correct, torch.full_like(clean, eps_max), 0.0))
        nobody = RadiusEstimates.fixed(torch.zeros_like(clean))
        rest = nobody if history is None else nobody._replace(factor=history.factor.clone())
        stop = StoppingRule(settings.xtol, settings.rtol, settings.maxiter)

        def search(
            args: tuple[Tensor, ...], clean: Tensor, factor: Tensor, wanted: Tensor | None = None
        ) -> RadiusEstimates:
            problem = RootProblem(margin, args, clean, eps_max, *first_guess(growth, clean * factor))
            after = None if settings.compact else settings.halve_after
            halved = None if after is None else partial(_size, len(clean), after)
            found = SOLVERS[settings.solver].estimate(problem, stop, wanted, halved)
            factor = factor if growth is None else growth.factor(found.log_eps, found.log_growth, clean)
            return RadiusEstimates(found.root, factor, found.calls)

        if not settings.compact:
            below = torch.where(correct, clean, -1.0)  # of samples that are not searched for
            found = search(args, below, rest.factor, correct)
            return RadiusEstimates._make(torch.where(correct, b, a) for a, b in zip(rest, found, strict=True))
        at = correct.nonzero().squeeze(1)
        *some, below, factor = (row.index_select(0, at) for row in (*args, clean, rest.factor))
        rest.update_(at, search(tuple(some), below, factor))
        return rest


def _size(rows: int, halve_after: int, n: int) -> int:
    """Rows of a batch that take part in round n; never fewer than a tile, if there are so many."""
    halved = max(0, n - halve_after + 2) // 2
    return max(min(rows, TILE), math.ceil(rows / 2**halved))
