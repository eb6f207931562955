"""Files of images in the layouts of datasets."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from acertlab.data.datasets import DATASETS

REAL = Path(os.environ.get("ACERTLAB_DATA", "data/datasets"))
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


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


def assert_same(one, other):
    for part in ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y"):
        assert torch.equal(getattr(one, part), getattr(other, part)), part


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


def write_folder(folder, rng, classes=("ant", "bee", "cat"), per_class=4, shape=(6, 5, 3), suffix="png"):
    """folder/CLASS/i.png; returns the images with their labels."""
    stored = set()
    for label, name in enumerate(classes):
        for i in range(per_class):
            array = rng.integers(0, 256, shape, np.uint8)
            save_image(folder / name / f"{i}.{suffix}", array)
            stored.add((as_tensor(array).contiguous().numpy().tobytes(), label))
    return stored


def write_two_classes(folder: Path, seed: int) -> None:
    """Twenty images of each of two classes, of one size in bytes whatever they show."""
    draw = np.random.default_rng(seed)
    for label, name in enumerate(("dark", "bright")):
        (folder / name).mkdir(parents=True)
        for i in range(20):
            pixels = draw.integers(0, 128, (6, 6)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{i}.bmp")
