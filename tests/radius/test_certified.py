"""Def. 3.1 on trained networks and real images: every promise of certified_radius, and what it refuses."""

import copy
import operator
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from torch import nn

from acertlab._memory import SHARE, PeakMemory, free_memory
from acertlab.bounds.box import Box
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.ibp import IntervalNetwork, freeze
from acertlab.bounds.margin import certified_margin, clean_margin, margin_at, prepare_all
from acertlab.models.architectures import MODELS, mlp, residual_cnn
from acertlab.models.initialisation import ibp_init_
from acertlab.radius.attack import attacked_radius
from acertlab.radius.certified import _attach_gradient, bytes_a_row, certified_radius
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import RadiusResult, RadiusStatus, SearchSettings
from tests.helpers.networks import Trained

XTOL, RTOL = 1e-8, 1e-5


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def net(request: pytest.FixtureRequest, trained: Trained) -> Trained:
    dtype = request.param
    return Trained(
        trained.name,
        copy.deepcopy(trained.model).to(dtype),
        trained.x.to(dtype)[:300],
        trained.y[:300],
        trained.eps_max,
    )


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_promise(net: Trained, solver: str, merged: bool) -> None:
    if solver != "brentq":
        net = replace(net, x=net.x[:150], y=net.y[:150])
    result = certified_radius(net.model, net.x, net.y, net.eps_max, solver=solver, merged=merged)
    radius, status = result.radius, result.status
    seen = {int(s) for s in status.unique()}
    assert {int(RadiusStatus.MISCLASSIFIED), int(RadiusStatus.CONVERGED)} <= seen <= {0, 1, 2}

    positive, inside = radius > 0, status == RadiusStatus.CONVERGED
    at_radius = certified_margin(net.model, net.x, net.y, radius, merged=merged)
    assert positive.float().mean() > 0.5 and (at_radius[positive] < 0).all()  # evaluated anew, in one batch
    assert (result.margin[positive] < 0).all()
    at_upper = certified_margin(net.model, net.x[inside], net.y[inside], result.upper[inside], merged=merged)
    assert (at_upper >= 0).all()
    width = (result.upper - radius)[inside]
    assert (width > 0).all() and (width <= XTOL + RTOL * radius[inside]).all()

    logits = net.model(net.x)
    wrong = clean_margin(logits, net.y) >= 0
    assert torch.equal(wrong, status == RadiusStatus.MISCLASSIFIED) and (radius[wrong] == 0).all()
    capped = status == RadiusStatus.AT_EPS_MAX
    at_cap = certified_margin(net.model, net.x, net.y, net.eps_max, merged=merged)
    assert torch.equal(capped, (at_cap < 0) & ~wrong)
    assert (radius[capped] == torch.tensor(net.eps_max, dtype=radius.dtype)).all()
    assert torch.isinf(result.upper[capped]).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_independent_of_batch_size_and_order(net: Trained, solver: str) -> None:
    net = replace(net, x=net.x[:100], y=net.y[:100])
    whole = certified_radius(net.model, net.x, net.y, net.eps_max, solver=solver).radius
    order = torch.randperm(len(net.x), generator=torch.Generator().manual_seed(1))
    allowed = (1e-6 if net.x.dtype == torch.float32 else 1e-12) * net.eps_max
    for size in (1, 37, 75):
        part = slice(0, 20 if size == 1 else None)
        some = certified_radius(
            net.model, net.x[order][part], net.y[order][part], net.eps_max, solver=solver, batch_size=size
        ).radius
        assert (some - whole[order][part]).abs().max() <= allowed


