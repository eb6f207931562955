"""Domains with an end and an eps for each number: against the same network with its features rescaled."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from acertlab.bounds.box import Box, Domain, DomainLike, ball
from acertlab.bounds.margin import Sound, certified_margin
from acertlab.radius.attack import adversarial_accuracy, attacked_radius, pgd
from acertlab.radius.bracket import exact_radius, radius_bracket
from acertlab.radius.certificate import certify
from acertlab.radius.certified import certified_radius

FEATURES = 6
SCALE = torch.tensor([1.0, 0.3, 2.5, 0.07, 11.0, 1.7])
LOW = torch.tensor([0.0, -1.0, 2.0, 0.0, -30.0, 0.5])


class Rescaled(nn.Module):
    """A network of features from 0 to 1, put in front of one of features from low to low + scale."""

    low: Tensor
    scale: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("low", LOW.double())
        self.register_buffer("scale", SCALE.double())

    def forward(self, u: Tensor) -> Tensor:
        return self.model(u * self.scale + self.low)


def network(seed: int, *, double: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    first = nn.Linear(FEATURES, 12)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        first.weight /= SCALE
        first.bias -= first.weight @ LOW
        net[4].bias -= net(torch.rand(99, FEATURES) * SCALE + LOW).mean(0)  # all classes occur
    return net.double() if double else net


def samples(model: nn.Module, n: int = 12, *, double: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """u in [0, 1], x = low + scale u, and labels."""
    u = torch.rand(n, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    u[0, :2] = torch.tensor([0.0, 1.0])  # at the ends of the domain
    x = u * SCALE.double() + LOW.double()
    if not double:
        x = x.float().clamp(LOW, LOW + SCALE)
    return u, x, model(x).argmax(1)


DOMAIN = Domain(LOW, LOW + SCALE, eps_scale=SCALE)
WHOLE = (0.0, 1.0)


@pytest.mark.parametrize("bound", ["ibp", "crown-ibp", "crown", "alpha-crown", "exact"])
@pytest.mark.parametrize("seed", range(3))
def test_radii_are_those_of_the_rescaled_network(bound: str, seed: int) -> None:
    model = network(seed)
    slow = bound in ("exact", "alpha-crown")
    u, x, y = samples(model, 4 if slow else 12)
    rtol = 1e-5 if bound == "alpha-crown" else 1e-7
    ours = certified_radius(model, x, y, 0.4, bound=bound, domain=DOMAIN, rtol=rtol)
    theirs = certified_radius(Rescaled(model).eval(), u, y, 0.4, bound=bound, domain=WHOLE, rtol=rtol)
    assert torch.allclose(ours.radius, theirs.radius, rtol=1e-4 if slow else 1e-6)
    assert (ours.radius > 0.005).any() and (ours.radius < 0.4).any() and ours.status.tolist() == theirs.status.tolist()
    if bound != "exact":
        assert (certified_margin(model, x, y, ours.radius, bound=bound, domain=DOMAIN) < 0).all()


@pytest.mark.parametrize("sound", [True, "float32"])
def test_sound_radii_hold_and_are_hardly_smaller(sound: Sound) -> None:
    model = network(0, double=False)
    _, x, y = samples(model, double=False)
    plain = certified_radius(model, x, y, 0.4, domain=DOMAIN)
    proved = certified_radius(model, x, y, 0.4, domain=DOMAIN, sound=sound)
    assert torch.allclose(proved.radius, plain.radius.double(), atol=1e-4) and (proved.radius > 0).any()
    assert (certified_margin(model, x, y, proved.radius, domain=DOMAIN, sound=sound)[proved.radius > 0] < 0).all()


def test_a_linear_classifier_is_certified_up_to_its_exact_radius_and_no_further() -> None:
    """In exact arithmetic: the radius is margin / (|w| scale), feature by feature."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(FEATURES, 2)).eval()
    free = Domain(None, None, eps_scale=SCALE)
    x = torch.randn(40, FEATURES)
    y = model(x).argmax(1)
    found = certified_radius(model, x, y, 5.0, domain=free, sound=True, rtol=1e-12, xtol=1e-14)
    weight, bias = (
        [[Fraction(v) for v in row] for row in t.tolist()] for t in (model[0].weight, model[0].bias[:, None])
    )
    for row, label, radius in zip(x.tolist(), y.tolist(), found.radius.tolist(), strict=True):
        w = [a - b for a, b in zip(weight[label], weight[1 - label], strict=True)]
        margin = sum(a * Fraction(b) for a, b in zip(w, row, strict=True)) + bias[label][0] - bias[1 - label][0]
        exact = margin / sum(abs(a) * Fraction(s) for a, s in zip(w, SCALE.tolist(), strict=True))
        assert Fraction(radius) <= min(exact, Fraction(5.0)) and radius > 0.999 * float(min(exact, Fraction(5.0)))


