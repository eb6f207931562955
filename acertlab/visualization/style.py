"""The one look of all figures: colours, markers, dashes, axes and panels."""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.colors import hex_to_rgb
from plotly.subplots import make_subplots

from acertlab.training.methods.catalogue import METHODS, name_of

CONFIG = {"displaylogo": False}  # plotly's toolbar comes when the mouse does, at the right edge (TEMPLATE)

# Figures follow a dark theme at once, and back: lightness is turned over, hues stay, and photographs are turned twice.
_TURN = "filter: invert(%s) hue-rotate(180deg)"
DARK = "\n".join(
    f"{theme} .js-plotly-plot {{ {_TURN % '.93'} }} {theme} .js-plotly-plot .imagelayer image {{ {_TURN % '1'} }}"
    for theme in ('body[data-jp-theme-light="false"]', "body.vscode-dark")
)

# In a Jupyter kernel plotly's default shows figures in JupyterLab only. With HTML beside it, which names plotly.js on
# its CDN, they appear in nbviewer and in HTML copies too; JupyterLab shows the first form and asks for nothing there.
# PLOTLY_RENDERER=plotly_mimetype+notebook puts plotly.js itself into the notebook (5 MB), for copies that are read
# without a network. Elsewhere the default is another one, and asking for it would load nbformat: seconds.
if "ipykernel.zmqshell" in sys.modules:
    from IPython.display import HTML, display
    from plotly.io.base_renderers import NotebookRenderer

    class _FollowingTheme(NotebookRenderer):
        def activate(self) -> None:  # with a kernel's first figure; plotly would load its script from the CDN here
            element = f"Object.assign(document.createElement('style'), {{ textContent: {json.dumps(DARK)} }})"
            display(HTML(f"<script>document.head.append({element})</script>"))

    plotly.io.renderers["notebook_connected"] = _FollowingTheme(connected=True, config=CONFIG)
    plotly.io.renderers["plotly_mimetype"].config = CONFIG
    if plotly.io.renderers.default == "plotly_mimetype":
        plotly.io.renderers.default = "plotly_mimetype+notebook_connected"

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY = "#8C8C8C"
PALETTE = {  # Okabe and Ito's, by the names that METHODS uses
    **{"black": BLACK, "orange": ORANGE, "sky": SKY, "green": GREEN},
    **{"yellow": YELLOW, "blue": BLUE, "vermillion": VERMILLION, "purple": PURPLE},
}
DASHES = ("solid", "dash", "dot", "dashdot")
EPS_AXIS = "eps (pixel units, 0 to 1)"
MINE = " (mine)"  # behind the names of methods whose runs stand beside those that come with acertlab

