"""The second day: something is there already, there are two of it, it has been moved, or it is not ours."""

import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from acertlab.__main__ import main
from acertlab.analysis.equal_accuracy import ratios_by_seed
from acertlab.analysis.fronts import analyse
from acertlab.analysis.method_table import attack_run, chosen_table, tuned_table
from acertlab.analysis.seeds import mean_over_seeds
from acertlab.analysis.tradeoff import pool_seeds
from acertlab.data import datasets
from acertlab.data.datasets import ImageData, load_dataset
from acertlab.data.files import read_json, write_json, write_parquet
from acertlab.data.pack import pack_runs
from acertlab.data.run import load_run
from acertlab.data.run_table import load_finished, load_radii, load_runs
from acertlab.sweep.spec import read_spec
from acertlab.sweep.start import check_this_machine
from acertlab.training.config import TrainConfig
from acertlab.training.imported_run import import_run
from acertlab.training.loop import checkpoint, train as loop
from acertlab.training.loop.train import train
from acertlab.training.parameters import config_from_parameters, default_run_dir
from acertlab.visualization.widgets.gallery import gallery_of

CONFIG = TrainConfig(
    dataset="folder:made", eps_max=0.1, model="mlp", width=8, epochs=3, clean_epochs=1, ramp_epochs=1, batch_size=16
)


def made(seed: int = 0, n: int = 48) -> ImageData:
    """Images of two classes, one bright and one dark."""
    draw = torch.Generator().manual_seed(seed)
    parts = []
    for count in (n, 16, 16):
        y = torch.randint(0, 2, (count,), generator=draw)
        x = torch.randint(0, 128, (count, 1, 6, 6), generator=draw) + 120 * y[:, None, None, None]
        parts += [x.to(torch.uint8), y]
    return ImageData("folder:made", *parts, classes=("dark", "bright"))


