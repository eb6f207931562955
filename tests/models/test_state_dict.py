"""Checkpoints in published layouts, and files that are hostile, damaged or something else."""

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from acertlab.bounds.rules.affine import Normalize
from acertlab.models.architectures import small_cnn
from acertlab.models.state_dict import load_weights
from acertlab.models.torch_program import load_program
from tests.helpers.checkpoints import (
    MEAN,
    SHAPE,
    STD,
    Blocks,
    Code,
    Normalization,
    assert_same,
    layers,
    lively,
    script,
    write_bytes,
)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def sabr(path: Path) -> nn.Module:
    net = lively(Blocks(Normalization(), *layers()))
    torch.save(net.state_dict(), path)
    return net


def sabr_with_relaxations(path: Path) -> nn.Module:
    """As its abstract network has it: the slopes of DeepZ are among the parameters."""
    net = lively(Blocks(Normalization(), *layers()))
    state = OrderedDict((f"layers.0.{name}", t) for name, t in net.state_dict().items())
    torch.save({"state_dict": state | {"layers.0.3.deepz_lambda": torch.zeros(2, 3, 3)}}, path)
    return net


def fast(path: Path) -> nn.Module:
    """Shi et al.'s and expressive-losses': no normalisation inside, the state dict beside optimiser and epoch."""
    net = lively(nn.Sequential(*layers()))
    optimizer = torch.optim.Adam(net.parameters())
    held = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": (9.0, 9.0, -1)}
    torch.save(held, path)
    return nn.Sequential(Normalize(MEAN, STD), net).eval()


def crown_ibp(path: Path) -> nn.Module:
    """Of 2019: DataParallel's names, no counters, an error that is numpy's, and the old file format."""
    net = lively(nn.Sequential(*layers()))
    state = {f"module.{name}": t for name, t in net.state_dict().items() if "num_batches" not in name}
    held = {"state_dict": state, "robust_err": np.float64(0.1), "epoch": 3}
    torch.save(held, path, _use_new_zipfile_serialization=False)
    return nn.Sequential(Normalize(MEAN, STD), net).eval()


@pytest.mark.parametrize("publish", [sabr, sabr_with_relaxations, fast, crown_ibp])
def test_a_published_layout_certifies_like_the_network_itself(publish: Callable, tmp_path: Path) -> None:
    theirs = publish(tmp_path / "net.pth")
    ours = load_weights(
        small_cnn(SHAPE, 10, width=2, linear=6, mean=MEAN, std=STD), tmp_path / "net.pth", ignore=("deepz_lambda",)
    )
    assert_same(ours, theirs)
    # and where the user's architecture has no normalisation
    outside = load_weights(nn.Sequential(*layers()), tmp_path / "net.pth", mean=MEAN, std=STD, ignore=["deepz_lambda"])
    assert str(outside) == str(ours)
    assert_same(outside, theirs)


