"""Figures of radii: the margin's curve, intervals, histograms, certified accuracy, images."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.express as px
from numpy.typing import ArrayLike
from plotly import graph_objects as go

from acertlab.radius import metrics
from acertlab.visualization.style import (
    BLACK,
    BLUE,
    EPS_AXIS,
    GREEN,
    GREY,
    PURPLE,
    SKY,
    VERMILLION,
    base_layout,
    dashes,
    empty_figure,
    eps_axis,
    eps_words,
    faded,
    method_style,
    vertical,
)


def certified_accuracy_curves(
    radii: Mapping[str, ArrayLike],
    eps_max: float,
    *,
    methods: Mapping[str, str] | None = None,
    eps: float | None = None,
    points: int = 201,
) -> go.Figure:
    """Fig. 3: the share of samples certified at every eps; the area under a curve is eps_max times the ACR.

    ``radii`` (N,) by a curve's name, and eps, are in pixel units; eps_max is the right end of the axis, and a line
    marks ``eps``. ``methods`` says of each name whose colour and marker it takes; None: the names are methods. At eps =
    0 a curve shows the accuracy.
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
    """What `certified_accuracy_curves` draws: "data", a trace a name and the line at ``eps``, and "layout".

    ``grid`` (E,) has rising eps, pixel units, of which the last ends the axis; ``shares`` has the certified accuracy
    (E,), fractions, by a curve's name. ``fill`` shades the area below the curves: it is the mean radius.
    """
    layout = base_layout(title, "", "certified accuracy (%)", height)
    layout["hovermode"] = "x unified"
    layout["xaxis"], layout["yaxis"]["range"] = eps_axis(grid[-1]), [0, 102]
    same = {"type": "scatter", "mode": "lines+markers", "cliponaxis": False, "showlegend": True}
    same |= {"fill": "tozeroy" if fill else "none", "hovertemplate": "%{y:.1f} %"}
    data = []
    for (name, share), dash in zip(shares.items(), dashes(methods[name] for name in shares), strict=True):
        _, colour, symbol = method_style(methods[name])
        look = {
            "line": {"color": colour, "width": 2, "dash": dash},
            "marker": {"symbol": symbol, "size": 9, "maxdisplayed": 8},
            "fillcolor": faded(colour, 0.2),
        }
        data.append({**same, **look, "x": grid, "y": 100 * np.asarray(share), "name": name})
    return {"data": [*data, vertical(eps, 0, 100, "eps", GREY, grid[-1])], "layout": layout}


def radius_histogram(
    radii: ArrayLike, eps_max: float, *, bins: int = 25, eps: float | None = None, height: int = 440
) -> go.Figure:
    """Histogram of certified radii: the bars at 0, inside and at eps_max, and the line at ``eps``.

    ``radii`` (N,), N >= 1, and eps are in pixel units; radii beyond the perceptual limit ``eps_max`` count as it, and
    what is inside makes so many ``bins``.
    """
    return go.Figure(histogram_spec(radii, eps_max, bins=bins, eps=eps, height=height))


def histogram_spec(
    radii: ArrayLike, eps_max: float, *, bins: int = 25, eps: float | None = None, height: int = 440
) -> dict:
    """What `radius_histogram` draws: "data" and "layout"."""
    radii = np.minimum(np.asarray(radii, dtype=float), eps_max)
    if not radii.size:
        raise ValueError("radii: the array is empty; there is nothing to show")
    at_zero, at_end = radii <= 0, radii >= metrics.least_certified(eps_max)
    counts, edges = np.histogram(radii[~at_zero & ~at_end], bins=bins, range=(0.0, eps_max))
    width = eps_max / bins
    bars = (
        ("at 0", [-width], [at_zero.sum()], VERMILLION, "/"),
        ("inside", edges[:-1] + width / 2, counts, SKY, ""),
        ("at eps_max", [eps_max + width], [at_end.sum()], GREEN, "x"),
    )
    same, data = {"type": "bar", "width": width, "hovertemplate": "%{y:.1f} %<extra></extra>"}, []
    for name, centres, count, colour, pattern in bars:
        share, marker = 100 * np.asarray(count) / radii.size, {"color": colour, "pattern": {"shape": pattern}}
        name = f"{name}: {share.sum():.1f} %"
        data.append({**same, "x": np.asarray(centres), "y": share, "name": name, "marker": marker})
    tallest = max(float(bar["y"].max()) for bar in data)
    layout = base_layout(f"Certified radii of {radii.size} samples", "", "share of samples (%)", height)
    axis, words = eps_axis(eps_max, f"certified radius, {EPS_AXIS}"), eps_words(eps_max)
    inner = [tick for tick in axis["tickvals"] if 0 < tick < eps_max - 3 * width]  # the bar at eps_max has its own
    layout["bargap"], layout["xaxis"] = 0, axis | {"range": [-1.6 * width, eps_max + 1.6 * width]}
    layout["xaxis"] |= {"tickvals": [-width, *inner, eps_max + width]}
    layout["xaxis"] |= {"ticktext": ["0", *map(words, inner), words(eps_max)]}
    return {"data": [*data, vertical(eps, 0, tallest, "eps", GREY, eps_max)], "layout": layout}


