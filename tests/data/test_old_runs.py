"""What earlier versions wrote is read: a run's folder and its checkpoint, a fixture a version; packed folders.

    python -m tests.data.test_old_runs

writes the fixture of the version that is installed: a finished run, with a checkpoint of the middle in place of the
last ones. A new version adds its own; those of old ones are never written again, for they are what has to be read.
"""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch

import acertlab as al

# what moves is imported here and nowhere else
from acertlab.data.run import HISTORY_COLUMNS, RADII_COLUMNS
from acertlab.radius.metrics import summarise
from acertlab.training.parameters import config_of

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").is_file())
FIXTURES = Path(__file__).with_name("fixtures")
RUNS = sorted(FIXTURES.glob("run-*"))
PACKED = sorted(file.parent for file in (ROOT / "data").glob("**/packed.json"))
WRITTEN_LAST = ("radii.parquet", "model.safetensors", "result.json")  # after the checkpoint


def few() -> al.ImageData:
    return al.load_dataset("digits").first(200)


@pytest.fixture(params=RUNS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old run, finished, with a checkpoint of the middle."""
    return shutil.copytree(request.param, tmp_path / request.param.name)


def test_there_is_a_fixture() -> None:
    assert "run-0.1.0" in [folder.name for folder in RUNS]


def test_a_finished_run_is_read(folder: Path) -> None:
    run, data = al.load_run(folder), few()
    (row,) = al.load_runs(folder.parent).itertuples()
    assert (row.path, row.acc, row.art, row.cert_acc) == (
        str(folder),
        *(run.result[k] for k in ("acc", "art", "cert_acc")),
    )
    scores = summarise(run.radii, row.eps_max, sorted(row.cert_acc), row.radius_cap)
    assert scores.pop("cert_acc") == pytest.approx(row.cert_acc, rel=1e-12) and 0.1 < row.acr < row.acc
    assert scores == pytest.approx({name: run.result[name] for name in scores}, rel=1e-12)
    assert set(HISTORY_COLUMNS) <= set(run.history) and run.history.epoch.tolist() == list(range(row.epochs))
    assert run.config["version"] == row.version == folder.name.removeprefix("run-")
    x = al.to_float(data.test_x)
    with torch.no_grad():
        assert run.load_model()(x).argmax(1).tolist() == run.radii.predicted.tolist()
    found = al.certified_radius(run.load_model(), x, data.test_y, row.radius_cap)
    assert found.radius.numpy() == pytest.approx(run.radii.radius.to_numpy(), abs=1e-5)


def test_a_finished_run_is_returned_by_the_call_that_made_it(folder: Path) -> None:
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run = al.load_run(folder)
    assert al.train(config_of(run.config), few(), folder, progress=False).result == run.result
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_an_unfinished_run_goes_on_from_its_checkpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The epochs before it keep their seconds, which nobody could train again; those after it are as they were.

    On one machine bit for bit. With other instructions of the processor a number in the history moved by 0.014 at most
    (two of 144 validation images); without Adam's moments, the schedule or the radii of the checkpoint, by 0.1 or more.
    """
    whole, (checkpoint,) = al.load_run(folder), (folder / "checkpoint").iterdir()
    for name in WRITTEN_LAST:
        (folder / name).unlink()
    assert al.load_runs(folder.parent).attrs["unfinished"] == [str(folder)]
    run, before = al.train(config_of(whole.config), few(), folder, progress=False), int(checkpoint.name[-4:])
    assert not [said for said in caplog.messages if "passed over" in said]  # no checkpoint was
    now, then = (of.history.pop("seconds") for of in (run, whole))
    assert 0 < before < len(then) == len(now)
    assert now[:before].tolist() == then[:before].tolist() and not set(now[before:]) & set(then[before:])
    assert run.history.to_numpy() == pytest.approx(whole.history.to_numpy(), rel=0, abs=0.05, nan_ok=True)
    assert run.result["art"] == pytest.approx(whole.result["art"], abs=0.02)


def test_a_checkpoint_of_another_run_is_not_taken_up(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Else the test above could not fail."""
    whole = al.load_run(folder)
    for name in ("config.json", *WRITTEN_LAST):
        (folder / name).unlink()
    (folder / "history.parquet").unlink()
    run = al.train(replace(config_of(whole.config), seed=1), few(), folder, progress=False)
    assert "belongs to another run" in caplog.text
    assert not set(run.history.seconds) & set(whole.history.seconds)


@pytest.mark.parametrize("packed", PACKED, ids=lambda folder: folder.name)
def test_every_packed_run_is_read(packed: Path) -> None:
    table = al.load_runs(packed)
    assert len(table) and not table.attrs["unfinished"]
    for row in table.itertuples():
        run = al.load_run(row.path)
        assert (run.result["art"], run.result["seed"], len(run.radii)) == (row.art, row.seed, row.n)
        assert tuple(run.radii)[: len(RADII_COLUMNS)] == RADII_COLUMNS
        assert run.radii.radius.dtype == run.radii.upper.dtype == np.float32
        assert row.art == pytest.approx((row.acc * row.acr) ** 0.5, rel=1e-9)
        if "source" in run.config or "interpolated" in run.config:  # imported, or between two knots of a front
            assert run.history.empty
        else:
            config = config_of(run.config)
            assert (config.method, config.kappa, config.seed) == (row.method, row.kappa, row.seed)
            assert run.history.epoch.tolist() == list(range(config.epochs))
            assert set(HISTORY_COLUMNS) <= set(run.history)


def keep(checkpoint: Path, aside: Path) -> None:
    """A checkpoint, before training goes on and removes it."""
    while not checkpoint.is_dir():
        time.sleep(0.01)
    shutil.copytree(checkpoint, aside)


if __name__ == "__main__":
    torch.set_num_threads(1)
    path = FIXTURES / f"run-{version('acertlab')}"
    smoke = al.preset("digits", "acert", budget="smoke")
    settings = replace(smoke, kappa=0.25, eps_max=0.1, width=2, epochs=8, ramp_epochs=4, batch_size=32, device="cpu")
    with TemporaryDirectory() as aside, ThreadPoolExecutor() as beside:
        kept = beside.submit(keep, path / "checkpoint/epoch-0005", Path(aside, "checkpoint/epoch-0005"))
        al.train(settings, few(), path, resume=False, progress=False)
        kept.result()
        shutil.rmtree(path / "checkpoint")
        shutil.copytree(Path(aside, "checkpoint"), path / "checkpoint")
    (path / ".lock").unlink(missing_ok=True)
    print(f"{path}: {sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) / 1e3:.0f} kB")
