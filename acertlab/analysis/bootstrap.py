"""Confidence intervals by a two-level bootstrap: over the seeds of a setting and over the test images.

Images are drawn jointly for all runs, since all networks were tested on the same ones: differences between methods
are paired. Seeds are drawn independently in every setting (method, kappa), one fewer than there are, so that the
variance over seeds comes out unbiased (Rao and Wu 1988). Drawing both levels at once is Owen's pigeonhole bootstrap
(2007). How often a 95 % interval holds the truth (tests/analysis/test_bootstrap.py, 500 trials): of three seeds 92 %
where a mean varies no more with the seeds than with the images, 81 % where seeds decide all of it; of eight seeds 94 %
and 91 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from acertlab.analysis.seeds import check_comparable, check_eps_max, mean_over_seeds
from acertlab.data.run_table import load_samples
from acertlab.radius import metrics

LEVEL = 0.95  # of every interval


@dataclass(frozen=True)
class ConfidenceInterval:
    """A number, from the data as they are, and the ends of its interval at `LEVEL`, from resampled data."""

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
    """R runs on the same N test images, side by side."""

    runs: pd.DataFrame  # a row a run, of one dataset, trained for one eps_max
    radius: np.ndarray  # (R, N) certified radii, pixel units, searched up to `cap`
    correct: np.ndarray  # (R, N) whether the image is classified correctly
    label: np.ndarray  # (N,) its class
    cap: float  # the smallest of the runs' radius_cap, pixel units
    settings: pd.DataFrame  # method, kappa, seeds, in the order of the methods' table and of kappa
    setting_of_run: np.ndarray  # (R,) each run's row in `settings`

    @property
    def eps_max(self) -> float:
        """What the runs were trained for, pixel units."""
        return float(self.runs.eps_max.iloc[0])

    @property
    def methods(self) -> list[str]:
        return list(self.settings.method.unique())

    def of(self, method: str) -> np.ndarray:
        """(K,) a method's rows in `settings`, by rising kappa; ValueError where there are none."""
        if not len(found := np.flatnonzero(self.settings.method == method)):
            raise ValueError(f"method: there is no run of {method!r}; there are {', '.join(self.methods)}")
        return found

    def share(self, eps_max: float) -> np.ndarray:
        """(R, N) float32 min(radius, eps_max) / eps_max, whose means are ACRs; ValueError beyond the cap."""
        check_eps_max(eps_max, self.cap)
        return np.minimum(self.radius / np.float32(eps_max), np.float32(1))


def joint_samples(runs: pd.DataFrame, tables: Mapping[str, pd.DataFrame] | None = None) -> Samples:
    """The radii of all runs of a table (as `load_runs` gives it), side by side; ``tables`` are their `load_samples`.

    ValueError without runs, or where they do not compare (several datasets, eps_max or verifiers; other test images),
    or those of one setting differ in more than their seed.
    """
    check_comparable(runs)
    settings = mean_over_seeds(runs).loc[:, ["method", "kappa", "seeds"]]
    tables = load_samples(runs) if tables is None else tables
    first = next(iter(tables.values()))
    for path, table in tables.items():
        if not np.array_equal(table[["index", "label"]], first[["index", "label"]]):
            raise ValueError(f"runs: {path} was tested on other images than {runs.path.iloc[0]}; they do not compare")
    return Samples(
        runs=runs.reset_index(drop=True),
        radius=np.stack([table["radius"].to_numpy(np.float32) for table in tables.values()]),
        correct=np.stack([metrics.correct(table).to_numpy() for table in tables.values()]),
        label=first["label"].to_numpy(),
        cap=float(runs.radius_cap.min()),
        settings=settings,
        setting_of_run=runs[["method", "kappa"]].merge(settings.reset_index(), how="left")["index"].to_numpy(),
    )


@dataclass(frozen=True)
class Resamples:
    """B draws of images and seeds; how often each counts."""

    images: np.ndarray  # (B, N) float32, how often an image was drawn; each row sums to N
    seeds: np.ndarray  # (1 + B, S, R) each run's weight in its setting's mean: in the data as they are, then drawn

    def first(self, draws: int) -> "Resamples":
        """The first draws alone; 0: the data as they are."""
        return Resamples(self.images[:draws], self.seeds[: draws + 1])


def draw(samples: Samples, resamples: int = 1000, seed: int = 0) -> Resamples:
    """Draw images jointly for all runs, and seeds within every setting; a setting of one seed keeps it."""
    if isinstance(resamples, bool) or not isinstance(resamples, int) or resamples < 20:
        raise ValueError(f"resamples: must be a whole number >= 20, not {resamples!r}")
    rng = np.random.default_rng(seed)
    n, places = len(samples.label), range(len(samples.settings))
    members = [np.flatnonzero(samples.setting_of_run == place) for place in places]
    images = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples)])
    seeds = np.zeros((1 + resamples, len(members), len(samples.setting_of_run)))
    for place, runs in zip(places, members, strict=True):
        seeds[0, place, runs] = 1 / len(runs)
        drawn = max(len(runs) - 1, 1)
        seeds[1:, place, runs] = rng.multinomial(drawn, np.full(len(runs), 1 / len(runs)), size=resamples) / drawn
    return Resamples(images.astype(np.float32), seeds)


def image_means(values: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Means over the images, in the data and in every draw: (R, N) -> (1 + B, R)."""
    drawn = resamples.images @ values.astype(np.float32).T / np.float32(values.shape[1])
    return np.vstack([values.mean(1, dtype=np.float64), drawn])


def seed_means(of_runs: np.ndarray, resamples: Resamples) -> np.ndarray:
    """Means over the seeds of every setting: (1 + B, R) -> (1 + B, S)."""
    return np.einsum("bsr,br->bs", resamples.seeds[: len(of_runs)], of_runs)


@dataclass(frozen=True)
class Scores:
    """Acc, ACR and ART of every setting, fractions, each (1 + B, S): in the data as they are, then in every draw."""

    acc: np.ndarray
    acr: np.ndarray
    art: np.ndarray


def resampled_scores(samples: Samples, resamples: Resamples, eps_max: float, acc: np.ndarray | None = None) -> Scores:
    """The scores at an eps_max (pixel units, at most the cap); ART is the mean over seeds of each network's.

    ``acc`` is `image_means` of what is correct, where that is known already.
    """
    acc = image_means(samples.correct, resamples) if acc is None else acc
    acr = image_means(samples.share(eps_max), resamples)
    return Scores(*(seed_means(values, resamples) for values in (acc, acr, metrics.art(acc, acr))))
