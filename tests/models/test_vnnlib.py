"""Properties for other verifiers: read back by a reader of their own, and run by onnxruntime."""

import copy
import csv
import itertools
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acertlab.bounds.box import Box, ball
from acertlab.models import vnnlib
from acertlab.models.architectures import small_cnn
from acertlab.models.onnx import load_onnx
from acertlab.models.vnnlib import export_vnnlib

onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'acertlab[onnx]'")


class Property(NamedTuple):
    """What a VNN-LIB file of this form says."""

    lower: np.ndarray
    upper: np.ndarray
    unsafe: list[list[tuple[int, int]]]  # any of these, each all of its Y_i >= Y_j


def read_vnnlib(path: Path) -> Property:
    text = re.sub(r";.*", "", path.read_text())
    inputs, outputs = (len(re.findall(rf"\(declare-const {name}_\d+ Real\)", text)) for name in "XY")
    lower, upper = np.full(inputs, np.nan), np.full(inputs, np.nan)
    for sign, i, value in re.findall(r"\(assert \((<=|>=) X_(\d+) (-?[\d.]+)\)\)", text):
        end = lower if sign == ">=" else upper
        assert np.isnan(end[int(i)])
        end[int(i)] = float(value)
    (condition,) = re.findall(r"\(assert \(or (.*)\)\)", text)
    unsafe = [
        [(int(i), int(j)) for i, j in re.findall(r"\(>= Y_(\d+) Y_(\d+)\)", part)]
        for part in re.findall(r"\(and ((?:\([^()]*\) ?)+)\)", condition)
    ]
    assert text.count("(assert") == 2 * inputs + 1 and all(max(pair) < outputs for part in unsafe for pair in part)
    assert text.count("(") == text.count(")")
    return Property(lower, upper, unsafe)


def holds(unsafe: list[list[tuple[int, int]]], logits: np.ndarray) -> bool:
    return any(all(logits[i] >= logits[j] for i, j in part) for part in unsafe)


@pytest.fixture
def classifier() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = small_cnn((1, 6, 6), 4).eval()
    x = torch.rand(5, 1, 6, 6)
    x[0, 0, 0] = torch.tensor([0.0, 1.0, 1e-7, 0.5, 0.999, 0.05])
    return model, x, model(x).argmax(1)


def test_properties_say_what_the_ball_and_misclassification_are(
    classifier: tuple[nn.Module, Tensor, Tensor], tmp_path: Path
) -> None:
    model, x, y = classifier
    radius = torch.tensor([0.0, 1e-6, 0.03, 0.1, 0.7])
    y[3:] = (y[3:] + torch.tensor([1, 2])) % 4  # of some the unsafe condition holds
    instances = export_vnnlib(model, x, y, radius, tmp_path / "new", timeout=30)
    rows = list(csv.reader(instances.read_text().splitlines()))
    assert [row[0] for row in rows] == ["model.onnx"] * 5 and {row[2] for row in rows} == {"30"}
    session = onnxruntime.InferenceSession(str(instances.parent / rows[0][0]))
    (entry,) = session.get_inputs()
    assert entry.shape == [1, 1, 6, 6]
    boxes, rng, seen = ball(x.double(), radius.double()), np.random.default_rng(0), set()
    for i, row in enumerate(rows):
        said = read_vnnlib(instances.parent / row[1])
        assert np.array_equal(said.lower, boxes.lower[i].flatten().numpy())  # to the last digit, cut to [0, 1]
        assert np.array_equal(said.upper, boxes.upper[i].flatten().numpy())
        assert said.lower.min() >= 0 and said.upper.max() <= 1
        for k in range(60):
            u = rng.random(len(said.lower)) if k % 2 else rng.integers(0, 2, len(said.lower))
            point = (said.lower + u * (said.upper - said.lower)).astype(np.float32).reshape(1, 1, 6, 6)
            logits = session.run(None, {entry.name: point})[0][0]
            unsafe = holds(said.unsafe, logits)
            assert unsafe == (np.delete(logits, y[i]).max() >= logits[y[i]])
            assert np.allclose(logits, model(torch.from_numpy(point)).detach()[0], atol=1e-5)
            seen.add(unsafe)
    assert seen == {True, False}


