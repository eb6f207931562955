"""auto_LiRPA's bounds: the same IBP from an independent implementation, and the tighter bounds of the CROWN family."""

import copy
import logging
import os
import sys
import time
import warnings
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from acertlab import certified_radius
from acertlab.bounds.box import Box, ball
from acertlab.bounds.crown import auto_lirpa as lirpa, auto_lirpa_compat as compat
from acertlab.bounds.crown.auto_lirpa import AutoLirpaNetwork
from acertlab.bounds.crown.conversion import Normalization
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import BOUNDS, worst_margin
from acertlab.bounds.rules.affine import Normalize
from acertlab.data import datasets as data
from acertlab.models.architectures import MODELS, mlp, small_cnn
from acertlab.models.initialisation import ibp_init_
from acertlab.training.loop.batch_statistics import clean_pass
from tests.helpers.networks import Program, Trained, warm_up

IMAGE = (1, 6, 6)


def dense(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), *layers, nn.Linear(8, 4))


def convolutional(activation: nn.Module, *pool: nn.Module) -> nn.Sequential:
    first, second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
    return nn.Sequential(
        first, activation, *pool, second, activation, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
    )


class OwnNormalization(nn.Module):
    """As many write it: buffers of shape (1, channels, 1, 1)."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), mean))
        self.register_buffer("std", torch.full((1, 1, 1, 1), std))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def residual(x: Tensor, convolution: nn.Module, head: nn.Module) -> Tensor:
    return head((x + convolution(x).relu()).relu().flatten(1))


# a name -> builds a network for IMAGE; what auto_LiRPA can bound in either version
NETWORKS = {
    "mlp": lambda: mlp(IMAGE, 4, width=8),
    "no hidden layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 4)),
    "no bias": lambda: dense(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.ReLU()),
    "dropout": lambda: dense(nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5)),
    "small_cnn": lambda: small_cnn((1, 8, 8), 4, width=2, linear=8, mean=(0.3,), std=(0.2,)),
    "residual": lambda: Program(residual, nn.Conv2d(1, 1, 3, padding=1), nn.Linear(36, 4)),
    "own normalization": lambda: nn.Sequential(OwnNormalization(0.3, 0.2), *convolutional(nn.ReLU())),
    "pooling": lambda: convolutional(nn.ReLU(), nn.AvgPool2d(2)),
    "groups": lambda: convolutional(nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.ReLU()),
    "leaky": lambda: convolutional(nn.LeakyReLU(0.1)),
    "tanh": lambda: convolutional(nn.Tanh()),
    "sigmoid": lambda: dense(nn.Sigmoid()),
    # with rules of ours that torch.fx once kept out:
    "exp": lambda: dense(Program(lambda x: torch.exp(-x))),
    "product": lambda: dense(Program(lambda x: x * x.relu())),
    "asks for dim": lambda: dense(nn.ReLU(), Program(lambda x: x.flatten(1) if x.dim() > 2 else x)),
    "view of its shape": lambda: nn.Sequential(Program(lambda x: x.view(x.shape[0], -1)), *dense(nn.ReLU())[1:]),
}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(seed)
    shape = (1, 8, 8) if name == "small_cnn" else IMAGE
    return warm_up(NETWORKS[name]().to(dtype), shape), shape


class TheirIBP:
    """auto_LiRPA's own IBP of a network itself; 0.3 takes no normalisation of ours, idle layers, or missing biases."""

    def __init__(self, model: nn.Module) -> None:
        self.model = self._taken(copy.deepcopy(model))

    def _taken(self, module: nn.Module) -> nn.Module:
        if isinstance(module, Normalize):
            return Normalization(module.mean, module.std)
        if isinstance(module, nn.Linear) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros_like(module.weight[:, 0]))
        for name, child in module.named_children():
            setattr(module, name, nn.Identity() if isinstance(child, nn.Dropout) else self._taken(child))
        return module

    def margins(self, box: Box, y: Tensor, *, merged: bool = True) -> Tensor:
        with torch.no_grad(), compat._default_dtype(box.lower.dtype), compat._explained(self.model):
            converted = compat.bounded_module(self.model, torch.zeros_like(box.lower), "matrix")
            margins = lirpa._BoundProblem(converted, box, y, merged)._bound("IBP")
            return margins.scatter(1, y.unsqueeze(1), 0.0)


