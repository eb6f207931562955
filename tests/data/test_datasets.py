"""Every dataset and layout: real files where they are at hand, small generated ones for each layout always."""

import gzip
import hashlib
import http.server
import os
import pickle
import shutil
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST

from acertlab.data import datasets as data
from acertlab.data import readers
from acertlab.data.datasets import DATASETS, augment, load_dataset, to_float

REAL = Path(os.environ.get("ACERTLAB_DATA", "data/datasets"))
URLOPEN = urllib.request.urlopen
AUGMENTED = sorted(name for name, known in DATASETS.items() if known.crop)
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No test reaches a network, a user's cache or a user's data by accident."""

    def refuse(request, *_, **__):
        raise urllib.error.URLError(f"no network in tests: {getattr(request, 'full_url', request)}")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("ACERTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ACERTLAB_DATA", raising=False)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def real(*parts):
    if not REAL.joinpath(*parts).exists():
        pytest.skip(f"no {'/'.join(parts)} under {REAL}; set ACERTLAB_DATA to the folder that holds it")
    return REAL


def save_image(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def as_tensor(array):
    """(H, W, 3) or (H, W) -> (3, H, W)."""
    array = array if array.ndim == 3 else np.repeat(array[:, :, None], 3, axis=2)
    return torch.from_numpy(array).permute(2, 0, 1)


def rows(x, y):
    """Images with their labels, as a set, since folders are stored in a shuffled order."""
    return {(image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True)}


def assert_as_published(name, images):
    """The whole dataset, loaded without a validation part, is what its entry in the table says."""
    known = DATASETS[name]
    assert images.in_shape == known.shape and images.num_classes == known.classes
    assert (len(images.train_y), len(images.test_y)) == known.sizes
    assert (images.mean, images.std) == (known.mean, known.std)


# the split


def assert_same(one, other):
    for part in ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part


def test_digits_are_complete_and_exact():
    from sklearn.datasets import load_digits

    digits = load_dataset("digits")
    assert (len(digits.train_y), len(digits.val_y), len(digits.test_y)) == (1294, 144, 359)
    assert_as_published("digits", load_dataset("digits", val_fraction=0))
    assert digits.in_shape == (1, 8, 8) and digits.num_classes == 10 and digits.mean is None and digits.std is None
    assert digits.train_x.dtype == torch.uint8 and digits.train_y.dtype == torch.int64
    assert "1294 train, 144 val, 359 test" in repr(digits)
    x, y = (
        torch.cat([digits.train_x, digits.val_x, digits.test_x]),
        torch.cat([digits.train_y, digits.val_y, digits.test_y]),
    )
    original = load_digits()
    stored = np.array([[round(v * 255 / 16) for v in image] for image in original.data]).astype(np.uint8)
    expected = sorted((image.tobytes(), int(label)) for image, label in zip(stored, original.target, strict=True))
    assert sorted((image.numpy().tobytes(), int(label)) for image, label in zip(x, y, strict=True)) == expected
    values = to_float(x).flatten(1).sort(1).values
    assert values.min() == 0 and values.max() == 1
    sixteenths = torch.arange(17) / 16
    assert (to_float(x).unsqueeze(-1) - sixteenths).abs().amin(-1).max() <= 0.5 / 255 + 1e-6


@settings(max_examples=15, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.integers(0, 2**31))
@example(1 - 1e-9, 0)  # one image is left to train on
def test_split_is_disjoint_complete_and_seeded(val_fraction, seed):
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    split = load_dataset("digits", val_fraction=val_fraction, seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    whole = load_dataset("digits", val_fraction=0)
    torch.rand(3)
    assert_same(split, load_dataset("digits", val_fraction=val_fraction, seed=seed))
    assert len(whole.val_y) == 0 and whole.val_x.shape[1:] == (1, 8, 8)
    assert torch.equal(split.test_x, whole.test_x)  # whatever the seed
    assert len(split.val_y) == min(round(val_fraction * 1438), 1437)
    together = torch.cat([split.train_x, split.val_x]).flatten(1), torch.cat([split.train_y, split.val_y])
    key = [
        sorted(zip(x.numpy().tolist(), y.tolist(), strict=True))
        for x, y in (together, (whole.train_x.flatten(1), whole.train_y))
    ]
    assert key[0] == key[1]


def test_another_seed_holds_out_other_images():
    one, other = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    assert rows(one.val_x, one.val_y) != rows(other.val_x, other.val_y)
    assert one.val_y.bincount(minlength=10).min() > 0


def test_to_float_is_exact_division():
    x = torch.arange(256, dtype=torch.uint8)
    before = x.clone()
    assert torch.equal(to_float(x), torch.from_numpy((np.arange(256) / 255).astype(np.float32)))
    assert torch.equal(x, before)
    with pytest.raises(TypeError, match=r"uint8 images, got torch\.float32"):
        to_float(to_float(x))


@pytest.mark.parametrize("val_fraction", [-0.1, 1, 1.5, float("nan")])
def test_val_fraction_out_of_range(val_fraction):
    with pytest.raises(ValueError, match=r"val_fraction must be in \[0, 1\), got"):
        load_dataset("digits", val_fraction=val_fraction)


@pytest.mark.parametrize("name", ["cifar-10", "", None, 3, "MNIST", "folder"])
def test_unknown_names_list_the_choices(name):
    message = r"choose one of: digits, mnist, fashion-mnist, cifar10, tinyimagenet, folder:PATH"
    with pytest.raises(ValueError, match=message):
        load_dataset(name)
    with pytest.raises(ValueError, match=message):
        augment(torch.zeros(1, 3, 32, 32), name, torch.Generator())


def test_seed_must_be_an_integer():
    with pytest.raises(TypeError, match="seed must be an int"):
        load_dataset("digits", seed=0.5)
    assert_same(load_dataset("digits", seed=np.int64(3)), load_dataset("digits", seed=3))


# real data


def test_real_mnist():
    root = real("MNIST", "raw")
    mnist = load_dataset("mnist", root=root, val_fraction=0)
    assert_as_published("mnist", mnist)
    assert mnist.train_x.shape == (60000, 1, 28, 28) and mnist.test_x.shape == (10000, 1, 28, 28)
    assert mnist.train_y[:5].tolist() == [5, 0, 4, 1, 9] and mnist.test_y[:5].tolist() == [7, 2, 1, 0, 4]
    assert to_float(mnist.train_x).double().mean().item() == pytest.approx(0.1307, abs=5e-5)
    header = struct.pack(">4I", 0x803, 60000, 28, 28)
    assert hashlib.md5(header + mnist.train_x.numpy().tobytes()).hexdigest() == "6bbc9ace898e44ae57da46a324031adb"
    assert mnist.classes == tuple("0123456789") and mnist.mean is None
    library = MNIST(root, train=False)
    assert torch.equal(mnist.test_x[:, 0], library.data) and torch.equal(mnist.test_y, library.targets)
    split = load_dataset("mnist", root=root)
    assert (len(split.train_y), len(split.val_y)) == (54000, 6000)


def test_real_cifar10_folders():
    root = real("cifar10", "train")
    cifar = load_dataset("cifar10", root=root)
    again = load_dataset("cifar10", root=root)
    assert_same(cifar, again)
    assert cifar.in_shape == (3, 32, 32) and cifar.classes[:3] == ("airplane", "automobile", "bird")
    assert cifar.mean == (0.4914, 0.4822, 0.4465) and cifar.std == (0.2023, 0.1994, 0.2010)
    files = sum(1 for _ in (root / "cifar10" / "train").glob("*/*"))
    assert len(cifar.train_y) + len(cifar.val_y) == files
    # The published statistics belong to the published images: a lossy copy must come close.
    assert to_float(cifar.train_x).mean((0, 2, 3)).tolist() == pytest.approx(cifar.mean, abs=0.02)
    assert cifar.test_y[:200].bincount(minlength=10).min() > 5  # the first n are a fair sample
    first = sorted((root / "cifar10" / "test" / "bird").iterdir())[0]
    image = as_tensor(np.array(Image.open(first)))
    assert (image.numpy().tobytes(), cifar.classes.index("bird")) in rows(cifar.test_x, cifar.test_y)


def test_real_tinyimagenet(tmp_path):
    source = real("tiny-imagenet-200", "wnids.txt") / "tiny-imagenet-200"
    # A tenth of the classes, by links, to keep this short.
    place, wnids = tmp_path / "root" / "tiny-imagenet-200", sorted((source / "wnids.txt").read_text().split())[::10]
    (place / "train").mkdir(parents=True)
    (place / "val").mkdir()
    for wnid in wnids:
        (place / "train" / wnid).symlink_to(source / "train" / wnid)
    (place / "val" / "images").symlink_to(source / "val" / "images")
    lines = [x for x in (source / "val" / "val_annotations.txt").read_text().splitlines() if x.split("\t")[1] in wnids]
    (place / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    shutil.copy(source / "words.txt", place)
    tiny = load_dataset("tinyimagenet", root=place.parent)
    assert tiny.in_shape == (3, 64, 64) and tiny.num_classes == len(wnids)
    assert tiny.classes[0] == "goldfish"  # n01443537
    assert len(tiny.test_y) == len(lines)
    for line, image, label in zip(lines[:20], tiny.test_x, tiny.test_y, strict=False):
        file, wnid = line.split("\t")[:2]
        assert int(label) == wnids.index(wnid)
        with Image.open(source / "val" / "images" / file) as original:
            assert torch.equal(image, as_tensor(np.array(original.convert("RGB"))))
    assert to_float(tiny.train_x).mean((0, 2, 3)).tolist() == pytest.approx(tiny.mean, abs=0.05)


def test_real_fashion_mnist_as_debian_packages_it(tmp_path):
    if not DEBIAN_FASHION.is_dir():
        pytest.skip("no Fashion-MNIST; apt-get install dataset-fashion-mnist")
    fashion = load_dataset("fashion-mnist", root=tmp_path, val_fraction=0)
    assert_as_published("fashion-mnist", fashion)
    assert fashion.train_x.shape == (60000, 1, 28, 28) and fashion.test_x.shape == (10000, 1, 28, 28)
    assert fashion.train_y.bincount().tolist() == [6000] * 10 and fashion.test_y.bincount().tolist() == [1000] * 10
    assert fashion.classes[int(fashion.train_y[0])] == "Ankle boot"
    assert to_float(fashion.train_x).double().mean().item() == pytest.approx(0.2860, abs=5e-5)


# IDX files


def write_idx(folder, rng, n=(12, 5), compress=False):
    """A small MNIST in torchvision's layout; returns its arrays by file name."""
    folder.mkdir(parents=True)
    shapes = ((n[0], 28, 28), (n[0],), (n[1], 28, 28), (n[1],))
    arrays = {
        name: rng.integers(0, 256 if len(s) == 3 else 10, s, np.uint8)
        for name, s in zip(IDX_FILES, shapes, strict=True)
    }
    for name, array in arrays.items():
        content = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return arrays


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("name", "place"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")])
def test_idx_files_plain_and_gzipped(tmp_path, rng, name, place, compress):
    arrays = write_idx(tmp_path / place, rng, compress=compress)
    images = load_dataset(name, root=tmp_path, val_fraction=0)
    parts = (images.train_x[:, 0], images.train_y, images.test_x[:, 0], images.test_y)
    for file, part in zip(IDX_FILES, parts, strict=True):
        assert np.array_equal(part.numpy(), arrays[file]), file
    assert images.num_classes == 10
    assert not (tmp_path / "cache").exists()  # nothing to decode, nothing to cache


def test_data_root_comes_from_the_environment(tmp_path, rng, monkeypatch):
    write_idx(tmp_path / "here" / "MNIST/raw", rng)
    monkeypatch.setenv("ACERTLAB_DATA", str(tmp_path / "here"))
    assert len(load_dataset("mnist").test_y) == 5
    write_idx(tmp_path / "data" / "datasets" / "MNIST/raw", rng, n=(12, 7))
    monkeypatch.delenv("ACERTLAB_DATA")
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("mnist").test_y) == 7


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (0, lambda b: b[:-1], r"expected 9408 values for shape \(12, 28, 28\), got 9407"),
        (0, lambda b: b[:10], "expected an IDX file of 3-dimensional bytes"),
        (0, lambda b: b"\0\0\x08\x01" + b[4:], "starts 0x00000803.*got 0x00000801"),
        (1, lambda b: b"<html>not found</html>", "starts 0x00000801.*got 0x3c68746d"),
        (1, lambda b: b + b"\0", r"expected 12 values for shape \(12,\), got 13"),
        (2, lambda b: b"", "got 0x$"),
        (3, lambda b: b[:-1] + b"\x0a", "expected labels 0 to 9, got 10"),
        (3, lambda b: struct.pack(">2I", 0x801, 4) + bytes(4), "holds 4 labels"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, rng, file, damage, message):
    write_idx(tmp_path / "MNIST/raw", rng)
    path = tmp_path / "MNIST/raw" / IDX_FILES[file]
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as error:
        load_dataset("mnist", root=tmp_path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"plain", lambda b: b[:40] + b"\xff" * 40 + b[80:]]
)
def test_damaged_gzip_files_are_named(tmp_path, rng, damage):
    write_idx(tmp_path / "MNIST/raw", rng, compress=True)
    path = tmp_path / "MNIST/raw" / f"{IDX_FILES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="damaged gzip file") as error:
        load_dataset("mnist", root=tmp_path)
    assert str(path) in str(error.value)


