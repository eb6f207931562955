"""`pareto_explorer`: pickers of the runs, and controls around the figures and texts of `pareto` and `gallery`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as ipw
import numpy as np
import pandas as pd
from markupsafe import escape

from acertlab.analysis.tradeoff import Tradeoff, pool_seeds
from acertlab.data.datasets import DATASETS
from acertlab.data.run_table import load_radii, load_runs
from acertlab.visualization.style import eps_words, method_style
from acertlab.visualization.widgets.choice import ORIGINS, Choice, first_choice, options
from acertlab.visualization.widgets.components import (
    Content,
    Explorer,
    Part,
    Plot,
    follow,
    labelled,
    side_by_side,
    slider,
)
from acertlab.visualization.widgets.gallery import gallery_figure, gallery_of, gallery_text
from acertlab.visualization.widgets.pareto import FIGURES, TEXTS, View, comparable, first_view, shown


def pareto_explorer(
    runs: pd.DataFrame | str | Path,
    eps_max: float | None = None,
    kappa: float | None = None,
    *,
    choice: Choice | None = None,
    data_root: str | None = None,
) -> Explorer:
    """Tradeoff of many runs under sliders; ACR, ART and all shares are recomputed from the stored radii.

    A click on a point picks a network: its certified accuracies, its radii, the command that trains it again, its best
    and worst images with their [certified, attacked] ranges (as far as images and weights are at hand). Two methods are
    compared at equal accuracy.

    ``runs`` has a row a run, of any datasets and trained eps_max; with a column `origin`
    (`widgets.load_beside_shipped`) yours and those that come with acertlab are told apart. Or it is the folder that
    holds them. The pickers start at ``choice`` (None: `widgets.first_choice(runs)`), the sliders at eps_max, at most
    the radii's cap (None: what the runs were trained for), and near ``kappa`` (None: the smallest). The dataset is
    looked for in ``data_root``, as by `load_dataset`; nothing is downloaded. ValueError without a finished run, or
    where those at the start are not seeds.
    """
    runs = runs if isinstance(runs, pd.DataFrame) else load_runs(runs)
    choice = first_choice(runs) if choice is None else choice
    pickers = _pickers(runs, choice)
    shown: dict[Choice, Explorer] = {choice: _explorer(choice.of(runs), eps_max, kappa, data_root)}
    rows = side_by_side(*(labelled(text, pickers[name]) for name, text in PICKERS.items()), least=200)
    whole = Explorer(shown[choice].controls, shown[choice].parts, [rows, shown[choice]])
    whole.pickers = pickers

    def look(_change: object) -> None:
        at = Choice(*(pickers[name].value for name in PICKERS))  # pyright: ignore[reportArgumentType]
        if at.origin not in options(runs, at.dataset, at.eps_max):  # in the middle of a change
            return
        try:
            if at not in shown:
                shown[at] = _explorer(at.of(runs), None, None, data_root)
        except ValueError as error:  # these runs cannot be pooled; others may
            whole.children = (rows, ipw.HTML(str(escape(error))))
            return
        whole.controls, whole.parts, whole.children = shown[at].controls, shown[at].parts, (rows, shown[at])

    for picker in pickers.values():
        picker.observe(look, names="value")
    return whole


PICKERS = {"dataset": "dataset", "eps_max": "trained for", "origin": "runs"}


def _pickers(runs: pd.DataFrame, choice: Choice) -> dict[str, ipw.Dropdown]:
    """Of the dataset, of the trained eps_max, and of whose runs; each offers what there is for those before it."""
    titles = [(DATASETS[name].title if name in DATASETS else name, name) for name in sorted(set(runs.dataset))]
    dataset = ipw.Dropdown(options=titles, value=choice.dataset)
    eps_max, origin = ipw.Dropdown(), ipw.Dropdown()

    def offer_eps(_change: object) -> None:
        there = sorted(set(runs.eps_max[runs.dataset == dataset.value]))
        eps_max.options = [(eps_words(eps)(eps), eps) for eps in there]

    def offer_origins(_change: object) -> None:
        origin.options = [(ORIGINS[name], name) for name in options(runs, str(dataset.value), eps_max.value)]

    offer_eps(None)
    eps_max.value = choice.eps_max
    offer_origins(None)
    origin.value = choice.origin
    dataset.observe(offer_eps, names="value")
    for picker in (dataset, eps_max):
        picker.observe(offer_origins, names="value")
    return {"dataset": dataset, "eps_max": eps_max, "origin": origin}


def _explorer(runs: pd.DataFrame, eps_max: float | None, kappa: float | None, data_root: str | None) -> Explorer:
    """The controls, figures and texts of runs of one dataset and eps_max."""
    points = pool_seeds(runs, load_radii(runs) if len(runs) else {})
    start = first_view(points, eps_max=eps_max, kappa=kappa)
    controls = _controls(points, start)

    def part(draw: Callable[[Tradeoff, View], Content], reads: tuple[str, ...]) -> Part:
        return Part(lambda **moved: draw(points, replace(start, **moved)), reads)

    parts = follow(controls, {name: part(*one) for name, one in shown(FIGURES | TEXTS, points).items()})
    parts["tradeoff"].observe(lambda change: _pick(points, controls["picked"], *change["new"]), names="clicked")
    words = eps_words(points.cap)
    kappa_words = {value: text for text, value in controls["kappa"].options}
    sliders = side_by_side(
        labelled("radii count up to eps_max", controls["eps_max"], words),
        labelled("certified at radius eps", controls["eps"], words),
    )
    left = [labelled("share of the clean loss, kappa", controls["kappa"], kappa_words.__getitem__), parts["tradeoff"]]
    images = ipw.VBox()
    network = labelled("click on its point, or choose", controls["picked"])
    tabs = {
        "Every radius": [parts["curves"], parts["kappa_text"]],
        "One network": [network, parts["picked_text"], parts["picked_curve"], parts["command"]],
        "Its images": [parts["picked_radii"], images],
    }
    if comparable(points):
        pair = side_by_side(*(labelled(name, controls[name]) for name in ("first", "second")), least=200)
        at = labelled("at the standard accuracy", controls["accuracy"], lambda share: f"{100 * share:.4g} %")
        tabs["Equal accuracy"] = [pair, at, parts["pair"], parts["pair_text"]]
    controls["tab"] = ipw.Tab([ipw.VBox(children) for children in tabs.values()], titles=tuple(tabs))
    _show_images(points, controls, images, data_root)
    return Explorer(controls, parts, [sliders, side_by_side(ipw.VBox(left), controls["tab"])])


def _controls(points: Tradeoff, start: View) -> dict[str, Any]:
    trained = sorted({point.kappa for point in points.points})
    steps = sorted({*trained, *(round(0.01 * i, 2) for i in range(101) if trained[0] <= 0.01 * i <= trained[-1])})
    labels = [(f"{kappa:g} (trained)" if kappa in trained else f"{kappa:g}", kappa) for kappa in steps]
    nearest = min(steps, key=lambda kappa: abs(kappa - start.kappa))
    methods = [(method_style(method)[0], method) for method in points.methods]
    networks = [(point.label, i) for i, point in enumerate(points.points)]
    acc = [point.acc.mean() for point in points.points]
    ends = max(np.floor(100 * min(acc) - 1) / 100, 0.0), min(np.ceil(100 * max(acc) + 1) / 100, 1.0)  # whole percents
    return {
        "kappa": ipw.SelectionSlider(options=labels, value=nearest, continuous_update=False, readout=False),
        "eps_max": slider(start.eps_max, points.cap / 200, points.cap),
        "eps": slider(start.eps, 0.0, points.cap),
        "picked": ipw.Dropdown(options=networks, value=start.picked),
        "first": ipw.Dropdown(options=methods, value=start.first),
        "second": ipw.Dropdown(options=methods, value=start.second),
        "accuracy": slider(start.accuracy, *ends),
    }


def _pick(points: Tradeoff, control: ipw.Dropdown, trace: int, point: int) -> None:
    """Pick the network that was clicked; trace 0 is the map, and behind the methods' traces are marks."""
    if 0 < trace <= len(points.methods):
        method = points.methods[trace - 1]
        first = next(i for i, one in enumerate(points.points) if one.method == method)
        control.value = first + point


def _show_images(points: Tradeoff, controls: dict[str, Any], box: ipw.VBox, data_root: str | None) -> None:
    """The images of the picked network, while their tab is looked at: attacks take longer than a slider may."""
    tab = controls["tab"]

    def redraw(_change: object) -> None:
        if tab.titles[tab.selected_index] != "Its images":
            return
        gallery = gallery_of(points.points[controls["picked"].value].paths, data_root)
        text = ipw.HTML(str(escape(gallery_text(gallery))))
        old, box.children = box.children, (text,) if gallery.images is None else (Plot(gallery_figure(gallery)), text)
        for widget in old:
            widget.close()

    tab.observe(redraw, names="selected_index")
    controls["picked"].observe(redraw, names="value")
