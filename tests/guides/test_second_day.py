"""The second day: something is there already, there are two of it, it has been moved, or it is not ours."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from acertlab.__main__ import main
from acertlab.analysis.method_table import attack_run
from acertlab.analysis.tradeoff import pool_seeds
from acertlab.data.datasets import load_dataset
from acertlab.data.files import read_json, write_json
from acertlab.data.run import load_run
from acertlab.data.run_table import load_radii, load_runs
from acertlab.sweep.spec import read_spec
from acertlab.sweep.start import check_this_machine
from acertlab.training.imported_run import import_run
from acertlab.training.loop import checkpoint, train as loop
from acertlab.training.loop.train import train
from acertlab.training.parameters import config_from_parameters, default_run_dir
from acertlab.visualization.widgets.gallery import gallery_of
from tests.helpers.image_files import write_two_classes
from tests.helpers.quick_runs import CONFIG, made, quickly


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Has something happen while an epoch is trained."""
    real = loop.train_epoch

    def arrange(when: int, what: Callable[[], object]) -> None:
        def epoch_of(state, config, data, x, y, epoch, bar):
            row = real(state, config, data, x, y, epoch, bar)
            if epoch == when:
                what()
            return row

        monkeypatch.setattr(loop, "train_epoch", epoch_of)

    return arrange


