"""What each training method minimises: one small class a method, with its equation.

Every class is a frozen dataclass of the hyperparameters that its loss needs, under `TrainConfig`'s own names, and is
called with a `Step`. Eq. (11) is common to all: L = kappa CE(f(x), y) + (1 - kappa) L_rob.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.approximate import Estimates, approximate_radius
from acertlab.box import Box, ball
from acertlab.fused import box_sums
from acertlab.interval import Frozen
from acertlab.margin import clean_margin

if TYPE_CHECKING:
    from acertlab.presets import TrainConfig

TAU = 0.5  # tolerance of both regularisers (Shi et al. 2021, section 3.3)
HISTORY_TOLERANCE = 1e-3  # of eps_max: error allowed to a radius that starts from the last epoch's
REGULARISER_EPS = 1e-6  # a box of radius 0 has no tightness: while regularising, boxes are at least this large


def tightness(relu_inputs: list[Box], input_radius: Tensor) -> Tensor:
    """Bound tightness, mean over ReLUs of relu(tau - d0 / max(d, 1e-12)) / tau: bounds should not blow up with depth.

    Args:
        relu_inputs: the box at the input of each ReLU; d is the mean of its half width (u - l) / 2.
        input_radius: () d0, the mean half width of the box at the network's (normalised) input.

    Returns:
        () the penalty, 0 where no ReLU's bounds are wider than d0 / tau.

    Source: Shi et al. 2021, "Fast certified robust training with short warmup".
    """
    return _tightness(_sums(relu_inputs), input_radius)


def _sums(relu_inputs: list[Box]) -> list[tuple[Tensor, Tensor]]:
    return [box_sums(box.lower, box.upper) for box in relu_inputs]


def _tightness(sums: list[tuple[Tensor, Tensor]], input_radius: Tensor) -> Tensor:
    terms = [F.relu(TAU - input_radius / means[0].clamp(min=1e-12)) / TAU for means, _ in sums]
    return torch.stack(terms).mean() if terms else input_radius.new_zeros(())


def relu_balance(relu_inputs: list[Box]) -> Tensor:
    """ReLU balance, mean over ReLUs of (relu(tau - r_mean) + relu(tau - r_var)) / tau: as much active as inactive.

    With c the centres, r_mean = mean(c [l>0]) / -mean(c [u<0]) and
    r_var = sum((c - mean c)^2 [l>0]) / sum((c - mean c)^2 [u<0]), each replaced by min(r, 1/r).

    Args:
        relu_inputs: the box at the input of each ReLU.

    Returns:
        () the penalty. A layer without a surely inactive neuron, whose r_mean is infinite or undefined, is skipped as
        in the published code: it counts 0. The mean is over all ReLUs.

    Source: Shi et al. 2021.
    """
    return _relu_balance(_sums(relu_inputs))


def _relu_balance(sums: list[tuple[Tensor, Tensor]]) -> Tensor:
    terms = []
    for (_, active, inactive, spread_active, spread_inactive), n_inactive in sums:
        r_mean, _ = _symmetric_ratio(active, -inactive)
        r_var, defined = _symmetric_ratio(spread_active, spread_inactive)
        term = (F.relu(TAU - r_mean) + F.relu(TAU - r_var)) / TAU
        terms.append(torch.where((n_inactive > 0) & defined & term.isfinite(), term, 0.0))
    return torch.stack(terms).mean() if terms else torch.zeros(())


def _symmetric_ratio(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """min(a/b, b/a) for a, b >= 0, and whether it is defined; written so that the gradient of 0/0 is 0, not NaN."""
    large = torch.maximum(a, b)
    defined = large > 0
    return torch.minimum(a, b) / torch.where(defined, large, 1.0), defined


def l1_norm(model: nn.Module) -> Tensor:
    """Sum of |w| over the weights of affine layers: parameters of two or more dimensions."""
    return sum((p.abs().sum() for p in model.parameters() if p.dim() > 1), start=torch.zeros(()))


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


@dataclass(frozen=True)
class Standard:
    """Standard training: L = CE(f(x), y)  (Eq. 10)."""

    bounds: ClassVar[bool] = False  # whether the method bounds the network
    ibp_init: ClassVar[bool] = False  # whether weights start from Shi et al.'s IBP initialisation

    @classmethod
    def from_config(cls, config: "TrainConfig") -> Self:
        """The objective with the hyperparameters that ``config`` holds under the same names."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

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

    def radii(self, step: Step) -> Estimates:
        """The radius of each sample's box, without gradient: here eps_{max,t} for all."""
        return Estimates.given(step.x.new_full((len(step.y),), step.eps))

    def regulariser_weight(self, eps: float) -> float:
        """The weight of both regularisers at eps_{max,t}: none here."""
        return 0.0

    def __call__(self, step: Step) -> tuple[Tensor, dict[str, Tensor | Estimates]]:
        """The loss of one step; see `Standard.__call__`. Where eps_{max,t} = 0 the robust term is the clean loss."""
        clean = robust = F.cross_entropy(step.logits, step.y)
        regulariser, found, weight = clean.new_zeros(()), self.radii(step), self.regulariser_weight(step.eps)
        if step.eps > 0 or weight > 0:
            relu_inputs = [] if weight > 0 else None
            radii = found.radius.clamp(min=REGULARISER_EPS) if weight > 0 else found.radius
            box = ball(step.x, radii, self.domain)
            margins = step.frozen.margins(box, step.y, merged=self.merged, relu_inputs=relu_inputs)
            if step.eps > 0:
                robust = F.cross_entropy(margins, step.y)
            if weight > 0:
                input_radius, sums = (box.radius / step.std).mean(), _sums(relu_inputs)
                regulariser = weight * (_tightness(sums, input_radius) + _relu_balance(sums))
        loss = self.kappa * clean + (1 - self.kappa) * robust + regulariser
        return loss, self._log(clean, robust, regulariser, found)


