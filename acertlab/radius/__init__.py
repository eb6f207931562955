"""From the margin to the certified radius, and its summary."""

from acertlab.radius.attack import (
    AttackResult as AttackResult,
    adversarial_accuracy as adversarial_accuracy,
    attacked_radius as attacked_radius,
    pgd as pgd,
)
from acertlab.radius.bracket import RadiusBracket as RadiusBracket, radius_bracket as radius_bracket
from acertlab.radius.certificate import Report as Report, certify as certify
from acertlab.radius.certified import certified_radius as certified_radius
from acertlab.radius.metrics import (
    accuracy as accuracy,
    acr as acr,
    art as art,
    certified_accuracy as certified_accuracy,
    hypervolume as hypervolume,
    pareto_front as pareto_front,
)
from acertlab.radius.search import RadiusResult as RadiusResult, RadiusStatus as RadiusStatus