# CIFAR-10's pickles


class LegacyDtype:
    """Pickles as a dtype did under numpy 1: with align=0, which numpy 2 warns about."""

    def __reduce__(self):
        return np.dtype, ("u1", 0, 1)


class LegacyArray:
    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        reconstruct, _, _ = self.array.__reduce__()
        return reconstruct, (np.ndarray, (0,), b"b"), (1, self.array.shape, LegacyDtype(), False, self.array.tobytes())


def write_cifar(root, rng, monkeypatch):
    """Pickles in CIFAR-10's layout, with torchvision told their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    x, y = rng.integers(0, 256, (6, 8, 3072), np.uint8), rng.integers(0, 10, (6, 8))
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    contents = [{"data": LegacyArray(x[i]), "labels": y[i].tolist()} for i in range(6)]
    sums = []
    for name, content in zip([*names, "batches.meta"], [*contents, {"label_names": list("abcdefghij")}], strict=True):
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
        sums.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:6])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[6][1]})
    return torch.from_numpy(x).view(6, 8, 3, 32, 32), torch.from_numpy(y)


def test_cifar_pickles(tmp_path, rng, monkeypatch):
    x, y = write_cifar(tmp_path, rng, monkeypatch)
    cifar = load_dataset("cifar10", root=tmp_path, val_fraction=0)
    assert torch.equal(cifar.train_x, x[:5].flatten(0, 1)) and torch.equal(cifar.train_y, y[:5].flatten())
    assert torch.equal(cifar.test_x, x[5]) and torch.equal(cifar.test_y, y[5])
    assert cifar.classes == tuple("abcdefghij") and cifar.train_x.is_contiguous()


def test_damaged_cifar_pickles_are_never_unpickled(tmp_path, rng, monkeypatch):
    write_cifar(tmp_path, rng, monkeypatch)
    batch = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-5])
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled a file with a wrong checksum"))
    with pytest.raises(ValueError, match=r"cifar-10-batches-py: .*checksum"):
        load_dataset("cifar10", root=tmp_path)


# folders of images


def write_folder(folder, rng, classes=("ant", "bee", "cat"), per_class=4, shape=(6, 5, 3), suffix="png"):
    """folder/CLASS/i.png; returns the images with their labels."""
    stored = set()
    for label, name in enumerate(classes):
        for i in range(per_class):
            array = rng.integers(0, 256, shape, np.uint8)
            save_image(folder / name / f"{i}.{suffix}", array)
            stored.add((as_tensor(array).contiguous().numpy().tobytes(), label))
    return stored


def test_folder_with_train_and_test(tmp_path, rng):
    train, test = write_folder(tmp_path / "a/train", rng), write_folder(tmp_path / "a/test", rng, per_class=2)
    images = load_dataset(f"folder:{tmp_path / 'a'}", val_fraction=0.25)
    assert images.in_shape == (3, 6, 5) and images.classes == ("ant", "bee", "cat") and images.mean is None
    assert rows(images.test_x, images.test_y) == test
    assert len(images.val_y) == 3
    assert rows(images.train_x, images.train_y) | rows(images.val_x, images.val_y) == train


def test_flat_folder_keeps_one_fifth_for_test_whatever_the_seed(tmp_path, rng):
    stored = write_folder(tmp_path / "a", rng, per_class=5)
    one, other = (load_dataset(f"folder:{tmp_path / 'a'}", val_fraction=0.25, seed=seed) for seed in (0, 1))
    assert (len(one.train_y), len(one.val_y), len(one.test_y)) == (9, 3, 3)
    assert torch.equal(one.test_x, other.test_x) and not torch.equal(one.val_x, other.val_x)
    parts = [rows(x, y) for x, y in ((one.train_x, one.train_y), (one.val_x, one.val_y), (one.test_x, one.test_y))]
    assert set.union(*parts) == stored and sum(map(len, parts)) == len(stored)


def test_grey_folders_have_one_channel_and_mixed_ones_three(tmp_path, rng):
    write_folder(tmp_path / "a", rng, shape=(6, 5))
    images = load_dataset(f"folder:{tmp_path / 'a'}")
    assert images.in_shape == (1, 6, 5) and images.test_x.shape[1:] == (1, 6, 5)
    save_image(tmp_path / "a/ant/0.png", rng.integers(0, 256, (6, 5, 3), np.uint8))
    assert load_dataset(f"folder:{tmp_path / 'a'}").in_shape == (3, 6, 5)


def test_cifar_folders_and_jpegs(tmp_path, rng):
    for part in ("train", "test"):
        write_folder(tmp_path / "cifar10" / part, rng, shape=(32, 32, 3), suffix="jpg")
    cifar = load_dataset("cifar10", root=tmp_path, val_fraction=0)
    assert cifar.in_shape == (3, 32, 32) and cifar.mean == (0.4914, 0.4822, 0.4465)
    decoded = set()
    for path in (tmp_path / "cifar10/test").glob("*/*.jpg"):
        with Image.open(path) as image:
            decoded.add(
                (as_tensor(np.array(image)).contiguous().numpy().tobytes(), cifar.classes.index(path.parent.name))
            )
    assert rows(cifar.test_x, cifar.test_y) == decoded


def write_tinyimagenet(root, rng):
    place = root / "tiny-imagenet-200"
    wnids = ["n03", "n01", "n02"]  # the original's order is not sorted either
    for wnid in wnids:
        for i in range(3):
            shape = (64, 64) if (wnid, i) == ("n02", 1) else (64, 64, 3)  # some of the original images are grey
            save_image(place / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", rng.integers(0, 256, shape, np.uint8))
        (place / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t9\t9\n")
    lines = []
    for i, wnid in enumerate(["n02", "n01", "n01", "n03"]):
        shape = (64, 64) if i == 0 else (64, 64, 3)
        save_image(place / "val/images" / f"val_{i}.JPEG", rng.integers(0, 256, shape, np.uint8))
        lines.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62")
    (place / "wnids.txt").write_text("\n".join(wnids))
    (place / "words.txt").write_text(
        "n00\tentity\nn01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tpop bottle, soda\n"
    )
    (place / "val/val_annotations.txt").write_text("\n".join(lines) + "\n")
    return place


def test_tinyimagenet_layout(tmp_path, rng):
    place = write_tinyimagenet(tmp_path, rng)
    tiny = load_dataset("tinyimagenet", root=tmp_path, val_fraction=1 / 3)
    assert tiny.classes == ("goldfish", "crane", "pop bottle")
    assert tiny.in_shape == (3, 64, 64) and (len(tiny.train_y), len(tiny.val_y)) == (6, 3)
    assert tiny.test_y.tolist() == [1, 0, 0, 2]  # in the order of val_annotations.txt
    assert torch.equal(tiny.test_x[0, 0], tiny.test_x[0, 2]) and not torch.equal(tiny.test_x[1, 0], tiny.test_x[1, 2])
    for i in range(4):
        with Image.open(place / "val/images" / f"val_{i}.JPEG") as image:
            assert torch.equal(tiny.test_x[i], as_tensor(np.array(image)))


def test_damaged_tinyimagenet_is_explained(tmp_path, rng):
    place = write_tinyimagenet(tmp_path, rng)
    annotations = place / "val/val_annotations.txt"
    good = annotations.read_text()
    for bad in ("val_0.JPEG\tn99\t0\t0\t0\t0\n", "val_0.JPEG n01\n"):
        annotations.write_text(good + bad)
        with pytest.raises(ValueError, match=r"val_annotations\.txt, line 5: expected FILE<tab>WNID"):
            load_dataset("tinyimagenet", root=tmp_path)
    annotations.write_text(good)
    (place / "val/images/val_2.JPEG").unlink()
    with pytest.raises(FileNotFoundError, match=r"val_2\.JPEG"):
        load_dataset("tinyimagenet", root=tmp_path)


@pytest.mark.parametrize("layout", ["missing", "empty", "only train", "empty class", "other classes"])
def test_bad_folders_are_explained(tmp_path, rng, layout):
    folder, error, message = tmp_path / "a", ValueError, ""
    if layout == "missing":
        error, message = FileNotFoundError, "a does not exist; accepted: .*train,test.*CLASS"
    elif layout == "empty":
        folder.mkdir()
        message = "a: Couldn't find any class folder"
    elif layout == "only train":
        write_folder(folder / "train", rng)
        message = "has train/CLASS only; accepted: "
    elif layout == "empty class":
        write_folder(folder, rng)
        (folder / "dog").mkdir()
        message = "a: Found no valid file for the classes dog"
    elif layout == "other classes":
        write_folder(folder / "train", rng)
        write_folder(folder / "test", rng, classes=("ant", "bee", "dog"))
        message = r"train/ and test/ differ in classes \['cat', 'dog'\]"
    with pytest.raises(error, match=message):
        load_dataset(f"folder:{folder}")
    assert not (tmp_path / "cache").exists()


def test_an_image_of_another_size_is_named(tmp_path, rng):
    write_folder(tmp_path / "a", rng)
    save_image(tmp_path / "a/bee/odd.png", rng.integers(0, 256, (7, 5, 3), np.uint8))
    with pytest.raises(ValueError, match=r"(odd\.png is 5x7, but .* is 5x6|is 5x6, but .*odd\.png is 5x7).*one size"):
        load_dataset(f"folder:{tmp_path / 'a'}")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not an image"])
def test_an_unreadable_image_is_named(tmp_path, rng, suffix, damage):
    write_folder(tmp_path / "a", rng, shape=(32, 32, 3), suffix=suffix)
    path = tmp_path / f"a/bee/1.{suffix}"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="not a readable image") as error:
        load_dataset(f"folder:{tmp_path / 'a'}")
    assert str(path) in str(error.value)
    assert not list((tmp_path / "cache").glob("*"))


def test_sixteen_bit_images_are_refused(tmp_path, rng):
    write_folder(tmp_path / "a", rng)
    save_image(tmp_path / "a/bee/deep.png", rng.integers(0, 2**16, (6, 5)).astype(np.uint16))
    with pytest.raises(ValueError, match=r"deep\.png: expected 8 bits a channel"):
        load_dataset(f"folder:{tmp_path / 'a'}")


def test_a_class_may_be_called_train(tmp_path, rng):
    write_folder(tmp_path / "a", rng, classes=("bus", "train"))
    assert load_dataset(f"folder:{tmp_path / 'a'}").classes == ("bus", "train")


# the cache


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


# missing datasets, and downloads


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "tinyimagenet"])
def test_a_missing_dataset_says_where_it_looked_and_what_to_do(tmp_path, monkeypatch, name, download):
    root, known = tmp_path / "none", DATASETS[name]
    places = {place: read for place, read in known.places.items() if not place.startswith("/")}
    monkeypatch.setitem(DATASETS, name, replace(known, places=places))
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, root=root, download=download)
    message = str(error.value)
    for place in places:
        assert str(root / place) in message
    assert f"load_dataset('{name}', root=" in message and "ACERTLAB_DATA" in message and known.layout in message
    assert isinstance(error.value.__cause__, urllib.error.URLError) == download
    assert ("no network in tests" in message) == download
    assert not root.exists()


def test_a_silent_network_is_given_up_soon(tmp_path, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: over.wait(20))  # neither answers nor fails
    started = time.perf_counter()
    with pytest.raises(TimeoutError, match=r"did not answer within 0\.1 s"):
        data._download(DATASETS["mnist"], tmp_path / "new", patience=0.1)
    over.set()
    assert time.perf_counter() - started < 5 and not (tmp_path / "new").exists()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch, rng):
    """A small MNIST behind HTTP on this machine, known to torchvision: (its folder, its arrays)."""
    folder = tmp_path / "server"
    arrays = write_idx(folder, rng, compress=True)
    sums = [(f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()) for name in IDX_FILES]
    monkeypatch.setattr(urllib.request, "urlopen", URLOPEN)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{http_server.server_port}/"
        monkeypatch.setattr(MNIST, "mirrors", [address])
        monkeypatch.setattr(MNIST, "resources", sums)
        monkeypatch.setitem(DATASETS, "mnist", replace(DATASETS["mnist"], url=address + sums[0][0]))
        yield folder, arrays
        http_server.shutdown()


def test_a_dataset_is_downloaded_once_through_torchvision(tmp_path, server):
    folder, arrays = server
    root = tmp_path / "new" / "root"
    images = load_dataset("mnist", root=root, val_fraction=0)
    assert np.array_equal(images.train_x[:, 0].numpy(), arrays[IDX_FILES[0]])
    assert [f.name for f in root.iterdir()] == ["MNIST"]
    shutil.rmtree(folder)
    assert_same(load_dataset("mnist", root=root, val_fraction=0), images)
    assert socket.getdefaulttimeout() is None


def test_half_a_download_leaves_nothing(tmp_path, server):
    last = server[0] / f"{IDX_FILES[3]}.gz"
    last.write_bytes(last.read_bytes()[:-3])  # no longer what the checksum says
    with pytest.raises(FileNotFoundError, match="downloading it failed") as error:
        load_dataset("mnist", root=tmp_path / "root")
    assert isinstance(error.value.__cause__, RuntimeError)
    assert list((tmp_path / "root").iterdir()) == []


# augmentation


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(AUGMENTED),
    st.integers(1, 3),
    st.integers(6, 12),
    st.integers(6, 12),
    st.integers(0, 2**31),
)
def test_augmented_images_are_flipped_crops_of_the_edge_padded_image(name, channels, height, width, seed):
    pad = DATASETS[name].crop
    x = torch.rand(5, channels, height, width, generator=torch.Generator().manual_seed(seed))
    before = x.clone()
    out = augment(x, name, torch.Generator().manual_seed(seed))
    assert torch.equal(x, before) and out.shape == x.shape and out.dtype == x.dtype and out.is_contiguous()
    for image, result in zip(x, out, strict=True):
        candidates = []
        for flipped in (image, image.flip(-1)):
            padded = F.pad(flipped[None], (pad,) * 4, mode="replicate")[0]
            windows = padded.unfold(1, height, 1).unfold(2, width, 1)  # (C, 2 pad + 1, 2 pad + 1, H, W)
            candidates.append(windows.permute(1, 2, 0, 3, 4).flatten(0, 1))
        assert (torch.cat(candidates) == result).flatten(1).all(1).any()


@pytest.mark.parametrize("name", AUGMENTED)
def test_augmentation_reaches_every_crop_and_flip_about_equally(name):
    pad, size = DATASETS[name].crop, 16
    image = torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size)
    out = augment(image.expand(20_000, 1, size, size), name, torch.Generator().manual_seed(0))
    centre = out[:, 0, size // 2, size // 2].long()
    flipped = out[:, 0, 8, 7] > out[:, 0, 8, 8]
    down, right = centre // size - size // 2, centre % size - size // 2
    assert abs(flipped.double().mean().item() - 0.5) < 0.02
    right = torch.where(flipped, -1 - right, right)  # the mirror image of column c is size - 1 - c
    counts = ((down + pad) * (2 * pad + 1) + right + pad).bincount(minlength=(2 * pad + 1) ** 2)
    assert len(counts) == (2 * pad + 1) ** 2
    expected = 20_000 / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < 2 * len(counts)  # chi-square, far out in its tail


def test_augmentation_is_reproducible_and_leaves_the_global_random_state_alone():
    x = torch.rand(32, 3, 32, 32)
    state = torch.get_rng_state()
    one, other, later = (
        augment(x, "cifar10", g) for g in [torch.Generator().manual_seed(1)] + 2 * [torch.Generator().manual_seed(1)]
    )
    assert torch.equal(one, other) and not torch.equal(other, later)
    assert torch.equal(torch.get_rng_state(), state)
    bytes_ = (x * 255).to(torch.uint8)
    assert torch.equal(
        to_float(augment(bytes_, "cifar10", torch.Generator().manual_seed(1))),
        augment(to_float(bytes_), "cifar10", torch.Generator().manual_seed(1)),
    )


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion-mnist", "folder:anything"])
def test_other_datasets_are_not_augmented(name):
    x, generator = torch.rand(4, 1, 28, 28), torch.Generator()
    state = generator.get_state()
    assert augment(x, name, generator) is x
    assert torch.equal(generator.get_state(), state)


def test_augment_refuses_what_is_not_a_batch_of_images():
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got shape \(3, 32, 32\)"):
        augment(torch.zeros(3, 32, 32), "cifar10", torch.Generator())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_augmentation_on_a_gpu():
    x = torch.rand(64, 3, 32, 32)
    here = augment(x, "cifar10", torch.Generator().manual_seed(0))
    there = augment(x.cuda(), "cifar10", torch.Generator().manual_seed(0))  # a CPU generator gives the same there
    assert there.is_cuda and torch.equal(here, there.cpu())
    generators = [torch.Generator("cuda").manual_seed(0) for _ in range(2)]
    assert torch.equal(*(augment(x.cuda(), "cifar10", g) for g in generators))
    assert to_float(torch.zeros(2, dtype=torch.uint8), "cuda").is_cuda
