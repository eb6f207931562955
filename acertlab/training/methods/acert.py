"""ACERT and ACERT-fast: a box of each sample's own size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from acertlab.bounds.margin import clean_margin
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import MarginGrowth, margin_function
from acertlab.training.methods.base import Step
from acertlab.training.methods.ibp import FastIBP
from acertlab.training.methods.sample_radii import RadiusEstimates, SampleSearch, approximate_radius

BRACKET = 1e-2  # of eps_{max,t}: tolerance of the log secant. Errors: at most that; 2e-3 once in a thousand radii
HISTORY_BRACKET = 4e-2  # the same, where the last epoch's radii tell where to begin. Mean error: 1e-4 to 5e-4
HALVE_AFTER = 3  # passes of the whole batch on a GPU; after them a quarter to a half still wants its bracket (measured)
HISTORY_HALVE_AFTER = 2  # the same with the history: a tenth to a third


@dataclass(frozen=True)
class ACERTFast(FastIBP):
    """ACERT-fast: ACERT with no root finding; radius = eps_{max,t} if correctly classified, else 0 (Table 6, row 2)."""

    def radii(self, step: Step) -> RadiusEstimates:
        """eps_{max,t} where the clean margin is negative, else 0."""
        margin = clean_margin(step.logits.detach(), step.y)
        return RadiusEstimates.fixed(torch.where(margin < 0, torch.full_like(margin, step.eps), 0.0))


@dataclass(frozen=True)
class ACERT(FastIBP):
    """ACERT: L = kappa CE(f(x), y) + (1 - kappa) CE(worst-case margins at E_cert(x), y)  (Eq. 9-11).

    E_cert(x) is the sample's own certified radius (Def. 3.1), capped by eps_{max,t}, found with the batch's own
    statistics and carrying no gradient; a misclassified sample has radius 0, so that its robust term is the clean loss.
    FastIBP's regularisers are added while the ramp lasts.
    """

    searches: ClassVar[bool] = True

    solver: str = "log-secant"  # root finder
    xtol: float = 1e-6  # tolerances of solvers but the log secant, pixel units (paper, section 4)
    rtol: float = 1e-4
    root_iterations: int = 10  # the solver's most iterations (the published code's; Table 6 has 2 and 100)

    def searched(self, step: Step) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """The margin as a function of the radius, and its further arguments."""
        return margin_function(step.network, self.merged, self.domain), (step.x, step.y)

    def growth(self, step: Step) -> MarginGrowth | None:
        """Where the search begins."""
        if not SOLVERS[self.solver].extrapolates:
            return None
        with torch.no_grad():
            return MarginGrowth.of(step.network, step.x, step.eps, self.merged, self.domain)

    def radii(self, step: Step) -> RadiusEstimates:
        """Radii in [0, eps_{max,t}] to the training tolerance, which need not be certified."""
        if step.eps == 0:
            return RadiusEstimates.fixed(step.x.new_zeros(len(step.y)))
        compact = step.x.device.type == "cpu"
        settings = SampleSearch(self.solver, self.xtol, self.rtol, self.root_iterations, compact)
        if SOLVERS[self.solver].extrapolates:
            known = step.history is not None
            xtol, halve_after = (HISTORY_BRACKET, HISTORY_HALVE_AFTER) if known else (BRACKET, HALVE_AFTER)
            settings = settings._replace(xtol=step.eps * xtol, rtol=0.0, halve_after=halve_after)
        clean = clean_margin(step.logits.detach(), step.y)
        return approximate_radius(
            *self.searched(step), clean, step.eps, settings, history=step.history, growth=self.growth(step)
        )