def test_float64_agrees_with_scipy_brentq_sample_by_sample(trained: Trained) -> None:
    model = copy.deepcopy(trained.model).double()
    n = 250
    x, y = trained.x.double()[:n], trained.y[:n]
    results = [certified_radius(model, x, y, trained.eps_max, xtol=1e-8, rtol=rtol) for rtol in (1e-5, 1e-12)]
    inside = (results[0].status == RadiusStatus.CONVERGED).nonzero().squeeze(1)
    assert len(inside) > 100
    frozen = freeze(model)
    roots = []
    for i in inside.tolist():
        own, label = x[i : i + 1], y[i : i + 1]

        def margin(eps: float, own: torch.Tensor = own, label: torch.Tensor = label) -> float:
            with torch.no_grad():
                return margin_at(frozen, own, label, eps).item()

        roots.append(scipy.optimize.brentq(margin, 0.0, trained.eps_max, xtol=1e-12, rtol=8.9e-16))
    for result in results:
        assert (result.radius[inside] - torch.tensor(roots, dtype=torch.float64)).abs().max() < 2e-8


def test_the_model_is_left_as_it_was(digits_net: Trained) -> None:
    model = copy.deepcopy(digits_net.model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    versions = {k: v._version for k, v in model.state_dict(keep_vars=True).items()}
    x = digits_net.x[:50].clone().requires_grad_()
    certified_radius(model, x, digits_net.y[:50], 0.2)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert versions == {k: v._version for k, v in model.state_dict(keep_vars=True).items()}
    assert not any(m.training for m in model.modules()) and x.grad is None
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())


def test_leftmost_root_on_a_plateau() -> None:
    """Pixels at the edge of the domain stop growing: R_cert(eps) is 0 on a whole interval and then rises."""
    with torch.no_grad():  # z_0 - z_1 = relu(a) - relu(b) - 4 relu(c - 0.8)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
        model[1].weight.copy_(torch.eye(3))
        model[1].bias.copy_(torch.tensor([0.0, 0.0, -0.8]))
        model[3].weight.copy_(torch.tensor([[1.0, -1.0, -4.0], [0.0, 0.0, 0.0]]))
        model[3].bias.zero_()
    # a = 1 falls, b = 0 rises: R_cert = -(1 - 2 eps) + 4 relu(0.5 + eps - 0.8)
    x, y = torch.tensor([[1.0, 0.0, 0.5]], dtype=torch.float64).view(1, 1, 1, 3), torch.tensor([0])
    exact = (1 + 4 * 0.3) / 6  # -(1 - 2 e) + 4 (e - 0.3) = 0
    result = certified_radius(model, x, y, 0.9)
    assert abs(result.radius.item() - exact) < 1e-8
    plateau = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        plateau[1].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        plateau[1].bias.copy_(torch.tensor([-0.5, 0.5]))
        plateau[3].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
        plateau[3].bias.copy_(torch.tensor([0.0, 0.0]))
    # z_0 = relu(0.5 - x), z_1 = 0 at x = 0.25: R_cert = -relu(0.25 - eps), exactly 0 from eps = 0.25 on
    x = torch.full((1, 1, 1, 1), 0.25, dtype=torch.float64)
    for solver in SOLVERS:
        result = certified_radius(plateau, x, y, 1.0, solver=solver)
        assert result.status.item() == RadiusStatus.CONVERGED
        assert 0.25 - 1e-5 < result.radius.item() < 0.25 <= result.upper.item() < 0.25 + 1e-5
        assert result.margin.item() < 0


def test_ties_misclassified_and_nonfinite() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 1.0, 0.0]))
    x = torch.rand(3, 1, 2, 2)
    result = certified_radius(model, x, torch.tensor([0, 1, 2]), 0.1)
    assert (result.radius == 0).all() and (result.status == RadiusStatus.MISCLASSIFIED).all()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([2.0, 1.0, 0.0]))  # constant: certified everywhere
    assert certified_radius(model, x, torch.tensor([0, 0, 0]), 0.1).status.tolist() == [2, 2, 2]
    with torch.no_grad():
        model[1].weight[0, 0] = float("nan")
    result = certified_radius(model, x, torch.tensor([0, 0, 0]), 0.1)
    assert (result.status == RadiusStatus.NONFINITE).all() and (result.radius == 0).all()
    with pytest.raises(RuntimeError, match="3 x NONFINITE"):
        result.raise_if_failed()


