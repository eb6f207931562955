"""Networks as others publish them, to be read from files of theirs."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from acertlab.models.architectures import small_cnn
from acertlab.radius.certified import certified_radius

MEAN, STD = (0.3,), (0.4,)
SHAPE = (1, 8, 8)


def lively(model: nn.Module) -> nn.Module:
    """In evaluation mode, with BatchNorms that do something."""
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5), nn.init.normal_(layer.bias, 0, 0.1)
            nn.init.normal_(layer.running_mean, 0, 0.1), nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()


def assert_same(ours: nn.Module, theirs: nn.Module, merged: tuple[bool, ...] = (True, False)) -> None:
    """The same outputs and, with and without merged margins, the same certified radii."""
    x = torch.rand(7, *SHAPE)
    assert not ours.training and all(p.dtype == torch.float32 for p in ours.parameters())
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        y = theirs(x).argmax(1)
    for how in merged:
        radii = [certified_radius(m.double(), x.double(), y, 0.5, merged=how).radius for m in (ours, theirs)]
        assert (radii[0] > 0).all() and torch.allclose(*radii, rtol=1e-4)
        ours.float(), theirs.float()


class Normalization(nn.Module):
    """SABR's: statistics as parameters of shape (1, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(MEAN).view(1, -1, 1, 1), requires_grad=False)
        self.sigma = nn.Parameter(torch.tensor(STD).view(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sigma


class Blocks(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def layers() -> list[nn.Module]:
    return list(small_cnn(SHAPE, 10, width=2, linear=6))


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def as_export(net: nn.Module, path: Path, batch: int = 1, **settings: Any) -> Path:
    torch.export.save(torch.export.export(net, (torch.rand(batch, *SHAPE),), **settings), path)
    return path


def write_bytes(content: Callable[[], bytes]) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content())


def script(path: Path, net: nn.Module | None = None, **settings: Any) -> None:
    torch.jit.save(torch.jit.script(net or nn.Linear(3, 2), **settings), path)
