"""FastIBP's regularisers, which keep bounds from blowing up while eps grows, and the L1 norm.

Source: Shi et al. 2021, "Fast certified robust training with short warmup".
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from acertlab.bounds.box import Box

ROWS = 32  # a CPU's cache holds what is made of so many samples; a GPU takes all at once


class _BoxSums(torch.autograd.Function):
    """All sums in one look at the box, and their gradients in another.

    By torch's own graph a step of FastIBP on the ramp takes 1.01 (small CNN) to 1.045 (CNN7 of width 16) of this on two
    free x86-64 cores, and 1.20 to 1.22 (both) where others compute beside it: medians of processor time, one thread,
    contenders taking turns.
    """

    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
        n, mean_lower, mean_upper = lower.numel(), lower.mean(), upper.mean()
        mean, total = (mean_lower + mean_upper) / 2, lower.new_zeros(6)
        for low, high in _parts(lower, upper):
            on, off = (low > 0).to(low), (high < 0).to(low)
            counts = (on.sum(), off.sum())
            d = (low + high).mul_(0.5).sub_(mean).flatten()
            on, off = on.flatten().mul_(d), off.flatten().mul_(d)
            total += torch.stack([*counts, on.sum(), off.sum(), on @ d, off @ d])
        n_on, n_off, s_on, s_off, v_on, v_off = total.unbind()
        ctx.save_for_backward(lower, upper, mean, s_on, s_off)
        ctx.mark_non_differentiable(n_off)
        radius = (mean_upper - mean_lower) / 2
        return torch.stack([radius, (s_on + mean * n_on) / n, (s_off + mean * n_off) / n, v_on, v_off]), n_off

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the names)
        ctx: Any, grad: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor]:
        lower, upper, mean, s_on, s_off = ctx.saved_tensors
        n = lower.numel()
        radius, a_on, a_off, v_on, v_off = grad.unbind()
        # of the centre c: on (a_on / n + 2 v_on (c - mean)), likewise off, and what the mean in v contributes
        base = -2 * (v_on * s_on + v_off * s_off) / n
        ends = torch.empty_like(lower), torch.empty_like(upper)
        for low, high, g_low, g_high in _parts(lower, upper, *ends):
            c = low + high
            on = torch.addcmul(base + a_on / n - 2 * v_on * mean, c, v_on)
            off = torch.addcmul(base + a_off / n - 2 * v_off * mean, c, v_off)
            g = torch.where(low > 0, on, torch.where(high < 0, off, base)).mul_(0.5)
            torch.sub(g, radius / (2 * n), out=g_low)
            torch.add(g, radius / (2 * n), out=g_high)
        return ends


def _parts(*tensors: Tensor) -> zip:
    rows = ROWS if tensors[0].device.type == "cpu" else max(1, len(tensors[0]))
    return zip(*(t.split(rows) for t in tensors), strict=True)


def box_sums(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the box at a ReLU from which both regularisers follow.

    With c = (l + u) / 2; active are l > 0, inactive u < 0.

    Returns:
        (5,): mean of the radius, mean(c [active]), mean(c [inactive]), sum((c - mean c)^2 [active]) and
        sum((c - mean c)^2 [inactive]); and () how many are inactive, without gradient.
    """
    return _BoxSums.apply(lower, upper)


Sums = tuple[Tensor, Tensor]  # of one ReLU's box, by `box_sums`
TAU = 0.5  # tolerance of both regularisers (Shi et al. 2021, section 3.3)


def tightness(sums: list[Sums], input_radius: Tensor) -> Tensor:
    """Bound tightness, mean over ReLUs of relu(tau - d0 / max(d, 1e-12)) / tau: bounds should not blow up with depth.

    d is the mean of the half width (u - l) / 2 of the box at a ReLU's input, d0 = ``input_radius`` that of the box at
    the network's (normalised) input. The penalty is 0 where no ReLU's bounds are wider than d0 / tau.
    """
    terms = [F.relu(TAU - input_radius / means[0].clamp(min=1e-12)) / TAU for means, _ in sums]
    return torch.stack(terms).mean() if terms else input_radius.new_zeros(())


def relu_balance(sums: list[Sums]) -> Tensor:
    """ReLU balance, mean over ReLUs of (relu(tau - r_mean) + relu(tau - r_var)) / tau: as much active as inactive.

    With c the centres, r_mean = mean(c [l>0]) / -mean(c [u<0]) and
    r_var = sum((c - mean c)^2 [l>0]) / sum((c - mean c)^2 [u<0]), each replaced by min(r, 1/r).

    A layer without a surely inactive neuron, whose r_mean is infinite or undefined, is skipped as in the published
    code: it counts 0. The mean is over all ReLUs.
    """
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
    sums = [box_sums(box.lower, box.upper) for box in relu_inputs]
    return tightness(sums, input_radius) + relu_balance(sums)


L1_REACH = {"weights": 2, "parameters": 0}  # fewest dimensions of a parameter that counts


def l1_norm(model: nn.Module, reach: str = "weights") -> Tensor:
    """Sum of |w| over the trained weights of affine layers (two or more dimensions), or over all trained parameters."""
    counted = (p for p in model.parameters() if p.requires_grad and p.dim() >= L1_REACH[reach])
    return sum((p.abs().sum() for p in counted), start=torch.zeros(()))