def test_overflowing_bounds_certify_nothing_beyond_what_was_evaluated() -> None:
    torch.manual_seed(0)
    model = mlp((1, 2, 2), 3, width=8).eval()
    with torch.no_grad():
        model[1].weight.mul_(1e30)
        model[3].weight.mul_(1e8)
    x = torch.rand(20, 1, 2, 2)
    y = model(x).argmax(1)
    result = certified_radius(model, x, y, 0.5)
    positive = result.radius > 0
    assert (certified_margin(model, x[positive], y[positive], result.radius[positive]) < 0).all()


def test_maxiter_keeps_a_certified_radius(digits_net: Trained) -> None:
    result = certified_radius(digits_net.model, digits_net.x, digits_net.y, 0.2, maxiter=1)
    late = result.status == RadiusStatus.MAXITER
    assert late.sum() > 20 and (result.radius[late] >= 0).all()
    positive = result.radius > 0
    margins = certified_margin(digits_net.model, digits_net.x, digits_net.y, result.radius)
    assert (margins[positive] < 0).all()
    with pytest.raises(RuntimeError, match="MAXITER"):
        result.raise_if_failed()


def test_warm_start_saves_evaluations_and_never_the_guarantee(digits_net: Trained) -> None:
    model, x, y = digits_net.model, digits_net.x, digits_net.y
    cold = certified_radius(model, x, y, 0.2)
    for guess in (
        cold.radius,
        torch.zeros_like(cold.radius),
        torch.full_like(cold.radius, float("nan")),
        torch.full_like(cold.radius, 9.0),
        torch.rand_like(cold.radius) * 0.2,
    ):
        warm = certified_radius(model, x, y, 0.2, warm_start=guess)
        assert torch.equal(warm.status, cold.status)
        inside = cold.status == RadiusStatus.CONVERGED
        assert ((warm.radius - cold.radius).abs() <= 1e-8 + 1e-5 * cold.radius).all()
        assert (certified_margin(model, x, y, warm.radius)[warm.radius > 0] < 0).all()
        assert (certified_margin(model, x[inside], y[inside], warm.upper[inside]) >= 0).all()
    warm = certified_radius(model, x, y, 0.2, warm_start=cold.radius)
    assert warm.evaluations[inside].float().mean() < cold.evaluations[inside].float().mean()


def test_gradient_is_the_implicit_function_theorem(digits_net: Trained) -> None:
    """Theorem 3.4 against central differences in float64, to 1e-5 relative, in x and in all parameters."""
    model = copy.deepcopy(digits_net.model).double()
    x, y = digits_net.x[:40].double().clamp(0.3, 0.7), digits_net.y[:40]
    tight = {"xtol": 1e-13, "rtol": 1e-15}
    result = certified_radius(model, x.requires_grad_(), y, 0.2, differentiable=True, **tight)
    inside = (result.status == RadiusStatus.CONVERGED).nonzero().squeeze(1)
    assert len(inside) >= 3
    assert (result.radius.detach() - certified_radius(model, x, y, 0.2, **tight).radius).abs().max() == 0
    (dx,) = torch.autograd.grad(result.radius.sum(), x, retain_graph=True)
    outside = torch.ones(len(x), dtype=torch.bool)
    outside[inside] = False
    assert (dx[outside] == 0).all()

    directions = torch.randn((2, *x.shape), dtype=x.dtype, generator=torch.Generator().manual_seed(0))

    def radii(step: float, direction: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return certified_radius(model, x + step * direction, y, 0.2, **tight).radius[inside]

    for direction in directions:
        smooth = _assert_central_differences(radii, direction, (dx * direction).flatten(1).sum(1)[inside])
        assert smooth.float().mean() >= 0.8  # the radius has kinks where a ReLU's sign changes

    parameters = [p for p in model.parameters() if p.requires_grad]
    shifts = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)) for p in parameters]

    def radius_of(index: int):
        def radius(step: float, shifts: list[torch.Tensor]) -> torch.Tensor:
            shifted = copy.deepcopy(model)
            with torch.no_grad():
                for p, shift in zip((p for p in shifted.parameters() if p.requires_grad), shifts, strict=True):
                    p += step * shift
            return certified_radius(shifted, x[index : index + 1].detach(), y[index : index + 1], 0.2, **tight).radius

        return radius

    tested = 0
    for i in inside[:12].tolist():
        grads = torch.autograd.grad(result.radius[i], parameters, retain_graph=True)
        exact = sum((g * shift).sum() for g, shift in zip(grads, shifts, strict=True))
        tested += int(_assert_central_differences(radius_of(i), shifts, exact.unsqueeze(0)).sum())
    assert tested >= 6


