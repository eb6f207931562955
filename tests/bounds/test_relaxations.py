"""auto_LiRPA's relaxations against the exact maximum: every entry of the list in `acertlab.bounds.crown.relaxations`.

Each network is affine, then the operator, then affine, or convolutions with a ReLU. For several samples in one batch,
in boxes from points to wide around small and large values, no reachable value may exceed a bound: neither of the
margins nor of a node inside. Reached are corners, random points, points of gradient ascent (the exact maximum where all
is affine) and, of few inputs, the best of a dense grid along each in turn (the exact maximum where the network is a sum
of functions of one input each, as the diagonal ones are).
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.box import Box
from acertlab.bounds.crown import auto_lirpa
from acertlab.bounds.crown.auto_lirpa import AutoLirpaNetwork
from acertlab.bounds.crown.auto_lirpa_compat import _default_dtype, _explained, import_auto_lirpa
from acertlab.bounds.crown.relaxations import TESTED, UnprovedError, always
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.ibp import IntervalNetwork
from acertlab.bounds.rules.affine import Normalize

VERSION: str = import_auto_lirpa().__version__
CLASSES = 3
ROUNDINGS = 1e-9  # relative to the largest value, in double precision; 0.7.1 takes boxes for 1e-8 wide at least
SCALES = torch.tensor([0.1, 1.0, 3.0, 10.0, 30.0, 400.0], dtype=torch.float64)  # of the boxes' centres
RADII = torch.tensor([0.0, 1e-7, 1e-3, 0.05, 0.3, 1.0, 4.0], dtype=torch.float64)
Operator = Callable[[Tensor], Tensor]


def made(kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    torch.manual_seed(5)
    layer = kind(*args, **kwargs).double().eval().requires_grad_(False)
    if isinstance(layer, nn.BatchNorm2d):
        for tensor in (*layer.parameters(), layer.running_mean, layer.running_var):
            tensor.uniform_(0.3, 2.0)
    return layer


def leaky(slope: float) -> Operator:
    return partial(F.leaky_relu, negative_slope=slope)


conv, turned = partial(made, nn.Conv2d), partial(made, nn.ConvTranspose2d)
CHANNELS = torch.tensor([-0.7, 0.4, 1.9], dtype=torch.float64).view(3, 1, 1)
COLUMNS = torch.tensor([0.5, -1.2, 0.0, 3.0], dtype=torch.float64)
SQUARE = torch.stack([COLUMNS, COLUMNS.flip(0), COLUMNS.abs(), COLUMNS - 1])
dense, narrow = made(nn.Linear, 48, 48), conv(3, 4, 2, padding=1)
# a kind of node -> operators that become one, of images (B, 3, 4, 4), and, where it is in POINTWISE, of features (B, 4)
OPERATORS: dict[str, dict[str, Operator]] = {
    "BoundInput": {"identity": lambda h: h},
    "BoundRelu": {"relu": torch.relu, "twice": lambda h: (h.relu() - 0.7).relu()},
    "BoundLeakyRelu": {f"slope {slope}": leaky(slope) for slope in (0.0, 0.01, 0.3, 0.99, 1.0)},
    "BoundTanh": {"tanh": torch.tanh},
    "BoundSigmoid": {"sigmoid": torch.sigmoid},
    "BoundExp": {"exp": torch.exp, "exp(-x)": lambda h: torch.exp(-h)},
    "BoundAbs": {"abs": torch.abs},
    "BoundNeg": {"neg": torch.neg},
    "BoundAdd": {
        "constant": lambda h: h + 0.3,
        "of channels": lambda h: h + CHANNELS,
        "larger constant": lambda h: h.mean(1, keepdim=True) + CHANNELS,
        "itself": lambda h: h + h,
        "residual": lambda h: h + h.relu(),
        "broadcast": lambda h: h.mean(1, keepdim=True) + h,
    },
    "BoundSub": {
        "constant": lambda h: h - 0.3,
        "from constant": lambda h: 1.5 - h,
        "from larger constant": lambda h: CHANNELS - h.mean(1, keepdim=True),
        "itself": lambda h: h - h,
        "residual": lambda h: h - h.relu(),
        "broadcast": lambda h: h - h.mean((2, 3), keepdim=True),
    },
    "BoundMul": {
        "constant": lambda h: -1.7 * h,
        "zero": lambda h: h * 0.0,
        "of channels": lambda h: h * CHANNELS,
        "of columns": lambda h: h * COLUMNS,
        "square": lambda h: h[..., :2] * h[..., :2].relu(),
        "of two": lambda h: h[..., :2] * h[..., 2:],
        "silu": F.silu,
        "broadcast": lambda h: h * h.mean(-1, keepdim=True),
    },
    "BoundLinear": {"tokens": made(nn.Linear, 4, 5), "no bias": made(nn.Linear, 4, 5, bias=False)},
    "BoundConv": {
        "stride": conv(3, 4, 3, stride=2, padding=1),
        "large padding": conv(3, 4, 3, padding=3),
        "dilation": conv(3, 4, 3, dilation=2, padding=2),
        "groups": conv(3, 6, 3, padding=1, groups=3),
        "no bias": conv(3, 4, 2, bias=False),
        "unequal padding": conv(3, 4, (3, 2), padding=(1, 2)),
        "unequal stride": conv(3, 4, 3, stride=(2, 1), padding=1),
        "from features": lambda h: narrow(dense(h.flatten(1)).view(-1, 3, 4, 4).relu()),
        "from an oblong": lambda h: narrow(h.reshape(-1, 3, 2, 8).relu()),
    },
    "BoundConvTranspose": {
        "turned": turned(3, 4, 2),
        "stride": turned(3, 4, 2, stride=2),
        "no bias": turned(3, 4, 3, bias=False),
    },
    "BoundMatMul": {"columns": lambda h: h @ SQUARE},
    "BoundBatchNormalization": {"normalisation": Normalize((0.3, -0.1, 2.0), (0.2, 1.5, 3.0)).double()},
    "BoundAveragePool": {
        "2": partial(F.avg_pool2d, kernel_size=2),
        "(2, 1)": partial(F.avg_pool2d, kernel_size=(2, 1)),
        "one row and column left": partial(F.avg_pool2d, kernel_size=3),
        "after a relu": lambda h: F.avg_pool2d(h.relu(), 2),
    },
    "BoundGlobalAveragePool": {"global": partial(F.adaptive_avg_pool2d, output_size=1)},
    "BoundMaxPool": {
        "2": partial(F.max_pool2d, kernel_size=2),
        "(2, 1)": partial(F.max_pool2d, kernel_size=(2, 1)),
        "after a relu": lambda h: F.max_pool2d(h.relu(), 2),
    },
    "BoundReduceMean": {
        "image": lambda h: h.mean((2, 3)),
        "channels": lambda h: h.mean(1),
        "kept": lambda h: h.mean((1, 3), keepdim=True),
        "last": lambda h: h.mean(-1),
    },
    "BoundReduceSum": {
        "image": lambda h: h.sum((2, 3)),
        "channels": lambda h: h.sum(1),
        "kept": lambda h: h.sum(-2, keepdim=True),
    },
    "BoundReshape": {"reshape": lambda h: h.reshape(-1, 2, 6, 4), "flat": lambda h: h.reshape(-1, 48)},
    "BoundFlatten": {"all": lambda h: h.flatten(1), "image": lambda h: h.flatten(2)},
    "BoundTranspose": {"transpose": lambda h: h.transpose(1, 3), "permute": lambda h: h.permute(0, 2, 3, 1)},
    "BoundUnsqueeze": {"inside": lambda h: h.unsqueeze(2), "last": lambda h: h.unsqueeze(-1)},
    "BoundSqueeze": {"channel": lambda h: h[:, 1:2].squeeze(1)},
    "BoundConcat": {
        "itself": lambda h: torch.cat([h, h], 1),
        "two": lambda h: torch.cat([h, h.relu()], 1),
        "columns": lambda h: torch.cat([h, 2 * h], -1),
    },
    "BoundSplit": {"unequal": lambda h: torch.cat(h.split([1, 2], 1)[::-1], 1)},
    "BoundGather": {
        "channel": lambda h: h[:, 1],
        "column": lambda h: h[..., 2],
        "some": lambda h: h[:, [0, 2]],
        "turned": lambda h: torch.index_select(h, 2, torch.tensor([3, 1])),
    },
    "BoundSlice": {"channels": lambda h: h[:, 1:], "columns": lambda h: h[:, :, 1:3, :-1]},
}
OPERATORS |= {
    "0.3": {
        "BoundDiv": {"constant": lambda h: h / 0.7, "of channels": lambda h: h / CHANNELS.abs()},
    },
    "0.7.1": {
        "BoundSqrt": {"sqrt": lambda h: torch.sqrt(h.relu() + 0.1), "at 0": lambda h: torch.sqrt(h.relu())},
        "BoundSqr": {"square": lambda h: h * h},
        "BoundSin": {"sin": torch.sin},
        "BoundCos": {"cos": torch.cos},
        "BoundAveragePool": OPERATORS["BoundAveragePool"]
        | {
            "overlap": partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1),
            "gaps": partial(F.avg_pool2d, kernel_size=1, stride=2),
            "padding": partial(F.avg_pool2d, kernel_size=2, padding=1),
        },
        "BoundGather": OPERATORS["BoundGather"] | {"twice": lambda h: h[:, [0, 0, 1]]},
    },
}[VERSION]
POINTWISE = (
    *("BoundRelu", "BoundLeakyRelu", "BoundTanh", "BoundSigmoid", "BoundExp", "BoundAbs", "BoundNeg"),
    *("BoundSqrt", "BoundSqr", "BoundSin", "BoundCos"),
)
CASES = [(kind, name) for kind, operators in OPERATORS.items() for name in operators]


class Network(nn.Module):
    def __init__(self, first: nn.Module, operator: Operator, head: nn.Module) -> None:
        super().__init__()
        self.first, self.operator, self.head = first, operator, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operator(self.first(x)))


def networks(
    operator: Operator, *, pointwise: bool = False, image: tuple[int, int] = (4, 4)
) -> Iterator[tuple[Network, Box]]:
    """Networks with the operator in them, and a batch of boxes for each."""
    torch.manual_seed(0)
    convolution, shape = nn.Conv2d(2, 3, 3, padding=1), (2, *image)
    out = operator(torch.rand(2, 3, *image, dtype=torch.float64))[0]
    firsts = [(convolution, nn.Sequential(nn.Flatten(), nn.Linear(out.numel(), CLASSES)), shape, 12)]
    if out.dim() == 3 and min(out.shape[1:]) > 1:
        head = nn.Sequential(nn.Conv2d(len(out), 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 2), nn.Flatten())
        size = 2 * (out.shape[1] - 1) * (out.shape[2] - 1)
        firsts.append((convolution, head.append(nn.Linear(size, CLASSES)), shape, 12))
    if pointwise:
        diagonal = nn.Linear(4, 4)
        with torch.no_grad():
            diagonal.weight.copy_(torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0])))
        deep = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, CLASSES))
        firsts[:1] = [(diagonal, nn.Linear(4, CLASSES), (4,), 70), (nn.Linear(3, 4), deep, (3,), 35)]
    for first, head, shape, samples in firsts:
        index, per_sample = torch.arange(samples), (-1, *[1] * len(shape))
        x = torch.randn(samples, *shape, dtype=torch.float64) * SCALES[index % len(SCALES)].view(per_sample)
        radius = RADII[index % len(RADII)].view(per_sample)
        yield Network(first, operator, head).double().eval().requires_grad_(False), Box(x - radius, x + radius)


def reached(model: nn.Module, box: Box, y: Tensor) -> Tensor:
    """(N, B, ...) points of the boxes: corners, random points, gradient ascent, and a grid along each input."""
    low, high, shape = box.lower, box.upper, box.lower.shape[1:]
    chance = torch.rand(12, *low.shape, dtype=low.dtype)
    points = [low, high, *(low + chance * (high - low)), *torch.where(chance > 0.5, low, high)]
    for target in range(CLASSES):

        def margin(x: Tensor, target: int = target) -> Tensor:
            z = model(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return z[..., target] - z.gather(2, y.view(1, -1, 1).expand(len(x), -1, 1)).squeeze(2)

        x = torch.stack([box.center, low + chance[0] * (high - low)])
        for _ in range(3):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(margin(x).sum(), x)
            x = torch.where(slope > 0, high, torch.where(slope < 0, low, x))
        points += x.detach()
        if shape.numel() <= 4:
            grid, best = torch.linspace(0, 1, 25, dtype=low.dtype).view(-1, 1), box.center
            for i in [*range(shape.numel())] * 2:
                tried = best.expand(len(grid), *best.shape).clone()
                tried[..., i] = low[:, i] + grid * (high - low)[:, i]
                best = tried[margin(tried).argmax(0), torch.arange(len(y))]
            points.append(best)
    return torch.stack(points)


def excess(model: nn.Module, box: Box) -> tuple[set[str], float]:
    """The kinds of nodes, and by how much a reached value exceeds a bound at most, relative to the largest value."""
    y = torch.arange(len(box.lower)) % CLASSES
    with torch.no_grad():
        network = IntervalNetwork(model, graph=graph_of(model, box.lower))
        finite = (network.margins(box, y).abs() < 1e150).all(1)  # where it is not, nothing else is asked
    box, y = Box(box.lower[finite], box.upper[finite]), y[finite]
    points = reached(model, box, y)
    with torch.no_grad(), _default_dtype(torch.float64), _explained(model):
        converted, any_size = auto_lirpa._convert(model, network, box)
        assert any_size
        problem = auto_lirpa._BoundProblem(converted, box, y, merged=True)
        bounds = []
        ibp = partial(problem._bound, "IBP")
        for bound in (ibp, problem.crown_ibp, problem.crown, partial(problem.alpha_crown, 3)):
            bounds.append((bound(), dict(problem.inner)))
        z = converted(points.flatten(0, 1)).reshape(*points.shape[:2], -1)
        found = z - z.gather(2, y.view(1, -1, 1).expand(len(z), -1, 1))
        size = found.abs().nan_to_num(0.0, 0.0, 0.0).amax((0, 2)) + 1
        worst = 0.0
        for margins, inner in bounds:
            over = [(found - margins) / size.unsqueeze(1)]
            for name, (low, high) in inner.items():
                value = converted[name].forward_value
                if len(value) != points.shape[0] * points.shape[1]:
                    continue  # the same for all samples
                value = value.reshape(*points.shape[:2], *low.shape[1:])
                size_inside = 1 + value.abs().nan_to_num(0.0, 0.0, 0.0).flatten(2).amax((0, 2)).view(
                    -1, *[1] * (low.dim() - 1)
                )
                over += [(value - high) / size_inside, (low - value) / size_inside]
            worst = max(worst, *(float(part.nan_to_num(nan=0.0).max()) for part in over))  # of NaN the cheaper stands
        return {type(node).__name__ for node in converted._modules.values() if node.from_input}, worst


@pytest.mark.parametrize("kind, name", CASES)
def test_no_reachable_value_exceeds_a_bound(kind: str, name: str) -> None:
    for model, box in networks(OPERATORS[kind][name], pointwise=kind in POINTWISE):
        kinds, worst = excess(model, box)
        assert kind in kinds and worst < ROUNDINGS


def test_every_entry_of_the_list_has_a_test() -> None:
    assert OPERATORS.keys() == TESTED[VERSION].keys()


# a kind of node -> an operator whose bounds do not hold, in which versions, and how its refusal begins
WRONG: dict[str, tuple[str, Operator, tuple[str, ...], str]] = {
    "steep": ("BoundLeakyRelu", leaky(1.7), ("0.3", "0.7.1"), r"LeakyRelu with negative_slope=1.7 \(only 0 to 1 is"),
    "root": ("BoundSqrt", lambda h: torch.sqrt(h.relu() + 0.1), ("0.3",), "Sqrt by auto_LiRPA 0.3"),
    "overlap": (
        "BoundAveragePool",
        partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1),
        ("0.3",),
        r"AveragePool with kernel_size=\[3, 3\], stride=\[1, 1\], padding=\[1, 1\]",
    ),
    "oblong": (
        "BoundAveragePool",
        partial(F.avg_pool2d, kernel_size=2),
        ("0.3", "0.7.1"),
        r"AveragePool with .* on an image of \(5, 4\)",
    ),
    "padded": ("BoundMaxPool", partial(F.max_pool2d, kernel_size=2, padding=1), ("0.7.1",), "MaxPool with .* padding="),
    "twice": ("BoundGather", lambda h: h[:, [0, 0, 1]], ("0.3",), "Gather that takes an element twice"),
    "reciprocal": ("BoundDiv", lambda h: CHANNELS / (h.relu() + 0.5), ("0.3",), "Div by what depends on the input"),
    "sine": ("BoundSin", torch.sin, ("0.3",), "Sin by auto_LiRPA 0.3"),
    "power": ("BoundPow", lambda h: h**2, ("0.7.1",), "Pow by auto_LiRPA 0.7.1"),
}


@pytest.mark.parametrize("name", [name for name, (_, _, versions, _) in WRONG.items() if VERSION in versions])
def test_faults_are_refused_and_found_where_they_are_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, operator, versions, told = WRONG[name]
    image = (5, 4) if name == "oblong" else (4, 4)
    pairs = list(networks(operator, pointwise=kind in (*POINTWISE, "BoundSqrt", "BoundPow"), image=image))
    for model, box in pairs:
        with pytest.raises(UnprovedError, match=f"model: the bound of {told}.*use bound='ibp'") as error:
            AutoLirpaNetwork(model, "crown").margins(box, torch.arange(len(box.lower)) % CLASSES)
        newer = kind in TESTED["0.7.1"] and "0.7.1" not in versions
        assert newer == ("or auto_LiRPA 0.7.1 from its repository" in str(error.value))
    monkeypatch.setitem(TESTED[VERSION], kind, always)
    assert max(excess(model, box)[1] for model, box in pairs) > 1e-6


@pytest.mark.parametrize("name", ["dilation", "unequal padding"])
def test_patches_of_such_convolutions_do_not_hold(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_lirpa, "fit_for_patches", lambda *_: True)
    pairs = networks(OPERATORS["BoundConv"][name])
    assert max(excess(model, box)[1] for model, box in pairs) > 0.1


def test_an_untested_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_auto_lirpa(), "__version__", "0.5")
    model, box = next(networks(torch.relu, pointwise=True))
    with pytest.raises(UnprovedError, match="auto_LiRPA 0.5 was not tested .* only 0.3 and 0.7.1 were"):
        AutoLirpaNetwork(model, "crown").margins(box, torch.arange(len(box.lower)) % CLASSES)


def test_where_a_value_inside_overflows_the_cheaper_bound_stands() -> None:
    """auto_LiRPA fails there, or takes a sum that holds 0 * inf for 0."""
    model, box = next(networks(torch.exp, pointwise=True))
    far = Box(box.lower[:2] + 1000.0, box.upper[:2] + 1001.0)
    y, graph = torch.tensor([0, 1]), graph_of(model, far.lower)
    margins = [network.margins(far, y) for network in (IntervalNetwork(model, graph=graph), AutoLirpaNetwork(model))]
    assert margins[0].isinf().any() or margins[0].isnan().any()
    ours, theirs = (m.scatter(1, y.unsqueeze(1), 0.0) for m in margins)
    torch.testing.assert_close(ours, theirs, rtol=0.0, atol=0.0, equal_nan=True)