def test_the_network_comes_back_by_load_onnx(classifier: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    model, x, y = classifier
    instances = export_vnnlib(model, x, y, 0.1, tmp_path)
    assert torch.allclose(load_onnx(instances.with_name("model.onnx"))(x), model(x), atol=1e-5)


def test_without_a_domain_numbers_are_negative_and_never_exponents(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2)).double().eval()
    x = torch.tensor([[1e-9, -3e5]], dtype=torch.float64)
    instances = export_vnnlib(model, x, model(x).argmax(1), 1e-7, tmp_path, domain=None)
    said = read_vnnlib(tmp_path / "sample_0000.vnnlib")
    assert (said.lower == [1e-9 - 1e-7, -3e5 - 1e-7]).all() and (said.upper == [1e-9 + 1e-7, -3e5 + 1e-7]).all()
    assert instances.name == "instances.csv"


def test_what_is_refused(classifier: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    model, x, y = classifier
    training = copy.deepcopy(model).train()
    for arguments, message in (
        ((model, x, y, -0.1), "eps: must be finite and >= 0"),
        ((model, x, y, torch.zeros(3)), r"eps: shape \(3,\)"),
        ((model, x, y[:2], 0.1), "y: shape"),
        ((training, x, y, 0.1), "model: is in training mode"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            export_vnnlib(*arguments, tmp_path / "none")
    with pytest.raises(ValueError, match="timeout"):
        export_vnnlib(model, x, y, 0.1, tmp_path / "none", timeout=0)
    assert not (tmp_path / "none").exists()

    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(ValueError, match="cannot be written as ONNX"):
        export_vnnlib(Unknown().eval(), torch.rand(1, 3), torch.tensor([0]), 0.1, tmp_path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_holds_one_export(classifier: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    model, x, y = classifier
    instances = export_vnnlib(model, x, y, 0.1, tmp_path / "out")
    before = files_of(tmp_path / "out")
    assert len(before) == 7
    assert export_vnnlib(model, x, y, 0.1, tmp_path / "out") == instances  # the same again
    for other in ((model, x[:2], y[:2], 0.1), (model, x, y, 0.2), (small_cnn((1, 6, 6), 4).eval(), x, y, 0.1)):
        with pytest.raises(ValueError, match="folder = .*: accepted is a new or an empty folder: .* another export"):
            export_vnnlib(*other, tmp_path / "out")
    assert files_of(tmp_path / "out") == before and [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    (tmp_path / "file").touch()
    for folder in ("mine", "file"):
        with pytest.raises(ValueError, match="folder = .*: accepted is a new or an empty folder"):
            export_vnnlib(model, x, y, 0.1, tmp_path / folder)


@pytest.mark.parametrize("moment", [0, 3, "written", "renamed"])
def test_a_killed_export_leaves_all_or_nothing(
    classifier: tuple[nn.Module, Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int | str
) -> None:
    """kill -9 before a property, with all written, and once it is renamed."""
    model, x, y = classifier
    properties, rename = vnnlib._property, Path.rename

    def killing(value: object, *args: object) -> None:
        if value == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(box: Box, label: int, classes: int) -> Iterator[str]:
        killing(next(count))
        return properties(box, label, classes)

    def renamed(self: Path, target: Path) -> Path:
        killing("written")
        rename(self, target)
        killing("renamed")
        return target

    count = itertools.count()
    monkeypatch.setattr(vnnlib, "_property", write)
    monkeypatch.setattr(Path, "rename", renamed)
    if not (child := os.fork()):
        export_vnnlib(model, x, y, 0.1, tmp_path / "out")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    monkeypatch.undo()
    there = moment == "renamed"
    assert (tmp_path / "out").exists() == there and (not there or len(files_of(tmp_path / "out")) == 7)
    instances = export_vnnlib(model, x, y, 0.1, tmp_path / "out")  # and the same call goes on
    assert len(list(csv.reader(instances.read_text().splitlines()))) == 5


def test_no_samples_and_wrong_ones(classifier: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    model, x, y = classifier
    assert export_vnnlib(model, x[:0], y[:0], 0.1, tmp_path / "a").read_text() == ""
    other = (y + 1) % 4
    export_vnnlib(model, x, other, 0.0, tmp_path / "b")
    said = read_vnnlib(tmp_path / "b" / "sample_0003.vnnlib")
    assert holds(said.unsafe, model(x).detach().numpy()[3])
