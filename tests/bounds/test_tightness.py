"""Rules of norms, softmax, attention, products and functions against the dense truth: sound, and how wide.

The truth is exact where there is a formula, else the largest value on a dense grid in double precision. A rule's width
over the truth's may not grow beyond what is stated here.
"""

import copy
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import freeze, propagate
from acertlab.bounds.sound.network import prepare_sound
from tests.helpers.networks import Program

GRID = 4001


def random_box(n: int, width: float, seed: int) -> Box:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, n, generator=g, dtype=torch.float64)
    radius = width * torch.rand(1, n, generator=g, dtype=torch.float64)
    return Box(x - radius, x + radius)


def grid_of(box: Box, steps: int) -> Tensor:
    """All points of a grid of a box of few numbers, (steps^n, n)."""
    axes = [
        torch.linspace(low, high, steps, dtype=torch.float64) for low, high in zip(*vars(box).values(), strict=True)
    ]
    return torch.cartesian_prod(*axes)


def flat(box: Box) -> Box:
    return Box(box.lower[0], box.upper[0])


# ---- padding that repeats values, before a convolution -------------------------------------------------------------


def padded_convolution(r: Random, dims: int) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution after a padding of any mode, written in one of the ways there are, and the shape of a sample."""
    own, mode = r.random() < 0.4, r.choice(["reflect", "replicate", "circular"])
    kernel = [r.choice([1, 2, 3, 5]) for _ in range(dims)]
    dilation = [r.choice([1, 1, 2]) for _ in range(dims)]
    around = [
        [k := r.randrange(3), k] if own else [r.randrange(-(mode == "replicate"), 3) for _ in "ab"] for _ in kernel
    ]
    size = [
        max(3, (k - 1) * d + 1 - sum(sides) + r.randrange(3))
        for k, d, sides in zip(kernel, dilation, around, strict=True)
    ]
    layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        *(2, 2 * r.choice([1, 2]), kernel, [r.choice([1, 2, 3]) for _ in range(dims)]),
        padding=[sides[0] for sides in around] if own else r.choice([0, 0, 0, "valid"]),
        padding_mode=mode if own else "zeros",
        dilation=dilation,
        groups=r.choice([1, 2]),
        bias=r.random() < 0.5,
    )
    model, flat_sides = nn.Sequential(layer), tuple(side for sides in reversed(around) for side in sides)
    if not own and mode != "circular" and r.random() < 0.5:
        name = f"{'Reflection' if mode == 'reflect' else 'Replication'}Pad{dims}d"
        model.insert(0, getattr(nn, name)(flat_sides))
    elif not own:
        model.insert(0, Program(lambda x: F.pad(x, flat_sides, mode)))
    if r.random() < 0.4:
        norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1](layer.out_channels)
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            nn.init.normal_(tensor)
        model.append(norm)
    return model.append(nn.Flatten()).double().eval(), (2, *size)


def dense(model: nn.Module, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The matrix and the constant of an affine model, (outputs, inputs) and (outputs,)."""
    basis = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).view(-1, *shape)
    constant = model(torch.zeros(1, *shape, dtype=torch.float64))
    return (model(basis) - constant).T, constant[0]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("seed", range(40))
