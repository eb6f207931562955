"""Bounds against hand-computed examples, against sampled points, and rule by rule."""

import copy
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from acertlab.bounds.box import Box, ball
from acertlab.bounds.ibp import difference_radius, freeze, propagate
from acertlab.bounds.margin import certified_margin, margin_at
from acertlab.bounds.rules.affine import Normalize
from acertlab.bounds.rules.batch_invariance import batch_invariant_matmul
from acertlab.bounds.rules.dispatch import rule
from acertlab.models.architectures import MODELS, cnn7, mlp, residual_cnn, small_cnn
from acertlab.training.loop.batch_statistics import clean_pass
from tests.helpers.networks import Program, warm_up


def assert_contains_samples(model: nn.Module, box: Box, n: int = 200) -> Box:
    bounds = propagate(model, box)
    for corners in (False, True):
        u = torch.rand(n, *box.lower.shape, dtype=box.lower.dtype)
        points = box.lower + (u.round() if corners else u) * (box.upper - box.lower)
        out = model(points.flatten(0, 1)).unflatten(0, (n, -1))
        slack = 1e-9 * (1 + out.abs())
        assert (out >= bounds.lower - slack).all() and (out <= bounds.upper + slack).all()
    return bounds


def test_a_network_by_hand() -> None:
    """Eq. (16)-(19) worked out on paper: [1, 2] x [-1, 1] through W = [[1, -2], [3, 1]], b = (0, -1), ReLU."""
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -1.0]))
        model[2].weight.copy_(torch.tensor([[1.0, 1.0], [2.0, -1.0]]))
        model[2].bias.copy_(torch.tensor([0.5, 0.0]))
    box = Box(torch.tensor([[1.0, -1.0]]).double(), torch.tensor([[2.0, 1.0]]).double())
    out = propagate(model, box)
    # hidden: [-1, 4] x [1, 6] -> relu [0, 4] x [1, 6]; outputs: [0 + 1, 4 + 6] + 0.5 and [0 - 6, 8 - 1]
    assert out.lower.tolist() == [[1.5, -6.0]] and out.upper.tolist() == [[10.5, 7.0]]
    frozen, y = freeze(model), torch.tensor([0])
    # Eq. (3): 7 - 1.5; merged: z_1 - z_0 = h_1 - 2 h_2 - 0.5 <= 4 - 2 - 0.5
    assert frozen.margins(box, y, merged=False).tolist() == [[0.0, 5.5]]
    assert frozen.margins(box, y).tolist() == [[0.0, 1.5]]


def test_box_around_is_cut_to_the_domain() -> None:
    box = Box.around(torch.tensor([[0.0, 0.5], [1.0, 0.5]]), torch.tensor([0.25, 0.75]))
    assert box.lower.tolist() == [[0.0, 0.25], [0.25, 0.0]] and box.upper.tolist() == [[0.25, 0.75], [1.0, 1.0]]
    uncut = Box.around(torch.tensor([[0.0, 1.0]]), 0.5, domain=None)
    assert uncut.lower.tolist() == [[-0.5, 0.5]] and uncut.upper.tolist() == [[0.5, 1.5]]
    assert box.center.tolist() == [[0.125, 0.5], [0.625, 0.5]] and box.radius.tolist() == [[0.125, 0.25], [0.375, 0.5]]


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ((torch.zeros(2), [1.0]), TypeError, "upper: .* not list"),
        ((torch.zeros(2, dtype=torch.int64), torch.zeros(2)), TypeError, "lower: .* not torch.int64"),
        ((torch.zeros(2), torch.zeros(3)), ValueError, "upper: shape"),
        ((torch.zeros(2), torch.zeros(2).double()), TypeError, "upper: dtype"),
    ],
)
def test_a_bad_box_is_refused(arguments: tuple, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        Box(*arguments)


MONOTONE = [
    *(nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.2, inplace=True), nn.Tanh(), nn.Sigmoid(), nn.ELU()),
    *(nn.Softplus(), nn.Hardtanh(), nn.ReLU6(), nn.SELU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Identity()),
    *(nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(2), nn.AdaptiveMaxPool2d(1), nn.Dropout()),
    *(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 6, 3, groups=3)),
    *(nn.Conv2d(3, 2, 3, dilation=2, bias=False), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)),
    *(Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)), nn.Flatten(), nn.ZeroPad2d(1), nn.Dropout2d()),
]
FUNCTIONS = [
    lambda x: F.relu(x - 0.3) + x,
    lambda x: torch.relu(x) - 2 * x,
    lambda x: -x * 0.5 + 1,
    lambda x: x / 3 - x.tanh(),
    lambda x: torch.cat([x, x.relu(), -x], 1),
    lambda x: x.view(x.size(0), -1),
    lambda x: x.reshape(x.shape[0], -1)[:, :5],
    lambda x: F.max_pool2d(F.leaky_relu(x, 0.1), 2).flatten(1),
    lambda x: F.gelu(x) + F.silu(x - 1),
    lambda x: F.dropout(x.mean((2, 3)), 0.5, False),
    lambda x: F.adaptive_avg_pool2d(torch.sigmoid(x), 1).squeeze(3).permute(0, 2, 1).contiguous(),
    lambda x: F.relu(x + 0, True) + x,
    lambda x: x.transpose(1, 2).contiguous().view_as(x),  # boxes leave the copy out
    lambda x: torch.add(x, 2, alpha=2) - torch.sub(x, 3, alpha=3),
]


