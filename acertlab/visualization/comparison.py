"""Figures of an analysis: fronts with bands, ART over eps_max, and what an ACR is made of. Fractions come in, per cent
are shown; methods keep the colours and markers of `plots`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.colors
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from acertlab.analysis.acr_breakdown import ACRBreakdown, CapSensitivity
from acertlab.analysis.bootstrap import confidence_interval
from acertlab.analysis.fronts import Analysis, Comparison, Curve
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import name_of
from acertlab.visualization.style import EPS_AXIS, GREY, method_style

DASHES = ("solid", "dash", "dot", "dashdot")
LINE = {"line": {"color": GREY, "dash": "dash", "width": 1.5}, "opacity": 1.0}  # the template's lines have no width


def _panel(title: str, x: str, y: str, height: int = 400) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="simple_white", title={"text": title, "x": 0.01, "font_size": 16}, height=height,
        margin={"l": 60, "r": 20, "t": 80, "b": 55}, xaxis_title=x, yaxis_title=y,
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom"},
    )  # fmt: skip
    return figure


def _faint(colour: str, alpha: float = 0.18) -> str:
    return "rgba({}, {}, {}, {})".format(*plotly.colors.hex_to_rgb(colour), alpha)


def _band(figure: go.Figure, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, group: str) -> None:
    """A filled area without a line, that comes and goes with its group's legend entry."""
    figure.add_scatter(x=[*x, *x[::-1]], y=[*high, *low[::-1]], fill="toself", fillcolor=_faint(colour), line_width=0,
                       mode="lines", hoverinfo="skip", showlegend=False, legendgroup=group)  # fmt: skip


# ---- fronts
def fronts(analysis: Analysis) -> go.Figure:
    """Every method's front in the (Acc, ACR) plane, with the 95 % band of its ACR at every accuracy.

    The front is the line; networks that are not on it stand beside it, with their kappa. The band holds ACR at one
    accuracy, over seeds and test images; crosses are the intervals of the networks themselves.
    """
    figure = _panel(f"Fronts at eps_max = {analysis.eps_max:.4g}, with their 95 % bands", "standard accuracy Acc (%)",
                    "average certified radius ACR (% of eps_max)", 520)  # fmt: skip
    for method in analysis.samples.methods:
        label, colour, _ = method_style(method)
        curve = Curve.of(analysis.samples, analysis.scores, method)
        if len(curve.front) > 1:
            grid = np.linspace(*curve.reach, 60)
            found = curve.acr_at(np.broadcast_to(grid, (len(curve.acc), len(grid))))
            ends = [confidence_interval(column) for column in found.T if np.isfinite(column[1:]).mean() >= 0.5]
            low, high = np.array([(100 * end.low, 100 * end.high) for end in ends]).T
            _band(figure, 100 * grid[: len(ends)], low, high, colour, label)
            figure.add_scatter(x=100 * curve.acc[0, curve.front], y=100 * curve.acr[0, curve.front], mode="lines",
                               line={"color": colour, "width": 2.5}, name=label, legendgroup=label, showlegend=False,
                               hoverinfo="skip")  # fmt: skip
        figure.add_trace(_networks(analysis, method))
    return figure


def _networks(analysis: Analysis, method: str) -> go.Scatter:
    label, colour, symbol = method_style(method)
    cells = np.flatnonzero(analysis.samples.settings.method == method)
    acc, acr = (
        [confidence_interval(column) for column in values[:, cells].T]
        for values in (analysis.scores.acc, analysis.scores.acr)
    )
    kappa = analysis.samples.settings.kappa.iloc[cells]

    def bars(ends: list) -> dict:
        up, down = ([100 * (e.high - e.estimate) for e in ends], [100 * (e.estimate - e.low) for e in ends])
        return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1, "width": 2}

    return go.Scatter(
        x=[100 * e.estimate for e in acc], y=[100 * e.estimate for e in acr], error_x=bars(acc), error_y=bars(acr),
        mode="markers+text", text=[f"{k:g}" for k in kappa], textposition="top right", name=label, legendgroup=label,
        textfont={"size": 10, "color": colour}, cliponaxis=False,
        marker={"color": colour, "symbol": symbol, "size": 11, "line": {"color": "white", "width": 1}},
        hovertemplate="<b>" + label + "</b>, kappa = %{text}<br>Acc %{x:.2f} %, ACR %{y:.2f} %<extra></extra>",
    )  # fmt: skip


