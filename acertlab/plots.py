"""Plotly figures from tables and arrays: pure functions, one figure each.

Fractions come in, percentages are shown. Every method keeps one colour (Okabe and Ito's palette, safe for colour-blind
readers) and one marker throughout.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import plotly.io
from numpy.typing import ArrayLike
from plotly.subplots import make_subplots

from acertlab import metrics

# In a Jupyter kernel plotly's default shows figures in JupyterLab only. With HTML beside it (plotly.js from its CDN)
# they appear in nbviewer and in HTML copies too. PLOTLY_RENDERER=plotly_mimetype+notebook puts plotly.js itself into
# the notebook (5 MB), for copies that are read without a network.
if plotly.io.renderers.default == "plotly_mimetype":
    plotly.io.renderers.default = "plotly_mimetype+notebook_connected"

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # fmt: skip
GREY = "#8C8C8C"

METHODS: dict[str, tuple[str, str]] = {  # a method's colour and its marker
    "standard": (BLACK, "circle"),
    "ibp": (SKY, "square"),
    "fast-ibp": (BLUE, "diamond"),
    "crown-ibp": (GREEN, "triangle-up"),
    "sabr": (PURPLE, "cross"),
    "mtl-ibp": (GREEN, "x"),
    "cc-ibp": (PURPLE, "pentagon"),
    "exp-ibp": (SKY, "triangle-down"),
    "acert": (VERMILLION, "star"),
    "acert-fast": (ORANGE, "hexagram"),
}
EPS_AXIS = "eps (pixel units, 0 to 1)"


def method_style(method: str) -> tuple[str, str, str]:
    """What a method is called in figures, its colour and its marker; a method of your own is grey."""
    return metrics.METHODS.get(method, method), *METHODS.get(method, (GREY, "circle-open"))


def _figure(title: str, x: str = "", y: str = "", height: int = 440) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(**_layout(title, height))
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
    return figure


def _layout(title: str, height: int) -> dict:
    return {
        "template": "simple_white",
        "title": {"text": title, "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font_size": 16},
        "height": height,
        "margin": {"l": 65, "r": 25, "t": 85, "b": 60},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom"},
    }


def _vertical(figure: go.Figure, x: float | None, low: float, high: float, name: str, colour: str) -> None:
    """A dashed line at x; without an x, an empty trace in its place, so that a widget's traces stay the same."""
    ends = ([], []) if x is None else ([x, x], [low, high])
    figure.add_scatter(x=ends[0], y=ends[1], mode="lines", line={"color": colour, "dash": "dash"}, hoverinfo="skip",
                       name=name if x is None else f"{name} = {x:.4g}", showlegend=x is not None)  # fmt: skip


# ---- the accuracy-robustness tradeoff


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
        The figure: the map of ART (trace 0), a trace a method, and the circles (last trace).

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
    (x_low, x_high), (y_low, y_high) = span or (_span(table.acc), _span(table.acr))
    eps_max = table.eps_max[0]
    figure = _figure(f"Accuracy against robustness: {table.dataset[0]}, eps_max = {eps_max:.4g}",
                     "standard accuracy Acc (%)", "average certified radius ACR (% of eps_max)", 520)  # fmt: skip
    figure.add_trace(_art_map(x_low, x_high, y_low, y_high))
    for method, rows in table.groupby("method", sort=False):
        figure.add_trace(_method_line(method, rows))
    chosen = table[np.isclose(table.kappa, kappa)] if kappa is not None else table[:0]
    ring = {"symbol": "circle-open", "size": 22, "color": BLACK, "line_width": 2}
    name = "kappa" if kappa is None else f"kappa = {kappa:g}"
    figure.add_scatter(x=100 * chosen.acc, y=100 * chosen.acr, mode="markers", marker=ring, name=name, hoverinfo="skip",
                       showlegend=kappa is not None)  # fmt: skip
    figure.update_xaxes(range=[100 * x_low, 100 * x_high])
    figure.update_yaxes(range=[100 * y_low, 100 * y_high])
    return figure


