"""Networks trained once a session, on the embedded digits and, where it is at hand, on real MNIST."""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from acertlab.analysis import tradeoff
from acertlab.data import datasets as data
from acertlab.data.run_table import load_radii, load_runs
from acertlab.models.architectures import small_cnn
from tests.helpers.networks import Trained, train_quickly
from tests.helpers.synthetic_runs import CAP, write_sweep

torch.set_num_threads(1)  # two-thread torch slows down many-fold where another process runs


@pytest.fixture(scope="session")
def everybodys(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder for what one of pytest-xdist's workers makes for all of them."""
    mine = tmp_path_factory.getbasetemp()
    return mine.parent if hasattr(request.config, "workerinput") else mine


@pytest.fixture(scope="session")
def digits_net(everybodys: Path) -> Trained:
    images = data.load_dataset("digits")
    x, y = data.to_float(images.train_x), images.train_y
    build = partial(small_cnn, images.in_shape, 10, width=8, linear=50)
    model = train_quickly(build, x, y, 0.15, 300, 5e-3, everybodys / "digits.pt")
    return Trained("digits", model, data.to_float(images.test_x), images.test_y, 0.2)


@pytest.fixture(scope="session")
def mnist_net(everybodys: Path) -> Trained:
    root = Path(os.environ.get("ACERTLAB_DATA", "data/datasets"))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST under {root}; set ACERTLAB_DATA to the folder that holds MNIST/raw")
    images = data.load_dataset("mnist", root=root)
    x, y = data.to_float(images.train_x), images.train_y
    model = train_quickly(partial(small_cnn, images.in_shape, 10), x, y, 0.15, 300, 2e-3, everybodys / "mnist.pt")
    return Trained("mnist", model, data.to_float(images.test_x[:1000]), images.test_y[:1000], 0.2)


@pytest.fixture(params=["digits", "mnist"])
def trained(request: pytest.FixtureRequest) -> Trained:
    """Digits always; real MNIST where there is one, else skipped with a message."""
    return request.getfixturevalue(f"{request.param}_net")


@pytest.fixture(scope="session")
def synthetic_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two methods, one with two kappa of which one has two seeds; 40 samples each, no weights."""
    radii, rng = {}, np.random.default_rng(0)
    for of in [("acert", 0.0, 0), ("acert", 0.0, 1), ("acert", 0.5, 0), ("standard", 1.0, 0)]:
        radii[of] = rng.uniform(0, 0.02 if of[0] == "standard" else 0.4, 40).clip(max=CAP)
        radii[of][:4] = 0.0
    root = write_sweep(tmp_path_factory.mktemp("runs"), radii)
    for weights in root.glob("*/model.safetensors"):
        weights.unlink()
    return root


@pytest.fixture(scope="session")
def runs(synthetic_runs: Path) -> pd.DataFrame:
    return load_runs(synthetic_runs)


@pytest.fixture(scope="session")
def networks(runs: pd.DataFrame) -> tradeoff.Tradeoff:
    return tradeoff.pool_seeds(runs, load_radii(runs))