def prepared(model: nn.Module) -> dict[str, Any]:
    return {"ibp": TheirIBP(model)} | {bound: AutoLirpaNetwork(model, bound=bound) for bound in lirpa.LADDER}


def ladder(model: nn.Module, box: Box, y: Tensor, merged: bool = True) -> dict[str, Tensor]:
    return {bound: network.margins(box, y, merged=merged) for bound, network in prepared(model).items()}


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_ibp_equals_auto_lirpa(name: str, merged: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]((1, 28, 28), 10, mean=(0.1307,), std=(0.3081,))
    model = warm_up(ibp_init_(model) if name == "cnn7" else model, (1, 28, 28))
    x, y = torch.rand(12, 1, 28, 28), torch.arange(12) % 10
    network, theirs = freeze(model), TheirIBP(model)
    for eps in (0.0, 0.01, torch.linspace(0, 0.4, 12)):
        a, b = (n.margins(ball(x, eps), y, merged=merged) for n in (network, theirs))
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
        assert b.abs().max() > 0.01


@pytest.mark.parametrize("merged", [True, False])
def test_ibp_equals_auto_lirpa_on_a_trained_network(trained: Trained, merged: bool) -> None:
    x, y, model = trained.x[:100], trained.y[:100], trained.model
    ours = freeze(model).margins(ball(x, 0.1), y, merged=merged)
    theirs = TheirIBP(model).margins(ball(x, 0.1), y, merged=merged)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_crown_ibp_by_a_few_lines_of_its_own() -> None:
    """Zhang et al. 2020: ReLU between lines, above through the ends of its triangle, below through the origin."""
    torch.manual_seed(0)
    model, x, y = mlp((1, 6), 4, width=10).double().eval(), torch.rand(9, 1, 6).double(), torch.arange(9) % 4
    box = ball(x, torch.linspace(0.02, 0.4, 9).double())
    (w1, b1), (w2, b2), (w3, b3) = ((model[i].weight, model[i].bias) for i in (1, 3, 5))
    lines, (low, high) = [], (box.lower.flatten(1), box.upper.flatten(1))
    for w, b in ((w1, b1), (w2, b2)):  # IBP to the inputs of both ReLU layers
        center, radius = F.linear((low + high) / 2, w, b), F.linear((high - low) / 2, w.abs())
        low, high = center - radius, center + radius
        unstable = (low < 0) & (high > 0)
        slope = torch.where(unstable, high / (high - low), (low >= 0).double())
        below = torch.where(unstable, (high > -low).double(), slope)
        lines.append((slope, torch.where(unstable, -low * slope, 0.0), below))
        low, high = low.relu(), high.relu()
    a, constant = w3 - w3[y].unsqueeze(1), b3 - b3[y].unsqueeze(1)  # (B, i, features): backwards from here
    for (slope, intercept, below), w, b in ((lines[1], w2, b2), (lines[0], w1, b1)):
        constant = constant + (a.clamp(min=0) @ intercept.unsqueeze(2)).squeeze(2)
        a = a.clamp(min=0) * slope.unsqueeze(1) + a.clamp(max=0) * below.unsqueeze(1)
        constant, a = constant + a @ b, a @ w
    center, radius = box.center.flatten(1), box.radius.flatten(1)
    expected = constant + (a @ center.unsqueeze(2) + a.abs() @ radius.unsqueeze(2)).squeeze(2)
    expected = torch.minimum(expected, freeze(model).margins(box, y))
    torch.testing.assert_close(AutoLirpaNetwork(model, "crown-ibp").margins(box, y), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bound", ["crown-ibp", "crown", "alpha-crown"])
def test_exact_where_every_relu_is_stable(bound: str) -> None:
    """There the network is affine in the box, and its range has a closed form; IBP loses what cancels."""
    torch.manual_seed(0)
    model = dense(nn.ReLU()).double().eval()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([9.0, -9.0] * 4))
    x, y = torch.rand(5, *IMAGE).double(), torch.arange(5) % 4
    active, head = model[1].bias > 0, model[3]
    w = (head.weight * active) @ model[1].weight
    b = head.weight @ (model[1].bias * active) + head.bias
    box = ball(x, 0.1)
    difference = w - w[y].unsqueeze(1)
    at_center = (difference @ box.center.flatten(1).unsqueeze(2)).squeeze(2) + b - b[y].unsqueeze(1)
    exact = at_center + (difference.abs() @ box.radius.flatten(1).unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(AutoLirpaNetwork(model, bound=bound).margins(box, y), exact)
    assert (freeze(model).margins(box, y) - exact).amax(1).min() > 0.1


def test_tighter_than_ibp_by_hand() -> None:
    """relu(x + 1) - relu(x + 1) is 0; to IBP it is in [-0.2, 0.2] for x in [-0.1, 0.1]."""
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), ([[1], [1]], [1, 1], [[0, 0], [1, -1]], [1, 0]), strict=True):
            parameter.copy_(torch.tensor(value, dtype=torch.float32))
    box, y = ball(torch.zeros(1, 1), 0.1, None), torch.tensor([0])
    margins = ladder(model, box, y)
    assert margins["ibp"][0, 1].item() == pytest.approx(-0.8) and margins["crown-ibp"][0, 1].item() == pytest.approx(-1)