def _span(values: pd.Series) -> tuple[float, float]:
    pad = 0.12 * max(values.max() - values.min(), 0.05)
    return max(values.min() - pad, 0.0), min(values.max() + pad, 1.0)


def _art_map(x_low: float, x_high: float, y_low: float, y_high: float) -> go.Contour:
    x, y = np.linspace(x_low, x_high, 40), np.linspace(y_low, y_high, 40)
    art = metrics.art(x[None, :], y[:, None])  # (40, 40)
    return go.Contour(
        x=100 * x, y=100 * y, z=np.round(100 * art, 2), colorscale=[[0, "#C3CBDB"], [1, "#FFFFFF"]], ncontours=14,
        line={"color": "#9AA5BA", "width": 0.7},
        contours={"showlabels": True, "labelfont": {"size": 10, "color": "#5E6B85"}},
        colorbar={"title": {"text": "ART (%)"}, "thickness": 12, "outlinewidth": 0}, hoverinfo="skip", name="ART",
    )  # fmt: skip


def _method_line(method: str, rows: pd.DataFrame) -> go.Scatter:
    label, colour, symbol = method_style(method)
    several = bool((rows.seeds > 1).any())
    bars = {axis: {"array": 100 * rows[f"{score}_std"], "visible": several, "thickness": 1.2, "width": 3}
            for axis, score in (("error_x", "acc"), ("error_y", "acr"))}  # fmt: skip
    return go.Scatter(
        x=100 * rows.acc, y=100 * rows.acr, name=label, mode="lines+markers+text", text=[f"{k:g}" for k in rows.kappa],
        textposition="top right", textfont={"size": 10, "color": colour}, line={"color": colour, "width": 2},
        cliponaxis=False,
        marker={"symbol": symbol, "size": 11, "line": {"color": "white", "width": 1}}, **bars,
        customdata=np.column_stack([rows.kappa, 100 * rows.art, rows.seeds]),
        hovertemplate="<b>" + label + "</b>, kappa = %{customdata[0]}<br>Acc %{x:.2f} %, ACR %{y:.2f} %, "
                      "ART %{customdata[1]:.2f} %<br>%{customdata[2]} seed(s)<extra></extra>",
    )  # fmt: skip


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
    figure = _figure("Certified accuracy at every radius", EPS_AXIS, "certified accuracy (%)")
    dashes, seen = ("solid", "dash", "dot", "dashdot"), {}
    for name, values in radii.items():
        method = name if methods is None else methods[name]
        label, colour, symbol = method_style(method)
        dash = dashes[seen.setdefault(method, 0) % len(dashes)]
        seen[method] += 1
        share = 100 * np.asarray(metrics.certified_accuracy(np.asarray(values), grid))
        figure.add_scatter(
            x=grid, y=share, name=label if methods is None else name, mode="lines+markers",
            line={"color": colour, "width": 2, "dash": dash},
            marker={"symbol": symbol, "size": 9, "maxdisplayed": 8}, cliponaxis=False,
            hovertemplate="%{y:.1f} %",
        )  # fmt: skip
    _vertical(figure, eps, 0, 100, "eps", GREY)
    figure.update_layout(hovermode="x unified")
    figure.update_xaxes(range=[0, 1.01 * eps_max])
    figure.update_yaxes(range=[0, 102])
    return figure


