"""Run folders and packed runs, read back as tables.

A run's folder holds `config.json`, `history.parquet` (a row an epoch), `radii.parquet` (a row a test sample),
`model.safetensors`, `checkpoint/` and, renamed into place last, `result.json`: a folder without it is unfinished.
Nothing is ever pickled.

Many runs without their weights go into one packed folder (`acertlab.pack` writes it): `packed.json` (each run's
result and config), `radii.parquet` and `history.parquet` (as in a run's folder, with a column `run`). The path of a
packed run is the packed folder and its name below it, as if it were a folder there; every function takes both kinds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from acertlab import metrics
from acertlab.files import read_json, read_parquet
from acertlab.files import write_json as write_json  # what writes a run's folder is had from here, too
from acertlab.files import write_parquet as write_parquet
from acertlab.files import write_weights as write_weights
from acertlab.files import written_aside as written_aside
from acertlab.models import MODELS

FILES = ("config.json", "history.parquet", "radii.parquet", "model.safetensors", "result.json")
RADII_COLUMNS = ("index", "label", "predicted", "radius", "upper", "status")
RESULT_KEYS = ("dataset", "method", "kappa", "eps_max", "seed", "acc", "acr", "art", "cert_acc", "verifier", "merged",
               "domain", "n", "split", "epochs", "seconds", "version", "radius_cap")  # fmt: skip
EXTERNAL = "external"  # config["model"] of an imported network that is none of MODELS
PACKED = "packed.json"  # a folder with this file holds packed runs
SHIPPED = Path(__file__).resolve().parent.parent / "data" / "results"  # the packed runs that come with a clone


def runs_folder(given: str | Path = "") -> Path:
    """The folder that holds the runs: ``given``, else the environment's ACERTLAB_RUNS, else ``runs``."""
    return Path(given or os.environ.get("ACERTLAB_RUNS") or "runs")


def runs_beside(what: str, given: str | Path = "") -> Path:
    """``given``, else a folder beside `runs_folder`, for runs that are not to be pooled with those: runs-WHAT."""
    beside = runs_folder().absolute()
    return Path(given or beside.with_name(f"{beside.name}-{what}"))


@dataclass(frozen=True)
class Run:
    """One finished training run, as its folder tells it, or the packed folder that holds it.

    Attributes:
        path: The folder; of a packed run, the packed folder and the run's name.
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
            FileNotFoundError: The weights are gone, or were never there: runs are packed without them.
            ValueError: The configuration names an unknown network, or the weights do not fit it.
        """
        name, weights = self.config.get("model"), self.path / "model.safetensors"
        if name == EXTERNAL:
            raise ValueError(f"{self.path} is an imported network, none of {', '.join(MODELS)}: load it as before, or "
                             "fill its own architecture from model.safetensors by acertlab.load_weights")  # fmt: skip
        if name not in MODELS:
            raise ValueError(f"{self.path / 'config.json'}: model = {name!r} is unknown; known: {', '.join(MODELS)}")
        missing = [key for key in ("in_shape", "classes", "width", "mean", "std") if key not in self.config]
        if missing:
            raise ValueError(f"{self.path / 'config.json'} lacks {', '.join(missing)}: the network cannot be rebuilt")
        if not weights.is_file():
            why = "; packed runs come without weights: train it anew by its config" if _packed(self.path) else ""
            raise FileNotFoundError(f"{weights} does not exist: the network cannot be rebuilt{why}")
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
        path: The run's folder, or a packed run's path as `load_runs` tells it.

    Returns:
        The run; the network itself is read by `.load_model()` only.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks a file.
        ValueError: A file of it cannot be read; the message names the file.
    """
    path = Path(path)
    if packed := _packed(path):
        return _load_packed_run(packed, path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {path}")
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        state = "is unfinished (result.json is written last)" if missing == ["result.json"] else "is not complete"
        holds = f"it lacks {', '.join(missing)}. A run's folder holds {', '.join(FILES)}"
        raise FileNotFoundError(f"the run folder {path} {state}: {holds}")
    radii = _checked_radii(read_parquet(path / "radii.parquet"), path / "radii.parquet")
    return Run(path, read_json(path / "config.json"), read_parquet(path / "history.parquet"), radii,
               _read_result(path / "result.json"))  # fmt: skip


def load_runs(root: str | Path, settings: Sequence[str] = ()) -> pd.DataFrame:
    """Every finished run below a folder, as a table; only `result.json` and `packed.json` files are read.

    Args:
        root: A folder that holds run folders or packed folders, at any depth, or is a packed folder itself.
        settings: Names of `config.json` that become columns too, such as "scheduler"; None where a run has none.

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
    for folder, files in _run_folders(root):
        if PACKED in files:
            rows += [{"path": str(folder / name), **{s: config.get(s) for s in settings}, **result}
                     for name, (result, config) in _read_packed(folder).items()]  # fmt: skip
        elif "result.json" in files:
            config = read_json(folder / "config.json") if settings else {}
            chosen = {name: config.get(name) for name in settings}
            rows.append({"path": str(folder), **chosen, **_read_result(folder / "result.json")})
        else:
            unfinished.append(str(folder))
    table = pd.DataFrame(rows, columns=None if rows else ["path", *RESULT_KEYS])
    table.attrs["unfinished"] = unfinished
    return table


