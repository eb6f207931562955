"""Figures that compare methods: fronts with bands, ART over eps_max, and the parts of an ACR.

Fractions come in, per cent are shown. The areas around curves are 95 % bands over seeds and test images.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import plotly.graph_objects as go

from acertlab.analysis.acr_breakdown import ACRBreakdown, CapSensitivity
from acertlab.analysis.bootstrap import ConfidenceInterval, confidence_interval
from acertlab.analysis.fronts import Analysis, Comparison, Curve
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import name_of
from acertlab.visualization.style import EPS_AXIS, GREY, dashes, empty_figure, faded, method_style

LINE = {"color": GREY, "dash": "dash", "width": 1.5}


def _band(figure: go.Figure, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, group: str) -> None:
    """Add a filled area without a line, that comes and goes with its group's legend entry."""
    area = {"fill": "toself", "fillcolor": faded(colour, 0.18), "mode": "lines", "line_width": 0}
    hidden = {"hoverinfo": "skip", "showlegend": False, "legendgroup": group}
    figure.add_scatter(x=[*x, *x[::-1]], y=[*high, *low[::-1]], **area, **hidden)


def fronts(analysis: Analysis) -> go.Figure:
    """Every method's front in the (Acc, ACR) plane, with the 95 % band of its ACR at every accuracy.

    The front is the line; networks that are not on it stand beside it, with their kappa. The band holds ACR at one
    accuracy, over seeds and test images; crosses are the intervals of the networks themselves.
    """
    title = f"Fronts at eps_max = {analysis.eps_max:.4g}, with their 95 % bands"
    figure = empty_figure(title, "standard accuracy Acc (%)", "average certified radius ACR (% of eps_max)", 520)
    for method in analysis.samples.methods:
        label, colour, _ = method_style(method)
        curve = Curve.of(analysis.samples, analysis.scores, method)
        if len(curve.front) > 1:
            grid = np.linspace(*curve.reach, 60)
            found = curve.acr_at(np.broadcast_to(grid, (len(curve.acc), len(grid))))
            ends = [confidence_interval(column) for column in found.T if np.isfinite(column[1:]).mean() >= 0.5]
            low, high = np.array([(100 * end.low, 100 * end.high) for end in ends]).T
            _band(figure, 100 * grid[: len(ends)], low, high, colour, label)
            x, y = 100 * curve.acc[0, curve.front], 100 * curve.acr[0, curve.front]
            look = {"line": {"color": colour, "width": 2.5}, "hoverinfo": "skip", "showlegend": False}
            figure.add_scatter(x=x, y=y, mode="lines", name=label, legendgroup=label, **look)
        figure.add_trace(_networks(analysis, method))
    return figure


def _networks(analysis: Analysis, method: str) -> go.Scatter:
    label, colour, symbol = method_style(method)
    places = np.flatnonzero(analysis.samples.settings.method == method)
    scores = analysis.scores
    acc, acr = ([confidence_interval(column) for column in values[:, places].T] for values in (scores.acc, scores.acr))
    kappa = analysis.samples.settings.kappa.iloc[places]
    return go.Scatter(
        x=[100 * e.estimate for e in acc],
        y=[100 * e.estimate for e in acr],
        error_x=_error_bars(acc) | {"thickness": 1, "width": 2},
        error_y=_error_bars(acr) | {"thickness": 1, "width": 2},
        mode="markers+text",
        name=label,
        legendgroup=label,
        text=[f"{k:g}" for k in kappa],
        textposition="top right",
        textfont={"size": 10, "color": colour},
        cliponaxis=False,
        marker={"color": colour, "symbol": symbol, "size": 11, "line": {"color": "white", "width": 1}},
        hovertemplate="<b>" + label + "</b>, kappa = %{text}<br>Acc %{x:.2f} %, ACR %{y:.2f} %<extra></extra>",
    )


def _error_bars(ends: Sequence[ConfidenceInterval]) -> dict:
    """The intervals' ends as plotly's error bars, in per cent."""
    up, down = [100 * (e.high - e.estimate) for e in ends], [100 * (e.estimate - e.low) for e in ends]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down}


