"""How to train a run again: the command that leads to its configuration, checked before it is told."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from acertlab.presets import BUDGETS, TrainConfig, config_from_parameters, preset

ALWAYS = ("dataset", "method", "kappa", "seed")  # parameters of notebook 02 that are told in any case
OPTIONAL = ("eps_max", "model", "width", "epochs", "batch_size")  # and those told where they are not the preset's


def config_of(settings: Mapping[str, Any]) -> TrainConfig:
    """The `TrainConfig` in a run's `config.json`, which holds more than that.

    Raises:
        ValueError: Fields are missing; the message names them. And as `TrainConfig`.
    """
    names = [field.name for field in fields(TrainConfig)]
    if missing := [name for name in names if name not in settings]:
        raise ValueError(f"config: it lacks {', '.join(missing)}, so that the run cannot be repeated")
    return TrainConfig(**{name: settings[name] for name in names})


def training_command(config: TrainConfig) -> str:
    """What trains this configuration again: a papermill command, or Python where no parameters of 02 lead to it.

    Either was followed on paper, and arrives at this very configuration (`device` apart).
    """
    wanted = replace(config, device="auto")
    commands = [command for budget in BUDGETS if (command := _papermill(wanted, budget))]
    return min(commands, key=len) if commands else _python(wanted)


def _papermill(wanted: TrainConfig, budget: str) -> str | None:
    chosen: dict[str, Any] = {name: getattr(wanted, name) for name in ALWAYS} | {"budget": budget}
    near = config_from_parameters(chosen)
    chosen |= {name: getattr(wanted, name) for name in OPTIONAL if getattr(wanted, name) != getattr(near, name)}
    if config_from_parameters(chosen) != wanted:
        return None
    parameters = " ".join(f"-p {name} {shlex.quote(str(value))}" for name, value in chosen.items())
    return f"papermill notebooks/02_training.ipynb out.ipynb {parameters}"


def _python(wanted: TrainConfig) -> str:
    def changes(budget: str) -> dict[str, Any]:
        base = preset(wanted.dataset, wanted.method, budget=budget)
        pairs = ((field.name, getattr(wanted, field.name), getattr(base, field.name)) for field in fields(base))
        return {name: value for name, value, before in pairs if value != before}

    budget = min(BUDGETS, key=lambda name: len(changes(name)))
    base = f"al.preset({wanted.dataset!r}, {wanted.method!r}, budget={budget!r})"
    different = "".join(f", {name}={value!r}" for name, value in changes(budget).items())
    config = f"dataclasses.replace({base}{different})" if different else base
    return f"import dataclasses, acertlab as al\nal.train({config}, al.load_dataset({wanted.dataset!r}), RUN_DIR)"
