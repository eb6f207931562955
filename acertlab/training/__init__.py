"""Training that maximises certified radii."""

from acertlab.training.config import TrainConfig as TrainConfig, preset as preset
from acertlab.training.imported_run import import_run as import_run
from acertlab.training.loop.batch_statistics import clean_pass as clean_pass
from acertlab.training.loop.train import train as train
