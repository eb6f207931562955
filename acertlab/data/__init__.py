"""What lies on disk: datasets and runs."""

from acertlab.data.datasets import (
    ImageData as ImageData,
    augment as augment,
    load_dataset as load_dataset,
    to_float as to_float,
)
from acertlab.data.run import Run as Run, load_run as load_run
from acertlab.data.run_table import load_runs as load_runs
