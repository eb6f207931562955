"""Networks as points of the tradeoff, and interpolation between them: scores at any kappa, eps_max and eps, at once.

A slider has to be answered in milliseconds, for a hundred runs of ten thousand samples. So each run's radii are sorted
once and summed up: the mean of min(radius, eps_max) and the share certified at eps are then one binary search a run.

Between two networks that were trained lies an `Interpolation`: a coin is tossed for each input, and one network or the
other answers. Its expected accuracy, ACR and certified accuracies are the coin's mean of theirs, hence a straight line
from one point to the other. No network was trained there, and `Interpolation.note` says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from acertlab.analysis.seeds import check_comparable, check_eps_max, mean_over_seeds
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import name_of

SAME = 1e-9  # two kappa, or two accuracies, that differ by less are one


@dataclass(frozen=True, eq=False)
class TradeoffPoint:
    """One method at one kappa; its S runs are the seeds, in rising order."""

    method: str
    kappa: float
    seeds: tuple[int, ...]
    paths: tuple[str, ...]
    acc: np.ndarray  # (S,)
    radii: tuple[np.ndarray, ...]  # (S,) of (n,) certified radii in rising order, pixel units
    sums: tuple[np.ndarray, ...]  # (S,) of (n + 1,) the sum of the k smallest of them

    @property
    def label(self) -> str:
        """Such as "ACERT, kappa = 0.25 (3 seeds)"."""
        seeds = f" ({len(self.seeds)} seeds)" if len(self.seeds) > 1 else ""
        return f"{name_of(self.method)}, kappa = {self.kappa:g}{seeds}"

    def acr(self, eps_max: float) -> np.ndarray:
        """(S,) average certified radius (Eq. 12) of each seed, radii above eps_max counting as eps_max."""
        below = [int(np.searchsorted(radii, eps_max)) for radii in self.radii]
        total = [sums[k] + (len(sums) - 1 - k) * eps_max for sums, k in zip(self.sums, below, strict=True)]
        return np.array([t / (len(radii) * eps_max) for t, radii in zip(total, self.radii, strict=True)])

    def certified(self, eps: ArrayLike) -> np.ndarray:
        """(E,) share of the samples of all seeds certified at each eps, as `metrics.certified_accuracy`."""
        below = [np.searchsorted(radii, metrics.least_certified(eps)) for radii in self.radii]
        return 1 - np.sum(below, axis=0) / sum(map(len, self.radii))


@dataclass(frozen=True, eq=False)
class Tradeoff:
    """All points of one dataset, trained for one eps_max (pixel units)."""

    dataset: str
    eps_max: float
    cap: float  # up to where every run's radii were searched: the largest eps_max that can be looked at
    n: int  # how many test samples the first run was measured on
    points: tuple[TradeoffPoint, ...]  # in the order of the methods' table and of kappa

    @property
    def methods(self) -> tuple[str, ...]:
        """Its methods, in order."""
        return tuple(dict.fromkeys(point.method for point in self.points))

    def of(self, method: str) -> list[TradeoffPoint]:
        """The points of one method, by rising kappa; ValueError, with those that there are, where there is none."""
        if found := [point for point in self.points if point.method == method]:
            return found
        raise ValueError(f"method = {method!r}: accepted are those of these runs, {', '.join(self.methods)}")


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Two points of one method, the second chosen with a probability; one point if both are the same."""

    low: TradeoffPoint
    high: TradeoffPoint
    weight: float  # share of `high`, in [0, 1]
    note: str  # "trained", or what was interpolated

    @property
    def method(self) -> str:
        return self.low.method

    @property
    def kappa(self) -> float:
        """Where it lies between the two; no network was trained with it, unless the note says so."""
        return (1 - self.weight) * self.low.kappa + self.weight * self.high.kappa

    def certified(self, eps: ArrayLike) -> np.ndarray:
        """(E,) expected share certified at each eps."""
        return (1 - self.weight) * self.low.certified(eps) + self.weight * self.high.certified(eps)

    def scores(self, eps_max: float, eps: float) -> dict[str, float]:
        """acc, acr, art and certified (at eps), fractions; ART is the mean over all pairs of a seed of each point."""
        ends = [np.stack([point.acc, point.acr(eps_max)]) for point in (self.low, self.high)]  # (2, S) each
        acc, acr = (1 - self.weight) * ends[0][:, :, None] + self.weight * ends[1][:, None, :]
        certified = float(self.certified(np.array([eps]))[0])
        art = metrics.art(acc, acr)  # (S, S'); at a weight of 0 each row is one seed of `low`
        return {"acc": float(acc.mean()), "acr": float(acr.mean()), "art": float(art.mean()), "certified": certified}