@pytest.mark.parametrize("layer", MONOTONE, ids=repr)
def test_every_layers_rule_contains_its_samples(layer: nn.Module) -> None:
    torch.manual_seed(0)
    model = warm_up(nn.Sequential(layer).double(), (3, 6, 6)) if list(layer.parameters()) else layer.double().eval()
    x = 2 * torch.randn(4, 3, 6, 6, dtype=torch.float64)
    for eps in (0.0, 0.3, 2.0):
        box = Box(x - eps, x + eps)
        before = box.lower.clone(), box.upper.clone()
        bounds = assert_contains_samples(model, box, 50)
        assert torch.equal(before[0], box.lower) and torch.equal(before[1], box.upper)  # in-place layers too
        if eps == 0:
            assert torch.allclose(bounds.lower, model(x.clone()), atol=1e-12)
            assert torch.allclose(bounds.upper, bounds.lower, atol=1e-12)


@pytest.mark.parametrize("f", FUNCTIONS, ids=range(len(FUNCTIONS)))
def test_functions_and_methods_contain_their_samples(f: object) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    assert_contains_samples(Program(f).eval(), Box(x - 0.2, x + 0.7), 50)


def test_conv1d_and_batchnorm1d() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.MaxPool1d(2), nn.Flatten())
    model = warm_up(model.append(nn.Linear(9, 4)).double(), (2, 8))
    x = torch.rand(5, 2, 8, dtype=torch.float64)
    assert_contains_samples(model, Box(x - 0.1, x + 0.1))


@pytest.mark.parametrize("kind", [nn.GELU(), nn.GELU("tanh"), nn.SiLU()], ids=repr)
def test_the_valley_is_bounded_tightly(kind: nn.Module) -> None:
    """The least value of GELU and SiLU on [-3, 1] is found, to the last digits, on a fine grid."""
    box = Box(torch.tensor([[-3.0]]).double(), torch.tensor([[1.0]]).double())
    grid = kind(torch.linspace(-3, 1, 400001, dtype=torch.float64))
    bounds = rule(kind, box)
    assert bounds.lower.item() <= grid.min().item() <= bounds.lower.item() + 1e-9
    assert bounds.upper.item() == grid.max().item()


