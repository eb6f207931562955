"""acertlab: certified radii, adaptive certified training, and the accuracy-robustness tradeoff.

Source: Nurlanov, Schmidt, Bernard, "Adaptive Certified Training: Towards Better Accuracy-Robustness Tradeoffs".
"""

from importlib.metadata import version

from acertlab import data, interval, lirpa, metrics, models, plots, radius, rootfind, rules, runs, train, widgets
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
