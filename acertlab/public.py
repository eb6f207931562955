"""The public names, `al.certified_radius` and its like; loaded as a whole when the first of them is asked for."""

from acertlab import interval, models, plots, rules, sound, widgets
from acertlab.attack import AttackResult, adversarial_accuracy, attacked_radius, pgd
from acertlab.box import Box
from acertlab.bracket import RadiusBracket, radius_bracket
from acertlab.certificate import Report, certify
from acertlab.data import ImageData, augment, load_dataset, to_float
from acertlab.external import import_run, load_weights
from acertlab.fronts import Analysis, analyse
from acertlab.interval import clean_pass, freeze, propagate
from acertlab.margin import certified_margin, clean_margin
from acertlab.metrics import accuracy, acr, art, certified_accuracy, hypervolume, pareto_front
from acertlab.models import Normalize, ibp_init_
from acertlab.onnx import load_onnx
from acertlab.presets import TrainConfig, preset
from acertlab.programs import load_program
from acertlab.radius import RadiusResult, RadiusStatus, certified_radius
from acertlab.rootfind import RootResult, RootStatus, bisect, brentq, chandrupatla
from acertlab.rules import rule
from acertlab.runs import Run, load_run, load_runs
from acertlab.train import train

__all__ = [
    "Analysis",
    "AttackResult",
    "Box",
    "ImageData",
    "Normalize",
    "RadiusBracket",
    "RadiusResult",
    "RadiusStatus",
    "Report",
    "RootResult",
    "RootStatus",
    "Run",
    "TrainConfig",
    "accuracy",
    "acr",
    "adversarial_accuracy",
    "analyse",
    "art",
    "attacked_radius",
    "augment",
    "bisect",
    "brentq",
    "certified_accuracy",
    "certified_margin",
    "certified_radius",
    "certify",
    "chandrupatla",
    "clean_margin",
    "clean_pass",
    "freeze",
    "hypervolume",
    "ibp_init_",
    "import_run",
    "interval",
    "load_dataset",
    "load_onnx",
    "load_program",
    "load_run",
    "load_runs",
    "load_weights",
    "models",
    "pareto_front",
    "pgd",
    "plots",
    "preset",
    "propagate",
    "radius_bracket",
    "rule",
    "rules",
    "sound",
    "to_float",
    "train",
    "widgets",
]
