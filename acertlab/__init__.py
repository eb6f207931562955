"""acertlab: certified radii, adaptive certified training, and the accuracy-robustness tradeoff.

Source: Nurlanov, Schmidt, Bernard, "Adaptive Certified Training: Towards Better Accuracy-Robustness Tradeoffs".
"""

import sys
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from acertlab.public import *  # noqa: F403

__version__ = version("acertlab")


def __getattr__(name: str) -> Any:
    """The public names load torch and plotly, seconds and 0.5 GB that a sweep's workers do without: so, when asked."""
    if name == "__all__" or not name.startswith("_"):
        if find_spec(f"acertlab.{name}"):
            import_module(f"acertlab.{name}")
            return globals()[name]
        public = import_module("acertlab.public")
        if hasattr(public, name):
            return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *import_module("acertlab.public").__all__]


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        """Python binds a submodule's name here once it is imported; `train` stays the function of that module."""
        super().__setattr__(name, value.train if name == "train" and isinstance(value, ModuleType) else value)


sys.modules[__name__].__class__ = _Package
