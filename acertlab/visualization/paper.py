"""Figures of the ablations: the paper's on the right, ours on the left, in its own axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from acertlab._text import printed_eps
from acertlab.analysis.paper.tables import DATASETS, Row
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import METHODS
from acertlab.visualization.style import BLUE, EPS_AXIS, GREY, VERMILLION, figure, layout, method_style

DASHES = ("solid", "dash", "dot", "dashdot")


def _panels(title: str, ours: str, theirs: str | None, height: int) -> go.Figure:
    names = [ours] if theirs is None else [ours, theirs]
    panels = make_subplots(1, len(names), subplot_titles=names, horizontal_spacing=0.12)
    panels.update_layout(**layout(title, height=height))
    panels.update_layout(margin_t=120, legend={"y": 1.1})
    return panels


def _style(label: str) -> tuple[str, str]:
    """Colour and marker of a method by what it is called."""
    key = next((key for key, method in METHODS.items() if method.label == label), label)
    return method_style(key)[1:]


def ramp_effect(table: pd.DataFrame, ours: str) -> go.Figure:
    """Table 2: ART with the ramp (filled) and without it (hollow).

    Args:
        table: of `acertlab.ablations.ramp_table`.
        ours: what the left panel is called.
    """
    panels = _panels("What the ramp is worth", ours, "the paper: CIFAR-10 (Table 2)", 380)
    names = [f"{method}, kappa {kappa:g}" for method, kappa in table.index]
    for column, side in enumerate(("ours", "paper"), start=1):
        for i, (method, _) in enumerate(table.index):
            colour, symbol = _style(method)
            ends = [table[side, what].iloc[i] for what in ("ART", "with ramp")]
            panels.add_scatter(
                x=ends, y=[names[i]] * 2, mode="lines+markers", line={"color": colour, "width": 2}, showlegend=False,
                marker={"symbol": symbol, "size": 13, "color": ["white", colour], "opacity": 1,
                        "line": {"width": 2, "color": colour}}, cliponaxis=False, row=1, col=column,
                hovertemplate="%{y}: %{x:.2f} %<extra></extra>",
            )  # fmt: skip
    for name, symbol in (("without the ramp", "circle-open"), ("with it", "circle")):
        panels.add_scatter(x=[None], y=[None], mode="markers", name=name,
                           marker={"symbol": symbol, "color": GREY, "size": 12, "line_width": 2})  # fmt: skip
    panels.update_xaxes(title_text="ART (%)")
    panels.update_yaxes(categoryorder="array", categoryarray=names[::-1])
    panels.update_yaxes(showticklabels=False, col=2)
    return panels


def radius_errors(errors: pd.DataFrame) -> go.Figure:
    """The error of the radii over the root finder's iterations, mean and largest, on a logarithmic axis.

    Args:
        errors: of `acertlab.ablations.radius_errors`; an error of 0 has no place on the axis.
    """
    panel = figure("How far off are the radii?", "most iterations of Brent's method", "error (% of eps_max)", 380)
    for name, colour, symbol in (("largest", VERMILLION, "triangle-up"), ("mean", BLUE, "circle")):
        values = errors[name].to_numpy(float)
        panel.add_scatter(x=errors.iterations.astype(str), y=np.where(values > 0, values, np.nan), name=name,
                          mode="lines+markers", line={"color": colour}, marker={"symbol": symbol, "size": 10},
                          hovertemplate="%{y:.3g} %")  # fmt: skip
    panel.update_yaxes(type="log", exponentformat="power", dtick=1)
    panel.update_xaxes(type="category")
    panel.update_layout(hovermode="x unified")
    return panel


def root_precision(table: pd.DataFrame, ours: str) -> go.Figure:
    """Fig. 2: ART over the time of a training step, a point a number of iterations.

    Args:
        table: of `acertlab.ablations.root_table`.
        ours: what the left panel is called.
    """
    panels = _panels("ART against time: what the root finder's precision costs and brings", ours,
                     "the paper: CIFAR-10 (Table 6)", 420)  # fmt: skip
    iterations = table.index.get_level_values("iterations")
    for column, side in enumerate(("ours", "paper"), start=1):
        for method in dict.fromkeys(table.index.get_level_values("method")):
            rows = (table.index.get_level_values("method") == method) & table[side, "ART"].notna().to_numpy()
            colour, symbol = _style(method)
            texts = [str(int(n)) if method.startswith("ACERT") else "" for n in iterations[rows]]
            bars = {"array": table["ours", "± ART"][rows], "thickness": 1.2, "width": 3} if side == "ours" else None
            panels.add_scatter(
                x=table[side, "step ratio"][rows], y=table[side, "ART"][rows], text=texts, textposition="middle right",
                mode="lines+markers+text" if rows.sum() > 1 else "markers+text", name=method, legendgroup=method,
                line={"color": colour, "width": 2}, marker={"color": colour, "symbol": symbol, "size": 13},
                error_y=bars, showlegend=column == 1, cliponaxis=False, row=1, col=column,
                hovertemplate=f"<b>{method}</b> %{{text}}<br>%{{x:.2f}} times FastIBP's step<br>ART %{{y:.2f}} %"
                              "<extra></extra>",
            )  # fmt: skip
    panels.update_xaxes(title_text="training step / FastIBP's", rangemode="tozero")
    panels.update_yaxes(title_text="ART (%)", col=1)
    return panels


def certified_beside_paper(
    radii: Mapping[str, ArrayLike], eps_max: float, rows: Sequence[Row], *, methods: Mapping[str, str], ours: str
) -> go.Figure:
    """Fig. 3: our certified-accuracy curves, and what the paper's tables tell of its own: both ends of a straight line.

    Args:
        radii: From a curve's name to the certified radii (N,), pixel units.
        eps_max: The right end of our axis.
        rows: The paper's of Table 7, of one dataset; none: ours alone.
        methods: From a curve's name to the method whose colour and marker it takes.
        ours: What the left panel is called.
    """
    theirs = f"the paper: {DATASETS[rows[0].dataset]}, the points of Table 7" if rows else None
    panels = _panels("Certified accuracy at every radius", ours, theirs, 460)
    grid = np.linspace(0.0, eps_max, 201)
    seen: dict[str, int] = {}
    for name, values in radii.items():
        _, colour, symbol = method_style(methods[name])
        dash = DASHES[seen.setdefault(methods[name], 0) % len(DASHES)]
        seen[methods[name]] += 1
        share = 100 * metrics.certified_accuracy(np.asarray(values), grid)
        panels.add_scatter(x=grid, y=share, name=name, legendgroup=name, mode="lines+markers", row=1, col=1,
                           line={"color": colour, "width": 2, "dash": dash}, hovertemplate="%{y:.1f} %",
                           marker={"symbol": symbol, "size": 9, "maxdisplayed": 8}, cliponaxis=False)  # fmt: skip
    seen = {}
    for row in rows:
        label, colour, symbol = method_style(row.method)
        dash = DASHES[seen.setdefault(row.method, 0) % len(DASHES)]
        seen[row.method] += 1
        name = f"{label}, kappa {row.kappa:g}"
        panels.add_scatter(x=[0.0, row.eps], y=[row.acc, row.certified], name=name, legendgroup=name, row=1, col=2,
                           mode="lines+markers", showlegend=name not in radii, cliponaxis=False,
                           line={"color": colour, "width": 1, "dash": dash}, marker={"symbol": symbol, "size": 12},
                           hovertemplate="%{y:.2f} %")  # fmt: skip
    panels.update_xaxes(title_text=EPS_AXIS, range=[0, 1.01 * eps_max], row=1, col=1)
    if rows:
        known, end = rows[0].eps, rows[0].eps_max
        ticks = [0.0, known, *([end] if end > 1.2 * known else [])]
        panels.update_xaxes(title_text=EPS_AXIS, range=[0, 1.01 * end], tickvals=ticks,
                            ticktext=[printed_eps(tick) for tick in ticks], row=1, col=2)  # fmt: skip
    panels.update_yaxes(title_text="certified accuracy (%)", col=1)
    panels.update_yaxes(range=[0, 102])
    panels.update_layout(hovermode="x unified")
    return panels