def radius_histogram(radii: ArrayLike, eps_max: float, *, bins: int = 25) -> go.Figure:
    """How the certified radii of a set of samples spread, with the shares at 0, inside and at eps_max.

    Args:
        radii: (N,) certified radii, pixel units; larger ones count as eps_max.
        eps_max: The perceptual limit of Def. 3.1.
        bins: Into how many bars (0, eps_max) is cut.
    """
    radii = np.minimum(np.asarray(radii, dtype=float), eps_max)
    if not radii.size:
        raise ValueError("radii: the array is empty; there is nothing to show")
    at_zero, at_end = radii <= 0, radii >= eps_max * (1 - 1e-6)  # float32 radii end a rounding below eps_max
    inside = radii[~at_zero & ~at_end]
    counts, edges = np.histogram(inside, bins=bins, range=(0.0, eps_max))
    width = eps_max / bins
    bars = [("at 0 (misclassified)", [-width], [at_zero.sum()], VERMILLION, "/"),
            ("inside", edges[:-1] + width / 2, counts, SKY, ""),
            ("at eps_max", [eps_max + width], [at_end.sum()], GREEN, "x")]  # fmt: skip
    figure = _figure(
        f"Certified radii of {radii.size} samples", f"certified radius, {EPS_AXIS}", "share of samples (%)"
    )
    for name, centres, count, colour, pattern in bars:
        share = 100 * np.asarray(count) / radii.size
        figure.add_bar(x=centres, y=share, width=width, name=f"{name}: {share.sum():.1f} %", marker_color=colour,
                       marker_pattern_shape=pattern, hovertemplate="%{y:.1f} %<extra></extra>")  # fmt: skip
    ticks = np.linspace(0, eps_max, 5)
    figure.update_xaxes(tickvals=[-width, *ticks[1:-1], eps_max + width],
                        ticktext=["0", *(f"{t:.3g}" for t in ticks[1:-1]), f"{eps_max:.3g}"])  # fmt: skip
    figure.update_layout(bargap=0)
    return figure


def radius_ranges(
    certified: Mapping[str, ArrayLike], attacked: ArrayLike, eps_max: float, samples: Sequence[str] | None = None
) -> go.Figure:
    """What is known of each sample's true robust radius: proved up to here, broken from there, unknown between.

    Args:
        certified: From a bound's name to (n,) radii certified by it, pixel units.
        attacked: (n,) smallest distance at which an attack succeeded; inf where none did up to eps_max.
        eps_max: Where the search ended, pixel units.
        samples: What each sample is called; their numbers by default.

    Raises:
        ValueError: No bound, or lengths that differ.
    """
    if not certified:
        raise ValueError("certified: no bound is given; give at least one, such as {'ibp': radii}")
    radii = {name: np.asarray(values, dtype=float) for name, values in certified.items()}
    best, attacked = np.max(list(radii.values()), axis=0), np.asarray(attacked, dtype=float)
    if len(attacked) != len(best):
        raise ValueError(f"attacked: {len(attacked)} values for {len(best)} samples")
    rows = np.arange(len(best))
    figure = _figure("Proved, unknown, broken", EPS_AXIS, "", height=200 + 34 * len(best))
    end = np.minimum(attacked, eps_max)
    bars = (("proved by some bound", 0 * best, best, "rgba(0, 158, 115, 0.30)", ""),
            ("unknown", best, np.maximum(end - best, 0.0), "rgba(140, 140, 140, 0.30)", "/"))  # fmt: skip
    for name, base, length, colour, pattern in bars:
        figure.add_bar(y=rows, x=length, base=base, orientation="h", name=name, marker_color=colour, hoverinfo="skip",
                       marker_pattern_shape=pattern)  # fmt: skip
    styles = ((BLUE, "line-ns-open"), (SKY, "diamond-open"), (PURPLE, "triangle-up-open"), (GREEN, "star"))
    for i, (name, values) in enumerate(radii.items()):
        colour, symbol = styles[i % len(styles)]
        marker = {"color": colour, "symbol": symbol, "size": 13, "line_width": 2}
        figure.add_scatter(y=rows, x=values, mode="markers", name=name, marker=marker,
                           hovertemplate=f"{name}: %{{x:.4g}}<extra></extra>")  # fmt: skip
    marker = {"color": VERMILLION, "symbol": "x", "size": 11}
    figure.add_scatter(y=rows, x=np.where(np.isfinite(attacked), attacked, np.nan), mode="markers", marker=marker,
                       name="attacked", hovertemplate="attacked: %{x:.4g}<extra></extra>")  # fmt: skip
    figure.update_yaxes(tickvals=rows, ticktext=list(samples or map(str, rows)), autorange="reversed")
    figure.update_xaxes(range=[-0.015 * eps_max, 1.03 * eps_max])
    figure.update_layout(barmode="overlay")
    return figure


# ---- one sample's certificate


