"""Breakdown of an ACR by samples, classes and radii, and ART as a function of eps_max.

ACR is criticised for three things: easy samples, whose radius reaches eps_max anyway, make most of it; it depends on
where the radii are cut; and it says nothing of the robustness at one eps. Each is measured here, from stored radii.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
from scipy.optimize import root_scalar

from acertlab._text import eps_text
from acertlab.analysis import bootstrap
from acertlab.analysis.bootstrap import ConfidenceInterval, Resamples, Samples, confidence_interval, image_means
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import name_of

CAPS = 60  # values of eps_max at which ART is given
CAP_DRAWS = 200  # resamples at each: each costs a pass over all radii
EASIEST = 0.2  # the share of samples that is called easy


@dataclass(frozen=True)
class Crossing:
    """An eps_max at which two methods' tuned ART changes its order."""

    below: str  # the method that has the higher ART at smaller eps_max
    above: str  # at larger eps_max
    eps_max: float  # where, pixel units
    share: float  # of resamples with the same order on both sides, each side where the two are furthest apart

    @property
    def sentence(self) -> str:
        """Such as "Below eps_max = 0.012 ACERT has the higher tuned ART, above it ..."."""
        below, above = name_of(self.below), name_of(self.above)
        doubt = "" if self.share >= bootstrap.LEVEL else ", so that the data do not settle it"
        return (
            f"Below eps_max = {self.eps_max:.4g} {below} has the higher tuned ART than {above}, above it the lower one "
            f"(both in {100 * self.share:.0f} % of resamples{doubt})."
        )


@dataclass(frozen=True)
class CapSensitivity:
    """ART as a function of eps_max, every method at the kappa that is best there on the same images."""

    # a row a method and eps_max: method, eps_max, kappa, art, low, high (fractions; pointwise interval)
    table: pd.DataFrame = field(repr=False, compare=False)
    crossings: tuple[Crossing, ...]  # where the order of two methods changes, by eps_max
    cap: float  # the largest eps_max, up to which radii are known

    @property
    def sentence(self) -> str:
        """The order of the methods at other eps_max, in words."""
        low = float(self.table.eps_max.min())
        if self.table.method.nunique() == 1:
            return f"One method: between eps_max = {low:.4g} and {self.cap:.4g} there is no order to change."
        if not self.crossings:
            return f"The order by tuned ART is the same at every eps_max from {low:.4g} to {self.cap:.4g}."
        return " ".join(crossing.sentence for crossing in self.crossings)


def cap_sensitivity(samples: Samples, resamples: Resamples, caps: Sequence[float] | None = None) -> CapSensitivity:
    """Tuned ART of every method at rising eps_max (``caps``, pixel units), and the crossings, to 1e-6 of the cap.

    Of the resamples the first ones are used.
    """
    grid = np.linspace(samples.cap / CAPS, samples.cap, CAPS) if caps is None else np.asarray(caps, dtype=float)
    few = resamples.first(CAP_DRAWS)
    acc = image_means(samples.correct, few)
    rows, best = [], {method: [] for method in samples.methods}
    for cap in grid:
        art = bootstrap.resampled_scores(samples, few, float(cap), acc).art
        for method, arts in best.items():
            places = samples.of(method)
            kappa = samples.settings.kappa.iloc[places[art[0, places].argmax()]]
            arts.append(art[:, places].max(1))
            found = confidence_interval(arts[-1])
            rows.append((method, cap, float(kappa), found.estimate, found.low, found.high))
    table = pd.DataFrame(rows, columns=["method", "eps_max", "kappa", "art", "low", "high"])
    arts = {method: np.stack(values, 1) for method, values in best.items()}  # (1 + B, caps)
    found = [c for a, b in combinations(arts, 2) for c in _crossings(samples, resamples, grid, arts[a] - arts[b], a, b)]
    return CapSensitivity(table, tuple(sorted(found, key=lambda crossing: crossing.eps_max)), float(grid[-1]))


def _crossings(
    samples: Samples, resamples: Resamples, caps: np.ndarray, difference: np.ndarray, a: str, b: str
) -> Iterator[Crossing]:
    """Sign changes of ART_a - ART_b, (1 + B, caps), between neighbouring caps, refined by scipy's brentq."""

    def gap(cap: float) -> float:
        art = bootstrap.resampled_scores(samples, resamples.first(0), cap).art[0]
        return art[samples.of(a)].max() - art[samples.of(b)].max()

    signs = np.sign(difference[0])
    changes = np.flatnonzero(signs[1:] * signs[:-1] < 0)
    ends = [0, *(changes + 1), len(caps)]
    for k, place in enumerate(changes):
        ends_here = caps[place], caps[place + 1]
        where = root_scalar(gap, method="brentq", bracket=ends_here, xtol=1e-6 * samples.cap).root
        sides = [slice(ends[k], ends[k + 1]), slice(ends[k + 1], ends[k + 2])]
        furthest = [side.start + int(np.abs(difference[0, side]).argmax()) for side in sides]
        same = (np.sign(difference[1:, furthest]) == signs[furthest]).all(1).mean()
        below, above = (a, b) if signs[place] > 0 else (b, a)
        yield Crossing(below, above, float(where), float(same))


