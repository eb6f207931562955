"""Plotly figures from tables and arrays, one function a figure, and sliders around them (`al.plots`, `al.widgets`).

Fractions come in, percentages are shown. Every method keeps one colour (Okabe and Ito's palette, safe for colour-blind
readers) and one marker throughout. A `..._spec` is what a figure is made of, as plain data: the explorer compares one
with the last and changes what differs, in a fraction of the time that it takes to make a figure.
"""

from acertlab.visualization.fronts import (
    tradeoff as tradeoff,
)
from acertlab.visualization.fronts import (
    tradeoff_of_means as tradeoff_of_means,
)
from acertlab.visualization.fronts import (
    tradeoff_spec as tradeoff_spec,
)
from acertlab.visualization.radius import (
    certified_accuracy_curves as certified_accuracy_curves,
)
from acertlab.visualization.radius import (
    histogram_spec as histogram_spec,
)
from acertlab.visualization.radius import (
    image_grid as image_grid,
)
from acertlab.visualization.radius import (
    interval_growth as interval_growth,
)
from acertlab.visualization.radius import (
    logit_intervals as logit_intervals,
)
from acertlab.visualization.radius import (
    margin_curve as margin_curve,
)
from acertlab.visualization.radius import (
    radius_histogram as radius_histogram,
)
from acertlab.visualization.radius import (
    radius_ranges as radius_ranges,
)
from acertlab.visualization.radius import (
    shares_spec as shares_spec,
)
from acertlab.visualization.style import (
    BLACK as BLACK,
)
from acertlab.visualization.style import (
    BLUE as BLUE,
)
from acertlab.visualization.style import (
    EPS_AXIS as EPS_AXIS,
)
from acertlab.visualization.style import (
    GREEN as GREEN,
)
from acertlab.visualization.style import (
    GREY as GREY,
)
from acertlab.visualization.style import (
    ORANGE as ORANGE,
)
from acertlab.visualization.style import (
    PURPLE as PURPLE,
)
from acertlab.visualization.style import (
    SKY as SKY,
)
from acertlab.visualization.style import (
    VERMILLION as VERMILLION,
)
from acertlab.visualization.style import (
    YELLOW as YELLOW,
)
from acertlab.visualization.style import (
    method_style as method_style,
)
from acertlab.visualization.training import training_history as training_history
