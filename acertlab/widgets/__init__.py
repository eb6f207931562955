"""Sliders around the figures of `plots`: a change calls plain functions, and their figures' data replace the old.

The widgets keep no state of their own; what they show at any position of the controls is what `pareto_figures`,
`pareto_texts` and `radius_figures` return for it, and those draw the static pictures, too.
"""

from acertlab.widgets.explorer import pareto_explorer
from acertlab.widgets.gallery import gallery_figure, gallery_of, gallery_text
from acertlab.widgets.pareto import View, first_view, pair_scores, pareto_figures, pareto_texts, scores_at
from acertlab.widgets.radius import (
    Certificate,
    certificate_at,
    margins_over,
    radius_explorer,
    radius_figures,
)

__all__ = [
    "Certificate",
    "View",
    "certificate_at",
    "first_view",
    "gallery_figure",
    "gallery_of",
    "gallery_text",
    "margins_over",
    "pair_scores",
    "pareto_explorer",
    "pareto_figures",
    "pareto_texts",
    "radius_explorer",
    "radius_figures",
    "scores_at",
]
