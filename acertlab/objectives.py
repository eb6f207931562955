"""What each training method minimises: one small class a method, with its equation.

Every class is a frozen dataclass of the hyperparameters that its loss needs, under `TrainConfig`'s own names, and is
called with a `Step`. Eq. (11) is common to all: L = kappa CE(f(x), y) + (1 - kappa) L_rob, and each method changes one
thing of `IBP`: the radius of each sample's box, where the box lies, what bounds the network over it, or the loss.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.approximate import Estimates, approximate_radius
from acertlab.box import Box, ball
from acertlab.crown import crown_ibp_margins
from acertlab.growth import Growth
from acertlab.interval import Frozen
from acertlab.margin import clean_margin, worst_margin
from acertlab.radius import margin_function, without_zero
from acertlab.regularisers import regulariser
from acertlab.training_attack import training_attack

if TYPE_CHECKING:
    from acertlab.presets import TrainConfig

BRACKET = 1e-2  # of eps_{max,t}: tolerance of the log secant. Errors: at most that; 2e-3 once in a thousand radii
HISTORY_BRACKET = 4e-2  # the same, where the last epoch's radii tell where to begin. Mean error: 1e-4 to 5e-4
HALVE_AFTER = 3  # passes of the whole batch on a GPU; after them a quarter to a half still wants its bracket (measured)
HISTORY_HALVE_AFTER = 2  # the same with the history: a tenth to a third
REGULARISER_EPS = 1e-6  # a box of radius 0 has no tightness: while regularising, boxes are at least this large
SMALLEST = 1e-12  # of a loss that is raised to a power below 1, whose gradient is infinite at 0


@dataclass(frozen=True)
class Step:
    """What a training method sees of one step."""

    x: Tensor  # (B, C, H, W) pixels in [0, 1]
    y: Tensor  # (B,) int64 labels
    logits: Tensor  # (B, classes) of the clean pass, with its graph
    frozen: Frozen | None  # the network with this step's weights and batch statistics; None if the method needs none
    eps: float  # eps_{max,t}, pixel units
    std: Tensor | float = 1.0  # (1, C, 1, 1) the model's normalisation, for d0 at the normalised input
    history: Estimates | None = None  # what the last epoch found for these samples
    model: nn.Module | None = None  # the network itself, for methods that attack it
    x_adv: Tensor | None = None  # (B, C, H, W) what the attack at eps_{max,t} found


@dataclass(frozen=True)
class Standard:
    """Standard training: L = CE(f(x), y)  (Eq. 10)."""

    bounds: ClassVar[bool] = False  # whether the method bounds the network
    attacks: ClassVar[bool] = False  # whether it attacks the network
    searches: ClassVar[bool] = False  # whether it searches each sample's own radius
    ibp_init: ClassVar[bool] = False  # whether weights start from Shi et al.'s IBP initialisation

    @classmethod
    def from_config(cls, config: "TrainConfig") -> Self:
        """The objective with the hyperparameters of the same names in ``config``; eps_max is where its ramp ends."""
        own = {field.name: getattr(config, field.name) for field in fields(cls)}
        return cls(**own | ({"eps_max": config.train_eps} if "eps_max" in own else {}))

    def __call__(self, step: Step) -> tuple[Tensor, dict[str, Tensor | Estimates]]:
        """The loss of one step.

        Args:
            step: the batch, its logits and the frozen network.

        Returns:
            () the loss with its graph, and what to log, detached: ``clean``, ``robust``, ``regulariser`` () and
            ``radii``, `Estimates` of the radius of each sample's box in the robust loss.
        """
        clean = F.cross_entropy(step.logits, step.y)
        return clean, self._log(clean, clean, clean.new_zeros(()), Estimates.given(step.x.new_zeros(len(step.y))))

    @staticmethod
    def _log(clean: Tensor, robust: Tensor, regulariser: Tensor, radii: Estimates) -> dict[str, Tensor | Estimates]:
        losses = {"clean": clean, "robust": robust, "regulariser": regulariser}
        return {name: value.detach() for name, value in losses.items()} | {"radii": radii}


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

    def radii(self, step: Step) -> Estimates:
        """The radius of each sample's box, without gradient: here eps_{max,t} for all."""
        return Estimates.given(step.x.new_full((len(step.y),), step.eps))

    def box(self, step: Step, radii: Tensor) -> Box:
        """The box over which the network is bounded: here the ball of that radius around x."""
        return ball(step.x, radii, self.domain)

    def margins(self, step: Step, box: Box, relu_inputs: list[Box] | None) -> Tensor:
        """(B, classes) upper bounds of logit_i - logit_y over the box; receives the boxes at the ReLUs."""
        return step.frozen.margins(box, step.y, merged=self.merged, relu_inputs=relu_inputs)

    def robust(self, step: Step, margins: Tensor) -> Tensor:
        """() L_rob of the worst-case margins."""
        return F.cross_entropy(margins, step.y)

    def regulariser_weight(self, eps: float) -> float:
        """The weight of both regularisers at eps_{max,t}: none here."""
        return 0.0

    def __call__(self, step: Step) -> tuple[Tensor, dict[str, Tensor | Estimates]]:
        """The loss of one step; see `Standard.__call__`. Where eps_{max,t} = 0 the robust term is the clean loss."""
        clean = robust = F.cross_entropy(step.logits, step.y)
        penalty, found, weight = clean.new_zeros(()), self.radii(step), self.regulariser_weight(step.eps)
        if weight > 0:
            relu_inputs: list[Box] = []
            box = self.box(step, found.radius.clamp(min=REGULARISER_EPS))
            margins = self.margins(step, box, relu_inputs)
            if step.eps > 0:
                robust = self.robust(step, margins)
            penalty = weight * regulariser(relu_inputs, (box.radius / step.std).mean())
        elif step.eps > 0:
            robust = self.robust(step, self.margins(step, self.box(step, found.radius), None))
        loss = self.kappa * clean + (1 - self.kappa) * robust + penalty
        return loss, self._log(clean, robust, penalty, found)


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
        return beta * crown_ibp_margins(step.frozen, box, step.y, inputs, merged=self.merged) + (1 - beta) * ibp


