"""The interface of a training method: the loss of one step of the loop.

Each method is a frozen dataclass of the hyperparameters that its loss needs, under `TrainConfig`'s own names, and is
called with a `Step`. Eq. (11) is common to all: L = kappa CE(f(x), y) + (1 - kappa) L_rob, and each method changes one
thing of `IBP`: the radius of each sample's box, where the box lies, what bounds the network over it, or the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.ibp import IntervalNetwork, Statistics
from acertlab.training.methods.sample_radii import RadiusEstimates

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """Inputs of a training method in one step."""

    x: Tensor  # (B, C, H, W) pixels in [0, 1]
    y: Tensor  # (B,) int64 labels
    logits: Tensor  # (B, classes) of the clean pass, with its graph
    frozen: IntervalNetwork | None  # with the step's weights and batch statistics; None if the method needs none
    eps: float  # eps_{max,t}, pixel units
    std: Tensor | float = 1.0  # (1, C, 1, 1) the model's normalisation, for d0 at the normalised input
    history: RadiusEstimates | None = None  # what the last epoch found for these samples
    model: nn.Module | None = None  # the network itself, for methods that attack it
    statistics: Statistics | None = None  # those in `frozen`, for methods that bound a part of the network
    own_pass: Callable[[Tensor], tuple[Tensor, IntervalNetwork]] | None = None  # its logits; bounds by that batch
    x_adv: Tensor | None = None  # (B, C, H, W) what the attack found
    passed_adv: Tensor | None = None  # (B, classes) its logits, where the network's own pass has been over it

    @property
    def network(self) -> IntervalNetwork:
        """What is bounded: `frozen`, which a method that bounds must be given."""
        return given(self.frozen, "frozen")

    @property
    def adversarial(self) -> Tensor:
        """The adversarial examples: `x_adv`, which a method that uses them must be given."""
        return given(self.x_adv, "x_adv")

    @property
    def logits_adv(self) -> Tensor:
        """(B, classes) of the adversarial examples, by the statistics that the bounds have."""
        return self.network.logits(self.adversarial) if self.passed_adv is None else self.passed_adv


def given(value: T | None, name: str) -> T:
    """A field of a `Step` that the method needs; ValueError where it was not given."""
    if value is None:
        raise ValueError(f"step.{name} = None: this method needs it")
    return value


class StepLog(NamedTuple):
    """Parts of a step's loss, detached."""

    clean: Tensor  # ()
    robust: Tensor  # ()
    regulariser: Tensor  # ()
    radii: RadiusEstimates  # the radius of each sample's box in the robust loss


@dataclass(frozen=True)
class Standard:
    """Standard training: L = CE(f(x), y)  (Eq. 10)."""

    bounds: ClassVar[bool] = False  # whether the method bounds the network
    searches: ClassVar[bool] = False  # whether it searches each sample's own radius
    splits: ClassVar[bool] = False  # whether it takes the network in two parts
    ibp_init: ClassVar[bool] = False  # whether weights start from Shi et al.'s IBP initialisation

    def __call__(self, step: Step) -> tuple[Tensor, StepLog]:
        """The loss of one step, () with its graph, and what to log."""
        clean = F.cross_entropy(step.logits, step.y)
        zeros = clean.new_zeros(())
        radii = RadiusEstimates.fixed(step.x.new_zeros(len(step.y)))
        return clean, StepLog(clean.detach(), clean.detach(), zeros, radii)
