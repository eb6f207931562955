"""The first minute on a GPU: `acertlab gpu-check OUT` tells in eight minutes what holds there and what a step takes.

Each step writes OUT/N-NAME.json, a row of its findings after the other, so that a cut-off loses nothing: the same
command goes on with what is missing, and takes a step that failed again. Beside torch it needs numpy, scipy, pandas and
tqdm, and one file of images and a network, which `acertlab gpu-check --pack FILE` writes from the datasets of
ACERTLAB_DATA.
"""

import json
import time
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from acertlab._text import seconds_text
from acertlab.data.datasets import DATASETS, ImageData, load_dataset
from acertlab.data.files import read_json, write_json, written_aside
from acertlab.training.cost.gpu_steps import METHODS, STEPS, Check, Row, device_name, row

LARGEST = 9_000, 1_000, 2_000  # packed images of CIFAR-10: with MNIST's test part below 40 MB


def gpu_check(out: Path, images: Path | None = None, small: bool = False) -> int:
    """Takes the steps that are not yet in ``out`` and prints what was found; 1 if something failed, else 0.

    Args:
        out: a folder, made where there is none.
        images: what `pack` wrote; None: the digits, for a small check.
        small: narrow networks and few images, seconds on a CPU.

    Raises:
        ValueError: ``out`` holds the steps of another device or size, or ``images`` is not what `pack` wrote.
        FileNotFoundError: there are no images for a check that is not small.
    """
    check = _prepared(out, images, small)
    rows = [found for i, name in enumerate(STEPS, 1) for found in _findings(check, name, out / f"{i}-{name}.json")]
    print(f"\n{in_words(rows)}")
    return int(any(found["verdict"] == "failed" for found in rows))


def _findings(check: Check, name: str, path: Path) -> list[Row]:
    """What a step finds, or has found: one that came to its end is not taken again, one that failed is."""
    told = read_json(path) if path.is_file() else {"rows": []}
    rows: list[Row] = told["rows"]
    if "seconds" in told:
        return rows
    (limit, step), started = STEPS[name], time.perf_counter()
    check.deadline, check.known = started + limit, {known["what"] for known in rows}
    print(f"{name}, at most {seconds_text(limit)} ...", flush=True)
    try:
        for found in step(check):
            if found["what"] not in check.known:
                rows.append(found)
                write_json(path, {"rows": rows})
                print(f"  {found['verdict']}: {found['what']}: {found['said']}", flush=True)
    except Exception as error:  # one step's end is not the others'
        failed = row(name, False, f"{type(error).__name__}: {error}".partition("\n")[0])
        print(f"  failed: {failed['said']}", flush=True)
        write_json(path, {"rows": rows, "failed": failed})
        return [*rows, failed]
    write_json(path, {"rows": rows, "seconds": time.perf_counter() - started})
    return rows


def in_words(rows: list[Row]) -> str:
    """What passed, what failed, what was slower than calculated, and which lines decide on torch.compile and graphs."""
    by = {verdict: [r for r in rows if r["verdict"] == verdict] for verdict in ("passed", "failed", "not done")}
    lines = [f"passed: {len(by['passed'])}", f"failed: {len(by['failed'])}"]
    lines += [f"  {r['what']}: {r['said']}" for r in by["failed"]]
    lines += ["not done:"] * bool(by["not done"]) + [f"  {r['what']}: {r['said']}" for r in by["not done"]]
    for name in METHODS:
        times = [r["seconds"] / r["least"] for r in rows if r["what"].startswith(f"{name}, ") and "seconds" in r]
        if times:
            lines.append(f"slower than calculated: {name}, {min(times):.2g} to {max(times):.2g} times")
    return "\n".join([*lines, *(f"decides: {r['what']}: {r['said']}" for r in rows if "decides" in r)])


def _prepared(out: Path, images: Path | None, small: bool) -> Check:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if images is None and not small:
        raise FileNotFoundError("images: give the file that acertlab gpu-check --pack FILE wrote, or --small")
    if images is None:
        data = load_dataset("digits")
        test: tuple[Tensor, Tensor] = data.test_x, data.test_y
        net: Row = {"model": "small_cnn", "width": 4, "cap": 0.25, "state": None, "radii": None}
    else:
        data, test, net = _read_pack(images)
    if small:
        data, test = data.first(150), (test[0][:150], test[1][:150])
        net |= {"radii": net["radii"] if net["radii"] is None else net["radii"][:150]}
    out.mkdir(parents=True, exist_ok=True)
    begun_by = read_json(out / "1-versions.json")["rows"] if (out / "1-versions.json").is_file() else []
    for name, now in {"device": device_name(device), "small": small}.items():
        if begun_by and begun_by[0][name] != now:
            raise ValueError(f"OUT: {out} was begun with {name} = {begun_by[0][name]!r}, not {now!r}; give another one")
    return Check(out, small, device, test, data, net)


# ---- the packed file
def pack(file: Path) -> int:
    """Writes MNIST's test part, images of CIFAR-10 and a trained network into one file; returns its bytes."""
    from acertlab.data.run import SHIPPED_FRONTS, load_run
    from acertlab.data.run_table import load_runs

    runs = load_runs(SHIPPED_FRONTS / "mnist-acert")
    run = load_run(runs.path[runs.kappa.argmin()])
    told = {name: run.config[name] for name in ("model", "width")} | {"cap": run.result["radius_cap"]}
    test, data = load_dataset("mnist"), load_dataset("cifar10")
    arrays = {"mnist_x": test.test_x, "mnist_y": test.test_y, "radii": run.radii.radius, "told": json.dumps(told)}
    for part, n in zip(("train", "val", "test"), LARGEST, strict=True):
        arrays |= {f"{part}_{of}": getattr(data, f"{part}_{of}")[:n] for of in "xy"}
    arrays |= {f"net.{name}": value for name, value in run.load_model().state_dict().items()}
    with written_aside(file) as aside, open(aside, "wb") as target:
        np.savez_compressed(target, allow_pickle=False, **{name: np.asarray(a) for name, a in arrays.items()})
    return file.stat().st_size


def _read_pack(file: Path) -> tuple[ImageData, tuple[Tensor, Tensor], Row]:
    try:
        with np.load(file) as held:
            arrays = {name: held[name] for name in held.files}
        of = {n: torch.from_numpy(a) for n, a in arrays.items() if n not in ("told", "radii")}
        parts = of["train_x"], of["train_y"], of["val_x"], of["val_y"], of["test_x"], of["test_y"]
        test, told = (of["mnist_x"], of["mnist_y"]), json.loads(str(arrays["told"]))
        told["radii"] = arrays["radii"][: len(test[1])]
    except (OSError, EOFError, BadZipFile, KeyError, ValueError) as error:
        raise ValueError(f"images: {file} is not what acertlab gpu-check --pack writes ({error})") from error
    known = DATASETS["cifar10"]
    data = ImageData("cifar10", *parts, tuple(map(str, range(10))), known.mean, known.std)
    state = {name.removeprefix("net."): value for name, value in of.items() if name.startswith("net.")}
    return data, test, told | {"state": state}