def difference(comparison: Comparison) -> go.Figure:
    """The difference of two fronts' ACR at equal accuracy, with the band that holds the whole curve at 95 %.

    Raises:
        ValueError: The fronts share no accuracy.
    """
    if comparison.compared is None:
        raise ValueError(f"comparison: {comparison.sentence}")
    a, b, band = name_of(comparison.method), name_of(comparison.other), comparison.band
    figure = _panel(f"ACR at equal accuracy: {a} minus {b}", "accuracy of both (%)", f"ACR, {a} - {b} (points)")
    _, colour, symbol = method_style(comparison.method)
    x = 100 * band.accuracy.to_numpy()
    _band(figure, x, 100 * band.low.to_numpy(), 100 * band.high.to_numpy(), colour, "difference")
    figure.add_scatter(x=x, y=100 * band.difference, name="difference", legendgroup="difference",
                       mode="lines" if len(x) > 1 else "markers", line={"color": colour, "width": 2},
                       marker={"symbol": symbol, "size": 11}, showlegend=False,
                       hovertemplate="accuracy %{x:.1f} %: %{y:.2f} points<extra></extra>")  # fmt: skip
    figure.add_hline(y=0, **LINE)
    figure.update_yaxes(rangemode="tozero")
    if len(x) == 1:
        figure.add_scatter(x=[x[0]] * 2, y=100 * band.loc[0, ["low", "high"]].to_numpy(float), mode="lines",
                           line_color=colour, showlegend=False, hoverinfo="skip")  # fmt: skip
    return figure


def art_over_caps(sensitivity: CapSensitivity, eps_max: float) -> go.Figure:
    """Tuned ART of every method over eps_max, with 95 % bands; crossings and the trained eps_max marked."""
    figure = _panel("The order by ART, had eps_max been another", f"eps_max {EPS_AXIS[4:]}", "tuned ART (%)")
    for method, rows in sensitivity.table.groupby("method", sort=False):
        label, colour, symbol = method_style(method)
        x = rows.eps_max.to_numpy()
        _band(figure, x, 100 * rows.low.to_numpy(), 100 * rows.high.to_numpy(), colour, label)
        figure.add_scatter(x=x, y=100 * rows.art, name=label, legendgroup=label, mode="lines+markers",
                           line={"color": colour, "width": 2}, marker={"symbol": symbol, "size": 8, "maxdisplayed": 8},
                           customdata=rows.kappa, hovertemplate="%{y:.2f} % (kappa %{customdata:g})")  # fmt: skip
    figure.add_vline(x=eps_max, **LINE, annotation_text="trained for", annotation_position="top left")
    for crossing in sensitivity.crossings:
        figure.add_vline(x=crossing.eps_max, **LINE | {"line": {"color": "black", "dash": "dot", "width": 1.5}})
    figure.update_layout(hovermode="x unified")
    return figure


# ---- what an ACR is made of
def certified_areas(breakdowns: Sequence[ACRBreakdown]) -> go.Figure:
    """Certified accuracy at every eps: the area below a curve is its ACR; the fixed eps are marked."""
    figure = _panel("Certified at every eps: the area is the ACR", EPS_AXIS, "certified accuracy (%)")
    for breakdown, (colour, symbol, dash) in zip(breakdowns, _styles(breakdowns), strict=True):
        grid = np.linspace(0.0, breakdown.eps_max, 201)
        share = metrics.certified_accuracy(breakdown.radii, grid)
        name = f"{breakdown.name}: area {100 * breakdown.acr:.1f} %"
        figure.add_scatter(x=grid, y=100 * share, name=name, legendgroup=breakdown.name, mode="lines", fill="tozeroy",
                           fillcolor=_faint(colour, 0.08), line={"color": colour, "width": 2, "dash": dash},
                           hovertemplate="%{y:.1f} %")  # fmt: skip
        inside = {eps: at for eps, at in breakdown.certified.items() if eps <= breakdown.eps_max}
        figure.add_scatter(x=list(inside), y=[100 * at.estimate for at in inside.values()], mode="markers",
                           marker={"color": colour, "symbol": symbol, "size": 10}, showlegend=False,
                           legendgroup=breakdown.name, hoverinfo="skip")  # fmt: skip
    figure.update_yaxes(range=[0, 102])
    figure.update_layout(hovermode="x unified")
    return figure


def radius_shares(breakdowns: Sequence[ACRBreakdown], bins: int = 10) -> go.Figure:
    """How the radii spread: shares of images with radius 0, in equal parts of (0, eps_max), and at eps_max."""
    figure = _panel("How the radii spread", "certified radius (% of eps_max)", "share of images (%)")
    names = ["0", *(f"{100 * k // bins}-{100 * (k + 1) // bins}" for k in range(bins)), "100"]
    for breakdown, (colour, symbol, _) in zip(breakdowns, _styles(breakdowns), strict=True):
        inside = breakdown.radii[(breakdown.radii > 0) & (breakdown.radii < breakdown.eps_max * (1 - 1e-6))]
        counts, _edges = np.histogram(inside, bins, (0.0, breakdown.eps_max))
        shares = [breakdown.zero, *(counts / len(breakdown.radii)), breakdown.full]
        figure.add_bar(x=names, y=100 * np.array(shares), name=breakdown.name, legendgroup=breakdown.name,
                       marker_color=colour, marker_pattern_shape=_pattern(symbol),
                       hovertemplate="%{y:.1f} %")  # fmt: skip
    figure.update_xaxes(type="category", tickangle=-45)
    return figure


