"""A dataset by name: uint8 images, a seeded validation split, and the training augmentation.

    data = load_dataset("mnist")                # ImageData
    x = to_float(data.test_x[:100])             # float32 in [0, 1]: pixel units, the unit of every eps

Normalisation is not done here: it is the model's first layer (`models.Normalize`), so that eps stays in pixel units.
A new dataset is one entry of `DATASETS` and one row of `acertlab.training.presets`.
"""

import hashlib
import multiprocessing
import os
import socket
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from numbers import Integral
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from acertlab.data import readers

DEFAULT_ROOT = "data/datasets"
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """All that is known of a dataset."""

    title: str  # its name as papers write it
    shape: tuple[int, ...] = ()  # (C, H, W) of an image
    classes: int = 0  # how many
    sizes: tuple[int, ...] = ()  # images for training and for test, as published
    # where it may lie below the root -> its reader; the first place that holds it is read
    places: Mapping[str, Callable[[Path], readers.Raw | None]] = field(default_factory=dict)
    layout: str = ""  # what must lie there, in words
    url: str = ""  # what a download asks first, to see whether there is a network; "": there is no download
    fetch: Callable[[str], object] | None = None  # downloads into a folder, in the layout of the first place
    mean: tuple[float, ...] | None = None  # per channel in pixel units, for `models.Normalize`; None: not normalised
    std: tuple[float, ...] | None = None
    crop: int = 0  # pixels of edge padding for the random crop after a random horizontal flip; 0: no augmentation
    certified_at: tuple[float, ...] = ()  # where certified accuracy is reported, pixel units: the literature's eps


def _by_torchvision(name: str, folder: str) -> None:
    from torchvision import datasets  # with all its networks and a compiler: two seconds, for a download only

    getattr(datasets, name)(folder, download=True)


def _fetch_tinyimagenet(folder: str) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(_tinyimagenet_zip, folder, md5="90528d7ca1a48142e341f4ef8d21d0de")


_clothes = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_read_mnist = partial(readers.read_idx_folder, classes=[str(i) for i in range(10)])
_read_fashion = partial(readers.read_idx_folder, classes=_clothes)
_idx_layout = "raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte (plain or .gz)"
_tinyimagenet_zip = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
DATASETS: dict[str, Dataset] = {
    "digits": Dataset(
        title="digits",
        shape=(1, 8, 8),
        classes=10,
        sizes=(1_438, 359),
        places={"": readers.read_digits},  # it comes with the package
        certified_at=(0.05, 0.1, 0.15, 0.2),
    ),
    "mnist": Dataset(
        title="MNIST",
        shape=(1, 28, 28),
        classes=10,
        sizes=(60_000, 10_000),
        places={"MNIST/raw": _read_mnist},
        layout=f"MNIST/{_idx_layout}",
        url="https://ossci-datasets.s3.amazonaws.com/mnist/train-images-idx3-ubyte.gz",
        fetch=partial(_by_torchvision, "MNIST"),
        certified_at=(0.1, 0.2, 0.3, 0.4),
    ),
    "fashion-mnist": Dataset(
        title="Fashion-MNIST",
        shape=(1, 28, 28),
        classes=10,
        sizes=(60_000, 10_000),
        places={"FashionMNIST/raw": _read_fashion, "/usr/share/datasets/fashion-mnist": _read_fashion},
        layout=f"FashionMNIST/{_idx_layout}, or install Debian's package dataset-fashion-mnist",
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-images-idx3-ubyte.gz",
        fetch=partial(_by_torchvision, "FashionMNIST"),
        certified_at=(0.05, 0.1),
    ),
    "cifar10": Dataset(
        title="CIFAR-10",
        shape=(3, 32, 32),
        classes=10,
        sizes=(50_000, 10_000),
        places={"cifar-10-batches-py": readers.read_cifar_batches, "cifar10": readers.read_split_folders},
        layout="cifar-10-batches-py/{data_batch_[1-5],test_batch,batches.meta}, "
        "or cifar10/{train,test}/CLASS/*.png|jpg",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        fetch=partial(_by_torchvision, "CIFAR10"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
        crop=2,
        certified_at=(2 / 255, 8 / 255),
    ),
    "tinyimagenet": Dataset(
        title="TinyImageNet",
        shape=(3, 64, 64),
        classes=200,
        sizes=(100_000, 10_000),
        places={"tiny-imagenet-200": readers.read_tinyimagenet},
        layout="tiny-imagenet-200/{words.txt,train/WNID/images/*.JPEG,val/images/*.JPEG,val/val_annotations.txt}",
        url=_tinyimagenet_zip,
        fetch=_fetch_tinyimagenet,
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2302, 0.2265, 0.2262),
        crop=4,
        certified_at=(1 / 255,),
    ),
}


