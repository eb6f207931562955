"""The exact robust radius: the truth between all bounds and attacks, and the judge of both."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import acertlab as al
from acertlab.bounds.crown.auto_lirpa_compat import bounded_module, import_auto_lirpa
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.margin import clean_logits, clean_margin
from acertlab.models.architectures import mlp
from acertlab.radius.attack import attacked_radius
from acertlab.radius.bracket import RadiusBracket, exact_radius, radius_bracket
from acertlab.radius.certificate import certify
from acertlab.radius.certified import certified_radius
from acertlab.radius.exact import relu_network
from acertlab.radius.exact.relu_network import as_relu_network
from acertlab.radius.search import RadiusStatus
from tests.helpers.networks import Program, Trained, linear


def of_pixels(f: Callable[[Tensor], Tensor]) -> nn.Module:
    """A convolution, f, and a linear layer."""
    conv = nn.Conv2d(1, 2, 3, padding=1)
    width = f(torch.zeros(2, 2, 5, 5)).flatten(1).shape[1]
    return Program(lambda x, conv, head: head(f(conv(x)).flatten(1)), conv, nn.Linear(width, 3))


def batch_norm(channels: int) -> nn.Module:
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_(), norm.running_var.uniform_(0.5, 2), norm.weight.data.normal_()
    return norm


PIXELS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "leaky_relu, steep": lambda h: F.leaky_relu(h, 1.7),
    "prelu": lambda h: F.prelu(h, torch.tensor([-0.5, 0.2]).to(h)),
    "relu6": lambda h: F.relu6(20 * h),
    "hardtanh": lambda h: F.hardtanh(3 * h, -0.5, 0.7),
    "clamp, one end": lambda h: h.clamp(min=0.1) + h.clamp(max=-0.1) + h.clamp_min(0.3),
    "clamp, both": lambda h: h.clamp(-0.2, 0.3),
    "abs": torch.abs,
    "max_pool": lambda h: F.max_pool2d(h, 2),
    "max_pool, overlapping, padded": lambda h: F.max_pool2d(h, 3, 2, 1),
    "max_pool, dilated": lambda h: F.max_pool2d(h, 2, 1, dilation=2),
    "max_pool, ceiling": lambda h: F.max_pool2d(h, 2, 2, ceil_mode=True),
    "adaptive_max_pool": lambda h: F.adaptive_max_pool2d(h, 2),
    "amax and amin": lambda h: h.amax(1) + h.amin((2, 3), keepdim=True)[:, 0],
    "max and min of a dimension": lambda h: h.max(2).values - h.min(3)[0],
    "maximum of two": lambda h: torch.maximum(h, h.flip(-1)) - torch.min(h, 2 * h),
    "maximum with a constant": lambda h: torch.maximum(h, torch.linspace(-0.2, 0.2, 5).to(h)),
    "avg_pool": lambda h: F.avg_pool2d(h, 2),
    "avg_pool, padded": lambda h: F.avg_pool2d(h, 3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive_avg_pool": lambda h: F.adaptive_avg_pool2d(h, 2),
    "residual": lambda h: h + F.relu(h) - 0.5 * F.relu(-h),
    "twice the same": lambda h: F.relu(h) + F.relu(h) + h - h,
    "shapes": lambda h: torch.cat([F.relu(h).permute(0, 2, 3, 1).flatten(1), h[:, :1].flatten(1)], 1),
    "chunks": lambda h: torch.stack([F.relu(part) for part in h.chunk(2, 1)], 1).sum(1),
    "padding": lambda h: F.pad(F.relu(F.pad(h, (1, 1, 1, 1), "reflect")), (0, 1, 0, 1), value=0.5),
    "upsampling": lambda h: F.interpolate(F.relu(h), scale_factor=2, mode="bilinear"),
    "mean": lambda h: F.relu(h.mean((2, 3), keepdim=True) + h),
    "standardised": lambda h: F.relu((h - 0.3) / 0.2),
}


@pytest.mark.parametrize("name", PIXELS)
def test_a_network_is_itself_with_relus_alone(name: str) -> None:
    torch.manual_seed(0)
    model = of_pixels(PIXELS[name]).double().eval()
    x = torch.rand(20, 1, 5, 5, dtype=torch.float64)
    written = as_relu_network(model, graph_of(model, x))
    with torch.no_grad():
        ours, theirs = written.logits(x.flatten(1).numpy()), model(x).numpy()
    assert np.abs(ours - theirs).max() < 1e-12 * (1 + np.abs(theirs).max())


def test_batch_norm_normalisation_and_attributes_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(al.Normalize([0.4], [0.3]), nn.Conv2d(1, 3, 3), batch_norm(3), nn.ReLU(), batch_norm(3)),
        *(nn.Dropout(), nn.Flatten(), nn.Linear(27, 4), nn.BatchNorm1d(4)),
    ).eval()
    x = torch.rand(8, 1, 5, 5)
    written = as_relu_network(model, graph_of(model, x))
    assert [len(layer.offset) for layer in written.layers] == [27]
    assert np.abs(written.logits(x.flatten(1).double().numpy()) - model(x).detach().numpy()).max() < 1e-5


class Own(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x**3


@al.rule.register(Own)
def _own(layer: Own, box: al.Box) -> al.Box:
    return al.Box(box.lower**3, box.upper**3)


@pytest.mark.parametrize(
    ("f", "named"),
    [
        (torch.sigmoid, "'sigmoid'"),
        (lambda h: h * h.flip(-1), "'mul'"),
        (lambda h: h * h, "'mul'"),
        (lambda h: torch.einsum("bchw,bchw->bc", h, h), "'(einsum|bmm|mul)'"),
        (lambda h: h / (2 + h), "'div'"),
        (lambda h: F.softmax(h, 1), "'_?softmax'"),
        (lambda h: F.layer_norm(h, (5,)), "'(native_)?layer_norm'"),
        (Own(), "module 'layers"),
    ],
)
def test_what_is_not_piecewise_linear_is_named(f: Callable[[Tensor], Tensor], named: str) -> None:
    conv, head = nn.Conv2d(1, 2, 3, padding=1), nn.LazyLinear(3)
    layers = (conv, head, f) if isinstance(f, nn.Module) else (conv, head)
    model = Program(lambda x, conv, head, *rest: head((rest[0] if rest else f)(conv(x)).flatten(1)), *layers)
    x, y = torch.rand(2, 1, 5, 5), torch.tensor([0, 1])
    model.eval()(x)
    with pytest.raises(TypeError, match=rf"{named}.*accepted are affine operators"):
        exact_radius(model, x, y, 0.1)


def test_too_many_relus_are_counted_before_anything_is_unrolled(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mlp((3, 32, 32), 3, 2100)
    with pytest.raises(ValueError, match=r"has 4200 ReLUs or more.*up to 4096.*export_vnnlib"):
        exact_radius(model.eval(), torch.rand(1, 3, 32, 32), torch.tensor([0]), 0.1)
    monkeypatch.setattr(relu_network, "MOST_RELUS", 20)
    with pytest.raises(ValueError, match="a maximum of k numbers counts as k - 1"):
        exact_radius(of_pixels(lambda h: F.max_pool2d(h, 2, 1)).eval(), torch.rand(1, 1, 5, 5), torch.tensor([0]), 0.1)


# ---- the radius


def random_networks(seed: int, inputs: int, count: int) -> Iterator[nn.Module]:
    """One architecture of up to three layers of two to six numbers, again and again with other weights."""
    torch.manual_seed(seed)
    kinds: list[Callable[[Tensor], Tensor]] = [
        *(F.relu, F.leaky_relu, lambda h: F.leaky_relu(h, 0.4), lambda h: F.relu(h) + h, lambda h: F.hardtanh(2 * h)),
        *(lambda h: F.relu6(4 * h), lambda h: torch.maximum(h, h.flip(1)), lambda h: h - F.relu(h.flip(1))),
        *(lambda h: F.max_pool1d(h, 2, 1), lambda h: F.avg_pool1d(h.unsqueeze(1), 2, 1).squeeze(1)),
    ]
    layers: list[nn.Module] = []
    width = inputs
    for _ in range(1 + seed % 3):
        to, kind = int(torch.randint(2, 7, ())), kinds[int(torch.randint(len(kinds), ()))]
        layers.append(Program(lambda x, layer, kind=kind: kind(layer(x)), nn.Linear(width, to)))
        width = layers[-1](torch.zeros(1, width)).shape[1]
    model = nn.Sequential(*layers, nn.Linear(width, int(torch.randint(2, 5, ())))).double().eval()
    for _ in range(count):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.uniform_(-1, 1)
            model[-1].bias.sub_(
                model(torch.rand(64, inputs, dtype=torch.float64)).mean(0)
            )  # so that classes meet inside the domain
        yield model


def crossings(exact: RadiusBracket, certified: Tensor, attacked: Tensor, rtol: float = 1e-3) -> int:
    """In how many samples IBP's or CROWN's radius, the bracket and the attack's are out of order."""
    out = (certified.double() >= exact.attacked.double()) & (certified > 0)  # beyond an input seen misclassified
    out |= (attacked.double() <= exact.certified.double()) & (exact.certified > 0)
    return int((out | exact.crossed | (exact.certified * (1 + rtol) < certified)).sum())