def margin_curve(
    eps: ArrayLike,
    margins: ArrayLike,
    *,
    iterates: Sequence[tuple[float, float]] = (),
    radius: float | None = None,
    current: tuple[float, float] | None = None,
) -> go.Figure:
    """R_cert(x, eps) of Eq. (3) over eps, with the points that a root finder visited and the certified radius.

    Args:
        eps: (M,) radii of the box, pixel units.
        margins: (M,) the certified margin at each; negative: certified (Eq. 4).
        iterates: The (eps, margin) pairs that a root finder evaluated, in its order; they are numbered.
        radius: The certified radius: a vertical line.
        current: One (eps, margin) to point out.

    Returns:
        The figure; its traces are always the curve, its certified part, the zero line, the radius, the iterates and
        the current point, in this order (hidden where not given).
    """
    eps, margins = np.asarray(eps, dtype=float), np.asarray(margins, dtype=float)
    low, high = min(margins.min(), 0.0), max(margins.max(), 0.0)
    pad = 0.08 * (high - low or 1.0)
    figure = _figure("The certified margin over the radius of the box", EPS_AXIS, "certified margin R_cert(x, eps)")
    figure.add_scatter(x=eps, y=margins, mode="lines", line={"color": BLACK, "width": 2}, name="R_cert(x, eps)")
    figure.add_scatter(x=eps, y=np.minimum(margins, 0.0), mode="lines", line_width=0, name="certified: R_cert < 0",
                       fill="tozeroy", fillcolor="rgba(0, 158, 115, 0.22)", hoverinfo="skip")  # fmt: skip
    figure.add_scatter(x=eps[[0, -1]], y=[0, 0], mode="lines", line={"color": GREY, "width": 1}, hoverinfo="skip",
                       showlegend=False)  # fmt: skip
    _vertical(figure, radius, low - pad, high + pad, "certified radius", GREEN)
    visited = np.asarray(iterates, dtype=float).reshape(-1, 2)
    figure.add_scatter(x=visited[:, 0], y=visited[:, 1], mode="markers+text", name="Brent's iterates, in order",
                       text=[str(i + 1) for i in range(len(visited))], textfont={"color": VERMILLION, "size": 13},
                       textposition=["top center" if i % 2 else "bottom center" for i in range(len(visited))] or None,
                       marker={"color": VERMILLION, "symbol": "diamond", "size": 9},
                       showlegend=len(visited) > 0)  # fmt: skip
    here = np.asarray([current] if current else [], dtype=float).reshape(-1, 2)
    point = {"color": BLUE, "symbol": "circle", "size": 14, "line": {"color": "white", "width": 2}}
    figure.add_scatter(x=here[:, 0], y=here[:, 1], mode="markers", name="here", marker=point,
                       showlegend=current is not None)  # fmt: skip
    figure.update_yaxes(range=[low - pad, high + pad])
    return figure


def interval_growth(layers: Sequence[str], widths: Mapping[float, ArrayLike]) -> go.Figure:
    """How wide the intervals are after every layer, on a logarithmic axis.

    Args:
        layers: The layers' names, the input first.
        widths: From eps (pixel units) to a width for each layer, such as the mean of upper - lower; 0 is not shown.
    """
    figure = _figure("Intervals grow through the network", "after layer", "mean width of the intervals")
    shades = px.colors.sample_colorscale("Cividis", np.linspace(0.1, 0.85, len(widths))) if widths else []
    markers = ("circle", "square", "diamond", "triangle-up", "x", "star")
    for i, (eps, values) in enumerate(widths.items()):
        values = np.asarray(values, dtype=float)
        figure.add_scatter(x=list(range(len(layers))), y=np.where(values > 0, values, np.nan), name=f"eps = {eps:.4g}",
                           mode="lines+markers", line={"color": shades[i], "width": 2},
                           marker={"symbol": markers[i % len(markers)], "size": 9})  # fmt: skip
    figure.update_xaxes(tickvals=list(range(len(layers))), ticktext=list(layers), tickangle=-30)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_layout(margin_b=90)
    return figure


