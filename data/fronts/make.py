"""Trains a front that comes with acertlab, and packs it: python data/fronts/make.py DATASET [METHOD].

With its networks, whose weights are rounded to half precision and which are then measured anew. Minutes on two cores; a
killed run goes on.
"""

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

import acertlab as al
from acertlab.data.files import read_json, write_json, write_weights
from acertlab.data.pack import pack_runs
from acertlab.data.run import WEIGHTS, load_run, runs_folder
from acertlab.training.loop.front import DONE, Front, measured_front
from acertlab.training.loop.train import write_results
from acertlab.training.parameters import config_of

SETTINGS: dict[str, dict[str, Any]] = {  # of the first network, beside those of the preset "fast"
    "digits": {"epochs": 12, "ramp_epochs": 6},
    "mnist": {"width": 4},
    "cifar10": {"width": 3},  # the largest for which there is room
}
WALKS: dict[str, dict[str, Any]] = {  # on MNIST the other way is the better one
    "digits": {},
    "mnist": {"kappas": (0.0, 0.25, 0.5, 0.75, 0.9), "epochs": 2, "lr": 1e-3},
    "cifar10": {"kappas": (0.9, 0.5, 0.2, 0.0), "epochs": 16},
}
PARTS = ("weight", "bias")  # of a layer: BatchNorm's statistics stay as they are


def rounded(front: Front, data: al.ImageData, out: Path) -> Front:
    """The front in half precision: each network, and those between, measured as it is then."""
    shutil.rmtree(out, ignore_errors=True)
    knots = {}
    for kappa, run in front.knots.items():
        state = run.load_model().state_dict()
        state |= {name: value.half().float() for name, value in state.items() if name.endswith(PARTS)}
        (model := run.load_model()).load_state_dict(state)
        folder, rows = out / run.path.name, run.history.to_dict("records")
        folder.mkdir(parents=True)
        shutil.copy(run.path / "config.json", folder)
        write_results(model, config_of(run.config), data, folder, lambda: None, rows, {"rounded": "float16"})
        knots[kappa] = load_run(folder)
    told = read_json(front.path / "front.json")
    write_json(out / "front.json", {name: value for name, value in told.items() if name != DONE})
    return measured_front(out, knots, config_of(run.config), data)


def main(dataset: str, method: str = "acert", below: Path = Path(__file__).parent) -> None:
    config, data = al.preset(dataset, method, budget="fast"), al.load_dataset(dataset)
    folder, out = runs_folder() / f"front-{dataset}-{method}", below / f"{dataset}-{method}"
    front = al.train_front(replace(config, **SETTINGS[dataset]), data, folder, **WALKS[dataset])
    pack_runs(rounded(front, data, folder.with_name(f"{folder.name}-rounded")).path, out, weights=True)
    weights = {n: v.half() if n.endswith(PARTS) else v for n, v in load_file(out / WEIGHTS).items()}
    write_weights(out / WEIGHTS, weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
