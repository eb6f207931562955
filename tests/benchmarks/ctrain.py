"""CTRAIN's training beside ours: the same network, images, schedule and settings, certified by the same bounds.

    python -m tests.benchmarks.ctrain runs/ctrain --dataset cifar10 --epochs 10 --seeds 3

FastIBP, SABR and MTL-IBP, without a clean share of the loss. CTRAIN normalises its images outside of the network and
starts from random numbers of its own; all else is ours: architecture, OneCycle, ramp, regularisers' weight, attack,
augmentation. It is no part of this package: install it, and what it needs, as its README says. A finished run in the
folder is not trained again.

Source: Kaulen & Hoos 2025, "CTRAIN - a training library for certifiably robust neural networks".
"""

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from acertlab._text import markdown
from acertlab.analysis.method_table import epoch_seconds, scores
from acertlab.data.datasets import ImageData, augment, load_dataset, to_float
from acertlab.data.files import read_json, write_json
from acertlab.models.architectures import MODELS
from acertlab.models.state_dict import normalised
from acertlab.training.config import TrainConfig, preset
from acertlab.training.imported_run import import_run
from acertlab.training.loop.state import learning_rate
from acertlab.training.loop.train import train
from acertlab.training.methods.catalogue import name_of
from acertlab.training.parameters import with_epochs

METHODS = {"fast-ibp": "shi_train_model", "sabr": "sabr_train_model", "mtl-ibp": "mtl_ibp_train_model"}


class _Loader:
    """Batches as CTRAIN wants them: normalised, and it asks the loader how."""

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        channels = data.in_shape[0]
        self.mean, self.std = torch.tensor(data.mean or [0.0] * channels), torch.tensor(data.std or [1.0] * channels)
        mean, std = self.mean.view(-1, 1, 1), self.std.view(-1, 1, 1)
        self.min, self.max = (0 - mean) / std, (1 - mean) / std
        self._data, self._config, self._shape = data, config, (mean, std)
        self._generator = torch.Generator().manual_seed(config.seed)

    def __len__(self) -> int:
        return -(-len(self._data.train_x) // self._config.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self._data.train_x), generator=self._generator)
        for index in order.tensor_split(len(self)):
            x = augment(to_float(self._data.train_x[index]), self._config.dataset, self._generator)
            yield (x - self._shape[0]) / self._shape[1], self._data.train_y[index]


def train_by_ctrain(config: TrainConfig, data: ImageData, run_dir: Path) -> None:
    """Trains by CTRAIN's function for ``config.method``, on the CPU, and writes a run folder."""
    import CTRAIN.train.certified as theirs
    from auto_LiRPA import BoundedModule

    torch.manual_seed(config.seed)
    loader = _Loader(config, data)
    model = MODELS[config.model](data.in_shape, data.num_classes, width=config.width).eval()
    hardened = BoundedModule(model, torch.zeros(1, *data.in_shape), bound_opts={"conv_mode": "patches"}, device="cpu")
    optimizer = torch.optim.Adam(hardened.parameters(), lr=config.lr)
    rest = config.epochs - config.clean_epochs - config.ramp_epochs
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        getattr(theirs, METHODS[config.method])(
            model,
            hardened,
            loader,
            num_epochs=config.epochs,
            eps=config.train_eps,
            eps_std=config.train_eps / loader.std,
            eps_schedule=(config.clean_epochs, config.ramp_epochs, rest),
            optimizer=optimizer,
            lr_scheduler=learning_rate(config, optimizer, len(loader)),
            lr_decay_schedule_unit="batch",
            n_classes=data.num_classes,
            gradient_clip=config.clip,
            l1_regularisation_weight=config.l1 or None,
            shi_regularisation_weight=config.lambda0,
            results_path=None,
            device="cpu",
            **_own(config),
        )
    seconds = time.perf_counter() - started
    x = next(iter(loader))[0]
    for name, statistics in hardened.named_buffers():  # BatchNorm's: auto_LiRPA shares the weights, but not them
        model.get_buffer(name).copy_(statistics)
    hardened.eval(), model.eval()  # the first gives None
    assert torch.allclose(hardened(x), model(x), atol=1e-4), "CTRAIN trained another network"
    model = normalised(model, data.mean, data.std).eval() if data.mean else model
    run = import_run(
        model,
        data,
        run_dir,
        f"{name_of(config.method)} by CTRAIN",
        config.eps_max,
        seed=config.seed,
        radius_cap=config.cap,
        source=f"CTRAIN {version('CTRAIN')}",
        progress=False,
    )
    trained = {"epochs": config.epochs, "batch_size": config.batch_size, "seconds": seconds}
    write_json(run.path / "result.json", read_json(run.path / "result.json") | trained)


def _own(config: TrainConfig) -> dict[str, Any]:
    """What only one of CTRAIN's functions takes; SABR's falling steps and early end are its own and our defaults."""
    if config.method == "fast-ibp":  # CTRAIN's clean share falls from start_kappa to end_kappa
        return {"eps_scheduler_args": {"start_kappa": config.kappa, "end_kappa": config.kappa}}
    if config.method == "sabr":
        return {
            "subselection_ratio": config.small_box,
            "pgd_steps": config.attack_steps,
            "pgd_step_size": config.attack_step_size,
        }
    return {"alpha": config.alpha, "pgd_n_steps": config.attack_steps, "pgd_step_size": config.attack_step_size}


def compare(root: Path, dataset: str, epochs: int, seeds: int, width: int) -> pd.DataFrame:
    """Trains what is not there yet, seed by seed; a row a method and package."""
    data, runs = load_dataset(dataset), []
    cells = [(method, seed, ours) for seed in range(seeds) for method in METHODS for ours in (True, False)]
    for method, seed, ours in tqdm(cells, "train", unit="run"):
        config = replace(preset(dataset, method, budget="fast"), width=width, seed=seed, device="cpu")
        config = with_epochs(config, epochs)
        folder = root / f"{dataset}-{method}-{'ours' if ours else 'ctrain'}-epochs{epochs}-width{width}-seed{seed}"
        if ours:
            train(config, data, folder, progress=False)
        elif not (folder / "result.json").is_file():
            train_by_ctrain(config, data, folder)
        result = read_json(folder / "result.json")
        runs.append(result | {"method": name_of(method), "by": "acertlab" if ours else "CTRAIN"})
    table = pd.DataFrame(runs)
    rows = [
        {"method": method, "by": by, **scores(group), "s / epoch": epoch_seconds(group)}
        for (method, by), group in table.groupby(["method", "by"], sort=False)
    ]
    return pd.DataFrame(rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.ctrain", description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="folder for the runs; those that are finished are not trained again")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--width", type=int, default=8)
    given = parser.parse_args(arguments)
    try:
        version("CTRAIN")
        table = compare(given.root, given.dataset, given.epochs, given.seeds, given.width)
    except (ImportError, ValueError, FileNotFoundError) as error:
        hint = "; CTRAIN and what it needs are installed as its README says" if isinstance(error, ImportError) else ""
        print(f"ctrain: {error}{hint}", file=sys.stderr)
        return 1
    print(f"\n{given.dataset}, width {given.width}, {given.epochs} epochs, one thread:\n\n{markdown(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
