"""The robust radius from both sides: brackets that never cross, unless a certificate is wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.margin import clean_margin, margin_at
from acertlab.models.architectures import mlp, residual_cnn
from acertlab.radius import search
from acertlab.radius.attack import attacked_radius
from acertlab.radius.bracket import RadiusBracket, radius_bracket
from tests.helpers.networks import Trained, linear


def trained_plainly(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    optimizer, model = torch.optim.Adam(model.parameters(), 2e-3), model.train()
    for _ in range(steps):
        pick = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[pick]), y[pick]).backward()
        optimizer.step()
    return model.eval()


def assert_never_crossing(name: str, bracket: RadiusBracket) -> None:
    certified, attacked = bracket.certified, bracket.attacked
    for i in bracket.crossed.nonzero().squeeze(1).tolist():
        pytest.fail(f"{name}, sample {i}: attacked at {attacked[i]:.9g}, certified to {certified[i]:.9g}")
    assert (certified <= attacked).all() and bracket.raise_if_crossed() is bracket
    assert torch.equal(certified == 0, attacked == 0)
    assert bracket.attacked.isfinite().double().mean() > 0.5 and (bracket.gap[attacked.isfinite()] >= 0).all()


def test_never_crossing(trained: Trained) -> None:
    effort = {"steps": 3, "restarts": 2} if trained.name == "mnist" else {}
    bracket = radius_bracket(trained.model, trained.x, trained.y, 0.4, **effort)
    assert_never_crossing(trained.name, bracket)
    assert (bracket.certified > 0).double().mean() > 0.5
    ratio = (bracket.attacked / bracket.certified)[bracket.certified > 0]
    assert 1 < ratio.median() < 2  # trained with these bounds, they are nearly tight


@pytest.mark.parametrize("build", [mlp, residual_cnn], ids=["mlp", "residual_cnn"])
def test_never_crossing_where_bounds_are_loose(trained: Trained, build) -> None:
    x, y = trained.x, trained.y
    torch.manual_seed(0)
    small = {"width": 60} if build is mlp else {"width": 4, "linear": 30}
    model = trained_plainly(build(x.shape[1:], 10, **small), x, y, 60)
    bracket = radius_bracket(model, x, y, 0.3, steps=3, restarts=2)
    assert_never_crossing(f"{build.__name__} on {trained.name}", bracket)


def test_sound_certificates_in_float32(digits_net: Trained) -> None:
    x, y = digits_net.x[:100], digits_net.y[:100]
    bracket = radius_bracket(digits_net.model, x, y, 0.2, sound="float32", steps=4)
    assert bracket.certified.dtype == torch.float64 and bracket.attacked.dtype == torch.float32
    assert not bracket.crossed.any() and (bracket.certified > 0).any()
    linear_net = linear(64, 10, 0, torch.float32)  # where bounds are exact, and rounding alone decides
    y = linear_net(x).argmax(1)
    radius_bracket(linear_net, x, y, 0.2, sound="float32").raise_if_crossed()


def test_a_wrong_certificate_is_caught(digits_net: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "margin_at", lambda *a, **k: margin_at(*a, **k) - 3.0)
    bracket = radius_bracket(digits_net.model, digits_net.x[:80], digits_net.y[:80], 0.4)
    crossed = bracket.crossed.nonzero().squeeze(1).tolist()
    assert len(crossed) > 10
    i = crossed[0]
    both = f"{i} .attacked {bracket.attacked[i]:.9g} <= certified {bracket.certified[i]:.9g}"
    with pytest.raises(RuntimeError, match=f"{len(crossed)} of 80 samples.*{both}.*sound='float32'"):
        bracket.raise_if_crossed()


def test_the_attack_at_the_certified_radius_is_merged(digits_net: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the search from above finds nothing, a witness inside the certified ball is found and kept."""
    x, y = digits_net.x[:80], digits_net.y[:80]
    blind = attacked_radius(digits_net.model, x, y, 1e-9)
    monkeypatch.setattr(search, "margin_at", lambda *a, **k: margin_at(*a, **k) - 3.0)
    monkeypatch.setattr("acertlab.radius.bracket.attacked_radius", lambda *a, **k: blind)
    bracket = radius_bracket(digits_net.model, x, y, 0.4)
    assert blind.radius[bracket.crossed].isinf().all() and bracket.crossed.sum() > 10
    assert (clean_margin(digits_net.model(bracket.attack.x_adv), y)[bracket.crossed] >= 0).all()
