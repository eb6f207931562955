"""Whole runs: the accuracy-robustness tradeoff, certified accuracies over eps, the spread of radii, a run's epochs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from acertlab import metrics
from acertlab.plots.style import (
    BLACK,
    BLUE,
    EPS_AXIS,
    GREEN,
    GREY,
    PURPLE,
    SKY,
    VERMILLION,
    faded,
    method_style,
)
from acertlab.plots.style import layout as _layout
from acertlab.plots.style import vertical as _vertical


def tradeoff(
    runs: pd.DataFrame,
    *,
    kappa: float | None = None,
    span: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> go.Figure:
    """Fig. 1: standard accuracy against the average certified radius, a line a method over kappa, over a map of ART.

    Args:
        runs: A row a run, of one dataset and one eps_max: method, kappa, seed, acc, acr, art (fractions).
        kappa: Points with this share of the clean loss are circled.
        span: Ends of the accuracy axis and of the ACR axis (fractions); None: around the points.

    Returns:
        The figure of `tradeoff_of_means`.

    Raises:
        ValueError: No runs, or runs of several datasets or eps_max: ACR (Eq. 12) is relative to eps_max.
    """
    if runs.empty:
        raise ValueError("runs: the table is empty; there is nothing to show")
    for column in ("dataset", "eps_max"):
        if runs[column].nunique() > 1:
            found = ", ".join(str(value) for value in sorted(runs[column].unique()))
            raise ValueError(f"runs: several {column} in one picture ({found}); choose one")
    table = metrics.mean_over_seeds(runs)
    chosen = table[np.isclose(table.kappa, kappa)] if kappa is not None else table[:0]
    return tradeoff_of_means(table, kappa=kappa, circled=chosen[["acc", "acr"]].to_numpy(), span=span)


def tradeoff_of_means(table: pd.DataFrame, **settings: object) -> go.Figure:
    """`tradeoff`, from means over seeds, with places that the explorer points out; as `tradeoff_spec`."""
    return go.Figure(tradeoff_spec(table, **settings))


def tradeoff_spec(
    table: pd.DataFrame,
    *,
    kappa: float | None = None,
    circled: ArrayLike = (),
    picked: tuple[float, float] | None = None,
    level: float | None = None,
    crossed: ArrayLike = (),
    span: tuple[tuple[float, float], tuple[float, float]] | None = None,
    height: int = 520,
) -> dict:
    """What `tradeoff_of_means` draws.

    Args:
        table: A row a (method, kappa) of one dataset and eps_max, as `metrics.mean_over_seeds` returns it.
        kappa: What the circles stand for, in the legend; None: there are none.
        circled: (K, 2) pairs of acc and acr (fractions) to circle; they need not be rows.
        picked: One pair of acc and acr to frame.
        level: An accuracy (fraction), drawn as a vertical line.
        crossed: (M, 2) pairs of acc and acr on that line.
        span: As in `tradeoff`.
        height: In pixels.

    Returns:
        Traces ("data") and "layout": the map of ART (trace 0), a trace a method, in the order of the table, and always,
        last, the circles, the frame, and the line with its crosses.
    """
    (x_low, x_high), (y_low, y_high) = span or (_span(table.acc), _span(table.acr))
    title = f"Accuracy against robustness: {table.dataset[0]}, eps_max = {table.eps_max[0]:.4g}"
    layout = _layout(title, "standard accuracy Acc (%)", "average certified radius ACR (% of eps_max)", height)
    layout["xaxis"]["range"], layout["yaxis"]["range"] = [100 * x_low, 100 * x_high], [100 * y_low, 100 * y_high]
    columns = {name: table[name].to_numpy() for name in table}
    methods = [(method, {name: values[columns["method"] == method] for name, values in columns.items()})
               for method in dict.fromkeys(columns["method"])]  # fmt: skip
    ring = {"symbol": "circle-open", "size": 22, "color": BLACK, "line": {"width": 2}}
    frame = {"symbol": "square-open", "size": 26, "color": PURPLE, "line": {"width": 3}}
    ends = [] if level is None else [(level, y_low), *np.reshape(crossed, (-1, 2)).tolist(), (level, y_high)]
    sizes = [0, *[12] * (len(ends) - 2), 0] if ends else []
    cross = {"symbol": "x-thin-open", "size": sizes, "color": BLACK, "line": {"width": 2}}
    data = [
        _art_map(x_low, x_high, y_low, y_high),
        *(_method_line(method, rows) for method, rows in methods),
        _places(circled, "kappa" if kappa is None else f"kappa = {kappa:g}", ring) | {"showlegend": kappa is not None},
        _places([] if picked is None else [picked], "picked", frame),
        _places(ends, "equal accuracy", cross) | {"mode": "lines+markers", "line": {"color": GREY, "dash": "dot"}},
    ]
    return {"data": data, "layout": layout}


def _places(pairs: ArrayLike, name: str, marker: dict) -> dict:
    acc, acr = 100 * np.reshape(np.asarray(pairs, dtype=float), (-1, 2)).T
    return {"type": "scatter", "x": acc, "y": acr, "name": name, "mode": "markers", "marker": marker,
            "hoverinfo": "skip", "showlegend": len(acc) > 0}  # fmt: skip


def _span(values: pd.Series) -> tuple[float, float]:
    pad = 0.12 * max(values.max() - values.min(), 0.05)
    return max(values.min() - pad, 0.0), min(values.max() + pad, 1.0)


def _art_map(x_low: float, x_high: float, y_low: float, y_high: float) -> dict:
    x, y = np.linspace(x_low, x_high, 40), np.linspace(y_low, y_high, 40)
    art = metrics.art(x[None, :], y[:, None])  # (40, 40)
    return {
        "type": "contour", "x": 100 * x, "y": 100 * y, "z": np.round(100 * art, 2), "ncontours": 14,
        "colorscale": [[0, "#C3CBDB"], [1, "#FFFFFF"]], "line": {"color": "#9AA5BA", "width": 0.7},
        "contours": {"showlabels": True, "labelfont": {"size": 10, "color": "#5E6B85"}},
        "colorbar": {"title": {"text": "ART (%)"}, "thickness": 12, "outlinewidth": 0}, "hoverinfo": "skip",
        "name": "ART",
    }  # fmt: skip


def _method_line(method: str, rows: Mapping[str, np.ndarray]) -> dict:
    label, colour, symbol = method_style(method)
    several = bool((rows["seeds"] > 1).any())
    bars = {axis: {"array": 100 * rows[f"{score}_std"], "visible": several, "thickness": 1.2, "width": 3}
            for axis, score in (("error_x", "acc"), ("error_y", "acr"))}  # fmt: skip
    return {
        "type": "scatter", "x": 100 * rows["acc"], "y": 100 * rows["acr"], "name": label, "mode": "lines+markers+text",
        "text": [f"{kappa:g}" for kappa in rows["kappa"]], "textposition": "top right",
        "textfont": {"size": 10, "color": colour}, "line": {"color": colour, "width": 2}, "cliponaxis": False,
        "marker": {"symbol": symbol, "size": 11, "line": {"color": "white", "width": 1}}, **bars,
        "customdata": np.column_stack([rows["kappa"], 100 * rows["art"], rows["seeds"]]).astype(float),
        "hovertemplate": "<b>" + label + "</b>, kappa = %{customdata[0]}<br>Acc %{x:.2f} %, ACR %{y:.2f} %, "
                         "ART %{customdata[1]:.2f} %<br>%{customdata[2]} seed(s)<extra></extra>",
    }  # fmt: skip


def certified_accuracy_curves(
    radii: Mapping[str, ArrayLike],
    eps_max: float,
    *,
    methods: Mapping[str, str] | None = None,
    eps: float | None = None,
    points: int = 201,
) -> go.Figure:
    """Fig. 3: the share of samples certified at every eps; the area under a curve is eps_max times the ACR.

    Args:
        radii: From a curve's name to the certified radii (N,) of its samples, pixel units.
        eps_max: The right end of the axis.
        methods: From a curve's name to the method whose colour and marker it takes; None: the names are methods.
        eps: One radius to mark by a vertical line.
        points: How many eps, from 0 to eps_max.

    Returns:
        The figure: a trace a name, and the line. At eps = 0 a curve shows the accuracy.
    """
    grid = np.linspace(0.0, eps_max, points)
    shares = {name: metrics.certified_accuracy(np.asarray(values), grid) for name, values in radii.items()}
    if methods is None:
        methods = {method_style(name)[0]: name for name in radii}
        shares = {method_style(name)[0]: share for name, share in shares.items()}
    return go.Figure(shares_spec(grid, shares, methods=methods, eps=eps))


def shares_spec(
    grid: np.ndarray,
    shares: Mapping[str, ArrayLike],
    *,
    methods: Mapping[str, str],
    eps: float | None = None,
    title: str = "Certified accuracy at every radius",
    fill: bool = False,
    height: int = 440,
) -> dict:
    """What `certified_accuracy_curves` draws, from shares that are there already.

    Args:
        grid: (E,) rising eps, pixel units; the last one is the end of the axis.
        shares: From a curve's name to its certified accuracy (E,), fractions.
        methods: From a curve's name to the method whose colour and marker it takes.
        eps: One radius to mark by a vertical line.
        title: Of the figure.
        fill: Shade the area below the curves: it is the mean radius.
        height: In pixels.

    Returns:
        "data", a trace a name and the line, and "layout".
    """
    layout = _layout(title, EPS_AXIS, "certified accuracy (%)", height) | {"hovermode": "x unified"}
    layout["xaxis"]["range"], layout["yaxis"]["range"] = [0, 1.01 * grid[-1]], [0, 102]
    dashes, seen, data = ("solid", "dash", "dot", "dashdot"), {}, []
    for name, share in shares.items():
        _, colour, symbol = method_style(methods[name])
        turn = seen[methods[name]] = seen.get(methods[name], -1) + 1
        data.append({
            "type": "scatter", "x": grid, "y": 100 * np.asarray(share), "name": name, "mode": "lines+markers",
            "line": {"color": colour, "width": 2, "dash": dashes[turn % len(dashes)]},
            "marker": {"symbol": symbol, "size": 9, "maxdisplayed": 8}, "cliponaxis": False,
            "fill": "tozeroy" if fill else "none", "fillcolor": faded(colour, 0.2), "showlegend": True,
            "hovertemplate": "%{y:.1f} %",
        })  # fmt: skip
    return {"data": [*data, _vertical(eps, 0, 100, "eps", GREY)], "layout": layout}


def radius_histogram(radii: ArrayLike, eps_max: float, **settings: object) -> go.Figure:
    """How the certified radii of a set of samples spread, with the shares at 0, inside and at eps_max.

    Args:
        radii: (N,) certified radii, pixel units; larger ones count as eps_max.
        eps_max: The perceptual limit of Def. 3.1.
        settings: `bins`, into how many bars (0, eps_max) is cut (25); `eps`, one radius to mark by a vertical line;
            `height` in pixels.

    Returns:
        The figure: the bars at 0, inside and at eps_max, and the line.

    Raises:
        ValueError: There are no radii.
    """
    return go.Figure(histogram_spec(radii, eps_max, **settings))


def histogram_spec(
    radii: ArrayLike, eps_max: float, *, bins: int = 25, eps: float | None = None, height: int = 440
) -> dict:
    """What `radius_histogram` draws: "data" and "layout"."""
    radii = np.minimum(np.asarray(radii, dtype=float), eps_max)
    if not radii.size:
        raise ValueError("radii: the array is empty; there is nothing to show")
    at_zero, at_end = radii <= 0, radii >= eps_max * (1 - 1e-6)  # float32 radii end a rounding below eps_max
    counts, edges = np.histogram(radii[~at_zero & ~at_end], bins=bins, range=(0.0, eps_max))
    width = eps_max / bins
    bars = [("at 0 (misclassified)", [-width], [at_zero.sum()], VERMILLION, "/"),
            ("inside", edges[:-1] + width / 2, counts, SKY, ""),
            ("at eps_max", [eps_max + width], [at_end.sum()], GREEN, "x")]  # fmt: skip
    data = []
    for name, centres, count, colour, pattern in bars:
        share = 100 * np.asarray(count) / radii.size
        data.append({"type": "bar", "x": np.asarray(centres), "y": share, "width": width,
                     "name": f"{name}: {share.sum():.1f} %", "hovertemplate": "%{y:.1f} %<extra></extra>",
                     "marker": {"color": colour, "pattern": {"shape": pattern}}})  # fmt: skip
    tallest = max(float(bar["y"].max()) for bar in data)
    layout = _layout(f"Certified radii of {radii.size} samples", f"certified radius, {EPS_AXIS}",
                     "share of samples (%)", height) | {"bargap": 0}  # fmt: skip
    inner = np.linspace(0, eps_max, 5)[1:-1]
    layout["xaxis"] |= {"tickvals": [-width, *inner, eps_max + width],
                        "ticktext": ["0", *(f"{t:.3g}" for t in inner), f"{eps_max:.3g}"]}  # fmt: skip
    return {"data": [*data, _vertical(eps, 0, tallest, "eps", GREY)], "layout": layout}


def training_history(history: pd.DataFrame) -> go.Figure:
    """What a run's epochs did: the scores on validation, whose boxes were how large, and the loss under eps_{max,t}.

    Args:
        history: A row an epoch, as a run's folder keeps it.
    """
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05,
                           specs=[[{}], [{}], [{"secondary_y": True}]])  # fmt: skip
    figure.update_layout(**_layout("Training, epoch by epoch", height=640), hovermode="x unified")
    figure.update_layout(legend_traceorder="normal")
    epoch = history.epoch + 1
    scores = [("Acc", BLUE, "square"), ("ACR", GREEN, "diamond"), ("ART", VERMILLION, "star")]
    for name, colour, symbol in scores:
        figure.add_scatter(x=epoch, y=100 * history[f"val_{name.lower()}"], name=name, mode="lines+markers",
                           line_color=colour, marker_symbol=symbol, row=1, col=1)  # fmt: skip
    shares = [("zero", "radius 0", VERMILLION), ("inside", "inside", SKY), ("cap", "at eps_max,t", GREEN)]
    for name, label, colour in shares:
        share = 100 * history[f"share_{name}"].dropna()  # none before the ramp begins
        figure.add_scatter(x=epoch[share.index], y=share, name=label, mode="lines", line_color=colour,
                           stackgroup="share", row=2, col=1)  # fmt: skip
    figure.add_scatter(x=epoch, y=history.loss, name="loss", mode="lines", line_color=BLACK, row=3, col=1)
    figure.add_scatter(x=epoch, y=history.eps_t, name="eps_max,t", mode="lines", line={"color": GREY, "dash": "dash"},
                       row=3, col=1, secondary_y=True)  # fmt: skip
    for row, title in enumerate(("validation (%)", "training boxes (%)", "loss"), start=1):
        figure.update_yaxes(title_text=title, row=row, col=1, secondary_y=False)
    figure.update_yaxes(title_text="eps_max,t", tickmode="auto", rangemode="tozero", row=3, col=1, secondary_y=True)
    figure.update_xaxes(title_text="epoch", row=3, col=1)
    return figure