@pytest.mark.parametrize("merged", [True, False])
def test_the_bounds_are_ordered_and_each_helps_somewhere(digits_net: Trained, merged: bool) -> None:
    x, y, model = digits_net.x[:40], digits_net.y[:40], digits_net.model
    box = ball(x, torch.linspace(0.0, 0.2, 40))
    margins = ladder(model, box, y, merged)
    assert (margins["ibp"] - freeze(model).margins(box, y, merged=merged)).abs().max() < 1e-4
    for looser, tighter in pairwise(BOUNDS):
        assert (margins[tighter] <= margins[looser] + 1e-5).all()
        assert (worst_margin(margins[looser], y) - worst_margin(margins[tighter], y)).max() > 0.005
    assert all(margin.gather(1, y.unsqueeze(1)).eq(0).all() for margin in margins.values())


def attacked(model: nn.Module, box: Box, y: Tensor, steps: int = 3) -> Tensor:
    """The largest margins seen, (B, classes): at random points and corners, and by signed gradient steps."""
    found = []
    for _ in range(30):
        u = torch.rand_like(box.lower)
        found += [box.lower + v * (box.upper - box.lower) for v in (u, u.round())]
    for target in range(4):
        x = box.center
        for _ in range(steps):
            x = x.detach().requires_grad_()
            logits = model(x)
            (g,) = torch.autograd.grad((logits[:, target] - logits.gather(1, y.unsqueeze(1)).squeeze(1)).sum(), x)
            x = torch.where(g > 0, box.upper, torch.where(g < 0, box.lower, x))
        found.append(x.detach())
    with torch.no_grad():
        logits = torch.stack([model(x) for x in found])
    return (logits - logits.gather(2, y.view(1, -1, 1).expand(len(found), -1, -1))).amax(0)


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**16), eps=st.floats(0.1, 0.5), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_no_point_of_the_box_exceeds_a_bound(name: str, seed: int, eps: float, dtype: torch.dtype) -> None:
    model, shape = build(name, seed, dtype)
    x, y = torch.rand(4, *shape, dtype=dtype), torch.randint(4, (4,))
    box = ball(x, eps * torch.tensor([1.0, 0.3, 0.05, 0.0], dtype=dtype))
    reached, networks = attacked(model, box, y), prepared(model)
    roundings = 1e-9 if dtype == torch.float64 else 1e-4
    slack = roundings * (1 + reached.abs().max())
    for merged in (True, False):
        margins = {bound: network.margins(box, y, merged=merged) for bound, network in networks.items()}
        for bound in BOUNDS:
            assert margins[bound].dtype == dtype
            assert (margins[bound] >= reached - slack).all(), bound
        for looser, tighter in pairwise(BOUNDS):
            assert (margins[tighter] <= margins[looser] + slack).all()