def quickly(data: ImageData, run_dir: Path, **settings: object) -> object:
    return train(replace(CONFIG, **settings), data, run_dir, progress=False)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Has something happen while an epoch is trained."""
    real = loop._train_epoch

    def arrange(when: int, what: Callable[[], object]) -> None:
        def epoch_of(state, config, data, x, y, epoch, bar):
            row = real(state, config, data, x, y, epoch, bar)
            if epoch == when:
                what()
            return row

        monkeypatch.setattr(loop, "_train_epoch", epoch_of)

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
        monkeypatch.setattr(loop, "_owners", lambda config, data, real=loop._owners: real(config, data)[::-1])
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
            write_images(tmp_path / place / "images", seed)
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
        write_images(tmp_path / "images", 0)
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
        write_images(tmp_path / "images", 1)
        with pytest.raises(ValueError, match=r"has other images or labels for .* here; give another out"):
            check_this_machine(sweep)

    def test_a_replaced_image_is_decoded_though_size_and_time_are_the_same(self, tmp_path):
        write_images(tmp_path / "images", 0)
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


def write_images(folder: Path, seed: int) -> None:
    """Twenty images of each of two classes, of one size in bytes whatever they show."""
    draw = np.random.default_rng(seed)
    for label, name in enumerate(("dark", "bright")):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(0, 128, (6, 6)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.bmp")


class TestWhatCountsAsData:
    def test_what_other_programs_leave_is_no_class_and_no_image(self, tmp_path):
        write_images(tmp_path / "images", 0)
        name, images = f"folder:{tmp_path / 'images'}", tmp_path / "images"
        before = load_dataset(name)
        shutil.copytree(images / "dark", images / ".ipynb_checkpoints")
        shutil.copytree(images / "dark", images / "__MACOSX" / "dark")
        shutil.copytree(images / "dark", images / "dark" / ".thumbnails")
        (images / "dark" / "._0.bmp").write_bytes(b"\0\5\x16\7")
        (images / "loop").symlink_to(images, target_is_directory=True)
        (images / "bright" / "loop").symlink_to(images / "bright", target_is_directory=True)
        after = load_dataset(name)
        assert after.classes == ("bright", "dark") and after.digests() == before.digests()

    def test_hidden_folders_do_not_make_a_split(self, tmp_path):
        write_images(tmp_path / "images", 0)
        for part in ("train", "test"):
            shutil.copytree(tmp_path / "images", tmp_path / part)
        shutil.rmtree(tmp_path / "images")
        shutil.copytree(tmp_path / "train" / "dark", tmp_path / "test" / ".ipynb_checkpoints")
        assert len(load_dataset(f"folder:{tmp_path}", val_fraction=0).test_y) == 40

    def test_images_are_turned_as_their_camera_says_and_transparency_is_said(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            for i in range(5):
                pixels = np.zeros((6, 6, 3), np.uint8)
                pixels[0] = 250  # the upper row
                exif = Image.Exif()
                exif[0x0112] = 3 if name == "b" else 1  # b is stored upside down
                upright = Image.fromarray(pixels if name == "a" else pixels[::-1].copy())
                upright.save(tmp_path / name / f"{i}.png", exif=exif)
        data = load_dataset(f"folder:{tmp_path}")
        assert (data.train_x[:, :, 0] == 250).all() and not data.train_x[:, :, 1:].any()
        Image.fromarray(np.full((6, 6, 4), 9, np.uint8)).save(tmp_path / "a" / "0.png")
        with pytest.warns(UserWarning, match=r"1 images have transparency, as .*a/0.png: it is dropped"):
            load_dataset(f"folder:{tmp_path}")

    def test_a_decompression_bomb_is_named(self, tmp_path, monkeypatch):
        write_images(tmp_path / "images", 0)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(ValueError, match=r"images/\w+/\d+.bmp: not a readable image \(Image size \(36 pixels\)"):
            load_dataset(f"folder:{tmp_path / 'images'}")

    def test_half_an_mnist_names_what_it_lacks_and_can_be_completed(self, tmp_path, monkeypatch):
        raw = tmp_path / "MNIST/raw"
        raw.mkdir(parents=True)
        names = [f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
        parts = {name: idx(12, image="images" in name) for name in names}
        for name in names[:3]:
            (raw / name).write_bytes(parts[name])
        with pytest.raises(FileNotFoundError, match=r"was not found: .*raw lacks t10k-labels-idx1-ubyte. Looked"):
            load_dataset("mnist", root=tmp_path, download=False)

        def fetch(aside: str) -> None:
            (Path(aside) / "MNIST/raw").mkdir(parents=True)
            for name in names:
                (Path(aside) / "MNIST/raw" / name).write_bytes(parts[name])

        monkeypatch.setitem(datasets.DATASETS, "mnist", replace(datasets.DATASETS["mnist"], fetch=fetch))
        monkeypatch.setattr(datasets, "_ask", lambda *args: None)
        assert len(load_dataset("mnist", root=tmp_path).test_y) == 12

    def test_tinyimagenet_without_annotations_says_so(self, tmp_path):
        (tmp_path / "tiny-imagenet-200/train").mkdir(parents=True)
        (tmp_path / "tiny-imagenet-200/words.txt").touch()
        with pytest.raises(FileNotFoundError, match=r"tiny-imagenet-200 lacks val/val_annotations.txt"):
            load_dataset("tinyimagenet", root=tmp_path, download=False)


def idx(n: int, image: bool) -> bytes:
    shape = (n, 28, 28) if image else (n,)
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape) + bytes(int(np.prod(shape)))


class TestWhatCountsAsARun:
    @pytest.fixture
    def runs(self, tmp_path):
        quickly(made(), tmp_path / "runs" / "a")
        return tmp_path / "runs"

    def found(self, folder: Path) -> list[str]:
        return [Path(path).relative_to(folder).as_posix() for path in load_runs(folder).path]

    def test_links_are_followed_once(self, runs, tmp_path):
        shutil.move(runs / "a", tmp_path / "elsewhere")
        (runs / "a").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (runs / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (runs / "loop").symlink_to(runs, target_is_directory=True)
        assert self.found(runs) == ["a"]

    def test_files_of_other_programs_hide_no_runs(self, runs):
        write_json(runs / "config.json", {"editor": "vi"})
        table = load_runs(runs)
        assert len(table) == 1 and table.attrs["unfinished"] == []

    def test_live_runs_beside_packed_ones_are_read(self, runs, tmp_path):
        pack_runs(runs, tmp_path / "packed")
        shutil.copytree(runs / "a", tmp_path / "packed" / "live")
        shutil.copytree(runs / "a", tmp_path / "packed" / "half")
        (tmp_path / "packed/half/result.json").unlink()
        table = load_runs(tmp_path / "packed")
        assert [Path(path).name for path in table.path] == ["a", "live"]
        assert table.attrs["unfinished"] == [str(tmp_path / "packed/half")]
        assert load_run(table.path[1]).radii.equals(load_run(table.path[0]).radii)

    def test_the_same_folder_twice_is_taken_once(self, runs):
        assert len(load_finished(runs, runs, runs / ".." / "runs")) == 1

    def test_a_result_does_not_choose_its_path(self, runs):
        result = read_json(runs / "a/result.json")
        write_json(runs / "a/result.json", result | {"path": "/etc"})
        assert load_runs(runs).path.tolist() == [str(runs / "a")]
        assert load_runs(runs).columns[0] == "path"

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda radii: radii.assign(radius=radii.radius.where(radii.index != 3)),
                "no numbers from 0 to radius_cap",
            ),
            (lambda radii: radii.assign(radius=radii.radius + 1), "no numbers from 0 to radius_cap"),
            (lambda radii: radii[:-1], "has 15 rows of this run, and its result is of 16 images"),
        ],
    )
    def test_radii_are_checked_where_they_are_read(self, runs, tmp_path, spoil, message):
        pack_runs(runs, tmp_path / "packed")
        for folder, file in ((runs, runs / "a"), (tmp_path / "packed", tmp_path / "packed")):
            write_parquet(file / "radii.parquet", spoil(pd.read_parquet(file / "radii.parquet")))
            with pytest.raises(ValueError, match=f"{folder / 'a'}: radii.parquet .*{message}"):
                load_run(folder / "a")
            with pytest.raises(ValueError, match=f"{folder / 'a'}: radii.parquet .*{message}"):
                load_radii(load_runs(folder))

    def test_a_result_without_a_number_is_refused_by_its_path(self, runs):
        write_json(runs / "a/result.json", read_json(runs / "a/result.json") | {"kappa": None})
        with pytest.raises(ValueError, match=r"a/result.json: kappa = None is not a number"):
            load_runs(runs)


class TestWhatMayBeAveraged:
    """A group is runs that differ in nothing but the seed, in every table, figure and statement."""

    @pytest.fixture
    def runs(self, tmp_path):
        for method in ("acert", "fast-ibp"):
            for seed in (0, 1):
                quickly(made(), tmp_path / "runs" / f"{method}-{seed}", seed=seed, method=method)
        return tmp_path / "runs"

    def refused(self, folder: Path, what: str) -> None:
        runs = load_finished(folder)
        uses = {
            "mean": mean_over_seeds,
            "tuned": tuned_table,
            "table": lambda runs: chosen_table(runs, None, False),
            "explorer": lambda runs: pool_seeds(runs, load_radii(runs)),
            "analysis": lambda runs: analyse(runs, resamples=10),
            "compare": ratios_by_seed,
        }
        for name, use in uses.items():
            with pytest.raises(ValueError, match=what):
                use(runs)
                raise AssertionError(f"{name} takes them")

    def test_seeds_are_averaged(self, runs):
        table = load_finished(runs)
        assert mean_over_seeds(table).seeds.tolist() == [2, 2]
        assert chosen_table(table, None, False).seeds.tolist() == [2, 2]

    @pytest.mark.parametrize(
        ("settings", "what"),
        [
            ({"epochs": 4}, "differ in epochs"),
            ({"width": 9}, "differ in width"),
            ({"scheduler": "step"}, "differ in scheduler"),
            ({"lr": 1e-3}, "differ in lr"),
            ({"merged": False}, "merged"),
            ({"radius_cap": 0.2}, "differ in radius_cap"),
        ],
    )
    def test_other_trainings_are_no_seeds(self, runs, settings, what):
        quickly(made(), runs / "other", seed=2, method="acert", **settings)
        quickly(made(), runs / "another", seed=2, method="fast-ibp")
        self.refused(runs, what)

    def test_other_images_are_no_seeds(self, runs):
        quickly(made(1), runs / "other", seed=2, method="acert")
        quickly(made(), runs / "another", seed=2, method="fast-ibp")
        with pytest.raises(ValueError, match="differ in data"):
            mean_over_seeds(load_finished(runs))

    def test_a_copy_is_no_seed(self, runs):
        shutil.copytree(runs / "acert-0", runs / "copy")
        self.refused(runs, "there are two with")

    def test_what_version_0_1_0_did_not_note_is_let_pass(self, runs):
        config = read_json(runs / "acert-0/config.json")
        write_json(
            runs / "acert-0/config.json", {n: config[n] for n in config if n not in ("data", "train_eps_factor")}
        )
        assert mean_over_seeds(load_finished(runs)).seeds.tolist() == [2, 2]

    def test_another_verifier_is_no_seed(self, runs):
        result = read_json(runs / "acert-0/result.json")
        write_json(runs / "acert-0/result.json", result | {"verifier": "crown"})
        self.refused(runs, "verifier")


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