def test_the_ball_holds_all_that_it_should_in_exact_arithmetic() -> None:
    x = torch.rand(200, FEATURES) * SCALE + LOW
    eps = torch.rand(200) * 0.9
    box = ball(x, eps, Domain(None, None, eps_scale=SCALE))
    for row, e, low, high in zip(x.tolist(), eps.tolist(), box.lower.tolist(), box.upper.tolist(), strict=True):
        for at, scale, end, other in zip(row, SCALE.tolist(), low, high, strict=True):
            reach = Fraction(e) * Fraction(scale)
            unit = Fraction(float(np.spacing(np.float32(max(abs(at), abs(end), abs(other))))))
            assert (
                Fraction(end) <= Fraction(at) - reach + unit / 2 and Fraction(other) >= Fraction(at) + reach - unit / 2
            )
            assert (
                Fraction(at) - Fraction(end) <= reach + 2 * unit and Fraction(other) - Fraction(at) <= reach + 2 * unit
            )


def test_attacks_stay_inside_and_find_what_they_find_in_the_rescaled_network() -> None:
    model = network(3)
    u, x, y = samples(model, 16)
    ours, theirs = (
        attacked_radius(net, at, y, 0.8, domain=domain)
        for net, at, domain in ((model, x, DOMAIN), (Rescaled(model).eval(), u, WHOLE))
    )
    assert torch.allclose(ours.radius, theirs.radius, rtol=0.02) and ours.radius.isfinite().sum() > 4
    found = ours.radius.isfinite()
    change = ((ours.x_adv - x).abs() / SCALE).amax(1)[found]
    assert torch.allclose(change, ours.radius[found]) and (model(ours.x_adv[found]).argmax(1) != y[found]).all()
    eps = torch.linspace(0, 0.7, 16, dtype=torch.float64)
    point, _ = pgd(model, x, y, eps, domain=DOMAIN)
    assert (point >= LOW).all() and (point <= LOW + SCALE).all()
    for moved, row, e in zip(point.tolist(), x.tolist(), eps.tolist(), strict=True):
        for a, b, scale in zip(moved, row, SCALE.tolist(), strict=True):
            assert abs(Fraction(a) - Fraction(b)) <= Fraction(e) * Fraction(scale)  # exactly
    shares = [adversarial_accuracy(model, x, y, e, domain=DOMAIN) for e in (0.0, 0.2, 0.8)]
    assert shares[0] == 1 > shares[1] >= shares[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_witness_is_never_said_to_be_closer_than_it_is(dtype: torch.dtype) -> None:
    model = network(5, double=dtype == torch.float64)
    _, x, y = samples(model, 24, double=dtype == torch.float64)
    found = attacked_radius(model, x, y, 0.8, domain=DOMAIN)
    for moved, row, radius in zip(found.x_adv.tolist(), x.tolist(), found.radius.tolist(), strict=True):
        away = max(
            abs(Fraction(a) - Fraction(b)) / Fraction(s) for a, b, s in zip(moved, row, SCALE.tolist(), strict=True)
        )
        assert radius == math.inf or away <= Fraction(radius) <= away * (1 + Fraction(2) ** -22) + Fraction(10) ** -40


def test_brackets_do_not_cross_and_the_exact_radius_lies_inside() -> None:
    model = network(2, double=False)
    _, x, y = samples(model, 8, double=False)
    loose = radius_bracket(model, x, y, 0.6, domain=DOMAIN).raise_if_crossed()
    exact = exact_radius(model, x, y, 0.6, domain=DOMAIN).raise_if_crossed()
    assert (loose.certified <= exact.certified + 1e-5).all() and (exact.attacked <= loose.attacked).all()
    assert (exact.gap[exact.attacked.isfinite()] < 1e-3).all() and exact.attacked.isfinite().any()


def test_the_gradient_is_that_of_the_rescaled_network() -> None:
    model = network(4)
    u, x, y = samples(model)
    u.requires_grad_(), x.requires_grad_()
    certified_radius(model, x, y, 0.4, domain=DOMAIN, differentiable=True).radius.sum().backward()
    certified_radius(Rescaled(model).eval(), u, y, 0.4, domain=WHOLE, differentiable=True).radius.sum().backward()
    assert x.grad is not None and u.grad is not None
    assert torch.allclose(x.grad * SCALE, u.grad, atol=1e-6) and (x.grad != 0).any()


def test_a_scale_of_zero_holds_a_feature_fixed() -> None:
    """As in a network that was given the feature's value."""
    model = network(6)
    _, x, y = samples(model)
    x[:, 2], y = 3.3, model(torch.cat([x[:, :2], torch.full((len(x), 1), 3.3).double(), x[:, 3:]], 1)).argmax(1)
    scale = SCALE.clone()
    scale[2] = 0

    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, v: Tensor) -> Tensor:
            return self.model(torch.cat([v[:, :2], v[:, :1] * 0 + 3.3, v[:, 2:]], 1))

    kept = [0, 1, 3, 4, 5]
    fixed, shorter = Domain(LOW, LOW + SCALE, scale), Domain(LOW[kept], (LOW + SCALE)[kept], scale[kept])
    for bound in ("ibp", "exact"):
        ours = certified_radius(model, x, y, 0.4, bound=bound, domain=fixed).radius
        theirs = certified_radius(Given().eval(), x[:, kept], y, 0.4, bound=bound, domain=shorter).radius
        assert torch.allclose(ours, theirs, rtol=1e-3) and (ours > 0).any()
    attack = attacked_radius(model, x, y, 0.6, domain=fixed)
    assert torch.equal(attack.x_adv[:, 2], x[:, 2]) and attack.radius.isfinite().any()
    nothing = certified_radius(model, x, y, 0.4, domain=Domain(LOW, LOW + SCALE, 0.0))
    assert (nothing.radius == 0.4).all()  # nothing may move


