"""Runs that differ in their seeds alone: their mean and spread, the best kappa, their scores at another eps_max."""

import json
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd

from acertlab._validation import refuse
from acertlab.data.run import DEFAULTS_BEFORE, NOT_IDENTIFYING, as_today
from acertlab.data.run_table import load_histories
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import METHODS

SETTING = ["dataset", "eps_max", "method", "kappa"]
# What seeds have in common, with all else in config.json; how they were measured; and what of config.json is their own
TRAINING = ("model", "width", "epochs", "batch_size", "train_eps_factor")
MEASURED = ("verifier", "merged", "domain", "n", "split", "protocol", "radius_cap")
COMPARED = ("dataset", "eps_max", "verifier", "merged", "domain", "split")  # what runs have in common that compare
FREE = ("seed", *NOT_IDENTIFYING, "eval_batch", "network", "source", "weights")


def mean_over_seeds(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a (dataset, eps_max, method, kappa): mean and standard deviation of acc, acr and art over the seeds.

    Columns dataset, eps_max, method, kappa, acc, acr, art, acc_std, acr_std, art_std (fractions; the deviations are 0
    where there is one seed), seeds (their number), in the order of the methods' table and of kappa. ValueError as
    `check_seeds`.
    """
    check_seeds(runs)
    scores = ("acc", "acr", "art")
    means = {name: (name, "mean") for name in scores}
    deviations = {f"{name}_std": (name, "std") for name in scores}
    table = runs.groupby(SETTING, as_index=False).agg(**means, **deviations, seeds=("seed", "size"))
    table = table.fillna(dict.fromkeys(deviations, 0.0))
    place = table.method.map({method: i for i, method in enumerate(METHODS)}).fillna(len(METHODS))
    by = ["dataset", "eps_max", "place", "method", "kappa"]
    return table.assign(place=place).sort_values(by, ignore_index=True).drop(columns="place")


def check_seeds(runs: pd.DataFrame, by: Sequence[str] = SETTING) -> None:
    """Refuse, by a ValueError, runs of a setting (the columns ``by``) that differ in more than their seed or not in it.

    The message names what differs. What a run does not say, as one of an earlier version, is let pass. A method's
    networks are those of fronts, each of which is one training, or each trained by itself, not both.
    """
    runs = runs.reset_index(drop=True)
    if "one_training" in runs:
        for _, of in runs.groupby(["dataset", "method"]):
            if (of.one_training == "").nunique() > 1:
                raise ValueError(
                    f"runs: of {of.method.iloc[0]} on {of.dataset.iloc[0]} some are networks of a front, one training "
                    "together, and some were trained by themselves; choose one kind: "
                    'runs[runs.one_training == ""], or != ""'
                )
    of_result = [name for name in (*TRAINING, *MEASURED) if name in runs and name not in by]
    skipped = {*FREE, *MEASURED, *by, *of_result}
    configs = runs["config"] if "config" in runs else [{}] * len(runs)
    told = [as_today({"method": of} | one) for of, one in zip(runs["method"], configs, strict=True)]
    known = pd.DataFrame([{n: v for n, v in one.items() if n not in skipped} for one in told], runs.index)
    known = known.assign(**{name: runs[name].fillna(DEFAULTS_BEFORE.get(name, np.nan)) for name in of_result})
    known = known.map(partial(json.dumps, sort_keys=True, default=str)).replace("NaN", np.nan)
    values = known.groupby([runs[key] for key in by]).nunique()
    for column in values.columns[(values > 1).any()]:
        which = _named(values.index.to_frame()[values[column] > 1].iloc[0], by)
        raise ValueError(f"runs: those with {which} differ in {column}, so that they are not seeds of one setting")
    if (twice := runs.duplicated([*by, "seed"])).any():
        which = _named(runs.loc[twice].iloc[0], [*by, "seed"])
        raise ValueError(f"runs: there are two with {which}; keep one")


def _named(run: pd.Series, columns: Sequence[str]) -> str:
    return ", ".join(f"{column} = {run[column]}" for column in columns)


def check_comparable(runs: pd.DataFrame, columns: Sequence[str] = COMPARED) -> None:
    """Refuse a table without runs, or with several values in one of these columns (that it has), by a ValueError."""
    if runs.empty:
        raise ValueError("runs: the table is empty; there is no finished run in it")
    for column in filter(runs.columns.__contains__, columns):
        if len(found := sorted(runs[column].astype(str).unique())) > 1:
            raise ValueError(f"runs: several {column} ({', '.join(found)}); choose one, as runs[runs.{column} == ...]")


def tuned_kappa(runs: pd.DataFrame, score: str) -> float:
    """The kappa with the highest mean score, the smallest among equals.

    The mean is over those seeds alone with which all kappas were trained, so that a kappa is not chosen for its seeds;
    over all seeds where there are none in common. ``runs`` are one method's; ``score`` is "art", on the test images, or
    "val_art", on the validation images (`validation_art`): of those that were trained, not interpolated in a front.
    """
    if score == "val_art":
        runs = runs.loc[~interpolated(runs)]
    common = set.intersection(*(set(seeds) for _, seeds in runs.groupby("kappa").seed))
    runs = runs.loc[runs.seed.isin(common)] if common else runs
    means = runs.groupby("kappa", as_index=False).agg(score=(score, "mean"))
    return float(means.kappa[means.score.argmax()])


def interpolated(runs: pd.DataFrame) -> pd.Series:
    """(R,) whether a network lies between two that were trained in a front, so that no validation chose its weights."""
    return pd.Series(runs.get("interpolated", False), runs.index).eq(True)


def validation_art(runs: pd.DataFrame) -> np.ndarray:
    """(R,) the ART of each run's last epoch on its validation images; NaN where it has none."""
    try:
        histories = load_histories(runs, ["val_art"])
    except ValueError:  # a run was written without them
        return np.full(len(runs), np.nan)
    return np.array([table.val_art.iloc[-1] if len(table) else np.nan for table in histories.values()], dtype=float)


def check_eps_max(eps_max: float, cap: float, name: str = "eps_max") -> None:
    """Refuse an eps_max up to which radii were not searched, by a ValueError."""
    if not 0 < eps_max <= cap * (1 + metrics.FLOAT32_ROUNDING):
        refuse(name, eps_max, f"> 0 and <= {cap:g}, up to where these radii were searched")


def rescore(runs: pd.DataFrame, radii: Mapping[str, np.ndarray], eps_max: float) -> pd.DataFrame:
    """The runs with acr and art (Eq. 12-13) at another eps_max, from stored radii (`load_radii`): no network is run.

    A radius found up to radius_cap and cut at eps_max is the radius of Def. 3.1 for that eps_max. ValueError where
    eps_max (pixel units) is not in (0, radius_cap], or runs trained for several eps_max would look alike.
    """
    check_comparable(runs, ["eps_max"])
    check_eps_max(eps_max, runs.radius_cap.min())
    acr = np.array([metrics.acr(radii[path], eps_max) for path in runs.path])
    return runs.assign(eps_max=float(eps_max), acr=acr, art=metrics.art(runs.acc, acr))
