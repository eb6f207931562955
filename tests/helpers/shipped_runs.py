"""The runs that come with the repository, sweep by sweep, and what is read and analysed of them once."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import acertlab as al
from acertlab.analysis.acr_breakdown import ACRBreakdown, CapSensitivity, acr_breakdown, cap_sensitivity
from acertlab.analysis.equal_accuracy import ratios_by_seed
from acertlab.analysis.tradeoff import Tradeoff, pool_seeds
from acertlab.data.run_table import load_finished, load_radii, load_samples

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
DATA = ROOT / "data"
RESAMPLES = 50  # of every bootstrap; drawn by numpy's default generator, seed 0


@dataclass(frozen=True)
class Sweep:
    """Runs that are compared with each other: of one dataset, from folders below data/, with some settings alike."""

    dataset: str
    folders: tuple[str, ...]
    where: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return ", ".join([" + ".join(self.folders), self.dataset, *(f"{key} {value}" for key, value in self.where)])

    @cached_property
    def runs(self) -> pd.DataFrame:
        runs = load_finished(*(DATA / folder for folder in self.folders))
        if self.where:
            runs = al.load_runs(DATA / self.folders[0], settings=[key for key, _ in self.where])
            runs = runs[np.logical_and.reduce([runs[key] == value for key, value in self.where])]
        return runs[runs.dataset == self.dataset]

    @cached_property
    def samples(self) -> dict[str, pd.DataFrame]:
        return load_samples(self.runs)

    @cached_property
    def radii(self) -> dict[str, np.ndarray]:
        return load_radii(self.runs)

    @cached_property
    def points(self) -> Tradeoff:
        return pool_seeds(self.runs, self.radii)

    @cached_property
    def analyses(self) -> dict[str, al.Analysis]:
        several = ("1", "0.5") if self.folders == (FRONTS,) else ("1",)
        return {name: al.analyse(self.runs, self.eps[name], resamples=RESAMPLES) for name in several}

    @cached_property
    def caps(self) -> CapSensitivity:
        return cap_sensitivity(self.analyses["1"].samples, self.analyses["1"].resamples)

    @cached_property
    def portraits(self) -> list[ACRBreakdown]:
        whole, grid = self.analyses["1"], list(self.eps.values())
        return [
            acr_breakdown(whole.samples, whole.resamples, best.method, best.kappa, whole.eps_max, grid)
            for best in whole.tuned
        ]

    @property
    def eps(self) -> dict[str, float]:
        """Several eps_max, by their share of the one trained for; the last one is how far radii were searched."""
        trained = float(self.runs.eps_max.iloc[0])
        return {f"{s:g}": s * trained for s in (0.1, 0.5, 1)} | {"cap": float(self.runs.radius_cap.min())}

    def seeds(self, method: str, kappa: float) -> list[al.Run]:
        return [al.load_run(path) for path in self.runs.path[(self.runs.method == method) & (self.runs.kappa == kappa)]]


FRONTS, METHODS, METHODS_MNIST = "results/fronts", "trials/methods", "trials/methods-mnist"
CONFIRMATION, CTRAIN, LONGER = "trials/confirmation", "trials/ctrain", "trials/epochs-40"
HISTORY, STEP_DECAY, TRAIN_EPS = "trials/radius-history", "trials/step-decay", "trials/train-eps"
BY_HISTORY, BY_LOG_SECANT, BY_BRENTQ = (
    (("solver", solver), ("radius_history", history))
    for solver, history in (("log-secant", True), ("log-secant", False), ("brentq", False))
)
SWEEPS = [
    Sweep("cifar10", (FRONTS,)),
    Sweep("mnist", (FRONTS,)),
    *(Sweep("cifar10", (name,)) for name in (CONFIRMATION, CTRAIN, LONGER, METHODS, STEP_DECAY, TRAIN_EPS)),
    Sweep("mnist", (METHODS_MNIST,)),
]
ONE_METHOD = [
    Sweep(dataset, (HISTORY,), by) for dataset in ("cifar10", "mnist") for by in (BY_HISTORY, BY_LOG_SECANT, BY_BRENTQ)
]
JOINED = [Sweep("cifar10", (FRONTS, METHODS)), Sweep("mnist", (FRONTS, METHODS_MNIST))]
SEED_BY_SEED = [
    (FRONTS, METHODS, METHODS_MNIST),
    *((FRONTS,), (CONFIRMATION,), (CTRAIN,), (STEP_DECAY,), (TRAIN_EPS,)),
    *((FRONTS, CONFIRMATION), (FRONTS, TRAIN_EPS)),
]
REPORTED = [FRONTS, CONFIRMATION, CTRAIN, STEP_DECAY, TRAIN_EPS]  # a figure a pair takes long where there are many


def seed_by_seed(folders: tuple[str, ...]) -> dict:
    """ACR at equal accuracy, of each two methods of which one is FastIBP or ACERT."""
    runs, found = load_finished(*(DATA / folder for folder in folders)), {}
    for (dataset, _), group in runs.groupby(["dataset", "eps_max"]):
        seeds = group.groupby("method").seed.agg(set)
        for method, other in ((a, b) for b in ("fast-ibp", "acert") if b in seeds for a in seeds.index if a != b):
            if len(seeds[method]) > 1 and seeds[method] == seeds[other]:
                found[f"{dataset} {method} / {other}"] = ratios_by_seed(group, method, other)
    return found
