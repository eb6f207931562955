"""What a sweep is to do, read from YAML and checked as a whole before anything starts.

    dataset: mnist            # parameters of the notebook: of all jobs,
    budget: fast
    grid:                     # or of a grid: every combination of the listed values; several grids make a list
      - {method: fast-ibp, kappa: [0, 0.8, 0.95], seed: [0, 1, 2]}
      - {method: acert, kappa: [0, 0.25, 0.5], seed: [0, 1, 2], eps_max: [0.1, 8/255]}

A grid with `front: true` has one job a front, for one training along kappa: `{method: acert, front: true, seed: [0]}`;
kappas other than the method's own are `kappas: "0.9 0.5 0"`.

What is no parameter of 02 goes into its `settings`: `settings: [{}, {ramp_epochs: 4}, {scheduler: step, lr: 5e-4}]`.

Three names are not parameters: `grid`, `notebook` (relative to the file; default: this project's 02_training.ipynb)
and `out` (relative to where you are; default: a folder named like the file, in ACERTLAB_RUNS or runs). A notebook of
your own needs a `parameters` cell with `run_dir`, the folder into which its last cell writes `result.json`
(`acertlab.data.files.write_json`).

A job is known by what it computes: its parameters (of a training: the configuration that they come to, however they
are written), the notebook's other code, and the package's version. A notebook that was edited is another one.
"""

import ast
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nbformat

import acertlab
from acertlab._text import short
from acertlab._validation import did_you_mean, tidy
from acertlab.sweep.job import Job
from acertlab.sweep.plan import Plan, read_plan

OF_FRONTS = ("front", "kappas")  # parameters of 02 that say nothing of one network
NOT_KEYED = ("run_dir", "data_root")  # where things are on a machine, not what is computed
# One thread of arithmetic a job: jobs run side by side, and results depend on the number of threads, bit for bit.
# Freed memory is kept for the next step: Dask has its workers' children return every 64 kB at once, which made an epoch
# of a small CNN take twice as long (half of it in the operating system).
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYDEVD_DISABLE_FILE_VALIDATION"), "1")
ENVIRONMENT |= dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), "1000000000")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """All jobs of a sweep, checked."""

    out: Path  # holds `cells/NAME` for every job
    jobs: tuple[Job, ...]  # in the order of the specification
    varied: tuple[str, ...]  # the parameters that differ, and the method, kappa and seed where there are such


def read_spec(spec: str | Path | Mapping[str, Any] | Plan, *, out: str | Path = "", show: bool = False) -> Sweep:
    """The sweep that a YAML file (or its content) describes, or what `read_plan` has read already; nothing is written.

    ``out`` stands instead of the specification's own folder; ``show``: say what is wanted, before torch is loaded.

    Raises:
        FileNotFoundError: there is no such file or notebook.
        ValueError: the file is no YAML, or a name or value in it is not accepted; the message names the job,
            the parameter, the value and what is accepted.
    """
    plan = spec if isinstance(spec, Plan) else read_plan(spec, out, show)
    try:
        if (notebook := plan.notebook) is None:
            from acertlab.data.files import shipped  # with pandas: where it is needed only

            notebook = shipped("notebooks/02_training.ipynb")
        if not notebook.is_file():
            raise FileNotFoundError(f"notebook: {notebook} is not there")
        defaults, code = _read_notebook(notebook)
        return _sweep(plan.out, notebook, code, [_checked(job, defaults, notebook) for job in plan.jobs])
    except (ValueError, TypeError, FileNotFoundError) as error:
        raise type(error)(f"{plan.where}: {error}") from None


def is_training(parameters: Mapping[str, Any]) -> bool:
    """Whether a notebook with these parameters trains as 02 does, so that `TrainConfig` judges them."""
    return {"dataset", "method", "kappa", "seed", "budget"} <= set(parameters)


def describe(parameters: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Some parameters of a job in a line: `acert kappa=0.5 seed=1`."""
    values = {name: parameters[name] for name in names if name in parameters}
    return " ".join(short(v) if isinstance(v, (str, dict)) and v else f"{k}={short(v)}" for k, v in values.items())


# ---- the parameters of the notebook
def _read_notebook(notebook: Path) -> tuple[dict[str, Any], str]:
    """The names and default values of the notebook's parameters cell, and the code of its other cells."""
    try:
        cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    except (OSError, ValueError, AttributeError, KeyError, nbformat.ValidationError) as error:
        raise ValueError(f"notebook: {notebook} cannot be read as a notebook: {error}") from None
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())][:1]
    found = {}
    try:
        for node in ast.parse("".join(cell.source for cell in tagged)).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if value := getattr(node, "value", None):
                found |= {t.id: ast.literal_eval(value) for t in targets if isinstance(t, ast.Name)}
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"notebook: the parameters of {notebook} must be plain values: {error}") from None
    if "run_dir" not in found:
        where = "in a cell tagged parameters, the folder that takes its result.json"
        raise ValueError(f"notebook: {notebook} has no parameter run_dir {where}")
    return found, "\n".join(cell.source for cell in cells if cell not in tagged)


