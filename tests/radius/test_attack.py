"""The robust radius from above: witnesses that prove themselves, and exact radii."""

import copy
from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor, nn

from acertlab.bounds.box import difference
from acertlab.bounds.margin import clean_margin
from acertlab.models.architectures import mlp
from acertlab.radius.attack import AttackResult, adversarial_accuracy, attacked_radius, pgd
from acertlab.radius.bracket import radius_bracket
from acertlab.radius.certified import certified_radius
from tests.helpers.networks import Trained, linear

FLOATS = [torch.float32, torch.float64]


def distance(point: Tensor, x: Tensor) -> list[Fraction]:
    """max |point - x| of every sample, in exact arithmetic."""
    pairs = zip(point.flatten(1).tolist(), x.flatten(1).tolist(), strict=True)
    return [max(abs(Fraction(a) - Fraction(b)) for a, b in zip(p, q, strict=True)) for p, q in pairs]


def assert_every_promise(model: nn.Module, x: Tensor, y: Tensor, eps_max: float, found: AttackResult) -> None:
    clean = clean_margin(model(x), y)
    broken = found.radius.isfinite()
    assert torch.equal(found.radius == 0, clean >= 0) and (found.radius[broken] <= eps_max * (1 + 1e-7)).all()
    assert torch.equal(found.x_adv[~broken], x[~broken]) and (found.margin[~broken] < 0).all()
    assert (found.x_adv >= 0).all() and (found.x_adv <= 1).all()
    assert (found.margin[broken] >= 0).all()
    assert (clean_margin(model(found.x_adv), y)[broken] >= 0).all()  # anyone, in one forward pass
    for exact, told in zip(distance(found.x_adv[broken], x[broken]), found.radius[broken], strict=True):
        below = Fraction(told.nextafter(torch.zeros_like(told)).item())
        assert exact <= Fraction(told.item()) and (exact > below or exact == 0)  # rounded up, and by no more


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 12))
@example(314, 4, 8)  # a later class hardly closer than an earlier one, whose witness was moved outwards: 1.18e-3
@settings(max_examples=25, deadline=None)
def test_linear_models_have_a_radius_in_closed_form(seed: int, classes: int, n: int) -> None:
    model = linear(n, classes, seed)
    x = torch.randn(20, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        logits = model(x)
        y = logits.argmax(1)
        y[::5] = (y[::5] + 1) % classes  # some are misclassified
        weight, own = model[1].weight, y.unsqueeze(1)
        slack = logits.gather(1, own) - logits
        slope = (weight.unsqueeze(0) - weight[y].unsqueeze(1)).abs().sum(2)  # (B, classes), l1 norms
        exact = (slack / slope).scatter(1, own, torch.inf).amin(1).clamp(min=0)
    found = attacked_radius(model, x, y, 5.0, domain=None, restarts=classes)
    reach = exact < 4.99
    assert (found.radius[reach] <= exact[reach] * (1 + 1e-3) + 2e-6).all()
    assert (found.radius >= exact * (1 - 1e-13)).all() and found.radius[exact > 5.0001].isinf().all()
    assert (found.radius[::5] == 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_two_pixels_against_a_fine_grid(seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    model = model.double().eval()
    with torch.no_grad():
        for layer in (model[1], model[3], model[5]):
            layer.weight.mul_(2.0)
        model[5].bias.sub_(model(torch.rand(2000, 2, dtype=torch.float64)).mean(0))  # all three classes occur
    x = torch.rand(40, 2, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
        axis = torch.linspace(0, 1, 401, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        label = model(grid).argmax(1)
    away = (grid.unsqueeze(0) - x.unsqueeze(1)).abs().amax(2)  # (40, points)
    true = away.masked_fill(label.unsqueeze(0) == y.unsqueeze(1), torch.inf).amin(1)  # above by at most a grid's step
    found = attacked_radius(model, x, y, 0.5, steps=10, restarts=8)
    inside = true < 0.49
    assert inside.sum() > 5
    assert (found.radius >= true - 1 / 400 - 1e-9).all()
    close = found.radius[inside] <= true[inside] * 1.01 + 1e-6
    assert close.double().mean() > 0.9  # PGD may miss a far corner of a non-convex region
    assert_every_promise(model, x, y, 0.5, found)


def test_a_plateau_of_ties_counts() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():  # z_0 = relu(0.5 - x), z_1 = 0: tied from x = 0.5 on, never misclassified
        for parameter, value in zip(
            model.parameters(), ([[1.0], [-1.0]], [-0.5, 0.5], [[0.0, 1.0], [0.0, 0.0]], [0.0, 0.0]), strict=True
        ):
            parameter.copy_(torch.tensor(value))
    x, y = torch.full((1, 1, 1, 1), 0.25, dtype=torch.float64), torch.tensor([0])
    found = attacked_radius(model, x, y, 1.0)
    assert 0.25 <= found.radius.item() < 0.2505 and found.margin.item() == 0
    assert not radius_bracket(model, x, y, 1.0).crossed.any()


@given(st.integers(0, 10_000), st.sampled_from(FLOATS), st.sampled_from([0.003, 0.1, 0.8]))
@settings(max_examples=25, deadline=None)
def test_witnesses_prove_themselves(seed: int, dtype: torch.dtype, eps_max: float) -> None:
    torch.manual_seed(seed)
    model = mlp((1, 3, 3), 4, width=10).to(dtype).eval()
    x = torch.rand(33, 1, 3, 3, dtype=dtype)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    assert_every_promise(model, x, y, eps_max, attacked_radius(model, x, y, eps_max, steps=4))


@given(st.integers(0, 10_000), st.sampled_from(FLOATS), st.booleans())
@settings(max_examples=25, deadline=None)
def test_pgd_never_leaves_ball_or_domain(seed: int, dtype: torch.dtype, cut: bool) -> None:
    torch.manual_seed(seed)
    model = mlp((1, 2, 3), 3, width=8).to(dtype).eval()
    domain = (0.0, 1.0) if cut else None
    x = torch.rand(20, 1, 2, 3, dtype=dtype) * torch.logspace(-8, 0, 20, dtype=dtype).view(-1, 1, 1, 1)
    y, eps = torch.randint(3, (20,)), torch.rand(20, dtype=dtype) * (torch.rand(20) < 0.8)
    point, margin = pgd(model, x, y, eps, steps=3, domain=domain, seed=seed, start=torch.randn_like(x))
    assert all(a <= Fraction(b) for a, b in zip(distance(point, x), eps.tolist(), strict=True))  # exactly
    assert not cut or ((point >= 0) & (point <= 1)).all()
    assert torch.allclose(clean_margin(model(point), y), margin, atol=1e-6)
    assert (margin >= clean_margin(model(x), y) - 1e-6).all()


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=20), st.sampled_from(FLOATS))
def test_distances_are_rounded_up(values: list[float], dtype: torch.dtype) -> None:
    a, b = torch.tensor(values[1:], dtype=dtype), torch.tensor(values[:-1], dtype=dtype)
    for told, p, q in zip(difference(a, b), a.tolist(), b.tolist(), strict=True):
        exact = abs(Fraction(p) - Fraction(q))
        below = Fraction(told.nextafter(torch.zeros_like(told)).item())
        assert below < exact <= Fraction(told.item()) or exact == told.item() == 0


def test_repeatable_and_leaves_everything_as_it_was(digits_net: Trained) -> None:
    model = copy.deepcopy(digits_net.model)
    x, y = digits_net.x[:60].clone().requires_grad_(), digits_net.y[:60]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(model.parameters()).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    versions = {k: v._version for k, v in model.state_dict(keep_vars=True).items()}
    random, image = torch.get_rng_state(), x.detach().clone()
    first = attacked_radius(model, x, y, 0.2)
    with torch.inference_mode():
        second = attacked_radius(model, x, y, 0.2)
    point, _ = pgd(model, x, y, 0.1)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(first.radius, second.radius) and torch.equal(first.x_adv, second.x_adv)
    assert not torch.equal(point, pgd(model, x, y, 0.1, seed=1)[0])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert versions == {k: v._version for k, v in model.state_dict(keep_vars=True).items()}
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert flags == [p.requires_grad for p in model.parameters()] and not any(m.training for m in model.modules())
    assert torch.equal(x, image) and x.grad is None and not (first.x_adv.requires_grad or point.requires_grad)


def test_accuracy_under_attack(digits_net: Trained) -> None:
    model, x, y = digits_net.model, digits_net.x, digits_net.y
    curve = [adversarial_accuracy(model, x, y, eps, steps=10) for eps in (0.0, 0.05, 0.1, 0.2)]
    assert curve[0] == (model(x).argmax(1) == y).double().mean().item()
    assert sorted(curve, reverse=True) == curve and curve[3] < curve[0]
    certified = certified_radius(model, x, y, 0.2).radius
    assert curve[2] >= (certified >= 0.1).double().mean().item()
    per_sample = torch.full((len(x),), 0.1)
    assert adversarial_accuracy(model, x, y, per_sample, steps=10, batch_size=100) == pytest.approx(curve[2], abs=0.01)


def test_nan_weights_and_constant_networks_have_no_witness() -> None:
    x, y = torch.rand(5, 4), torch.tensor([0, 1, 0, 1, 2])
    model = linear(4, 3, 0, torch.float32)
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0, 1.0 - 1e-3]))
    found = attacked_radius(model, x, y, 0.5)
    assert found.radius.tolist() == [torch.inf, 0, torch.inf, 0, 0]
    with torch.no_grad():
        model[1].weight[1, 1] = torch.nan
    bracket = radius_bracket(model, x, y, 0.5)
    assert bracket.attacked.isinf().all() and (bracket.certified == 0).all() and torch.equal(bracket.attack.x_adv, x)
    assert bracket.attack.margin.isnan().all() and pgd(model, x, y, 0.1)[1].isnan().all()
    assert adversarial_accuracy(model, x, y, 0.1) == 0.0  # what is NaN is not correct


