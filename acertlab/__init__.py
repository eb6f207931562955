"""acertlab: certified radii, adaptive certified training, and the accuracy-robustness tradeoff.

The examples of this reference begin with these lines. The network is one that can be bounded by hand: its two scores
are the two pixels of the image.

    >>> import torch, acertlab as al
    >>> model = torch.nn.Flatten()
    >>> x, y = torch.tensor([[0.2, 0.7]]), torch.tensor([1])  # the second pixel is the brighter one: class 1

Source: Nurlanov, Schmidt, Bernard, "Adaptive Certified Training: Towards Better Accuracy-Robustness Tradeoffs".
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("acertlab")

_NAMES = {  # the public names, each loaded when it is first asked for: torch and plotly take seconds
    "Box": "bounds.box",
    "Domain": "bounds.box",
    "freeze": "bounds.ibp",
    "propagate": "bounds.ibp",
    "certified_margin": "bounds.margin",
    "clean_margin": "bounds.margin",
    "Normalize": "bounds.rules.affine",
    "select_output": "bounds.graph.output",
    "rule": "bounds.rules.dispatch",
    "ibp_init_": "models.initialisation",
    "load_onnx": "models.onnx",
    "load_weights": "models.state_dict",
    "load_program": "models.torch_program",
    "export_vnnlib": "models.vnnlib",
    "ImageData": "data.datasets",
    "augment": "data.datasets",
    "load_dataset": "data.datasets",
    "to_float": "data.datasets",
    "Run": "data.run",
    "load_run": "data.run",
    "load_runs": "data.run_table",
    "RootResult": "radius.rootfind.bracketed",
    "RootStatus": "radius.rootfind.bracketed",
    "bisect": "radius.rootfind.bisection",
    "brentq": "radius.rootfind.brent",
    "chandrupatla": "radius.rootfind.chandrupatla",
    "RadiusResult": "radius.search",
    "RadiusStatus": "radius.search",
    "certified_radius": "radius.certified",
    "AttackResult": "radius.attack",
    "adversarial_accuracy": "radius.attack",
    "attacked_radius": "radius.attack",
    "pgd": "radius.attack",
    "RadiusBracket": "radius.bracket",
    "exact_radius": "radius.bracket",
    "radius_bracket": "radius.bracket",
    "accuracy": "radius.metrics",
    "acr": "radius.metrics",
    "art": "radius.metrics",
    "certified_accuracy": "radius.metrics",
    "hypervolume": "radius.metrics",
    "pareto_front": "radius.metrics",
    "Report": "radius.certificate",
    "certify": "radius.certificate",
    "TrainConfig": "training.config",
    "preset": "training.config",
    "import_run": "training.imported_run",
    "clean_pass": "training.loop.batch_statistics",
    "train": "training.loop.train",
    "Front": "training.loop.front",
    "load_front": "training.loop.front",
    "train_front": "training.loop.front",
    "Analysis": "analysis.fronts",
    "analyse": "analysis.fronts",
}
_MODULES = {  # and modules
    "interval": "bounds.ibp",
    "models": "models",
    "plots": "visualization",
    "rules": "bounds.rules",
    "sound": "bounds.sound",
    "sweep": "sweep",
    "widgets": "visualization.widgets",
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
