"""A notebook's parameters: checked, turned into a `TrainConfig`, and back into the command that trains it."""

import ast
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from acertlab._validation import Accepted, Within, check, did_you_mean, number, refuse
from acertlab.data.run import as_today, runs_folder
from acertlab.models.architectures import MODELS
from acertlab.training.config import ACCEPTED, DEVICES, SEED, TrainConfig, preset
from acertlab.training.loop.front import checked_walk
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.presets import BUDGETS


def check_parameters(namespace: Mapping[str, Any], spec: Mapping[str, Accepted]) -> dict[str, Any]:
    """The parameters of a notebook, coerced and checked: called with `globals()` right after the parameters cell.

    Papermill only logs a name that the notebook does not know and hands "8/255" over as text; here the first is an
    error, and the second is a number.

        eps_max, method, seed = check_parameters(globals(), {
            "eps_max": Within(0, 1, open_low=True), "method": ("ibp", "acert"), "seed": int}).values()

    ``spec`` tells of each parameter what is accepted, as for `check`; the values are returned by name, in its order.
    ValueError, which names the parameter, the value and what is accepted, where one is missing, of the wrong kind or
    out of range, or papermill injected a name that is not in ``spec``.
    """
    for name in _injected_names(namespace):
        if name not in spec:
            hint = did_you_mean(name, spec)
            raise ValueError(f"{name!r} is not a parameter of this notebook{hint}; accepted are {', '.join(spec)}")
    if missing := [name for name in spec if name not in namespace]:
        raise ValueError(f"the parameters cell does not set {', '.join(missing)}: run it first")
    return {n: check(f"parameter {n}", namespace[n], accepted, parse=True) for n, accepted in spec.items()}


def _injected_names(namespace: Mapping[str, Any]) -> list[str]:
    """Names in papermill's own cell. Other variables are the notebook's: its cells may be run in any order."""
    cells = [source for source in namespace.get("In", ()) if source.startswith("# Parameters")]
    nodes = [node for source in cells for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)]


def _model_or_preset(name: Any) -> str:
    if name not in ("", *MODELS):
        raise ValueError(f'{", ".join(MODELS)}, or "" for the preset\'s')
    return name


def _settings(given: Any) -> dict[str, Any]:
    """Settings of `TrainConfig` that have no parameter of their own; 8/255 and 5e-4 are text in YAML, numbers here."""
    accepted = "a mapping from names of TrainConfig to values"
    names = [field.name for field in fields(TrainConfig) if field.name not in PARAMETERS]
    if given == "":  # of notebooks before settings were a mapping
        return {}
    if not isinstance(given, Mapping):
        text = str(given).replace("=", ": ").translate({ord("("): "[", ord(")"): "]"})
        raise ValueError(accepted + (f', with papermill -y "settings: {{{text}}}"' if isinstance(given, str) else ""))
    for name in given:
        if name not in names:
            why = "is a parameter of its own" if name in PARAMETERS else "is none of them" + did_you_mean(name, names)
            raise ValueError(f"{accepted}: {name} {why}. They are {', '.join(names)}")
    known = given.keys() & ACCEPTED.keys()  # not radius_cap, which depends on eps_max
    return {**given, **{n: check(f"{accepted}; {n}", given[n], ACCEPTED[n], parse=True) for n in known}}


def _kappas(given: Any) -> str:
    """A front's kappas as text, since a list is a sweep's own: several jobs."""
    written = given.replace(",", " ").split() if isinstance(given, str) else given
    try:
        return " ".join(f"{number(kappa):.12g}" for kappa in written)
    except (TypeError, ValueError):
        raise ValueError('numbers with blanks between them, such as "0.9 0.5 0", or "" for the method\'s') from None


# What a training notebook's parameters may be, for `check_parameters`; 0, "" and {} stand for the preset's value
PARAMETERS: dict[str, Any] = {
    "dataset": str,
    "method": tuple(METHODS),
    "kappa": Within(0, 1),
    "front": bool,
    "kappas": _kappas,
    "eps_max": Within(0, 1),
    "seed": SEED,
    "model": _model_or_preset,
    "width": Within(0, kind=int),
    "epochs": Within(0, kind=int),
    "batch_size": Within(0, kind=int),
    "device": DEVICES,
    "data_root": str,
    "run_dir": str,
    "budget": BUDGETS,
    "settings": _settings,
}


