"""Methods compared by their fronts: kappa-tuned ART, hypervolume, and ACR at equal accuracy; statements are computed.

A method is a curve of networks over kappa. Between two neighbouring networks of its front every point of the segment
is attained, too: toss a coin for every image, and both accuracy and mean radius are the weighted means. So fronts are
compared at equal accuracy, by interpolation, never at equal kappa. Precisely, a front's ACR at accuracy a is the best
at an accuracy of at least a: left of its first network it is that network's, right of its last one there is none.
"""

from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd

from acertlab.analysis.bootstrap import (
    LEVEL,
    ConfidenceInterval,
    Resamples,
    Samples,
    Scores,
    confidence_interval,
    draw,
    joint_samples,
    resampled_scores,
)
from acertlab.analysis.seeds import interpolated, tuned_kappa, validation_art
from acertlab.analysis.tradeoff import front_acr
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import name_of

GRID = 101  # accuracies at which two fronts are compared
MIN_SHARE_REACHED = 0.95  # an accuracy counts where at least this share of the resampled fronts reaches it


@dataclass(frozen=True)
class Tuned:
    """A method at the kappa of its highest ART (Eq. 13), and the area under its front."""

    method: str
    kappa: float
    seeds: int  # how many networks were trained
    chosen_on: str  # "validation": kappa was chosen on images that are not shown here; "test": on the same ones
    acc: ConfidenceInterval  # fractions, means over the seeds
    acr: ConfidenceInterval
    art: ConfidenceInterval
    again: float  # the share of resamples in which the same kappa has the highest ART on the test images
    hypervolume: ConfidenceInterval  # of the front in the (Acc, ACR) square; it grows with the number of kappa
    kappas: int  # how many there were

    @property
    def sentence(self) -> str:
        """Such as "ACERT at kappa = 0.25 (chosen on validation images): ART 51.6 ± 0.4 %, ..."."""
        how = "the only one" if self.kappas == 1 else f"chosen on {self.chosen_on} images"
        doubt, again = "", f"{100 * self.again:.0f} % of resamples choose it again"
        if self.kappas > 1 and self.chosen_on == "test":
            doubt = f" They are the images shown, which flatters; {again}."
        alone = " One seed: the intervals cover the choice of test images only." if self.seeds == 1 else ""
        return (
            f"{name_of(self.method)} at kappa = {self.kappa:g} ({how}): ART {self.art.percent()} %, "
            f"Acc {self.acc.percent()} %, ACR {self.acr.percent()} %.{doubt}{alone}"
        )