# ---- radii of each sample's own


@dataclass(frozen=True)
class ACERTFast(FastIBP):
    """ACERT-fast: ACERT with no root finding; radius = eps_{max,t} if correctly classified, else 0 (Table 6, row 2)."""

    def radii(self, step: Step) -> Estimates:
        """eps_{max,t} where the clean margin is negative, else 0."""
        margin = clean_margin(step.logits.detach(), step.y)
        return Estimates.given(torch.where(margin < 0, torch.full_like(margin, step.eps), 0.0))


@dataclass(frozen=True)
class ACERT(FastIBP):
    """ACERT: L = kappa CE(f(x), y) + (1 - kappa) CE(worst-case margins at E_cert(x), y)  (Eq. 9-11).

    E_cert(x) is the sample's own certified radius (Def. 3.1), capped by eps_{max,t}, found with the batch's own
    statistics and carrying no gradient; a misclassified sample has radius 0, so that its robust term is the clean loss.
    FastIBP's regularisers are added while the ramp lasts.
    """

    searches: ClassVar[bool] = True

    solver: str = "log-secant"  # root finder
    xtol: float = 1e-6  # tolerances of the others but the log secant, pixel units (paper, section 4)
    rtol: float = 1e-4
    root_iterations: int = 10  # the solver's most iterations (the published code's; Table 6 has 2 and 100)

    def searched(self, step: Step) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """The margin as a function of the radius, and its further arguments."""
        return margin_function(step.frozen, self.merged, self.domain), (step.x, step.y)

    def growth(self, step: Step) -> Growth | None:
        """Where the search begins."""
        if self.solver != "log-secant":
            return None
        with torch.no_grad():
            return Growth.of(step.frozen, step.x, step.eps, self.merged, self.domain)

    def radii(self, step: Step) -> Estimates:
        """Radii in [0, eps_{max,t}] to the training tolerance, which need not be certified."""
        if step.eps == 0:
            return Estimates.given(step.x.new_zeros(len(step.y)))
        margin, args = self.searched(step)
        xtol, rtol, halve_after = self.xtol, self.rtol, None
        if self.solver == "log-secant":
            known = step.history is not None
            xtol, rtol = step.eps * (HISTORY_BRACKET if known else BRACKET), 0.0
            halve_after = HISTORY_HALVE_AFTER if known else HALVE_AFTER
        return approximate_radius(
            margin, args, clean_margin(step.logits.detach(), step.y), step.eps, solver=self.solver, xtol=xtol,
            rtol=rtol, maxiter=self.root_iterations, compact=step.x.device.type == "cpu", halve_after=halve_after,
            history=step.history, growth=self.growth(step),
        )  # fmt: skip


# ---- successors of IBP, which attack the network as well


@dataclass(frozen=True)
class Adversarial(FastIBP):
    """FastIBP that knows an adversarial example x_adv at eps_{max,t} of every sample; by itself it makes no use of it.

    BatchNorm is in evaluation mode during the attack; f(x_adv) is then evaluated with the clean batch's statistics, as
    all bounds are.
    """

    attacks: ClassVar[bool] = True

    attack_steps: int = 8  # of PGD, from one random start (Mueller et al. 2023)
    attack_step_size: float = 0.5  # relative to eps_{max,t}; falls tenfold after 50, 80 and 90 % of the steps
    amp: bool = False  # attack in bfloat16 on CUDA; bounds never are

    def __call__(self, step: Step) -> tuple[Tensor, dict[str, Tensor | Estimates]]:
        """The loss of one step; see `IBP.__call__`."""
        if step.eps > 0:
            settings = {"steps": self.attack_steps, "step_size": self.attack_step_size, "amp": self.amp}
            x_adv = training_attack(step.model, step.x, step.y, step.eps, domain=self.domain, **settings)
            step = replace(step, x_adv=x_adv)
        return super().__call__(step)


