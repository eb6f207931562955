"""Many run folders into one packed folder of a few megabytes: `acertlab pack RUNS OUT`, with `--weights` or without.

    OUT/packed.json      {"runs": {name: {"result": result.json, "config": config.json}}, "version", "dtype"}; what a
                         run does not say there is as in "default", another such pair
    OUT/radii.parquet    run, index, label, radius, status (and what else the runs' tables have); in place of `upper`
                         and `predicted` how many floats it is above `radius`, and how much larger than `label`
    OUT/history.parquet  run, epoch, ...: a row an epoch
    OUT/weights.safetensors  RUN/TENSOR: the networks, where they were asked for
    OUT/<spec>           the file that says how the runs were made, as it is

A run's name is its path below RUNS. Nothing is rounded: radii that were found in float32 are float32 here. `load_runs`,
`load_run`, `load_radii` and `load_samples` read a packed folder as they read run folders, `upper` too.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from acertlab.data.files import read_json, write_json, write_parquet, write_weights, written_aside
from acertlab.data.run import (
    FILES,
    FLOATS_TO_UPPER,
    FRONT_FILES,
    LABEL_TO_PREDICTED,
    PACKED,
    RADII_COLUMNS,
    WEIGHTS,
    load_run,
)
from acertlab.data.run_table import load_runs


def pack_runs(
    root: str | Path, out: str | Path, spec: str | Path | None = None, progress: bool = False, weights: bool = False
) -> Path:
    """Write every finished run below the folder ``root`` into one packed folder ``out``, made or replaced.

    ``spec`` is a file that says how the runs were made, copied beside them. With ``weights`` go the networks; where
    ``root`` is the folder of a front, `load_front` then reads ``out`` as well.

    Raises:
        FileNotFoundError: There is no such folder or spec.
        ValueError: No finished run; one that is packed already; `out` lies in `root` or holds other things; the
            spec's name is one that a packed folder needs.
    """
    root, out, spec = Path(root), Path(out), Path(spec) if spec else None
    table = load_runs(root)
    _check(table, root, out, spec)
    held, radii, histories, networks = {}, [], [], {}
    for path in tqdm(table.path, "pack", unit="run", disable=not progress):
        run, name = load_run(path), Path(path).relative_to(root).as_posix()
        held[name] = read_json(run.path / "result.json"), run.config
        radii.append(run.radii.assign(run=name))
        histories.append(run.history.assign(run=name))
        if weights and not run.result.get("interpolated"):  # those between the knots of a front follow from them
            networks[name] = run.load_model().state_dict()
    samples = pd.concat(radii, ignore_index=True)
    first = ["run", *RADII_COLUMNS]
    samples = samples.reindex(columns=[*first, *(name for name in samples if name not in first)])
    (out / PACKED).unlink(missing_ok=True)  # written last: a folder half replaced is no packed folder
    write_samples(out / "radii.parquet", samples, list(held))
    write_parquet(out / "history.parquet", pd.concat(histories, ignore_index=True))
    if weights:
        write_weights(out / WEIGHTS, {f"{n}/{t}": v for n, of in networks.items() for t, v in of.items()})
        for file in filter(Path.is_file, (root / name for name in FRONT_FILES)):
            shutil.copyfile(file, out / file.name)
    if spec and spec.resolve() != (out / spec.name).resolve():
        shutil.copyfile(spec, out / spec.name)
    precision = {name: str(samples[name].dtype) for name in ("radius", "upper")}
    write_packed(out / PACKED, held, {"version": version("acertlab"), "dtype": precision})
    return out


def _check(table: pd.DataFrame, root: Path, out: Path, spec: Path | None) -> None:
    if table.empty:
        raise ValueError(f"root: there is no finished run below {root}")
    if packed := [path for path in table.path if not Path(path).is_dir()]:
        raise ValueError(f"root: {packed[0]} is packed already; give the folders of the runs themselves")
    if out.resolve() == root.resolve() or out.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"out: {out} lies in {root}, where it would be read along with the runs; give another folder")
    ours = {"radii.parquet", "history.parquet", WEIGHTS, *FRONT_FILES, *([spec.name] if spec else [])}
    others = (file for file in (out.iterdir() if out.is_dir() else ()) if file.name not in ours)
    if not (out / PACKED).is_file() and any(not (file.name[0] == "." and file.suffix == ".tmp") for file in others):
        raise ValueError(f"out: {out} holds other things; give a new folder, or one that holds a {PACKED}")
    if spec and not spec.is_file():
        raise FileNotFoundError(f"spec: there is no file {spec}")
    if spec and spec.name in (*FILES, PACKED):
        raise ValueError(f"spec: {spec} has a name that a packed folder needs for itself; rename it")


def write_packed(
    path: Path, runs: Mapping[str, tuple[dict[str, Any], dict[str, Any]]], told: Mapping[str, Any]
) -> None:
    """``told``, and each run's (result, config), as `read_packed` tells them, where they differ from the first run's.

    That takes a third of their size.
    """
    default, own = {}, {name: {} for name in runs}
    for part, of_all in zip(("result", "config"), zip(*runs.values(), strict=True), strict=True):
        first, *others = of_all
        default[part] = {n: value for n, value in first.items() if all(n in other for other in others)}
        text = {n: json.dumps(value) for n, value in default[part].items()}  # in which 0 is not False
        for name, of in zip(runs, of_all, strict=True):
            own[name][part] = {n: value for n, value in of.items() if text.get(n) != json.dumps(value)}
    write_json(path, {**told, "default": default, "runs": own})


def write_samples(path: Path, samples: pd.DataFrame, runs: Sequence[str]) -> None:
    """A row group a run, so that one run is read without the others; floats split into bytes, which compresses."""
    radius, upper = np.ascontiguousarray(samples[["radius", "upper"]].to_numpy().T)
    bits = f"i{radius.itemsize}"  # of floats >= 0: in the order of the floats, so that they can be counted
    between = upper.view(bits).astype(np.int64) - radius.view(bits)
    samples = samples.assign(**{LABEL_TO_PREDICTED: samples["predicted"] - samples["label"], FLOATS_TO_UPPER: between})
    samples = samples.drop(columns=["upper", "predicted"]).assign(radius=radius)
    counts = ("index", FLOATS_TO_UPPER)
    floats = samples.select_dtypes("float").columns.tolist()
    schema = pa.Schema.from_pandas(samples, preserve_index=False)
    settings: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 19,
        "use_dictionary": [name for name in samples if name not in (*floats, *counts)],
        "column_encoding": dict.fromkeys(counts, "DELTA_BINARY_PACKED") | dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
    }
    with written_aside(path) as aside, pq.ParquetWriter(aside, schema, **settings) as writer:
        for _, rows in samples.groupby(pd.Categorical(samples["run"], runs), sort=False, observed=True):
            writer.write_table(pa.Table.from_pandas(rows, schema=schema, preserve_index=False))
