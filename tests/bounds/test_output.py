"""One logit as two classes, and one of several outputs: with every entry point that takes a model."""

import csv
import warnings
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.box import Box
from acertlab.bounds.graph import memory
from acertlab.bounds.graph.output import select_output
from acertlab.bounds.ibp import propagate
from acertlab.bounds.margin import certified_margin
from acertlab.models.onnx import load_onnx
from acertlab.models.torch_program import load_program
from acertlab.models.vnnlib import export_vnnlib
from acertlab.radius.attack import adversarial_accuracy, attacked_radius
from acertlab.radius.bracket import radius_bracket
from acertlab.radius.certificate import certify
from acertlab.radius.certified import certified_radius
from acertlab.radius.metrics import accuracy
from acertlab.radius.search import RadiusResult


class Model(nn.Module):
    """What a function makes of the output of a network."""

    def __init__(self, net: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.net(x))


def binary() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A network with one logit, the same one with two, and samples of both classes, one of them misclassified."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1)).eval()
    x = torch.rand(24, 5)
    with torch.no_grad():
        one[2].bias -= one(x).mean()
        two = nn.Sequential(one[0], nn.ReLU(), nn.Linear(16, 2)).eval()
        two[2].weight.copy_(torch.cat([0 * one[2].weight, one[2].weight]))
        two[2].bias.copy_(torch.cat([0 * one[2].bias, one[2].bias]))
    y = (one(x)[:, 0] > 0).long()
    y[3] = 1 - y[3]
    return one, two, x, y


ONE, TWO, X, Y = binary()
SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "(B, 1)": lambda z: z,
    "(B,)": lambda z: z[:, 0],
    "(B,), squeezed": lambda z: z.squeeze(),
    "(B, 1, 1)": lambda z: z[:, :, None],
}
KINDS = [{}, {"bound": "crown-ibp"}, {"bound": "crown"}, {"bound": "alpha-crown"}, {"bound": "exact"}]
KINDS += [{"sound": True}, {"sound": "float32"}, {"merged": False}]


@cache
def radii_of_two(n: int, kind: tuple[tuple[str, Any], ...]) -> RadiusResult:
    return certified_radius(TWO, X[:n], Y[:n], 0.3, rtol=1e-6, **dict(kind))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_radii_of_one_logit_are_those_of_two(shape: Callable, kind: dict[str, Any]) -> None:
    model, n = Model(ONE, shape).eval(), 6 if kind.get("bound") in ("exact", "alpha-crown") else 24
    ours = certified_radius(model, X[:n], Y[:n], 0.3, rtol=1e-6, **kind)
    theirs = radii_of_two(n, tuple(kind.items()))
    assert ours.status.tolist() == theirs.status.tolist() and ours.radius[3] == 0
    assert torch.allclose(ours.radius, theirs.radius, rtol=1e-3 if "alpha-crown" in kind.values() else 2e-5)
    assert (ours.radius > 0).sum() == n - 1
    if kind.get("bound") != "exact":
        assert (certified_margin(model, X[:n], Y[:n], ours.radius, **kind)[ours.radius > 0] < 0).all()


def test_all_that_takes_a_model_takes_one_logit(tmp_path: Path) -> None:
    bracket, other = radius_bracket(ONE, X, Y, 0.3).raise_if_crossed(), radius_bracket(TWO, X, Y, 0.3)
    assert torch.allclose(bracket.attacked, other.attacked, rtol=1e-2) and bracket.attacked.isfinite().any()
    found = attacked_radius(ONE, X, Y, 0.3)
    assert ((ONE(found.x_adv)[:, 0] > 0).long() != Y)[found.radius.isfinite()].all()
    assert accuracy(ONE, X, Y) == accuracy(ONE(X).detach(), Y) == accuracy(ONE(X).detach()[:, 0], Y) == 23 / 24
    assert adversarial_accuracy(ONE, X, Y, 0.1) == adversarial_accuracy(TWO, X, Y, 0.1) < 23 / 24
    box = propagate(ONE, Box.around(X, 0.02))
    assert box.lower.shape == (24, 1) and (box.lower <= ONE(X)).all() and (box.upper >= ONE(X)).all()
    report = certify(ONE, (X, Y), 0.3, progress=False, run_dir=tmp_path / "run")
    assert report.accuracy == 23 / 24 and report.radii["predicted"].tolist() == (ONE(X)[:, 0] > 0).long().tolist()
    again = certify(ONE, (X, Y), 0.3, progress=False, run_dir=tmp_path / "run")
    assert again.radii.equals(report.radii)
    x = X.clone().requires_grad_()
    certified_radius(ONE, x, Y, 0.3, differentiable=True).radius.sum().backward()
    assert x.grad is not None and x.grad.any() and all(p.grad is not None for p in ONE.parameters())
    ONE.zero_grad()


