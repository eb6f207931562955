"""acertlab: certified radii, adaptive certified training, and the accuracy-robustness tradeoff.

Source: Nurlanov, Schmidt, Bernard, "Adaptive Certified Training: Towards Better Accuracy-Robustness Tradeoffs".
"""

from importlib.metadata import version

from acertlab import interval, models, plots, rules, widgets
from acertlab.data import ImageData, augment, load_dataset, to_float
from acertlab.interval import clean_pass, freeze, propagate
from acertlab.margin import certified_margin, clean_margin
from acertlab.metrics import accuracy, acr, art, certified_accuracy, hypervolume, pareto_front
from acertlab.models import Normalize, ibp_init_
from acertlab.presets import TrainConfig, preset
from acertlab.radius import RadiusResult, RadiusStatus, certified_radius
from acertlab.rootfind import RootResult, RootStatus, bisect, brentq, chandrupatla
from acertlab.rules import Box, rule
from acertlab.runs import Run, load_run, load_runs
from acertlab.train import train

__version__ = version("acertlab")

__all__ = [
    "Box",
    "ImageData",
    "Normalize",
    "RadiusResult",
    "RadiusStatus",
    "RootResult",
    "RootStatus",
    "Run",
    "TrainConfig",
    "accuracy",
    "acr",
    "art",
    "augment",
    "bisect",
    "brentq",
    "certified_accuracy",
    "certified_margin",
    "certified_radius",
    "chandrupatla",
    "clean_margin",
    "clean_pass",
    "freeze",
    "hypervolume",
    "ibp_init_",
    "interval",
    "load_dataset",
    "load_run",
    "load_runs",
    "models",
    "pareto_front",
    "plots",
    "preset",
    "propagate",
    "rule",
    "rules",
    "to_float",
    "train",
    "widgets",
]
