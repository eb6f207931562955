"""Networks trained once a session, on the embedded digits and, where it is at hand, on real MNIST."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab import data, metrics, points
from acertlab.box import ball
from acertlab.interval import clean_pass, freeze
from acertlab.models import ibp_init_, small_cnn
from acertlab.runs import load_radii, load_runs, write_json, write_parquet

torch.set_num_threads(1)  # two-thread torch slows down many-fold where another process runs


@dataclass(frozen=True)
class Trained:
    """A certifiably trained network in evaluation mode, with test images it has not seen."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps_max: float


def train_quickly(build: Callable[[], nn.Module], x: Tensor, y: Tensor, eps: float, steps: int, lr: float) -> nn.Module:
    """A few steps of IBP training with a linear ramp: enough for radii of 0, inside and at eps_max.

    The network is built here, after seeding: whatever ran before, it is always the same one.
    """
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
    return model.eval()


@pytest.fixture(scope="session")
def digits_net() -> Trained:
    images = data.load_dataset("digits")
    x, y = data.to_float(images.train_x), images.train_y
    model = train_quickly(lambda: small_cnn(images.in_shape, 10, width=8, linear=50), x, y, 0.15, 300, 5e-3)
    return Trained("digits", model, data.to_float(images.test_x), images.test_y, 0.2)


@pytest.fixture(scope="session")
def mnist_net() -> Trained:
    root = Path(os.environ.get("ACERTLAB_DATA", "data/datasets"))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST under {root}; set ACERTLAB_DATA to the folder that holds MNIST/raw")
    images = data.load_dataset("mnist", root=root)
    x, y = data.to_float(images.train_x), images.train_y
    model = train_quickly(lambda: small_cnn(images.in_shape, 10), x, y, 0.15, 300, 2e-3)
    return Trained("mnist", model, data.to_float(images.test_x[:1000]), images.test_y[:1000], 0.2)


@pytest.fixture(params=["digits", "mnist"])
def trained(request: pytest.FixtureRequest) -> Trained:
    """Digits always; real MNIST where there is one, else skipped with a message."""
    return request.getfixturevalue(f"{request.param}_net")


@pytest.fixture(scope="session")
def synthetic_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two methods, one with two kappa of which one has two seeds; 40 samples each."""
    cap = 0.25
    root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    for method, kappa, seed in [("acert", 0.0, 0), ("acert", 0.0, 1), ("acert", 0.5, 0), ("standard", 1.0, 0)]:
        radii = rng.uniform(0, 0.02 if method == "standard" else 0.4, 40).clip(max=cap)
        radii[:4] = 0.0
        acr = float(metrics.acr(np.minimum(radii, 0.2), 0.2))
        path = root / f"{method}-{kappa}-{seed}"
        write_json(path / "config.json", {})
        label = np.arange(40) % 10
        columns = {"index": range(40), "label": label, "predicted": np.where(radii > 0, label, 10), "radius": radii,
                   "upper": radii, "status": 1}  # fmt: skip
        write_parquet(path / "radii.parquet", pd.DataFrame(columns))
        write_json(path / "result.json", {
            "dataset": "digits", "method": method, "kappa": kappa, "eps_max": 0.2, "seed": seed, "acc": 0.9,
            "acr": acr, "art": (0.9 * acr) ** 0.5, "cert_acc": {}, "verifier": "ibp", "merged": True,
            "domain": [0, 1], "n": 40, "split": "test", "epochs": 1, "seconds": 1, "version": "0", "radius_cap": cap,
        })  # fmt: skip
    return root


@pytest.fixture(scope="session")
def runs(synthetic_runs: Path) -> pd.DataFrame:
    return load_runs(synthetic_runs)


@pytest.fixture(scope="session")
def networks(runs: pd.DataFrame) -> points.Points:
    return points.pool(runs, load_radii(runs))