def difference(comparison: Comparison) -> go.Figure:
    """The difference of two fronts' ACR at equal accuracy, which they share, with the 95 % band of the whole curve."""
    if comparison.compared is None:
        raise ValueError(f"comparison: {comparison.sentence}")
    a, b, band = name_of(comparison.method), name_of(comparison.other), comparison.band
    figure = empty_figure(f"ACR at equal accuracy: {a} minus {b}", "accuracy of both (%)", f"ACR, {a} - {b} (points)")
    _, colour, symbol = method_style(comparison.method)
    x = 100 * band.accuracy.to_numpy()
    _band(figure, x, 100 * band.low.to_numpy(), 100 * band.high.to_numpy(), colour, "difference")
    mode, marker = "lines" if len(x) > 1 else "markers", {"symbol": symbol, "size": 11}
    look = {"line": {"color": colour, "width": 2}, "marker": marker, "legendgroup": "difference", "showlegend": False}
    hover = "accuracy %{x:.1f} %: %{y:.2f} points<extra></extra>"
    figure.add_scatter(x=x, y=100 * band.difference, mode=mode, name="difference", hovertemplate=hover, **look)
    figure.add_hline(y=0, line=LINE)
    figure.update_yaxes(rangemode="tozero")
    if len(x) == 1:
        y = 100 * band.loc[0, ["low", "high"]].to_numpy(float)
        figure.add_scatter(x=[x[0]] * 2, y=y, mode="lines", line_color=colour, showlegend=False, hoverinfo="skip")
    return figure


def art_over_caps(sensitivity: CapSensitivity, eps_max: float) -> go.Figure:
    """Tuned ART of every method over eps_max, with 95 % bands; crossings and the trained eps_max marked."""
    figure = empty_figure("The order by ART, had eps_max been another", f"eps_max {EPS_AXIS[4:]}", "tuned ART (%)")
    for _, rows in sensitivity.table.groupby("method", sort=False):
        label, colour, symbol = method_style(rows.method.iloc[0])
        x = rows.eps_max.to_numpy()
        _band(figure, x, 100 * rows.low.to_numpy(), 100 * rows.high.to_numpy(), colour, label)
        marker, hover = {"symbol": symbol, "size": 8, "maxdisplayed": 8}, "%{y:.2f} % (kappa %{customdata:g})"
        look = {"line": {"color": colour, "width": 2}, "marker": marker, "mode": "lines+markers"}
        look |= {"customdata": rows.kappa, "hovertemplate": hover}
        figure.add_scatter(x=x, y=100 * rows.art, name=label, legendgroup=label, **look)
    figure.add_vline(x=eps_max, line=LINE, annotation_text="trained for", annotation_position="top left")
    for crossing in sensitivity.crossings:
        figure.add_vline(x=crossing.eps_max, line=LINE | {"color": "black", "dash": "dot"})
    figure.update_layout(hovermode="x unified")
    return figure


def certified_areas(breakdowns: Sequence[ACRBreakdown]) -> go.Figure:
    """Certified accuracy at every eps: the area below a curve is its ACR; the fixed eps are marked."""
    figure = empty_figure("Certified at every eps: the area is the ACR", EPS_AXIS, "certified accuracy (%)")
    for breakdown, (colour, symbol, dash) in _styled(breakdowns):
        grid = np.linspace(0.0, breakdown.eps_max, 201)
        share = metrics.certified_accuracy(breakdown.radii, grid)
        name = f"{breakdown.name}: area {100 * breakdown.acr:.1f} %"
        look = {"mode": "lines", "line": {"color": colour, "width": 2, "dash": dash}, "legendgroup": breakdown.name}
        area = {"fill": "tozeroy", "fillcolor": faded(colour, 0.08), "hovertemplate": "%{y:.1f} %", "showlegend": True}
        figure.add_scatter(x=grid, y=100 * share, name=name, **look, **area)
        inside = {eps: at for eps, at in breakdown.certified.items() if eps <= breakdown.eps_max}
        marker = {"color": colour, "symbol": symbol, "size": 10}
        points = {"mode": "markers", "marker": marker, "showlegend": False, "hoverinfo": "skip"}
        y = [100 * at.estimate for at in inside.values()]
        figure.add_scatter(x=list(inside), y=y, legendgroup=breakdown.name, **points)
    figure.update_yaxes(range=[0, 102])
    figure.update_layout(hovermode="x unified")
    return figure


