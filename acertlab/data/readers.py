"""Readers of the datasets' own layouts: from files to uint8 tensors, decoded images kept in a checked cache."""

import gzip
import hashlib
import json
import os
import struct
import warnings
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from acertlab.data.files import shown, walk, written_aside

DEFAULT_CACHE = "~/.cache/acertlab"
IMG_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
# What a reader returns: train_x, train_y, test_x, test_y, classes; None where the place does not hold the dataset.
Raw = tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]


def read_digits(place: Path) -> Raw:
    """Handwritten digits, which come with the package wherever `place` is; a fixed fifth is the test part.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998
    (CC BY 4.0): its test part, as in scikit-learn.
    """
    with np.load(Path(__file__).with_name("digits.npz")) as file:  # values 0 to 16
        images, labels = file["images"], file["labels"]
    x = torch.from_numpy(np.rint(images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    y = torch.from_numpy(labels).long()
    order = permutation(len(y))
    test, train = order[: len(y) // 5], order[len(y) // 5 :]
    return x[train], y[train], x[test], y[test], tuple(map(str, range(10)))


def read_idx_folder(place: Path, classes: Sequence[str]) -> Raw | None:
    """The four files of MNIST and its kin, each plain or gzipped."""
    files, missing = [], []
    for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        found = [f for f in (place / f"{stem}-ubyte", place / f"{stem}-ubyte.gz") if f.is_file()]
        files += found[:1]
        missing += [] if found else [f"{stem}-ubyte"]
    if missing:
        return _incomplete(place, missing) if files else None
    parts = []
    for images, labels in (files[:2], files[2:]):
        x, y = _read_idx(images, 3).unsqueeze(1), _read_idx(labels, 1).long()
        if len(x) != len(y):
            raise ValueError(f"{images} holds {len(x)} images, but {labels} holds {len(y)} labels")
        if int(y.max()) >= len(classes):
            raise ValueError(f"{labels}: expected labels 0 to {len(classes) - 1}, got {int(y.max())}")
        parts += [x, y]
    return *parts, tuple(classes)


def _incomplete(place: Path, missing: Sequence[str]) -> NoReturn:
    raise FileNotFoundError(f"{place} lacks {', '.join(missing)}")


def _read_idx(path: Path, ndim: int) -> Tensor:
    """One IDX file of bytes: a magic number (0, 0, 8, ndim), big-endian int32 sizes, then the values.

    torchvision's reader takes no .gz, and its errors name neither the file nor what is wrong with it.
    """
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            content = bytearray(file.read())
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file ({error})") from error
    header, magic, start = 4 + 4 * ndim, f"000008{ndim:02x}", content[:4].hex()
    if len(content) < header or start != magic:
        raise ValueError(f"{path}: expected an IDX file of {ndim}-dimensional bytes (starts 0x{magic}), got 0x{start}")
    shape, size = struct.unpack(f">{ndim}I", content[4:header]), len(content) - header
    if size != prod(shape) or size == 0:
        raise ValueError(f"{path}: expected {prod(shape)} values for shape {shape}, got {size}; truncated or damaged")
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(shape)


def read_cifar_batches(place: Path) -> Raw | None:
    """CIFAR-10's pickles, unpickled by torchvision after it has verified their checksums."""
    if not place.is_dir():
        return None
    from torchvision.datasets import CIFAR10  # with all its networks and a compiler: two seconds

    with warnings.catch_warnings():
        # numpy 2.4.0 to 2.4.4 warn about dtypes pickled by numpy 1, as these were.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        try:
            train, test = (CIFAR10(place.parent, train=part) for part in (True, False))
        except RuntimeError as error:
            raise ValueError(f"{place}: a file is missing or does not match CIFAR-10's checksum ({error})") from error
    x, test_x = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
    return x, torch.tensor(train.targets), test_x, torch.tensor(test.targets), tuple(train.classes)


def read_tinyimagenet(place: Path) -> Raw | None:
    """The original layout; labels are positions in the sorted WNIDs, as everywhere that ImageFolder is used."""
    annotations, words = place / "val" / "val_annotations.txt", place / "words.txt"
    needed = {"words.txt": words.is_file(), "train": (place / "train").is_dir()}
    needed["val/val_annotations.txt"] = annotations.is_file()
    if not all(needed.values()):
        return _incomplete(place, [name for name in needed if not needed[name]]) if any(needed.values()) else None
    (train, wnids), test = _list_images(place / "train"), []
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        file, wnid = [*line.split("\t"), ""][:2]
        if wnid not in labels:
            raise ValueError(f"{annotations}, line {number}: expected FILE<tab>WNID, a class of train/; got {line!r}")
        test.append((str(place / "val" / "images" / file), labels[wnid]))
    names = dict(line.split("\t", 1) for line in words.read_text(encoding="utf-8").splitlines() if "\t" in line)
    classes = tuple(names.get(wnid, wnid).split(",")[0] for wnid in wnids)
    return _decoded(place, classes, train, test)


def read_split_folders(place: Path) -> Raw | None:
    """{train,test}/CLASS/* under `place`; other folders beside them are not read."""
    if not ((place / "train").is_dir() and (place / "test").is_dir()):
        return None
    (train, classes), (test, test_classes) = (_list_images(place / part) for part in ("train", "test"))
    if classes != test_classes:
        raise ValueError(f"{place}: train/ and test/ differ in classes {sorted({*classes} ^ {*test_classes})}")
    return _decoded(place, tuple(classes), train, test)


def read_any_folder(place: Path) -> Raw:
    """folder:PATH in either layout; images that are all grey get one channel."""
    accepted = f"accepted: {place}/{{train,test}}/CLASS/*.png|jpg or {place}/CLASS/*.png|jpg"
    if not place.is_dir():
        raise FileNotFoundError(f"folder {place} does not exist; {accepted}")
    nested = [part for part in ("train", "test") if any(f.is_dir() and shown(f.name) for f in (place / part).glob("*"))]
    if len(nested) == 1:
        raise ValueError(f"folder {place} has {nested[0]}/CLASS only; {accepted}")
    raw = read_split_folders(place) if nested else None
    if raw is None:
        samples, classes = _list_images(place)
        n_test = -(-len(samples) // 5)
        raw = _decoded(place, tuple(classes), samples[n_test:], samples[:n_test])
    train_x, train_y, test_x, test_y, classes = raw
    if all(torch.equal(x[:, 0], x[:, channel]) for x in (train_x, test_x) for channel in (1, 2)):
        return train_x[:, :1], train_y, test_x[:, :1].clone(), test_y, classes
    return raw


def _list_images(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(path, label) of every image of folder/CLASS, in a fixed shuffled order, and the classes."""
    real = folder.resolve()
    inside = [path for path in folder.iterdir() if path.is_dir() and shown(path.name)]
    classes = sorted(path.name for path in inside if not real.is_relative_to(path.resolve()))  # no link to itself
    if not classes:
        raise ValueError(f"{folder}: Couldn't find any class folder")
    samples = [
        (os.path.join(path, file), label)
        for label, name in enumerate(classes)
        for path, _, files in sorted(walk(folder / name))
        for file in files
        if file.lower().endswith(IMG_EXTENSIONS)
    ]
    if empty := [name for i, name in enumerate(classes) if i not in {label for _, label in samples}]:
        extensions = ", ".join(IMG_EXTENSIONS)
        raise ValueError(f"{folder}: Found no valid file for the classes {', '.join(empty)}; accepted are {extensions}")
    return [samples[i] for i in permutation(len(samples)).tolist()], classes


def _decoded(folder: Path, classes: tuple[str, ...], train: list[tuple[str, int]], test: list[tuple[str, int]]) -> Raw:
    """All images of a folder as tensors: from the cache if no file has changed since, else decoded and cached."""
    digest = hashlib.sha256(json.dumps(["acertlab 2", len(train), classes]).encode())
    for path, label in train + test:
        stat = os.stat(path)
        # size and mtime can be kept when a file is replaced (cp -p, rsync -t); its number and the time of its last
        # change cannot
        known = (os.path.relpath(path, folder), label, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
        digest.update(f"{known}\n".encode())
    fingerprint = digest.hexdigest()
    root = Path(os.environ.get("ACERTLAB_CACHE") or DEFAULT_CACHE).expanduser()
    # One file per folder, so that a folder that changes does not leave a gigabyte behind each time.
    cache = root / f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:12]}.safetensors"
    x = _read_cache(cache, fingerprint)
    if x is None:
        x = _decode([path for path, _ in train + test], f"decoding {folder.name}")
        _write_cache(cache, x, fingerprint)
    y, n = torch.tensor([label for _, label in train + test]), len(train)
    return x[:n], y[:n], x[n:].clone(), y[n:], classes  # cloned: a view would keep all of x alive


def _decode(paths: list[str], description: str) -> Tensor:
    """Image files -> uint8 (N, 3, H, W), turned as their EXIF says; grey images are repeated in three channels."""
    from PIL import Image, ImageOps

    transparent: list[str] = []

    def decode(path: str) -> Tensor:
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"{path}: expected 8 bits a channel, got Pillow's mode {image.mode}")
                if image.has_transparency_data:
                    transparent.append(path)
                upright = ImageOps.exif_transpose(image)
                return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # some damaged PNGs are a SyntaxError
            raise ValueError(f"{path}: not a readable image ({error})") from error

    first = decode(paths[0])
    x = torch.empty(len(paths), *first.shape, dtype=torch.uint8)

    def fill(i: int) -> None:
        image = decode(paths[i])
        if image.shape != first.shape:
            sizes = [f"{w}x{h}" for _, h, w in (image.shape, first.shape)]
            raise ValueError(f"{paths[i]} is {sizes[0]}, but {paths[0]} is {sizes[1]}: all images must have one size")
        x[i] = image

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding releases the GIL
        for _ in tqdm(pool.map(fill, range(len(paths))), description, len(paths), disable=len(paths) < 1000):
            pass
    if transparent:
        count = len(set(transparent))
        warnings.warn(f"{count} images have transparency, as {min(transparent)}: it is dropped", stacklevel=2)
    return x


def _read_cache(path: Path, fingerprint: str) -> Tensor | None:
    """The cached images, or None where the file is missing, out of date or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            x = file.get_tensor("x")
    except (OSError, SafetensorError):
        return None
    return x if metadata.get("crc32") == _checksum(x) else None


def _checksum(x: Tensor) -> str:
    return str(zlib.crc32(x.numpy().data))


def _write_cache(path: Path, x: Tensor, fingerprint: str) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with written_aside(path) as aside:
            save_file({"x": x}, aside, metadata={"fingerprint": fingerprint, "crc32": _checksum(x)})
    except (OSError, SafetensorError) as error:
        warnings.warn(f"decoded images were not cached in {path.parent} ({error}); set ACERTLAB_CACHE", stacklevel=2)


def permutation(n: int, seed: int = 0) -> Tensor:
    """The numbers below n in a shuffled order that the seed alone decides."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))
