"""Plotly figures from tables and arrays, one function a figure, and sliders around them (`al.plots`, `al.widgets`).

Fractions come in, percentages are shown. Every method keeps one colour (Okabe and Ito's palette, safe for colour-blind
readers) and one marker throughout. A `..._spec` is what a figure is made of, as plain data: the explorer compares one
with the last and changes what differs, in a fraction of the time that it takes to make a figure.

Example:
    >>> al.plots.radius_histogram([0.0, 0.05, 0.1], eps_max=0.1).layout.title.text
    'Certified radii of 3 samples'
"""

from acertlab._optional import need, spare_the_grammar

need("notebooks", "acertlab.visualization", "plotly", "jinja2")
spare_the_grammar()  # a figure's display loads nbformat

from acertlab.visualization.fronts import (
    tradeoff as tradeoff,
    tradeoff_of_means as tradeoff_of_means,
    tradeoff_spec as tradeoff_spec,
)
from acertlab.visualization.radius import (
    certified_accuracy_curves as certified_accuracy_curves,
    histogram_spec as histogram_spec,
    image_grid as image_grid,
    interval_growth as interval_growth,
    logit_intervals as logit_intervals,
    margin_curve as margin_curve,
    radius_histogram as radius_histogram,
    radius_ranges as radius_ranges,
    shares_spec as shares_spec,
)
from acertlab.visualization.style import (
    BLACK as BLACK,
    BLUE as BLUE,
    EPS_AXIS as EPS_AXIS,
    GREEN as GREEN,
    GREY as GREY,
    ORANGE as ORANGE,
    PURPLE as PURPLE,
    SKY as SKY,
    VERMILLION as VERMILLION,
    YELLOW as YELLOW,
    method_style as method_style,
)
from acertlab.visualization.training import training_history as training_history
