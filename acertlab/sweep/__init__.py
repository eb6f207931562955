"""Many notebooks on one machine or a cluster, by papermill and Dask.

A worker imports `acertlab.sweep.job` and with it this file: so it loads neither torch nor pandas, and its names when
they are asked for.

Example:
    >>> sweep = al.sweep.read_spec({"dataset": "digits", "grid": {"kappa": [0, 0.5], "seed": [0, 1, 2]}})
    >>> len(sweep.jobs)
    6
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from acertlab._optional import need, spare_the_grammar

need("sweep", "acertlab.sweep", "distributed", "ipykernel", "nbformat", "papermill", "rich", "yaml")
spare_the_grammar()  # nbformat

if TYPE_CHECKING:
    from acertlab.sweep.executor import run as run
    from acertlab.sweep.spec import read_spec as read_spec

_FACE = {"run": "executor", "read_spec": "spec"}


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FACE[name]}"), name)