@pytest.mark.parametrize("f", [torch.floor, torch.ceil, torch.round, torch.trunc])
def test_a_jump_is_not_missed_by_a_rounding(f: Callable[[Tensor], Tensor]) -> None:
    """Points are summed in another order than boxes: an end may lie on the other side of a jump by a rounding."""
    jumps = torch.tensor([[-3.0, -1.0, 1.0, 3.0]]) + (0.5 if f is torch.round else 0.0)
    for end in (-torch.inf, torch.inf):
        beside = jumps.nextafter(torch.tensor(end))
        box = propagate(Program(f), Box(beside, beside))
        assert ((box.lower <= f(jumps)) & (f(jumps) <= box.upper)).all()
    zero = propagate(Program(f), Box(torch.zeros(1, 2), torch.zeros(1, 2)))
    assert (zero.lower == 0).all() and (zero.upper == 0).all()  # what a ReLU cuts is 0 in any order


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("merged", [True, False])
def test_margins_contain_samples_and_merging_tightens(name: str, merged: bool) -> None:
    torch.manual_seed(1)
    model = MODELS[name]((1, 8, 8), 5, width=4, mean=(0.2,), std=(0.4,)).double()
    model = warm_up(model, (1, 8, 8))
    x, y = torch.rand(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 5
    for eps in (0.0, 0.02, 0.3):
        margins = freeze(model).margins(ball(x, eps), y, merged=merged)
        assert (margins.gather(1, y[:, None]) == 0).all()
        assert (margins <= freeze(model).margins(ball(x, eps), y, merged=False) + 1e-9).all()
        noise = eps * (2 * torch.rand(100, *x.shape, dtype=torch.float64) - 1)
        logits = model((x + noise).clamp(0, 1).flatten(0, 1)).unflatten(0, (100, -1))
        seen = logits - logits.gather(2, y.view(1, -1, 1).expand(100, -1, 1))
        assert (seen <= margins + 1e-9).all()


@pytest.mark.parametrize("classes, limit", [(10, 2**24), (200, 2**24), (30, 500)])
def test_the_merged_head_is_the_same_by_table_and_in_pieces(classes: int, limit: int) -> None:
    weight, radius = torch.randn(classes, 7, dtype=torch.float64), torch.rand(9, 7, dtype=torch.float64)
    y = torch.randint(classes, (9,))
    direct = torch.stack([(weight - weight[k]).abs() @ r for r, k in zip(radius, y, strict=True)])
    assert torch.allclose(difference_radius(weight, radius, y, limit), direct, atol=1e-12)


def test_batch_statistics_in_training_mode() -> None:
    """At eps = 0 bounds with the clean batch's statistics are the clean logits, and the gradients agree too."""
    torch.manual_seed(0)
    model = small_cnn((1, 8, 8), 4, width=3, linear=9).double().train()
    x, y = torch.rand(16, 1, 8, 8, dtype=torch.float64), torch.arange(16) % 4
    before = copy.deepcopy(model.state_dict())
    logits, statistics = clean_pass(model, x)
    after = copy.deepcopy(model.state_dict())
    assert set(statistics) == {"1", "4", "8"}
    once = copy.deepcopy(model)
    once.load_state_dict(before)
    once(x)
    assert all(torch.equal(v, after[k]) for k, v in once.state_dict().items())  # updated once, as a forward does
    box = freeze(model, statistics).propagate(ball(x, 0.0))
    assert torch.allclose(box.lower, logits) and torch.allclose(box.upper, logits)
    assert all(torch.equal(v, after[k]) for k, v in model.state_dict().items())  # bounds update nothing
    clean = torch.autograd.grad(F.cross_entropy(logits, y), list(model.parameters()), retain_graph=True)
    bound = torch.autograd.grad(F.cross_entropy(box.center, y), list(model.parameters()))
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(clean, bound, strict=True))


def test_relu_inputs_come_in_order() -> None:
    model = residual_cnn((1, 8, 8), 3, width=2).eval()
    boxes: list[Box] = []
    freeze(model).propagate(ball(torch.rand(2, 1, 8, 8), 0.1), boxes)
    assert len(boxes) == sum(isinstance(m, nn.ReLU) for m in model.modules()) == 6
    assert boxes[-1].lower.shape == (2, 100) and all((b.lower <= b.upper).all() for b in boxes)


