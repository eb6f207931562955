"""Run folders as the trainer leaves them, without a training."""

import numpy as np
import pandas as pd
import torch

from acertlab.data import files
from acertlab.models import architectures as models

CONFIG = {
    "dataset": "digits",
    "model": "mlp",
    "width": 8,
    "in_shape": [1, 8, 8],
    "classes": 10,
    "mean": None,
    "std": None,
}


def result(**changes):
    return {
        "dataset": "digits",
        "method": "acert",
        "kappa": 0.25,
        "eps_max": 0.1,
        "seed": 0,
        "acc": 0.9,
        "acr": 0.5,
        "art": 0.67,
        "cert_acc": {"0.05": 0.7, "0.1": 0.4},
        "verifier": "ibp",
        "merged": True,
        "domain": [0.0, 1.0],
        "n": 4,
        "split": "test",
        "epochs": 3,
        "seconds": 1.5,
        "version": "0.1.0",
        "radius_cap": 0.2,
    } | changes


def write_run(path, model=None, **changes):
    """A complete run folder, as the trainer leaves it; the radii are at 0, inside, above eps_max and at the cap."""
    torch.manual_seed(0)
    model = model or models.mlp((1, 8, 8), 10, width=8)
    files.write_json(path / "config.json", CONFIG)
    files.write_parquet(path / "history.parquet", pd.DataFrame({"epoch": [0, 1], "loss": [2.0, 1.0]}))
    radii = {
        "index": range(4),
        "label": [1, 2, 3, 4],
        "predicted": [2, 2, 3, 4],
        "radius": [0.0, 0.05, 0.15, 0.2],
        "upper": [0.0, 0.0501, 0.1501, np.inf],
        "status": [0, 1, 1, 2],
    }
    files.write_parquet(path / "radii.parquet", pd.DataFrame(radii))
    files.write_weights(path / "model.safetensors", model.state_dict())
    files.write_json(path / "result.json", result(**changes))
    return model
