"""Figures and texts of `pareto_explorer` at one position of its controls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from acertlab.analysis.tradeoff import SAME, Interpolation, Tradeoff, at_accuracy, at_kappa, front, means
from acertlab.data.run import load_run
from acertlab.training.parameters import config_of, training_command
from acertlab.visualization.fronts import tradeoff_spec
from acertlab.visualization.pages.template import page
from acertlab.visualization.radius import histogram_spec, shares_spec
from acertlab.visualization.style import eps_words, method_style

CURVE_POINTS = 201  # of a certified-accuracy curve
T = TypeVar("T")
HEIGHT = 340  # of a figure, in pixels: the whole explorer is to fit a laptop's screen


@dataclass(frozen=True)
class View:
    """One position of every control of `pareto_explorer`."""

    kappa: float  # whose networks are circled, and whose curves are drawn; between trained ones they are interpolated
    eps_max: float  # largest radius that counts, pixel units
    eps: float  # where certified accuracies are read off, pixel units; beyond eps_max it counts as eps_max
    picked: int  # place of a network in `Tradeoff.points`
    first: str  # of the two methods to compare
    second: str
    accuracy: float  # at which they are compared, a fraction

    @property
    def at(self) -> float:
        """eps, but at most eps_max."""
        return min(self.eps, self.eps_max)


def first_view(
    points: Tradeoff, *, eps_max: float | None = None, kappa: float | None = None, eps: float | None = None
) -> View:
    """Where the controls stand at the start: the network of the highest ART is picked, the last two methods compared.

    None: what the runs of ``points`` were trained for, the smallest kappa, and half of eps_max.
    """
    eps_max = points.eps_max if eps_max is None else float(eps_max)
    table = means(points, eps_max)
    fronts = {method: [p.acc.mean() for p in front(points, method, eps_max)] for method in points.methods}
    pair = sorted(fronts, key=lambda method: len(fronts[method]) > 1)[-2:]  # stable: the last ones that have a front
    first, second = pair[0], pair[-1]
    low, high = max(min(fronts[m]) for m in (first, second)), min(max(fronts[m]) for m in (first, second))
    accuracy = (low + high) / 2 if low <= high else table.acc.median()  # the middle of what both fronts hold
    return View(
        kappa=float(table.kappa.min()) if kappa is None else float(kappa),
        eps_max=eps_max,
        eps=eps_max / 2 if eps is None else float(eps),
        picked=int(table.art.idxmax()),
        first=first,
        second=second,
        accuracy=float(accuracy),
    )


def interpolations_at(points: Tradeoff, view: View) -> dict[str, Interpolation]:
    """Every method at the view's kappa, by the name that figures show."""
    mixes = [at_kappa(points, method, view.kappa) for method in points.methods]
    return {f"{_name(mix.method)}, kappa = {mix.kappa:g}": mix for mix in mixes}


def pair_at(points: Tradeoff, view: View) -> list[tuple[str, Interpolation | None]]:
    """The two compared methods at the view's accuracy; None where a method's front does not hold it."""
    pair = (view.first, view.second)
    return [(method, at_accuracy(points, method, view.accuracy, view.eps_max)) for method in pair]


def scores_at(points: Tradeoff, view: View) -> pd.DataFrame:
    """Acc, ACR, ART and the certified accuracy at eps, in percent: a row a method, at the view's kappa."""
    return pd.DataFrame([_row(mix, view) for mix in interpolations_at(points, view).values()])


def pair_scores(points: Tradeoff, view: View) -> pd.DataFrame:
    """The same for the two compared methods, at the view's accuracy; without those that do not reach it."""
    return pd.DataFrame([_row(mix, view) for _, mix in pair_at(points, view) if mix is not None])


def _row(mix: Interpolation, view: View) -> dict[str, object]:
    scores = mix.scores(view.eps_max, view.at)
    at = f"certified at {eps_words(view.eps_max)(view.at)}"
    percent = {"Acc": "acc", "ACR": "acr", "ART": "art", at: "certified"}
    row: dict[str, object] = {"method": _name(mix.method), "kappa": mix.kappa}
    return row | {name: 100 * scores[key] for name, key in percent.items()} | {"network": mix.note}


def _name(method: str) -> str:
    return method_style(method)[0]


