"""Parts of both explorers: plots, controls under their labels, and what follows a control that is moved."""

import gzip
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as ipw
import numpy as np
import plotly.graph_objects as go
import traitlets
from markupsafe import escape
from plotly.offline import get_plotlyjs

from acertlab.visualization.style import CONFIG, DARK

STYLE = """
.acertlab-explorer .widget-html-content { line-height: 1.35 }
.acertlab-explorer .acertlab-told { white-space: nowrap }
.acertlab-explorer .widget-tab > .lm-TabBar .lm-TabBar-tab { flex: 1 1 auto; min-width: 0; padding: 0 8px }
"""
Content = dict | go.Figure | str  # a figure, by its traces ("data") and "layout", or HTML


@dataclass(frozen=True)
class Part:
    """A figure or a text of an explorer."""

    draw: Callable[..., Content]  # called with the controls in `reads`, by name
    reads: tuple[str, ...]  # the controls that it depends on: a movement of another one leaves it as it is


def _as_json(value: Any) -> Any:
    """Arrays as lists, for a browser; JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _as_json(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_as_json(one) for one in value]
    if isinstance(value, go.layout.Template):
        return value.to_plotly_json()
    return None if isinstance(value, float) and np.isnan(value) else value


class Plot(anywidget.AnyWidget):
    """A figure as wide as its room; a new `spec` takes the old one's place, and plotly redraws what differs.

    A FigureWidget brings 5 MB of plotly.js each, and anywidget gives each model two seconds to load: on a busy machine
    several of them fail. Here one plotly.js serves the page, and comes when the models have loaded.
    """

    _esm = Path(__file__).with_name("plot.js")
    _css = DARK + STYLE
    spec = traitlets.Dict().tag(sync=True, to_json=lambda value, _widget: _as_json(value))  # data, layout
    config = traitlets.Dict(CONFIG).tag(sync=True)
    clicked = traitlets.List().tag(sync=True)  # the trace and the point that was clicked last

    def __init__(self, content: dict | go.Figure) -> None:
        super().__init__(layout=ipw.Layout(width="100%", margin="0"))
        self.show(content)
        self.on_msg(self._answer)

    def show(self, content: dict | go.Figure) -> None:
        """Draw another figure."""
        if not isinstance(content, dict):
            data: Any = content.data
            content = {"data": [trace.to_plotly_json() for trace in data], "layout": content.layout.to_plotly_json()}
        self.spec = content

    @property
    def figure(self) -> go.Figure:
        """What is shown."""
        return go.Figure(self.spec)

    def _answer(self, _widget: object, _content: object, _buffers: object) -> None:
        """A page without plotly.js asks for it."""
        self.send("plotly", [gzip.compress(get_plotlyjs().encode(), 1)])


class Explorer(ipw.VBox):
    """A box of controls and of what follows them, each by its name in `controls` and `parts`; `pickers` change both."""

    def __init__(self, controls: dict[str, Any], parts: dict[str, Any], rows: Sequence[ipw.Widget]) -> None:
        super().__init__(list(rows))
        self.add_class("acertlab-explorer")
        self.controls, self.parts, self.pickers = controls, parts, {}


def follow(controls: Mapping[str, Any], parts: Mapping[str, Part]) -> dict[str, Any]:
    """For each part a widget, `Plot` or HTML, that is drawn anew whenever a control that it reads changes."""

    def drawn(name: str) -> Content:
        return parts[name].draw(**{control: controls[control].value for control in parts[name].reads})

    shown: dict[str, Any] = {}
    for name in parts:
        content = drawn(name)
        shown[name] = ipw.HTML(content) if isinstance(content, str) else Plot(content)
    for control_name, control in controls.items():
        followers = [name for name, part in parts.items() if control_name in part.reads]

        def redraw(_change: dict, followers: Sequence[str] = followers) -> None:
            for name in followers:
                content = drawn(name)
                if isinstance(content, str):
                    shown[name].value = content
                else:
                    shown[name].show(content)

        control.observe(redraw, names="value")
    return shown


def slider(value: float, low: float, high: float) -> ipw.FloatSlider:
    """A slider of 200 steps, or a few less, that reports where it was let go.

    From 0 or from one step on, so that its places are round parts of `high`; the start may lie between two.
    """
    step = (high if low <= high / 200 else high - low) / 200
    room = {"min": low, "max": high, "step": step, "continuous_update": False}
    return ipw.FloatSlider(value=value, readout=False, **room)


def labelled(text: str, control: Any, told: Callable[[Any], str] | None = None) -> ipw.Box:
    """A control beside its label, or below it where there is no room; of a slider, what it stands at in words."""
    control.layout = ipw.Layout(flex="1 1 auto", width="auto", min_width="120px", margin="2px 8px")
    label = ipw.HTML(str(escape(text)), layout=ipw.Layout(margin="2px"))
    least = 150 if told is None else 250
    held = ipw.HBox([control], layout=ipw.Layout(flex=f"1 1 {least}px", align_items="center"))
    if told is not None:
        words = ipw.HTML(told(control.value), layout=ipw.Layout(flex="0 0 72px", margin="2px"))
        words.add_class("acertlab-told")
        control.observe(lambda change: setattr(words, "value", told(change["new"])), names="value")
        held.children = (control, words)
    return ipw.Box([label, held], layout=ipw.Layout(display="flex", flex_flow="row wrap", align_items="center"))


def side_by_side(*widgets: ipw.Widget, least: int = 400) -> ipw.Box:
    """In a row where there is room for so many pixels each, else below each other."""
    flex = {"flex": f"1 1 {least}px", "min_width": f"min({least}px, 100%)", "overflow": "hidden"}
    columns = [ipw.VBox([widget], layout=ipw.Layout(**flex)) for widget in widgets]
    return ipw.Box(columns, layout=ipw.Layout(display="flex", flex_flow="row wrap", width="100%"))
