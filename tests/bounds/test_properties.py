"""What must hold of every network and every input: random networks of five kinds, ordinary and extreme."""

import copy

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor, nn

from acertlab.bounds.box import Box, ball
from acertlab.bounds.ibp import freeze, propagate
from acertlab.bounds.margin import certified_margin
from acertlab.models.architectures import residual_cnn
from acertlab.radius.certified import certified_radius
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import RadiusStatus
from tests.helpers.networks import points_of

CLASSES, SHAPE = 4, (1, 5, 5)
few = settings(max_examples=30, deadline=None)


class Network:
    """A random network in evaluation mode, samples in [0, 1] and the labels that it gives them."""

    def __init__(self, kind: str, seed: int, scale: float, pixels: str, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(seed)
        self.said = f"{kind}, seed {seed}, scale {scale}, {pixels} pixels"
        self.model = KINDS[kind]()
        for layer in self.model.modules():
            if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.normal_(layer.weight)  # of either sign
                nn.init.normal_(layer.bias)
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 1e-3, 2.0)
        with torch.no_grad():
            first = next(layer for layer in self.model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d)))
            first.weight.mul_(scale)
            self.head.weight.mul_(4.0)
        self.model.to(dtype).eval()
        x = torch.rand(6, *SHAPE, dtype=dtype)
        self.x = {"random": x, "edge": x.round(), "flat": x[..., :1, :1].expand_as(x).contiguous()}[pixels]
        with torch.no_grad():
            self.head.bias.sub_(0.9 * self.model(self.x).mean(0))  # else one class has all samples
            self.y = self.model(self.x).argmax(1)

    def __repr__(self) -> str:
        return self.said

    @property
    def head(self) -> nn.Linear:
        return [layer for layer in self.model.modules() if isinstance(layer, nn.Linear)][-1]

    def with_head(self, weight: Tensor, bias: Tensor) -> nn.Module:
        """A copy of the model whose last layer has other classes."""
        model = copy.deepcopy(self.model)
        last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
        last.weight, last.bias = nn.Parameter(weight), nn.Parameter(bias)
        return model


def an_mlp() -> nn.Module:
    layers = nn.Flatten(), nn.Linear(25, 8), nn.ReLU(), nn.Linear(8, 6), nn.Hardtanh(), nn.Linear(6, CLASSES)
    return nn.Sequential(*layers)


def a_smooth_one() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(25, 8), nn.Tanh(), nn.Linear(8, 6), nn.GELU(), nn.Linear(6, CLASSES))


def a_cnn() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(12, CLASSES))


def with_batch_norm() -> nn.Module:
    layers = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(27, 6), nn.BatchNorm1d(6), nn.LeakyReLU(0.2), nn.Linear(6, CLASSES))


KINDS = {
    "mlp": an_mlp,
    "smooth": a_smooth_one,
    "cnn": a_cnn,
    "BatchNorm": with_batch_norm,
    "residual": lambda: residual_cnn(SHAPE, CLASSES, width=3, linear=12),
}
SCALES = (1e-30, 1e-4, 1.0, 1e3, 1e12)
of_a_network = {
    "kind": st.sampled_from(sorted(KINDS)),
    "seed": st.integers(0, 10**6),
    "scale": st.sampled_from(SCALES),
    "pixels": st.sampled_from(["random", "edge", "flat"]),
}
networks = st.builds(Network, **of_a_network)
single_networks = st.builds(Network, **of_a_network, dtype=st.just(torch.float32))
rounded_kinds = st.sampled_from(sorted(KINDS.keys() - {"smooth"}))  # those of which every rounding is bounded
rounded_networks = st.builds(Network, **of_a_network | {"kind": rounded_kinds}, dtype=st.just(torch.float32))
limits = st.sampled_from([1e-6, 0.01, 0.1, 1.0, 5.0])


def logits_of(model: nn.Module, points: Tensor) -> Tensor:
    with torch.no_grad():
        return model(points.flatten(0, 1)).unflatten(0, points.shape[:2])


