"""A dataset by name: uint8 images, a seeded validation split, and the training augmentation.

    data = load_dataset("mnist")                # ImageData
    x = to_float(data.test_x[:100])             # float32 in [0, 1]: pixel units, the unit of every eps

Normalisation is not done here: it is the model's first layer (`models.Normalize`), so that eps stays in pixel units.
"""

import gzip
import hashlib
import json
import os
import socket
import struct
import threading
import urllib.request
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST, ImageFolder
from torchvision.datasets.utils import download_and_extract_archive
from tqdm import tqdm

# Channel means and standard deviations in pixel units, for models.Normalize. Other datasets are not normalised.
MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
# Pixels of edge padding for the random crop that follows the random horizontal flip. Other datasets: no augmentation.
AUGMENTATION = {"cifar10": 2, "tinyimagenet": 4}

DEFAULT_ROOT = "data/datasets"
DEFAULT_CACHE = "~/.cache/acertlab"
TINYIMAGENET_ZIP = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A dataset in three parts.

    Args:
        name: The name given to `load_dataset`.
        train_x, val_x, test_x: Images, uint8 (N, C, H, W).
        train_y, val_y, test_y: Labels, int64 (N,).
        classes: A name for each label.
        mean, std: Per channel in pixel units, for `models.Normalize`; None where the images are not normalised.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def in_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return tuple(self.train_x.shape[1:])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __repr__(self) -> str:
        sizes = f"{len(self.train_x)} train, {len(self.val_x)} val, {len(self.test_x)} test"
        return f"ImageData({self.name!r}: {sizes}; images {self.in_shape}, {self.num_classes} classes)"


def load_dataset(
    name: str, root: str | Path | None = None, val_fraction: float = 0.1, seed: int = 0, download: bool = True
) -> ImageData:
    """A dataset by name, with a validation split that is held out of its training images and never augmented.

    Image files are decoded once and kept as tensors in `$ACERTLAB_CACHE` (default `~/.cache/acertlab`), in one fixed
    shuffled order, so that the first n images of a part are a fair sample of it.

    Args:
        name: "digits" (comes with scikit-learn; values 0..16 are stored as round(v * 255 / 16); a fixed fifth is the
            test part), "mnist", "fashion-mnist", "cifar10", "tinyimagenet" (its published validation images are the
            test part, since its test labels are not public), or "folder:PATH" with PATH/{train,test}/CLASS/*.png|jpg,
            or with PATH/CLASS/*.png|jpg, of which a fixed fifth is the test part.
        root: Folder that holds the datasets. Default: `$ACERTLAB_DATA`, else `data/datasets` under the current folder.
        val_fraction: Share of the training images held out, in [0, 1); 0: none.
        seed: Chooses the validation images; the test part never depends on it, nor on any global random state.
        download: Fetch a dataset that is not under `root` into it, where there is a network.

    Raises:
        ValueError: Unknown name, val_fraction outside [0, 1), or a damaged file (named in the message).
        FileNotFoundError: The dataset is not there; the message says where it was sought and how to get it.
    """
    _check_name(name)
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction!r}")
    if not isinstance(seed, Integral):
        raise TypeError(f"seed must be an int, got {seed!r}")
    if name == "digits":
        raw = _read_digits()
    elif name.startswith("folder:"):
        raw = _read_any_folder(Path(name.removeprefix("folder:")).expanduser())
    else:
        root = Path(root or os.environ.get("ACERTLAB_DATA") or DEFAULT_ROOT)
        raw = _find(name, root.expanduser().absolute(), download)
    train_x, train_y, test_x, test_y, classes = raw
    if not (len(train_y) and len(test_y)):
        raise ValueError(
            f"{name!r} needs images in both parts, got {len(train_y)} for training, {len(test_y)} for test"
        )
    n_val = min(round(val_fraction * len(train_y)), len(train_y) - 1)
    order = _permutation(len(train_y), int(seed))
    val, train = order[:n_val].sort().values, order[n_val:].sort().values
    parts = (train_x[train], train_y[train], train_x[val], train_y[val], test_x, test_y)
    return ImageData(name, *parts, classes, *MEAN_STD.get(name, (None, None)))