def margin_curve(
    eps: ArrayLike,
    margins: ArrayLike,
    *,
    iterates: Sequence[tuple[float, float]] = (),
    radius: float | None = None,
    current: tuple[float, float] | None = None,
) -> go.Figure:
    """R_cert(x, eps) of Eq. (3) over eps, with the points that a root finder visited and the certified radius.

    eps and margins (M,) are the curve, in pixel units; negative: certified (Eq. 4). ``iterates`` are the (eps, margin)
    pairs that a root finder evaluated, in its order, in which they are numbered; ``radius`` is a vertical line;
    ``current`` one (eps, margin) to point out. The traces are always the curve, its certified part, the zero line, the
    radius, the iterates and the current point (hidden where not given). Where there are iterates, a second panel shows
    how small |R_cert| is at each of them.
    """
    eps, margins = np.asarray(eps, dtype=float), np.asarray(margins, dtype=float)
    low, high = min(margins.min(), 0.0), max(margins.max(), 0.0)
    pad = 0.08 * (high - low or 1.0)
    title, y = "The certified margin over the radius of the box", "certified margin R_cert(x, eps)"
    figure = empty_figure(title, "", y, 460, legend_rows=3)
    figure.add_scatter(x=eps, y=margins, mode="lines", line={"color": BLACK, "width": 2}, name="R_cert(x, eps)")
    area = {"fill": "tozeroy", "fillcolor": faded(GREEN, 0.22), "line_width": 0, "hoverinfo": "skip"}
    figure.add_scatter(x=eps, y=np.minimum(margins, 0.0), mode="lines", name="certified", **area)
    zero = {"line": {"color": GREY, "width": 1}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=eps[[0, -1]], y=[0, 0], mode="lines", **zero)
    figure.add_trace(vertical(radius, low - pad, high + pad, "radius", GREEN, eps[-1]))
    visited = np.asarray(iterates, dtype=float).reshape(-1, 2)
    apart = _apart(visited / [eps[-1], high - low + 2 * pad])
    figure.add_scatter(
        x=visited[:, 0],
        y=visited[:, 1],
        mode="markers+text",
        name="iterates, in order",
        text=[str(i + 1) if apart[i] else "" for i in range(len(visited))],
        textfont={"color": VERMILLION, "size": 13},
        textposition=["top center" if i % 2 else "bottom center" for i in range(len(visited))] or None,
        marker={"color": VERMILLION, "symbol": "diamond", "size": 9},
        showlegend=len(visited) > 0,
    )
    here = np.asarray([current] if current else [], dtype=float).reshape(-1, 2)
    point = {"color": BLUE, "symbol": "circle", "size": 14, "line": {"color": "white", "width": 2}}
    shown = current is not None
    figure.add_scatter(x=here[:, 0], y=here[:, 1], mode="markers", name="here", marker=point, showlegend=shown)
    figure.update_layout(xaxis=eps_axis(eps[-1]), yaxis_range=[low - pad, high + pad])
    if len(visited):
        _sizes_beside(figure, np.abs(visited[:, 1]))
    return figure


def _apart(places: np.ndarray) -> list[bool]:
    """Which of some places (N, 2), in shares of a figure, are far enough from those kept before to bear a number."""
    kept: list[int] = []
    for i, place in enumerate(places):
        if not kept or (np.abs(places[kept] - place) > (0.03, 0.07)).any(axis=1).all():
            kept.append(i)
    return [i in kept for i in range(len(places))]