def differences(logits: Tensor, y: Tensor) -> Tensor:
    """logit_i - logit_y of (n, B, classes), and -inf for i = y."""
    own = y.view(1, -1, 1).expand(len(logits), -1, 1)
    return (logits - logits.gather(2, own)).scatter(2, own, -torch.inf)


# ---- certificates ----------------------------------------------------------------------------------------------------


@few
@pytest.mark.filterwarnings("ignore:eps_max = ")
@example(Network("BatchNorm", 947, 1.0, "edge"), 0.01, "brentq", True)  # its logits are 100 times the margin
@given(net=networks, eps_max=limits, solver=st.sampled_from(sorted(SOLVERS)), merged=st.booleans())
def test_no_point_of_a_certified_box_changes_the_label(net: Network, eps_max: float, solver: str, merged: bool) -> None:
    result = certified_radius(net.model, net.x, net.y, eps_max, solver=solver, merged=merged)
    logits = logits_of(net.model, points_of(net.model, ball(net.x, result.radius), net.y, 40))
    slack = 1e-12 * logits.abs().amax(2, keepdim=True)  # the roundings of the forward pass, in float64
    assert ((differences(logits, net.y) <= slack) | (result.radius == 0).view(1, -1, 1)).all()
    again = certified_margin(net.model, net.x, net.y, result.radius, merged=merged)
    assert (again < 0)[result.radius > 0].all()


@few
@pytest.mark.filterwarnings("ignore:eps_max = ")
@given(net=rounded_networks, eps_max=limits)
def test_a_sound_certificate_holds_without_any_slack(net: Network, eps_max: float) -> None:
    """Of the float32 forward pass itself: no point that float32 holds in the box is given another label, or a tie."""
    result = certified_radius(net.model, net.x, net.y, eps_max, sound="float32")
    x, radius = net.x.double(), result.radius
    lower, upper = (end.float() for end in (ball(x, radius).lower, ball(x, radius).upper))
    lower = torch.where(lower.double() < ball(x, radius).lower, lower.nextafter(torch.tensor(torch.inf)), lower)
    upper = torch.where(upper.double() > ball(x, radius).upper, upper.nextafter(torch.tensor(-torch.inf)), upper)
    logits = logits_of(net.model, points_of(net.model, Box(lower, upper), net.y, 40))
    assert ((differences(logits, net.y) < 0) | (radius == 0).view(1, -1, 1)).all()
    exact = certified_radius(net.model, net.x, net.y, eps_max, sound=True).radius
    assert (radius <= exact).all()  # any float32 evaluation is more than the exact one


@few
@pytest.mark.filterwarnings("ignore:eps_max = ")
@given(net=networks, eps_max=limits, share=st.floats(1e-3, 1.0))
def test_a_smaller_limit_cuts_the_radius(net: Network, eps_max: float, share: float) -> None:
    whole = certified_radius(net.model, net.x, net.y, eps_max).radius
    part = certified_radius(net.model, net.x, net.y, share * eps_max).radius
    assert torch.allclose(part, whole.clamp(max=share * eps_max), rtol=2e-5, atol=2e-8)


@few
@given(net=single_networks, order=st.permutations(range(6)), size=st.integers(1, 7))
def test_neither_order_nor_chunks_matter(net: Network, order: list[int], size: int) -> None:
    whole = certified_radius(net.model, net.x, net.y, 0.5)
    some = certified_radius(net.model, net.x[order], net.y[order], 0.5, batch_size=size)
    assert torch.equal(some.status, whole.status[order])
    assert torch.allclose(some.radius, whole.radius[order], rtol=1e-6, atol=1e-9)


@few
@given(net=networks, order=st.permutations(range(CLASSES)))
def test_permuting_the_classes_changes_no_radius(net: Network, order: list[int]) -> None:
    radius = certified_radius(net.model, net.x, net.y, 0.5).radius
    model = net.with_head(net.head.weight[order], net.head.bias[order])
    place = torch.tensor(order).argsort()
    assert torch.allclose(certified_radius(model, net.x, place[net.y], 0.5).radius, radius, rtol=2e-5, atol=2e-8)