def test_frozen_without_grad_keeps_no_graph() -> None:
    model = cnn7((1, 8, 8), 3, width=2, linear=5).eval()
    frozen = freeze(model)
    with torch.no_grad():
        assert not frozen.propagate(ball(torch.rand(2, 1, 8, 8), 0.1)).lower.requires_grad
    assert frozen.propagate(ball(torch.rand(2, 1, 8, 8), 0.1)).lower.requires_grad


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_in_another_order_or_in_parts_gives_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    model = warm_up(MODELS[name]((1, 10, 10), 5, width=8, mean=(0.2,), std=(0.4,)), (1, 10, 10))
    x, y = torch.rand(160, 1, 10, 10), torch.arange(160) % 5
    box, frozen = ball(x, 0.05), freeze(model)
    before, weights = (box.lower.clone(), box.upper.clone()), copy.deepcopy(model.state_dict())
    with torch.no_grad():
        whole = frozen.margins(box, y)
        order = torch.randperm(160)
        assert torch.equal(frozen.margins(Box(box.lower[order], box.upper[order]), y[order]), whole[order])
        for rows in (32, 64):
            parts = zip(box.lower.split(rows), box.upper.split(rows), y.split(rows), strict=True)
            assert torch.equal(torch.cat([frozen.margins(Box(low, high), own) for low, high, own in parts]), whole)
        assert frozen.margins(Box(x[:0], x[:0]), y[:0]).shape == (0, 5)
    assert torch.allclose(frozen.margins(box, y), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(before[0], box.lower) and torch.equal(before[1], box.upper)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_a_relu_works_in_place_only_on_what_is_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    for f in (
        lambda x, linear, relu: relu(linear(x)),
        lambda x, linear, relu: relu(z := linear(x)) + z,
        lambda x, linear, relu: relu(z := linear(x)).flatten(1) + z.view(-1, 6),
        lambda x, linear, relu: relu((z := linear(x)).view(-1, 6)) - z,
        lambda x, linear, relu: relu(x) + linear(x),
    ):
        box = Box(x - 0.1, x + 0.1)
        frozen = freeze(Program(f, nn.Linear(6, 6), nn.ReLU()).eval())
        with_graph = frozen.propagate(box)
        with torch.no_grad():
            without = frozen.propagate(box)
        assert torch.equal(with_graph.lower, without.lower) and torch.equal(with_graph.upper, without.upper)
        assert torch.equal(box.lower, x - 0.1) and torch.equal(box.upper, x + 0.1)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_an_unknown_layer_is_named_and_can_be_taught() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(4, 4), Program(lambda x: x.tan()))).eval()
    box = Box(torch.zeros(1, 4), torch.ones(1, 4))
    with pytest.raises(TypeError, match=r"rule for operator 'tan' in '1\.1' of type Program.*\n.*rule\.register"):
        propagate(model, box)
    with pytest.raises(
        TypeError, match="forward of Unknown cannot be captured: its control flow depends on the values"
    ):
        propagate(Unknown(), box)
    with pytest.raises(TypeError, match="softmax.*last layer, drop it"):
        propagate(nn.Sequential(nn.Linear(4, 4), nn.Softmin(1)), box)

    class Cube(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**3

    rule.register(Cube)(lambda layer, b: Box(b.lower**3, b.upper**3))
    assert propagate(nn.Sequential(Cube()), Box(-torch.ones(1, 1), 2 * torch.ones(1, 1))).upper.item() == 8


@pytest.mark.parametrize(
    "model, message",
    [
        (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), r"call model\.eval\(\)"),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3)), "Dropout with p=0.3 is active"),
        (nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False)).eval(), "track_running_stats"),
        (nn.Sequential(nn.LeakyReLU(-0.1)).eval(), "not monotone"),
    ],
    ids=range(4),
)
def test_what_has_no_sound_bound_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        propagate(model, Box(torch.zeros(2, 4), torch.ones(2, 4)))


