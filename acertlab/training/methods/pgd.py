"""PGD inside a training step: cheap, unchecked and without a witness, unlike `acertlab.pgd`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.box import Domain, ball


def training_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    steps: int = 8,
    step_size: float = 0.5,
    domain: Domain = (0.0, 1.0),
    amp: bool = False,
) -> Tensor:
    """PGD as certified training has it: one random start, climbing the cross entropy; its last point, (B, ...).

    Args:
        model: in any mode; BatchNorm and Dropout are in evaluation mode meanwhile, and no statistics change.
        x: (B, ...) pixels inside ``domain``; y: (B,) int64 labels.
        eps: radius in pixel units, > 0.
        steps: >= 1, each of step_size * eps, falling tenfold after 50, 80 and 90 % of them.
        step_size: relative to eps, > 0; 2 or more reaches the corners in one step (then the start hardly matters).
        domain: (low, high) of valid pixels, or None.
        amp: evaluate in bfloat16 on CUDA.

    Source: Madry et al. 2018; settings of Mueller et al. 2023. Draws from torch's global generator; no host-device
    synchronisation.
    """
    box, modes = ball(x, eps, domain), [(module, module.training) for module in model.modules()]
    point = box.lower + torch.rand_like(x) * (box.upper - box.lower)
    model.eval()
    try:
        for step in range(steps):
            size = eps * step_size * 0.1 ** sum(step >= share * steps for share in (0.5, 0.8, 0.9))
            leaf = point.requires_grad_()
            with torch.enable_grad(), torch.autocast(x.device.type, torch.bfloat16, amp and x.device.type == "cuda"):
                loss = F.cross_entropy(model(leaf), y, reduction="sum")
            gradient = torch.autograd.grad(loss, leaf)[0]
            point = (point.detach() + size * gradient.sign()).clamp(box.lower, box.upper)
    finally:
        for module, training in modes:
            module.training = training
    return point
