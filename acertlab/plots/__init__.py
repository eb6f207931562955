"""Plotly figures from tables and arrays: pure functions, one figure each.

Fractions come in, percentages are shown. Every method keeps one colour (Okabe and Ito's palette, safe for colour-blind
readers) and one marker throughout. A `..._spec` is what a figure is made of, as plain data: the explorer compares one
with the last and changes what differs, in a fraction of the time that it takes to make a figure.
"""

from acertlab.plots.fronts import (
    certified_accuracy_curves,
    histogram_spec,
    radius_histogram,
    shares_spec,
    tradeoff,
    tradeoff_of_means,
    tradeoff_spec,
    training_history,
)
from acertlab.plots.samples import (
    image_grid,
    interval_growth,
    logit_intervals,
    margin_curve,
    radius_ranges,
)
from acertlab.plots.style import (
    BLACK,
    BLUE,
    EPS_AXIS,
    GREEN,
    GREY,
    METHODS,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    method_style,
)

__all__ = [
    "BLACK",
    "BLUE",
    "EPS_AXIS",
    "GREEN",
    "GREY",
    "METHODS",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILLION",
    "YELLOW",
    "certified_accuracy_curves",
    "histogram_spec",
    "image_grid",
    "interval_growth",
    "logit_intervals",
    "margin_curve",
    "method_style",
    "radius_histogram",
    "radius_ranges",
    "shares_spec",
    "tradeoff",
    "tradeoff_of_means",
    "tradeoff_spec",
    "training_history",
]