def _sizes_beside(figure: go.Figure, sizes: np.ndarray) -> None:
    """A second panel, to the right: |R_cert| at each iterate, on a logarithmic axis; near the root all look alike."""
    count, marker = np.arange(1, len(sizes) + 1), {"color": VERMILLION, "symbol": "diamond", "size": 8}
    look = {"mode": "lines+markers", "line": {"color": VERMILLION, "width": 1}, "marker": marker, "showlegend": False}
    y = np.where(sizes > 0, sizes, np.nan)
    figure.add_scatter(x=count, y=y, name="|R_cert|", xaxis="x2", yaxis="y2", **look)
    axis = {"title": {"text": "iterate"}, "domain": [0.73, 1], "anchor": "y2", "dtick": max(1, round(len(sizes) / 6))}
    logarithmic = {"type": "log", "exponentformat": "power", "anchor": "x2"}
    logarithmic |= {"title": {"text": "|R_cert|", "standoff": 4}}
    figure.update_layout(xaxis_domain=[0, 0.58], xaxis2=axis, yaxis2=logarithmic)


def interval_growth(layers: Sequence[str], widths: Mapping[float, ArrayLike]) -> go.Figure:
    """How wide the intervals are after every layer, on a logarithmic axis.

    ``layers`` are named, the input first; ``widths`` tells of each eps (pixel units) a width for each layer, such as
    the mean of upper - lower; 0 is not shown.
    """
    figure = empty_figure("Intervals grow through the network", "after layer", "mean width of the intervals")
    shades = px.colors.sample_colorscale("Cividis", np.linspace(0.1, 0.85, len(widths))) if widths else []
    markers, places = ("circle", "square", "diamond", "triangle-up", "x", "star"), list(range(len(layers)))
    for i, (eps, values) in enumerate(widths.items()):
        values = np.asarray(values, dtype=float)
        look = {"line": {"color": shades[i], "width": 2}, "marker": {"symbol": markers[i % len(markers)], "size": 9}}
        y = np.where(values > 0, values, np.nan)
        figure.add_scatter(x=places, y=y, name=f"eps = {eps:.4g}", mode="lines+markers", **look)
    figure.update_xaxes(tickvals=places, ticktext=list(layers), tickangle=-30)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_layout(margin_b=90)
    return figure


def logit_intervals(
    lower: ArrayLike,
    upper: ArrayLike,
    y: int,
    classes: Sequence[str] | None = None,
    *,
    span: tuple[float, float] | None = None,
) -> go.Figure:
    """Eq. (3) at a glance: the interval of every logit; one that reaches the true class's breaks the certificate.

    lower and upper (C,) bound the logits, ``y`` is the true class; ``span`` ends the axis of logits, the same for
    several eps; None: around the intervals. The traces are always the true class, the classes below its lower end,
    those that reach it, and a line at that end. An interval of one point is a stroke.
    """
    lower, upper = np.asarray(lower, dtype=float), np.asarray(upper, dtype=float)
    names = [str(name) for name in (classes if classes is not None else range(len(lower)))]
    true = np.arange(len(lower)) == y
    breaks = ~true & (upper >= lower[y])
    margin = np.max(upper[~true]) - lower[y]
    verdict = "certified" if margin < 0 else "certificate broken"
    title = f"Intervals of the logits: R_cert by Eq. (3) = {margin:.3g}, {verdict}"
    figure = empty_figure(title, "logit", "class", 420)
    groups = (("true class", true, BLUE, ""), ("stays below it", ~true & ~breaks, GREY, ""))
    for name, rows, colour, pattern in (*groups, ("can reach it", breaks, VERMILLION, "/")):
        figure.add_bar(
            y=[names[i] for i in np.flatnonzero(rows)],
            x=(upper - lower)[rows],
            base=lower[rows],
            orientation="h",
            name=name,
            marker={"color": colour, "pattern": {"shape": pattern}, "line": {"color": colour, "width": 3}},
            width=0.6,
            showlegend=True,
            customdata=np.column_stack([lower, upper])[rows],
            hovertemplate="%{y}: [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>",
        )
    line = {"line": {"color": BLUE, "dash": "dash"}, "name": "its lower end", "hoverinfo": "skip"}
    figure.add_scatter(x=[lower[y]] * 2, y=[names[0], names[-1]], mode="lines", **line)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names[::-1], showgrid=False)
    figure.update_layout(barmode="overlay", xaxis_range=span)
    return figure