def _tradeoff(points: Tradeoff, view: View) -> dict:
    table = means(points, view.eps_max)
    reached = [mix for mix in interpolations_at(points, view).values() if abs(mix.kappa - view.kappa) < SAME]
    circled = [_place(mix, view) for mix in reached]  # none of a method that was trained no further
    crossed = [_place(mix, view) for _, mix in pair_at(points, view) if mix is not None]
    picked = table.acc[view.picked], table.acr[view.picked]
    x = max(table.acc.min() - 0.03, 0.0), min(table.acc.max() + 0.03, 1.0)
    # in whole tens, so that the axis stays where it is for small movements of eps_max
    y = max(np.floor(10 * table.acr.min() - 0.2) / 10, 0.0), min(np.ceil(10 * table.acr.max() + 0.2) / 10, 1.0)
    places: dict[str, Any] = {"circled": circled, "picked": picked}
    if comparable(points):
        places |= {"level": view.accuracy, "crossed": crossed}
    spec = tradeoff_spec(table, kappa=view.kappa, **places, span=(x, y), height=HEIGHT + 120)
    spec["data"][0]["showscale"] = False  # the map's lines have labels
    return _narrow(spec, legend_rows=3)


def _narrow(spec: dict, legend_rows: int) -> dict:
    """Room for a legend that stands in so many rows where two figures share the width."""
    spec["layout"]["margin"]["t"] = 36 + 18 * legend_rows
    spec["layout"]["title"] |= {"y": 0.985, "font": {"size": 14}}
    spec["layout"]["legend"]["font"] = {"size": 11}
    return spec


def _place(mix: Interpolation, view: View) -> tuple[float, float]:
    scores = mix.scores(view.eps_max, view.at)
    return scores["acc"], scores["acr"]


def _curves(points: Tradeoff, view: View) -> dict:
    mixes, grid = interpolations_at(points, view), np.linspace(0.0, view.eps_max, CURVE_POINTS)
    shares = {name: mix.certified(grid) for name, mix in mixes.items()}
    methods = {name: mix.method for name, mix in mixes.items()}
    spec = shares_spec(grid, shares, methods=methods, eps=view.at, height=HEIGHT)
    return _narrow(spec, legend_rows=4)


def _picked_curve(points: Tradeoff, view: View) -> dict:
    point, grid = points.points[view.picked], np.linspace(0.0, view.eps_max, CURVE_POINTS)
    methods, title = {point.label: point.method}, "Certified accuracy: the area is the ACR"
    shares = {point.label: point.certified(grid)}
    spec = shares_spec(grid, shares, methods=methods, eps=view.at, title=title, fill=True, height=HEIGHT)
    return _narrow(spec, legend_rows=2)


def _picked_radii(points: Tradeoff, view: View) -> dict:
    radii = np.concatenate(points.points[view.picked].radii)
    return _narrow(histogram_spec(radii, view.eps_max, eps=view.at, height=205), legend_rows=2)


def _pair_curves(points: Tradeoff, view: View) -> dict:
    grid = np.linspace(0.0, view.eps_max, CURVE_POINTS)
    shares, methods = {}, {}
    for place, (method, mix) in enumerate(pair_at(points, view)):
        name = f"{_name(method)}, kappa = {mix.kappa:.3g}" if mix else f"{_name(method)}: not at this accuracy"
        name += " again" if place and view.first == view.second else ""
        shares[name] = np.full(CURVE_POINTS, np.nan) if mix is None else mix.certified(grid)
        methods[name] = method
    title = f"Certified accuracy at a standard accuracy of {100 * view.accuracy:.4g} %"
    spec = shares_spec(grid, shares, methods=methods, eps=view.at, title=title, height=HEIGHT - 40)
    return _narrow(spec, legend_rows=3)


Draw = Callable[[Tradeoff, View], dict]
FIGURES: dict[str, tuple[Draw, tuple[str, ...]]] = {  # how each is drawn, and what of the view it depends on
    "tradeoff": (_tradeoff, ("kappa", "eps_max", "picked", "first", "second", "accuracy")),
    "curves": (_curves, ("kappa", "eps_max", "eps")),
    "picked_curve": (_picked_curve, ("picked", "eps_max", "eps")),
    "picked_radii": (_picked_radii, ("picked", "eps_max", "eps")),
    "pair": (_pair_curves, ("first", "second", "accuracy", "eps_max", "eps")),
}


def comparable(points: Tradeoff) -> bool:
    """Whether there are two methods; with one there is no "pair", nor a text of it."""
    return len(points.methods) > 1


