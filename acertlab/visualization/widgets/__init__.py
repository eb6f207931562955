"""Sliders around the figures: a change calls plain functions, and their figures' data replace the old.

The widgets keep no state of their own; what they show at any position of the controls is what `pareto_figures`,
`pareto_texts` and `radius_figures` return for it, and those draw the static pictures, too.
"""

from acertlab.visualization.widgets.explorer import pareto_explorer as pareto_explorer
from acertlab.visualization.widgets.gallery import (
    gallery_figure as gallery_figure,
)
from acertlab.visualization.widgets.gallery import (
    gallery_of as gallery_of,
)
from acertlab.visualization.widgets.gallery import (
    gallery_text as gallery_text,
)
from acertlab.visualization.widgets.pareto import (
    View as View,
)
from acertlab.visualization.widgets.pareto import (
    first_view as first_view,
)
from acertlab.visualization.widgets.pareto import (
    pair_scores as pair_scores,
)
from acertlab.visualization.widgets.pareto import (
    pareto_figures as pareto_figures,
)
from acertlab.visualization.widgets.pareto import (
    pareto_texts as pareto_texts,
)
from acertlab.visualization.widgets.pareto import (
    scores_at as scores_at,
)
from acertlab.visualization.widgets.radius import (
    Certificate as Certificate,
)
from acertlab.visualization.widgets.radius import (
    certificate_at as certificate_at,
)
from acertlab.visualization.widgets.radius import (
    margins_over as margins_over,
)
from acertlab.visualization.widgets.radius import (
    radius_explorer as radius_explorer,
)
from acertlab.visualization.widgets.radius import (
    radius_figures as radius_figures,
)
