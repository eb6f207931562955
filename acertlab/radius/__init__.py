"""From the margin to the certified radius, and its summary."""

from acertlab.radius.attack import (
    AttackResult as AttackResult,
)
from acertlab.radius.attack import (
    adversarial_accuracy as adversarial_accuracy,
)
from acertlab.radius.attack import (
    attacked_radius as attacked_radius,
)
from acertlab.radius.attack import (
    pgd as pgd,
)
from acertlab.radius.bracket import RadiusBracket as RadiusBracket
from acertlab.radius.bracket import radius_bracket as radius_bracket
from acertlab.radius.certificate import Report as Report
from acertlab.radius.certificate import certify as certify
from acertlab.radius.certified import certified_radius as certified_radius
from acertlab.radius.metrics import (
    accuracy as accuracy,
)
from acertlab.radius.metrics import (
    acr as acr,
)
from acertlab.radius.metrics import (
    art as art,
)
from acertlab.radius.metrics import (
    certified_accuracy as certified_accuracy,
)
from acertlab.radius.metrics import (
    hypervolume as hypervolume,
)
from acertlab.radius.metrics import (
    pareto_front as pareto_front,
)
from acertlab.radius.search import RadiusResult as RadiusResult
from acertlab.radius.search import RadiusStatus as RadiusStatus
