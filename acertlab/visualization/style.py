"""What all figures share: colours, markers, the template, and the line that marks one value."""

from __future__ import annotations

import plotly.graph_objects as go
import plotly.io

from acertlab.training.methods.catalogue import METHODS, name_of

# In a Jupyter kernel plotly's default shows figures in JupyterLab only. With HTML beside it (plotly.js from its CDN)
# they appear in nbviewer and in HTML copies too. PLOTLY_RENDERER=plotly_mimetype+notebook puts plotly.js itself into
# the notebook (5 MB), for copies that are read without a network.
if plotly.io.renderers.default == "plotly_mimetype":
    plotly.io.renderers.default = "plotly_mimetype+notebook_connected"
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILLION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")  # fmt: skip
GREY = "#8C8C8C"
PALETTE = {
    "black": BLACK,
    "orange": ORANGE,
    "sky": SKY,
    "green": GREEN,
    "yellow": YELLOW,
    "blue": BLUE,
    "vermillion": VERMILLION,
    "purple": PURPLE,
}  # Okabe and Ito's
EPS_AXIS = "eps (pixel units, 0 to 1)"
# Plotly's "simple_white", of which figures here use this much. The whole of it takes 13 ms to set, and the explorer
# redraws five figures at every movement of a slider.
_INK, _AXIS = "rgb(36,36,36)", {"showline": True, "ticks": "outside", "showgrid": False, "zeroline": False}
_AXIS |= {"linecolor": "rgb(36,36,36)", "gridcolor": "rgb(232,232,232)", "automargin": True, "title": {"standoff": 15}}
TEMPLATE = go.layout.Template(
    layout={"font": {"color": _INK}, "paper_bgcolor": "white", "plot_bgcolor": "white", "hovermode": "closest",
            "hoverlabel": {"align": "left"}, "autotypenumbers": "strict", "xaxis": _AXIS, "yaxis": _AXIS},
    data={"bar": [{"marker": {"line": {"color": "white", "width": 0.5},
                              "pattern": {"fillmode": "overlay", "size": 10, "solidity": 0.2}}}]},
)  # fmt: skip


def method_style(method: str) -> tuple[str, str, str]:
    """What a method is called in figures, its colour and its marker; a method of your own is grey."""
    if method not in METHODS:
        return method, GREY, "circle-open"
    return name_of(method), PALETTE[METHODS[method].colour], METHODS[method].marker


def faded(colour: str, opacity: float) -> str:
    """A colour such as "#0072B2", with an opacity."""
    return f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, {opacity:g})"


def figure(title: str, x: str = "", y: str = "", height: int = 440) -> go.Figure:
    """An empty figure with the titles of its axes."""
    return go.Figure(layout=layout(title, x, y, height))


def layout(title: str, x: str = "", y: str = "", height: int = 440) -> dict:
    """Title at the top left, the legend in a row below it, titles of the axes."""
    return {
        "template": TEMPLATE,
        "title": {"text": title, "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 16}},
        "height": height,
        "margin": {"l": 65, "r": 25, "t": 85, "b": 60},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom"},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
    }


def vertical(x: float | None, low: float, high: float, name: str, colour: str) -> dict:
    """A dashed line at x; without an x, an empty trace in its place, so that a widget's traces stay the same."""
    return {"type": "scatter", "x": [] if x is None else [x, x], "y": [] if x is None else [low, high],
            "mode": "lines", "line": {"color": colour, "dash": "dash"}, "hoverinfo": "skip",
            "name": name if x is None else f"{name} = {x:.4g}", "showlegend": x is not None}  # fmt: skip