def pool_seeds(runs: pd.DataFrame, radii: Mapping[str, np.ndarray]) -> Tradeoff:
    """The tradeoff of a table of runs and their radii (`load_radii`): seeds pooled, radii sorted and summed."""
    check_comparable(runs, ["dataset", "eps_max"])
    table = mean_over_seeds(runs)  # checks what may be pooled
    points = []
    for method, kappa in zip(table.method, table.kappa, strict=True):
        seeds = runs.loc[(runs.method == method) & (runs.kappa == kappa)].sort_values("seed")
        paths, acc = tuple(seeds.path), seeds.acc.to_numpy(float)
        ordered = tuple(np.sort(np.asarray(radii[path], dtype=float)) for path in paths)
        sums = tuple(np.concatenate([[0.0], np.cumsum(of_run)]) for of_run in ordered)
        points.append(TradeoffPoint(method, float(kappa), tuple(map(int, seeds.seed)), paths, acc, ordered, sums))
    cap, n = float(runs.radius_cap.min()), len(points[0].radii[0])
    return Tradeoff(str(table.dataset[0]), float(table.eps_max[0]), cap, n, tuple(points))


def means(tradeoff: Tradeoff, eps_max: float) -> pd.DataFrame:
    """`mean_over_seeds(rescore(runs, radii, eps_max))`, from what is summed up already."""
    columns: dict[str, Any] = {"dataset": tradeoff.dataset, "eps_max": float(eps_max)}
    columns |= {name: [getattr(point, name) for point in tradeoff.points] for name in ("method", "kappa")}
    scores = _scores(tradeoff, eps_max)
    columns |= dict(zip(("acc", "acr", "art", "acc_std", "acr_std", "art_std"), scores, strict=True))
    return pd.DataFrame(columns | {"seeds": [len(point.seeds) for point in tradeoff.points]})


@lru_cache(maxsize=32)  # one movement asks several times
def _scores(tradeoff: Tradeoff, eps_max: float) -> np.ndarray:
    """(6, P) means of acc, acr and art over the seeds, then their standard deviations (0 for one seed)."""
    check_eps_max(eps_max, tradeoff.cap)
    columns = []
    for point in tradeoff.points:
        acr = point.acr(eps_max)
        scores = np.stack([point.acc, acr, metrics.art(point.acc, acr)])  # (3, S)
        spread = scores.std(axis=1, ddof=1) if len(acr) > 1 else np.zeros(3)
        columns.append(np.concatenate([scores.mean(axis=1), spread]))
    return np.stack(columns, axis=1)


@lru_cache(maxsize=32)
def front(tradeoff: Tradeoff, method: str, eps_max: float) -> tuple[TradeoffPoint, ...]:
    """The points of one method that no other of its points dominates in (acc, acr), by rising accuracy."""
    of = tradeoff.of(method)
    acc, acr = _scores(tradeoff, eps_max)[:2, [point.method == method for point in tradeoff.points]]
    return tuple(of[place] for place in metrics.front_places(acc, acr))


def at_kappa(tradeoff: Tradeoff, method: str, kappa: float) -> Interpolation:
    """One method at any kappa: trained there, between its two neighbours, or at the nearest end of what was trained."""
    of = tradeoff.of(method)
    if found := _interpolation(of, np.array([point.kappa for point in of]), kappa):
        return found
    end = of[0] if kappa < of[0].kappa else of[-1]
    return Interpolation(end, end, 0.0, f"trained no further: kappa = {end.kappa:g} is the nearest")


def at_accuracy(tradeoff: Tradeoff, method: str, accuracy: float, eps_max: float) -> Interpolation | None:
    """The place of one method's front that has a given accuracy; None where its front has no such place."""
    of = front(tradeoff, method, eps_max)
    return _interpolation(of, np.array([point.acc.mean() for point in of]), accuracy)


def _interpolation(points: Sequence[TradeoffPoint], places: np.ndarray, place: float) -> Interpolation | None:
    """The place among points whose places rise; None before the first and behind the last."""
    if (same := np.flatnonzero(np.abs(places - place) < SAME)).size:
        return Interpolation(points[same[0]], points[same[0]], 0.0, "trained")
    k = int(np.searchsorted(places, place))
    if k in (0, len(points)):
        return None
    low, high = points[k - 1 : k + 1]
    first, second = sorted((low.kappa, high.kappa))
    weight = float((place - places[k - 1]) / (places[k] - places[k - 1]))
    return Interpolation(low, high, weight, f"interpolated between kappa = {first:g} and {second:g}")


def front_acr(acc: np.ndarray, acr: np.ndarray, accuracy: np.ndarray) -> np.ndarray:
    """The best ACR at an accuracy of at least these, by interpolation along the front of some networks.

    Of (K,) acc and acr, at (G,) accuracies: (G,); below the front's lowest one the ACR there, NaN above its highest.
    """
    places = metrics.front_places(acc, acr)
    return np.interp(accuracy, acc[places], acr[places], right=np.nan)