def radius_shares(breakdowns: Sequence[ACRBreakdown], bins: int = 10) -> go.Figure:
    """How the radii spread: shares of images with radius 0, in equal parts of (0, eps_max), and at eps_max."""
    figure = empty_figure("How the radii spread", "certified radius (% of eps_max)", "share of images (%)")
    names = ["0", *(f"{100 * k // bins}-{100 * (k + 1) // bins}" for k in range(bins)), "100"]
    for breakdown, (colour, symbol, _) in _styled(breakdowns):
        at_end = breakdown.radii >= metrics.least_certified(breakdown.eps_max)
        inside = breakdown.radii[(breakdown.radii > 0) & ~at_end]
        counts, _edges = np.histogram(inside, bins, (0.0, breakdown.eps_max))
        shares = [breakdown.zero, *(counts / len(breakdown.radii)), breakdown.full]
        figure.add_bar(x=names, y=100 * np.array(shares), **_bar(breakdown, colour, symbol))
    figure.update_xaxes(type="category", tickangle=-45)
    return figure


def concentration(breakdowns: Sequence[ACRBreakdown]) -> go.Figure:
    """Which share of the ACR the easiest images make; were all radii equal, all curves would be the diagonal."""
    figure = empty_figure("Easy images make much of it", "easiest images (% of all)", "share of the ACR (%)")
    x = np.linspace(0, 100, 11)
    for breakdown, (colour, symbol, dash) in _styled(breakdowns):
        look = {"line": {"color": colour, "dash": dash}, "marker_symbol": symbol, "hovertemplate": "%{y:.0f} %"}
        y, name = 100 * np.array(breakdown.concentration), breakdown.name
        figure.add_scatter(x=x, y=y, name=name, legendgroup=name, mode="lines+markers", **look)
    equal = {"line": {"color": GREY, "dash": "dot"}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=x, y=x, mode="lines", **equal)
    figure.update_layout(hovermode="x unified")
    return figure


def class_radii(breakdowns: Sequence[ACRBreakdown]) -> go.Figure:
    """The ACR of each class."""
    figure = empty_figure("No class is the mean", "class", "ACR of the class (%)")
    for breakdown, (colour, symbol, _) in _styled(breakdowns):
        x, y = [str(k) for k in breakdown.per_class], [100 * acr for acr in breakdown.per_class.values()]
        marker, name = {"color": colour, "symbol": symbol, "size": 11}, breakdown.name
        look = {"mode": "markers", "marker": marker, "hovertemplate": "%{y:.1f} %"}
        figure.add_scatter(x=x, y=y, name=name, legendgroup=name, **look)
    figure.update_xaxes(type="category")
    figure.update_yaxes(rangemode="tozero")
    return figure


def fixed_eps(breakdowns: Sequence[ACRBreakdown]) -> go.Figure:
    """The certified accuracy at fixed eps, with 95 % intervals over seeds and test images."""
    figure = empty_figure("At one fixed eps", EPS_AXIS, "certified accuracy (%)")
    for breakdown, (colour, symbol, _) in _styled(breakdowns):
        at = list(breakdown.certified.values())
        x, y = [f"{eps:.4g}" for eps in breakdown.certified], [100 * a.estimate for a in at]
        figure.add_bar(x=x, y=y, error_y=_error_bars(at), **_bar(breakdown, colour, symbol))
    figure.update_xaxes(type="category")
    return figure


PANELS = {  # the parts of an ACR, and what to see in each
    certified_areas: "The area below a curve is the ACR; points are the fixed eps. Curves that cross are ordered "
    "differently at different eps.",
    radius_shares: "At 0: misclassified, or nothing proved. At 100: certified up to eps_max, whatever lies beyond.",
    concentration: "The share of the ACR that the easiest images make. Far above the dotted line: a few images make "
    "most of it.",
    class_radii: "The mean radius of each class. Where methods change places, the ACR hides it.",
    fixed_eps: "What a user who needs one eps asks for, with its interval over seeds and images.",
}


def _styled(breakdowns: Sequence[ACRBreakdown]) -> Iterator[tuple[ACRBreakdown, tuple[str, str, str]]]:
    """Each with its colour, its marker and its dash."""
    for breakdown, dash in zip(breakdowns, dashes(breakdown.method for breakdown in breakdowns), strict=True):
        _, colour, symbol = method_style(breakdown.method)
        yield breakdown, (colour, symbol, dash)


def _bar(breakdown: ACRBreakdown, colour: str, symbol: str) -> dict:
    """A network's bars, which differ by their pattern, too."""
    pattern = {"star": "/", "diamond": "", "square": "x", "circle": "."}.get(symbol, "-")
    marker = {"color": colour, "pattern": {"shape": pattern}}
    return {"name": breakdown.name, "legendgroup": breakdown.name, "marker": marker, "hovertemplate": "%{y:.1f} %"}
