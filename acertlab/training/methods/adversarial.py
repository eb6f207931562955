"""Methods that also attack: SABR, MTL-IBP, CC-IBP, Exp-IBP, TAPS, STAPS, and their combinations with ACERT."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from acertlab.bounds.box import Box, ball, per_sample
from acertlab.bounds.graph.structure import Graph
from acertlab.bounds.ibp import IntervalNetwork, freeze
from acertlab.bounds.margin import worst_margin
from acertlab.models.split import split
from acertlab.radius.search import MarginGrowth, without_zero
from acertlab.training.methods.acert import ACERT
from acertlab.training.methods.base import Step, StepLog, given
from acertlab.training.methods.ibp import REGULARISER_EPS, FastIBP
from acertlab.training.methods.pgd import gradient_link, latent_attack, margins_at, training_attack, wrong_classes

SMALLEST = 1e-12  # of a loss that is raised to a power below 1, whose gradient is infinite at 0


@dataclass(frozen=True)
class Adversarial(FastIBP):
    """FastIBP that knows an adversarial example x_adv of every sample; by itself it makes no use of it.

    The attack, at attack_eps_factor eps_{max,t}, sees BatchNorm in evaluation mode.
    """

    authors_attack: ClassVar[str] = "mueller"  # a key of `RULES` in `acertlab.training.methods.pgd`

    attack: str = "authors"  # or "last": the last point of falling steps, whatever the method (version 0.1.0)
    attack_steps: int = 8  # of PGD, from one random start (Mueller et al. 2023)
    attack_step_size: float = 0.5  # relative to the ball's radius
    attack_eps_factor: float = 1.0  # radius of the attack over eps_{max,t}
    amp: bool = False  # attack in bfloat16 on CUDA; bounds never are

    def __call__(self, step: Step) -> tuple[Tensor, StepLog]:
        """The loss of one step; see `IBP.__call__`."""
        return super().__call__(self.attacked(step, self.attack_eps_factor * step.eps) if step.eps > 0 else step)

    def attacked(self, step: Step, eps: float) -> Step:
        """The step with what its attack at radius eps found."""
        x_adv = training_attack(
            given(step.model, "model"),
            step.x,
            step.y,
            eps,
            rule=self.authors_attack if self.attack == "authors" else self.attack,
            steps=self.attack_steps,
            step_size=self.attack_step_size,
            domain=self.domain,
            amp=self.amp,
        )
        return replace(step, x_adv=x_adv)


class ShrunkNetwork(IntervalNetwork):
    """A network whose ReLUs shrink the boxes on their way: what it gives are no bounds, and serve training alone.

    Where lower < 0 < upper at a ReLU's input, the upper end is (1 - share) times what it was, share in [0, 1); the
    gradient too. The network is prepared anew, with the same weights and statistics.
    """

    def __init__(self, network: IntervalNetwork, share: float) -> None:
        self.share = share
        super().__init__(network.model, network.statistics, network.graph if network.ready else None)

    def _prepare(self, graph: Graph) -> None:
        super()._prepare(graph)
        self.own_input = set()  # no ReLU works in place: the plain one would

    def _rule_of(self, node: fx.Node) -> Callable[..., Any] | None:
        return self._relu if self.is_relu(node) else super()._rule_of(node)

    def _relu(self, _: Any, box: Box) -> Box:
        upper = torch.where(box.lower < 0, (1 - self.share) * box.upper, box.upper)
        return Box(box.lower.relu(), upper.relu())


@dataclass(frozen=True)
class SABR(Adversarial):
    """SABR: FastIBP on a small box of radius lambda eps_{max,t}, around x_adv moved to where the box fits in.

    As its authors' code has it, it fits into the ball *cut to the domain* ("inside"): its centre is
    clamp(x_adv, l + lambda eps, u - lambda eps) with the ends l, u of that. Where they are closer than the box is wide,
    as at an image's border with lambda > 1/2, the upper end counts, so that the box of a white pixel reaches
    (2 lambda - 1) eps below the ball. With "cut" it is moved into the whole ball and cut afterwards, which makes it
    narrower at the border: of a black pixel with x_adv = 0 [0, lambda eps], in place of [0, min(1, 2 lambda) eps].

    With an attack_eps_factor the small box is a share of the attack's ball, as in De Palma et al.'s SABR. With a
    relu_shrinkage the boxes also shrink on their way through the network, see `ShrunkNetwork`; the regularisers see
    those that enter the ReLUs. Not while eps_{max,t} = 0.

    Source: Mueller et al. 2023, "Certified training: small boxes are all you need".
    """

    small_box: float = 0.4  # lambda
    small_box_at_border: str = "inside"  # or "cut" (version 0.1.0)
    relu_shrinkage: float = 0.0  # of a box's upper end, at each ReLU that it crosses

    def __call__(self, step: Step) -> tuple[Tensor, StepLog]:
        """The loss of one step; see `IBP.__call__`."""
        return super().__call__(replace(step, frozen=self._shrunk(step.network, step.eps)))

    def _shrunk(self, network: IntervalNetwork, eps: float) -> IntervalNetwork:
        return ShrunkNetwork(network, self.relu_shrinkage) if self.relu_shrinkage > 0 and eps > 0 else network

    def box(self, step: Step, radii: Tensor) -> Box:
        """The small box in the ball of each radius; while eps_{max,t} = 0 the ball itself."""
        if step.x_adv is None:
            return super().box(step, radii)
        return self._small(radii, step.x, step.x_adv)

    def _small(self, radii: Tensor, x: Tensor, x_adv: Tensor) -> Box:
        radii = self.attack_eps_factor * radii
        if self.small_box_at_border == "cut":
            reach = per_sample((1 - self.small_box) * radii, x)
            return ball(x + (x_adv - x).clamp(-reach, reach), self.small_box * radii, self.domain)
        whole, small = ball(x, radii, self.domain), per_sample(self.small_box * radii, x)
        return ball(x_adv.clamp(whole.lower + small, whole.upper - small), self.small_box * radii, self.domain)


@dataclass(frozen=True)
class Mixed(Adversarial):
    """Base of the losses that mix IBP's with the attack's: alpha CE_IBP + (1 - alpha) CE(f(x_adv), y)."""

    authors_attack: ClassVar[str] = "de-palma"

    alpha: float = 0.5  # share of the IBP loss

    def robust(self, step: Step, margins: Tensor) -> Tensor:
        """The mixture of both losses."""
        return self._mixed(F.cross_entropy(margins, step.y), F.cross_entropy(step.logits_adv, step.y))

    def _mixed(self, ibp: Tensor, adversarial: Tensor) -> Tensor:
        return self.alpha * ibp + (1 - self.alpha) * adversarial


@dataclass(frozen=True)
class MTLIBP(Mixed):
    """MTL-IBP: L_rob = alpha CE_IBP + (1 - alpha) CE(f(x_adv), y).

    As its authors' code has it, the network's pass over x_adv comes last, so that BatchNorm's running statistics are
    updated twice, by x and by x_adv, and the bounds have the statistics of x_adv ("attacked"). With "clean" f(x_adv)
    and the bounds have those of x, which alone are counted. While eps_{max,t} = 0 "attacked" attacks the smallest ball.

    Source: De Palma et al. 2024, "Expressive losses for verified robustness via convex combinations".
    """

    batch_statistics: str = "attacked"  # or "clean" (version 0.1.0)

    def __call__(self, step: Step) -> tuple[Tensor, StepLog]:
        """The loss of one step; see `IBP.__call__`."""
        if step.eps == 0 and self.batch_statistics == "attacked":
            step = self.attacked(step, REGULARISER_EPS)
        return super().__call__(step)

    def attacked(self, step: Step, eps: float) -> Step:
        """The step with what its attack at radius eps found, bounds by those examples' statistics."""
        step = super().attacked(step, eps)
        if self.batch_statistics == "clean":
            return step
        logits, frozen = given(step.own_pass, "own_pass")(step.adversarial)
        return replace(step, frozen=frozen, passed_adv=logits)


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
        logits = step.logits_adv
        attacked = logits - logits.gather(1, step.y.unsqueeze(1))
        return F.cross_entropy(self.alpha * margins + (1 - self.alpha) * attacked, step.y)