def _checked(job: Mapping[str, Any], defaults: Mapping[str, Any], notebook: Path) -> dict[str, Any]:
    """All parameters of the job, coerced where it is a training notebook's."""
    for name in job:
        if name not in defaults or name == "run_dir":
            hint = did_you_mean(name, defaults)
            others = ", ".join(n for n in defaults if n != "run_dir")
            others += "; all else of TrainConfig as settings: {NAME: VALUE}" if "settings" in defaults else ""
            raise ValueError(f"{name!r} is not a parameter that can be swept{hint}; {notebook.name} has {others}")
    parameters = {**defaults, **job}
    try:
        checked = _check_training(parameters) if is_training(parameters) else parameters
    except (ValueError, TypeError) as error:
        raise ValueError(f"job {describe(job, tuple(job))}: {error}") from None
    return {name: value for name, value in checked.items() if name != "run_dir"}


def _check_training(parameters: Mapping[str, Any]) -> dict[str, Any]:
    # loads torch: where it is needed only
    from acertlab.training.parameters import PARAMETERS, check_parameters, config_from_parameters, front_kappas

    known = {name: accepted for name, accepted in PARAMETERS.items() if name in parameters}
    checked = dict(parameters) | check_parameters(parameters, known)
    config = config_from_parameters(checked)
    if kappas := front_kappas(checked, config):  # kappa says nothing then: else several jobs would be alike
        return checked | {"kappa": kappas[0], "kappas": " ".join(f"{kappa:.12g}" for kappa in kappas)}
    return checked | {"kappa": config.kappa}  # 1 for standard training, whatever is asked: likewise


def _computed(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a job computes, however its parameters are written; not where things are on a machine."""
    named = {name: tidy(value) for name, value in parameters.items() if name not in NOT_KEYED}
    if not is_training(parameters):
        return named
    from acertlab.training.parameters import config_from_parameters, front_kappas

    config = config_from_parameters(parameters)
    kappas = front_kappas(parameters, config)
    told = {name: value for name, value in named.items() if name not in ("budget", "settings", *OF_FRONTS)}
    return told | asdict(config) | ({"kappas": kappas} if kappas else {})


# ---- jobs
def _sweep(out: Path, notebook: Path, code: str, given: list[dict[str, Any]]) -> Sweep:
    names = list(given[0])
    always = {"method", "kappa", "seed"} | ({"front"} if any(job.get("front") for job in given) else set())
    varied = tuple(n for n in names if n in always or len({repr(job[n]) for job in given}) > 1)
    shown = tuple(name for name in names if name in varied or name == "dataset")
    jobs, earlier = {}, 0
    environment = ENVIRONMENT | {n: os.path.abspath(os.environ[n]) for n in ("ACERTLAB_DATA",) if n in os.environ}
    for parameters in given:
        label = re.sub(r"[^\w.-]+", "_", "-".join(_label(name, parameters[name]) for name in shown))[:80]
        name = _name(label, [notebook.stem, code, acertlab.__version__, _computed(parameters)])
        if name in jobs:
            raise ValueError(f"the job {describe(parameters, shown)} is there twice")
        folder = out / "cells" / name
        before = out / "cells" / _earlier_name(label, notebook, parameters)
        if before.is_dir() and not folder.exists() and _began_this(before, parameters):
            folder, earlier = before, earlier + 1
        jobs[name] = Job(folder.name, parameters, folder, notebook, environment, Path.cwd())
    if earlier:
        what = "begun by version 0.1.0, which did not note a notebook's code: taken for this"
        log.warning("%s: %d jobs were %s %s's", out, earlier, what, notebook.name)
    return Sweep(out, tuple(jobs.values()), varied)


def _name(label: str, key: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
    return "-".join(filter(None, (label, digest)))


def _earlier_name(label: str, notebook: Path, parameters: Mapping[str, Any]) -> str:
    """The name by which version 0.1.0 knew a job, of whose settings it had not all."""
    from acertlab.data.run import defaults_before

    new = defaults_before(parameters)
    settings = {name: value for name, value in parameters.get("settings", {}).items() if name not in new}
    keyed = {name: value for name, value in parameters.items() if name not in (*NOT_KEYED, "settings", *OF_FRONTS)}
    return _name(label, [notebook.stem, "0.1.0", keyed | ({"settings": settings} if settings else {})])


def _began_this(folder: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether a training that was begun there is the one asked for: presets and defaults have changed since."""
    if parameters.get("front"):
        return False  # that version had none
    if not is_training(parameters) or not (folder / "config.json").is_file():
        return True
    from acertlab.data.files import read_json
    from acertlab.training.parameters import config_from_parameters, config_of

    began, asked = config_of(read_json(folder / "config.json")), config_from_parameters(parameters)
    return replace(began, device=asked.device) == asked


def _label(name: str, value: Any) -> str:
    return Path(value).name if isinstance(value, str) and value else f"{name}{short(value)}"
