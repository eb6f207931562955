"""IBP, FastIBP and CROWN-IBP: boxes of one size for all samples."""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from acertlab.bounds.box import Box, ball
from acertlab.bounds.crown.crown_ibp import crown_ibp_margins
from acertlab.training.methods.base import Standard, Step, StepLog
from acertlab.training.methods.regularisers import regulariser
from acertlab.training.methods.sample_radii import RadiusEstimates

REGULARISER_EPS = 1e-6  # a box of radius 0 has no tightness: while regularising, boxes are at least this large


@dataclass(frozen=True)
class IBP(Standard):
    """IBP: L = kappa CE(f(x), y) + (1 - kappa) CE(worst-case margins at eps_{max,t}, y)  (Eq. 6, 11).

    Source: Gowal et al. 2019.
    """

    bounds: ClassVar[bool] = True

    kappa: float = 0.0  # share of the clean loss
    merged: bool = True  # last layer merged with the margin (NUMERICS: never looser)
    domain: tuple[float, float] | None = (0.0, 1.0)  # boxes are clipped to it
    eps_max: float = 0.4  # where the ramp ends

    def radii(self, step: Step) -> RadiusEstimates:
        """The radius of each sample's box, without gradient: here eps_{max,t} for all."""
        return RadiusEstimates.fixed(step.x.new_full((len(step.y),), step.eps))

    def box(self, step: Step, radii: Tensor) -> Box:
        """The box over which the network is bounded: here the ball of that radius around x."""
        return ball(step.x, radii, self.domain)

    def margins(self, step: Step, box: Box, relu_inputs: list[Box] | None) -> Tensor:
        """(B, classes) upper bounds of logit_i - logit_y over the box; receives the boxes at the ReLUs."""
        return step.network.margins(box, step.y, merged=self.merged, relu_inputs=relu_inputs)

    def robust(self, step: Step, margins: Tensor) -> Tensor:
        """() L_rob of the worst-case margins."""
        return F.cross_entropy(margins, step.y)

    def bounded(self, step: Step, box: Box, relu_inputs: list[Box] | None) -> Tensor:
        """() L_rob over the box; receives the boxes at the ReLUs."""
        return self.robust(step, self.margins(step, box, relu_inputs))

    def regulariser_weight(self, eps: float) -> float:
        """The weight of both regularisers at eps_{max,t}: none here."""
        return 0.0

    def __call__(self, step: Step) -> tuple[Tensor, StepLog]:
        """The loss of one step; see `Standard.__call__`. Where eps_{max,t} = 0 the robust term is the clean loss."""
        clean = robust = F.cross_entropy(step.logits, step.y)
        penalty, found, weight = clean.new_zeros(()), self.radii(step), self.regulariser_weight(step.eps)
        if weight > 0:
            relu_inputs: list[Box] = []
            box = self.box(step, found.radius.clamp(min=REGULARISER_EPS))
            if step.eps > 0:
                robust = self.bounded(step, box, relu_inputs)
            else:
                self.margins(step, box, relu_inputs)
            penalty = weight * regulariser(relu_inputs, (box.radius / step.std).mean())
        elif step.eps > 0:
            robust = self.bounded(step, self.box(step, found.radius), None)
        loss = self.kappa * clean + (1 - self.kappa) * robust + penalty
        return loss, StepLog(clean.detach(), robust.detach(), penalty.detach(), found)


@dataclass(frozen=True)
class FastIBP(IBP):
    """FastIBP: IBP + lambda0 (1 - eps_{max,t} / eps_max) (tightness + ReLU balance), from IBP initialisation.

    Source: Shi et al. 2021.
    """

    ibp_init: ClassVar[bool] = True

    lambda0: float = 0.5  # the regularisers' weight at the ramp's start

    def regulariser_weight(self, eps: float) -> float:
        """lambda0 (1 - eps_{max,t} / eps_max): falls to 0 as the ramp ends."""
        return self.lambda0 * max(0.0, 1.0 - eps / self.eps_max)


@dataclass(frozen=True)
class CROWNIBP(IBP):
    """CROWN-IBP: IBP with margins = beta CROWN-IBP's + (1 - beta) IBP's; beta falls from 1 to beta_end with the ramp.

    beta = 1 - (1 - beta_end) eps_{max,t} / eps_max. CROWN-IBP bounds ReLU inputs by IBP and the margins by a linear
    bound on the way back.

    Source: Zhang et al. 2020.
    """

    beta_end: float = 0.0  # CROWN-IBP's share once the ramp is over

    def margins(self, step: Step, box: Box, relu_inputs: list[Box] | None) -> Tensor:
        """The mixture; at beta = 0 nothing is propagated back."""
        beta = 1 - (1 - self.beta_end) * min(1.0, step.eps / self.eps_max)
        if beta == 0:
            return super().margins(step, box, relu_inputs)
        inputs = [] if relu_inputs is None else relu_inputs
        ibp = super().margins(step, box, inputs)
        return beta * crown_ibp_margins(step.network, box, step.y, inputs, merged=self.merged) + (1 - beta) * ibp
