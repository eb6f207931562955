"""The cache of decoded images: taken where nothing has changed, made anew where anything has."""

import os

import numpy as np
import pytest
import torch

from acertlab.data import readers
from acertlab.data.datasets import load_dataset
from tests.helpers.image_files import (
    assert_same,
    rows,
    save_image,
    write_folder,
)

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture
def cached(tmp_path, rng, monkeypatch):
    """A folder that was loaded once: (load, its cache file, list of the decodings since)."""
    write_folder(tmp_path / "a", rng)
    decodings, decode = [], readers._decode
    monkeypatch.setattr(readers, "_decode", lambda paths, text: decodings.append(len(paths)) or decode(paths, text))

    def load():
        return load_dataset(f"folder:{tmp_path / 'a'}")

    load()
    (file,) = (tmp_path / "cache").iterdir()
    assert decodings == [12]
    decodings.clear()
    return load, file, decodings


def test_cache_hit(cached):
    load, file, decodings = cached
    before = file.stat().st_mtime_ns
    assert_same(load(), load())
    assert decodings == [] and file.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b[:-1],
        lambda b: b"",
        lambda b: os.urandom(len(b)),
        lambda b: b[:-10] + bytes([b[-10] ^ 1]) + b[-9:],  # one bit of one pixel
    ],
    ids=["half", "one byte less", "empty", "noise", "one bit"],
)
def test_damaged_cache_is_rebuilt(cached, damage):
    load, file, decodings = cached
    good, intact = load(), file.read_bytes()
    file.write_bytes(damage(intact))
    assert_same(load(), good)
    assert decodings == [12] and [f.name for f in file.parent.iterdir()] == [file.name]
    assert_same(load(), good)
    assert decodings == [12]


def test_cache_follows_the_files(cached, tmp_path, rng):
    load, file, decodings = cached
    good = load()
    path = tmp_path / "a/bee/1.png"
    os.utime(path, ns=(1, 1))  # the same bytes with another time: decoded again, to be safe
    assert_same(load(), good)
    assert decodings == [12]
    save_image(path, rng.integers(0, 256, (6, 5, 3), np.uint8))
    changed = load()
    assert decodings == [12, 12]
    assert rows(changed.train_x, changed.train_y) != rows(good.train_x, good.train_y) or not torch.equal(
        changed.test_x, good.test_x
    )
    save_image(tmp_path / "a/bee/new.png", rng.integers(0, 256, (6, 5, 3), np.uint8))
    assert len(load().test_y) == 3
    (tmp_path / "a/ant").rename(tmp_path / "a/fly")  # the same images, other labels
    assert load().classes == ("bee", "cat", "fly")
    assert [f.name for f in file.parent.iterdir()] == [file.name]  # nothing left behind


def test_two_folders_of_one_name_do_not_share_a_cache(tmp_path, rng):
    for parent in ("x", "y"):
        write_folder(tmp_path / parent / "a", rng)
    x, y = (load_dataset(f"folder:{tmp_path / parent / 'a'}") for parent in ("x", "y"))
    assert not torch.equal(x.test_x, y.test_x)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_without_a_writable_cache_the_images_come_anyway(tmp_path, rng, monkeypatch):
    write_folder(tmp_path / "a", rng)
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("ACERTLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match="not cached in .*set ACERTLAB_CACHE"):
        images = load_dataset(f"folder:{tmp_path / 'a'}")
    assert len(images.test_y) == 3
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "file"])  # above all nothing in the dataset
