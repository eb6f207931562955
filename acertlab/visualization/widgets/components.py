"""Parts of both explorers: controls, figures and texts that follow them, and a box that shows figures side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import anywidget
import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
import traitlets

WIDE = {"layout": ipw.Layout(width="620px", max_width="98%"), "style": {"description_width": "250px"}}
Content = dict | go.Figure | str  # a figure, by its traces ("data") and "layout", or HTML


@dataclass(frozen=True)
class Part:
    """A figure or a text of an explorer.

    Attributes:
        draw: Called with the controls in `reads`, by name; returns a figure, always with as many traces, or HTML.
        reads: The controls that it depends on: a movement of another one leaves it as it is.
    """

    draw: Callable[..., Content]
    reads: tuple[str, ...]


class Fit(anywidget.AnyWidget):
    """Nothing to see: it tells how wide the room is in which it stands, in pixels.

    A FigureWidget is drawn before it is in the page, 700 pixels wide, and does not look at its room by itself.
    """

    width = traitlets.Int(0).tag(sync=True)
    _esm = """
    export default { render({ model, el }) {
        const room = new ResizeObserver(() => {
            if (el.clientWidth === 0 || el.clientWidth === model.get('width')) return;
            model.set('width', el.clientWidth);
            model.save_changes();
        });
        room.observe(el);
        return () => room.disconnect();
    } };
    """


class Explorer(ipw.VBox):
    """A box of controls and of what follows them, each by its name in `controls` and `parts`."""

    def __init__(self, controls: dict[str, Any], parts: dict[str, Any], rows: Sequence[ipw.Widget]) -> None:
        super().__init__(list(rows))
        self.controls, self.parts = controls, parts


def follow(controls: Mapping[str, Any], parts: Mapping[str, Part]) -> dict[str, Any]:
    """For each part a widget, FigureWidget or HTML, that is drawn anew whenever a control that it reads changes."""

    def drawn(name: str) -> Content:
        return parts[name].draw(**{control: controls[control].value for control in parts[name].reads})

    contents = {name: drawn(name) for name in parts}
    shown = {name: ipw.HTML(of) if isinstance(of, str) else go.FigureWidget(of) for name, of in contents.items()}
    for control_name, control in controls.items():
        followers = [name for name, part in parts.items() if control_name in part.reads]

        def redraw(_change: dict, followers: Sequence[str] = followers) -> None:
            for name in followers:
                before, contents[name] = contents[name], drawn(name)
                show(shown[name], before, contents[name])

        control.observe(redraw, names="value")
    return shown


def show(widget: Any, before: Content, after: Content) -> None:
    """Change what a widget shows where a figure or text differs from the one that it showed before."""
    if isinstance(after, str):
        widget.value = after
        return
    old, new = _plain(before), _plain(after)
    with widget.batch_update():  # one message for all of it
        for trace, earlier, later in zip(widget.data, old["data"], new["data"], strict=True):
            for path, value in _differences(earlier, later):
                trace[path] = value
        for path, value in _differences(old["layout"], new["layout"]):
            widget.layout[path] = value


def _plain(content: Any) -> dict:
    if isinstance(content, dict):
        return content
    return {"data": [t.to_plotly_json() for t in content.data], "layout": content.layout.to_plotly_json()}


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Places, such as "xaxis.range", where a second table differs from a first, with its values (None: nothing)."""
    for name in dict.fromkeys((*new, *old)):
        a, b, place = old.get(name), new.get(name), f"{path}{name}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{place}.")
        elif not _same(a, b):
            yield place, b


def _same(a: Any, b: Any) -> bool:
    """Equal; in arrays of floats nan equals nan."""
    floats = all(isinstance(value, np.ndarray) and value.dtype.kind == "f" for value in (a, b))
    return a is b or np.array_equal(a, b, equal_nan=floats)


def slider(description: str, value: float, low: float, high: float, readout: str = ".4f") -> ipw.FloatSlider:
    """A slider of 200 steps, or a few less, that reports where it was let go.

    From 0 or from one step on, so that its places are round parts of `high`; the start may lie between two.
    """
    step = (high if low <= high / 200 else high - low) / 200
    room = {"min": low, "max": high, "step": step, "continuous_update": False}
    return ipw.FloatSlider(description=description, value=value, readout_format=readout, **room, **WIDE)


def side_by_side(*figures: go.FigureWidget, least: int = 400) -> ipw.Box:
    """In a row where there is room, else below each other; each as wide as its share of the room, once it is known."""
    columns = []
    for figure in figures:
        figure.layout.width = 868 // len(figures)  # JupyterLab's room in a window of 1300 pixels
        fit = Fit(layout=ipw.Layout(width="100%", height="0px", margin="0px"))
        fit.observe(partial(_widen, figure), names="width")
        flex = {"flex": f"1 1 {least}px", "min_width": "300px", "overflow": "hidden"}
        columns.append(ipw.Box([figure, fit], layout=ipw.Layout(display="block", **flex)))
    return ipw.Box(columns, layout=ipw.Layout(display="flex", flex_flow="row wrap", width="100%"))


def _widen(figure: go.FigureWidget, change: dict) -> None:
    figure.layout.width = max(change["new"], 300)