@pytest.mark.parametrize("bound", lirpa.LADDER)
@pytest.mark.parametrize("name", ["small_cnn", "residual", "tanh", "view of its shape", "product"])
def test_a_sample_does_not_depend_on_its_batch(name: str, bound: str) -> None:
    """Also not on the size of the batch that the network was converted with."""
    model, shape = build(name)
    x, y, eps = torch.rand(11, *shape), torch.arange(11) % 4, torch.linspace(0, 0.3, 11)
    network = AutoLirpaNetwork(model, bound=bound)
    together = network.margins(ball(x, eps), y)
    for pick in ([3], [10, 0], [7, 1, 5, 2], list(range(10, -1, -1)), [4]):
        apart = network.margins(ball(x[pick], eps[pick]), y[pick])
        assert (apart - together[pick]).abs().max() <= 2e-5 * (1 + together.abs().max())
    assert network.margins(ball(x[:0], 0.1), y[:0]).shape == (0, 4)


def test_crown_of_a_trained_network_does_not_depend_on_the_batch(digits_net: Trained) -> None:
    """auto_LiRPA's own does, by 0.25 here: which inner neurons get CROWN bounds depends on the whole batch."""
    x, y = digits_net.x[:24], digits_net.y[:24]
    network = AutoLirpaNetwork(digits_net.model, bound="crown")
    together = network.margins(ball(x, 0.1), y)
    apart = torch.cat([network.margins(ball(x[i : i + 1], 0.1), y[i : i + 1]) for i in range(24)])
    assert (together - apart).abs().max() < 5e-5


def test_own_normalization_is_bounded_like_ours() -> None:
    """In its "patches" mode auto_LiRPA 0.3 fails here, and 0.7.1 returns bounds that do not hold."""
    model, shape = build("own normalization")
    same = nn.Sequential(Normalize((0.3,), (0.2,)), *model[1:]).eval()
    x, y = torch.rand(6, *shape), torch.arange(6) % 4
    for bound in lirpa.LADDER:
        a, b = (AutoLirpaNetwork(m, bound=bound).margins(ball(x, 0.05), y) for m in (model, same))
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()


def test_alpha_crown_improves_with_its_iterations() -> None:
    model, shape = build("residual")
    x, y = torch.rand(6, *shape), torch.arange(6) % 4
    margins = [AutoLirpaNetwork(model, bound="alpha-crown", iterations=n).margins(ball(x, 0.2), y) for n in (1, 10, 40)]
    crown = AutoLirpaNetwork(model, "crown").margins(ball(x, 0.2), y)
    assert (margins[1] <= crown).all() and (crown - margins[1]).max() > 0.01
    assert (margins[2] - margins[1]).abs().max() < 0.1 * (crown - margins[1]).max()  # ten suffice


def test_the_model_and_all_global_state_stay_as_they_were(capfd: pytest.CaptureFixture) -> None:
    model, shape = build("small_cnn")
    model[0].register_forward_hook(calls := lambda *_: None)
    (model(torch.rand(2, *shape)).sum()).backward()
    state = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters()]
    box, y = ball(torch.rand(9, *shape).requires_grad_(), 0.1), torch.arange(9) % 4
    random, handlers, filters = torch.get_rng_state(), logging.root.handlers[:], warnings.filters[:]
    for bound in lirpa.LADDER:
        assert not AutoLirpaNetwork(model, bound=bound).margins(box, y).requires_grad
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) and p.requires_grad for p, g in zip(model.parameters(), grads, strict=True))
    assert list(model[0]._forward_hooks.values()) == [calls] and not model.training
    assert torch.equal(random, torch.get_rng_state()) and torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert logging.root.handlers == handlers and warnings.filters == filters
    assert capfd.readouterr() == ("", "")


