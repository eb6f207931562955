"""`pareto_explorer`: controls around the figures and texts of `pareto`, and the images of `gallery`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup, escape

from acertlab.analysis.tradeoff import Tradeoff, pool_seeds
from acertlab.data.run_table import load_radii, load_runs
from acertlab.visualization.style import method_style
from acertlab.visualization.widgets.components import WIDE, Content, Explorer, Part, follow, show, side_by_side, slider
from acertlab.visualization.widgets.gallery import Gallery, gallery_figure, gallery_of, gallery_text
from acertlab.visualization.widgets.pareto import FIGURES, TEXTS, View, first_view


def pareto_explorer(
    runs: pd.DataFrame | str | Path,
    eps_max: float | None = None,
    kappa: float | None = None,
    *,
    data_root: str | None = None,
) -> Explorer:
    """Tradeoff of many runs under sliders; ACR, ART and all shares are recomputed from the stored radii.

    A click on a point, or the list below the first figures, picks a network: its certified accuracies, its radii, the
    command that trains it again, and, once asked for, its best and worst images with their [certified, attacked] ranges
    (for which the weights and the dataset must be at hand). At the end two methods are compared at equal accuracy.

    Args:
        runs: A row a run, of one dataset and trained for one eps_max; or the folder that holds the runs.
        eps_max: Where its slider starts; None: what the runs were trained for.
        kappa: Where its slider starts, or near it; None: the smallest.
        data_root: Where the dataset is looked for, as in `load_dataset`; nothing is downloaded.

    Raises:
        ValueError: No finished run, or runs of several datasets or trained eps_max.
    """
    runs = runs if isinstance(runs, pd.DataFrame) else load_runs(runs)
    points = pool_seeds(runs, load_radii(runs) if len(runs) else {})
    start = first_view(points, eps_max=eps_max, kappa=kappa)
    controls = _controls(points, start)

    def part(draw: Callable[[Tradeoff, View], Content], reads: tuple[str, ...]) -> Part:
        return Part(lambda **moved: draw(points, replace(start, **moved)), reads)

    parts = follow(controls, {name: part(*one) for name, one in (FIGURES | TEXTS).items()})
    for first, trace in zip(_firsts(points), parts["tradeoff"].data[1:], strict=False):
        trace.on_click(partial(_pick, controls["picked"], first))
    controls["images"], images = _images(points, controls["picked"], data_root)
    figures = side_by_side(parts["tradeoff"], parts["curves"])
    network = _heading("One network: click on its point, or choose it here")
    pair = _heading("Two methods at equal accuracy, each along its own front")
    rows = [ipw.VBox([controls[name] for name in ("kappa", "eps_max", "eps")]), figures, parts["kappa_text"]]
    rows += [network, controls["picked"], parts["picked_text"]]
    rows += [side_by_side(parts["picked_curve"], parts["picked_radii"]), images, parts["command"]]
    rows += [pair, ipw.VBox([controls[name] for name in ("first", "second", "accuracy")]), parts["pair_text"]]
    return Explorer(controls, parts, [*rows, side_by_side(parts["pair"])])


def _controls(points: Tradeoff, start: View) -> dict[str, Any]:
    trained = sorted({point.kappa for point in points.points})
    steps = sorted({*trained, *(round(0.01 * i, 2) for i in range(101) if trained[0] <= 0.01 * i <= trained[-1])})
    labels = [(f"{kappa:g} (trained)" if kappa in trained else f"{kappa:g}", kappa) for kappa in steps]
    nearest = min(steps, key=lambda kappa: abs(kappa - start.kappa))
    methods = [(method_style(method)[0], method) for method in points.methods]
    networks = [(point.label, i) for i, point in enumerate(points.points)]
    acc = [point.acc.mean() for point in points.points]
    ends = max(np.floor(100 * min(acc) - 1) / 100, 0.0), min(np.ceil(100 * max(acc) + 1) / 100, 1.0)  # whole percents
    shares = {"options": labels, "value": nearest, "continuous_update": False}
    return {
        "kappa": ipw.SelectionSlider(description="share of the clean loss, kappa", **shares, **WIDE),
        "eps_max": slider("largest radius that counts, eps_max", start.eps_max, points.cap / 200, points.cap),
        "eps": slider("certified at radius eps", start.eps, 0.0, points.cap),
        "picked": ipw.Dropdown(description="network", options=networks, value=start.picked, **WIDE),
        "first": ipw.Dropdown(description="first method", options=methods, value=start.first, **WIDE),
        "second": ipw.Dropdown(description="second method", options=methods, value=start.second, **WIDE),
        "accuracy": slider("at the standard accuracy", start.accuracy, *ends, ".2%"),
    }


def _heading(text: str) -> ipw.HTML:
    return ipw.HTML(Markup("<h4 style='margin: 8px 0 0'>{}</h4>").format(text))


def _firsts(points: Tradeoff) -> list[int]:
    """Where in `points.points` each method begins; the traces of the figure are in the same order."""
    return [next(i for i, p in enumerate(points.points) if p.method == method) for method in points.methods]


def _pick(control: ipw.Dropdown, first: int, _trace: go.Scatter, clicked: Any, _state: object) -> None:
    if clicked.point_inds:
        control.value = first + clicked.point_inds[0]


def _images(points: Tradeoff, picked: ipw.Dropdown, data_root: str | None) -> tuple[ipw.ToggleButton, ipw.VBox]:
    """A button and, while it is pressed, the images of the picked network; attacks take longer than a slider may."""
    description = "show its best and worst images, and attack them (seconds)"
    button = ipw.ToggleButton(value=False, description=description, layout=ipw.Layout(width="420px"))
    figures = [gallery_figure(Gallery(0, None, (), np.empty(0), None, 0.0, ""))]
    live, text, box = go.FigureWidget(figures[0]), ipw.HTML(), ipw.VBox([button])
    fitted = side_by_side(live)

    def redraw(_change: dict) -> None:
        children = (button,)
        if button.value:
            network = points.points[picked.value]  # pyright: ignore[reportCallIssue, reportArgumentType]: not None
            gallery = gallery_of(network.paths, data_root)
            text.value = escape(gallery_text(gallery))
            figures.append(gallery_figure(gallery))
            show(live, figures.pop(0), figures[0])
            children += (text,) if gallery.images is None else (fitted, text)
        if box.children != children:
            box.children = children

    for control in (button, picked):
        control.observe(redraw, names="value")
    return button, box
