"""A run's folder: written atomically, read back as a table. And the parameters of a notebook, checked before it runs.

A run's folder holds `config.json`, `history.parquet` (a row an epoch), `radii.parquet` (a row a test sample),
`model.safetensors`, `checkpoint/` and, renamed into place last, `result.json`: a folder without it is unfinished.
Nothing is ever pickled.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from acertlab import metrics
from acertlab.models import MODELS

FILES = ("config.json", "history.parquet", "radii.parquet", "model.safetensors", "result.json")
RADII_COLUMNS = ("index", "label", "predicted", "radius", "upper", "status")
RESULT_KEYS = ("dataset", "method", "kappa", "eps_max", "seed", "acc", "acr", "art", "cert_acc", "verifier", "merged",
               "domain", "n", "split", "epochs", "seconds", "version", "radius_cap")  # fmt: skip


def runs_folder(given: str | Path = "") -> Path:
    """The folder that holds the runs: ``given``, else the environment's ACERTLAB_RUNS, else ``runs``."""
    return Path(given or os.environ.get("ACERTLAB_RUNS") or "runs")


@dataclass(frozen=True)
class Run:
    """One finished training run, as its folder tells it.

    Attributes:
        path: The folder.
        config: What the run was asked to do, and what it takes to rebuild the network.
        history: A row an epoch.
        radii: A row a sample: index, label, predicted, radius, upper (pixel units), status; searched up to
            `result["radius_cap"]`, so that every smaller eps_max can be analysed without another search.
        result: The numbers of the run, with what they were measured by (verifier, merged, domain, n, split).
    """

    path: Path
    config: dict[str, Any]
    history: pd.DataFrame
    radii: pd.DataFrame
    result: dict[str, Any]

    def load_model(self) -> torch.nn.Module:
        """The trained network, in evaluation mode, rebuilt from `config.json` and `model.safetensors`.

        Raises:
            FileNotFoundError: The weights are gone.
            ValueError: The configuration names an unknown network, or the weights do not fit it.
        """
        name, weights = self.config.get("model"), self.path / "model.safetensors"
        if name not in MODELS:
            raise ValueError(f"{self.path / 'config.json'}: model = {name!r} is unknown; known: {', '.join(MODELS)}")
        missing = [key for key in ("in_shape", "classes", "width", "mean", "std") if key not in self.config]
        if missing:
            raise ValueError(f"{self.path / 'config.json'} lacks {', '.join(missing)}: the network cannot be rebuilt")
        if not weights.is_file():
            raise FileNotFoundError(f"{weights} does not exist: the network cannot be rebuilt")
        model = MODELS[name](tuple(self.config["in_shape"]), self.config["classes"], width=self.config["width"],
                             mean=self.config["mean"], std=self.config["std"])  # fmt: skip
        try:
            model.load_state_dict(load_file(weights))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{weights} does not fit the {name} of config.json: {error}") from error
        return model.eval()


def load_run(path: str | Path) -> Run:
    """Reads one finished run.

    Args:
        path: The run's folder.

    Returns:
        The run; the network itself is read by `.load_model()` only.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks a file.
        ValueError: A file of it cannot be read; the message names the file.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {path}")
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        state = "is unfinished (result.json is written last)" if missing == ["result.json"] else "is not complete"
        holds = f"it lacks {', '.join(missing)}. A run's folder holds {', '.join(FILES)}"
        raise FileNotFoundError(f"the run folder {path} {state}: {holds}")
    radii = _read_parquet(path / "radii.parquet")
    absent = [name for name in RADII_COLUMNS if name not in radii]
    if absent:
        raise ValueError(f"{path / 'radii.parquet'} lacks the columns {', '.join(absent)}")
    return Run(path, read_json(path / "config.json"), _read_parquet(path / "history.parquet"), radii,
               _read_result(path / "result.json"))  # fmt: skip


def load_runs(root: str | Path) -> pd.DataFrame:
    """Every finished run below a folder, as a table; only the `result.json` files are read.

    Args:
        root: A folder that holds run folders, at any depth.

    Returns:
        A row a run, in the order of the paths: `path` (str), everything in `result.json` (`cert_acc` as a dict
        from eps to a fraction). Folders with a `config.json` and no `result.json` are unfinished runs: they are
        left out and listed in `.attrs["unfinished"]`. No finished run: an empty table with the same columns.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: `root` is itself a run's folder, or a `result.json` cannot be read; the message names it.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder of runs {root}")
    if (root / "config.json").is_file():
        raise ValueError(f"{root} is one run's folder: use load_run({str(root)!r}), or give the folder above it")
    rows, unfinished = [], []
    for folder in _run_folders(root):
        result = folder / "result.json"
        if result.is_file():
            rows.append({"path": str(folder), **_read_result(result)})
        else:
            unfinished.append(str(folder))
    table = pd.DataFrame(rows, columns=None if rows else ["path", *RESULT_KEYS])
    table.attrs["unfinished"] = unfinished
    return table


