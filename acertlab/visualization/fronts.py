"""Figures of accuracy against robustness."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import ArrayLike

from acertlab.analysis.seeds import check_comparable, mean_over_seeds
from acertlab.data.datasets import DATASETS
from acertlab.radius import metrics
from acertlab.visualization.style import BLACK, GREY, PURPLE, base_layout, eps_words, method_style

PLACES = {  # of a label at its point: to which side, 1: right or up
    **{"top right": (1, 1), "bottom left": (-1, -1), "bottom right": (1, -1), "top left": (-1, 1)},
    **{"middle right": (1, 0), "middle left": (-1, 0), "top center": (0, 1), "bottom center": (0, -1)},
}
Span = tuple[tuple[float, float], tuple[float, float]]  # ends of the axes of accuracy and of ACR, fractions


def tradeoff(runs: pd.DataFrame, *, kappa: float | None = None, span: Span | None = None) -> go.Figure:
    """Fig. 1: standard accuracy against the average certified radius, a line a method over kappa, over a map of ART.

    ``runs`` has a row a run, of one dataset and one eps_max: method, kappa, seed, acc, acr, art (fractions). Points
    with this ``kappa`` are circled; ``span`` has the ends of both axes (fractions; None: around the points). ValueError
    for no runs, or runs of several datasets or eps_max: ACR (Eq. 12) is relative to eps_max.
    """
    check_comparable(runs, ["dataset", "eps_max"])
    table = mean_over_seeds(runs)
    chosen = table[np.isclose(table.kappa, kappa)] if kappa is not None else table[:0]
    return tradeoff_of_means(table, kappa=kappa, circled=np.asarray(chosen[["acc", "acr"]]), span=span)


def tradeoff_of_means(
    table: pd.DataFrame,
    *,
    kappa: float | None = None,
    circled: ArrayLike = (),
    picked: tuple[float, float] | None = None,
    level: float | None = None,
    crossed: ArrayLike = (),
    span: Span | None = None,
    height: int = 520,
) -> go.Figure:
    """`tradeoff`, from means over seeds, with places that the explorer points out; as `tradeoff_spec`."""
    places = {"kappa": kappa, "circled": circled, "picked": picked, "level": level, "crossed": crossed}
    return go.Figure(tradeoff_spec(table, **places, span=span, height=height))


def tradeoff_spec(
    table: pd.DataFrame,
    *,
    kappa: float | None = None,
    circled: ArrayLike = (),
    picked: tuple[float, float] | None = None,
    level: float | None = None,
    crossed: ArrayLike = (),
    span: Span | None = None,
    height: int = 520,
) -> dict:
    """What `tradeoff_of_means` draws: traces ("data") and "layout".

    ``table`` has a row a (method, kappa) of one dataset and eps_max, as `mean_over_seeds` returns it. Places are pairs
    of acc and acr (fractions): those ``circled`` (K, 2), which stand for ``kappa`` in the legend (None: there are
    none); one ``picked``, in a frame; ``crossed`` (M, 2), on the vertical line at the accuracy ``level``. The traces
    are the map of ART, one a method in the table's order, and always, last, circles, frame and line with its crosses.
    """
    (x_low, x_high), (y_low, y_high) = span or (_span(table.acc), _span(table.acr))
    name = DATASETS[table.dataset[0]].title if table.dataset[0] in DATASETS else table.dataset[0]
    title = f"Accuracy against robustness: {name}, eps_max = {eps_words(table.eps_max[0])(table.eps_max[0])}"
    layout = base_layout(title, "standard accuracy Acc (%)", "average certified radius ACR (% of eps_max)", height)
    below = 0.02 * (y_high - y_low) if y_low == 0 else 0.0  # markers at 0 are whole
    layout["xaxis"]["range"] = [100 * x_low, 100 * x_high]
    layout["yaxis"]["range"] = [100 * (y_low - below), 100 * y_high]
    columns = {name: table[name].to_numpy() for name in table}
    shares = (columns["acc"] - x_low) / (x_high - x_low), (columns["acr"] - y_low) / (y_high - y_low)
    texts = [f"{kappa:g}" for kappa in columns["kappa"]]
    columns["label"], columns["place"] = _labels(*shares, texts, 330, height - 150)
    methods = {
        method: {name: values[columns["method"] == method] for name, values in columns.items()}
        for method in dict.fromkeys(columns["method"])
    }
    ring = {"symbol": "circle-open", "size": 22, "color": BLACK, "line": {"width": 2}}
    frame = {"symbol": "square-open", "size": 26, "color": PURPLE, "line": {"width": 3}}
    ends = [] if level is None else [(level, y_low), *np.reshape(crossed, (-1, 2)).tolist(), (level, y_high)]
    sizes = [0, *[12] * (len(ends) - 2), 0] if ends else []
    cross = {"symbol": "x-thin-open", "size": sizes, "color": BLACK, "line": {"width": 2}}
    data = [
        _art_map(x_low, x_high, y_low, y_high),
        *(_method_line(method, rows) for method, rows in methods.items()),
        _places(circled, "kappa" if kappa is None else f"kappa = {kappa:g}", ring) | {"showlegend": kappa is not None},
        _places([] if picked is None else [picked], "picked", frame),
        _places(ends, "equal accuracy", cross) | {"mode": "lines+markers", "line": {"color": GREY, "dash": "dot"}},
    ]
    return {"data": data, "layout": layout}


def _places(pairs: ArrayLike, name: str, marker: dict) -> dict:
    acc, acr = 100 * np.reshape(np.asarray(pairs, dtype=float), (-1, 2)).T
    trace = {"type": "scatter", "mode": "markers", "hoverinfo": "skip"}
    return {**trace, "x": acc, "y": acr, "name": name, "marker": marker, "showlegend": len(acc) > 0}


def _span(values: pd.Series) -> tuple[float, float]:
    pad = 0.12 * max(values.max() - values.min(), 0.05)
    return max(values.min() - pad, 0.0), min(values.max() + pad, 1.0)


def _art_map(x_low: float, x_high: float, y_low: float, y_high: float) -> dict:
    x, y = np.linspace(x_low, x_high, 40), np.linspace(y_low, y_high, 40)
    art = metrics.art(x[None, :], y[:, None])  # (40, 40)
    lines = {"showlabels": True, "labelfont": {"size": 10, "color": "#5E6B85"}}
    return {
        "type": "contour",
        "x": 100 * x,
        "y": 100 * y,
        "z": np.round(100 * art, 2),
        "ncontours": 14,
        "colorscale": [[0, "#C3CBDB"], [1, "#FFFFFF"]],
        "line": {"color": "#9AA5BA", "width": 0.7},
        "contours": lines,
        "colorbar": {"title": {"text": "ART (%)"}, "thickness": 12, "outlinewidth": 0},
        "hoverinfo": "skip",
        "name": "ART",
    }


def _labels(
    x: np.ndarray, y: np.ndarray, texts: Sequence[str], width: float, height: float, widest: float = 1600
) -> tuple[np.ndarray, ...]:
    """Each point's label and its place: the first of `PLACES` that is free; "" where none is, for the mouse to tell.

    x and y (P,) are shares of the plot, which is ``width`` x ``height`` pixels at least, and at most ``widest`` wide.
    """
    columns, rows, half = np.outer((width, widest), x), height * y, np.tile([7.0, 7.0], (len(x), 1))  # of markers
    labels, places = [""] * len(texts), ["top right"] * len(texts)
    for i, text in enumerate(texts):
        size = np.array([3.2 * len(text), 6.0])
        for place, side in PLACES.items():
            away = side * (8 + size)
            column, row = columns[:, i] + away[0], rows[i] + away[1]
            apart, reach = columns - column[:, None], half + size  # it changes in proportion to the width
            meets = (np.abs(apart).min(0) < reach[:, 0]) | (apart[0] * apart[1] < 0)
            if not (meets & (np.abs(rows - row) < reach[:, 1])).any():
                labels[i], places[i] = text, place
                columns, rows = np.column_stack([columns, column]), np.append(rows, row)
                half = np.vstack([half, size])
                break
    return np.array(labels), np.array(places)


def _method_line(method: str, rows: Mapping[str, np.ndarray]) -> dict:
    label, colour, symbol = method_style(method)
    bars = {"visible": bool((rows["seeds"] > 1).any()), "thickness": 1.2, "width": 3}
    scores = "Acc %{x:.2f} %, ACR %{y:.2f} %, ART %{customdata[1]:.2f} %"
    return {
        "type": "scatter",
        "x": 100 * rows["acc"],
        "y": 100 * rows["acr"],
        "error_x": {**bars, "array": 100 * rows["acc_std"]},
        "error_y": {**bars, "array": 100 * rows["acr_std"]},
        "name": label,
        "mode": "lines+markers+text",
        "text": rows["label"].tolist(),
        "textposition": rows["place"].tolist(),
        "textfont": {"size": 10, "color": colour},
        "line": {"color": colour, "width": 2},
        "cliponaxis": False,
        "marker": {"symbol": symbol, "size": 11, "line": {"color": "white", "width": 1}},
        "customdata": np.column_stack([rows["kappa"], 100 * rows["art"], rows["seeds"]]).astype(float),
        "hovertemplate": f"<b>{label}</b>, kappa = %{{customdata[0]}}<br>{scores}<br>"
        "%{customdata[2]} seed(s)<extra></extra>",
    }
