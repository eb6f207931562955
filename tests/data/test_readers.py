"""Every layout: real files where they are at hand, small generated ones always."""

import hashlib
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, MNIST

from acertlab.data.datasets import load_dataset, to_float
from tests.helpers.image_files import (
    IDX_FILES,
    as_tensor,
    assert_as_published,
    assert_same,
    real,
    rows,
    save_image,
    write_folder,
    write_idx,
)

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
pytestmark = pytest.mark.usefixtures("offline")


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


# ---- IDX files


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


# ---- CIFAR-10's pickles


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


# ---- folders of images


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