@dataclass(frozen=True)
class ACRBreakdown:
    """The parts of the ACR of one method at one kappa, its seeds pooled."""

    method: str
    kappa: float
    eps_max: float  # the perceptual limit, pixel units
    radii: np.ndarray = field(repr=False, compare=False)  # (S N,) pixel units, beyond eps_max where searched further
    acr: float  # Eq. (12); also the area under the curve of certified accuracy over [0, eps_max], / eps_max
    zero: float  # share of samples with radius 0
    inside: float  # between
    full: float  # at least eps_max
    concentration: tuple[float, ...]  # (11,) the share of the ACR that the easiest 0, 10, ..., 100 % make
    per_class: dict[int, float]  # the ACR of each class, by its number
    certified: dict[float, ConfidenceInterval]  # from eps to the certified accuracy there

    @property
    def name(self) -> str:
        return f"{name_of(self.method)}, kappa = {self.kappa:g}"

    @property
    def easy(self) -> float:
        """The share of the ACR that the easiest `EASIEST` of the samples make."""
        return self.concentration[round(10 * EASIEST)]

    @property
    def sentence(self) -> str:
        """Easy samples, classes and fixed eps in one sentence."""
        worst, best = (choose(self.per_class, key=lambda k: self.per_class[k]) for choose in (min, max))
        at = ", ".join(f"{share.percent()} % at {eps_text(eps)}" for eps, share in self.certified.items())
        return (
            f"{self.name}: ACR {100 * self.acr:.1f} %, of which the easiest {100 * EASIEST:.0f} % of images make "
            f"{100 * self.easy:.0f} %; {100 * self.zero:.1f} % of images have radius 0, {100 * self.full:.1f} % reach "
            f"eps_max; class {worst} has {100 * self.per_class[worst]:.1f} %, class {best} "
            f"{100 * self.per_class[best]:.1f} %; certified {at}."
        )


def acr_breakdown(
    samples: Samples, resamples: Resamples, method: str, kappa: float, eps_max: float, eps_grid: Sequence[float]
) -> ACRBreakdown:
    """Break down the ACR of one method at one kappa.

    ``eps_max`` is the perceptual limit, and certified accuracy is given at ``eps_grid`` (pixel units). ValueError where
    there is no such run, or an eps lies beyond the cap.
    """
    settings = samples.settings
    chosen = np.flatnonzero((settings.method == method) & np.isclose(settings.kappa, kappa))
    if not len(chosen):
        raise ValueError(f"method, kappa: there is no run of {method!r} at kappa = {kappa}")
    if beyond := [eps for eps in eps_grid if not 0 <= eps <= samples.cap * (1 + metrics.FLOAT32_ROUNDING)]:
        raise ValueError(f"eps_grid: {beyond} outside [0, {samples.cap:g}], where radii are known")
    rows = samples.setting_of_run == chosen[0]
    share, radii = samples.share(eps_max)[rows].astype(float), samples.radius[rows].astype(float)
    easiest_first = np.sort(share, axis=None)[::-1]
    made = np.concatenate([[0.0], np.cumsum(easiest_first)]) / max(easiest_first.sum(), np.finfo(float).tiny)
    at_end = radii >= metrics.least_certified(eps_max)
    seeds = resamples.seeds[:, chosen[0], rows]  # (1 + B, S)
    certified = {}
    for eps in eps_grid:
        holds = image_means(radii >= metrics.least_certified(eps), resamples)
        certified[float(eps)] = confidence_interval((holds * seeds).sum(1))
    return ACRBreakdown(
        method=method,
        kappa=float(kappa),
        eps_max=float(eps_max),
        radii=radii.ravel(),
        acr=float(share.mean()),
        zero=float((radii <= 0).mean()),
        inside=float(((radii > 0) & ~at_end).mean()),
        full=float(at_end.mean()),
        concentration=tuple(float(made[round(tenth / 10 * share.size)]) for tenth in range(11)),
        per_class={int(label): float(share[:, samples.label == label].mean()) for label in np.unique(samples.label)},
        certified=certified,
    )


def order_sentence(breakdowns: Sequence[ACRBreakdown]) -> str:
    """Sentence: whether the order by ACR holds at each fixed eps; intervals that overlap do not count as an order."""
    ranked = sorted(breakdowns, key=lambda p: -p.acr)
    if len(ranked) < 2:
        return "One method: there is no order that a fixed eps could change."
    turned = [
        f"at eps = {eps_text(eps)} {lower.name} is certified more often than {upper.name}"
        for eps in ranked[0].certified
        for upper, lower in pairwise(ranked)
        if lower.certified[eps].low > upper.certified[eps].high
    ]
    order = " > ".join(p.name for p in ranked)
    if not turned:
        return f"The order by ACR ({order}) is nowhere reversed at the fixed eps shown."
    return f"The order by ACR ({order}) hides this: {'; '.join(turned)}."