def test_one_logit_in_files(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="pip install 'acertlab[onnx]'")
    for name, model in {
        "logit": ONE,
        "flat": Model(ONE, SHAPES["(B,)"]),
        "sigmoid": nn.Sequential(ONE, nn.Sigmoid()),
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model.eval(), (X[:1],), str(tmp_path / f"{name}.onnx"), dynamo=False)
            torch.jit.save(torch.jit.trace(model.eval(), X[:2]), tmp_path / f"{name}.pt")
        batch = torch.export.Dim.DYNAMIC
        torch.export.save(
            torch.export.export(model.eval(), (X[:2],), dynamic_shapes=({0: batch},)), tmp_path / f"{name}.pt2"
        )
        read = [load_onnx(tmp_path / f"{name}.onnx"), load_program(tmp_path / f"{name}.pt2")]
        read.append(load_program(tmp_path / f"{name}.pt", input_shape=(5,)))
        for net in read:
            assert torch.allclose(net(X).flatten(), ONE(X).flatten(), atol=1e-6)  # a final sigmoid is dropped
            assert torch.allclose(
                certified_radius(net, X, Y, 0.3).radius, certified_radius(TWO, X, Y, 0.3).radius, rtol=1e-4
            )
    instances = export_vnnlib(ONE, X[:4], Y[:4], 0.1, tmp_path / "properties")
    rows = list(csv.reader(instances.read_text().splitlines()))
    said = (instances.parent / rows[0][1]).read_text()
    assert f"(>= Y_{1 - Y[0]} Y_{Y[0]})" in said and "Y_2" not in said
    assert torch.allclose(load_onnx(instances.with_name(rows[0][0]))(X)[:, 1], ONE(X)[:, 0], atol=1e-6)


def test_one_logit_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = Model(ONE, SHAPES["(B,)"]).eval(), []
    real = memory.capture
    monkeypatch.setattr(memory, "_shared", deque())  # none of another test's
    monkeypatch.setattr(memory, "capture", lambda *args: (calls.append(1), real(*args))[1])
    first, second = (certified_radius(model, X, Y, 0.3).radius for _ in range(2))
    assert len(calls) == 1 and torch.equal(first, second)


PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "by hand": lambda z: 1 / (1 + torch.exp(-z)),
    "softmax": lambda z: torch.softmax(torch.cat([0 * z, z], 1), 1)[:, 1],
    "hardsigmoid": F.hardsigmoid,
    "tanh": lambda z: (torch.tanh(z) + 1) / 2,
}


@pytest.mark.parametrize("function", PROBABILITIES.values(), ids=PROBABILITIES)
def test_a_probability_is_no_logit(function: Callable) -> None:
    """Its sign would be 1 everywhere, and class 1 certified."""
    model = Model(ONE, function).eval()
    for call in (certified_radius, attacked_radius, radius_bracket):
        with pytest.raises(ValueError, match=r"so it is a probability.*select_output\(model, threshold=0.5\)"):
            call(model, X, Y, 0.3)
    with pytest.raises(ValueError, match="so it is a probability"):
        accuracy(model, X, Y)
    if function is torch.softmax:
        return
    chosen = select_output(model, threshold=0.5)
    assert accuracy(chosen, X, Y) == 23 / 24
    if function in (torch.sigmoid, F.hardsigmoid):
        theirs = certified_radius(TWO, X, Y, 0.05).radius
        assert torch.allclose(certified_radius(chosen, X, Y, 0.05).radius, theirs, atol=1e-5)


def test_a_threshold_other_than_zero() -> None:
    moved = Model(ONE, lambda z: z + 0.25).eval()
    chosen = select_output(moved, threshold=0.25)
    assert torch.allclose(
        certified_radius(chosen, X, Y, 0.3).radius, certified_radius(TWO, X, Y, 0.3).radius, rtol=1e-4
    )
    assert not chosen.training and not torch.equal(certified_radius(moved, X, Y, 0.3).radius, torch.zeros(24))