def test_the_truth_lies_between_ibp_and_attack_on_hundreds_of_networks() -> None:
    inside = 0
    for seed in range(24):
        for model in random_networks(seed, inputs := 1 + seed % 4, 10):
            x = torch.rand(2, inputs, dtype=torch.float64)
            y = model(x).argmax(1)
            exact = exact_radius(model, x, y, 0.4, steps=2, restarts=1)  # the solver's own work is judged here
            ibp = certified_radius(model, x, y, 0.4).radius
            attacked = attacked_radius(model, x, y, 0.4, steps=3, restarts=2, seed=1).radius
            assert crossings(exact, ibp, attacked) == 0, seed
            found = exact.attacked.isfinite()
            assert (exact.certificate.status != RadiusStatus.TIME_LIMIT).all()
            assert (exact.gap <= 2e-4 * exact.attacked + 1e-6)[found].all(), (seed, exact)
            assert (exact.certified[~found] > 0.3999).all(), (seed, exact)
            wrong = clean_margin(clean_logits(model, exact.attack.x_adv), y) >= 0  # the model itself says so
            away = (exact.attack.x_adv - x).abs().amax(1)
            assert torch.equal(wrong, found) and away[found].allclose(exact.attacked[found])
            inside += int(found.sum())
    assert inside > 120  # of 480


