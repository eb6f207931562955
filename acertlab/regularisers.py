"""FastIBP's regularisers, which keep bounds from blowing up while eps grows, and the L1 norm.

Source: Shi et al. 2021, "Fast certified robust training with short warmup".
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.box import Box
from acertlab.fused import box_sums

TAU = 0.5  # tolerance of both regularisers (Shi et al. 2021, section 3.3)


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


def regulariser(relu_inputs: list[Box], input_radius: Tensor) -> Tensor:
    """() `tightness` + `relu_balance`, which look at every box once together."""
    sums = _sums(relu_inputs)
    return _tightness(sums, input_radius) + _relu_balance(sums)


def l1_norm(model: nn.Module) -> Tensor:
    """Sum of |w| over the weights of affine layers: parameters of two or more dimensions."""
    return sum((p.abs().sum() for p in model.parameters() if p.dim() > 1), start=torch.zeros(()))