@few
@given(net=networks, power=st.integers(-40, 40))
def test_a_power_of_two_on_the_logits_changes_nothing(net: Network, power: int) -> None:
    radius = certified_radius(net.model, net.x, net.y, 0.5).radius
    model = net.with_head(net.head.weight * 2.0**power, net.head.bias * 2.0**power)
    assert torch.equal(certified_radius(model, net.x, net.y, 0.5).radius, radius)


@few
@given(net=rounded_networks, kind=st.sampled_from([{}, {"merged": False}, {"sound": True}, {"sound": "float32"}]))
def test_a_class_that_is_there_twice_is_never_certified(net: Network, kind: dict) -> None:
    twice = [*range(CLASSES), *range(CLASSES)]
    model = net.with_head(net.head.weight[twice], net.head.bias[twice])
    result = certified_radius(model, net.x, net.y, 0.5, **kind)
    assert (result.radius == 0).all() and (result.status == RadiusStatus.MISCLASSIFIED).all()


# ---- bounds ----------------------------------------------------------------------------------------------------------


@few
@given(net=networks, eps=limits, cut=st.booleans())
def test_bounds_contain_samples_layer_by_layer(net: Network, eps: float, cut: bool) -> None:
    box = ball(net.x, eps, (0.0, 1.0) if cut else None)
    points = points_of(net.model, box, net.y, 40)
    boxes: list[Box] = []
    seen: list[Tensor] = []
    relus = [layer for layer in net.model.modules() if isinstance(layer, nn.ReLU)]
    boxes.append(freeze(net.model).propagate(box, boxes))
    handles = [relu.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone())) for relu in relus]
    seen.append(logits_of(net.model, points).flatten(0, 1))
    for handle in handles:
        handle.remove()
    assert len(seen) == len(boxes) == len(relus) + 1
    for values, bounds in zip(seen, boxes, strict=True):
        values = values.unflatten(0, points.shape[:2])
        slack = 1e-9 * (bounds.lower.abs().amax() + bounds.upper.abs().amax()) + 1e-12
        assert (values >= bounds.lower - slack).all() and (values <= bounds.upper + slack).all()


@few
@given(net=networks, eps=limits, share=st.floats(0, 1), cut=st.booleans())
def test_larger_boxes_have_larger_bounds(net: Network, eps: float, share: float, cut: bool) -> None:
    """In eps, and for any box within another."""
    outer = ball(net.x, eps, (0.0, 1.0) if cut else None)
    inner = ball(net.x, share * eps, (0.0, 1.0) if cut else None)
    ends = torch.rand(2, *net.x.shape, dtype=net.x.dtype).sort(0).values
    anywhere = Box(*(torch.lerp(outer.lower, outer.upper, end) for end in ends))
    large = propagate(net.model, outer)
    slack = 1e-9 * (large.lower.abs().amax() + large.upper.abs().amax())
    for box in (inner, anywhere):
        small = propagate(net.model, box)
        assert (small.lower >= large.lower - slack).all() and (small.upper <= large.upper + slack).all()
        for merged in (True, False):
            margins = (freeze(net.model).margins(b, net.y, merged=merged) for b in (box, outer))
            less, more = margins
            assert (less <= more + slack).all()


@few
@given(net=networks, eps=limits, cut=st.booleans())
def test_merged_is_never_looser(net: Network, eps: float, cut: bool) -> None:
    domain = (0.0, 1.0) if cut else None
    merged, plain = (certified_margin(net.model, net.x, net.y, eps, merged=m, domain=domain) for m in (True, False))
    assert (merged <= plain + 1e-9 * plain.abs().amax()).all()
    points = points_of(net.model, ball(net.x, eps, domain), net.y, 40)
    seen = differences(logits_of(net.model, points), net.y).amax((0, 2))
    assert (seen <= merged + 1e-9 * (plain.abs().amax() + 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_networks_are_not_all_trivial(kind: str) -> None:
    """The strategies give radii inside (0, eps_max): else the properties above would say little."""
    statuses = [
        certified_radius(net.model, net.x, net.y, 0.5).status
        for net in (Network(kind, seed, 1.0, "random") for seed in range(5))
    ]
    assert (torch.cat(statuses) == RadiusStatus.CONVERGED).float().mean() > 0.5