@dataclass(frozen=True)
class SABR(Adversarial):
    """SABR: FastIBP on a small box of radius lambda eps_{max,t}, around x_adv moved to where the box fits in.

    Its centre is clamp(x_adv, x - (1 - lambda) eps_{max,t}, x + (1 - lambda) eps_{max,t}).

    Source: Mueller et al. 2023, "Certified training: small boxes are all you need".
    """

    small_box: float = 0.4  # lambda

    def box(self, step: Step, radii: Tensor) -> Box:
        """The small box in the ball of each radius; while eps_{max,t} = 0 the ball itself."""
        if step.x_adv is None:
            return super().box(step, radii)
        return self._small(radii, step.x, step.x_adv)

    def _small(self, radii: Tensor, x: Tensor, x_adv: Tensor) -> Box:
        reach = ((1 - self.small_box) * radii).view(-1, *[1] * (x.dim() - 1))
        return ball(x + (x_adv - x).clamp(-reach, reach), self.small_box * radii, self.domain)


@dataclass(frozen=True)
class MTLIBP(Adversarial):
    """MTL-IBP: L_rob = alpha CE_IBP + (1 - alpha) CE(f(x_adv), y).

    Source: De Palma et al. 2024, "Expressive losses for verified robustness via convex combinations".
    """

    alpha: float = 0.5  # share of the IBP loss

    def robust(self, step: Step, margins: Tensor) -> Tensor:
        """The mixture of both losses."""
        return self._mixed(F.cross_entropy(margins, step.y), F.cross_entropy(step.frozen.logits(step.x_adv), step.y))

    def _mixed(self, ibp: Tensor, adversarial: Tensor) -> Tensor:
        return self.alpha * ibp + (1 - self.alpha) * adversarial


@dataclass(frozen=True)
class ExpIBP(MTLIBP):
    """Exp-IBP: L_rob = CE_IBP^alpha CE(f(x_adv), y)^(1 - alpha), of the batch's mean losses.

    Source: De Palma et al. 2024.
    """

    def _mixed(self, ibp: Tensor, adversarial: Tensor) -> Tensor:
        return ibp.clamp(min=SMALLEST) ** self.alpha * adversarial.clamp(min=SMALLEST) ** (1 - self.alpha)


@dataclass(frozen=True)
class CCIBP(MTLIBP):
    """CC-IBP: L_rob = CE(alpha margins_IBP + (1 - alpha) margins of f(x_adv), y).

    Source: De Palma et al. 2024.
    """

    def robust(self, step: Step, margins: Tensor) -> Tensor:
        """The loss of the mixture of both margins."""
        logits = step.frozen.logits(step.x_adv)
        attacked = logits - logits.gather(1, step.y.unsqueeze(1))
        return F.cross_entropy(self.alpha * margins + (1 - self.alpha) * attacked, step.y)


# ---- ours: does a radius of each sample's own help the successors too?


@dataclass(frozen=True)
class ACERTSABR(SABR, ACERT):
    """SABR at each sample's own radius: the largest r, capped by eps_{max,t}, at which its *small* box is certified.

    The attack is SABR's, at eps_{max,t}, and the small box follows it: radius lambda r around
    clamp(x_adv, x - (1 - lambda) r, x + (1 - lambda) r). Such boxes do not hold each other, so that r is a root and
    not always the first. Ours; not published.
    """

    def growth(self, step: Step) -> Growth | None:
        """That over small boxes which no attack has moved."""
        growth = super().growth(replace(step, eps=self.small_box * step.eps))
        return growth and growth._replace(eps=growth.eps - math.log(self.small_box))

    def searched(self, step: Step) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """The margin over the small box as a function of r."""

        def margin(eps: Tensor, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
            margins = step.frozen.margins(self._small(eps, x, x_adv), y, merged=self.merged)
            return without_zero(worst_margin(margins, y))

        return margin, (step.x, step.y, step.x_adv)


@dataclass(frozen=True)
class ACERTMTLIBP(MTLIBP, ACERT):
    """MTL-IBP with ACERT's radii: alpha CE(margins at E_cert(x)) + (1 - alpha) CE(f(x_adv), y), x_adv at eps_{max,t}.

    Ours; not published.
    """