def tuned(samples: Samples, scores: Scores, eps_max: float) -> tuple[Tuned, ...]:
    """Every method at its best kappa: by validation ART where all its runs have one, else by ART on the test images."""
    of_runs = metrics.art(samples.correct.mean(1), samples.share(eps_max).mean(1, dtype=np.float64))
    runs, settings = samples.runs.assign(art=of_runs, val_art=validation_art(samples.runs)), samples.settings
    found = []
    for method in samples.methods:
        places, of_method = samples.of(method), runs.loc[runs.method == method]
        chosen_on = "test" if of_method.val_art[~interpolated(of_method)].isna().any() else "validation"
        kappa = tuned_kappa(of_method, "art" if chosen_on == "test" else "val_art")
        acc, acr, art = (values[:, places] for values in (scores.acc, scores.acr, scores.art))
        best = int(np.argmax(settings.kappa.iloc[places] == kappa))
        areas = [metrics.dominated_area(*front) for front in zip(acc, acr, strict=True)]
        found.append(
            Tuned(
                method=method,
                kappa=kappa,
                seeds=int(settings.seeds.iloc[places[best]]),
                chosen_on=chosen_on,
                acc=confidence_interval(acc[:, best]),
                acr=confidence_interval(acr[:, best]),
                art=confidence_interval(art[:, best]),
                again=float(np.mean(art[1:].argmax(1) == best)),
                hypervolume=confidence_interval(np.array(areas)),
                kappas=len(places),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class EqualAccuracy:
    """The ACR of two methods at one accuracy, by interpolation along their fronts; fractions."""

    method: str
    other: str
    accuracy: float
    acr: ConfidenceInterval
    other_acr: ConfidenceInterval
    ratio: ConfidenceInterval  # acr / other_acr, paired draw by draw
    covers: str  # what the intervals cover: "seeds and test images", or "test images only"

    @property
    def sentence(self) -> str:
        """Such as "At accuracy 65.0 % ACERT's ACR is 41.2 ± 0.5 %, FastIBP's 21.7 ± 0.4 %: x1.90 ± 0.05."."""
        return (
            f"At accuracy {100 * self.accuracy:.1f} % {name_of(self.method)}'s ACR is {self.acr.percent()} %, "
            f"{name_of(self.other)}'s {self.other_acr.percent()} %: x{self.ratio.estimate:.2f} ± {self.ratio.half:.2f}."
        )


@dataclass(frozen=True)
class Comparison:
    """Two methods' fronts compared: which has the higher ACR, at which accuracies (fractions)."""

    method: str
    other: str
    reach: tuple[float, float]  # the accuracies that the front spans
    other_reach: tuple[float, float]
    # stretches over which the simultaneous interval of the difference excludes 0 everywhere
    leads: tuple[tuple[float, float], ...]  # where `method` has the higher ACR
    trails: tuple[tuple[float, float], ...]  # where it has the lower one
    compared: tuple[float, float] | None  # None where the fronts share no accuracy
    at: EqualAccuracy | None  # in the middle of the longest lead of either, else of what was compared
    # fronts that share no accuracy compare all the same
    better: float  # share of resamples in which all of `method`'s front is better in both Acc and ACR than the other's
    worse: float  # in which it is worse
    band: pd.DataFrame = field(repr=False, compare=False)  # accuracy, acr, other_acr, difference, low, high

    @property
    def verdict(self) -> str:
        """One of "leads", "trails", "each leads somewhere", "undecided", "no common accuracy"."""
        leads = bool(self.leads) if self.compared else self.better >= LEVEL
        trails = bool(self.trails) if self.compared else self.worse >= LEVEL
        if leads or trails:
            return "each leads somewhere" if leads and trails else "leads" if leads else "trails"
        return "undecided" if self.compared else "no common accuracy"

    @property
    def sentence(self) -> str:
        """The verdict in words, with its numbers."""
        a, b = name_of(self.method), name_of(self.other)
        if self.compared is None or self.at is None:
            return self._apart(a, b)
        if self.verdict == "undecided":
            text = f"Neither front dominates: at accuracies {_span(self.compared)} the band of the difference"
            return f"{text} between {a}'s and {b}'s ACR holds 0. {self.at.sentence}"
        parts = [
            f"{winner}'s front dominates {loser}'s at accuracies {', '.join(map(_span, stretches))}"
            for winner, loser, stretches in ((a, b, self.leads), (b, a, self.trails))
            if stretches
        ]
        won = sum(high - low for low, high in (*self.leads, *self.trails))
        rest = "" if won >= 0.98 * (self.compared[1] - self.compared[0]) else "; elsewhere the data do not decide"
        return f"{', and '.join(parts)} (of {_span(self.compared)} compared{rest}). {self.at.sentence}"

    def _apart(self, a: str, b: str) -> str:
        if max(self.better, self.worse) >= LEVEL:
            higher, lower = (a, b) if self.better > self.worse else (b, a)
            share = f"in {100 * max(self.better, self.worse):.0f} % of the resamples"
            return (
                f"{higher}'s front dominates {lower}'s: {share} each of its networks is better in both Acc and ACR. "
                f"The accuracies ({a} {_span(self.reach)}, {b} {_span(self.other_reach)}) do not overlap."
            )
        low, high = max(self.reach[0], self.other_reach[0]), min(self.reach[1], self.other_reach[1])
        why = "do not overlap" if low > high else "overlap by less than their uncertainty"
        return (
            f"Neither front dominates: the accuracies of {a} ({_span(self.reach)}) and {b} ({_span(self.other_reach)}) "
            f"{why}, so that there is no equal accuracy at which to compare them."
        )


def compare(samples: Samples, scores: Scores, method: str, other: str) -> Comparison:
    """Two methods' fronts, at the accuracies that both reach (or at its one accuracy, where a front is one point)."""
    curves = [Curve.of(samples, scores, name) for name in (method, other)]
    accuracy = _common_accuracies(*curves)  # (1 + B, G)
    acr, other_acr = (curve.acr_at(accuracy) for curve in curves)
    known = (np.isfinite(acr - other_acr)[1:].mean(0) >= MIN_SHARE_REACHED) & np.isfinite(acr[0] - other_acr[0])
    known &= accuracy[0] >= max(curve.reach[0] for curve in curves)
    accuracy, acr, other_acr = accuracy[:, known], acr[:, known], other_acr[:, known]
    difference = acr - other_acr
    half = simultaneous_half_width(difference)
    columns = {"accuracy": accuracy[0], "acr": acr[0], "other_acr": other_acr[0], "difference": difference[0]}
    band = pd.DataFrame(columns | {"low": difference[0] - half, "high": difference[0] + half})
    leads, trails = _stretches(band.accuracy, band.low > 0), _stretches(band.accuracy, band.high < 0)
    compared, at = None, None
    if known.any():
        compared = float(accuracy[0, 0]), float(accuracy[0, -1])
        longest = max((*leads, *trails), key=lambda s: s[1] - s[0], default=compared)
        middle = int(np.argmin(np.abs(accuracy[0] - sum(longest) / 2)))
        of_both = acr[:, middle], other_acr[:, middle]
        single = samples.settings[samples.settings.method.isin((method, other))].seeds.min() == 1
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.divide(*of_both)
        covers = "test images only" if single else "seeds and test images"
        mine, theirs, quotient = map(confidence_interval, (*of_both, ratio))
        at = EqualAccuracy(method, other, float(accuracy[0, middle]), mine, theirs, quotient, covers)
    wholly = _wholly_better(*curves), _wholly_better(*curves[::-1])
    return Comparison(method, other, curves[0].reach, curves[1].reach, leads, trails, compared, at, *wholly, band)


@dataclass(frozen=True)
class Curve:
    """One method's networks in the data and in every draw."""

    acc: np.ndarray  # (1 + B, K), by rising kappa
    acr: np.ndarray
    front: np.ndarray  # (F,) which of them are on the front, in the data as they are

    @staticmethod
    def of(samples: Samples, scores: Scores, method: str) -> "Curve":
        places = samples.of(method)
        acc, acr = scores.acc[:, places], scores.acr[:, places]
        return Curve(acc, acr, metrics.front_places(acc[0], acr[0]))

    @property
    def reach(self) -> tuple[float, float]:
        return float(self.acc[0, self.front[0]]), float(self.acc[0, self.front[-1]])

    def acr_at(self, accuracy: np.ndarray) -> np.ndarray:
        """(1 + B, G) the ACR at these accuracies (1 + B, G) on every draw's own front; NaN where it does not reach."""
        if len(self.front) == 1 and accuracy.shape[1] == 1 and (accuracy[:, 0] == self.acc[:, self.front[0]]).all():
            return self.acr[:, self.front]  # the point itself
        return np.stack([front_acr(*draw) for draw in zip(self.acc, self.acr, accuracy, strict=True)])


def _common_accuracies(one: Curve, other: Curve) -> np.ndarray:
    """(1 + B, G), the same grid in every draw; where a front is one point, that point's accuracy, which moves."""
    for curve in (one, other):
        if len(curve.front) == 1:
            return curve.acc[:, curve.front]
    low, high = max(one.reach[0], other.reach[0]), min(one.reach[1], other.reach[1])
    grid = np.linspace(low, high, GRID) if low < high else np.empty(0)
    return np.broadcast_to(grid, (len(one.acc), len(grid)))


def simultaneous_half_width(values: np.ndarray) -> np.ndarray:
    """(G,) half widths of a band that holds whole curves at `LEVEL`: (1 + B, G) values, the estimate first.

    The largest standardised deviation of a draw anywhere is compared, so that a statement may be made about a whole
    stretch of accuracies.
    """
    if not values.shape[1]:
        return np.empty(0)
    deviation = values[1:] - values[0]
    spread = np.sqrt(np.nanmean(deviation**2, 0))
    standard = np.divide(np.abs(deviation), spread, out=np.zeros_like(deviation), where=spread > 0)
    reached = np.isfinite(deviation)  # a draw's front may end before the last accuracies, or all of them
    largest = np.where(reached, standard, 0.0).max(1)[reached.any(1)]
    return np.quantile(largest, LEVEL) * spread


def _wholly_better(one: Curve, other: Curve) -> float:
    """The share of draws in which every network of one front is better in both than every one of the other."""
    pairs = ((one.acc, other.acc), (one.acr, other.acr))
    better = [mine[1:, one.front].min(1) > theirs[1:, other.front].max(1) for mine, theirs in pairs]
    return float(np.mean(better[0] & better[1]))


def _stretches(accuracy: pd.Series, holds: pd.Series) -> tuple[tuple[float, float], ...]:
    """The runs of neighbouring accuracies at which something holds, as (first, last)."""
    groups = (holds != holds.shift()).cumsum()
    return tuple((float(rows.min()), float(rows.max())) for _, rows in accuracy.loc[holds].groupby(groups[holds]))


def _span(ends: tuple[float, float]) -> str:
    low, high = (f"{100 * end:.1f}" for end in ends)
    return f"{low} %" if low == high else f"{low}-{high} %"


@dataclass(frozen=True)
class Analysis:
    """Methods compared by their fronts, on the runs of one dataset and one trained eps_max.

    Attributes:
        samples, resamples: What it was computed from.
        eps_max: The perceptual limit, pixel units.
        scores: Of every setting, in every draw.
        tuned: Every method at its best kappa.
        comparisons: Every pair of methods.

    Example:
        >>> from acertlab.data.run import SHIPPED
        >>> analysis = al.analyse(al.load_runs(SHIPPED / "fronts").query("dataset == 'cifar10'"), resamples=20)
        >>> [(best.method, best.kappa) for best in analysis.tuned]
        [('fast-ibp', 0.8), ('acert', 0.0)]
    """

    samples: Samples = field(repr=False)
    resamples: Resamples = field(repr=False)
    eps_max: float
    scores: Scores = field(repr=False)
    tuned: tuple[Tuned, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> str:
        """Whether one method leads wherever it can be compared."""
        methods = self.samples.methods
        if len(methods) == 1:
            return f"There is one method, {name_of(methods[0])}: nothing to compare."
        for method in methods:
            pairs = [pair for pair in self.comparisons if method in (pair.method, pair.other)]
            if all(pair.verdict == ("leads" if pair.method == method else "trails") for pair in pairs):
                return f"{name_of(method)} dominates every other method wherever the data decide."
        return "No method dominates all others."

    @property
    def sentences(self) -> tuple[str, ...]:
        return self.verdict, *(part.sentence for part in (*self.comparisons, *self.tuned))

    def table(self) -> pd.DataFrame:
        """Table 1 with intervals: method, kappa, seeds, chosen on, Acc, ACR, ART and hypervolume in percent."""
        rows = [
            {
                "method": name_of(row.method),
                "kappa": row.kappa,
                "seeds": row.seeds,
                "kappa chosen on": row.chosen_on if row.kappas > 1 else "-",
                "Acc (%)": row.acc.percent(),
                "ACR (%)": row.acr.percent(),
                "ART (%)": row.art.percent(),
                "hypervolume (%)": row.hypervolume.percent(),
                "kappas": row.kappas,
            }
            for row in self.tuned
        ]
        return pd.DataFrame(rows)


def analyse(runs: pd.DataFrame, eps_max: float | None = None, *, resamples: int = 1000, seed: int = 0) -> Analysis:
    """Tuned ART (Eq. 13), hypervolumes, fronts compared at equal accuracy; intervals from a two-level bootstrap.

    Args:
        runs: A row a run, of one dataset and one trained eps_max, as `load_runs` gives it; from folders or packed.
        eps_max: The perceptual limit, pixel units, up to the runs' radius_cap; None: what they were trained for.
        resamples: How many draws of images and seeds.
        seed: Of the draws.

    Raises:
        ValueError: No runs, runs that do not compare, or an eps_max beyond the radius_cap.

    Example:
        >>> from acertlab.data.run import SHIPPED
        >>> analysis = al.analyse(al.load_runs(SHIPPED / "fronts").query("dataset == 'cifar10'"), resamples=20)
        >>> analysis.table().method.tolist()
        ['FastIBP', 'ACERT']
    """
    samples = joint_samples(runs)
    eps_max = samples.eps_max if eps_max is None else float(eps_max)
    samples.share(eps_max)  # refuses what is beyond the cap before anything is drawn
    drawn = draw(samples, resamples, seed)
    scores = resampled_scores(samples, drawn, eps_max)
    pairs = tuple(compare(samples, scores, b, a) for a, b in combinations(samples.methods, 2))
    return Analysis(samples, drawn, eps_max, scores, tuned(samples, scores, eps_max), pairs)