def radius_ranges(
    certified: Mapping[str, ArrayLike], attacked: ArrayLike, eps_max: float, samples: Sequence[str] | None = None
) -> go.Figure:
    """What is known of each sample's true robust radius: proved up to here, broken from there, unknown between.

    ``certified`` has (n,) radii by a bound's name, one or more; ``attacked`` (n,) the smallest distance at which an
    attack succeeded; inf where none did up to eps_max, where the search ended. All in pixel units.
    """
    if not certified:
        raise ValueError("certified: no bound is given; give at least one, such as {'ibp': radii}")
    radii = {name: np.asarray(values, dtype=float) for name, values in certified.items()}
    best, attacked = np.max(list(radii.values()), axis=0), np.asarray(attacked, dtype=float)
    if len(attacked) != len(best):
        raise ValueError(f"attacked: {len(attacked)} values for {len(best)} samples")
    rows = np.arange(len(best))
    rows_of_legend = (4 + len(radii)) // 2  # in a narrow window
    height = 160 + 19 * rows_of_legend + 34 * len(best)
    figure = empty_figure("Proved, unknown, broken", height=height, legend_rows=rows_of_legend)
    end = np.minimum(attacked, eps_max)
    proved = ("proved by some bound", 0 * best, best, faded(GREEN, 0.3), "")
    unknown = ("unknown", best, np.maximum(end - best, 0.0), faded(GREY, 0.3), "/")
    for name, base, length, colour, pattern in (proved, unknown):
        look = {"marker": {"color": colour, "pattern": {"shape": pattern}}, "hoverinfo": "skip"}
        figure.add_bar(y=rows, x=length, base=base, orientation="h", name=name, **look)
    looks = ((BLUE, "line-ns-open"), (SKY, "diamond-open"), (PURPLE, "triangle-up-open"), (GREEN, "star"))
    for i, (name, values) in enumerate(radii.items()):
        colour, symbol = looks[i % len(looks)]
        marker, hover = {"color": colour, "symbol": symbol, "size": 13, "line_width": 2}, "%{x:.4g}<extra></extra>"
        figure.add_scatter(y=rows, x=values, mode="markers", name=name, marker=marker, hovertemplate=f"{name}: {hover}")
    marker, hover = {"color": VERMILLION, "symbol": "x", "size": 11}, "attacked: %{x:.4g}<extra></extra>"
    reached = np.where(np.isfinite(attacked), attacked, np.nan)
    figure.add_scatter(y=rows, x=reached, mode="markers", marker=marker, name="attacked", hovertemplate=hover)
    figure.update_yaxes(tickvals=rows, ticktext=list(samples or map(str, rows)), autorange="reversed")
    figure.update_layout(barmode="overlay", xaxis=eps_axis(eps_max) | {"range": [-0.015 * eps_max, 1.03 * eps_max]})
    return figure


def image_grid(
    images: ArrayLike,
    titles: Sequence[str] | None = None,
    *,
    radii: ArrayLike | None = None,
    columns: int = 8,
    title: str = "",
) -> go.Figure:
    """Images (N, C, H, W), C of 1 or 3, pixels in [0, 1], side by side, each under its title and its certified radius.

    ``titles`` are N texts, ``radii`` (N,) in pixel units; ``title`` is the whole figure's: one small picture for all
    images, and a text an image.
    """
    images = np.asarray(images, dtype=float)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images: shape {images.shape}; accepted is (N, 1, H, W) or (N, 3, H, W) with N > 0")
    below = None if radii is None else np.asarray(radii, dtype=float)
    count, _, height, width = images.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    lines = (titles is not None) + (radii is not None)
    side, gap = math.ceil(0.12 * width), math.ceil((0.1 + 0.2 * lines) * height)  # in pixels of the images
    mosaic = np.zeros((rows * (height + gap), columns * (width + side), 4), dtype=np.uint8)  # nothing between them
    figure = empty_figure(title, height=60 + 115 * rows * (height + gap) // height)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap) + gap, (i % columns) * (width + side)
        pixels = mosaic[top : top + height, left : left + width]
        pixels[..., :3], pixels[..., 3] = np.rint(255 * image.transpose(1, 2, 0).clip(0, 1)), 255
        text = [str(titles[i])] if titles is not None else []
        text += [f"radius {below[i]:.3g}"] if below is not None else []
        note = {"text": "<br>".join(text), "showarrow": False, "yanchor": "bottom", "font": {"size": 11}}
        figure.add_annotation(x=left + width / 2 - 0.5, y=top - 0.5, **note)
    figure.add_trace(px.imshow(mosaic, binary_string=True).data[0].update(hoverinfo="skip", hovertemplate=None))
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed", scaleanchor="x")
    figure.update_layout(margin={"l": 10, "r": 10, "t": 50 if title else 10, "b": 10})
    return figure
