"""Made-up sweeps: runs whose radii are known, in memory and as folders."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from acertlab.analysis.bootstrap import Samples, joint_samples
from acertlab.data import files
from acertlab.data.run import Run
from acertlab.radius import metrics
from acertlab.radius.search import RadiusStatus

EPS_MAX, CAP = 0.2, 0.25
SeedOf = tuple[str, float, int]  # method, kappa, seed


def sample_table(radius: np.ndarray, correct: np.ndarray | None = None, cap: float = CAP) -> pd.DataFrame:
    """A run's radii.parquet; without `correct` every positive radius is a correct image."""
    radius = np.asarray(radius, dtype=np.float32)
    correct = radius > 0 if correct is None else np.asarray(correct, dtype=bool)
    status = np.where(~correct, RadiusStatus.MISCLASSIFIED, RadiusStatus.CONVERGED)
    status[radius >= np.float32(cap)] = RadiusStatus.AT_EPS_MAX
    label = np.arange(len(radius)) % 10
    columns = {"index": np.arange(len(radius)), "label": label, "predicted": np.where(correct, label, label + 1)}
    return pd.DataFrame(columns | {"radius": radius, "upper": radius, "status": status.astype(np.int8)})


def result_of(of: SeedOf, table: pd.DataFrame, **changes: object) -> dict:
    method, kappa, seed = of
    scores = metrics.summarise(table, EPS_MAX, [EPS_MAX / 4, EPS_MAX], CAP)
    measured = {"verifier": "ibp", "merged": True, "domain": [0.0, 1.0], "n": len(table), "split": "test"}
    run = {"dataset": "digits", "method": method, "kappa": kappa, "eps_max": EPS_MAX, "seed": seed}
    rest = {"epochs": 3, "seconds": 1.5, "version": "0.1.0", "radius_cap": CAP}
    return {**run, **scores, **measured, **rest, **changes}


def write_sweep(root: Path, radii: Mapping[SeedOf, np.ndarray], val_art: Mapping[SeedOf, float] | None = None) -> Path:
    """Complete run folders; with `val_art` the last epoch has a validation ART."""
    for of, radius in radii.items():
        table, path = sample_table(radius), root / "{}-{:g}-{}".format(*of)
        files.write_json(path / "config.json", {"model": "mlp"})
        history = {"epoch": [0, 1], "val_art": [0.1, val_art[of]] if val_art else [np.nan, np.nan]}
        files.write_parquet(path / "history.parquet", pd.DataFrame(history))
        files.write_parquet(path / "radii.parquet", table)
        files.write_weights(path / "model.safetensors", {})
        files.write_json(path / "result.json", result_of(of, table))
    return root


def in_memory(radii: Mapping[SeedOf, np.ndarray]) -> Samples:
    """What `joint_samples` makes of such folders, without them."""
    tables = {str(of): sample_table(radius) for of, radius in radii.items()}
    results = [{"path": str(of), **result_of(of, tables[str(of)])} for of in radii]
    return joint_samples(pd.DataFrame(results), tables)


def synthetic_radii(
    methods: Mapping[str, float],
    kappas: tuple[float, ...] = (0.0, 0.5, 0.9),
    seeds: int = 3,
    n: int = 400,
    noise: float = 0.01,
    seed: int = 0,
) -> dict[SeedOf, np.ndarray]:
    """Methods on a common set of images, easy and hard; accuracy rises with kappa, radii fall.

    Args:
        methods: From a method to the factor of its radii.
        noise: Standard deviation of the accuracy over seeds.
    """
    rng = np.random.default_rng(seed)
    ease, radii = rng.random(n), {}
    for method, factor in methods.items():
        for kappa in kappas:
            for k in range(seeds):
                wrong = 0.5 - 0.3 * kappa + rng.normal(0, noise)
                score = np.clip(0.8 * ease + 0.2 * rng.random(n) - 0.8 * wrong, 0, None)
                radii[method, kappa, k] = np.clip(score * factor * (1 - 0.8 * kappa) * CAP, 0, CAP)
    return radii


def scores_of(rows: list[tuple]) -> pd.DataFrame:
    """A table of runs, from (method, kappa, seed, acc, acr)."""
    runs = pd.DataFrame(rows, columns=["method", "kappa", "seed", "acc", "acr"])
    return runs.assign(dataset="digits", eps_max=0.2, art=np.sqrt(runs.acc * runs.acr))


RUNS = scores_of(
    [
        ("acert", 0.25, 0, 0.90, 0.60),
        ("acert", 0.0, 0, 0.80, 0.70),
        ("acert", 0.0, 1, 0.84, 0.74),
        ("standard", 1.0, 0, 0.98, 0.0),
        ("fast-ibp", 0.0, 0, 0.70, 0.72),
        ("fast-ibp", 0.8, 0, 0.88, 0.62),
    ]
)


def run_of(acc: float, acr: float, *, radii=(0.0, 0.1, 0.2, 0.3), seconds=10.0, passes=2.0, **result) -> Run:
    """A run with these scores (fractions) and radii, of three epochs: clean, on the ramp, after it."""
    scores = {"acc": acc, "acr": acr, "art": (acc * acr) ** 0.5}
    result = {**scores, "eps_max": 0.4, "radius_cap": 0.4, "seconds": seconds, **result}
    history = pd.DataFrame({"eps_t": [0.0, 0.2, 0.4], "passes": [0.0, 9.0, passes]})
    return Run(Path("run"), {}, history, pd.DataFrame({"radius": radii}), result)