def test_the_truth_lies_above_crown() -> None:
    compared = 0
    for seed in range(12):
        for model in random_networks(100 + seed, 3, 2):
            x = torch.rand(2, 3, dtype=torch.float64)
            y = model(x).argmax(1)
            try:
                crown = certified_radius(model, x, y, 0.4, bound="crown", rtol=1e-3).radius
            except TypeError:  # an operator that it does not bound
                continue
            exact = exact_radius(model, x, y, 0.4)
            assert crossings(exact, crown, exact.attacked) == 0, seed
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize("inputs", [1, 2])
def test_a_dense_grid_finds_the_same_radius(inputs: int) -> None:
    n = 20_001 if inputs == 1 else 401
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, n, dtype=torch.float64)] * inputs).view(-1, inputs)
    close = 0
    for seed in range(4):
        for model in random_networks(50 + seed, inputs, 8):
            x = torch.rand(1, inputs, dtype=torch.float64)
            y = model(x).argmax(1)
            wrong = grid[model(grid).argmax(1) != y]
            truth = (wrong - x).abs().amax(1).min().item() if len(wrong) else torch.inf
            exact = exact_radius(model, x, y, 1.0)
            assert exact.certified.item() <= truth and exact.attacked.item() <= truth + 1e-4  # up to the solver's gap
            close += truth <= exact.attacked.item() + 2 / n < torch.inf  # regions narrower than the grid are missed
    assert close >= 12  # of 32


