"""Runs of a moment, on made-up images of two classes."""

from dataclasses import replace
from pathlib import Path

import torch

from acertlab.data.datasets import ImageData
from acertlab.training.config import TrainConfig
from acertlab.training.loop.train import train

CONFIG = TrainConfig(
    dataset="folder:made", eps_max=0.1, model="mlp", width=8, epochs=3, clean_epochs=1, ramp_epochs=1, batch_size=16
)


def made(seed: int = 0, n: int = 48) -> ImageData:
    """Images of two classes, one bright and one dark."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for count in (n, 16, 16):
        y = torch.randint(0, 2, (count,), generator=draw)
        x = torch.randint(0, 128, (count, 1, 6, 6), generator=draw) + 120 * y[:, None, None, None]
        parts += [x.to(torch.uint8), y]
    return ImageData("folder:made", *parts, classes=("dark", "bright"))


def quickly(data: ImageData, run_dir: Path, **settings: object) -> object:
    return train(replace(CONFIG, **settings), data, run_dir, progress=False)