def test_images_with_a_scale_a_channel_or_a_pixel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    x = torch.rand(6, 3, 6, 6)
    y, scale = model(x).argmax(1), torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1)
    box = Box.around(x, 0.1, Domain(eps_scale=scale))
    whole = Box.around(x, 0.1)
    assert torch.equal(box.lower[:, 2], x[:, 2]) and torch.allclose(box.upper[:, 0], whole.upper[:, 0])
    everywhere = certified_radius(model, x, y, 0.1, domain=Domain(eps_scale=scale)).radius
    assert (everywhere >= certified_radius(model, x, y, 0.1).radius).all()
    assert torch.equal(
        everywhere, certified_radius(model, x, y, 0.1, domain=Domain(eps_scale=scale.expand(3, 6, 6))).radius
    )
    nothing_said = certified_radius(model, x, y, 0.1, domain=Domain()).radius
    assert torch.equal(nothing_said, certified_radius(model, x, y, 0.1).radius)  # to the bit


def test_ends_that_the_dtype_does_not_hold_never_turn_a_box_round() -> None:
    """The greatest x in float32 may lie beyond the greatest in float64, from which the domain was made."""
    model = network(7, double=False)
    data = torch.rand(20, FEATURES, dtype=torch.float64)
    domain = Domain(data.amin(0), data.amax(0))
    x = data.float()
    y = model(x).argmax(1)
    for sound in (False, True):
        found = certified_radius(model, x, y, 0.4, domain=domain, sound=sound)
        assert (found.radius > 0).all()
    box = Box.around(x.double(), 0.0, domain.holding(x))
    assert (box.lower <= box.upper).all() and torch.equal(box.lower, x.double())


