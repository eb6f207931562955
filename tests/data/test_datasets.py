"""The table of datasets, splits, downloads and augmentation."""

import hashlib
import http.server
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings, strategies as st
from torchvision.datasets import MNIST

from acertlab.data import datasets as data
from acertlab.data.datasets import DATASETS, Dataset, augment, certified_at, load_dataset, to_float
from acertlab.data.readers import read_idx_folder
from tests.helpers.image_files import IDX_FILES, assert_as_published, assert_same, rows, write_idx

URLOPEN = urllib.request.urlopen
AUGMENTED = sorted(name for name, known in DATASETS.items() if known.crop)
pytestmark = pytest.mark.usefixtures("offline")


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


def test_a_dataset_is_one_entry_of_the_table(tmp_path, rng, monkeypatch):
    arrays = write_idx(tmp_path / "kana", rng)
    read = partial(read_idx_folder, classes=[str(i) for i in range(10)])
    entry = Dataset(
        "Kuzushiji-MNIST",
        (1, 28, 28),
        10,
        (12, 5),
        {"kana": read},
        mean=(0.2,),
        std=(0.3,),
        crop=2,
        certified_at=(0.1,),
    )
    monkeypatch.setitem(DATASETS, "kmnist", entry)
    images = load_dataset("kmnist", root=tmp_path, val_fraction=0)
    assert np.array_equal(images.test_x[:, 0].numpy(), arrays[IDX_FILES[2]])
    assert_as_published("kmnist", images)
    assert certified_at("kmnist", 0.2, 0.25) == [0.1, 0.2] and certified_at("kmnist", 0.05, 0.06) == [0.05]
    assert not torch.equal(augment(images.train_x, "kmnist", torch.Generator().manual_seed(0)), images.train_x)
    with pytest.raises(
        FileNotFoundError, match=r"'kmnist' was not found\. Looked for it at:\n.*kana\n.*\n.*holds kana$"
    ):
        load_dataset("kmnist", root=tmp_path / "elsewhere")


def test_seed_must_be_an_integer():
    with pytest.raises(TypeError, match="seed must be an int"):
        load_dataset("digits", seed=0.5)
    assert_same(load_dataset("digits", seed=np.int64(3)), load_dataset("digits", seed=3))


def test_data_root_comes_from_the_environment(tmp_path, rng, monkeypatch):
    write_idx(tmp_path / "here" / "MNIST/raw", rng)
    monkeypatch.setenv("ACERTLAB_DATA", str(tmp_path / "here"))
    assert len(load_dataset("mnist").test_y) == 5
    write_idx(tmp_path / "data" / "datasets" / "MNIST/raw", rng, n=(12, 7))
    monkeypatch.delenv("ACERTLAB_DATA")
    monkeypatch.chdir(tmp_path)
    assert len(load_dataset("mnist").test_y) == 7


# ---- missing datasets, and downloads


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


# ---- augmentation


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