class ReusesInPlace(nn.Module):
    """The well-known slip of residual networks: the shortcut is taken of what an in-place ReLU has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.relu = nn.Linear(4, 4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.relu(x.view(-1, 4)) + x


@pytest.mark.parametrize(
    "model",
    [ReusesInPlace(), Program(lambda x: F.relu(x, True) + x), Program(lambda x: (x + 1).relu_() - x.relu_() + x)],
)
def test_what_was_changed_in_place_is_used_as_changed(model: nn.Module) -> None:
    x = torch.linspace(-1, 1, 80).view(20, 4)
    box, expected = propagate(model.eval(), ball(x, 0.0, None)), model(x.clone())
    torch.testing.assert_close(box.lower, expected)
    torch.testing.assert_close(box.upper, expected)
    wide = propagate(model, Box(-torch.ones(1, 4), torch.ones(1, 4)))
    assert (wide.lower <= expected).all() and (expected <= wide.upper).all()


def test_lower_above_upper_is_refused() -> None:
    with pytest.raises(ValueError, match="lower exceeds upper in 1 elements"):
        propagate(nn.Sequential(nn.ReLU()), Box(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])))
    with pytest.raises(TypeError, match=r"box: must be an acertlab\.Box"):
        propagate(nn.Sequential(nn.ReLU()), torch.zeros(1, 2))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(MODELS)), eps=st.floats(0, 1), cut=st.booleans())
def test_random_networks(seed: int, name: str, eps: float, cut: bool) -> None:
    """Bounds contain samples, grow with eps, and a smaller box's bounds lie inside a larger one's."""
    torch.manual_seed(seed)
    model = warm_up(MODELS[name]((1, 6, 6), 3, width=2).double(), (1, 6, 6))
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    box = ball(x, eps, (0.0, 1.0) if cut else None)
    outer = assert_contains_samples(model, box, 30)
    inner = propagate(model, ball(x, 0.7 * eps, (0.0, 1.0) if cut else None))
    slack = 1e-9 * (1 + outer.upper.abs().max())
    assert (inner.lower >= outer.lower - slack).all() and (inner.upper <= outer.upper + slack).all()


def test_float32_bounds_agree_with_float64() -> None:
    torch.manual_seed(0)
    model = warm_up(mlp((1, 6, 6), 3, width=30), (1, 6, 6))
    x = torch.rand(8, 1, 6, 6)
    single = propagate(model, ball(x, 0.1))
    double = propagate(copy.deepcopy(model).double(), ball(x.double(), 0.1))
    assert (single.upper - double.upper).abs().max() <= 1e-5 * double.upper.abs().max()


# ---- what a sample's bounds depend on


class Tokens(nn.Module):
    """Linear layers on several vectors of each sample, and a matrix product that is no layer."""

    def __init__(self, count: int, side: str) -> None:
        super().__init__()
        self.count, self.side = count, side
        self.layers = nn.Sequential(nn.Linear(64 // count, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU())
        self.matrix, self.last = nn.Parameter(torch.randn(300, 40) * 0.1), nn.Linear(40 * count, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers(x.reshape(-1, self.count, 64 // self.count))
        product = hidden @ self.matrix if self.side == "right" else self.matrix.t() @ hidden.transpose(1, 2)
        return self.last(product.flatten(1))


class Squeezed(nn.Module):
    """A convolution of images of one pixel, and a product of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 64, 1)
        self.matrix = nn.Parameter(torch.randn(64, 10) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.point(self.wide(x).relu().mean((2, 3), keepdim=True)).relu().flatten(1) @ self.matrix


@pytest.mark.parametrize(
    "build",
    [lambda: Tokens(2, "right"), lambda: Tokens(4, "right"), lambda: Tokens(2, "left"), Squeezed],
    ids=["two tokens", "four tokens", "matrix on the left", "one pixel"],
)
def test_bounds_of_a_sample_do_not_depend_on_how_many_there_are(build) -> None:
    torch.manual_seed(0)
    model, x = build().eval().requires_grad_(False), torch.rand(96, 1, 8, 8)
    y, eps = model(x).argmax(1), torch.full((96,), 0.01)
    frozen = freeze(model)
    whole = margin_at(frozen, x, y, eps)
    for n in (1, 2, 3, 5, 8, 12, 15, 16, 17, 31):
        assert torch.equal(margin_at(frozen, x[:n], y[:n], eps[:n]), whole[:n]), n


SIZE = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(SIZE, SIZE, st.integers(1, 4), st.booleans(), st.booleans(), st.data())
def test_matrix_products_sum_a_sample_alike(
    inputs: int, outputs: int, tokens: int, left: bool, turned: bool, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, matrix = torch.randn(64, tokens, inputs, generator=generator), torch.randn(inputs, outputs, generator=generator)
    product = (
        (lambda x: batch_invariant_matmul(matrix.t(), x.mT)) if left else (lambda x: batch_invariant_matmul(x, matrix))
    )
    whole, first = product(x), data.draw(st.integers(0, 63))
    part = x[first : data.draw(st.integers(first + 1, 64))]
    assert torch.equal(product(part.mT.contiguous().mT if turned else part), whole[first : first + len(part)])
    assert torch.allclose(whole, matrix.t() @ x.mT if left else x @ matrix, atol=1e-4)


def test_the_margin_has_a_gradient_in_eps() -> None:
    model = mlp((1, 2, 2), 3, width=4).eval()
    x, eps = torch.full((2, 1, 2, 2), 0.5), torch.full((2,), 0.1, requires_grad=True)
    y = torch.tensor([0, 1])
    (slope,) = torch.autograd.grad(certified_margin(model, x, y, eps).sum(), eps)
    with torch.no_grad():
        up, down = (certified_margin(model.double(), x.double(), y, 0.1 + h) for h in (1e-6, -1e-6))
    torch.testing.assert_close(slope.double(), (up - down) / 2e-6, rtol=1e-3, atol=1e-4)
