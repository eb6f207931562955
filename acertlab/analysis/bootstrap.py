"""How sure a number over runs is: two-level bootstrap, over the seeds of a setting and over the test images.

Images are drawn jointly for all runs, since all networks were tested on the same ones: differences between methods
are paired. Seeds are drawn independently in every cell (method, kappa), one fewer than there are, so that the variance
over seeds comes out unbiased (Rao and Wu 1988). Drawing both levels at once is Owen's pigeonhole bootstrap (2007).
How often a 95 % interval holds the truth (tests/test_bootstrap.py, 500 trials): of three seeds 92 % where a mean varies
no more with the seeds than with the images, 81 % where seeds decide all of it; of eight seeds 94 % and 91 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from acertlab.analysis.seeds import mean_over_seeds
from acertlab.data.run_table import load_samples
from acertlab.radius import metrics

LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class ConfidenceInterval:
    """A number and where it may lie, from resampled data.

    Attributes:
        estimate: From the data as they are.
        low, high: The ends of the interval, at `LEVEL`.
    """

    estimate: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of the interval's length: what stands after ±."""
        return (self.high - self.low) / 2

    def percent(self, digits: int = 1) -> str:
        """Such as "41.2 ± 0.5"."""
        return f"{100 * self.estimate:.{digits}f} ± {100 * self.half:.{digits}f}"


def confidence_interval(values: np.ndarray) -> ConfidenceInterval:
    """The percentile interval of (1 + B,) values: the estimate first, then one a resample; NaN ones do not count."""
    low, high = np.nanpercentile(values[1:], [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return ConfidenceInterval(float(values[0]), float(low), float(high))


@dataclass(frozen=True)
class Samples:
    """What R runs say about the same N test images.

    Attributes:
        runs: A row a run, of one dataset, trained for one eps_max.
        radius: (R, N) certified radii, pixel units, searched up to `cap`.
        correct: (R, N) whether the image is classified correctly.
        label: (N,) its class.
        cap: The smallest of the runs' radius_cap, pixel units.
        settings: A row a (method, kappa), in the order of the methods' table and of kappa: method, kappa, seeds.
        setting_of_run: (R,) each run's row in `settings`.
    """

    runs: pd.DataFrame
    radius: np.ndarray
    correct: np.ndarray
    label: np.ndarray
    cap: float
    settings: pd.DataFrame
    setting_of_run: np.ndarray

    @property
    def eps_max(self) -> float:
        """What the runs were trained for, pixel units."""
        return float(self.runs.eps_max.iloc[0])

    @property
    def methods(self) -> list[str]:
        return list(self.settings.method.unique())

    def share(self, eps_max: float) -> np.ndarray:
        """(R, N) float32 min(radius, eps_max) / eps_max, whose means are ACRs; ValueError beyond the cap."""
        if not 0 < eps_max <= self.cap * (1 + metrics.FLOAT32_ROUNDING):
            raise ValueError(f"eps_max = {eps_max!r}: accepted is > 0 and <= {self.cap:g}, where the radii end")
        return np.minimum(self.radius / np.float32(eps_max), np.float32(1))


def joint_samples(runs: pd.DataFrame) -> Samples:
    """The radii of all runs of a table, side by side.

    Args:
        runs: A row a run, of one dataset and one trained eps_max, as `load_runs` gives it.

    Raises:
        ValueError: No runs; several datasets, eps_max or verifiers; runs of one cell that are not seeds of one setting;
            runs that were tested on different images.
    """
    if runs.empty:
        raise ValueError("runs: the table is empty; there is nothing to analyse")
    for column in ("dataset", "eps_max", "verifier", "merged", "domain", "split"):
        if len(found := sorted(runs[column].astype(str).unique())) > 1:
            raise ValueError(f"runs: several {column} ({', '.join(found)}); choose one, as runs[runs.{column} == ...]")
    means = mean_over_seeds(runs)  # refuses what are no seeds of one setting
    tables = load_samples(runs)
    first = next(iter(tables.values()))
    for path, table in tables.items():
        if len(table) != len(first) or (table[["index", "label"]] != first[["index", "label"]]).any(axis=None):
            raise ValueError(f"runs: {path} was tested on other images than {runs.path.iloc[0]}; they do not compare")
    places = {(row.method, row.kappa): i for i, row in enumerate(means.itertuples())}
    return Samples(
        runs=runs.reset_index(drop=True),
        radius=np.stack([table["radius"].to_numpy(np.float32) for table in tables.values()]),
        correct=np.stack([metrics.correct(table).to_numpy() for table in tables.values()]),
        label=first["label"].to_numpy(),
        cap=float(runs.radius_cap.min()),
        settings=means[["method", "kappa", "seeds"]],
        setting_of_run=np.array([places[row.method, row.kappa] for row in runs.itertuples()]),
    )


@dataclass(frozen=True)
class Resamples:
    """B draws of images and seeds; how often each counts.

    Attributes:
        images: (B, N) float32, how often an image was drawn; each row sums to N.
        seeds: (1 + B, C, R), the weight of each run in its cell's mean: in the data as they are, then in each draw.
    """

    images: np.ndarray
    seeds: np.ndarray


def draw(samples: Samples, resamples: int = 1000, seed: int = 0) -> Resamples:
    """Draws images jointly for all runs, and seeds within every cell; a cell of one seed keeps it."""
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 20:
        raise ValueError(f"resamples: must be a whole number >= 20, not {resamples!r}")
    rng = np.random.default_rng(seed)
    n, members = len(samples.label), [np.flatnonzero(samples.setting_of_run == c) for c in range(len(samples.settings))]
    images = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)])
    seeds = np.zeros((1 + resamples, len(members), len(samples.setting_of_run)))
    for c, runs in enumerate(members):
        seeds[0, c, runs] = 1 / len(runs)
        drawn = max(len(runs) - 1, 1)
        seeds[1:, c, runs] = rng.multinomial(drawn, np.full(len(runs), 1 / len(runs)), size=resamples) / drawn
    return Resamples(images.astype(np.float32), seeds)


def image_means(values: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Means over the images, in the data and in every draw: (R, N) -> (1 + B, R)."""
    drawn = resamples.images @ values.astype(np.float32).T / np.float32(values.shape[1])
    return np.vstack([values.mean(1, dtype=np.float64), drawn])


def seed_means(of_runs: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Means over the seeds of every cell: (1 + B, R) -> (1 + B, C)."""
    return np.einsum("bcr,br->bc", resamples.seeds[: len(of_runs)], of_runs)


@dataclass(frozen=True)
class Scores:
    """Acc, ACR and ART of every cell, fractions, each (1 + B, C): in the data as they are, then in every draw."""

    acc: np.ndarray
    acr: np.ndarray
    art: np.ndarray


def resampled_scores(samples: Samples, resamples: Resamples, eps_max: float, acc: np.ndarray | None = None) -> Scores:
    """The scores at an eps_max (pixel units, at most the cap); ART is the mean over seeds of each network's.

    Args:
        samples, resamples: What to score.
        eps_max: The perceptual limit.
        acc: `image_means(samples.correct, resamples)`, where it is known already.
    """
    acc = image_means(samples.correct, resamples) if acc is None else acc
    acr = image_means(samples.share(eps_max), resamples)
    return Scores(*(seed_means(values, resamples) for values in (acc, acr, metrics.art(acc, acr))))
