"""The clean pass of a training step, and the BatchNorm statistics of its batch.

Source: Shi et al. 2021 (bounds use the clean batch's statistics).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from acertlab.bounds.ibp import Statistics


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


def clean_pass(model: nn.Module, x: Tensor) -> tuple[Tensor, Statistics]:
    """The model's own forward pass, and the statistics by which each BatchNorm in training mode normalised it.

    Args:
        model: any module; BatchNorm layers in training mode update their running statistics once, as always.
        x: (B, ...) inputs.

    Returns:
        logits (B, classes), and a dict from each such BatchNorm's name to its batch (mean, biased variance), attached
        to the autograd graph: the robust loss differentiates through them (Shi et al. 2021).
    """
    norms = [(n, m) for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.training]
    recording = _Recording()
    handles = [norm.register_forward_pre_hook(partial(recording.enter, name)) for name, norm in norms]
    handles += [norm.register_forward_hook(partial(recording.leave, name)) for name, norm in norms]
    try:
        with recording:
            return model(x), recording.statistics
    finally:
        for handle in handles:
            handle.remove()


class _Recording(TorchFunctionMode):
    """Takes the statistics from the normalisation itself, where that is torch's own, so as not to sum up twice."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics: Statistics = {}
        self.inside = ""

    def enter(self, name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        if name in self.statistics:
            raise ValueError(f"model: BatchNorm '{name}' is called twice; its batch statistics are ambiguous")
        self.inside = name

    def leave(self, name: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if name not in self.statistics:
            var, mean = torch.var_mean(inputs[0], [0, *range(2, inputs[0].dim())], correction=0)
            self.statistics[name] = (mean, var)
        self.inside = ""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and self.inside and kwargs.get("training") and torch.is_grad_enabled():
            z, mean, var = args
            if z.numel() > z.shape[1]:  # else it is refused, as always
                settings = (kwargs[name] for name in ("weight", "bias", "momentum", "eps"))
                out, *self.statistics[self.inside] = batch_norm(z, mean, var, *settings)
                return out
        return func(*args, **kwargs)
