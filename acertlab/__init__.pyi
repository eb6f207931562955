# The public names, for type checkers and editors, and for `acertlab/__init__.py`, which loads them when asked for.

from acertlab import models as models, sweep as sweep, visualization
from acertlab.analysis.fronts import Analysis as Analysis, analyse as analyse
from acertlab.bounds import ibp, rules as rules, sound as sound
from acertlab.bounds.box import Box as Box, Domain as Domain
from acertlab.bounds.graph.output import select_output as select_output
from acertlab.bounds.ibp import freeze as freeze, propagate as propagate
from acertlab.bounds.margin import certified_margin as certified_margin, clean_margin as clean_margin
from acertlab.bounds.rules.affine import Normalize as Normalize
from acertlab.bounds.rules.dispatch import rule as rule
from acertlab.data.datasets import (
    ImageData as ImageData,
    augment as augment,
    load_dataset as load_dataset,
    to_float as to_float,
)
from acertlab.data.run import Run as Run, load_run as load_run
from acertlab.data.run_table import load_runs as load_runs
from acertlab.models.initialisation import ibp_init_ as ibp_init_
from acertlab.models.onnx import load_onnx as load_onnx
from acertlab.models.state_dict import load_weights as load_weights
from acertlab.models.torch_program import load_program as load_program
from acertlab.models.vnnlib import export_vnnlib as export_vnnlib
from acertlab.radius.attack import (
    AttackResult as AttackResult,
    adversarial_accuracy as adversarial_accuracy,
    attacked_radius as attacked_radius,
    pgd as pgd,
)
from acertlab.radius.bracket import (
    RadiusBracket as RadiusBracket,
    exact_radius as exact_radius,
    radius_bracket as radius_bracket,
)
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
from acertlab.radius.rootfind.bisection import bisect as bisect
from acertlab.radius.rootfind.bracketed import RootResult as RootResult, RootStatus as RootStatus
from acertlab.radius.rootfind.brent import brentq as brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla as chandrupatla
from acertlab.radius.search import RadiusResult as RadiusResult, RadiusStatus as RadiusStatus
from acertlab.training.config import TrainConfig as TrainConfig, preset as preset
from acertlab.training.imported_run import import_run as import_run
from acertlab.training.loop.batch_statistics import clean_pass as clean_pass
from acertlab.training.loop.front import Front as Front, load_front as load_front, train_front as train_front
from acertlab.training.loop.train import train as train
from acertlab.visualization import widgets as widgets

interval = ibp
plots = visualization

__version__: str
__all__: list[str]