def pareto_figures(points: Tradeoff, view: View) -> dict[str, go.Figure]:
    """What `pareto_explorer` draws at one position of its controls.

    "tradeoff", the points with the circles of kappa, the frame of the picked network and the line of equal accuracy;
    "curves", the certified accuracies of every method at kappa; "picked_curve" and "picked_radii"; "pair", the
    certified accuracies of the two compared methods at equal accuracy, where there are two.
    """
    return {name: go.Figure(draw(points, view)) for name, (draw, _) in shown(FIGURES, points).items()}


def shown(parts: Mapping[str, T], points: Tradeoff) -> dict[str, T]:
    """Those of `FIGURES` or `TEXTS` for which there is something to show."""
    return {name: part for name, part in parts.items() if comparable(points) or not name.startswith("pair")}


def _kappa_text(points: Tradeoff, view: View) -> str:
    return Markup("<b>Each method at kappa = {:g}</b>, in percent").format(view.kappa) + _table(scores_at(points, view))


def _picked_text(points: Tradeoff, view: View) -> str:
    table, point = means(points, view.eps_max), points.points[view.picked]
    here, certified = table.loc[view.picked], float(point.certified([view.at])[0])
    both = ["acc", "acr"]
    better = table[(table[both] >= here[both]).all(axis=1) & (table[both] > here[both]).any(axis=1)]
    names = "; ".join(points.points[i].label for i in better.index[:3]) + ("; ..." if len(better) > 3 else "")
    stands = f"dominated by {names}" if len(better) else "on the front: no other is as good in both and better in one"
    scores = "Acc {:.2f} %, ACR {:.2f} %, ART {:.2f} %".format(*(100 * here[["acc", "acr", "art"]]))
    text = "<b>{}</b>: {}, certified at eps = {}: {:.2f} %; {}."
    at = eps_words(view.eps_max)(view.at)
    return Markup(text).format(point.label, scores, at, 100 * certified, stands)


def _command_text(points: Tradeoff, view: View) -> str:
    command = _command(points.points[view.picked].paths[0])
    folded = "<details><summary>The command that trains it again</summary><pre style='{}'>{}</pre></details>"
    return Markup(folded).format("white-space: pre-wrap; line-height: 1.3", command)


@lru_cache(maxsize=1024)
def _command(path: str) -> str:
    """What trains a run again, or why that cannot be told."""
    try:
        config = load_run(path).config
        if config.get("front"):
            return "# a network of a front: acertlab.train_front trains all of them in one walk"
        return training_command(config_of(config))
    except (FileNotFoundError, ValueError, TypeError) as error:
        return f"# {error}"


def _pair_text(points: Tradeoff, view: View) -> str:
    at = f"At a standard accuracy of {100 * view.accuracy:.4g} %"
    absent = []
    for method in dict.fromkeys(method for method, mix in pair_at(points, view) if mix is None):
        acc = [100 * point.acc.mean() for point in front(points, method, view.eps_max)]
        absent.append(f"the front of {_name(method)} holds {min(acc):.4g} to {max(acc):.4g} %")
    if absent:
        return Markup("<b>{} there is no comparison</b>: {}.").format(at, "; ".join(absent))
    table = pair_scores(points, view)
    ratio = f"the ACR of {table.method[1]} is {table.ACR[1] / table.ACR[0]:.3f} x that of {table.method[0]}"
    return Markup("<b>{} {}</b>; in percent").format(at, ratio if table.ACR[0] > 0 else "") + _table(table)


Write = Callable[[Tradeoff, View], str]
TEXTS: dict[str, tuple[Write, tuple[str, ...]]] = {
    "kappa_text": (_kappa_text, ("kappa", "eps_max", "eps")),
    "picked_text": (_picked_text, ("picked", "eps_max", "eps")),
    "command": (_command_text, ("picked",)),
    "pair_text": (_pair_text, ("first", "second", "accuracy", "eps_max", "eps")),
}


def pareto_texts(points: Tradeoff, view: View) -> dict[str, str]:
    """Numbers beside `pareto_figures`, as HTML: "kappa_text", "picked_text", "command", of two methods "pair_text"."""
    return {name: write(points, view) for name, (write, _) in shown(TEXTS, points).items()}


def _table(table: pd.DataFrame) -> Markup:
    """As HTML, below it which networks were not trained; `DataFrame.to_html` takes longer than all the arithmetic."""
    rows = table.to_dict("records")
    told = [f"{row['method']}: {of}" for row in rows if (of := row.pop("network")) != "trained"]
    return page("table.html", rows=rows) + Markup("<small>{}</small>").format("; ".join(told))