@dataclass(frozen=True)
class FastIBP(IBP):
    """FastIBP: IBP + lambda0 (1 - eps_{max,t} / eps_max) (tightness + ReLU balance), from IBP initialisation.

    Source: Shi et al. 2021.
    """

    ibp_init: ClassVar[bool] = True

    eps_max: float = 0.4  # where the ramp ends, and the regularisers with it
    lambda0: float = 0.5  # their weight at the ramp's start

    def regulariser_weight(self, eps: float) -> float:
        """lambda0 (1 - eps_{max,t} / eps_max): falls to 0 as the ramp ends."""
        return self.lambda0 * max(0.0, 1.0 - eps / self.eps_max)


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

    solver: str = "log-secant"  # root finder
    xtol: float = 1e-6  # its tolerances, pixel units (paper, section 4)
    rtol: float = 1e-4
    root_iterations: int = 10  # its most iterations (the published code's; Table 6 has 2 and 100)

    def radii(self, step: Step) -> Estimates:
        """Radii in [0, eps_{max,t}] to the training tolerance, which need not be certified."""
        if step.eps == 0:
            return Estimates.given(step.x.new_zeros(len(step.y)))
        margin = clean_margin(step.logits.detach(), step.y)
        xtol = self.xtol if step.history is None else max(self.xtol, HISTORY_TOLERANCE * self.eps_max)
        return approximate_radius(
            step.frozen, step.x, step.y, margin, step.eps, merged=self.merged, domain=self.domain,
            solver=self.solver, xtol=xtol, rtol=self.rtol, maxiter=self.root_iterations,
            compact=step.x.device.type == "cpu", history=step.history,
        )  # fmt: skip


OBJECTIVES: dict[str, type[Standard]] = {
    "standard": Standard,
    "ibp": IBP,
    "fast-ibp": FastIBP,
    "acert": ACERT,
    "acert-fast": ACERTFast,
}


def smooth_ramp(step: int, first: int, last: int, eps: float, *, mid: float = 0.25, beta: float = 4.0) -> float:
    """eps_{max,t} by the smooth ramp: a (t - i)^beta up to step m, then linear to eps, equal in value and slope at m.

    m = i + int(mid (f - i)); a = eps / ((f - m) beta (m - i)^(beta-1) + (m - i)^beta).

    Args:
        step: t.
        first: i, the first step of the ramp: 0 at and before it.
        last: f, the ramp's last step: eps at and after it. first = last is no ramp: eps from that step on.
        eps: the value to reach, pixel units.
        mid: the share of the ramp that is a power; a ramp too short to have one is linear.
        beta: the power.

    Source: Shi et al. 2021 (the schedule of auto_LiRPA's training examples).
    """
    middle = first + int(mid * (last - first))
    if middle == first or step >= last or step <= first:
        return linear_ramp(step, first, last, eps)
    scale = eps / ((last - middle) * beta * (middle - first) ** (beta - 1) + (middle - first) ** beta)
    if step < middle:
        return scale * (step - first) ** beta
    at_middle = scale * (middle - first) ** beta
    return at_middle + (eps - at_middle) * (step - middle) / (last - middle)


def linear_ramp(step: int, first: int, last: int, eps: float) -> float:
    """eps_{max,t} by the linear ramp: 0 up to step ``first``, eps from step ``last`` on, a straight line between."""
    if step >= last:
        return eps
    return eps * (step - first) / (last - first) if step > first else 0.0


RAMPS = {"smooth": smooth_ramp, "linear": linear_ramp}