def test_a_later_change_of_the_model_does_not_reach_the_copy() -> None:
    model, shape = build("mlp")
    network, box, y = AutoLirpaNetwork(model, "crown"), ball(torch.rand(3, *shape), 0.1), torch.arange(3)
    before = network.margins(box, y)
    with torch.no_grad():
        model[1].weight.mul_(2.0)
    assert torch.equal(network.margins(box, y), before)


def test_works_under_a_dispatch_mode() -> None:
    """`certified_radius` counts the bytes of a pass with one."""

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    model, shape = build("small_cnn")
    network, box, y = (
        AutoLirpaNetwork(model, "alpha-crown"),
        ball(torch.rand(2, *shape), 0.1),
        torch.tensor([0, 1]),
    )
    expected = network.margins(box, y)  # the first call also converts, which no mode may watch
    with Count() as count:
        assert torch.equal(network.margins(box, y), expected)
    assert count.calls > 100


def test_nan_in_a_tighter_bound_leaves_the_cheaper_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = build("mlp")
    box, y = ball(torch.rand(3, *shape), 0.1), torch.arange(3)
    cheaper = AutoLirpaNetwork(model, "crown-ibp")  # one by one, as CROWN's are on a CPU
    expected = torch.cat([cheaper.margins(Box(box.lower[i : i + 1], box.upper[i : i + 1]), y[i : i + 1]) for i in y])
    monkeypatch.setattr(lirpa._BoundProblem, "crown", lambda self: torch.full((len(self.y), 4), torch.nan))
    assert torch.equal(AutoLirpaNetwork(model, "crown").margins(box, y), expected)
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    assert not (worst_margin(AutoLirpaNetwork(model, "crown").margins(box, y), y) < 0).any()


# ---- radii --------------------------------------------------------------------------------------------------------