def test_linear_classifiers_have_a_closed_form() -> None:
    model = linear(6, 3, seed=1)
    x = torch.rand(20, 6, dtype=torch.float64)
    logits = model(x)
    y = logits.argmax(1)
    weight = model[1].weight.detach()
    difference, gap = weight - weight[y].unsqueeze(1), logits.gather(1, y.unsqueeze(1)) - logits
    truth = (gap / difference.abs().sum(2)).scatter(1, y.unsqueeze(1), torch.inf).amin(1).detach()
    exact = exact_radius(model, x, y, 9.0, domain=None)
    assert (exact.certified <= truth).all() and (exact.certified >= truth * (1 - 1e-4)).all()
    assert (exact.attacked >= truth).all() and (exact.attacked <= truth * (1 + 1e-4)).all()


@pytest.mark.filterwarnings("ignore:eps_max = 0.9")
def test_domain_cap_wrong_and_nan_samples() -> None:
    model = nn.Sequential(nn.Linear(1, 2)).eval()
    model[0].weight.data, model[0].bias.data = torch.tensor([[0.0], [1.0]]), torch.tensor([0.6, 0.0])
    x, y = torch.tensor([[0.5], [0.2], [0.7], [0.59]]), torch.tensor([0, 0, 0, 0])
    exact = exact_radius(model, x, y, 0.3)
    assert torch.allclose(exact.attacked, torch.tensor([0.1, torch.inf, 0.0, 0.01]), atol=1e-6)
    names = ("SOLVED", "AT_EPS_MAX", "MISCLASSIFIED", "SOLVED")
    assert [RadiusStatus(s).name for s in exact.certificate.status.tolist()] == list(names)
    assert (
        exact.certified[1].item() == pytest.approx(0.3)
        and exact.certified[2] == 0
        and "tolerances" in RadiusStatus.SOLVED.sentence
    )
    low = exact_radius(model, x[1:2], y[1:2], 0.9, domain=(0.0, 0.55))  # the other class is outside the domain
    assert low.certified.item() == pytest.approx(0.9) and low.attacked.item() == torch.inf
    model[0].bias.data[0] = torch.nan
    assert exact_radius(model, x, y, 0.3).certificate.status.tolist() == [int(RadiusStatus.NONFINITE)] * 4


def test_time_limit_gap_and_an_empty_batch(digits_net: Trained) -> None:
    torch.manual_seed(0)
    wide = mlp((1, 8, 8), 10, 80).eval()
    x = digits_net.x[:2]
    y = wide(x).argmax(1)
    short = exact_radius(wide, x, y, 0.4, time_limit=0.2)
    assert (short.certificate.status == RadiusStatus.TIME_LIMIT).all() and (short.certified < short.attacked).all()
    with pytest.raises(RuntimeError, match="2 x TIME_LIMIT"):
        short.certificate.raise_if_failed()
    empty = exact_radius(wide, x[:0], y[:0], 0.4)
    assert empty.gap.shape == (0,) and empty.attack.x_adv.shape == (0, 1, 8, 8)
    for name, value in (("time_limit", 0), ("gap", 1), ("gap", -0.1), ("steps", 0), ("eps_max", -1.0)):
        with pytest.raises(ValueError, match=name):
            exact_radius(wide, x, y, **{"eps_max": 0.4, name: value})


