"""Autograd functions of a training step: each does in few passes over memory what torch's own graph does in many."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 32  # a CPU's cache holds what is made of so many samples; a GPU takes all at once


class _SumAndDifference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return a + b, a - b

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_sum: Tensor, grad_difference: Tensor) -> tuple[Tensor, Tensor]:
        return grad_sum + grad_difference, grad_sum - grad_difference


def sum_and_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a + b and a - b, of the same shape: a box's ends from its centre and radius, and back."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return _SumAndDifference.apply(a, b)
    return a + b, a - b


class _FusedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, weight: Tensor | None, bias: Tensor | None, running: tuple, momentum: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        out, mean, inverse = torch.native_batch_norm(z, weight, bias, *running, True, momentum, eps)
        ctx.save_for_backward(z, weight, mean, inverse)
        ctx.eps = eps
        return out, mean, inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_mean: Tensor, grad_inverse: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, mean, inverse = ctx.saved_tensors
        mask = [True, *ctx.needs_input_grad[1:3]]
        grad, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad_out, z, weight, None, None, mean, inverse, True, ctx.eps, mask
        )
        n, shape = z.numel() // len(mean), (1, -1, *[1] * (z.dim() - 2))
        slope = -grad_inverse * inverse**3 / n  # of 1 / sqrt(var + eps) in z - mean
        shift = grad_mean / n - slope * mean
        grad.addcmul_(z, slope.view(shape)).add_(shift.view(shape))
        return grad, grad_weight if mask[1] else None, grad_bias if mask[2] else None, None, None, None


def batch_norm(
    z: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm in training mode, with the batch's mean and biased variance, (C,) each, and their gradients.

    Args:
        z: (B, C, ...).
        running_mean, running_var: (C,), updated in place, or None.
        weight, bias: (C,) or None.
        momentum, eps: as in ``torch.nn.BatchNorm2d``.
    """
    out, mean, inverse = _FusedBatchNorm.apply(z, weight, bias, (running_mean, running_var), momentum, eps)
    return out, mean, inverse**-2 - eps


class _BoxSums(torch.autograd.Function):
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
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
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
    """What the regularisers need of the box at a ReLU, with c = (l + u) / 2, the active l > 0, the inactive u < 0.

    Returns:
        (5,): mean of the radius, mean(c [active]), mean(c [inactive]), sum((c - mean c)^2 [active]) and
        sum((c - mean c)^2 [inactive]); and () how many are inactive, without gradient.
    """
    return _BoxSums.apply(lower, upper)