def load_finished(*roots: str | Path) -> pd.DataFrame:
    """`load_runs` of several folders as one table, for a command whose argument RUNS they are: at least one run.

    Raises:
        FileNotFoundError: There is no such folder, or no finished run in any of them; the message says what to do.
        ValueError: As `load_runs`.
    """
    tables = [load_runs(root) for root in roots]
    runs = pd.concat(tables, ignore_index=True)
    runs.attrs["unfinished"] = unfinished = [path for table in tables for path in table.attrs["unfinished"]]
    if runs.empty:
        more = f" ({len(unfinished)} unfinished)" if unfinished else ""
        raise FileNotFoundError(
            f"RUNS: there is no finished run below {', '.join(map(str, roots))}{more}; train with "
            "notebooks/02_training.ipynb or `make demo`, or give a folder of packed runs"
        )
    return runs


def load_radii(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """The certified radii of every run of a table, (n,) float64 in pixel units, by the run's path."""
    return {path: table["radius"].to_numpy(float) for path, table in load_samples(runs, ["radius"]).items()}


def load_samples(runs: pd.DataFrame, columns: Sequence[str] = RADII_COLUMNS) -> dict[str, pd.DataFrame]:
    """Columns of every run's `radii.parquet`, a row a sample, by the run's path; a packed folder is read once.

    Args:
        runs: A table with the column `path`, as `load_runs` gives it.
        columns: Which, of `RADII_COLUMNS` and whatever else is there.

    Raises:
        ValueError: A table cannot be read, or lacks a column or a run; the message names the file.
    """
    return _load_tables(runs, "radii.parquet", list(columns))


def load_histories(runs: pd.DataFrame, columns: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Columns of every run's `history.parquet`, a row an epoch, by the run's path; as `load_samples`."""
    return _load_tables(runs, "history.parquet", list(columns))


def _load_tables(runs: pd.DataFrame, file: str, columns: list[str]) -> dict[str, pd.DataFrame]:
    tables = {}
    for packed in dict.fromkeys(map(_packed, map(Path, runs.path))):
        if packed is not None:
            everything = read_parquet(packed / file, ["run", *columns])
            for name, table in everything.groupby("run", sort=False, observed=True):
                tables[str(packed / name)] = table[columns].reset_index(drop=True)
    for path in runs.path:
        if path not in tables:
            packed = _packed(Path(path))
            if packed and file != "history.parquet":  # an imported run has no history
                raise ValueError(f"{packed / file} has no rows of the run {path}")
            tables[path] = (
                read_parquet(packed / file, columns)[:0] if packed else read_parquet(Path(path) / file, columns)
            )
    return {path: tables[path] for path in runs.path}


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


def _run_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folders that hold a run or packed runs, each with the names of its files."""
    for folder, below, files in os.walk(root):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if not {"config.json", "result.json", PACKED}.isdisjoint(files):
            below.clear()  # a run holds no runs
            yield Path(folder), files


def _read_result(path: Path) -> dict[str, Any]:
    return _checked_result(read_json(path), str(path))


def _checked_result(result: dict[str, Any], where: str) -> dict[str, Any]:
    missing = [key for key in RESULT_KEYS if key not in result]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    try:
        cert_acc = {float(eps): float(value) for eps, value in result["cert_acc"].items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: cert_acc = {result['cert_acc']!r} is not a table from eps to a number") from error
    return result | {"cert_acc": cert_acc}


def _checked_radii(radii: pd.DataFrame, where: Path) -> pd.DataFrame:
    absent = [name for name in RADII_COLUMNS if name not in radii]
    if absent:
        raise ValueError(f"{where} lacks the columns {', '.join(absent)}")
    return radii


# ---- packed runs


def _packed(path: Path) -> Path | None:
    """The packed folder that a run's path goes through; None for a run's own folder."""
    if (path / "result.json").is_file():
        return None
    return next((folder for folder in path.parents if (folder / PACKED).is_file()), None)


def _read_packed(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Each packed run's (result, config) by its name."""
    file = folder / PACKED
    held = read_json(file).get("runs")
    if not isinstance(held, dict) or not all(isinstance(run, dict) and {"result", "config"} <= run.keys()
                                             for run in held.values()):  # fmt: skip
        raise ValueError(f"{file} holds no table `runs` from a name to a result and a config")
    return {name: (_checked_result(run["result"], f"{file}: {name}"), run["config"]) for name, run in held.items()}


def _load_packed_run(folder: Path, path: Path) -> Run:
    held, name = _read_packed(folder), path.relative_to(folder).as_posix()
    if name not in held:
        raise FileNotFoundError(f"{folder / PACKED} holds no run {name!r}; it holds {', '.join(held)}")
    result, config = held[name]
    radii, history = (
        read_parquet(folder / file, filters=[("run", "==", name)]).drop(columns="run")
        for file in ("radii.parquet", "history.parquet")
    )
    return Run(path, config, history, _checked_radii(radii, folder / "radii.parquet"), result)
