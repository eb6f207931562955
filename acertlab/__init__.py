"""acertlab: certified radii, adaptive certified training, and the accuracy-robustness tradeoff.

The examples of this reference begin with these lines. The network is one that can be bounded by hand: its two scores
are the two pixels of the image.

    >>> import torch, acertlab as al
    >>> model = torch.nn.Flatten()
    >>> x, y = torch.tensor([[0.2, 0.7]]), torch.tensor([1])  # the second pixel is the brighter one: class 1

Everywhere a TypeError or a ValueError names the argument that it refuses, what was wrong with it and what is accepted.

Source: Nurlanov, Schmidt, Bernard, "Adaptive Certified Training: Towards Better Accuracy-Robustness Tradeoffs".
"""

import re
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

__version__ = version("acertlab")

# What is public stands in `__init__.pyi`, for editors and for this: each name is loaded when it is first asked for,
# since torch and plotly take seconds
_STUB = Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")
_MODULES = {
    "interval": "bounds.ibp",
    "models": "models",
    "plots": "visualization",
    "rules": "bounds.rules",
    "sound": "bounds.sound",
    "sweep": "sweep",
    "widgets": "visualization.widgets",
}
_NAMES = {
    name: module
    for module, names in re.findall(r"^from acertlab\.(\S+) import (\([^)]*\)|.*)", _STUB, re.MULTILINE)
    for name in re.findall(r"(\w+) as \1\b", names)
    if name not in _MODULES
}
__all__ = sorted([*_NAMES, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = import_module(f"acertlab.{_MODULES[name]}")
    elif name in _NAMES:
        value = getattr(import_module(f"acertlab.{_NAMES[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
