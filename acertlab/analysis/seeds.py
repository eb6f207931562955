"""Mean and spread over seeds; scores at another eps_max."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from acertlab.radius import metrics
from acertlab.training.methods.catalogue import METHODS


def mean_over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a (dataset, eps_max, method, kappa): mean and standard deviation of acc, acr and art over the seeds.

    Args:
        runs: A row a run, as `load_runs` gives it.

    Returns:
        Columns dataset, eps_max, method, kappa, acc, acr, art, acc_std, acr_std, art_std (fractions; the deviations
        are 0 where there is one seed), seeds (their number), in the order of the methods' table and of kappa.

    Raises:
        ValueError: Runs that would be averaged differ in more than their seed, or a seed occurs twice.
    """
    keys = ["dataset", "eps_max", "method", "kappa"]
    _check_seeds(runs, keys)
    scores = runs.groupby(keys)[["acc", "acr", "art"]]
    table = scores.mean().join(scores.std().fillna(0.0).add_suffix("_std")).join(scores.size().rename("seeds"))
    table = table.reset_index()
    place = table.method.map({method: i for i, method in enumerate(METHODS)}).fillna(len(METHODS))
    by = ["dataset", "eps_max", "place", "method", "kappa"]
    return table.assign(place=place).sort_values(by, ignore_index=True).drop(columns="place")


def _check_seeds(runs: pd.DataFrame, keys: list[str]) -> None:
    settings = ("model", "width", "epochs", "batch_size", "verifier", "merged", "domain", "n", "split",
                "train_eps_factor")  # fmt: skip
    for column in (name for name in settings if name in runs):
        values = runs[column].astype(str).groupby([runs[key] for key in keys]).nunique()
        if (values > 1).any():
            which = ", ".join(f"{key} = {value}" for key, value in zip(keys, values.idxmax(), strict=True))
            raise ValueError(f"runs: those with {which} differ in {column}, so that they are not seeds of one setting")
    if (twice := runs.duplicated([*keys, "seed"])).any():
        which = ", ".join(f"{key} = {runs[twice].iloc[0][key]}" for key in [*keys, "seed"])
        raise ValueError(f"runs: there are two with {which}; keep one")


def rescore(runs: pd.DataFrame, radii: Mapping[str, np.ndarray], eps_max: float) -> pd.DataFrame:
    """Eq. (12)-(13) at another eps_max, from the stored radii: no network is run.

    A radius found up to radius_cap and cut at eps_max is the radius of Def. 3.1 for that eps_max.

    Args:
        runs: A row a run, all trained for one eps_max.
        radii: `load_radii(runs)`.
        eps_max: The new perceptual limit, pixel units, 0 < eps_max <= radius_cap of every run.

    Returns:
        A copy of the table with this eps_max, acr and art.

    Raises:
        ValueError: eps_max is out of that range, or runs trained for several eps_max would look alike.
    """
    if runs.eps_max.nunique() > 1:
        trained = ", ".join(f"{eps:g}" for eps in sorted(runs.eps_max.unique()))
        raise ValueError(f"runs: trained for several eps_max ({trained}); choose one, as runs[runs.eps_max == ...]")
    cap = runs.radius_cap.min()
    if not 0 < eps_max <= cap:
        raise ValueError(
            f"eps_max = {eps_max!r}: accepted is > 0 and <= {cap:g}, up to where these radii were searched"
        )
    acr = [float(metrics.acr(np.minimum(radii[path], eps_max), eps_max)) for path in runs.path]
    return runs.assign(eps_max=float(eps_max), acr=acr, art=np.sqrt(runs.acc * acr))
