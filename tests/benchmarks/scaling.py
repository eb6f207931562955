"""How time and memory grow with the batch, the width of the network and the number of classes; for `acertlab.bench`."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor, nn

from acertlab._memory import PeakMemory
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import margin_at
from acertlab.data.datasets import to_float
from acertlab.models.architectures import small_cnn
from acertlab.models.initialisation import ibp_init_
from acertlab.radius.certified import certified_radius
from acertlab.visualization.style import BLUE, GREY, VERMILLION
from tests.benchmarks.rows import Case, Figure, interleaved

WHAT = {"clean forward": GREY, "bound pass": BLUE, "search": VERMILLION}  # and its colour
ROWS = 128  # samples, where not the batch is what grows


@dataclass(frozen=True)
class Sizes:
    """What is measured, in rising order."""

    batch: tuple[int, ...]
    width: tuple[int, ...]
    classes: tuple[int, ...]


FULL = Sizes(tuple(2**i for i in range(4, 13)), (16, 32, 64, 128), (10, 30, 100, 300, 1000))
QUICK = Sizes((16, 64, 256, 1024), (16, 32, 64), (10, 100, 1000))


@dataclass(frozen=True)
class Point:
    """Attributes:
    axis: "batch", "width" or "classes"; ``size`` along it.
    what: a key of `WHAT`.
    seconds: the median of three.
    bytes: the most that tensors held at once, beyond those of the network and the samples.
    """

    axis: str
    size: int
    what: str
    seconds: float
    bytes: int


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes that the tensors made by ``call`` held at most at once."""
    with PeakMemory() as seen:
        call()
    return seen.peak


def measure(case: Case, sizes: Sizes, eps_max: float, solver: str) -> Iterator[list[Point]]:
    """Points along each axis: the batch with a trained network, the others with small CNNs as they are initialised.

    There every sample has the class that the network says, so that all of them are searched for.
    """
    for size in sizes.batch:
        index = torch.arange(size) % len(case.x)
        yield _points("batch", size, case.model, case.x[index], case.y[index], eps_max, solver)
    shape, x = case.data.in_shape, case.x[torch.arange(ROWS) % len(case.x)]
    for axis, several in (("width", sizes.width), ("classes", sizes.classes)):
        for size in several:
            torch.manual_seed(0)
            model = small_cnn(shape, size) if axis == "classes" else small_cnn(shape, 10, width=size)
            model = ibp_init_(model).eval()
            with torch.no_grad():
                yield _points(axis, size, model, x, model(x).argmax(1), eps_max, solver)


@torch.no_grad()
def _points(axis: str, size: int, model: nn.Module, x: Tensor, y: Tensor, eps_max: float, solver: str) -> list[Point]:
    eps = torch.full((len(x),), eps_max)
    calls = {
        "clean forward": lambda: model(x),
        "bound pass": lambda: margin_at(freeze(model), x, y, eps),
        "search": lambda: certified_radius(model, x, y, eps_max, solver=solver, xtol=1e-6, rtol=0.0, batch_size=len(x)),
    }
    times = interleaved(calls, 0.3)
    return [Point(axis, size, what, statistics.median(times[what]), peak_memory(call)) for what, call in calls.items()]


def stream(case: Case, sizes: Sequence[int], eps_max: float, solver: str, memory: int = 2**27) -> list[Figure]:
    """Peak memory of `certified_radius` for ever more samples: its chunks take it, not the samples.

    The tolerance is wide, since nothing but memory is asked for. What comes back, 21 bytes a sample, is part of it.
    """
    table, figures = f"peak memory of certified_radius, chunks of {memory >> 20} MiB", []
    for n in sizes:
        index = torch.arange(n) % len(case.data.test_x)
        x, y = to_float(case.data.test_x[index]), case.data.test_y[index]
        peak = peak_memory(
            lambda x=x, y=y: certified_radius(case.model, x, y, eps_max, solver=solver, xtol=1e-2, memory=memory)
        )
        figures.append(Figure(table, f"{case.label}, MiB of tensors beside the samples", f"{n} samples", peak / 2**20))
    return figures


def exponents(points: Sequence[Point]) -> list[Figure]:
    """p of size^p, fitted to the upper half of the sizes, where what does not grow counts less."""
    figures = []
    for what in WHAT:
        for axis in dict.fromkeys(point.axis for point in points):
            for name, value in (("time", "seconds"), ("memory", "bytes")):
                power = exponent(*_line(points, axis, what, value))
                figures.append(Figure("grows like size to the power of", what, f"{axis}: {name}", power))
    return figures


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of a straight line through the upper half of the points (3 at least), in logarithms."""
    half = max(3, (len(sizes) + 1) // 2)
    return float(np.polyfit(np.log(sizes[-half:]), np.log(values[-half:]), 1)[0])


def _line(points: Sequence[Point], axis: str, what: str, value: str) -> tuple[list[int], list[float]]:
    chosen = [point for point in points if (point.axis, point.what) == (axis, what)]
    return [point.size for point in chosen], [getattr(point, value) for point in chosen]


def plot(points: Sequence[Point]) -> go.Figure:
    """Time above, memory below, an axis a column, both scales logarithmic, each line with its exponent at its end."""
    axes = list(dict.fromkeys(point.axis for point in points))
    figure = make_subplots(2, len(axes), column_titles=axes, vertical_spacing=0.1)
    for i, axis in enumerate(axes):
        for row, value, unit in ((1, "seconds", 1.0), (2, "bytes", 2.0**20)):
            for what, colour in WHAT.items():
                x, y = _line(points, axis, what, value)
                label = [""] * (len(x) - 1) + [f"<b>{exponent(x, y):.2f}</b>"]
                figure.add_scatter(
                    x=x,
                    y=[each / unit for each in y],
                    name=what,
                    legendgroup=what,
                    showlegend=i == 0 and row == 1,
                    mode="lines+markers+text",
                    text=label,
                    textposition="top center",
                    line_color=colour,
                    textfont_color=colour,
                    cliponaxis=False,
                    row=row,
                    col=i + 1,
                )
    figure.update_xaxes(type="log", dtick=1)
    figure.update_xaxes(title_text="size", row=2)
    figure.update_yaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(title_text="seconds", row=1, col=1)
    figure.update_yaxes(title_text="MiB of tensors at most", row=2, col=1)
    title = "Time and peak memory; at the end of each line the exponent of its upper half"
    figure.update_layout(template="simple_white", title=title, height=720, legend={"orientation": "h", "y": -0.12})
    return figure
