"""Sliders around the figures: a change calls plain functions, and their figures' data replace the old.

The widgets keep no state of their own; what they show at any position of the controls is what `pareto_figures`,
`pareto_texts` and `radius_figures` return for it, and those draw the static pictures, too.

Example:
    >>> al.widgets.certificate_at(model, x, y, eps=0.1).sentence
    'R_cert = -0.3, by Eq. (3) -0.3: certified'
"""

from acertlab._optional import need

need("notebooks", "acertlab.visualization.widgets", "ipywidgets", "anywidget")

from acertlab.visualization.widgets.choice import (
    Choice as Choice,
    first_choice as first_choice,
    load_beside_shipped as load_beside_shipped,
)
from acertlab.visualization.widgets.explorer import pareto_explorer as pareto_explorer
from acertlab.visualization.widgets.front import FrontView as FrontView, front_explorer as front_explorer
from acertlab.visualization.widgets.gallery import (
    gallery_figure as gallery_figure,
    gallery_of as gallery_of,
    gallery_text as gallery_text,
)
from acertlab.visualization.widgets.pareto import (
    View as View,
    comparable as comparable,
    first_view as first_view,
    pair_scores as pair_scores,
    pareto_figures as pareto_figures,
    pareto_texts as pareto_texts,
    scores_at as scores_at,
)
from acertlab.visualization.widgets.radius import (
    Certificate as Certificate,
    certificate_at as certificate_at,
    margins_over as margins_over,
    radius_explorer as radius_explorer,
    radius_figures as radius_figures,
)
