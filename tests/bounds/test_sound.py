"""Sound margins against exact rational arithmetic, and against float32 evaluations in many orders of summation."""

import copy
import functools
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn

from acertlab.bounds import sound as sound_package
from acertlab.bounds.box import Box, ball
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import certified_margin, margin_at
from acertlab.bounds.rules.affine import Normalize
from acertlab.bounds.rules.dispatch import RULES as INTERVAL_RULES, rule
from acertlab.bounds.rules.shapes import SELECTION, SIZES
from acertlab.bounds.sound.network import SoundNetwork, prepare_sound, rounding_example
from acertlab.bounds.sound.rounding import sound_rule
from acertlab.bounds.sound.rules import EXACT, RULES as SOUND_RULES
from acertlab.models.architectures import MODELS, ResidualBlock
from tests.helpers.networks import Trained

fractions = np.vectorize(Fraction, otypes=[object])
ZERO, ONE = Fraction(0), Fraction(1)  # an int among fractions would make (0 + 0) / 2 a float


# ---- networks as matrices: for rationals, and for float32 in any order --------------------------------------------


@dataclass(frozen=True)
class Step:
    """W x + b, then a BatchNorm, if any, then max(0, .), if wanted; entries are exact (binary) numbers."""

    weight: np.ndarray  # (out, in) float64
    bias: np.ndarray  # (out,)
    divisor: int = 1  # of an average: (W x + b) / divisor
    norm: nn.Module | None = None
    relu: bool = False

    def exactly(self) -> tuple[np.ndarray, np.ndarray]:
        """W and b as rationals, with BatchNorm folded in; square roots to 2^-200."""
        weight, bias = fractions(self.weight) / self.divisor, fractions(self.bias) / self.divisor
        if self.norm is None:
            return weight, bias
        mean, scale, shift = (np.repeat(v, len(bias) // len(v)) for v in exact_norm(self.norm))
        return weight * scale[:, None], (bias - mean) * scale + shift


def exact_norm(norm: nn.Module) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if isinstance(norm, Normalize):
        mean, std = fractions(norm.mean.double().numpy()), fractions(norm.std.double().numpy())
        return mean, 1 / std, 0 * std
    variance = fractions(norm.running_var.double().numpy()) + Fraction(norm.eps)
    root = np.array([Fraction(math.isqrt(int(v * 2**600)), 2**300) for v in variance], dtype=object)
    weight, bias = (fractions(p.detach().double().numpy()) for p in (norm.weight, norm.bias))
    return fractions(norm.running_mean.double().numpy()), weight / root, bias


def steps(model: nn.Sequential, shape: tuple[int, ...]) -> list[Step | list[Step]]:
    """The layers of ``model`` as matrices; a residual block becomes a list: relu(x + its steps)."""
    found: list[Step | list[Step]] = []
    for layer in model:
        size = math.prod(shape)
        if isinstance(layer, ResidualBlock):
            found.append(steps(layer.body, shape))
            continue
        if isinstance(layer, nn.ReLU):
            found[-1] = Step(**{**vars(found[-1]), "relu": True})
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)) and found and found[-1].norm is None:
            found[-1] = Step(**{**vars(found[-1]), "norm": layer})
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, Normalize)):
            found.append(Step(np.eye(size), np.zeros(size), norm=layer))
        elif isinstance(layer, (nn.Linear, nn.Conv2d, nn.AvgPool2d)):
            layer = copy.deepcopy(layer).double()
            basis, bias = torch.eye(size, dtype=torch.float64).view(size, *shape), np.zeros(1)
            with torch.no_grad():
                if isinstance(layer, nn.AvgPool2d):
                    columns, divisor = (layer(basis) > 0).double(), layer.kernel_size**2
                else:
                    bias, divisor = layer.bias.clone().numpy(), 1
                    layer.bias.zero_()
                    columns = layer(basis)  # one product each: exact
            shape = tuple(columns.shape[1:])
            matrix = columns.reshape(size, -1).T.numpy()
            found.append(Step(matrix, np.resize(np.repeat(bias, len(matrix) // len(bias)), len(matrix)), divisor))
        else:
            assert isinstance(layer, nn.Flatten)
            shape = (size,)
    return found


def exact_bounds(net: list, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """IBP over (B, in) rational boxes, in rationals, up to the last step's input."""
    for step in net:
        if isinstance(step, list):
            low, high = exact_affine(step[-1], *exact_bounds(step[:-1], lower, upper))
            lower, upper = np.maximum(lower + low, ZERO), np.maximum(upper + high, ZERO)
        else:
            lower, upper = exact_affine(step, lower, upper)
    return lower, upper


def exact_affine(step: Step, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    weight, bias = step.exactly()
    center, radius = ((lower + upper) / 2) @ weight.T + bias, ((upper - lower) / 2) @ np.abs(weight).T
    bounds = center - radius, center + radius
    return tuple(np.maximum(end, ZERO) for end in bounds) if step.relu else bounds


def exact_margins(net: list, lower: np.ndarray, upper: np.ndarray, y: np.ndarray, merged: bool = True) -> np.ndarray:
    """Rational upper bounds of logit_i - logit_y, (B, classes); exact values where lower = upper."""
    rows = np.arange(len(y))
    if not merged:
        low, high = exact_bounds(net, lower, upper)
        out = high - low[rows, y][:, None]
        out[rows, y] = ZERO
        return out
    low, high = exact_bounds(net[:-1], lower, upper)
    weight, bias = net[-1].exactly()
    differences = weight[None] - weight[y][:, None]  # (B, i, features)
    center, radius = (low + high) / 2, (high - low) / 2
    return (differences * center[:, None] + np.abs(differences) * radius[:, None]).sum(2) + bias - bias[y][:, None]


# ---- random networks ----------------------------------------------------------------------------------------------


def spread_(model: nn.Module, decades: float, generator: torch.Generator) -> nn.Module:
    """Weights of many magnitudes, 10^-decades to 10^decades; BatchNorm's statistics too."""
    with torch.no_grad():
        for name, values in (*model.named_parameters(), *model.named_buffers()):
            if values.is_floating_point():
                random = torch.randn(values.shape, generator=generator, dtype=torch.float64)
                power = (2 * torch.rand(values.shape, generator=generator, dtype=torch.float64) - 1) * decades
                positive = name.endswith(("var", "std"))
                values.copy_((random.abs() + 0.01 if positive else random) * 10**power)
    return model.eval()


def cancel_(model: nn.Module, size: float) -> nn.Module:
    """Adds a large number to neighbouring rows and biases, so that differences of neighbours cancel."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.weight += size
                layer.bias -= size
    return model


def balance_(model: nn.Module) -> nn.Module:
    """Rows that sum to about 0, and no biases: of inputs that are nearly equal little is left but rounding errors."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                layer.weight -= layer.weight.flatten(1).mean(1).view(-1, *[1] * (layer.weight.dim() - 1))
                layer.bias.zero_()
    return model


@functools.cache  # whose weights are drawn anew for each case: it is captured once
def build(kind: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, tuple[int, ...]]:
    if kind == "mlp":
        layers = [nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)]
        return nn.Sequential(*layers).to(dtype), (3,)
    if kind == "norms":
        layers = [nn.Linear(3, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU()]
        return nn.Sequential(nn.BatchNorm1d(3), *layers, nn.Linear(4, 3)).to(dtype), (3,)
    head = [nn.Flatten(), nn.Linear(8, 3)]
    if kind == "residual":
        layers = [nn.Conv2d(1, 2, 2, stride=2), nn.ReLU(), ResidualBlock(2)]
        return nn.Sequential(*layers, *head).to(dtype), (1, 4, 4)
    layers = [Normalize((0.45,), (0.22,)), nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, *head).to(dtype), (1, 4, 4)


KINDS = ("mlp", "norms", "convolution", "residual")


def random_networks(kind: str, count: int, dtypes: tuple = (torch.float32,)) -> Iterator[tuple]:
    """(model, its steps, x (4, ...) float64, y (4,), eps (4,)), of few and of many magnitudes, some that cancel."""
    generator = torch.Generator().manual_seed(KINDS.index(kind))
    for i in range(count):
        model, shape = build(kind, dtypes[i % len(dtypes)])
        spread_(model, (0.3, 2.0, 8.0)[i % 3], generator)
        if i % 4 == 3:
            cancel_(model, float(4 ** (i % 12)))
        x = torch.rand(4, *shape, generator=generator, dtype=torch.float64).float()
        if i % 4 == 1:
            balance_(model)
            x = 0.5 + x / 4096
        eps = 10 ** (-6 * torch.rand(4, generator=generator, dtype=torch.float64)) * (torch.arange(4) % 4 > 0)
        yield model, steps(model, shape), x.double(), torch.arange(4) % 3, eps


def exact_box(x: Tensor, eps: Tensor) -> tuple[np.ndarray, np.ndarray]:
    points, radii = fractions(x.flatten(1).numpy()), fractions(eps.numpy())[:, None]
    return np.maximum(points - radii, ZERO), np.minimum(points + radii, ONE)


def corners(lower: np.ndarray, upper: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A corner of every box, or a rational point inside."""
    share = rng.integers(0, 2, lower.shape).astype(float) if rng.random() < 0.7 else rng.random(lower.shape)
    return lower + (upper - lower) * fractions(share)


def finite_fractions(values: Tensor) -> np.ndarray:
    return np.array(
        [[Fraction(v) if math.isfinite(v) else Fraction(10) ** 400 for v in row] for row in values.tolist()]
    )


# ---- exact arithmetic ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_no_violation_in_exact_arithmetic(kind: str) -> None:
    """The margin is never below rational IBP, which is never below the logits of a point in the box."""
    rng, cases, tight = np.random.default_rng(0), 0, 0
    count = {"mlp": 300, "norms": 180, "convolution": 60, "residual": 60}[kind]
    for i, (model, net, x, y, eps) in enumerate(random_networks(kind, count, (torch.float32, torch.float64))):
        network, merged = prepare_sound(model), i % 3 > 0
        with torch.no_grad():
            margins = network.margins(ball(x, eps), y, merged=merged)
        assert margins.dtype == torch.float64 and margins.isfinite().all()
        ours, (lower, upper) = finite_fractions(margins), exact_box(x, eps)
        bound = exact_margins(net, lower, upper, y.numpy(), merged)
        point = corners(lower, upper, rng)
        value = exact_margins(net, point, point, y.numpy())
        tiny = Fraction(1, 2**150) * (1 + abs(value).max() + abs(bound).max())  # the square roots'
        assert (value <= bound + tiny).all(), "the test's own IBP"
        assert (ours >= bound - tiny).all(), f"{kind} {i}: {float((bound - ours).max()):.3g}"
        cases += ours.size
        tight += int((ours - bound <= abs(bound) / 10**9 + tiny).sum())
    assert cases >= 12 * count and tight > cases / 2


def numbers_of(size: int, width: int, largest: float, least: float) -> st.SearchStrategy[list[float]]:
    """All of any magnitude, or all next to underflow."""
    return st.one_of(
        *(st.lists(st.floats(-m, m, width=width), min_size=size, max_size=size) for m in (largest, 8 * least))
    )


TWO_INPUTS, THREE_INPUTS = nn.Sequential(nn.Linear(2, 3)).double(), nn.Sequential(nn.Linear(3, 3))


@settings(max_examples=400, deadline=None)
@given(
    numbers=numbers_of(9, 64, 1e308, 2.0**-1022),
    x=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    eps=st.floats(0, 1),
)
def test_any_float64_weights(numbers: list[float], x: list[float], eps: float) -> None:
    """Denormal, huge, cancelling: the margin of a linear classifier holds, or is not finite."""
    model = TWO_INPUTS
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(numbers[:6], dtype=torch.float64).view(3, 2))
        model[0].bias.copy_(torch.tensor(numbers[6:], dtype=torch.float64))
        model[0].weight[1] = model[0].weight[0] * (1 + 2**-50)
    images, radii, y = (
        torch.tensor([x], dtype=torch.float64),
        torch.tensor([eps], dtype=torch.float64),
        torch.tensor([0]),
    )
    margins = prepare_sound(model).margins(ball(images, radii), y)
    ours, net = finite_fractions(margins), steps(model, (2,))
    assert not (margins == -torch.inf).any()
    assert (ours >= exact_margins(net, *exact_box(images, radii), y.numpy())).all()


# ---- float32 ------------------------------------------------------------------------------------------------------


def in_order(products: np.ndarray) -> np.ndarray:
    total = np.zeros_like(products[..., 0])
    for k in range(products.shape[-1]):
        total = total + products[..., k]
    return total


def in_pairs(products: np.ndarray) -> np.ndarray:
    while products.shape[-1] > 1:
        odd = products[..., -1:] if products.shape[-1] % 2 else products[..., :0]
        products = np.concatenate([products[..., : -1 if odd.size else None][..., ::2] + products[..., 1::2], odd], -1)
    return products[..., 0]


def by_size(products: np.ndarray) -> np.ndarray:
    """The largest first, which rounds most."""
    return in_order(np.take_along_axis(products, np.argsort(-np.abs(products), -1, kind="stable"), -1))


SUMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "in order": in_order,
    "reversed": lambda p: in_order(p[..., ::-1]),
    "in pairs": in_pairs,
    "largest first": by_size,
    "permuted": lambda p: in_order(p[..., np.random.default_rng(p.shape[-1]).permutation(p.shape[-1])]),
}


def float32_logits(net: list, x: np.ndarray, add: Callable, way: str) -> np.ndarray:
    """(P, in) float32 inputs to (P, classes) float32 logits; ``way``: how BatchNorm is computed."""
    for step in net:
        if isinstance(step, list):
            x = np.maximum(x + float32_logits(step, x, add, way), np.float32(0))
            continue
        weight, bias = step.weight.astype(np.float32), step.bias.astype(np.float32)
        norm = step.norm
        if norm is not None and way == "folded":
            mean, alpha, shift = float32_norm(norm, len(bias))
            weight, bias = weight * alpha[:, None], (bias - mean) * alpha + shift
        z = add(np.concatenate([x[:, None] * weight, np.broadcast_to(bias, (len(x), len(bias)))[..., None]], -1))
        z = z / np.float32(step.divisor)
        if norm is not None and way != "folded":
            mean, alpha, shift = float32_norm(norm, len(bias))
            z = (z - mean) * alpha + shift if way == "centred" else z * alpha + (shift - mean * alpha)
        x = np.maximum(z, np.float32(0)) if step.relu else z
        assert x.dtype == np.float32
    return x


def float32_norm(norm: nn.Module, size: int) -> tuple[np.ndarray, ...]:
    with torch.no_grad():
        if isinstance(norm, Normalize):
            values = norm.mean, 1 / norm.std, 0 * norm.std
        else:
            values = norm.running_mean, norm.weight * (1 / (norm.running_var + norm.eps).sqrt()), norm.bias
    return tuple(np.repeat(v.detach().numpy(), size // len(v)) for v in values)


@pytest.mark.parametrize("kind", KINDS)
def test_no_violation_by_float32_in_any_order(kind: str) -> None:
    """What float32 computes at points of the box never exceeds the margin, nor NaN; exact bounds do not hold for it."""
    rng, beyond_exact, cases = np.random.default_rng(1), 0, 0
    for model, net, x, y, eps in random_networks(kind, 60):
        box, rows = ball(x, eps), np.arange(4)
        single, exact = (prepare_sound(model, sound).margins(box, y).numpy() for sound in ("float32", True))
        lower, upper = (end.flatten(1).numpy() for end in (box.lower, box.upper))
        for trial in range(5):
            share = rng.integers(0, 2, lower.shape) if trial else rng.random(lower.shape)
            points = np.where(share == 0, lower, np.where(share == 1, upper, lower + (upper - lower) * share))
            points = points.astype(np.float32)
            points = np.where(points < lower, np.nextafter(points, np.float32(2)), points)
            points = np.where(points > upper, np.nextafter(points, np.float32(-1)), points)
            inside = ((points >= lower) & (points <= upper)).all(1)
            with torch.no_grad():
                logits = [model(torch.from_numpy(points).view(x.shape)).numpy()]
            with np.errstate(over="ignore", invalid="ignore"):
                for way in ("folded", "centred", "scaled"):
                    logits += [float32_logits(net, points, add, way) for add in SUMS.values()]
            for z in logits:
                unproved = ~np.isfinite(single).all(1)
                assert (np.isfinite(z).all(1) | unproved)[inside].all()
                z = np.where(unproved[:, None], np.float32(0), z).astype(np.float64)
                difference = (z - z[rows, y.numpy()][:, None])[inside]
                assert not (difference > single[inside]).any(), (kind, float((difference - single[inside]).max()))
                beyond_exact += int((difference > exact[inside]).sum())
                cases += difference.size
    assert cases > 10**4 and beyond_exact > 10


@settings(max_examples=400, deadline=None)
@given(
    numbers=numbers_of(12, 32, np.finfo(np.float32).max.item(), 2.0**-126),
    x=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3),
    flush=st.booleans(),
)
def test_any_float32_weights(numbers: list[float], x: list[float], flush: bool) -> None:
    """Denormals, flushed or kept; overflows: the computed label is as proved, or nothing is proved."""
    model, y = THREE_INPUTS, torch.tensor([1])
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor(numbers[:9]).view(3, 3))
        model[0].bias.copy_(torch.tensor(numbers[9:]))

    def rounded(values: np.ndarray) -> np.ndarray:
        return np.where(np.abs(values) < 2.0**-126, np.float32(0), values) if flush else values

    margins = prepare_sound(model, "float32").margins(ball(torch.tensor([x]).double(), 0.0), y).numpy()[0]
    weight, bias, point = (rounded(np.array(v, np.float32)) for v in (numbers[:9], numbers[9:], x))
    with np.errstate(all="ignore"):
        for order in ((0, 1, 2), (2, 0, 1)):
            z = bias
            for k in order:
                z = rounded(z + rounded(weight.reshape(3, 3)[:, k] * point[k]))
            difference = z.astype(np.float64) - float(z[1])
            assert not (margins < difference).any()
            assert np.isfinite(z).all() or not np.isfinite(margins[[0, 2]]).all()


# ---- where plain float32 fails ------------------------------------------------------------------------------------


def test_the_example_where_float32_certifies_too_much() -> None:
    model, x, y, eps = rounding_example()
    assert certified_margin(model, x, y, eps).item() < 0
    net, box = steps(model, (1,)), exact_box(x.double(), torch.tensor([eps]).double())
    assert exact_margins(net, box[1], box[1], y.numpy())[0, 1] > 0  # the upper corner is misclassified, exactly,
    assert model(torch.tensor([[0.7]])).argmax().item() == 1  # and as computed
    for sound in (True, "float32"):
        network = prepare_sound(model, sound)
        assert margin_at(network, x.double(), y, eps).item() >= 0
    at = [margin_at(prepare_sound(model), x.double(), y, e).item() for e in (0.0, 0.04999, 0.0501)]
    assert at[0] < at[1] < 0 < at[2]


def test_plain_float32_fails_where_numbers_cancel_and_sound_never() -> None:
    """Networks with biases of +-2^k: the sign of the margin against that of a corner, in rationals."""
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    plain_wrong = sound_wrong = sound_right = 0
    for i in range(400):
        model = spread_(build("mlp")[0], 0.3, generator)
        with torch.no_grad():
            model[0].bias += 2.0 ** (18 + i % 6)
            model[2].bias -= model[2].weight.double().sum(1).float() * 2.0 ** (18 + i % 6)
            x = torch.rand(4, 3, generator=generator)
            y = copy.deepcopy(model).double()(x.double()).argmax(1)
            eps = torch.full((4,), 10.0 ** (-1 - i % 2))
            plain = margin_at(freeze(model), x, y, eps)
        sound = margin_at(prepare_sound(model), x.double(), y, eps.double())
        net, box = steps(model, (3,)), exact_box(x.double(), eps.double())
        points = [corners(*box, rng) for _ in range(5)]
        values = [exact_margins(net, p, p, y.numpy()) for p in points]
        for value in values:
            value[np.arange(4), y.numpy()] = -(10**9)
        broken = np.array([[row.max() >= 0 for row in value] for value in values]).any(0)
        plain_wrong += int((broken & (plain < 0).numpy()).sum())
        sound_wrong += int((broken & (sound < 0).numpy()).sum())
        sound_right += int((sound < 0).sum())
    assert sound_wrong == 0 and plain_wrong > 0 and sound_right > 100


# ---- real networks ------------------------------------------------------------------------------------------------


def test_sound_margins_are_barely_larger(trained: Trained) -> None:
    x, y = trained.x[:200].double(), trained.y[:200]
    plain = freeze(copy.deepcopy(trained.model).double())
    exact, single = prepare_sound(trained.model), prepare_sound(trained.model, "float32")
    for eps in (0.0, 0.01, 0.1):
        with torch.no_grad():
            for merged in (True, False):
                reference = plain.margins(ball(x, eps), y, merged=merged)
                scale = reference.abs().max()
                slack = exact.margins(ball(x, eps), y, merged=merged) - reference
                assert (slack >= 0).all() and slack.max() <= 1e-10 * scale
                slack32 = single.margins(ball(x, eps), y, merged=merged) - reference
                assert (slack32 >= slack).all() and slack32.max() <= 0.02 * scale


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("sound", [True, "float32"])
def test_larger_boxes_have_larger_margins(name: str, sound: bool | str) -> None:
    torch.manual_seed(0)
    model = spread_(MODELS[name]((1, 8, 8), 4, width=2, mean=(0.4,), std=(0.3,)), 0.2, torch.Generator().manual_seed(1))
    before = copy.deepcopy(model.state_dict())
    network, x, y = prepare_sound(model, sound), torch.rand(5, 1, 8, 8, dtype=torch.float64), torch.arange(5) % 4
    assert network.monotone
    margins = [network.margins(ball(x, eps), y) for eps in (0.0, 0.01, 0.1, 1.0)]
    for smaller, larger in pairwise(margins):
        assert (smaller <= larger * (1 + 1e-12) + 1e-12 * larger.abs().max()).all()
    assert all((m.gather(1, y[:, None]) == 0).all() for m in margins)
    assert all(torch.equal(v, before[k]) and v.dtype == before[k].dtype for k, v in model.state_dict().items())


# ---- every rule ---------------------------------------------------------------------------------------------------


class Function(nn.Module):
    """A function as a traced forward, so that fx sees what it calls."""

    def __init__(self, forward: Callable) -> None:
        super().__init__()
        self.function = forward
        self.register_buffer("constant", torch.tensor([0.3, 1.7, -2.1]).view(3, 1, 1))
        self.register_buffer("kernel", torch.linspace(-1, 1, 54).view(2, 3, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


FUNCTIONS = [
    lambda m, x: F.relu(x - 0.3) + x,
    lambda m, x: torch.relu(x) - 2 * x.sub(0.7, alpha=0.1),
    lambda m, x: -x * m.constant + 0.1,
    lambda m, x: x / 3 - x.div(m.constant) + 1000.1,
    lambda m, x: torch.cat([x, x.relu(), -x], 1).abs().clamp(0.1, 0.9),
    lambda m, x: F.conv2d(x.view(x.size(0), 3, 6, 6), m.kernel, stride=2).flatten(1),
    lambda m, x: F.linear(x.reshape(x.shape[0], -1)[:, :27], m.kernel.flatten(1)),
    lambda m, x: F.max_pool2d(F.leaky_relu(x, 0.1), 2).flatten(1),
    lambda m, x: F.avg_pool2d(x, 2, 1, 1).mean((2, 3)) - x.sum((2, 3)),
    lambda m, x: F.adaptive_avg_pool2d(x * x, 2).squeeze(3) * 0.3,
    lambda m, x: torch.max(x, torch.mean(x, (2, 3), keepdim=True)) + torch.amax(x, 1, keepdim=True),
    lambda m, x: F.pad(F.hardtanh(x, -0.1, 0.3), (1, 0), value=0.7),
]
LAYERS = [
    *(nn.ReLU(inplace=True), nn.ReLU6(), nn.LeakyReLU(0.2), nn.PReLU(), nn.Hardtanh(-0.3, 0.7), nn.Identity()),
    *(nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(1), nn.AvgPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(4), nn.Dropout2d()),
    *(nn.AvgPool2d(2, divisor_override=7), nn.ZeroPad2d(1), nn.Flatten(), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, 2, 1)),
    *(nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.PixelUnshuffle(2)),
    *(nn.Conv2d(3, 2, 3, dilation=2, bias=False), nn.BatchNorm2d(3, affine=False), nn.Linear(6, 4)),
    Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
]


@pytest.mark.parametrize("module", [*map(Function, FUNCTIONS), *LAYERS], ids=lambda m: type(m).__name__)
def test_every_rule_contains_what_float32_computes(module: nn.Module) -> None:
    """Also on boxes of one point, where nothing but the rounding's own width can contain it."""
    torch.manual_seed(0)
    module, x = module.eval(), 2 * torch.randn(4, 3, 6, 6)
    for eps in (0.0, 1e-7, 0.3):
        box = Box((x - eps).double(), (x + eps).double())
        out = prepare_sound(nn.Sequential(module), "float32").propagate(box)
        plain = freeze(copy.deepcopy(nn.Sequential(module)).double()).propagate(box)
        exact = prepare_sound(nn.Sequential(module)).propagate(box)
        assert (out.lower <= exact.lower).all() and (exact.upper <= out.upper).all()
        for end in ("lower", "upper"):
            ours, reference = getattr(exact, end), getattr(plain, end)
            assert (ours - reference).abs().max() <= 1e-12 * reference.abs().max()
            assert (getattr(out, end) - reference).abs().max() <= 1e-3 * reference.abs().max()
        for _ in range(20):
            point = (box.lower + torch.rand_like(box.lower) * (box.upper - box.lower)).float()
            point = torch.minimum(torch.maximum(point, (x - eps)), (x + eps))
            with torch.no_grad():
                computed = module(point).double()
            assert (computed >= out.lower).all() and (computed <= out.upper).all()


def test_conv1d_conv3d_and_pools_without_a_batch_dimension() -> None:
    torch.manual_seed(0)
    line = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten()).eval()
    volume = nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten()).eval()
    channels = Function(lambda m, x: F.avg_pool2d(x.squeeze(1), 2).flatten(1)).eval()
    for model, x in (
        (line, torch.rand(3, 2, 8)),
        (volume, torch.rand(3, 1, 4, 4, 4)),
        (channels, torch.rand(3, 1, 4, 4)),
    ):
        out = prepare_sound(model, "float32").propagate(ball(x.double(), 0.0))
        with torch.no_grad():
            computed = model(x).double()
        assert (computed >= out.lower).all() and (computed <= out.upper).all()
        assert (out.upper - out.lower).max() < 1e-4


def prepared(model: nn.Module, x: Tensor, sound: bool | str = True) -> SoundNetwork:
    return prepare_sound(model, sound, graph_of(model, x))


def weight_norm_by_a_hook() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        return nn.utils.weight_norm(nn.Linear(4, 4))


# ---- what is refused, and what is not finite ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer, message",
    [
        (nn.Tanh(), r"'tanh' in '1' of type Tanh; accepted: .*acertlab\.sound\.sound_rule"),
        (nn.GELU(), "'gelu' in '1' of type GELU"),
        (nn.Sequential(nn.Identity(), nn.Softplus()), r"'softplus' in '1\.1' of type Softplus"),
        (Function(lambda m, x: torch.sigmoid(x)), "operator 'sigmoid' in '1' of type Function"),
        (Function(lambda m, x: x.tanh()), "operator 'tanh'"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            "the constant that forward computes by .*_weight_norm",
        ),
        (weight_norm_by_a_hook(), "the constant that forward computes by .*_weight_norm"),
    ],
)
def test_what_has_no_proof_is_refused_before_anything_is_computed(layer: nn.Module, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        prepared(nn.Sequential(nn.Linear(4, 4), layer).eval(), torch.rand(2, 4))


def test_what_cannot_be_proved_is_refused() -> None:
    linear, box = nn.Sequential(nn.Linear(3, 3)), Box(torch.zeros(1, 3), torch.ones(1, 3))
    with pytest.raises(ValueError, match="sound: 'float16' is unknown; choose True or 'float32'"):
        prepare_sound(linear, "float16")
    with pytest.raises(ValueError, match="'float32' is for models in float32, but '0.weight'"):
        prepared(nn.Sequential(nn.Linear(3, 3, dtype=torch.float64)), torch.rand(2, 3).double(), "float32")
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        prepared(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.rand(2, 3))
    with pytest.raises(TypeError, match="must be a torch.nn.Module, not int"):
        prepare_sound(3)
    with pytest.raises(TypeError, match="box: sound bounds are computed in torch.float64, not torch.float32"):
        prepare_sound(linear).margins(box, torch.tensor([0]))
    images = Box(torch.zeros(1, 3, 6, 6).double(), torch.ones(1, 3, 6, 6).double())
    with pytest.raises(TypeError, match="the constant that forward computes by operator 'mul'"):
        prepare_sound(Function(lambda m, x: x + m.constant * 0.1)).propagate(images)
    with pytest.raises(TypeError, match="the constant that forward computes by operator 'mul'"):
        prepared(Function(lambda m, x: x + torch.tensor([0.1]) * 3), images.lower.float())
    scaled = Function(lambda m, x: x * (m.factor + 1) - m.factor)
    scaled.factor = nn.Parameter(torch.tensor(0.1))
    with pytest.raises(TypeError, match="the constant that forward computes by operator 'add'"):
        prepare_sound(scaled).propagate(images)
    with pytest.raises(TypeError, match="a sum in another dtype"):
        prepare_sound(Function(lambda m, x: x.sum((2, 3), dtype=torch.float32))).propagate(images)


def test_a_layer_of_ones_own_can_be_taught() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x

    rule.register(Double)(lambda layer, box: Box(box.lower + box.lower, box.upper + box.upper))
    model, box = nn.Sequential(nn.Linear(3, 3), Double()), Box(torch.zeros(1, 3).double(), torch.ones(1, 3).double())
    with pytest.raises(TypeError, match=r"layer '1' of type Double; .*sound_rule\.register\(Double\)"):
        prepared(model, torch.rand(2, 3))

    @sound_rule.register(Double)
    def double(layer: Double, box: Box, rounding: object) -> Box:
        out = rule(layer, box)
        return rounding.outward(out, torch.maximum(-out.lower, out.upper), 1)

    assert (prepare_sound(model).margins(box, torch.tensor([0]))[0, 1:] > 0).all()


@pytest.mark.parametrize("sound", [True, "float32"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("where", ["0.weight", "0.bias", "1.running_var", "1.running_mean", "5.weight", "5.bias"])
def test_what_is_not_finite_certifies_nothing(where: str, value: float, sound: bool | str) -> None:
    """Or is far from a false certificate: 3e38 does not overflow in exact arithmetic."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU6(), nn.Linear(4, 4), nn.Hardtanh(), nn.Linear(4, 2)]
    model = nn.Sequential(*layers).eval()
    model.state_dict()[where].view(-1)[0] = value
    network = prepare_sound(model, sound)
    x, y = torch.rand(6, 3, dtype=torch.float64), torch.arange(6) % 2
    margins = margin_at(network, x, y, 0.01)
    assert not (margins < 0).any() or (value == 3e38 and sound is True)
    images = x.clone()
    images[0, 0] = math.nan
    assert margin_at(network, images, y, 0.01, domain=None)[0].isnan()


def test_one_bad_sample_leaves_the_others_alone() -> None:
    torch.manual_seed(0)
    model, y = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)), torch.zeros(3, dtype=torch.int64)
    x = torch.rand(3, 3, dtype=torch.float64)
    good = prepare_sound(model).margins(ball(x, 0.1, None), y)
    x[1] = 1e308
    both = prepare_sound(model).margins(ball(x, 0.1, None), y)
    assert torch.equal(both[[0, 2]], good[[0, 2]]) and not (both[1, 1:] < 0).any()


def test_the_table_of_what_is_covered_agrees_with_the_code() -> None:
    """Each operator that is named is in the tables, and each in the tables is named."""
    text = sound_package.__doc__ or ""
    _, exact, order, affine, relative, constants = re.findall(r"^\| ([^|]*) \| [^|]* \|$", text, re.MULTILINE)[-6:]
    listed, kinds = exact.split("; ")
    assert "changes of shape, selections, max pooling" in kinds and "linear layers and convolutions" in affine

    def names(operators: Iterable[Any]) -> set[str]:
        return {re.sub(r"\d+d$", "", getattr(op, "__name__", str(op))).removeprefix("_") for op in operators}

    without_rounding = names(EXACT - {*SELECTION, *SIZES}) - {"getitem", "index", "clone", "detach", "zeros", "ones"}
    assert {*f"{listed}, {order}".split(", ")} == without_rounding
    named = {*re.sub(r" \([^)]*\)", "", f"{relative}, {constants}").split(", ")}
    assert named == names(SOUND_RULES) - {"prelu_kernel"}
    refused = re.split(r"such as |\.", text.split("All else is refused")[1])[1].replace("\n", " ")
    for name in refused.split(", "):
        op = getattr(torch.ops.aten, name)
        assert op in INTERVAL_RULES and op not in EXACT and op not in SOUND_RULES, name