def load_radii(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """The certified radii of every run of a table, (n,) float64 in pixel units, by the run's path."""
    return {path: _read_parquet(Path(path) / "radii.parquet")["radius"].to_numpy(float) for path in runs.path}


def rescore(runs: pd.DataFrame, radii: Mapping[str, np.ndarray], eps_max: float) -> pd.DataFrame:
    """Eq. (12)-(13) at another eps_max, from the stored radii: no network is run.

    A radius found up to radius_cap and cut at eps_max is the radius of Def. 3.1 for that eps_max.

    Args:
        runs: A row a run, all trained for one eps_max.
        radii: `load_radii(runs)`.
        eps_max: The new perceptual limit, pixel units, 0 < eps_max <= radius_cap of every run.

    Returns:
        A copy of the table with this eps_max, acr and art.

    Raises:
        ValueError: eps_max is out of that range, or runs trained for several eps_max would look alike.
    """
    if runs.eps_max.nunique() > 1:
        trained = ", ".join(f"{eps:g}" for eps in sorted(runs.eps_max.unique()))
        raise ValueError(f"runs: trained for several eps_max ({trained}); choose one, as runs[runs.eps_max == ...]")
    cap = runs.radius_cap.min()
    if not 0 < eps_max <= cap:
        raise ValueError(
            f"eps_max = {eps_max!r}: accepted is > 0 and <= {cap:g}, up to where these radii were searched"
        )
    acr = [float(metrics.acr(np.minimum(radii[path], eps_max), eps_max)) for path in runs.path]
    return runs.assign(eps_max=float(eps_max), acr=acr, art=np.sqrt(runs.acc * acr))


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if "config.json" in files or "result.json" in files:
            below.clear()  # a run holds no runs
            yield Path(folder)


def read_json(path: Path) -> dict[str, Any]:
    """The table of names and values in a JSON file; ValueError, naming the file, if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a table of names and values")
    return content


def _read_result(path: Path) -> dict[str, Any]:
    result = read_json(path)
    missing = [key for key in RESULT_KEYS if key not in result]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    try:
        result["cert_acc"] = {float(eps): float(value) for eps, value in result["cert_acc"].items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cert_acc = {result['cert_acc']!r} is not a table from eps to a number") from error
    return result


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ValueError(f"{path} cannot be read as a parquet table: {error}") from error


# ---- written aside, then renamed into place: a reader sees the old file or the new one, never half of one


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; on leaving it is renamed to ``path``, or removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # same folder, hence same file system
    try:
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())  # the content is on the disk before the name is
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes a table of names and values as JSON, atomically.

    Tensors, numpy arrays and scalars become lists and numbers, paths strings; a number that JSON does not know
    (NaN, infinite) becomes null.

    Raises:
        TypeError: A value has no plain form; nothing is written.
    """
    text = json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"
    with written_aside(Path(path)) as aside:
        aside.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # torch and numpy, arrays and scalars
        return _plain(value.tolist())
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")


def write_parquet(path: str | Path, table: pd.DataFrame) -> None:
    """Writes a table as parquet, atomically."""
    with written_aside(Path(path)) as aside:
        table.to_parquet(aside, index=False)


def write_weights(path: str | Path, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Writes a network's tensors as safetensors, atomically; on whatever device they are, they are read on the CPU."""
    # copies: safetensors refuses tensors that share memory
    content = save({name: t.detach().to("cpu", copy=True).contiguous() for name, t in state_dict.items()})
    with written_aside(Path(path)) as aside:
        aside.write_bytes(content)


# ---- the parameters of a notebook


@dataclass(frozen=True)
class Within:
    """A number between two ends, both accepted unless `open_low`; text such as "8/255" is a number here.

    Attributes:
        low, high: The ends.
        kind: float or int.
        open_low: Whether `low` itself is refused.
    """

    low: float = -math.inf
    high: float = math.inf
    kind: type = float
    open_low: bool = False

    def __call__(self, value: Any) -> float | int:
        number = _number(value)
        if self.kind is int and number == int(number):
            number = int(number)
        fits = self.low < number if self.open_low else self.low <= number
        if not (fits and number <= self.high and (self.kind is float or isinstance(number, int))):
            raise ValueError(str(self))
        return number

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else 'a number (0.1 or "8/255")'
        ends = [f"{'>' if self.open_low else '>='} {self.low:g}"] if self.low > -math.inf else []
        ends += [f"<= {self.high:g}"] if self.high < math.inf else []
        return " ".join([what, " and ".join(ends)]).strip()


def _number(value: Any) -> float:
    if isinstance(value, str):
        top, _, bottom = value.partition("/")
        value = float(top) / float(bottom or 1)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value)


def check_parameters(
    namespace: Mapping[str, Any], spec: Mapping[str, type | tuple[str, ...] | Callable[[Any], Any]]
) -> dict[str, Any]:
    """The parameters of a notebook, coerced and checked: called with `globals()` right after the parameters cell.

    Papermill only logs a name that the notebook does not know and hands "8/255" over as text; here the first is an
    error, and the second is a number.

        eps_max, method, seed = al.runs.check_parameters(globals(), {
            "eps_max": Within(0, 1, open_low=True), "method": ("ibp", "acert"), "seed": int}).values()

    Args:
        namespace: The notebook's `globals()`.
        spec: From a parameter's name to what it may be: `str`, `bool`, `int` or `float`; a tuple of the words
            accepted; a `Within`; or any function that returns the coerced value or raises ValueError with what is
            accepted as its message.

    Returns:
        The values, by name, in the order of `spec`.

    Raises:
        ValueError: A parameter is missing, of the wrong kind or out of range, or papermill injected a name that is
            not in `spec`; the message names the parameter, the value and what is accepted.
    """
    for name in _injected_names(namespace):
        if name not in spec:
            close = difflib.get_close_matches(name, spec, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{name!r} is not a parameter of this notebook{hint}; accepted are {', '.join(spec)}")
    missing = [name for name in spec if name not in namespace]
    if missing:
        raise ValueError(f"the parameters cell does not set {', '.join(missing)}: run it first")
    return {name: _coerced(name, namespace[name], accepted) for name, accepted in spec.items()}


def _injected_names(namespace: Mapping[str, Any]) -> list[str]:
    """What papermill's own cell assigns. Other variables are the notebook's: its cells may be run in any order."""
    cells = [source for source in namespace.get("In", ()) if source.startswith("# Parameters")]
    targets = [target for source in cells for node in ast.parse(source).body if isinstance(node, ast.Assign)
               for target in node.targets]  # fmt: skip
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _coerced(name: str, value: Any, accepted: type | tuple[str, ...] | Callable[[Any], Any]) -> Any:
    if isinstance(accepted, tuple):
        if value in accepted:
            return value
        close = difflib.get_close_matches(str(value), accepted, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"parameter {name} = {value!r}: accepted are {', '.join(accepted)}{hint}")
    if accepted in (str, bool):
        if accepted is bool and str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        if not isinstance(value, accepted):
            wanted = "text" if accepted is str else "True or False"
            raise ValueError(f"parameter {name} = {value!r}: accepted is {wanted}")
        return value
    check = Within(kind=accepted) if accepted in (int, float) else accepted
    try:
        return check(value)
    except (ValueError, ZeroDivisionError) as error:
        wanted = str(check) if isinstance(check, Within) else str(error)
        raise ValueError(f"parameter {name} = {value!r}: accepted is {wanted}") from None