def find_dataset(name: str) -> Dataset:
    """The entry of a name, "folder:PATH" among them; ValueError, with all names, where there is none."""
    if isinstance(name, str) and name in DATASETS:
        return DATASETS[name]
    if isinstance(name, str) and name.startswith("folder:"):
        folder = Path(name.removeprefix("folder:")).expanduser().absolute()
        return Dataset("a folder of images", places={str(folder): readers.read_any_folder})
    raise ValueError(f"unknown dataset name {name!r}; choose one of: {', '.join((*DATASETS, 'folder:PATH'))}")


@dataclass(frozen=True, eq=False, repr=False)
class ImageData:
    """A dataset in three parts.

    Args:
        name: The name given to `load_dataset`.
        train_x, val_x, test_x: Images, uint8 (N, C, H, W).
        train_y, val_y, test_y: Labels, int64 (N,).
        classes: A name for each label.
        mean, std: Per channel in pixel units, for `models.Normalize`; None where the images are not normalised.

    Example:
        >>> data = al.load_dataset("digits")
        >>> data.in_shape, data.num_classes, data.test_x.dtype
        ((1, 8, 8), 10, torch.uint8)
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
        channels, height, width = self.train_x.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def digests(self) -> dict[str, str]:
        """Of the images and labels of each part: what a run says it was trained and measured on."""
        return {part: _digest(getattr(self, f"{part}_x"), getattr(self, f"{part}_y")) for part in PARTS}

    def first(self, n: int) -> "ImageData":
        """The first n images of each part, which are a fair sample of it."""
        return replace(self, **{f"{part}_{of}": getattr(self, f"{part}_{of}")[:n] for part in PARTS for of in "xy"})

    def __repr__(self) -> str:
        sizes = f"{len(self.train_x)} train, {len(self.val_x)} val, {len(self.test_x)} test"
        return f"ImageData({self.name!r}: {sizes}; images {self.in_shape}, {self.num_classes} classes)"


def _digest(x: Tensor, y: Tensor) -> str:
    digest = hashlib.sha256(f"{tuple(x.shape)}".encode())  # 0.07 s for MNIST, one core
    for values in (x, y.long()):
        digest.update(values.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def load_dataset(
    name: str, root: str | Path | None = None, val_fraction: float = 0.1, seed: int = 0, download: bool = True
) -> ImageData:
    """Load a dataset by name, with a validation split that is held out of its training images and never augmented.

    Image files are decoded once and kept as tensors in `$ACERTLAB_CACHE` (default `~/.cache/acertlab`), in one fixed
    shuffled order, so that the first n images of a part are a fair sample of it.

    Args:
        name: "digits" (comes with the package; values 0..16 are stored as round(v * 255 / 16); a fixed fifth is the
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

    Example:
        >>> data = al.load_dataset("digits")
        >>> [len(part) for part in (data.train_x, data.val_x, data.test_x)]
        [1294, 144, 359]
    """
    known = find_dataset(name)
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction must be in [0, 1), got {val_fraction!r}")
    if not isinstance(seed, Integral):
        raise TypeError(f"seed must be an int, got {seed!r}")
    folder = Path(root or os.environ.get("ACERTLAB_DATA") or DEFAULT_ROOT).expanduser().absolute()
    train_x, train_y, test_x, test_y, classes = _read(name, known, folder, download)
    if not (len(train_y) and len(test_y)):
        raise ValueError(f"{name!r} needs images to train and to test on, got {len(train_y)} and {len(test_y)}")
    n_val = min(round(val_fraction * len(train_y)), len(train_y) - 1)
    order = readers.permutation(len(train_y), int(seed))
    val, train = order[:n_val].sort().values, order[n_val:].sort().values
    parts = (train_x[train], train_y[train], train_x[val], train_y[val], test_x, test_y)
    return ImageData(name, *parts, classes, mean=known.mean, std=known.std)


def to_float(x: Tensor, device: torch.device | str | None = None) -> Tensor:
    """uint8 images (any shape) as float32 in [0, 1], x / 255; moved to `device` while they are still bytes.

    Example:
        >>> al.to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    if x.dtype != torch.uint8:
        raise TypeError(f"x must be uint8 images, got {x.dtype}")
    return x.to(device=device).to(torch.float32).div_(255)


def on_device_of(model: nn.Module, x: Tensor) -> Tensor:
    """Inputs, or uint8 images as floats, on the model's device."""
    device = next((p.device for p in model.parameters()), x.device)
    return to_float(x, device) if x.dtype == torch.uint8 else x.to(device)


def augment(x: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """Training augmentation: a random horizontal flip, then a random crop of the edge-padded image.

    Args:
        x: Images (B, C, H, W), any dtype and device.
        name: The dataset's name; where its `Dataset.crop` is 0, x is returned as it is.
        generator: Source of all randomness, on the CPU or on x's device.

    Returns:
        Images (B, C, H, W), each pixel one of the input's.

    Example:
        >>> al.augment(torch.zeros(4, 3, 32, 32), "cifar10", torch.Generator().manual_seed(0)).shape
        torch.Size([4, 3, 32, 32])
    """
    pad = find_dataset(name).crop
    if x.ndim != 4:
        raise ValueError(f"x must be images (B, C, H, W), got shape {tuple(x.shape)}")
    if not pad:
        return x
    b, c, h, w = x.shape
    draw = partial(torch.randint, size=(b, 1), generator=generator, device=generator.device)
    down, right, flip = (t.to(x.device) for t in (draw(-pad, pad + 1), draw(-pad, pad + 1), draw(0, 2)))
    # Clamping the source coordinates is edge padding, without the padded copy.
    rows = (torch.arange(h, device=x.device) + down).clamp_(0, h - 1)  # (B, H)
    columns = (torch.arange(w, device=x.device) + right).clamp_(0, w - 1)  # (B, W)
    columns = torch.where(flip.bool(), w - 1 - columns, columns)
    pixels = rows[:, :, None] * w + columns[:, None, :]  # (B, H, W): where each output pixel comes from
    return x.flatten(2).gather(2, pixels.view(b, 1, h * w).expand(b, c, h * w)).view(b, c, h, w)


def certified_at(dataset: str, eps_max: float, cap: float) -> list[float]:
    """Where a run reports certified accuracy: the literature's eps and eps_max, as far as radii are searched."""
    return sorted({eps for eps in (*find_dataset(dataset).certified_at, eps_max) if eps <= cap})


def _read(name: str, known: Dataset, root: Path, download: bool) -> readers.Raw:
    """Read the first place that holds the dataset; where none does, download it once and look again."""
    failure, incomplete = None, ""

    def look() -> readers.Raw | None:
        nonlocal incomplete
        for place, read in known.places.items():
            try:
                if (raw := read(root / place)) is not None:
                    return raw
            except FileNotFoundError as error:
                if name not in DATASETS:  # of a folder of one's own the reader has said all
                    raise
                incomplete = incomplete or f": {error}"
        return None

    raw = look()
    if raw is None and download:
        try:
            _download(known, root)
        except Exception as error:  # torchvision lets through whatever urllib, http.client or tarfile raise
            failure = error
        else:
            raw = look()
    if raw is not None:
        return raw
    looked = "".join(f"\n  {root / place}" for place in known.places)
    command = f"""python -c "import acertlab as al; al.load_dataset('{name}', root='{DEFAULT_ROOT}')\""""
    ways = [f"on a machine with a network: {command}"] if known.fetch else []
    ways += [f"give root=... or ACERTLAB_DATA=... a folder that holds {known.layout or ', or '.join(known.places)}"]
    raise FileNotFoundError(
        f"dataset {name!r} was not found{incomplete}{f', and downloading it failed ({failure})' if failure else ''}. "
        f"Looked for it at:{looked}\nTo get it:" + "".join(f"\n  - {way}" for way in ways)
    ) from failure


def _download(known: Dataset, root: Path, patience: float = 10.0) -> None:
    """Download into root; where there is no network, raise after at most `patience` seconds."""
    if known.fetch is None:
        return
    _ask(known.url, patience)
    before, top = socket.getdefaulttimeout(), Path(next(iter(known.places))).parts[0]
    socket.setdefaulttimeout(3 * patience)  # torchvision's requests have no timeout of their own
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root) as aside:  # half an archive could pass for a dataset
            known.fetch(aside)
            if (root / top).exists():

                def move(source: str, target: str) -> None:
                    if not os.path.exists(target):
                        os.replace(source, target)

                copytree(Path(aside, top), root / top, copy_function=move, dirs_exist_ok=True)
            else:
                os.replace(Path(aside, top), root / top)
    finally:
        socket.setdefaulttimeout(before)


def _ask(url: str, patience: float) -> None:
    """Raise where an address does not answer within `patience` seconds."""
    request = urllib.request.Request(url, method="HEAD")
    # In a thread: urlopen's own timeout covers neither the resolver nor a list of addresses that all stay silent.
    with ThreadPool(1) as pool:
        try:
            pool.apply_async(urllib.request.urlopen, (request,), {"timeout": patience}).get(patience).close()
        except multiprocessing.TimeoutError:
            raise TimeoutError(f"{url} did not answer within {patience:g} s") from None
