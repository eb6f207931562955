"""The emulation of tensor cores: what it rounds, where, and that certificates never go through it."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.checks import float32_products
from acertlab.data.run import load_run
from acertlab.radius.certified import certified_radius
from acertlab.training.config import PRECISIONS as SETTINGS
from tests.benchmarks.precision import PRECISIONS, art_table, errors, name_of
from tests.helpers.networks import Trained
from tests.helpers.quick_runs import made, quickly
from tests.helpers.tensor_cores import BF16, TF32, TensorCores, rounded
from tests.helpers.training import assert_same_weights, weights


def test_rounding_to_seven_bits_is_torchs_own_bfloat16() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (100_000,), generator=draw).to(torch.int32).view(torch.float32)  # of any kind
    x = torch.cat([x, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.finfo(torch.float32).max, 1e-45])])
    number = ~x.isnan()
    assert torch.equal(rounded(x, BF16)[number], x.to(torch.bfloat16).float()[number])
    assert rounded(x, BF16).isnan()[~number].all() and (~number).sum() > 100


def test_rounding_to_ten_bits_by_hand() -> None:
    unit = 2.0**-10
    for value, nearest, cut in (
        (1 + unit, 1 + unit, 1 + unit),
        (1 + 0.5 * unit, 1, 1),  # ties go to the even neighbour
        (1 + 1.5 * unit, 1 + 2 * unit, 1 + unit),
        (1 + (0.5 + 2**-12) * unit, 1 + unit, 1),
        (2 - 0.25 * unit, 2, 2 - unit),  # into the next power
        (0.3, 0.300048828125, 0.2998046875),
    ):
        for sign in (1, -1):
            x = torch.tensor([sign * value])
            assert rounded(x, TF32).item() == sign * nearest and rounded(x, TF32, cut=True).item() == sign * cut


@pytest.mark.parametrize("layer", [nn.Linear(30, 20), nn.Conv2d(3, 20, 3, padding=1)])
def test_products_forward_and_backward_have_rounded_factors(layer: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, *((30,) if isinstance(layer, nn.Linear) else (3, 5, 5)), requires_grad=True)
    out = torch.randn_like(layer(x))
    leaves = (x, layer.weight, layer.bias)

    def results() -> tuple[Tensor, ...]:
        y = layer(x)
        return y.detach(), *torch.autograd.grad(y, leaves, out)

    def by_hand(*, x: Tensor, weight: Tensor, out: Tensor) -> tuple[Tensor, ...]:
        f = F.linear if isinstance(layer, nn.Linear) else lambda *a: F.conv2d(*a, padding=1)
        x, weight = (t.detach().double().requires_grad_() for t in (x, weight))
        y = f(x, weight, layer.bias.detach().double())
        return y.detach(), *torch.autograd.grad(y, (x, weight), out.double())

    few = {"x": rounded(x.detach(), TF32), "weight": rounded(layer.weight.detach(), TF32), "out": rounded(out, TF32)}
    full = results()
    with TensorCores() as cores:
        with float32_products(torch.device("cpu"), tf32=False):  # torch's own default allows it to convolutions
            assert all(torch.equal(a, b) for a, b in zip(results(), full, strict=True)) and not cores.products
        with float32_products(torch.device("cpu"), tf32=True):
            found = results()
    assert cores.products == (3 if isinstance(layer, nn.Linear) else 2)
    for ours, exact, before in zip(found, by_hand(**few), full, strict=False):
        assert torch.allclose(ours.double(), exact, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(ours, before, rtol=1e-5, atol=1e-5)
    assert torch.allclose(found[-1], full[-1])  # what is only summed is in full


def test_a_certificate_has_full_precision_whatever_torch_is_set_to(digits_net: Trained) -> None:
    x, y = digits_net.x[:64], digits_net.y[:64]
    found = certified_radius(digits_net.model, x, y, digits_net.eps_max)
    with float32_products(torch.device("cpu"), tf32=True), TensorCores() as cores:
        again = certified_radius(digits_net.model, x, y, digits_net.eps_max)
        assert not cores.products and torch.equal(again.radius, found.radius)
        digits_net.model(x)
    assert cores.products


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_rounds_and_measuring_does_not(setting: str, tmp_path: Path) -> None:
    data = made()
    plain = quickly(data, tmp_path / "plain")
    with TensorCores() as cores:
        run = quickly(data, tmp_path / "emulated", train_precision=setting)
    assert (cores.products > 0) == (setting != "full")
    if setting == "full":
        return assert_same_weights(weights(plain.path), weights(run.path))
    assert any(not torch.equal(a, b) for a, b in zip(*(weights(r.path).values() for r in (plain, run)), strict=True))
    x, y = data.test_x.float() / 255, data.test_y
    radius = certified_radius(run.load_model(), x, y, run.result["radius_cap"]).radius
    assert torch.equal(radius, torch.tensor(run.radii.radius.to_numpy())) and (radius > 0).any()


def test_errors_are_those_of_the_precision(digits_net: Trained) -> None:
    found = errors(digits_net.model, digits_net.x[:100], digits_net.y[:100], 0.1)
    assert list(found.index) == list(PRECISIONS)
    assert 0 < found["mean"]["full"] < 0.1 and found["largest"]["full"] < 1  # the search's tolerance
    assert found["largest"]["bf16 in all products"] > 2 * found["largest"]["tf32"]


def test_the_table_of_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made()
    for seed, precision in ((0, "full"), (1, "full"), (0, "tf32")):
        quickly(data, tmp_path / name_of("mnist", precision, seed), seed=seed)
    found = art_table(tmp_path, ["mnist", "cifar10"])
    full, tf32 = found.loc["mnist", "full"], found.loc["mnist", "tf32"]
    art = [100 * load_run(tmp_path / name_of("mnist", "full", seed)).result["art"] for seed in (0, 1)]
    assert list(found.index) == [("mnist", "full"), ("mnist", "tf32")]
    assert (full.seeds, tf32.seeds) == (2, 1) and pytest.approx(sum(art) / 2) == full.ART
    assert full["largest distance"] == pytest.approx(abs(art[0] - art[1]))
    assert tf32["beside full"] == 0 and tf32.inside == "yes"  # the same run