def concentration(breakdowns: Sequence[ACRBreakdown]) -> go.Figure:
    """Which share of the ACR the easiest images make; were all radii equal, all curves would be the diagonal."""
    figure = _panel("Easy images make much of it", "easiest images (% of all)", "share of the ACR (%)")
    x = np.linspace(0, 100, 11)
    for breakdown, (colour, symbol, dash) in zip(breakdowns, _styles(breakdowns), strict=True):
        figure.add_scatter(x=x, y=100 * np.array(breakdown.concentration), name=breakdown.name, mode="lines+markers",
                           legendgroup=breakdown.name, line={"color": colour, "dash": dash}, marker_symbol=symbol,
                           hovertemplate="%{y:.0f} %")  # fmt: skip
    figure.add_scatter(x=x, y=x, mode="lines", line={"color": GREY, "dash": "dot"}, hoverinfo="skip",
                       showlegend=False)  # fmt: skip
    figure.update_layout(hovermode="x unified")
    return figure


def class_radii(breakdowns: Sequence[ACRBreakdown]) -> go.Figure:
    """The ACR of each class."""
    figure = _panel("No class is the mean", "class", "ACR of the class (%)")
    for breakdown, (colour, symbol, _) in zip(breakdowns, _styles(breakdowns), strict=True):
        figure.add_scatter(x=[str(k) for k in breakdown.per_class], y=[100 * v for v in breakdown.per_class.values()],
                           name=breakdown.name, legendgroup=breakdown.name, mode="markers",
                           marker={"color": colour, "symbol": symbol, "size": 11},
                           hovertemplate="%{y:.1f} %")  # fmt: skip
    figure.update_xaxes(type="category")
    figure.update_yaxes(rangemode="tozero")
    return figure


def fixed_eps(breakdowns: Sequence[ACRBreakdown]) -> go.Figure:
    """The certified accuracy at fixed eps, with 95 % intervals over seeds and test images."""
    figure = _panel("At one fixed eps", EPS_AXIS, "certified accuracy (%)")
    for breakdown, (colour, symbol, _) in zip(breakdowns, _styles(breakdowns), strict=True):
        at = list(breakdown.certified.values())
        bars = {"type": "data", "symmetric": False, "array": [100 * (a.high - a.estimate) for a in at],
                "arrayminus": [100 * (a.estimate - a.low) for a in at]}  # fmt: skip
        figure.add_bar(x=[f"{eps:.4g}" for eps in breakdown.certified], y=[100 * a.estimate for a in at], error_y=bars,
                       name=breakdown.name, legendgroup=breakdown.name, marker_color=colour,
                       marker_pattern_shape=_pattern(symbol), hovertemplate="%{y:.1f} %")  # fmt: skip
    figure.update_xaxes(type="category")
    return figure


PANELS = (certified_areas, radius_shares, concentration, class_radii, fixed_eps)


def acr_picture(breakdowns: Sequence[ACRBreakdown], sensitivity: CapSensitivity) -> go.Figure:
    """What is said against the ACR, answered in one picture: its area, its samples, its classes, its eps, its cap."""
    parts = [*(panel(breakdowns) for panel in PANELS), art_over_caps(sensitivity, breakdowns[0].eps_max)]
    figure = make_subplots(3, 2, subplot_titles=[part.layout.title.text for part in parts], vertical_spacing=0.13)
    for i, part in enumerate(parts):
        row, col = i // 2 + 1, i % 2 + 1
        for trace in part.data:  # one legend entry a network, for all panels
            figure.add_trace(trace.update(showlegend=i == 0 and trace.showlegend is not False), row=row, col=col)
        for axis, update in ((part.layout.xaxis, figure.update_xaxes), (part.layout.yaxis, figure.update_yaxes)):
            told = {key: axis[key] for key in ("title", "type", "range", "rangemode", "tickangle") if axis[key]}
            update(told, row=row, col=col)
        number = i + 1 if i else ""
        for shape in part.layout.shapes:
            figure.add_shape(shape.update(xref=f"x{number}", yref=f"y{number} domain"))
    figure.update_layout(template="simple_white", height=1100, barmode="group", hovermode="closest",
                         legend={"orientation": "h", "y": 1.04, "yanchor": "bottom"}, margin_t=110)  # fmt: skip
    return figure


def _styles(breakdowns: Sequence[ACRBreakdown]) -> list[tuple[str, str, str]]:
    """Colour, marker and dash of each; a method that is there twice takes another dash."""
    seen: dict[str, int] = {}
    styles = []
    for breakdown in breakdowns:
        _, colour, symbol = method_style(breakdown.method)
        styles.append((colour, symbol, DASHES[seen.setdefault(breakdown.method, 0) % len(DASHES)]))
        seen[breakdown.method] += 1
    return styles


def _pattern(symbol: str) -> str:
    """A bar's pattern, so that bars differ without colour, too."""
    return {"star": "/", "diamond": "", "square": "x", "circle": "."}.get(symbol, "-")
