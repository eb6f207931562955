"""Figures of the paper's ablations: ours on the left, the paper's on the right, each in its own axes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from acertlab._text import printed_eps
from acertlab.analysis.paper.tables import Row
from acertlab.data.datasets import DATASETS
from acertlab.training.methods.catalogue import METHODS
from acertlab.visualization.radius import certified_accuracy_curves
from acertlab.visualization.style import (
    BLUE,
    EPS_AXIS,
    GREY,
    VERMILLION,
    base_layout,
    dashes,
    empty_figure,
    method_style,
)


def _beside_paper(title: str, ours: str, theirs: str | None, height: int) -> go.Figure:
    """Two empty panels, or one where the paper has none."""
    names = [ours] if theirs is None else [ours, theirs]
    figure = make_subplots(1, len(names), subplot_titles=names, horizontal_spacing=0.12)
    return figure.update_layout(base_layout(title, height=height), margin_t=120, legend_y=1.1)


def _style(label: str) -> tuple[str, str]:
    """Colour and marker of a method by its label."""
    key = next((key for key, method in METHODS.items() if method.label == label), label)
    return method_style(key)[1:]


def ramp_effect(table: pd.DataFrame, ours: str) -> go.Figure:
    """Table 2: ART with the ramp (filled) and without it (hollow), of `ablations.ramp_table`, beside the paper's."""
    panels = _beside_paper("What the ramp is worth", ours, "the paper: CIFAR-10 (Table 2)", 380)
    names = [f"{method}, kappa {kappa:g}" for method, kappa in table.index]
    for column, side in enumerate(("ours", "paper"), start=1):
        for i, (method, _) in enumerate(table.index):
            colour, symbol = _style(method)
            ends = [table[side, what].iloc[i] for what in ("ART", "with ramp")]
            line = {"color": colour, "width": 2}
            marker = {"symbol": symbol, "size": 13, "color": ["white", colour], "opacity": 1, "line": line}
            look = {"mode": "lines+markers", "line": line, "marker": marker, "showlegend": False, "cliponaxis": False}
            hover = "%{y}: %{x:.2f} %<extra></extra>"
            panels.add_scatter(x=ends, y=[names[i]] * 2, hovertemplate=hover, **look, row=1, col=column)
    for name, symbol in (("without the ramp", "circle-open"), ("with it", "circle")):
        marker = {"symbol": symbol, "color": GREY, "size": 12, "line_width": 2}
        panels.add_scatter(x=[None], y=[None], mode="markers", name=name, marker=marker)
    panels.update_xaxes(title_text="ART (%)")
    panels.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    panels.update_yaxes(showticklabels=False, col=2)
    return panels


def radius_errors(errors: pd.DataFrame) -> go.Figure:
    """The error of the radii over the root finder's iterations (`ablations.radius_errors`), mean and largest.

    On a logarithmic axis, where an error of 0 has no place.
    """
    panel = empty_figure("How far off are the radii?", "iterations at most", "error (% of eps_max)", 380)
    for name, colour, symbol in (("largest", VERMILLION, "triangle-up"), ("mean", BLUE, "circle")):
        values = errors[name].to_numpy(float)
        look = {"mode": "lines+markers", "line": {"color": colour}, "marker": {"symbol": symbol, "size": 10}}
        x, y = errors.iterations.astype(str), np.where(values > 0, values, np.nan)
        panel.add_scatter(x=x, y=y, name=name, hovertemplate="%{y:.3g} %", **look)
    panel.update_yaxes(type="log", exponentformat="power", dtick=1)
    panel.update_xaxes(type="category")
    panel.update_layout(hovermode="x unified")
    return panel


def root_precision(table: pd.DataFrame, ours: str) -> go.Figure:
    """Fig. 2: ART over the time of a training step, a point a number of iterations (`ablations.root_table`)."""
    title = "ART against time: what the root finder's precision costs and brings"
    panels = _beside_paper(title, ours, "the paper: CIFAR-10 (Table 6)", 420)
    iterations = table.index.get_level_values("iterations")
    for column, side in enumerate(("ours", "paper"), start=1):
        for method in dict.fromkeys(table.index.get_level_values("method")):
            rows = (table.index.get_level_values("method") == method) & table[side, "ART"].notna().to_numpy()
            colour, symbol = _style(method)
            texts = [str(int(n)) if method.startswith("ACERT") else "" for n in iterations[rows]]
            bars = {"array": table["ours", "± ART"][rows], "thickness": 1.2, "width": 3} if side == "ours" else None
            panels.add_scatter(
                x=table[side, "step ratio"][rows],
                y=table[side, "ART"][rows],
                error_y=bars,
                text=texts,
                textposition="middle right",
                mode="lines+markers+text" if rows.sum() > 1 else "markers+text",
                name=method,
                legendgroup=method,
                line={"color": colour, "width": 2},
                marker={"color": colour, "symbol": symbol, "size": 13},
                showlegend=column == 1,
                cliponaxis=False,
                hovertemplate=f"<b>{method}</b> %{{text}}<br>%{{x:.2f}} times FastIBP's step<br>"
                "ART %{y:.2f} %<extra></extra>",
                row=1,
                col=column,
            )
    panels.update_xaxes(title_text="training step / FastIBP's", rangemode="tozero")
    panels.update_yaxes(title_text="ART (%)", col=1)
    return panels


def certified_beside_paper(
    radii: Mapping[str, ArrayLike], eps_max: float, rows: Sequence[Row], *, methods: Mapping[str, str], ours: str
) -> go.Figure:
    """Fig. 3: our certified-accuracy curves, and what the paper's tables tell of its own: both ends of a straight line.

    ``radii`` (N,) by a curve's name are in pixel units, ``methods`` says whose colour and marker each takes; our axis
    ends at eps_max. ``rows`` are the paper's of Table 7, of one dataset; none: ours alone.
    """
    theirs = f"the paper: {DATASETS[rows[0].dataset].title}, the points of Table 7" if rows else None
    panels = _beside_paper("Certified accuracy at every radius", ours, theirs, 460)
    curves: Any = certified_accuracy_curves(radii, eps_max, methods=methods).data
    for curve in curves[:-1]:  # the last marks an eps
        panels.add_trace(curve.update(legendgroup=curve.name), row=1, col=1)
    for row, dash in zip(rows, dashes(row.method for row in rows), strict=True):
        label, colour, symbol = method_style(row.method)
        name, y = f"{label}, kappa {row.kappa:g}", [row.acc, row.certified]
        look = {"line": {"color": colour, "width": 1, "dash": dash}, "hovertemplate": "%{y:.2f} %"}
        look |= {"mode": "lines+markers", "cliponaxis": False}
        look |= {"marker": {"symbol": symbol, "size": 12}, "showlegend": name not in radii}
        panels.add_scatter(x=[0.0, row.eps], y=y, name=name, legendgroup=name, **look, row=1, col=2)
    panels.update_xaxes(title_text=EPS_AXIS, range=[0, 1.01 * eps_max], row=1, col=1)
    if rows:
        known, end = rows[0].eps, rows[0].eps_max
        ticks = [0.0] if known is None else [0.0, known]
        ticks += [end] if end > 1.2 * ticks[-1] else []
        labels = [printed_eps(tick) for tick in ticks]
        told = {"title_text": EPS_AXIS, "range": [0, 1.01 * end], "tickvals": ticks, "ticktext": labels}
        panels.update_xaxes(told, row=1, col=2)
    panels.update_yaxes(title_text="certified accuracy (%)", col=1)
    panels.update_yaxes(range=[0, 102])
    panels.update_layout(hovermode="x unified")
    return panels