def test_the_same_names_go_by_name_whatever_their_order(tmp_path: Path) -> None:
    net = lively(small_cnn(SHAPE, 10, width=2, linear=6, mean=MEAN, std=STD))
    backwards = dict(reversed(net.state_dict().items()))
    torch.save(backwards, tmp_path / "net.pth")
    save_file(backwards, tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        assert_same(load_weights(small_cnn(SHAPE, 10, width=2, linear=6, mean=(0,), std=(1,)), tmp_path / name), net)
    with pytest.raises(ValueError, match=r"by name \(safetensors keep no order\). Missing in the file: blocks.0"):
        load_weights(Blocks(*layers()), tmp_path / "net.safetensors")


class Named(nn.Module):
    """Layers of one size, run in the order of their names here."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Linear(4, 4))


def test_names_that_agree_go_by_name_and_only_the_others_by_order(tmp_path: Path) -> None:
    theirs, path = Named("second", "first", "fc"), tmp_path / "net.pth"
    torch.save({"model": {f"module.{name}": t for name, t in theirs.state_dict().items()}}, path)
    ours = Named("first", "second", "out")
    with pytest.warns(UserWarning, match=r"go by their order: fc.weight -> out.weight, fc.bias -> out.bias$"):
        load_weights(ours, path)
    for name, other in (("first", "first"), ("second", "second"), ("out", "fc")):
        assert torch.equal(getattr(ours, name).weight, getattr(theirs, other).weight)
    inside = nn.ModuleDict({"body": Named("first", "second", "fc")})
    load_weights(inside, path)
    assert torch.equal(inside["body"].first.weight, theirs.first.weight)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: (t * 100).to(torch.int8), "holds fc.weight as torch.int8; accepted are floating-point weights"),
        (lambda t: t * (1 + 1j), "holds fc.weight as torch.complex64"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "holds fc.weight as quantised"),
    ],
)
def test_numbers_that_are_no_weights_are_refused(change: Callable, message: str, tmp_path: Path) -> None:
    net = Named("fc")
    before = net.fc.weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated
        torch.save({name: change(t) for name, t in net.state_dict().items()}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(net, tmp_path / "net.pth")
    assert torch.equal(net.fc.weight, before)


def test_a_list_of_state_dicts(tmp_path: Path) -> None:
    net, ours = Named("fc"), Named("fc")
    torch.save([net.state_dict()], tmp_path / "one.pth")
    load_weights(ours, tmp_path / "one.pth")
    assert torch.equal(ours.fc.weight, net.fc.weight)
    torch.save([net.state_dict()] * 2, tmp_path / "two.pth")
    with pytest.raises(ValueError, match="holds 2 state dicts, of a cascade of networks; save the one"):
        load_weights(ours, tmp_path / "two.pth")


def test_the_first_position_that_differs_is_named(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(3, 2)).state_dict(), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"number 3: b.weight \(4, 4\) in the model, 1.weight \(3, 4\) in the file"):
        load_weights(Named("a", "b", "c"), tmp_path / "net.pth")


@pytest.mark.parametrize("statistics", [{}, {"mean": (0.3,), "std": (0.5,)}])
def test_a_normalisation_that_differs_is_not_dropped(statistics: dict, tmp_path: Path) -> None:
    sabr(tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"normalises otherwise than the model: 0.mean = \[0.3\]; .*\[0.4\]"):
        load_weights(small_cnn(SHAPE, 10, width=2, linear=6, **statistics), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="has a Normalize already"):
        load_weights(small_cnn(SHAPE, 10, mean=MEAN, std=STD), tmp_path / "net.pth", mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="mean, std: give both"):
        load_weights(small_cnn(SHAPE, 10), tmp_path / "net.pth", mean=MEAN)


@pytest.mark.parametrize(
    "model, message",
    [
        (
            lambda: nn.Sequential(*layers()[:-1], nn.Linear(6, 5)),
            r"Missing in the file: none. Unexpected in it: none. Other shapes: 10.weight \(10, 6\) in the file, "
            r"\(5, 6\) in the model, 10.bias \(10,\)",
        ),
        (
            lambda: nn.Sequential(*layers(), nn.Linear(10, 10)),
            r"Missing in the file: 11.weight, 11.bias. Unexpected in it: none. Other shapes: none",
        ),
        (lambda: nn.Sequential(*layers()[:-1]), r"Missing in the file: none. Unexpected in it: 10.weight, 10.bias"),
        (
            lambda: Blocks(*layers()[:-1], nn.Linear(6, 5)),
            r"Other shapes: blocks.10.weight \(10, 6\) in the file, \(5, 6\) in the model",
        ),
    ],
)
def test_another_layout_is_listed_and_nothing_is_loaded(model: Callable, message: str, tmp_path: Path) -> None:
    fast(tmp_path / "net.pth")
    net = model()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(net, tmp_path / "net.pth")
    assert net.training and all(torch.equal(before[name], t) for name, t in net.state_dict().items())


# ---- files that are hostile, damaged or something else


def half(path: Path, **settings: Any) -> None:
    torch.save(nn.Linear(50, 50).state_dict(), path, **settings)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (lambda path: torch.save({"state_dict": Code()}, path), r"more than tensors \(posix.mkdir\).*its code"),
    "a pickled network": (lambda path: torch.save(nn.Linear(3, 2), path), r"nn.modules.linear.Linear\), and is not re"),
    "a bare pickle": (write_bytes(lambda: pickle.dumps(Code())), "is no checkpoint, or a damaged one"),
    "an old pickle": (write_bytes(lambda: pickle.dumps(Code(), 2)), r"posix.mkdir|is no checkpoint"),
    "half a file": (half, "is no checkpoint, or a damaged one"),
    "half an old file": (lambda path: half(path, _use_new_zipfile_serialization=False), "is no checkpoint, or a damag"),
    "text": (write_bytes(lambda: b"hello world"), "is no checkpoint"),
    "empty": (write_bytes(lambda: b""), "is no checkpoint"),
    "TorchScript": (script, "is TorchScript, a whole program: use load_program"),
    "a tensor": (lambda path: torch.save(torch.zeros(2), path), "holds a Tensor, no state dict"),
    "no tensors": (lambda path: torch.save({"epoch": 3, "model": {"a": 1}}, path), "holds a table of a, no state dict"),
    "nothing": (lambda path: torch.save({}, path), "no state dict"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is deprecated
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_state_dict_is_one_clear_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = HOSTILE[name]
    write(tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(nn.Linear(3, 2), tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for load in (load_program, lambda path: load_weights(nn.Linear(3, 2), path)):
        with pytest.raises(FileNotFoundError, match="path: there is no file .*gone"):
            load(tmp_path / "gone.pt")
    (tmp_path / "net.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_weights(nn.Linear(3, 2), tmp_path / "net.safetensors")