def _assert_central_differences(radii: Callable, direction: object, exact: torch.Tensor) -> torch.Tensor:
    """Where forward and backward differences agree (no kink), the central one is the gradient to 1e-5."""
    h = 1e-7
    down, here, up = (radii(step, direction) for step in (-h, 0.0, h))
    forward, backward, central = (up - here) / h, (here - down) / h, (up - down) / (2 * h)
    smooth = (forward - backward).abs() <= 1e-5 * central.abs()
    assert ((central - exact).abs() <= 1e-5 * exact.abs())[smooth].all()
    return smooth


@pytest.mark.parametrize("which", ["none inside", "none correct", "empty"])
def test_gradient_is_zero_and_not_missing_where_no_radius_moves(digits_net: Trained, which: str) -> None:
    x, y = digits_net.x[:20].clone(), digits_net.y[:20]
    right = certified_radius(digits_net.model, x, y, 0.2).radius > 0
    keep = ~right if which == "none correct" else right if which == "none inside" else torch.zeros_like(right)
    x, y = (x[keep], y[keep]) if keep.any() or which == "empty" else (x, (y + 1) % 10)
    x.requires_grad_()
    radius = certified_radius(digits_net.model, x, y, 1e-6, differentiable=True).radius
    assert torch.equal(radius, torch.full_like(radius, 1e-6 if which == "none inside" else 0.0))
    parameters = [p for p in digits_net.model.parameters() if p.requires_grad]
    for gradient in torch.autograd.grad(radius.sum(), [x, *parameters]):
        assert not gradient.any()


