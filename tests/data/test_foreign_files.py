"""What counts as data and as a run, where other programs, archives, links and cameras left something too."""

import shutil
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from acertlab.data import datasets
from acertlab.data.datasets import load_dataset
from acertlab.data.files import read_json, write_json, write_parquet
from acertlab.data.pack import pack_runs
from acertlab.data.run import load_run
from acertlab.data.run_table import load_finished, load_radii, load_runs
from tests.helpers.image_files import write_two_classes
from tests.helpers.quick_runs import made, quickly


def idx(n: int, image: bool) -> bytes:
    shape = (n, 28, 28) if image else (n,)
    return struct.pack(f">{1 + len(shape)}I", 0x800 + len(shape), *shape) + bytes(int(np.prod(shape)))


class TestWhatCountsAsData:
    def test_what_other_programs_leave_is_no_class_and_no_image(self, tmp_path):
        write_two_classes(tmp_path / "images", 0)
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
        write_two_classes(tmp_path / "images", 0)
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
        write_two_classes(tmp_path / "images", 0)
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