def test_empty_batches_and_two_classes() -> None:
    model = linear(4, 2, 0, torch.float32)
    x, y = torch.rand(0, 4), torch.zeros(0, dtype=torch.int64)
    assert attacked_radius(model, x, y, 0.1).x_adv.shape == (0, 4) and pgd(model, x, y, 0.1)[1].shape == (0,)
    assert radius_bracket(model, x, y, 0.1).gap.shape == (0,)
    x = torch.rand(7, 4)
    assert_every_promise(model, x, y := model(x).argmax(1), 1.0, attacked_radius(model, x, y, 1.0, restarts=5))


class Silent(nn.Module):
    """Logits without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.detach())


GOOD = {"x": torch.full((3, 4), 0.5), "y": torch.tensor([0, 1, 2]), "eps_max": 0.1}


@pytest.mark.parametrize(
    "bad, kind, told",
    [
        ({"eps_max": 0.0}, ValueError, "eps_max = 0.0"),
        ({"eps_max": float("nan")}, ValueError, "eps_max = nan"),
        ({"eps_max": "8/0"}, ValueError, "eps_max = '8/0'"),
        ({"steps": 0}, ValueError, "steps = 0: .* >= 1"),
        ({"restarts": 2.0}, ValueError, "restarts = 2.0"),
        ({"batch_size": True}, ValueError, "batch_size = True"),
        ({"seed": -1}, ValueError, "seed = -1: .* >= 0"),
        ({"step_size": 0}, ValueError, "step_size = 0"),
        ({"xtol": 0.0}, ValueError, "xtol = 0.0"),
        ({"rtol": -1.0}, ValueError, "rtol = -1.0"),
        ({"y": torch.tensor([0, 1, 3])}, ValueError, "y: holds labels from 0 to 3"),
        ({"x": torch.full((3, 4), 1.5)}, ValueError, "lie outside the domain"),
        ({"x": torch.full((3, 4), 0.5).double()}, ValueError, "x: dtype"),
        (
            {"model": nn.Sequential(linear(4, 3, 0, torch.float32), nn.BatchNorm1d(3)).train()},
            ValueError,
            "training mode",
        ),
        ({"model": Silent().eval()}, ValueError, "model: its logits carry no gradient"),
    ],
)
def test_one_clear_error(bad: dict, kind: type[Exception], told: str) -> None:
    call = {"model": linear(4, 3, 0, torch.float32), **GOOD, **bad}
    with pytest.raises(kind, match=told):
        attacked_radius(**call)


def test_clear_errors_of_pgd() -> None:
    model, x, y = linear(4, 3, 0, torch.float32), GOOD["x"], GOOD["y"]
    with pytest.raises(ValueError, match="eps: must be finite and >= 0"):
        pgd(model, x, y, -0.1)
    with pytest.raises(ValueError, match=r"start: .* \(3, 4\)"):
        pgd(model, x, y, 0.1, start=x[:2])
    with pytest.raises(ValueError, match="steps = 0"):
        adversarial_accuracy(model, x, y, 0.1, steps=0)
    with pytest.raises(ValueError, match="x: holds no samples"):
        adversarial_accuracy(model, x[:0], y[:0], 0.1)
    with pytest.raises(ValueError, match="bound: 'box' is unknown"):
        radius_bracket(model, x, y, 0.1, bound="box")
