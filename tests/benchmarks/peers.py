"""What else finds the same radii, and trains through the same bounds: what `acertlab.bench` compares with.

Every search gets the clean margins, and returns (B,) radii together with the mean number of evaluations a sample, the
clean pass included.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import optimize
from scipy.optimize import elementwise
from torch import Tensor, nn

from acertlab.bounds.box import Box, ball
from acertlab.bounds.crown.auto_lirpa_compat import bounded_module, import_auto_lirpa
from acertlab.bounds.ibp import Network
from acertlab.bounds.margin import margin_at, worst_margin
from acertlab.training.methods.base import Step, StepLog
from acertlab.training.methods.ibp import FastIBP


@dataclass(frozen=True)
class Batch:
    """Samples whose radii are sought.

    Attributes:
        network: prepared for bounds.
        x, y, clean: (B, ...) pixels, (B,) labels, (B,) clean margins.
        eps_max: pixel units.
        xtol: absolute tolerance, pixel units; the relative one is 0.
    """

    network: Network
    x: Tensor
    y: Tensor
    clean: Tensor
    eps_max: float
    xtol: float


class LirpaIBP:
    """auto_LiRPA's IBP of a network in evaluation mode, with no check of ours around it; a `Network` of ours.

    Args:
        model: copied, never changed; BatchNorm as auto_LiRPA handles it.
        x: a batch of samples, of which the shape counts.
    """

    monotone, tile = True, 1

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.converted = bounded_module(copy.deepcopy(model).requires_grad_(False), torch.zeros_like(x[:1]))

    def margins(self, box: Box, y: Tensor, *, merged: bool = True) -> Tensor:
        """As `acertlab.bounds.ibp.IntervalNetwork.margins`, merged always."""
        return lirpa_margins(self.converted, box.center, box, y)


def lirpa_margins(converted: Any, x: Tensor, box: Box, y: Tensor) -> Tensor:
    """(B, classes) upper bounds of logit_i - logit_y by IBP, the last layer merged; differentiable."""
    lirpa = import_auto_lirpa()
    bounded = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=math.inf, x_L=box.lower, x_U=box.upper))
    eye = torch.eye(converted.final_shape[-1], dtype=x.dtype)
    lower, _ = converted.compute_bounds(x=(bounded,), C=eye[y].unsqueeze(1) - eye, method="IBP", bound_upper=False)
    return -lower


def find_root(batch: Batch) -> tuple[Tensor, float]:
    """`scipy.optimize.elementwise.find_root` (Chandrupatla's method), which drops finished samples, on our margin; its
    roots, on whichever side they lie.

    numpy arrays that share the tensors' memory take the place of SCIPY_ARRAY_API, which has to be set before scipy is
    imported.
    """
    correct = (batch.clean < 0).nonzero().squeeze(1)

    def margin(eps: np.ndarray, index: np.ndarray) -> np.ndarray:
        pick = torch.from_numpy(index)
        return margin_at(batch.network, batch.x[pick], batch.y[pick], torch.from_numpy(eps)).numpy()

    radius = torch.zeros_like(batch.clean)
    ends = torch.stack([radius[correct], torch.full_like(radius[correct], batch.eps_max)]).numpy()
    found = elementwise.find_root(
        margin, (ends[0], ends[1]), args=(correct.numpy(),), tolerances={"xatol": batch.xtol, "xrtol": 0.0}
    )
    root = np.where(found.status == 0, found.x, batch.eps_max)  # else: no change of sign, certified there
    radius[correct] = torch.from_numpy(root.astype(ends.dtype))
    return radius, 1 + found.nfev.sum() / len(batch.x)


def brentq_one_by_one(batch: Batch) -> tuple[Tensor, float]:
    """`scipy.optimize.brentq` in a loop over the samples; its roots, on whichever side they lie."""
    radius, calls = torch.zeros_like(batch.clean), 0
    for i in (batch.clean < 0).nonzero().squeeze(1).tolist():
        x, y = batch.x[i : i + 1], batch.y[i : i + 1]

        def margin(eps: float, x: Tensor = x, y: Tensor = y) -> float:  # not padded: one row is all that it needs
            return float(worst_margin(batch.network.margins(ball(x, eps), y), y))

        if margin(batch.eps_max) < 0:
            radius[i], calls = batch.eps_max, calls + 1
            continue
        root, info = optimize.brentq(margin, 0.0, batch.eps_max, xtol=batch.xtol, full_output=True)
        radius[i], calls = root, calls + 1 + info.function_calls
    return radius, 1 + calls / len(batch.x)


@dataclass(frozen=True)
class FastIBPThroughLirpa(FastIBP):
    """FastIBP after its ramp, bounded by auto_LiRPA: what the training loop calls in place of `FastIBP`.

    Its regularisers are left out: their weight is 0 once eps_{max,t} = eps_max.
    """

    bounds: ClassVar[bool] = False  # the loop is to prepare nothing

    converted: Any = None  # auto_LiRPA's graph of the network, which is trained

    def __call__(self, step: Step) -> tuple[Tensor, StepLog]:
        """See `acertlab.training.methods.base.Standard.__call__`."""
        margins = lirpa_margins(self.converted, step.x, ball(step.x, step.eps, self.domain), step.y)
        clean, robust = F.cross_entropy(step.logits, step.y), F.cross_entropy(margins, step.y)
        loss = self.kappa * clean + (1 - self.kappa) * robust
        return loss, StepLog(clean.detach(), robust.detach(), clean.new_zeros(()), self.radii(step))
