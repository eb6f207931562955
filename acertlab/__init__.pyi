"""The public names, for type checkers and editors; `acertlab/__init__.py` loads them when they are asked for."""

from acertlab import models as models
from acertlab import sweep as sweep
from acertlab.analysis.fronts import Analysis as Analysis
from acertlab.analysis.fronts import analyse as analyse
from acertlab.bounds import rules as rules
from acertlab.bounds import sound as sound
from acertlab.bounds.box import Box as Box
from acertlab.bounds.ibp import freeze as freeze
from acertlab.bounds.ibp import propagate as propagate
from acertlab.bounds.margin import certified_margin as certified_margin
from acertlab.bounds.margin import clean_margin as clean_margin
from acertlab.bounds.rules.affine import Normalize as Normalize
from acertlab.bounds.rules.dispatch import rule as rule
from acertlab.data.datasets import (
    ImageData as ImageData,
)
from acertlab.data.datasets import (
    augment as augment,
)
from acertlab.data.datasets import (
    load_dataset as load_dataset,
)
from acertlab.data.datasets import (
    to_float as to_float,
)
from acertlab.data.run import Run as Run
from acertlab.data.run import load_run as load_run
from acertlab.data.run_table import load_runs as load_runs
from acertlab.models.initialisation import ibp_init_ as ibp_init_
from acertlab.models.onnx import load_onnx as load_onnx
from acertlab.models.state_dict import load_weights as load_weights
from acertlab.models.torch_program import load_program as load_program
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
from acertlab.radius.rootfind.bisection import bisect as bisect
from acertlab.radius.rootfind.bracketed import RootResult as RootResult
from acertlab.radius.rootfind.bracketed import RootStatus as RootStatus
from acertlab.radius.rootfind.brent import brentq as brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla as chandrupatla
from acertlab.radius.search import RadiusResult as RadiusResult
from acertlab.radius.search import RadiusStatus as RadiusStatus
from acertlab.training.config import TrainConfig as TrainConfig
from acertlab.training.config import preset as preset
from acertlab.training.imported_run import import_run as import_run
from acertlab.training.loop.batch_statistics import clean_pass as clean_pass
from acertlab.training.loop.train import train as train
from acertlab.visualization import widgets as widgets

__version__: str
__all__: list[str]
