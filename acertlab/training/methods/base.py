"""What every training method is: a loss of one step of the loop.

Each method is a frozen dataclass of the hyperparameters that its loss needs, under `TrainConfig`'s own names, and is
called with a `Step`. Eq. (11) is common to all: L = kappa CE(f(x), y) + (1 - kappa) L_rob, and each method changes one
thing of `IBP`: the radius of each sample's box, where the box lies, what bounds the network over it, or the loss.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.ibp import IntervalNetwork
from acertlab.training.methods.sample_radii import Estimates


@dataclass(frozen=True)
class Step:
    """What a training method sees of one step."""

    x: Tensor  # (B, C, H, W) pixels in [0, 1]
    y: Tensor  # (B,) int64 labels
    logits: Tensor  # (B, classes) of the clean pass, with its graph
    frozen: IntervalNetwork | None  # with the step's weights and batch statistics; None if the method needs none
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
