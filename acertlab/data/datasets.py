"""A dataset by name: uint8 images, a seeded validation split, and the training augmentation.

    data = load_dataset("mnist")                # ImageData
    x = to_float(data.test_x[:100])             # float32 in [0, 1]: pixel units, the unit of every eps

Normalisation is not done here: it is the model's first layer (`models.Normalize`), so that eps stays in pixel units.
"""

import os
import socket
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST
from torchvision.datasets.utils import download_and_extract_archive

from acertlab.data.readers import (
    Raw,
    permutation,
    read_any_folder,
    read_cifar_batches,
    read_digits,
    read_idx_folder,
    read_split_folders,
    read_tinyimagenet,
)

# Channel means and standard deviations in pixel units, for models.Normalize. Other datasets are not normalised.
MEAN_STD = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "tinyimagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
# Pixels of edge padding for the random crop that follows the random horizontal flip. Other datasets: no augmentation.
AUGMENTATION = {"cifar10": 2, "tinyimagenet": 4}
DEFAULT_ROOT = "data/datasets"
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

    def first(self, n: int) -> "ImageData":
        """The first n images of each part, which are a fair sample of it."""
        names = ("train_x", "train_y", "val_x", "val_y", "test_x", "test_y")
        return replace(self, **{name: getattr(self, name)[:n] for name in names})

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
        raw = read_digits()
    elif name.startswith("folder:"):
        raw = read_any_folder(Path(name.removeprefix("folder:")).expanduser())
    else:
        root = Path(root or os.environ.get("ACERTLAB_DATA") or DEFAULT_ROOT)
        raw = _find(name, root.expanduser().absolute(), download)
    train_x, train_y, test_x, test_y, classes = raw
    if not (len(train_y) and len(test_y)):
        raise ValueError(
            f"{name!r} needs images in both parts, got {len(train_y)} for training, {len(test_y)} for test"
        )
    n_val = min(round(val_fraction * len(train_y)), len(train_y) - 1)
    order = permutation(len(train_y), int(seed))
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


@dataclass(frozen=True)
class Source:
    """Where a dataset may lie: place under the root -> its reader, in order; the layout in words; how to fetch it."""

    places: dict[str, Callable[[Path], Raw | None]]
    layout: str
    url: str
    fetch: Callable[[Path], object]


_mnist = partial(read_idx_folder, classes=[str(i) for i in range(10)])
_fashion = partial(read_idx_folder, classes=FashionMNIST.classes)
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
        {"cifar-10-batches-py": read_cifar_batches, "cifar10": read_split_folders},
        "cifar-10-batches-py/{data_batch_[1-5],test_batch,batches.meta}, or cifar10/{train,test}/CLASS/*.png|jpg",
        CIFAR10.url,
        partial(CIFAR10, download=True),
    ),
    "tinyimagenet": Source(
        {"tiny-imagenet-200": read_tinyimagenet},
        "tiny-imagenet-200/{words.txt,train/WNID/images/*.JPEG,val/images/*.JPEG,val/val_annotations.txt}",
        TINYIMAGENET_ZIP,
        partial(download_and_extract_archive, TINYIMAGENET_ZIP, md5="90528d7ca1a48142e341f4ef8d21d0de"),
    ),
}


def _check_name(name: str) -> None:
    if name not in ("digits", *SOURCES) and not (isinstance(name, str) and name.startswith("folder:")):
        choices = ", ".join(("digits", *SOURCES, "folder:PATH"))
        raise ValueError(f"unknown dataset name {name!r}; choose one of: {choices}")


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


DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "tinyimagenet")
CERTIFIED_AT: dict[str, tuple[float, ...]] = {  # where certified accuracy is reported: the literature's eps
    "digits": (0.05, 0.1, 0.15, 0.2),
    "mnist": (0.1, 0.2, 0.3, 0.4),
    "fashion-mnist": (0.05, 0.1),
    "cifar10": (2 / 255, 8 / 255),
    "tinyimagenet": (1 / 255,),
}


def certified_at(dataset: str, eps_max: float, cap: float) -> list[float]:
    """Where a run reports certified accuracy: at the literature's eps and at eps_max, as far as radii are searched."""
    return sorted({eps for eps in (*CERTIFIED_AT.get(dataset, ()), eps_max) if eps <= cap})