# Plotly's "simple_white", of which figures here use this much. The whole of it takes 13 ms to set, and the explorer
# redraws five figures at every movement of a slider.
_INK = "rgb(36,36,36)"
_AXIS = {"showline": True, "ticks": "outside", "showgrid": False, "zeroline": False, "automargin": True}
_AXIS |= {"linecolor": _INK, "gridcolor": "rgb(232,232,232)", "title": {"standoff": 15}}
_LAYOUT = {"font": {"color": _INK}, "paper_bgcolor": "white", "plot_bgcolor": "white", "hovermode": "closest"}
_LAYOUT |= {"hoverlabel": {"align": "left"}, "autotypenumbers": "strict", "xaxis": _AXIS, "yaxis": _AXIS}
_TOOLS = ("lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d")  # not needed
_LAYOUT |= {"modebar": {"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "remove": _TOOLS}}
_MARKER = {"line": {"color": "white", "width": 0.5}, "pattern": {"fillmode": "overlay", "size": 10, "solidity": 0.2}}
_BAR = {"marker": _MARKER, "error_x": {"color": _INK}, "error_y": {"color": _INK}}  # else as white as the marker's line
TEMPLATE = go.layout.Template(layout=_LAYOUT, data={"bar": [_BAR]})


def method_style(method: str) -> tuple[str, str, str]:
    """Name, colour and marker of a method in figures; a method of your own is grey.

    One of which more is said behind (`MINE`, or that it is a front) has the method's colour and an open marker.
    """
    named = name_of(method)
    of = next((one for one in METHODS if method == one or named.startswith(f"{name_of(one)} (")), None)
    if of is None:
        return method, GREY, "circle-open"
    return named, PALETTE[METHODS[of].colour], METHODS[of].marker + "-open" * (method != of)


def dashes(methods: Iterable[str]) -> Iterator[str]:
    """A dash for each curve's method: curves of one method share its colour, and differ by this."""
    seen: Counter[str] = Counter()
    for method in methods:
        yield DASHES[seen[method] % len(DASHES)]
        seen[method] += 1


def faded(colour: str, opacity: float) -> str:
    """A colour such as "#0072B2", with an opacity."""
    return f"rgba{(*hex_to_rgb(colour), opacity)}"


def eps_words(end: float) -> Callable[[float], str]:
    """How eps are written in a figure or on a slider that ends there: 2.5/255 where it is short, else 0.1."""
    if end < 0.1:
        return lambda eps: f"{255 * eps:.3g}/255" if eps else "0"
    return lambda eps: f"{eps:.4g}"


def eps_axis(end: float, title: str = EPS_AXIS) -> dict[str, Any]:
    """An axis from eps = 0 to ``end`` with ticks at round numbers, of pixel levels where it is short."""
    unit, words = 1 / 255 if end < 0.1 else 1.0, eps_words(end)
    least = end / unit / 6  # of so many, as axes usually have
    power = 10.0 ** math.floor(math.log10(least))
    step = unit * next(power * part for part in (1, 2, 5, 10) if power * part >= least * (1 - 1e-9))
    ticks = [step * i for i in range(int(end / step * (1 + 1e-9)) + 1)]
    told = {"tickvals": ticks, "ticktext": [words(tick) for tick in ticks]}
    return {"title": {"text": title}, "range": [0, 1.01 * end], **told}


def base_layout(title: str, x: str = "", y: str = "", height: int = 440, legend_rows: int = 2) -> dict[str, Any]:
    """A figure's layout: title at the top left, the legend in so many rows below it, titles of the axes."""
    return {
        "template": TEMPLATE,
        "title": {"text": title, "x": 0.01, "xanchor": "left", "y": 0.97, "yanchor": "top", "font": {"size": 16}},
        "height": height,
        "margin": {"l": 65, "r": 25, "t": 47 + 19 * legend_rows, "b": 60},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.01, "yanchor": "bottom"},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"title": {"text": y}},
    }


def empty_figure(title: str, x: str = "", y: str = "", height: int = 440, legend_rows: int = 2) -> go.Figure:
    """A figure with the titles of its axes, and no trace yet."""
    return go.Figure(layout=base_layout(title, x, y, height, legend_rows))


def vertical(x: float | None, low: float, high: float, name: str, colour: str, end: float) -> dict:
    """A dashed line at an eps on an axis that ends at ``end``; without an eps an empty trace in its place."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [] if x is None else [x, x],
        "y": [] if x is None else [low, high],
        "name": name if x is None else f"{name} = {eps_words(end)(x)}",
        "line": {"color": colour, "dash": "dash"},
        "hoverinfo": "skip",
        "showlegend": x is not None,
    }


def panels(parts: Sequence[go.Figure], title: str, height: int, heights: list[float] | None = None) -> go.Figure:
    """Figures as panels of one, two in a row and each under its title; an odd last one takes its whole row."""
    rows = math.ceil(len(parts) / 2)
    specs: list = [[{}, {}] for _ in range(rows)]
    if len(parts) % 2:
        specs[-1] = [{"colspan": 2}, None]
    layouts = [part.layout.to_plotly_json() for part in parts]
    titles = [layout["title"]["text"] for layout in layouts]
    how = {"vertical_spacing": 0.39 / rows, "row_heights": heights}
    figure = make_subplots(rows, 2, specs=specs, subplot_titles=titles, **how)
    figure.update_layout(base_layout(title, height=height))
    for i, (part, layout) in enumerate(zip(parts, layouts, strict=True)):
        row, col = i // 2 + 1, i % 2 + 1
        for trace in part.data:
            figure.add_trace(trace, row=row, col=col)
        anchored = {"scaleanchor": f"x{i + 1}"} if "scaleanchor" in layout["yaxis"] else {}
        figure.update_xaxes(layout["xaxis"], row=row, col=col)
        figure.update_yaxes(layout["yaxis"] | anchored, row=row, col=col)
        for shape in layout.get("shapes", ()):
            figure.add_shape(shape, row=row, col=col)
        for note in layout.get("annotations", ()):
            figure.add_annotation(note, row=row, col=col)
    return figure
