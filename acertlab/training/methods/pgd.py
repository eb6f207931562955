"""PGD inside a training step: cheap, unchecked and without a witness, unlike `acertlab.pgd`."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from acertlab.bounds.box import Box, DomainLike, ball, per_sample
from acertlab.bounds.ibp import IntervalNetwork

RULES = ("mueller", "mao", "de-palma", "last")  # whose attack; see `training_attack`


def training_attack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    rule: str = "mueller",
    steps: int = 8,
    step_size: float = 0.5,
    domain: DomainLike = (0.0, 1.0),
    amp: bool = False,
) -> Tensor:
    """PGD as certified training has it: one random start, climbing the cross entropy; one of its points, (B, ...).

    By ``rule``, with "the ball" cut to ``domain``:

    ========== ===================================== ============================ =====================================
    rule       starts                                a step is step_size times    returns of each sample
    ========== ===================================== ============================ =====================================
    "mueller"  x and noise as wide as the ball       half the widest pixel of it  the last point, if one of its points
                                                                                  was misclassified; else of all but the
                                                                                  last that of the largest loss
    "mao"      as "mueller"                          the same, but none falls     as "mueller"
    "de-palma" anywhere in the ball                  half of each pixel of it     the point of the largest loss; with
                                                                                  one step the last
    "last"     anywhere in the ball                  eps                          the last point
    ========== ===================================== ============================ =====================================

    "mueller" and "last" take steps that fall tenfold after 50, 80 and 90 % of them. "mueller" and
    "mao" may leave the ball by their start alone, and stop as soon as the whole batch is misclassified.

    ``x`` (B, ...) are pixels inside ``domain``, ``y`` (B,) labels, ``eps`` > 0 is in pixel units. A ``step_size`` of 2
    or more reaches the corners in one step (then the start hardly matters). The model may be in any mode: BatchNorm and
    Dropout are in evaluation mode meanwhile, and no statistics change. ``amp``: bfloat16 on CUDA.

    Source: the code of Mueller et al. 2023, Mao et al. 2023 (for STAPS) and De Palma et al. 2024; "last": Madry et al.
    2018, with the first's settings. Draws from torch's global generator; no host-device synchronisation.
    """
    box, modes = ball(x, eps, domain), [(module, module.training) for module in model.modules()]
    width, noise = box.upper - box.lower, torch.rand_like(x)
    ends = rule in ("mueller", "mao")  # where all are misclassified
    point = x + (noise - 0.5) * width if ends else box.lower + noise * width
    size = (width.max() / 2 if ends else {"de-palma": width / 2, "last": eps}[rule]) * step_size
    kept, best, found = x, x.new_full((len(x),), -torch.inf), torch.zeros_like(y, dtype=torch.bool)
    evaluated = steps + (ends or (rule == "de-palma" and steps > 1))
    model.eval()
    try:
        for step in range(evaluated):
            leaf = point.requires_grad_()
            with torch.enable_grad(), torch.autocast(x.device.type, torch.bfloat16, amp and x.device.type == "cuda"):
                logits = model(leaf)
                losses = F.cross_entropy(logits, y, reduction="none")
            point = point.detach()
            if ends:
                ended = found.all()  # before this point, which is then not looked at
                found = found | (logits.argmax(1) != y)
                better = losses > best if step < steps else torch.zeros_like(found)
                kept = torch.where(per_sample(~ended & (found | better), x), point, kept)
            else:
                better = losses >= best
                kept = torch.where(per_sample(better, x), point, kept)
            best = torch.where(better, losses.detach(), best)
            if step < steps:
                falls = 0 if rule in ("mao", "de-palma") else sum(step >= share * steps for share in (0.5, 0.8, 0.9))
                gradient = torch.autograd.grad(losses.sum(), leaf)[0]
                point = torch.clamp(point + size * 0.1**falls * gradient.sign(), box.lower, box.upper)
    finally:
        for module, training in modes:
            module.training = training
    return point if evaluated == steps else kept


# ---- inside a network, for TAPS (Mao et al. 2023). Numbers are those of the published code
LARGEST = 2**27  # numbers in the points that are attacked at once (half a gigabyte)


def latent_attack(network: IntervalNetwork, box: Box, y: Tensor, classes: int, steps: int) -> Tensor:
    """For each sample and each wrong class i, the point of the box with the largest margin f_i - f_y that PGD finds.

    From one random start; each step is a fifth of the box's width (2 / steps of it, if that is more), a tenth of that
    after 70 % of 20 to 50 steps (40 and 70 % of up to 80; 30, 60 and 80 % of more). The best of all points counts.

    The network is the last part, prepared, with K = ``classes`` outputs, and the box (B, ...) of its inputs. Returns
    (B, K - 1, ...), without gradient; the wrong classes in order.
    """
    rows = max(1, LARGEST // ((classes - 1) * box.lower[0].numel()))
    parts = zip(box.lower.detach().split(rows), box.upper.detach().split(rows), y.split(rows), strict=True)
    return torch.cat([_latent_attack(network, *part, classes, steps) for part in parts])


@torch.no_grad()
def _latent_attack(
    network: IntervalNetwork, lower: Tensor, upper: Tensor, y: Tensor, classes: int, steps: int
) -> Tensor:
    lower, upper = lower.unsqueeze(1), upper.unsqueeze(1)
    width, size = upper - lower, max(0.2, 2 / steps)
    shares = () if steps < 20 else (0.7,) if steps <= 50 else (0.4, 0.7) if steps <= 80 else (0.3, 0.6, 0.8)
    falls = [int(share * steps) for share in shares]
    shape = (len(y), classes - 1, *lower.shape[2:])
    point = lower + width * torch.rand(shape, dtype=lower.dtype, device=lower.device)
    best, largest = point.clone(), lower.new_full(shape[:2], -torch.inf)
    for step in range(steps + 1):
        with torch.enable_grad():
            leaf = point.detach().requires_grad_()
            margins = margins_at(network, leaf, y)
            slope = torch.autograd.grad(margins.sum(), leaf)[0] if step < steps else None
        better = margins > largest
        torch.where(better.view(*shape[:2], *[1] * (lower.dim() - 2)), point, best, out=best)
        largest = torch.maximum(largest, margins)
        if slope is not None:
            move = size * 0.1 ** sum(step >= fall for fall in falls) * width
            point = slope.sign_().mul_(move).add_(point).clamp_(lower, upper)  # in place: 0.75 of the attack's time
    return best


def margins_at(network: IntervalNetwork, points: Tensor, y: Tensor) -> Tensor:
    """f_i - f_y at a point of its own (B, K - 1, ...) for each wrong class i, (B, K - 1)."""
    wrong = wrong_classes(y, points.shape[1] + 1).unsqueeze(2)
    logits = network.logits(points.flatten(0, 1)).unflatten(0, points.shape[:2])  # (B, K - 1, K)
    return (logits.gather(2, wrong) - logits.gather(2, y.view(-1, 1, 1).expand_as(wrong))).squeeze(2)


def wrong_classes(y: Tensor, classes: int) -> Tensor:
    """(B, K - 1) all classes but y, in order."""
    others = torch.arange(classes - 1, device=y.device)
    return others + (others >= y.unsqueeze(1))


class _GradientLink(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, lower: Tensor, upper: Tensor, points: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(lower, upper, points)
        ctx.share = share
        return points.view_as(points)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (once_differentiable hides the names)
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        lower, upper, points = ctx.saved_tensors
        lower, upper = lower.unsqueeze(1), upper.unsqueeze(1)
        reach = ctx.share * (upper - lower)
        scaled = grad / reach.clamp(min=NARROW)

        def share(within: Tensor) -> Tensor:
            return (scaled * within.clamp(min=NARROW / 2) * (within >= 0)).sum(1)

        return share(lower + reach - points), share(points - (upper - reach)), None, None


NARROW = 1e-5  # an interval narrower than this gives each of its ends half of the gradient


def gradient_link(box: Box, points: Tensor, share: float) -> Tensor:
    """The points themselves, whose gradient goes to the ends of the box: the rectified linear gradient connector.

    With width w = upper - lower, upper receives max(0, 1 - (upper - point) / (c w)) of a point's gradient and lower
    max(0, 1 - (point - lower) / (c w)): all of it where the point is that end, none from c w away on. It is the
    derivative of no function. The points are (B, n, ...) in the box (B, ...), ``share`` is c > 0; beyond 1/2 a point
    between has both ends' attention.

    Source: Mao et al. 2023 (c = 0.5).
    """
    return _GradientLink.apply(box.lower, box.upper, points, share)
