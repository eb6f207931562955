"""Plotly figures from tables and arrays: pure functions, one figure each.

Fractions come in, percentages are shown. Every method keeps one colour (Okabe and Ito's palette, safe for colour-blind
readers) and one marker throughout.
"""

from acertlab.plots.fronts import (
    certified_accuracy_curves,
    radius_histogram,
    share_curves,
    tradeoff,
    tradeoff_of_means,
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
    "image_grid",
    "interval_growth",
    "logit_intervals",
    "margin_curve",
    "method_style",
    "radius_histogram",
    "radius_ranges",
    "share_curves",
    "tradeoff",
    "tradeoff_of_means",
    "training_history",
]
