"""Networks trained once a session, on the embedded digits and, where it is at hand, on real MNIST."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from acertlab.analysis import tradeoff
from acertlab.data import datasets as data
from acertlab.data.files import write_json, write_parquet
from acertlab.data.run_table import load_radii, load_runs
from acertlab.models.architectures import small_cnn
from acertlab.radius import metrics
from tests.helpers.networks import Trained, train_quickly

torch.set_num_threads(1)  # two-thread torch slows down many-fold where another process runs


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
def networks(runs: pd.DataFrame) -> tradeoff.Tradeoff:
    return tradeoff.pool_seeds(runs, load_radii(runs))