def to_float(x: Tensor, device: torch.device | str | None = None) -> Tensor:
    """uint8 images (any shape) as float32 in [0, 1], x / 255; moved to `device` while they are still bytes."""
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be uint8 images, got {x.dtype}")
    return x.to(device=device).to(torch.float32).div_(255)


def augment(x: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Training augmentation: a random flip, then a random crop of the edge-padded image (see AUGMENTATION).

    Args:
        x: Images (B, C, H, W), any dtype and device.
        name: The dataset's name; one that is not in AUGMENTATION leaves x as it is.
        generator: Source of all randomness, on the CPU or on x's device.

    Returns:
        Images (B, C, H, W), each pixel one of the input's.
    """
    _check_name(name)
    if x.ndim != 4:
        raise ValueError(f"x must be images (B, C, H, W), got shape {tuple(x.shape)}")
    if name not in AUGMENTATION:
        return x
    pad, (b, c, h, w) = AUGMENTATION[name], x.shape
    draw = partial(torch.randint, size=(b, 1), generator=generator, device=generator.device)
    down, right, flip = (t.to(x.device) for t in (draw(-pad, pad + 1), draw(-pad, pad + 1), draw(0, 2)))
    # Clamping the source coordinates is edge padding, without the padded copy.
    rows = (torch.arange(h, device=x.device) + down).clamp_(0, h - 1)  # (B, H)
    columns = (torch.arange(w, device=x.device) + right).clamp_(0, w - 1)  # (B, W)
    columns = torch.where(flip.bool(), w - 1 - columns, columns)
    pixels = rows[:, :, None] * w + columns[:, None, :]  # (B, H, W): where each output pixel comes from
    return x.flatten(2).gather(2, pixels.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)


# What a reader returns: train_x, train_y, test_x, test_y, classes; None where the place does not hold the dataset.
Raw = tuple[Tensor, Tensor, Tensor, Tensor, tuple[str, ...]]


def _read_digits() -> Raw:
    from sklearn.datasets import load_digits  # imported here because it takes a second and only this dataset needs it

    digits = load_digits()
    x = torch.from_numpy(np.rint(digits.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    y = torch.from_numpy(digits.target).long()
    order = _permutation(len(y))
    test, train = order[: len(y) // 5], order[len(y) // 5 :]
    return x[train], y[train], x[test], y[test], tuple(map(str, range(10)))


def _read_idx_folder(place: Path, classes: Sequence[str]) -> Raw | None:
    """The four files of MNIST and its kin, each plain or gzipped."""
    files = []
    for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        found = [f for f in (place / f"{stem}-ubyte", place / f"{stem}-ubyte.gz") if f.is_file()]
        if not found:
            return None
        files.append(found[0])
    parts = []
    for images, labels in (files[:2], files[2:]):
        x, y = _read_idx(images, 3).unsqueeze(1), _read_idx(labels, 1).long()
        if len(x) != len(y):
            raise ValueError(f"{images} holds {len(x)} images, but {labels} holds {len(y)} labels")
        if int(y.max()) >= len(classes):
            raise ValueError(f"{labels}: expected labels 0 to {len(classes) - 1}, got {int(y.max())}")
        parts += [x, y]
    return *parts, tuple(classes)


def _read_idx(path: Path, ndim: int) -> Tensor:
    """One IDX file of bytes: a magic number (0, 0, 8, ndim), big-endian int32 sizes, then the values."""
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


def _read_cifar_batches(place: Path) -> Raw | None:
    """CIFAR-10's pickles, unpickled by torchvision after it has verified their checksums."""
    if not place.is_dir():
        return None
    with warnings.catch_warnings():
        # numpy 2.4.0 to 2.4.4 warn about dtypes pickled by numpy 1, as these were.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        try:
            train, test = (CIFAR10(place.parent, train=part) for part in (True, False))
        except RuntimeError as error:
            raise ValueError(f"{place}: a file is missing or does not match CIFAR-10's checksum ({error})") from error
    x, test_x = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
    return x, torch.tensor(train.targets), test_x, torch.tensor(test.targets), tuple(train.classes)


def _read_tinyimagenet(place: Path) -> Raw | None:
    """The original layout; labels are positions in the sorted WNIDs, as everywhere that ImageFolder is used."""
    annotations, words = place / "val" / "val_annotations.txt", place / "words.txt"
    if not (annotations.is_file() and words.is_file() and (place / "train").is_dir()):
        return None
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


def _read_split_folders(place: Path) -> Raw | None:
    """{train,test}/CLASS/* under `place`; other folders beside them are not read."""
    if not ((place / "train").is_dir() and (place / "test").is_dir()):
        return None
    (train, classes), (test, test_classes) = (_list_images(place / part) for part in ("train", "test"))
    if classes != test_classes:
        raise ValueError(f"{place}: train/ and test/ differ in classes {sorted({*classes} ^ {*test_classes})}")
    return _decoded(place, tuple(classes), train, test)


def _read_any_folder(place: Path) -> Raw:
    """folder:PATH in either layout; images that are all grey get one channel."""
    accepted = f"accepted: {place}/{{train,test}}/CLASS/*.png|jpg or {place}/CLASS/*.png|jpg"
    if not place.is_dir():
        raise FileNotFoundError(f"folder {place} does not exist; {accepted}")
    nested = [part for part in ("train", "test") if any(f.is_dir() for f in (place / part).glob("*"))]
    if len(nested) == 1:
        raise ValueError(f"folder {place} has {nested[0]}/CLASS only; {accepted}")
    if nested:
        raw = _read_split_folders(place)
    else:
        samples, classes = _list_images(place)
        n_test = -(-len(samples) // 5)
        raw = _decoded(place, tuple(classes), samples[n_test:], samples[:n_test])
    train_x, train_y, test_x, test_y, classes = raw
    if all(torch.equal(x[:, 0], x[:, channel]) for x in (train_x, test_x) for channel in (1, 2)):
        return train_x[:, :1], train_y, test_x[:, :1].clone(), test_y, classes
    return raw


def _list_images(folder: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """(path, label) of every image of folder/CLASS, in a fixed shuffled order, and the classes."""
    try:
        images = ImageFolder(folder)
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: {error}") from error
    return [images.samples[i] for i in _permutation(len(images)).tolist()], images.classes


def _decoded(folder: Path, classes: tuple[str, ...], train: list[tuple[str, int]], test: list[tuple[str, int]]) -> Raw:
    """All images of a folder as tensors: from the cache if no file has changed since, else decoded and cached."""
    digest = hashlib.sha256(json.dumps(["acertlab 1", len(train), classes]).encode())
    for path, label in train + test:
        stat = os.stat(path)
        digest.update(f"{os.path.relpath(path, folder)}\0{label}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
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
    """Image files -> uint8 (N, 3, H, W); grey images are repeated in three channels."""

    def decode(path: str) -> Tensor:
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"{path}: expected 8 bits a channel, got Pillow's mode {image.mode}")
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (OSError, SyntaxError) as error:  # Pillow raises the latter for some damaged PNGs
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
    return x


def _read_cache(path: Path, fingerprint: str) -> Tensor | None:
    """The cached images, or None where the file is missing, out of date or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            x = file.get_tensor("x")
    except (OSError, SafetensorError):
        return None
    return x if metadata.get("crc32") == str(zlib.crc32(x.numpy())) else None


def _write_cache(path: Path, x: Tensor, fingerprint: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as aside:
            file = Path(aside, path.name)
            save_file({"x": x}, file, metadata={"fingerprint": fingerprint, "crc32": str(zlib.crc32(x.numpy()))})
            os.replace(file, path)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"decoded images were not cached in {path.parent} ({error}); set ACERTLAB_CACHE", stacklevel=2)


@dataclass(frozen=True)
class Source:
    """Where a dataset may lie: place under the root -> its reader, in order; the layout in words; how to fetch it."""

    places: dict[str, Callable[[Path], Raw | None]]
    layout: str
    url: str
    fetch: Callable[[Path], object]


_mnist = partial(_read_idx_folder, classes=[str(i) for i in range(10)])
_fashion = partial(_read_idx_folder, classes=FashionMNIST.classes)
SOURCES = {
    "mnist": Source(
        {"MNIST/raw": _mnist},
        "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte (plain or .gz)",
        MNIST.mirrors[0] + MNIST.resources[0][0],
        partial(MNIST, download=True),
    ),
    "fashion-mnist": Source(
        {"FashionMNIST/raw": _fashion, "/usr/share/datasets/fashion-mnist": _fashion},  # the latter is Debian's
        "FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte (plain or .gz), "
        "or install Debian's package dataset-fashion-mnist",
        FashionMNIST.mirrors[0] + FashionMNIST.resources[0][0],
        partial(FashionMNIST, download=True),
    ),
    "cifar10": Source(
        {"cifar-10-batches-py": _read_cifar_batches, "cifar10": _read_split_folders},
        "cifar-10-batches-py/{data_batch_[1-5],test_batch,batches.meta}, or cifar10/{train,test}/CLASS/*.png|jpg",
        CIFAR10.url,
        partial(CIFAR10, download=True),
    ),
    "tinyimagenet": Source(
        {"tiny-imagenet-200": _read_tinyimagenet},
        "tiny-imagenet-200/{words.txt,train/WNID/images/*.JPEG,val/images/*.JPEG,val/val_annotations.txt}",
        TINYIMAGENET_ZIP,
        partial(download_and_extract_archive, TINYIMAGENET_ZIP, md5="90528d7ca1a48142e341f4ef8d21d0de"),
    ),
}


def _check_name(name: str) -> None:
    if name not in ("digits", *SOURCES) and not (isinstance(name, str) and name.startswith("folder:")):
        choices = ", ".join(("digits", *SOURCES, "folder:PATH"))
        raise ValueError(f"unknown dataset name {name!r}; choose one of: {choices}")


def _permutation(n: int, seed: int = 0) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def _find(name: str, root: Path, download: bool) -> Raw:
    """Reads the first place that holds the dataset; where none does, fetches it once and looks again."""
    source, failure = SOURCES[name], None

    def look() -> Raw | None:
        return next((raw for place, read in source.places.items() if (raw := read(root / place)) is not None), None)

    raw = look()
    if raw is None and download:
        try:
            _download(source, root)
        except Exception as error:  # torchvision lets through whatever urllib, http.client or tarfile raise
            failure = error
        else:
            raw = look()
    if raw is not None:
        return raw
    looked = "".join(f"\n  {root / place}" for place in source.places)
    command = f"""python -c "from acertlab.data import load_dataset; load_dataset('{name}', root='{DEFAULT_ROOT}')\""""
    raise FileNotFoundError(
        f"dataset {name!r} was not found{f', and downloading it failed ({failure})' if failure else ''}. "
        f"Looked for it at:{looked}\nTwo ways to get it:\n  1. on a machine with a network: {command}\n"
        f"  2. give root=... or ACERTLAB_DATA=... a folder that holds {source.layout}"
    ) from failure


def _download(source: Source, root: Path, patience: float = 10.0) -> None:
    """Fetches into root; where there is no network, an error after at most `patience` seconds."""
    outcome: list[Exception | None] = [TimeoutError(f"{source.url} did not answer within {patience:g} s")]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(source.url, method="HEAD"), timeout=patience).close()
            outcome[0] = None
        except Exception as error:
            outcome[0] = error

    # In a thread: urlopen's own timeout covers neither the resolver nor a list of addresses that all stay silent.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    if outcome[0]:
        raise outcome[0]
    before, top = socket.getdefaulttimeout(), Path(next(iter(source.places))).parts[0]
    socket.setdefaulttimeout(3 * patience)  # torchvision's requests have no timeout of their own
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root) as aside:  # half an archive could pass for a dataset
            source.fetch(aside)
            os.replace(Path(aside, top), root / top)
    finally:
        socket.setdefaulttimeout(before)
