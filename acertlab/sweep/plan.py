"""What a sweep is going to do, read from its file and said before anything heavy is loaded.

Dask, papermill and torch take seconds, on a busy machine many: whoever starts a sweep sees at once what it understood.
Which of its parameters are accepted, and which jobs are done, `acertlab.sweep.spec` finds out afterwards.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from acertlab._text import seconds_text
from acertlab._validation import refuse

RESERVED = ("grid", "notebook", "out")


@dataclass(frozen=True)
class Plan:
    """The jobs that a specification asks for; their parameters are not checked yet."""

    where: str  # the specification, as messages name it
    notebook: Path | None  # which is executed; None: this project's 02_training.ipynb
    out: Path  # the sweep's folder
    jobs: tuple[dict[str, Any], ...]  # the parameters of each, in the order of the specification

    def sentence(self) -> str:
        """How many jobs, of what, where; and how long, as far as the folder's finished jobs tell."""
        name = self.notebook.name if self.notebook else "02_training.ipynb"
        said = f"{self.where}: {len(self.jobs)} jobs of {name}, in {self.out}"
        seconds = _seconds_of_finished(self.out)
        if not seconds:
            return f"{said}, none of them done"
        mean, left = sum(seconds) / len(seconds), max(0, len(self.jobs) - len(seconds))
        said += f", where {len(seconds)} are done, in {seconds_text(mean)} each"
        said += f"; for {left} more that makes {seconds_text(mean * left)}, shared by the workers" if left else ""
        return said


def read_plan(spec: str | Path | Mapping[str, Any], out: str | Path = "", show: bool = False) -> Plan:
    """The jobs that a YAML file (or its content) asks for, see `acertlab.sweep.spec`; nothing is written.

    ``out`` stands instead of the specification's own folder; ``show`` prints the plan's sentence.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no YAML, or no table of names and values.
    """
    from_file = not isinstance(spec, Mapping)
    content = _read_yaml(Path(spec)) if from_file else dict(spec)
    where, path = (str(spec), Path(spec)) if from_file else ("the specification", Path("sweep"))
    try:
        _check_texts(content)
        jobs = tuple(job for grid in _grids(content) for job in _expanded(content, grid))
    except (ValueError, TypeError) as error:
        raise type(error)(f"{where}: {error}") from None
    notebook = (path.parent / content["notebook"]).resolve() if "notebook" in content else None
    folder = Path(out or content.get("out") or Path(os.environ.get("ACERTLAB_RUNS") or "runs") / path.stem).absolute()
    plan = Plan(where, notebook, folder, jobs)
    if show:
        print(f"{plan.sentence()}; checking each ...", flush=True)
    return plan


def _seconds_of_finished(out: Path) -> list[float]:
    """Training and test of each job in the folder that has a result, whatever sweep asked for it."""
    found = []
    for path in (*out.glob("cells/*/result.json"), *out.glob("cells/*/front.json")):
        with suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
            result = json.loads(path.read_text(encoding="utf-8"))
            parts = result["networks"] if path.name == "front.json" else [result]  # which it has once it is done
            found.append(sum(float(part.get("seconds", 0)) + float(part.get("test_seconds", 0)) for part in parts))
    return found


class _Loader(yaml.SafeLoader):
    """A name given twice is an error, not the last of the two."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
    twice = [str(name) for name, count in Counter(map(str, names)).items() if count > 1]
    if twice:
        raise ValueError(f"line {node.start_mark.line + 1} and below: {', '.join(twice)} is given twice")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no specification {path}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a table of names and values is needed, it holds {type(content).__name__}")
    return content


def _check_texts(content: Mapping[str, Any]) -> None:
    for name in ("notebook", "out"):
        if not isinstance(content.get(name, ""), (str, Path)):
            refuse(name, content[name], "a path")
    for name in itertools.chain(content, *(grid for grid in _grids(content))):
        if not isinstance(name, str):
            raise ValueError(f"the name {name!r} is a {type(name).__name__}; accepted are names of parameters")


def _grids(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    grids = content.get("grid", {})
    grids = grids if isinstance(grids, list) else [grids]
    if not grids or not all(isinstance(grid, Mapping) for grid in grids):
        refuse("grid", content["grid"], "a table from parameters to lists of values, or a list of such tables")
    return grids


def _expanded(content: Mapping[str, Any], grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the values; the parameter that is named last varies fastest."""
    axes = {name: value for name, value in content.items() if name not in RESERVED} | dict(grid)
    for name, values in axes.items():
        plain = values if isinstance(values, list) else [values]
        kinds = (str, int, float, bool, dict) if name == "settings" else (str, int, float, bool)
        if not plain or not all(isinstance(value, kinds) for value in plain):
            refuse(name, values, "a text, a number, true, false, or a list of such")
    listed = [values if isinstance(values, list) else [values] for values in axes.values()]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*listed)]