def test_convolutions_of_repeated_pixels_are_exact(dims: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, shape = padded_convolution(Random(seed), dims)
    x = torch.randn(3, *shape, dtype=torch.float64)
    radius = torch.rand(3, *shape, dtype=torch.float64)
    box = Box(x - radius, x + radius)
    matrix, constant = dense(model, shape)
    center, width = x.flatten(1) @ matrix.T + constant, radius.flatten(1) @ matrix.abs().T
    slack = 1e-12 * (1 + width.abs().max() + center.abs().max())
    frozen, sound = freeze(model), prepare_sound(model)
    for bounds in (propagate(model, box), frozen.propagate(box), frozen.propagate(box), sound.propagate(box)):
        assert (bounds.lower - (center - width)).abs().max() < slack
        assert (bounds.upper - (center + width)).abs().max() < slack
    proved = sound.propagate(box)
    assert (proved.lower <= center - width).all() and (center + width <= proved.upper).all()
    single = prepare_sound(copy.deepcopy(model).float(), "float32").propagate(box)
    assert (single.upper - center - width).abs().max() < 1e-4 * (1 + width.max() + center.abs().max())


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("size", [(3, 9), (7, 2), (5, 4)])
def test_bicubic_interpolation_is_exact(size: tuple[int, int], aligned: bool, antialias: bool) -> None:
    settings = {"mode": "bicubic", "align_corners": aligned, "antialias": antialias}
    model, shape = Program(lambda x: F.interpolate(x, size, **settings).flatten(1)).eval(), (2, 5, 4)
    box = random_box(40, 0.3, 0)
    bounds = propagate(model, Box(box.lower.view(1, *shape), box.upper.view(1, *shape)))
    matrix, constant = dense(model, shape)
    assert matrix.min() < 0 or size == (5, 4)  # weights of both signs: not what both ends give
    assert torch.allclose(bounds.center, box.center @ matrix.T + constant)
    assert torch.allclose(bounds.radius, box.radius @ matrix.abs().T)


@pytest.mark.parametrize("zeros", [1, "same"])
def test_zeros_around_repeated_pixels_are_left_to_the_looser_bound(zeros: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(1, 2, 3, padding=zeros), nn.Flatten()).double().eval()
    box = random_box(36, 0.3, 0)
    bounds = propagate(model, Box(box.lower.view(1, 1, 6, 6), box.upper.view(1, 1, 6, 6)))
    matrix, constant = dense(model, (1, 6, 6))
    center, width = box.center @ matrix.T + constant, box.radius @ matrix.abs().T
    ratio = (bounds.upper - bounds.lower) / (2 * width)
    assert torch.allclose(bounds.center, center) and ratio.min() > 1 - 1e-12 and 1.1 < ratio.max() < 4


@pytest.mark.parametrize("seed", range(12))
def test_training_moves_the_weights_of_repeated_pixels_by_the_exact_gradient(seed: int) -> None:
    torch.manual_seed(seed)
    model, shape = padded_convolution(Random(seed), 2)
    x, radius = torch.randn(2, *shape, dtype=torch.float64), torch.rand(2, *shape, dtype=torch.float64)
    weights = list(model.parameters())
    ours = torch.autograd.grad(propagate(model, Box(x - radius, x + radius)).upper.square().sum(), weights)
    matrix, constant = dense(model, shape)
    upper = x.flatten(1) @ matrix.T + constant + radius.flatten(1) @ matrix.abs().T
    for a, b in zip(ours, torch.autograd.grad(upper.square().sum(), weights), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


# ---- norms -----------------------------------------------------------------------------------------------------------


def largest_normalised(lower: Tensor, upper: Tensor, i: int, eps: float) -> float:
    """The largest i-th number of a LayerNorm over a box: all others at one m, or as near to it as they can be.

    Of all others with the same mean those have the least variance (the conditions of Karush, Kuhn and Tucker).
    """
    m = torch.linspace(float(lower.min()), float(upper.max()), GRID, dtype=torch.float64).view(-1, 1)
    x = torch.minimum(torch.maximum(m, lower), upper)
    values = []
    for own in (lower[i], upper[i]):
        x[:, i] = own
        values.append(F.layer_norm(x, x.shape[1:], eps=eps)[:, i].max())
    return float(max(values))


@pytest.mark.parametrize("n, limit", [(3, 8.0), (8, 1.8), (32, 1.5), (128, 1.6)])
def test_layer_norm_against_the_exact_extremes(n: int, limit: float) -> None:
    model, eps = nn.LayerNorm(n, elementwise_affine=False, dtype=torch.float64).eval(), 1e-5
    ratios = []
    for width in (0.01, 0.1, 0.5, 2.0):
        box = random_box(n, width, n)
        bounds = flat(propagate(model, box))
        for i in range(0, n, -(-n // 4)):
            high = largest_normalised(box.lower[0], box.upper[0], i, eps)
            low = -largest_normalised(-box.upper[0], -box.lower[0], i, eps)
            assert bounds.lower[i] <= low + 1e-12 and high <= bounds.upper[i] + 1e-12
            ratios.append(float(bounds.upper[i] - bounds.lower[i]) / (high - low))
    assert 1 <= sorted(ratios)[len(ratios) // 2] < limit, sorted(ratios)


def test_rms_norm_is_exact() -> None:
    """Each number's own magnitude and the sum of the others' squares vary apart."""
    for width in (0.01, 0.5, 3.0):
        box = random_box(3, width, 1)
        truth = F.rms_norm(grid_of(flat(box), 101), (3,), eps=1e-5)
        bounds = flat(propagate(nn.RMSNorm(3, eps=1e-5, elementwise_affine=False).double(), box))
        scale = 1e-2 * width  # a grid misses what lies between its points
        for side in (bounds.lower - truth.amin(0), bounds.upper - truth.amax(0)):
            assert side.abs().max() < scale
        assert (bounds.lower <= truth.amin(0) + 1e-12).all() and (truth.amax(0) <= bounds.upper + 1e-12).all()


@pytest.mark.parametrize("layer", [nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True)], ids=["group", "instance"])
def test_norms_of_groups_are_layer_norms_of_theirs(layer: nn.Module) -> None:
    layer = layer.double().eval()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    box = random_box(32, 0.3, 2)
    box = Box(box.lower.view(1, 4, 8), box.upper.view(1, 4, 8))
    bounds = propagate(layer, box)
    size = 16 if isinstance(layer, nn.GroupNorm) else 8
    parts = zip(box.lower.view(-1, size), box.upper.view(-1, size), strict=True)
    alone = [propagate(nn.LayerNorm(size, elementwise_affine=False).double(), Box(a[None], b[None])) for a, b in parts]
    low, high = (torch.cat([getattr(b, end) for b in alone]).view(1, 4, 8) for end in ("lower", "upper"))
    weight, bias = layer.weight.view(1, 4, 1), layer.bias.view(1, 4, 1)
    ends = torch.stack([low * weight + bias, high * weight + bias])
    assert torch.allclose(bounds.lower, ends.amin(0)) and torch.allclose(bounds.upper, ends.amax(0))


# ---- several numbers: a grid of their box ----------------------------------------------------------------------------

OF_THREE: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {  # and how often too wide the rule may be
    "softmax": (lambda x: x.softmax(1) * 2, 1.001),
    "log_softmax": (lambda x: x.log_softmax(1) * 2, 1.001),
    "logsumexp": (lambda x: x.logsumexp(1, keepdim=True), 1.001),
    "product": (lambda x: x[:, :1] * x[:, 1:2], 1.001),
    "x times x": (lambda x: x * x, 1.001),
    "quotient": (lambda x: x[:, :1] / (x[:, 1:2].exp() + 0.1), 1.001),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True), 1.02),  # 0 is no point of the grid
    "variance": (lambda x: x.var(1, keepdim=True), 1.6),
    "deviation": (lambda x: x.std(1, keepdim=True), 1.6),
    "glu": (lambda x: F.glu(x[:, :2], 1), 1.001),
    "matrix product": (lambda x: x[:, None, :2] @ x[:, 1:, None], 1.5),
    "attention": (lambda x: F.scaled_dot_product_attention(*[x[:, :, None]] * 3), 2.5),
}


@pytest.mark.parametrize("name", OF_THREE)
@pytest.mark.parametrize("width", [0.05, 0.5, 2.0])
def test_functions_of_several_numbers_against_a_grid(name: str, width: float) -> None:
    f, limit = OF_THREE[name]
    box = random_box(3, width, 3)
    truth = f(grid_of(flat(box), 41)).flatten(1)
    bounds = propagate(Program(f), box)
    lower, upper = bounds.lower.flatten(), bounds.upper.flatten()
    low, high = truth.amin(0), truth.amax(0)
    assert (lower <= low + 1e-12).all() and (high <= upper + 1e-12).all()
    between = 1e-3 * (high - low)  # what the grid may miss
    assert ((upper - lower) <= limit * (high - low + between)).all(), (upper - lower) / (high - low)


# ---- functions of one number: a dense grid ---------------------------------------------------------------------------

OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "log": lambda x: (x.abs() + 0.1).log(),
    "sqrt": lambda x: (x.abs() + 0.01).sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "1 / x": lambda x: 1 / (x.abs() + 0.2),
    "negative divisor": lambda x: 2 / (-x.abs() - 0.2),
}


@pytest.mark.parametrize("name", OF_ONE)
def test_functions_of_one_number_are_exact(name: str) -> None:
    for low, high in [(-4.0, -3.9), (-2.0, 1.0), (-0.1, 0.2), (0.3, 0.4), (0.5, 7.0), (2.9, 3.3)]:
        x = torch.linspace(low, high, 200_001, dtype=torch.float64).view(-1, 1)
        truth = OF_ONE[name](torch.cat([x, torch.zeros(1 if low <= 0 <= high else 0, 1, dtype=torch.float64)]))
        box = propagate(Program(OF_ONE[name]), Box(x[:1], x[-1:]))
        scale = 1e-8 * (1 + float(truth.abs().max()))
        assert truth.min() - scale <= box.lower.item() <= truth.min() + 1e-13
        assert truth.max() - 1e-13 <= box.upper.item() <= truth.max() + scale