def test_a_logit_of_exactly_zero_is_a_tie() -> None:
    flat = nn.Sequential(nn.Linear(2, 1)).eval()
    with torch.no_grad():
        flat[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
        flat[0].bias.zero_()
    x = torch.tensor([[0.5, 0.5], [0.6, 0.5]])
    for label in (0, 1):
        radius = certified_radius(flat, x, torch.tensor([label, 1]), 0.3).radius
        assert radius[0] == 0 and radius[1] == pytest.approx(0.05, abs=1e-5)
        assert accuracy(flat, x, torch.tensor([label, 1])) == 0.5


# ---- several outputs -------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "features logits")


@dataclass
class Output:
    logits: Tensor
    features: Tensor
    loss: Tensor | None = None


class Attributes:
    def __init__(self, logits: Tensor, features: Tensor) -> None:
        self.logits, self.features = logits, features


OUTPUTS: dict[str, tuple[Callable[[Tensor], Any], str | int]] = {
    "dict": (lambda z: {"features": z * 2, "logits": z}, "logits"),
    "ordered": (lambda z: OrderedDict(features=z * 2, logits=z), "logits"),
    "tuple": (lambda z: (z * 2, z), 1),
    "tuple from its end": (lambda z: (z * 2, z), -1),
    "list": (lambda z: [z, z * 2], 0),
    "named tuple": (lambda z: Pair(z * 2, z), "logits"),
    "named tuple by place": (lambda z: Pair(z * 2, z), 1),
    "dataclass": (lambda z: Output(z, z * 2), "logits"),
    "object": (lambda z: Attributes(z, z * 2), "logits"),
}


@pytest.mark.parametrize("function, output", OUTPUTS.values(), ids=OUTPUTS)
def test_one_of_several_outputs(function: Callable, output: str | int, tmp_path: Path) -> None:
    model = Model(TWO, function).eval()
    for call in (certified_radius, attacked_radius):
        with pytest.raises(
            ValueError, match=r"model: returns several outputs .*\(1, 2\).*acertlab.select_output\(model, "
        ):
            call(model, X, Y, 0.3)
    chosen, expected = select_output(model, output), certified_radius(TWO, X, Y, 0.3).radius
    assert torch.allclose(certified_radius(chosen, X, Y, 0.3).radius, expected, rtol=1e-4)
    assert torch.allclose(
        certified_radius(chosen, X[:6], Y[:6], 0.3, bound="crown").radius,
        certified_radius(TWO, X[:6], Y[:6], 0.3, bound="crown").radius,
        rtol=1e-3,
    )
    assert accuracy(chosen, X, Y) == 23 / 24 and propagate(chosen, Box.around(X, 0.01)).lower.shape == (24, 2)
    report = certify(chosen, (X, Y), 0.3, progress=False, run_dir=tmp_path)
    assert report.accuracy == 23 / 24
    other = select_output(model, {"logits": "features", 1: 0, -1: 0, 0: 1}[output])
    with pytest.raises(ValueError, match="was begun with another network"):
        certify(other, (X, Y), 0.3, progress=False, run_dir=tmp_path)


@pytest.mark.parametrize(
    "function", [lambda z: {"logits": z}, lambda z: (z,), lambda z: Output(z, None)], ids=["dict", "tuple", "dataclass"]
)
def test_the_only_tensor_has_one_meaning(function: Callable) -> None:
    found = certified_radius(Model(TWO, function).eval(), X, Y, 0.3).radius
    assert torch.allclose(found, certified_radius(TWO, X, Y, 0.3).radius, rtol=1e-4)


def test_one_logit_among_several_outputs() -> None:
    model = Model(ONE, lambda z: {"logit": z[:, 0], "twice": 2 * z}).eval()
    found = certified_radius(select_output(model, "logit"), X, Y, 0.3).radius
    assert torch.allclose(found, certified_radius(TWO, X, Y, 0.3).radius, rtol=1e-4)
    nested = Model(TWO, lambda z: {"heads": (z, 2 * z)}).eval()
    found = certified_radius(select_output(select_output(nested, "heads"), 0), X, Y, 0.3).radius
    assert torch.allclose(found, certified_radius(TWO, X, Y, 0.3).radius, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: select_output(ONE), "output: give the name or place"),
        (lambda: select_output(ONE, 1.5), "output: must be a name or a place, not float"),
        (lambda: select_output(ONE, threshold="high"), "threshold = 'high': accepted is a finite number"),
        (lambda: select_output(F.relu, 0), "model: must be a torch.nn.Module, not function"),
        (
            lambda: certified_radius(select_output(Model(TWO, OUTPUTS["dict"][0]).eval(), "logit"), X, Y, 0.3),
            r"output: the model has no 'logit'; its outputs are 'features', 'logits'",
        ),
        (
            lambda: certified_radius(select_output(Model(TWO, OUTPUTS["tuple"][0]).eval(), 2), X, Y, 0.3),
            "output: the model has no 2; its outputs are 0, 1",
        ),
        (
            lambda: certified_radius(select_output(TWO, 0), X, Y, 0.3),
            "output: the model returns one tensor, of which nothing is to be selected",
        ),
        (
            lambda: certified_radius(select_output(TWO, threshold=0.5), X, Y, 0.3),
            r"threshold: the output is \(1, 2\), not one number a sample",
        ),
        (lambda: propagate(Model(TWO, OUTPUTS["dict"][0]).eval(), Box.around(X, 0.1)), "acertlab.select_output"),
        (
            lambda: certified_radius(nn.Sequential(ONE, nn.Flatten(0)).train(), X, Y * 3, 0.1),
            "y: holds labels from 0 to 3",
        ),
    ],
)
def test_what_cannot_be_selected(make: Callable, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()
