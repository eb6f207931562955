"""ACR at equal accuracy, seed by seed: `acertlab compare RUNS [RUNS ...] [--method acert --other fast-ibp]`.

Every seed has fronts of its own, over all settings that were varied: kappa, and the eps of training
(`train_eps_factor`). The ratio of both methods' ACR at one accuracy is read off them for each seed; its mean and
standard error say how far seeds agree. All seeds are judged on the same test images, whose choice the error does not
cover; `acertlab.analysis.fronts` resamples those, too.
"""

import numpy as np
import pandas as pd

from acertlab.analysis.seeds import check_comparable, check_seeds
from acertlab.analysis.tradeoff import front_acr
from acertlab.data.run import DEFAULTS_BEFORE
from acertlab.radius.metrics import front_places
from acertlab.training.methods.catalogue import name_of

STEPS = (0.01, 0.005, 0.002, 0.001)  # between two accuracies: the first that leaves `MIN_POINTS` of them, else the last
MIN_POINTS = 4
VARIED = ("kappa", "train_eps_factor")


def ratios_by_seed(runs: pd.DataFrame, method: str = "acert", other: str = "fast-ibp") -> pd.DataFrame:
    """Ratio of two methods' ACR at equal accuracy, interpolated along each seed's own fronts.

    The methods were run with the same seeds, on one dataset for one eps_max; ``runs`` are as `load_runs` gives them.

    Returns:
        A row an accuracy that all seeds' fronts of both methods reach, in even steps: accuracy, acr, other_acr, ratio
        (means over seeds; fractions), standard_error (of the ratio), low and high (the seeds' smallest and largest
        ratio), seeds. Empty if there is no such accuracy.

    Raises:
        ValueError: Runs of several datasets or eps_max; a method that is not there; seeds that differ; one seed only.
    """
    check_comparable(runs)
    seeds = [sorted(set(runs.seed[runs.method == name].tolist())) for name in (method, other)]
    if not all(seeds):
        there = ", ".join(runs.method.unique())
        raise ValueError(f"method, other: both must be among {there}; got {method!r}, {other!r}")
    if seeds[0] != seeds[1] or len(seeds[0]) < 2:
        raise ValueError(f"runs: at least two seeds, the same for both methods; got {seeds[0]} and {seeds[1]}")
    varied = [name for name in VARIED if name in runs]
    runs = runs.fillna({name: DEFAULTS_BEFORE[name] for name in varied if name in DEFAULTS_BEFORE})
    check_seeds(runs, ["dataset", "eps_max", "method", *varied])
    of_seeds = [
        [tuple(runs.loc[(runs.method == name) & (runs.seed == s), ["acc", "acr"]].to_numpy().T) for s in seeds[0]]
        for name in (method, other)
    ]
    ends = [acc[front_places(acc, acr)[[0, -1]]] for of_method in of_seeds for acc, acr in of_method]
    low, high = max(low for low, _ in ends), min(high for _, high in ends)
    grids = [_grid(low, high, step) for step in STEPS]
    accuracy = next((grid for grid in grids if len(grid) >= MIN_POINTS), grids[-1])
    at = np.minimum(accuracy, high)  # a multiple of the step may lie above by its rounding
    acr, other_acr = (np.stack([front_acr(x, y, at) for x, y in of_method]) for of_method in of_seeds)
    ratio = acr / other_acr
    columns = {"accuracy": accuracy, "acr": acr.mean(0), "other_acr": other_acr.mean(0), "ratio": ratio.mean(0)}
    columns |= {"standard_error": ratio.std(0, ddof=1) / len(ratio) ** 0.5, "low": ratio.min(0), "high": ratio.max(0)}
    return pd.DataFrame(columns | {"seeds": len(ratio)})


def _grid(low: float, high: float, step: float) -> np.ndarray:
    """The multiples of a step between two ends, which belong to it."""
    return np.arange(np.ceil(low / step - 1e-9), np.floor(high / step + 1e-9) + 1) * step


def ratio_table(runs: pd.DataFrame, method: str, other: str) -> pd.DataFrame:
    """`ratios_by_seed` as text: both ACR in percent, their ratio with its standard error, and the seeds' range."""
    found = ratios_by_seed(runs, method, other)
    columns = {
        "Acc %": (100 * found.accuracy).map("{:.1f}".format),
        f"{name_of(method)}: ACR %": (100 * found.acr).map("{:.2f}".format),
        f"{name_of(other)}: ACR %": (100 * found.other_acr).map("{:.2f}".format),
        "ratio": found.ratio.map("{:.3f}".format) + " ± " + found.standard_error.map("{:.3f}".format),
        "seeds from": found.low.map("{:.3f}".format),
        "to": found.high.map("{:.3f}".format),
    }
    return pd.DataFrame(columns)