def test_a_finished_batch_is_of_one_scale(tmp_path) -> None:
    model = network(0)
    _, x, y = samples(model)
    asked = {"eps_max": 0.4, "run_dir": tmp_path, "progress": False}
    first = certify(model, (x, y), domain=DOMAIN, **asked)
    again = certify(model, (x, y), domain=Domain(LOW.tolist(), (LOW + SCALE).numpy(), SCALE.double()), **asked)
    assert (
        again.acr
        == first.acr
        == pytest.approx(float(certified_radius(model, x, y, 0.4, domain=DOMAIN).radius.mean() / 0.4))
    )
    with pytest.raises(ValueError, match="run_dir: .* was begun with domain = .*eps_scale"):
        certify(model, (x, y), domain=Domain(LOW, LOW + SCALE, 2 * SCALE), **asked)
    first.to_json(tmp_path / "report.json")
    first.to_html(tmp_path / "report.html")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Domain(0, 1, -1), "eps_scale: -1 is not a finite number >= 0"),
        (lambda: Domain(0, 1, [1, -2]), "eps_scale: -2 at 1 is not"),
        (lambda: Domain(0, 1, [1, math.inf]), "eps_scale: inf at 1"),
        (lambda: Domain(0, 1, math.nan), "eps_scale: holds NaN"),
        (lambda: Domain([0, 3], [1, 2]), "low: 3 at 1 is not <= high, 2 at 1"),
        (lambda: Domain([0, 3], [1, 2, 3]), r"high: shape \(3,\) does not go with low's \(2,\)"),
        (lambda: Domain("a"), "low: must be a number or an array of real numbers, not 'a'"),
    ],
)
def test_what_is_no_domain(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("domain", "message"),
    [
        (Domain(eps_scale=[1.0, 2.0]), r"domain: eps_scale of shape \(2,\) does not broadcast to one sample, \(6,\)"),
        (Domain(torch.zeros(12, 6), 1.0), r"domain: low of shape \(12, 6\) does not broadcast"),
        (Domain(LOW + 1, LOW + SCALE + 1), "x: .* at .* lies outside the domain"),
    ],
)
def test_a_domain_of_other_samples(domain: DomainLike, message: str) -> None:
    model = network(0)
    _, x, y = samples(model)
    for call in (certified_radius, certified_margin, attacked_radius, radius_bracket, exact_radius):
        with pytest.raises(ValueError, match=message):
            call(model, x, y, 0.1, domain=domain)


def test_a_side_that_some_features_do_not_have() -> None:
    """As with ends far away."""
    model = network(8)
    _, x, y = samples(model)
    low = LOW.clone()
    low[1::2] = -math.inf
    open_, far = (Domain(torch.where(low.isinf(), end, low), None, SCALE) for end in (-math.inf, -1e6))
    ours, theirs = (certified_radius(model, x, y, 0.4, domain=domain).radius for domain in (open_, far))
    assert torch.allclose(ours, theirs, rtol=1e-4) and (ours > 0).all()
    radius_bracket(model, x, y, 0.4, domain=open_, bound="crown").raise_if_crossed()