def config_from_parameters(parameters: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a notebook's parameters ask for: a preset, with what is set replaced.

    ``parameters`` are as `check_parameters` returns them, of which ``dataset``, ``method``, ``budget`` and, where it is
    there, ``setting`` choose the preset; ``kappa`` and ``seed`` replace its values, and so does every other field of
    `TrainConfig` that is neither 0 nor "" nor None. Other ``epochs`` keep the preset's shares of clean epochs, ramp and
    milestones. ``settings`` are further fields by name; they replace what the preset and other ``epochs`` say. Names
    that are no field are passed over. ValueError as `preset` and `TrainConfig`.
    """
    asked = {"budget": parameters["budget"], "setting": parameters.get("setting", "")}
    config = preset(parameters["dataset"], parameters["method"], **asked)
    names = {field.name for field in fields(TrainConfig)}
    always = ("kappa", "seed")
    chosen = {n: v for n, v in parameters.items() if n in names and (n in always or v not in (0, "", None))}
    if epochs := chosen.pop("epochs", None):
        config = with_epochs(config, epochs)
    return replace(config, **chosen | check("settings", parameters.get("settings", {}), _settings))


def front_kappas(parameters: Mapping[str, Any], config: TrainConfig) -> tuple[float, ...] | None:
    """The kappas of the front that a notebook's parameters ask for; None where they ask for one network.

    ``parameters`` are as `check_parameters` returns them, ``config`` what they come to. ValueError where the method or
    the kappas make no front, or kappas are given and no front.
    """
    given = parameters.get("kappas", "")
    if not parameters.get("front"):
        return None if not given else refuse("kappas", given, '"", unless front = True')
    return checked_walk(config, [float(kappa) for kappa in given.split()] or None)


def with_epochs(config: TrainConfig, epochs: int) -> TrainConfig:
    """The same schedule, stretched or shrunk to ``epochs``."""
    clean = min(config.clean_epochs, epochs - 1)
    ramp = min(round(config.ramp_epochs * epochs / config.epochs), epochs - clean)
    milestones = tuple(max(1, round(m * epochs / config.epochs)) for m in config.milestones)
    return replace(config, epochs=epochs, clean_epochs=clean, ramp_epochs=ramp, milestones=milestones)


def default_run_dir(config: TrainConfig, root: str | Path = "", kappas: Sequence[float] | None = None) -> Path:
    """Default folder of a run, or of a front along ``kappas``: below `runs_folder`, named by settings and a hash."""
    dataset = Path(config.dataset).name
    settings = json.dumps({name: value for name, value in asdict(config).items() if name != "device"})
    key = hashlib.sha256(f"{settings}{kappas or ''}".encode()).hexdigest()[:6]
    walked = f"kappa{config.kappa:g}" if kappas is None else "front"
    name = f"{dataset}-{config.method}-{walked}-eps{config.eps_max:.4g}-seed{config.seed}-{key}"
    folder = runs_folder(root) / name  # with a colon where version 0.1.0 was given folder:NAME
    return folder if folder.is_dir() else folder.with_name(name.replace(":", "_"))  # which Windows has no files with


def config_of(settings: Mapping[str, Any]) -> TrainConfig:
    """The `TrainConfig` in a run's `config.json`, which holds more than that; ValueError where fields are missing."""
    names, settings = [field.name for field in fields(TrainConfig)], as_today(settings)
    if missing := [name for name in names if name not in settings]:
        raise ValueError(f"config: it lacks {', '.join(missing)}, so that the run cannot be repeated")
    return TrainConfig(**{name: settings[name] for name in names})


ALWAYS = ("dataset", "method", "kappa", "seed")  # parameters of notebook 02 that are told in any case
OPTIONAL = ("eps_max", "model", "width", "epochs", "batch_size")  # and those told where they are not the preset's


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
    assert config_from_parameters(chosen | {"settings": others}) == wanted
    words = [f"-p {name} {shlex.quote(str(value))}" for name, value in chosen.items()]
    if others:
        written = ", ".join(f"{n}: {v if isinstance(v, str) else json.dumps(v)}" for n, v in others.items())
        words.append(f"-y {shlex.quote(f'settings: {{{written}}}')}")
    return " ".join(["papermill notebooks/02_training.ipynb out.ipynb", *words])


def _differences(wanted: TrainConfig, chosen: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    near = config_from_parameters(chosen)
    return {name: getattr(wanted, name) for name in names if getattr(wanted, name) != getattr(near, name)}