def test_gradient_is_zero_on_a_plateau() -> None:
    """Where the whole domain lies in the box, the margin does not move with eps."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]])), model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    x, y, one = torch.full((1, 1), 0.5, requires_grad=True), torch.zeros(1, dtype=torch.long), torch.ones(1)
    status = torch.full((1,), int(RadiusStatus.CONVERGED), dtype=torch.int8)
    flat = RadiusResult(0.7 * one, -one, 0.8 * one, status, y, True)
    radius = _attach_gradient(model, x, y, flat, SearchSettings())
    gradients = torch.autograd.grad(radius.sum(), [x, *model.parameters()])
    assert all((gradient == 0).all() for gradient in gradients)


def test_gradient_takes_the_memory_of_one_backward_pass(digits_net: Trained) -> None:
    x = digits_net.x[:200].clone().requires_grad_()
    saved: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = certified_radius(digits_net.model, x, digits_net.y[:200], 0.2, differentiable=True)
        of_the_radius, inside = sum(saved), result.status == RadiusStatus.CONVERGED
        saved.clear()
        certified_margin(digits_net.model, x[inside], digits_net.y[:200][inside], result.radius.detach()[inside])
    assert inside.sum() > 20 and 0 < of_the_radius <= 1.1 * sum(saved)


@pytest.mark.parametrize("change", [{"bound": "crown"}, {"sound": True}])
def test_gradient_is_that_of_ibp(change: dict) -> None:
    x, y = torch.rand(4, 1, 8, 8), torch.arange(4)
    with pytest.raises(ValueError, match="differentiable: "):
        certified_radius(mlp((1, 8, 8), 10).eval(), x, y, 0.1, differentiable=True, **change)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_radius_that_was_the_cap_is_asked_for_once(digits_net: Trained, solver: str) -> None:
    cold = certified_radius(digits_net.model, digits_net.x, digits_net.y, 0.012, solver=solver)
    at_cap = cold.status == RadiusStatus.AT_EPS_MAX
    warm = certified_radius(digits_net.model, digits_net.x, digits_net.y, 0.012, solver=solver, warm_start=cold.radius)
    assert at_cap.sum() > 50
    assert (cold.evaluations[at_cap] == 2).all()  # the clean pass, and the one at eps_max
    assert warm.evaluations[at_cap].max() <= (2 if solver == "log-secant" else 3)
    assert torch.equal(warm.radius[at_cap], cold.radius[at_cap])


def test_empty_batch(digits_net: Trained) -> None:
    result = certified_radius(digits_net.model, digits_net.x[:0], digits_net.y[:0], 0.2)
    assert result.radius.shape == (0,) and result.status.dtype == torch.int8


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), eps_max=st.sampled_from([0.01, 0.1, 1.0]), residual=st.booleans())
def test_no_point_of_a_certified_box_changes_the_label(seed: int, eps_max: float, residual: bool) -> None:
    torch.manual_seed(seed)
    model = (residual_cnn((1, 4, 4), 3, width=2, linear=5) if residual else mlp((1, 4, 4), 3, width=9)).double().eval()
    x = torch.rand(6, 1, 4, 4, dtype=torch.float64)
    y = model(x).argmax(1)
    result = certified_radius(model, x, y, eps_max)
    radius = result.radius.view(-1, 1, 1, 1)
    corners = torch.rand(200, *x.shape, dtype=torch.float64).round()
    points = (x + (2 * corners - 1) * radius * torch.rand(200, 1, 1, 1, 1, dtype=torch.float64).sqrt()).clamp(0, 1)
    assert (model(points.flatten(0, 1)).argmax(1).view(200, -1) == y).all()
    smaller = certified_radius(model, x, y, eps_max / 2).radius
    assert torch.allclose(smaller, result.radius.clamp(max=eps_max / 2), rtol=1e-5, atol=1e-8)


def test_statuses_have_a_sentence() -> None:
    assert len({status.sentence for status in RadiusStatus}) == 7
    assert all(np.issubdtype(type(int(s)), np.integer) for s in RadiusStatus)


class Products(nn.Module):
    """A fully connected layer whose forward calls a matrix product, as networks from ONNX files do."""

    def __init__(self, product: Callable, inputs: int, outputs: int) -> None:
        super().__init__()
        self.product, self.weight = product, nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.product(x, self.weight)


KINDS = {f.__name__: partial(Products, f) for f in (operator.matmul, torch.mm)} | {"linear": nn.Linear}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("features", "outputs"), [(33, 10), (50, 1), (51, 12)])
def test_a_sample_is_computed_alike_wherever_it_is(features: int, outputs: int, kind: str) -> None:
    """Rows of such a length begin at other fractions of 16 bytes, and AVX2 kernels sum them in another order."""
    torch.manual_seed(features)
    hidden = [KINDS[kind](20, features), nn.ReLU(), KINDS[kind](features, outputs), nn.ReLU()]
    model = nn.Sequential(*hidden, KINDS[kind](outputs, 10)).eval()
    x = torch.rand(64, 20)
    y, order = model(x).argmax(1), torch.randperm(64)[:51]
    with torch.no_grad():
        whole, some = certified_margin(model, x, y, 0.01), certified_margin(model, x[order], y[order], 0.01)
    assert torch.equal(some, whole[order])
    assert torch.equal(certified_margin(model, x, y, 0.01), whole)  # with a graph, too
    found, again = certified_radius(model, x, y, 0.1), certified_radius(model, x[order], y[order], 0.1)
    assert torch.equal(again.radius, found.radius[order]) and (found.radius > 0).any()
    broken = attacked_radius(model, x[:1].expand(51, -1), y[:1].expand(51), 0.5, steps=5, restarts=1)
    assert (broken.margin == broken.margin[0]).all() and (broken.radius[0].isfinite() or outputs == 1)


def test_chunks_keep_to_the_memory_given(digits_net: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a sample takes, as it was counted, stays within ``memory``; the radii are the same."""
    x, y = digits_net.x.repeat(4, 1, 1, 1), digits_net.y.repeat(4)
    rows: list[int] = []
    margins = IntervalNetwork.margins
    monkeypatch.setattr(
        IntervalNetwork, "margins", lambda self, box, y, **kw: rows.append(len(y)) or margins(self, box, y, **kw)
    )
    whole = certified_radius(digits_net.model, x, y, 0.2)
    assert max(rows) >= 0.9 * (whole.status == RadiusStatus.CONVERGED).sum()  # all in one chunk
    rows.clear()
    small = certified_radius(digits_net.model, x, y, 0.2, memory=2**21)
    assert 64 < max(rows) < 500  # 8 channels of 4 x 4 or less, linear 50: kilobytes a sample
    assert torch.equal(small.radius, whole.radius)