@dataclass(frozen=True)
class TAPS(FastIBP):
    """TAPS: once the ramp is over, L_rob = CE(TAPS margins) CE(IBP margins), of the batch's mean losses.

    The network is split. IBP bounds its first part; in the box that this gives, PGD looks for the largest margin of
    each wrong class by itself over the last part, the classifier: never larger than IBP's bound of it, and by a perfect
    search never smaller than at any x' in the ball. The point that is found passes its gradient on to both ends of
    that box (`gradient_link`). In the product the gradient of the TAPS loss counts ``taps_weight`` times:
    dL_rob = w CE_IBP dCE_TAPS + CE_TAPS dCE_IBP. While the ramp lasts it is FastIBP.

    Source: Mao et al. 2023, "Connecting certified and adversarial training".
    """

    splits: ClassVar[bool] = True

    classifier_relus: int = 1  # of the network's ReLUs, in the part that is attacked
    taps_weight: float = 5.0  # w, of the TAPS loss's gradient
    latent_steps: int = 20  # of PGD in the box between the parts
    link_share: float = 0.5  # c of the gradient connector

    def bounded(self, step: Step, box: Box, relu_inputs: list[Box] | None) -> Tensor:
        """The product of both losses at the end of the ramp; the IBP loss before."""
        if step.eps < self.eps_max:
            return super().bounded(step, box, relu_inputs)
        margins, estimated = self.both_margins(step, box)
        taps, ibp = F.cross_entropy(estimated, step.y), self.robust(step, margins)
        return (taps.detach() + self.taps_weight * (taps - taps.detach())) * ibp

    def both_margins(self, step: Step, box: Box) -> tuple[Tensor, Tensor]:
        """IBP's bounds of logit_i - logit_y over the box, and TAPS's estimates of the same, (B, classes) each."""
        parts = split(given(step.model, "model"), self.classifier_relus)
        first, classifier = (self._part(part, step) for part in parts)
        features, classes = first.propagate(box), step.logits.shape[1]
        margins = classifier.margins(features, step.y, merged=self.merged)
        points = latent_attack(classifier, features, step.y, classes, self.latent_steps)
        found = margins_at(classifier, gradient_link(features, points, self.link_share), step.y)
        return margins, torch.zeros_like(margins).scatter(1, wrong_classes(step.y, classes), found)

    def _part(self, part: nn.Module, step: Step) -> IntervalNetwork:
        """A part of the network, with the step's weights and batch statistics."""
        names, statistics = dict(part.named_modules()), given(step.statistics, "statistics")
        return freeze(part, {name: known for name, known in statistics.items() if name in names})


