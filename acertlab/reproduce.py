"""How to train a run again: the command that leads to its configuration, checked before it is told."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from acertlab.presets import BUDGETS, LATER, TrainConfig, config_from_parameters

ALWAYS = ("dataset", "method", "kappa", "seed")  # parameters of notebook 02 that are told in any case
OPTIONAL = ("eps_max", "model", "width", "epochs", "batch_size")  # and those told where they are not the preset's


def config_of(settings: Mapping[str, Any]) -> TrainConfig:
    """The `TrainConfig` in a run's `config.json`, which holds more than that.

    Raises:
        ValueError: Fields are missing; the message names them. And as `TrainConfig`.
    """
    names, settings = [field.name for field in fields(TrainConfig)], LATER | dict(settings)
    if missing := [name for name in names if name not in settings]:
        raise ValueError(f"config: it lacks {', '.join(missing)}, so that the run cannot be repeated")
    return TrainConfig(**{name: settings[name] for name in names})


def training_command(config: TrainConfig) -> str:
    """The papermill command that trains this configuration again: by the preset from which it differs least.

    It was followed on paper, and arrives at this very configuration (`device` apart).
    """
    wanted = replace(config, device="auto")
    return min((_papermill(wanted, budget) for budget in BUDGETS), key=len)


def _papermill(wanted: TrainConfig, budget: str) -> str:
    chosen: dict[str, Any] = {name: getattr(wanted, name) for name in ALWAYS} | {"budget": budget}
    chosen |= _differences(wanted, chosen, OPTIONAL)
    others = _differences(wanted, chosen, [field.name for field in fields(TrainConfig) if field.name not in ALWAYS])
    if others:
        chosen["settings"] = ", ".join(f"{name}={value!r}" for name, value in others.items())
    assert config_from_parameters(chosen) == wanted
    parameters = " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in chosen.items())
    return f"papermill notebooks/02_training.ipynb out.ipynb {parameters}"


def _differences(wanted: TrainConfig, chosen: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    near = config_from_parameters(chosen)
    return {name: getattr(wanted, name) for name in names if getattr(wanted, name) != getattr(near, name)}
