"""Networks and batches that are the same everywhere: by formula, in double precision, without random numbers."""

import torch
from torch import Tensor, nn

from acertlab.bounds.rules.affine import Normalize

GOLDEN = (5**0.5 - 1) / 2
MEAN, STD, CLASSES, SIDE, BATCH = 0.3, 0.6, 5, 8, 12


def spread(*shape: int, seed: int) -> Tensor:
    """Numbers spread over [0, 1): the multiples of a golden ratio's power, without their whole part."""
    count = torch.arange(1, torch.Size(shape).numel() + 1, dtype=torch.float64)
    return ((count + 7919 * seed) * GOLDEN * (1 + seed / 97) % 1).view(shape)


def batch() -> tuple[Tensor, Tensor]:
    """Images (12, 1, 8, 8), a fourth of their pixels black and a fourth white, and labels."""
    x = (2 * spread(BATCH, 1, SIDE, SIDE, seed=1) - 0.5).clamp(0, 1)
    return x, torch.arange(BATCH) % CLASSES


def noise(shape: torch.Size) -> Tensor:
    """What an attack starts with, in place of random numbers, in [0, 1)."""
    return spread(*shape, seed=2)


def body() -> list[nn.Module]:
    """Two convolutions and two linear layers, all but the last with BatchNorm and ReLU, in training mode."""
    layers: list[nn.Module] = [nn.Conv2d(1, 4, 3, 2, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    layers += [nn.Conv2d(4, 6, 3, 1, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()]
    layers += [nn.Linear(96, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, CLASSES)]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            for j, (name, value) in enumerate([*layer.named_parameters(), *layer.named_buffers()]):
                if not value.is_floating_point():
                    continue
                made = spread(*value.shape, seed=10 + 5 * i + j)
                if name == "weight" and value.dim() > 1:
                    made = (2 * made - 1) * (3 / value[0].numel()) ** 0.5
                elif name in ("weight", "running_var"):
                    made = 0.5 + made
                else:
                    made = 0.4 * made - 0.2
                value.data = made
        seen = (batch()[0] - MEAN) / STD
        for layer in layers:  # running statistics near the batch's, else an attack climbs another network
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                dims = [0, *range(2, seen.dim())]
                layer.running_mean = seen.mean(dims) + 0.1 * layer.running_mean
                layer.running_var = seen.var(dims) * (0.9 + 0.2 * layer.running_var)
            seen = layer.eval()(seen)
    return [layer.train() for layer in layers]


def network() -> nn.Sequential:
    """`body` behind the normalisation of pixels."""
    normalize = Normalize([MEAN], [STD]).double()
    normalize.mean.fill_(MEAN), normalize.std.fill_(STD)  # not rounded to single precision
    return nn.Sequential(normalize, *body()).train()


def told(value: Tensor) -> list[float]:
    """Two numbers that tell a tensor from others: a sum by uneven weights, and the sum of squares."""
    flat = value.detach().double().flatten()
    return [float(flat @ (0.5 + spread(len(flat), seed=3))), float(flat @ flat)]
