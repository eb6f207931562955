"""Networks trained in seconds, for tests that want real margins."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor, nn

from acertlab.bounds.box import Box, ball
from acertlab.bounds.ibp import freeze
from acertlab.models.initialisation import ibp_init_
from acertlab.training.loop.batch_statistics import clean_pass


class Program(nn.Module):
    """A function of x and layers as a module's forward."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


def warm_up(model: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Gives BatchNorm running statistics and an affine part that are not trivial."""
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.normal_(layer.weight, 0.2, 1.0)  # of either sign
            nn.init.normal_(layer.bias)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.rand(32, *shape, dtype=next(model.parameters()).dtype))
    return model.eval()


def points_of(model: nn.Module, box: Box, y: Tensor, n: int = 8) -> Tensor:
    """(n + 5, B, ...): random points, corners, and those to which the signs of a few gradients point."""
    u = torch.rand(n, *box.lower.shape, dtype=box.lower.dtype)
    u[: n // 2] = u[: n // 2].round()
    points = [*torch.lerp(box.lower, box.upper, u), box.lower, box.upper]
    for _ in range(3):
        x = points[-1].detach().requires_grad_()
        logits = model(x)
        others = logits.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)
        differences = (others - logits.gather(1, y.unsqueeze(1)).squeeze(1)).sum()
        (slope,) = torch.autograd.grad(differences, x, materialize_grads=True)
        points.append(torch.where(slope > 0, box.upper, torch.where(slope < 0, box.lower, x.detach())))
    return torch.stack(points).clamp(box.lower, box.upper)


@dataclass(frozen=True)
class Trained:
    """A certifiably trained network in evaluation mode, with test images it has not seen."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps_max: float


def train_quickly(
    build: Callable[[], nn.Module], x: Tensor, y: Tensor, eps: float, steps: int, lr: float, weights: Path
) -> nn.Module:
    """A few steps of IBP training with a linear ramp: enough for radii of 0, inside and at eps_max.

    The network is built here, after seeding: whatever ran before, it is always the same one. Its weights are kept in a
    file, for all processes that ask.
    """
    with FileLock(weights.with_suffix(".lock")):
        if not weights.exists():
            torch.save(_trained(build, x, y, eps, steps, lr).state_dict(), weights)
    model = build().eval()
    model.load_state_dict(torch.load(weights))
    return model


def _trained(build: Callable[[], nn.Module], x: Tensor, y: Tensor, eps: float, steps: int, lr: float) -> nn.Module:
    torch.manual_seed(0)
    model = ibp_init_(build()).train()
    optimizer = torch.optim.Adam(model.parameters(), lr)
    for step in range(steps):
        pick = torch.randint(len(x), (128,))
        logits, statistics = clean_pass(model, x[pick])
        eps_t = eps * max(0.0, min(1.0, (step / steps - 0.1) / 0.6))
        margins = freeze(model, statistics).margins(ball(x[pick], eps_t), y[pick])
        loss = 0.5 * F.cross_entropy(logits, y[pick]) + 0.5 * F.cross_entropy(margins, y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def linear(n: int, classes: int, seed: int, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A linear classifier with random weights, whose robust radii have a closed form."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(n, classes)).to(dtype).eval()