def logit_intervals(lower: ArrayLike, upper: ArrayLike, y: int, classes: Sequence[str] | None = None) -> go.Figure:
    """Eq. (3) at a glance: the interval of every logit; one that reaches the true class's breaks the certificate.

    Args:
        lower, upper: (C,) bounds of the logits.
        y: The true class.
        classes: The classes' names.

    Returns:
        The figure; its traces are always the true class, the classes below its lower end, those that reach it, and a
        line at that end.
    """
    lower, upper = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    names = [str(name) for name in (classes if classes is not None else range(len(lower)))]
    true = np.arange(len(lower)) == y
    breaks = ~true & (upper >= lower[y])
    margin = np.max(upper[~true]) - lower[y]
    verdict = "certified" if margin < 0 else "certificate broken"
    figure = _figure(f"Intervals of the logits: R_cert by Eq. (3) = {margin:.3g}, {verdict}", "logit", "class", 420)
    groups = [("true class", true, BLUE, ""), ("stays below it", ~true & ~breaks, GREY, ""),
              ("can reach it", breaks, VERMILLION, "/")]  # fmt: skip
    for name, rows, colour, pattern in groups:
        figure.add_bar(
            y=[names[i] for i in np.flatnonzero(rows)], x=(upper - lower)[rows], base=lower[rows], orientation="h",
            name=name, marker_color=colour, marker_pattern_shape=pattern, width=0.6, showlegend=True,
            customdata=np.column_stack([lower, upper])[rows],
            hovertemplate="%{y}: [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(x=[lower[y]] * 2, y=[names[0], names[-1]], mode="lines", line={"color": BLUE, "dash": "dash"},
                       name="lower end of the true class", hoverinfo="skip")  # fmt: skip
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names[::-1], showgrid=False)
    figure.update_layout(barmode="overlay")
    return figure


# ---- images and training


def image_grid(
    images: ArrayLike,
    titles: Sequence[str] | None = None,
    *,
    radii: ArrayLike | None = None,
    columns: int = 8,
    title: str = "",
) -> go.Figure:
    """Images side by side, each under its title and its certified radius.

    Args:
        images: (N, C, H, W), C of 1 or 3, pixels in [0, 1].
        titles: N texts.
        radii: (N,) certified radii, pixel units, written below the titles.
        columns: How many side by side.
        title: Of the whole figure.

    Returns:
        The figure: one small picture for all images, and a text an image.
    """
    images = np.asarray(images, dtype=float)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images: shape {images.shape}; accepted is (N, 1, H, W) or (N, 3, H, W) with N > 0")
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    lines = (titles is not None) + (radii is not None)
    side, gap = math.ceil(0.12 * width), math.ceil((0.1 + 0.2 * lines) * height)  # in pixels of the images
    mosaic = np.full((rows * (height + gap), columns * (width + side), 3), 255, dtype=np.uint8)
    figure = _figure(title, height=60 + 115 * rows * (height + gap) // height)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + side)
        mosaic[top : top + height, left : left + width] = np.rint(255 * image.transpose(1, 2, 0).clip(0, 1))
        text = [str(titles[i])] if titles is not None else []
        text += [f"radius {float(radii[i]):.3g}"] if radii is not None else []
        figure.add_annotation(x=left + width / 2 - 0.5, y=top - 0.5, text="<br>".join(text), showarrow=False,
                              yanchor="bottom", font_size=11)  # fmt: skip
    figure.add_trace(px.imshow(mosaic, binary_string=True).data[0].update(hoverinfo="skip", hovertemplate=None))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
    figure.update_layout(margin={"l": 10, "r": 10, "t": 50 if title else 10, "b": 10})
    return figure


def training_history(history: pd.DataFrame) -> go.Figure:
    """What a run's epochs did: the scores on validation, whose boxes were how large, and the loss under eps_{max,t}.

    Args:
        history: A row an epoch, as a run's folder keeps it.
    """
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.05,
                           specs=[[{}], [{}], [{"secondary_y": True}]])  # fmt: skip
    figure.update_layout(**_layout("Training, epoch by epoch", 640), hovermode="x unified")
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