def test_exact_is_a_bound_of_all_that_search_radii() -> None:
    (model,) = random_networks(1, 3, 1)
    x = torch.rand(4, 3, dtype=torch.float64)
    y = model(x).argmax(1)
    exact = exact_radius(model, x, y, 0.4)
    alone = certified_radius(model, x, y, 0.4, bound="exact", rtol=1e-4)
    assert torch.equal(alone.radius, exact.certified) and torch.equal(alone.upper, exact.certificate.upper)
    bracket = radius_bracket(model, x, y, 0.4, bound="exact")
    assert torch.equal(bracket.certified, exact.certified) and (bracket.attacked <= exact.attacked).all()
    report = certify(model, (x, y), 0.4, bound="exact", rtol=1e-4, progress=False)
    assert report.settings["verifier"] == "exact" and np.allclose(report.radii["radius"], exact.certified)
    with pytest.raises(ValueError, match="'exact'"):
        certified_radius(model, x, y, 0.4, bound="exact", sound=True)
    with pytest.raises(ValueError, match="differentiable"):
        certified_radius(model, x, y, 0.4, bound="exact", differentiable=True)


# ---- faults that it finds


def steep_leaky_relu() -> tuple[nn.Module, Tensor]:
    """A LeakyReLU of slope > 1, which auto_LiRPA relaxes wrongly."""
    model = nn.Sequential(nn.Linear(1, 2), nn.LeakyReLU(1.7), nn.Linear(2, 2)).eval()
    weights = [[[1.0], [1.0]], [-0.5, 4.5]], [[[0.0, 0.0], [1.0, -1.35]], [0.0, 6.76]]
    for layer, (weight, bias) in zip((model[0], model[2]), weights, strict=True):
        layer.weight.data, layer.bias.data = torch.tensor(weight), torch.tensor(bias)
    return model, torch.tensor([[0.6]])


def padded_average() -> tuple[nn.Module, Tensor]:
    """Average pooling with stride and padding, which auto_LiRPA 0.3 bounds wrongly."""
    torch.manual_seed(14)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(3, 1, 1), nn.Flatten(), nn.Linear(72, 3)
    ).eval(), 0.3 + 0.4 * torch.rand(1, 1, 6, 6)


def crown_margin(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    """auto_LiRPA's own CROWN bound of the margin, without any check of ours."""
    lirpa = import_auto_lirpa()
    bounded = bounded_module(model, x)
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    others = [i for i in range(model(x).shape[1]) if i != y.item()]
    against = torch.eye(model(x).shape[1])[others] - torch.eye(model(x).shape[1])[y]
    ball = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(x_L=low, x_U=high))
    return bounded.compute_bounds(x=(ball,), C=against.unsqueeze(0), method="backward")[1].max().item()


@pytest.mark.parametrize("case", [steep_leaky_relu, padded_average])
def test_it_would_have_found_the_wrong_relaxations(case: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    """At a radius beyond the exact one CROWN certifies: the exact radius, or its witness, tells."""
    model, x = case()
    y = model(x).argmax(1)
    eps = 0.1 if case is padded_average else 0.14
    if case is padded_average:  # the margin as close to 0 as shows the fault, see what the bound says of eps = 0.1
        truth = exact_margin_of_affine(model, x, y, eps)
        model[3].bias.data[y] += (crown_margin(model, x, y, eps) + truth) / 2
    if crown_margin(model, x, y, eps) >= 0:
        pytest.skip("this auto_LiRPA bounds it rightly")
    exact = exact_radius(model, x, y, 0.3)
    assert exact.attacked.item() < eps and not exact.crossed.any()
    assert clean_margin(model(exact.attack.x_adv), y) >= 0
    assert crossings(exact, torch.tensor([eps]), exact.attacked) == 1


def exact_margin_of_affine(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> float:
    jacobian = torch.autograd.functional.jacobian(lambda t: model(t)[0], x)[:, 0]
    logits = model(x)[0].detach()
    margins = logits - logits[y] + eps * (jacobian - jacobian[y]).abs().flatten(1).sum(1)
    return max(margin for i, margin in enumerate(margins.tolist()) if i != y.item())
