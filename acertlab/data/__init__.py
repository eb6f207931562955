"""What lies on disk: datasets and runs."""

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