def train_against_attacks(x: Tensor, y: Tensor, eps: float, steps: int) -> nn.Module:
    """Signed-gradient adversarial training with a little of the IBP loss: where CROWN certifies what IBP does not."""
    torch.manual_seed(0)
    model = small_cnn(x.shape[1:], 10, width=4, linear=32).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(steps):
        pick = torch.randint(len(x), (128,))
        adversarial = x[pick].clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(adversarial), y[pick]), adversarial)
        logits, statistics = clean_pass(model, (x[pick] + eps * step / steps * g.sign()).clamp(0, 1))
        margins = freeze(model, statistics).margins(ball(x[pick], 0.2 * eps * step / steps), y[pick])
        loss = F.cross_entropy(logits, y[pick]) + 0.02 * F.cross_entropy(margins, y[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def radii_by_bound(trained: Trained, n: int) -> dict[str, Tensor]:
    """The radii under every bound, with a table of them printed (pytest -s)."""
    radii = {}
    print(f"\n{trained.name}: {n} test images, eps_max {trained.eps_max}")
    for bound in BOUNDS:
        start = time.perf_counter()
        result = certified_radius(trained.model, trained.x[:n], trained.y[:n], trained.eps_max, bound=bound)
        seconds, radius = time.perf_counter() - start, result.radius
        share = (radius >= trained.eps_max / 2).float().mean()
        print(f"{bound:>11}  mean radius {radius.mean():.4f}  certified at eps_max / 2 {share:.3f}  {seconds:.1f} s")
        assert (result.margin[radius > 0] < 0).all() and result.monotone == (bound == "ibp")
        radii[bound] = radius
    return radii


def assert_ordered(radii: dict[str, Tensor]) -> None:
    for looser, tighter in pairwise(BOUNDS):
        assert (radii[tighter] >= radii[looser] * (1 - 1e-4) - 1e-7).all(), f"{tighter} lost a radius of {looser}"


def test_a_tighter_bound_never_loses_a_radius(digits_net: Trained) -> None:
    """Training against IBP makes IBP nearly as good as any; a network trained otherwise needs CROWN."""
    certified = radii_by_bound(digits_net, 6)
    images = data.load_dataset("digits")
    model = train_against_attacks(data.to_float(images.train_x), images.train_y, 0.15, 200)
    robust = radii_by_bound(replace(digits_net, name="digits against attacks", model=model), 6)
    assert_ordered(certified)
    assert_ordered(robust)
    assert certified["alpha-crown"].mean() < 1.3 * certified["ibp"].mean()
    assert robust["alpha-crown"].mean() > 2 * robust["ibp"].mean() > 0


def test_a_tighter_bound_never_loses_a_radius_on_mnist(mnist_net: Trained) -> None:
    images = data.load_dataset("mnist", root=Path(os.environ.get("ACERTLAB_DATA", "data/datasets")))
    model = train_against_attacks(data.to_float(images.train_x), images.train_y, 0.15, 150)
    radii = radii_by_bound(replace(mnist_net, name="mnist against attacks", model=model, eps_max=0.1), 5)
    assert_ordered(radii)
    assert radii["crown"].mean() > 1.2 * radii["ibp"].mean() > 0


# ---- errors -------------------------------------------------------------------------------------------------------


def test_unknown_bounds_and_training_mode_are_refused() -> None:
    model = mlp((1, 4, 4), 3).eval()
    with pytest.raises(
        ValueError, match="bound: 'crowned' is unknown; choose from 'crown-ibp', 'crown', 'alpha-crown'"
    ):
        AutoLirpaNetwork(model, "crowned")
    with pytest.raises(ValueError, match="model: is in training mode"):
        AutoLirpaNetwork(nn.Sequential(*model, nn.BatchNorm1d(3)), "crown")


def test_without_auto_lirpa_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "auto_LiRPA", None)
    with pytest.raises(ImportError, match="pip install --no-deps auto_LiRPA==0.3"):
        AutoLirpaNetwork(mlp((1, 4, 4), 3).eval(), "crown")


@pytest.mark.parametrize(
    "function, message",
    [
        (lambda x, a: a(x.flatten(1).tan()).relu(), "no interval rule for operator 'tan'"),
        (
            lambda x, a: F.gelu(a(x.flatten(1))),
            "cannot bound Program: the operation onnx::Erf is unsupported.*bound='ibp'",
        ),
        (
            lambda x, a: F.leaky_relu(a(x.flatten(1)), 1.7),
            "the bound of LeakyRelu with negative_slope=1.7 .*bound='ibp'",
        ),
        (
            lambda x, a: a(x.flatten(1) if x.sum() > 0 else -x.flatten(1)),
            "control flow depends on the values of tensors",
        ),
    ],
)
def test_what_auto_lirpa_cannot_bound_is_one_clear_error(
    function: object, message: str, capfd: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    model = Program(function, nn.Linear(36, 4)).eval()
    with pytest.raises(TypeError, match=message):
        AutoLirpaNetwork(model, "crown").margins(ball(torch.rand(2, *IMAGE), 0.1), torch.tensor([0, 1]))
    assert capfd.readouterr() == ("", "")


def test_bounds_that_do_not_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, shape = build("small_cnn")
    network, box, y = AutoLirpaNetwork(model, "crown"), ball(torch.rand(3, *shape), 0.1), torch.arange(3)
    expected = network.margins(box, y)
    monkeypatch.setattr(lirpa._BoundProblem, "crown", lambda self: expected - 5.0)
    with pytest.raises(TypeError, match="its bounds of the output do not hold"):
        network.margins(box, y)


def test_running_out_of_memory_passes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    model, shape = build("mlp")
    monkeypatch.setattr(lirpa._BoundProblem, "crown", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        AutoLirpaNetwork(model, "crown").margins(ball(torch.rand(3, *shape), 0.1), torch.arange(3))