COUNTED = (("small_cnn", (1, 28, 28), 16, 64, False), ("cnn7", (3, 32, 32), 8, 32, False))
COUNTED += (("mlp", (1, 28, 28), 64, 256, False), ("mlp", (1, 28, 28), 64, 32, True))


@torch.no_grad()
@pytest.mark.parametrize(("name", "shape", "width", "n", "sound"), COUNTED)
def test_a_search_holds_what_was_counted_for_its_samples(
    name: str, shape: tuple[int, ...], width: int, n: int, sound: bool
) -> None:
    torch.manual_seed(0)
    model, x = ibp_init_(MODELS[name](shape, 10, width=width)).eval(), torch.rand(2 * n, *shape)
    graph = graph_of(model, x)  # else it would be captured while what is held is followed
    y, peaks = model(x).argmax(1), []
    for rows in (n, 2 * n):
        with PeakMemory() as seen:
            found = certified_radius(model, x[:rows], y[:rows], 0.05, sound=sound, batch_size=rows)
        assert (found.status == RadiusStatus.CONVERGED).float().mean() > 0.9
        peaks.append(seen.peak)
    network = prepare_all(model, graph, ["ibp"], sound, x[:1], y[:1])[-1]
    counted = bytes_a_row(model, graph, network, x[:1], 0.05, SearchSettings(sound=sound))
    assert 0.75 < (peaks[1] - peaks[0]) / n / counted <= 1


@pytest.mark.parametrize(("free", "rows"), {16e9: 4_856, 80e9: 24_284, 141e9: 42_802}.items())
def test_a_gpus_memory_is_filled_to_its_share(free: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """CNN7 of width 64 on CIFAR-10, on the meta device, where a pass holds what it would on a GPU."""
    with torch.device("meta"), torch.no_grad():
        model, x = MODELS["cnn7"]((3, 32, 32), 10).eval(), torch.rand(1, 3, 32, 32)
        graph = graph_of(model, x)
        network = freeze(model, graph=graph)
        assert SHARE * free // bytes_a_row(model, graph, network, x, 0.1, SearchSettings()) == rows
        with PeakMemory() as seen:
            margin_at(network, torch.rand(rows, 3, 32, 32), torch.zeros(rows, dtype=torch.int64), 0.1)
    assert 0.9 * SHARE * free < seen.peak < SHARE * free
    gpu = torch.device("cuda")
    for name, value in {"mem_get_info": (int(free), 0), "memory_reserved": 0, "memory_allocated": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_memory(gpu) == SHARE * free


def test_out_of_memory_halves_the_chunk_and_goes_on(digits_net: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = digits_net.model, digits_net.x[:300], digits_net.y[:300]
    expected = certified_radius(model, x, y, 0.2)
    margins = IntervalNetwork.margins

    def limited(self: IntervalNetwork, box: Box, y: torch.Tensor, **settings: bool) -> torch.Tensor:
        if len(y) > 96:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return margins(self, box, y, **settings)

    monkeypatch.setattr(IntervalNetwork, "margins", limited)
    found = certified_radius(model, x, y, 0.2)
    assert torch.equal(found.radius, expected.radius) and torch.equal(found.upper, expected.upper)

    def broken(self: IntervalNetwork, box: Box, y: torch.Tensor, **settings: bool) -> torch.Tensor:
        if len(y) > 96:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return margins(self, box, y, **settings)

    monkeypatch.setattr(IntervalNetwork, "margins", broken)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):  # only running out of memory is tried again
        certified_radius(model, x, y, 0.2)
