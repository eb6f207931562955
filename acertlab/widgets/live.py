"""What both explorers are made of: controls, parts that follow them, and a way to show both side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go

WIDE = {"layout": ipw.Layout(width="620px", max_width="98%"), "style": {"description_width": "250px"}}


@dataclass(frozen=True)
class Part:
    """A figure or a text of an explorer.

    Attributes:
        draw: Called with the controls in `reads`, by name; returns a figure, always with as many traces, or HTML.
        reads: The controls that it depends on: a movement of another one leaves it as it is.
    """

    draw: Callable[..., go.Figure | str]
    reads: tuple[str, ...]


def follow(controls: Mapping[str, ipw.Widget], parts: Mapping[str, Part]) -> dict[str, ipw.Widget]:
    """A widget for each part, drawn anew whenever a control that it reads changes.

    Args:
        controls: Widgets with a `value`.
        parts: What to show, by name.

    Returns:
        By the parts' names, a FigureWidget for a figure and an HTML for a text.
    """

    def drawn(part: Part) -> go.Figure | str:
        return part.draw(**{name: controls[name].value for name in part.reads})

    shown = {name: _widget(drawn(part)) for name, part in parts.items()}
    for control_name, control in controls.items():
        followers = [name for name, part in parts.items() if control_name in part.reads]

        def redraw(_change: dict, followers: Sequence[str] = followers) -> None:
            for name in followers:
                show(shown[name], drawn(parts[name]))

        control.observe(redraw, names="value")
    return shown


def _widget(content: go.Figure | str) -> ipw.Widget:
    return ipw.HTML(content) if isinstance(content, str) else go.FigureWidget(content)


def show(widget: ipw.Widget, content: go.Figure | str) -> None:
    """What differs of a figure's traces and layout, or the whole text, into the widget that shows it."""
    if isinstance(content, str):
        widget.value = content
        return
    with widget.batch_update():
        for old, new in zip((*widget.data, widget.layout), (*content.data, content.layout), strict=True):
            before, after = old.to_plotly_json(), new.to_plotly_json()
            for name in after.keys() - {"template"}:
                if not _equal(before.get(name), after[name]):
                    old[name] = after[name]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    return np.array_equal(a, b)


def slider(description: str, value: float, low: float, high: float, readout: str = ".4f") -> ipw.FloatSlider:
    """A slider of 200 steps that reports where it was let go."""
    return ipw.FloatSlider(description=description, value=value, min=low, max=high, step=(high - low) / 200,
                           readout_format=readout, continuous_update=False, **WIDE)  # fmt: skip


def side_by_side(*widgets: ipw.Widget, least: int = 440) -> ipw.Box:
    """In a row where there is room, else below each other; each gets an equal share of the width."""
    flex = {"flex": f"1 1 {least}px", "min_width": f"{min(least, 300)}px", "overflow": "hidden"}
    columns = [ipw.Box([widget], layout=ipw.Layout(display="block", **flex)) for widget in widgets]
    return ipw.Box(columns, layout=ipw.Layout(display="flex", flex_flow="row wrap", width="100%"))