class TestFoldersUnderOurFeet:
    def test_a_deleted_folder_stops_the_training(self, tmp_path, meanwhile):
        meanwhile(1, lambda: shutil.rmtree(tmp_path / "run"))
        with pytest.raises(FileNotFoundError, match=r"run_dir: .*run was deleted, moved or replaced while"):
            quickly(made(), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_moved_folder_goes_on_where_it_is_now(self, tmp_path, meanwhile):
        meanwhile(1, lambda: (tmp_path / "run").rename(tmp_path / "moved"))
        with pytest.raises(FileNotFoundError, match="the same call with its new path goes on"):
            quickly(made(), tmp_path / "run")
        assert not (tmp_path / "run").exists() and (tmp_path / "moved/checkpoint/epoch-0001").is_dir()
        meanwhile(-1, lambda: None)
        moved, whole = quickly(made(), tmp_path / "moved"), quickly(made(), tmp_path / "whole")
        assert moved.radii.equals(whole.radii)

    def test_two_trainings_after_a_deletion_are_one(self, tmp_path, meanwhile):
        def second() -> None:
            shutil.rmtree(tmp_path / "run")
            meanwhile(-1, lambda: None)
            quickly(made(), tmp_path / "run", seed=1)

        meanwhile(1, second)
        with pytest.raises(FileNotFoundError, match="replaced"):
            quickly(made(), tmp_path / "run")
        assert load_run(tmp_path / "run").config["seed"] == 1  # untouched by the first

    def test_what_was_taken_out_is_written_again(self, tmp_path, meanwhile):
        def rob() -> None:
            (tmp_path / "run/config.json").unlink()
            (tmp_path / "run/history.parquet").unlink(missing_ok=True)
            shutil.rmtree(tmp_path / "run/checkpoint", ignore_errors=True)

        meanwhile(2, rob)
        run = quickly(made(), tmp_path / "run")
        assert run.config["dataset"] == "folder:made" and len(run.history) == 3

    def test_a_checkpoint_folder_is_shared_with_others(self, tmp_path, meanwhile):
        there = tmp_path / "run" / "checkpoint"
        (there / "mine").mkdir(parents=True)
        (there / "epoch-best").mkdir()
        for name in (".DS_Store", ".nfs0001", "mine/notes"):
            (there / name).touch()
        quickly(made(), tmp_path / "run")
        names = {path.name for path in there.iterdir()}
        assert names == {"mine", "epoch-best", ".DS_Store", ".nfs0001", "epoch-0002", "epoch-0003"}
        assert (there / "mine/notes").is_file()

    def test_epochs_are_numbers(self, tmp_path, meanwhile):
        there = tmp_path / "run" / "checkpoint"
        for epochs in (9998, 9999, 10_000, 10_001):
            (there / f"epoch-{epochs}").mkdir(parents=True)
        assert list(checkpoint._checkpoints(there).values()) == [9998, 9999, 10_000, 10_001]
        quickly(made(), tmp_path / "run")  # none of them is of this run
        assert list(checkpoint._checkpoints(there).values()) == [2, 3]


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({}, {"model": "small_cnn", "batch_size": 1}, "batch_size = 1: .*a batch of one"),
        (
            {"n": 47},
            {"model": "small_cnn", "batch_size": 2},
            "batch_size = 2: 47 training images come to a batch of one",
        ),
    ],
)
def test_batches_of_one_are_refused_before_the_first_step(tmp_path, changes, settings, message):
    with pytest.raises(ValueError, match=message):
        quickly(made(**changes), tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_one_class_is_refused_before_the_first_step(tmp_path):
    data = made()
    zeros = {name: torch.zeros_like(getattr(data, name)) for name in ("train_y", "val_y", "test_y")}
    with pytest.raises(ValueError, match=r"'folder:made' has one class \(dark\)"):
        quickly(replace(data, classes=("dark",), **zeros), tmp_path / "run")


class TestIdentity:
    """A run knows its images and labels, not only how many there are."""

    def test_a_finished_run_is_of_its_images(self, tmp_path):
        quickly(made(), tmp_path / "run")
        assert quickly(made(), tmp_path / "run").config["data"] == made().digests()
        for part in ("train", "val", "test"):
            other = replace(made(), **{f"{part}_{k}": getattr(made(1), f"{part}_{k}") for k in "xy"})
            with pytest.raises(ValueError, match=f"another configuration: other images or labels for {part}. Give"):
                quickly(other, tmp_path / "run")
        relabelled = replace(made(), test_y=1 - made().test_y)
        with pytest.raises(ValueError, match="other images or labels for test"):
            quickly(relabelled, tmp_path / "run")

    def test_a_half_finished_run_and_a_checkpoint_are_of_their_images(self, tmp_path, meanwhile, caplog):
        meanwhile(1, interrupt)
        with pytest.raises(KeyboardInterrupt):
            quickly(made(), tmp_path / "run")
        meanwhile(-1, interrupt)
        with pytest.raises(ValueError, match="other images or labels for train"):
            quickly(made(1), tmp_path / "run")
        (tmp_path / "run/config.json").unlink()
        (tmp_path / "run/history.parquet").unlink()
        assert quickly(made(1), tmp_path / "run").config["data"] == made(1).digests()
        assert "epoch-0001 is passed over: it belongs to another run" in caplog.text

    def test_a_run_of_version_0_1_0_is_read_and_resumed(self, tmp_path, meanwhile, caplog, monkeypatch):
        meanwhile(1, interrupt)
        monkeypatch.setattr(loop, "_owners", lambda described, real=loop._owners: real(described)[::-1])
        with pytest.raises(KeyboardInterrupt):
            quickly(made(), tmp_path / "run")
        monkeypatch.undo()
        config = read_json(tmp_path / "run/config.json")
        write_json(tmp_path / "run/config.json", {name: config[name] for name in config if name != "data"})
        run = quickly(made(), tmp_path / "run")
        assert "is of version 0.1.0, which did not note its images" in caplog.text and "passed over" not in caplog.text
        assert run.radii.equals(quickly(made(), tmp_path / "whole").radii)

    def test_attacks_and_imports_are_of_their_images(self, tmp_path):
        run = quickly(made(), tmp_path / "run")
        with pytest.raises(ValueError, match="test images of folder:made (are others|have other labels) here than"):
            attack_run(run, made(1), [0.05])
        dimmed = replace(made(), test_x=made().test_x // 2)
        with pytest.raises(ValueError, match="test images of folder:made are others here than"):
            attack_run(run, dimmed, [0.05])
        assert "adv_acc" not in load_run(run.path).result
        model = run.load_model()
        import_run(model, made(), tmp_path / "imported", "mine", 0.1, progress=False)
        with pytest.raises(ValueError, match="other images or labels for test"):
            import_run(model, dimmed, tmp_path / "imported", "mine", 0.1, progress=False)

    def test_a_relative_folder_is_the_same_folder_or_says_that_it_is_not(self, tmp_path, monkeypatch):
        config = replace(CONFIG, dataset="folder:images")
        for seed, place in enumerate(("one", "other")):
            write_two_classes(tmp_path / place / "images", seed)
        shutil.copytree(tmp_path / "one", tmp_path / "copy")
        for place in ("one", "copy"):
            monkeypatch.chdir(tmp_path / place)
            run = train(config, load_dataset("folder:images"), tmp_path / "run", progress=False)
        monkeypatch.chdir(tmp_path / "other")
        with pytest.raises(ValueError, match="other images or labels for train"):
            train(config, load_dataset("folder:images"), tmp_path / "run", progress=False)
        gallery = gallery_of([str(run.path)])
        assert gallery.images is None and "test images of folder:images" in gallery.note

    def test_a_sweeps_job_is_of_its_images(self, tmp_path):
        write_two_classes(tmp_path / "images", 0)
        spec = {"dataset": f"folder:{tmp_path / 'images'}", "model": "mlp", "epochs": 2, "out": str(tmp_path / "out")}
        sweep = read_spec(spec)
        check_this_machine(sweep)
        (job,) = sweep.jobs
        train(config_from_parameters(job.parameters), load_dataset(spec["dataset"]), job.folder, progress=False)
        assert job.done
        check_this_machine(sweep)
        shutil.rmtree(job.folder)  # as 05 cuts its images
        cut = load_dataset(spec["dataset"]).first(20)
        train(config_from_parameters(job.parameters), cut, job.folder, progress=False)
        check_this_machine(sweep)
        shutil.rmtree(tmp_path / "images")
        check_this_machine(sweep)  # all is done, and the images are no longer needed
        write_two_classes(tmp_path / "images", 1)
        with pytest.raises(ValueError, match=r"has other images or labels for .* here; give another out"):
            check_this_machine(sweep)

    def test_a_replaced_image_is_decoded_though_size_and_time_are_the_same(self, tmp_path):
        write_two_classes(tmp_path / "images", 0)
        name = f"folder:{tmp_path / 'images'}"
        before = load_dataset(name).digests()
        assert load_dataset(name).digests() == before
        (path, *_) = sorted((tmp_path / "images").rglob("*.bmp"))
        stat = path.stat()
        Image.fromarray(np.full((6, 6), 77, np.uint8)).save(path)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
        assert load_dataset(name).digests() != before


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_report_into_a_folder_is_refused_before_the_work(tmp_path, capsys):
    assert main(["report", "nowhere", "--output", str(tmp_path)]) == 1
    assert f"output: {tmp_path} is a folder; give the name of an HTML file" in capsys.readouterr().err


def test_a_runs_folder_has_no_colon(tmp_path):
    config = replace(CONFIG, dataset="folder:images")
    folder = default_run_dir(config, tmp_path)
    assert folder.parent == tmp_path and ":" not in folder.name
    before = tmp_path / folder.name.replace("folder_", "folder:")
    before.mkdir()
    assert default_run_dir(config, tmp_path) == before  # version 0.1.0's


@pytest.mark.parametrize("seed", [2**53 + 1, 2**64 - 1])
def test_large_seeds_stay_what_they_are(tmp_path, seed):
    (job,) = read_spec({"seed": seed}, out=tmp_path).jobs
    assert job.parameters["seed"] == seed and f"seed{seed}" in job.name
    quickly(made(), tmp_path / "runs" / "a", seed=seed, epochs=2)
    assert load_runs(tmp_path / "runs").seed.tolist() == [seed]
    assert pool_seeds(load_runs(tmp_path / "runs"), load_radii(load_runs(tmp_path / "runs"))).points[0].seeds == (seed,)