@dataclass(frozen=True)
class STAPS(TAPS, SABR):
    """STAPS: TAPS over SABR's small box instead of the ball; SABR while the ramp lasts.

    "inside", its small box is narrower at the border: lambda times the ball cut to the domain, pixel by pixel.
    In its authors' code BatchNorm counts the batches of the attack as well, and bounds of the first part have the
    statistics of its last one. Here all have the clean batch's, and nothing else is counted.

    Source: Mao et al. 2023.
    """

    authors_attack: ClassVar[str] = "mao"

    def _part(self, part: nn.Module, step: Step) -> IntervalNetwork:
        return self._shrunk(super()._part(part, step), step.eps)

    def _small(self, radii: Tensor, x: Tensor, x_adv: Tensor) -> Box:
        if self.small_box_at_border == "cut":
            return super()._small(radii, x, x_adv)
        whole = ball(x, self.attack_eps_factor * radii, self.domain)
        half = self.small_box * whole.radius
        centre = x_adv.clamp(whole.lower + half, whole.upper - half)
        return Box(centre - half, centre + half)


# ---- ours: does a radius of each sample's own help the successors too?
@dataclass(frozen=True)
class ACERTSABR(SABR, ACERT):
    """SABR at each sample's own radius: the largest r, capped by eps_{max,t}, at which its *small* box is certified.

    The attack is SABR's, at eps_{max,t}, and the small box follows it: radius lambda r around
    x_adv moved into the ball of r, by SABR's rule. Such boxes do not hold each other, so that r is a root and
    not always the first. Ours; not published.
    """

    def growth(self, step: Step) -> MarginGrowth | None:
        """That over small boxes which no attack has moved."""
        share = self.small_box * self.attack_eps_factor
        growth = super().growth(replace(step, eps=share * step.eps))
        return growth and growth._replace(eps=growth.eps - math.log(share))

    def searched(self, step: Step) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
        """The margin over the small box as a function of r."""

        def margin(eps: Tensor, x: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
            margins = step.network.margins(self._small(eps, x, x_adv), y, merged=self.merged)
            return without_zero(worst_margin(margins, y))

        return margin, (step.x, step.y, step.adversarial)


@dataclass(frozen=True)
class ACERTMTLIBP(Mixed, ACERT):
    """MTL-IBP with ACERT's radii: alpha CE(margins at E_cert(x)) + (1 - alpha) CE(f(x_adv), y), x_adv at eps_{max,t}.

    All have the clean batch's statistics, by which the radii are found.

    Ours; not published.
    """
