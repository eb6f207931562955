"""Many runs as tables: their results, radii and histories."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from acertlab.data.files import read_json, read_parquet, walk
from acertlab.data.run import (
    PACKED,
    RADII_COLUMNS,
    RESULT_KEYS,
    check_radii,
    checked_result,
    packed_folder,
    read_packed,
    read_samples,
)

FRONT = " (front)"  # behind the names of methods whose fronts stand beside separate trainings
INSIDE_RUN = ("checkpoint", "certify")  # folders of a run that hold no runs


def load_runs(root: str | Path, settings: Sequence[str] = ()) -> pd.DataFrame:
    """Every finished run below a folder, as a table; their radii and histories are not read.

    Args:
        root: A folder that holds run folders or packed folders, at any depth, or is a packed folder itself.
        settings: Names of `config.json` that become columns too, such as "scheduler"; None where a run has none.

    Returns:
        A row a run, in the order of the paths: `path` (str), everything in `result.json` (`cert_acc` as a dict
        from eps to a fraction), `config`, the content of `config.json`, and `one_training`: of the networks of a front,
        which are one training together, its folder, of all others "". Folders with a run's `config.json` and no
        `result.json` are unfinished runs: they are left out and listed in `.attrs["unfinished"]`. No finished run: an
        empty table with the same columns.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: `root` is itself a run's folder, or a `result.json` cannot be read; the message names it.

    Example:
        >>> from acertlab.data.run import SHIPPED
        >>> al.load_runs(SHIPPED / "fronts").groupby("dataset").size().to_dict()
        {'cifar10': 33, 'mnist': 36}
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder of runs {root}")
    if _is_run(root, os.listdir(root)):
        raise ValueError(f"{root} is one run's folder: use load_run({str(root)!r}), or give the folder above it")
    found, unfinished = [], []  # a path, a result and a config each
    for path, below, files in walk(root):
        folder = Path(path)
        if not (PACKED in files or _is_run(folder, files)):
            continue
        below[:] = [name for name in below if name not in INSIDE_RUN]
        if PACKED in files:
            found += [(folder / name, *run) for name, run in read_packed(folder).items()]
        if "result.json" in files:
            config = read_json(folder / "config.json") if "config.json" in files else {}
            result = read_json(folder / "result.json")
            found.append((folder, checked_result(result, folder / "result.json"), config))
        elif PACKED not in files:
            unfinished.append(str(folder))
    rows = [
        {"path": ""} | {name: config.get(name) for name in settings} | result | {"config": config, "path": str(path)}
        for path, result, config in found
    ]
    table = pd.DataFrame(rows, columns=None if rows else ["path", *RESULT_KEYS, "config"])
    parents = [str(path.parent) for path, _, _ in found]  # the first network of a front began as any other training
    walked = {parent for parent, (_, _, config) in zip(parents, found, strict=True) if config.get("front")}
    table["one_training"] = [parent if parent in walked else "" for parent in parents]
    table.attrs["unfinished"] = unfinished
    return table


def load_finished(*roots: str | Path) -> pd.DataFrame:
    """`load_runs` of several folders as one table, for a command whose argument RUNS they are: at least one run.

    Fronts stand beside separate trainings as methods of their own (`fronts_apart`). FileNotFoundError, which says what
    to do, where there is no finished run in any of them.
    """
    tables = [load_runs(root) for root in roots]
    runs = pd.concat(tables)
    twice = runs.path.map(os.path.realpath).duplicated()  # a folder given twice counts once
    runs = runs.loc[~twice].reset_index(drop=True)
    unfinished = [path for table in tables for path in table.attrs["unfinished"]]
    if runs.empty:
        more = f" ({len(unfinished)} unfinished)" if unfinished else ""
        advice = "train with notebooks/02_training.ipynb or `make demo`, or give a folder of packed runs"
        raise FileNotFoundError(f"RUNS: there is no finished run below {', '.join(map(str, roots))}{more}; {advice}")
    runs = fronts_apart(runs)
    runs.attrs["unfinished"] = unfinished
    return runs


def by_sweep(runs: pd.DataFrame) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """Each dataset and eps_max of a table, and their runs."""
    for _, rows in runs.groupby(["dataset", "eps_max"]):
        yield rows["dataset"].iloc[0], rows["eps_max"].iloc[0], rows


def fronts_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs, with the methods of fronts called so ("acert (front)") where others were trained network by network."""
    if "one_training" not in runs:
        return runs
    in_front = runs.one_training != ""
    of = runs.dataset + " " + runs.method
    apart = in_front & of.isin(of[~in_front])
    return runs.assign(method=runs.method.where(~apart, runs.method + FRONT))


def load_radii(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """The certified radii of every run of a table, (n,) float64 in pixel units, by the run's path."""
    return {path: table["radius"].to_numpy(float) for path, table in load_samples(runs, ["radius"]).items()}


def load_samples(runs: pd.DataFrame, columns: Sequence[str] = RADII_COLUMNS) -> dict[str, pd.DataFrame]:
    """Columns of every run's `radii.parquet`, a row a sample, by the run's path; a packed folder is read once.

    ``runs`` needs its column `path` alone. ValueError, naming the file, where a table cannot be read, or lacks a column
    or a run.
    """
    tables = _load_tables(runs, "radii.parquet", list(columns), read_samples)
    if "radius" in columns and {"n", "radius_cap"} <= set(runs):
        for path, n, cap in zip(runs.path, runs.n, runs.radius_cap, strict=True):
            check_radii(tables[path], n, cap, path)
    return tables


def load_histories(runs: pd.DataFrame, columns: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Columns of every run's `history.parquet`, a row an epoch, by the run's path; as `load_samples`."""
    return _load_tables(runs, "history.parquet", list(columns), read_parquet)


def _load_tables(
    runs: pd.DataFrame, file: str, columns: list[str], read_packed_table: Callable[[Path, list[str]], pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    folders = {path: packed_folder(Path(path)) for path in runs.path}
    packed, empty = {}, {}
    for folder in dict.fromkeys(folder for folder in folders.values() if folder):
        everything = read_packed_table(folder / file, ["run", *columns])
        names, everything = everything["run"], everything[columns]
        empty[folder] = everything[:0]
        for name, table in everything.groupby(names, sort=False, observed=True):
            packed[str(folder / str(name))] = table.reset_index(drop=True)
    tables = {}
    for path, folder in folders.items():
        if folder is None:
            tables[path] = read_parquet(Path(path) / file, columns)
        elif path in packed or file == "history.parquet":  # an imported run has no history
            tables[path] = packed.get(path, empty[folder])
        else:
            raise ValueError(f"{folder / file} has no rows of the run {path}")
    return tables


def _is_run(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder with a `config.json` is a run's: other programs have such files, too."""
    if "config.json" not in files or "result.json" in files:
        return "result.json" in files
    try:
        return "dataset" in read_json(folder / "config.json")
    except ValueError:  # it is being written, or damaged
        return True
