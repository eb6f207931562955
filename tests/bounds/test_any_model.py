"""Every rule against sampled points and fine grids, and networks of torchvision from end to end."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import propagate
from acertlab.bounds.rules.dispatch import has_rule, rule
from acertlab.radius.certified import certified_radius
from acertlab.radius.search import RadiusStatus
from tests.helpers.networks import Program


def samples(box: Box, n: int = 60) -> list[Tensor]:
    """Points of the box: its ends, its centre, corners, and points anywhere inside."""
    u = torch.rand(n, *box.lower.shape, dtype=box.lower.dtype)
    inside = box.lower + torch.cat([u, u.round()]) * (box.upper - box.lower)
    return [box.lower, box.upper, box.center, *inside]


def assert_sound_and_exact_at_points(model: nn.Module, x: Tensor) -> None:
    for eps in (0.0, 0.05, 0.7, 3.0):
        box = Box(x - eps * torch.rand_like(x), x + eps * torch.rand_like(x))
        before = box.lower.clone(), box.upper.clone()
        bounds = propagate(model, box)
        assert torch.equal(before[0], box.lower) and torch.equal(before[1], box.upper)  # nothing works in place
        for point in samples(box):
            out = model(point.clone())
            slack = 1e-12 * (1 + out.abs())
            assert (out >= bounds.lower - slack).all() and (out <= bounds.upper + slack).all()
        if eps == 0:  # a box of one point has exact bounds
            assert torch.allclose(bounds.lower, out, atol=1e-12) and torch.allclose(bounds.upper, out, atol=1e-12)


# ---- activations: on one interval the bounds are the extremes on a fine grid ---------------------------------------

ELEMENTWISE = {
    **{
        kind.__name__: kind()
        for kind in (nn.Mish, nn.Hardswish, nn.SiLU, nn.GELU, nn.PReLU, nn.LogSigmoid, nn.Softsign)
    },
    **{kind.__name__: kind() for kind in (nn.Tanhshrink, nn.CELU, nn.Softplus, nn.Hardsigmoid, nn.ReLU6, nn.SELU)},
    "Hardswish in place": nn.Hardswish(inplace=True),
    "Mish in place": nn.Mish(inplace=True),
    "CELU in place": nn.CELU(0.5, inplace=True),
    "PReLU falling": nn.PReLU(init=-0.4),
    "Softplus with a low threshold": nn.Softplus(2.0, 1.0),
    "relu6": lambda x: F.relu6(x, True),
    "elu": lambda x: F.elu(x, 0.7, True),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.3, True),
    "softplus, low threshold": lambda x: F.softplus(x, 3, threshold=2),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "prelu": lambda x: F.prelu(x, torch.full((1,), -0.2, dtype=x.dtype)),
    "clamp": lambda x: torch.clamp(x, -1, max=1.5),
    "clip": lambda x: x.clip(min=0.2),
    "clamp_": lambda x: (x + 0).clamp_(0, 1),
    "maximum": lambda x: torch.maximum(x, torch.full_like(x, 0.3)),
    "abs": lambda x: x.abs() + abs(x) / 2,
    "square": torch.square,
    "cube": lambda x: x**3,
    "pow": lambda x: x.pow(4),
    "x * x": lambda x: x * x,
    "constant / constant": lambda x: (2 - x) / -4,
    "alpha": lambda x: torch.sub(torch.add(x, 1.0, alpha=2), 3.0, alpha=0.5),
    "rounded": lambda x: x.float().double(),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_an_activation_is_bounded_tightly(name: str) -> None:
    f = ELEMENTWISE[name]
    model = nn.Sequential(f if isinstance(f, nn.Module) else Program(f)).double().eval()
    for low, high in [(-3.0, 1.0), (-6.0, -2.0), (-1.5, -1.0), (-0.25, 0.5), (0.25, 0.375), (0.5, 0.75), (1.0, 8.0)]:
        grid = model(torch.linspace(low, high, 24001, dtype=torch.float64).view(-1, 1)).detach()
        ends = torch.tensor([[[low]], [[high]]], dtype=torch.float64)
        bounds = propagate(model, Box(*ends))
        gap = 1e-3 if "threshold" in name else 1e-7  # what a jump between two points of the grid hides
        assert grid.min() - gap <= bounds.lower.item() <= grid.min() + 1e-13
        assert grid.max() - 1e-13 <= bounds.upper.item() <= grid.max() + gap


# ---- layers and functions on images --------------------------------------------------------------------------------

LAYERS = [
    *(nn.ConstantPad2d(1, -0.7), nn.ReplicationPad2d((1, 0, 2, 1)), nn.ReflectionPad2d(2), nn.CircularPad2d(1)),
    *(nn.Upsample(scale_factor=2), nn.Upsample((5, 9), mode="bilinear", align_corners=True), nn.PReLU(4, -0.1)),
    *(nn.ConvTranspose2d(4, 3, 3), nn.ConvTranspose2d(4, 6, 2, 2, 1, 1, groups=2, dilation=3, bias=False)),
    *(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2), nn.Mish(), nn.AlphaDropout(), nn.Dropout2d()),
    *(torchvision.ops.StochasticDepth(0.3, "row"), torchvision.ops.SqueezeExcitation(4, 2)),
    torchvision.ops.Conv2dNormActivation(4, 5, activation_layer=nn.Hardswish),
]
WEIGHT = torch.linspace(-1, 1, 4 * 5 * 9, dtype=torch.float64).view(5, 4, 3, 3)
MATRIX = torch.linspace(-2, 1, 36, dtype=torch.float64).view(6, 6)
MASK = torch.arange(6) % 2 == 0
FUNCTIONS = {
    "conv2d": lambda x: F.conv2d(x, WEIGHT, WEIGHT[:, 0, 0, 0], 2, padding=1),
    "conv1d": lambda x: F.conv1d(x.flatten(2), WEIGHT.flatten(2)),
    "conv_transpose2d": lambda x: F.conv_transpose2d(x, WEIGHT.transpose(0, 1), stride=2),
    "batch_norm": lambda x: F.batch_norm(x, WEIGHT[0, :, 0, 0], WEIGHT[0, :, 1, 1] ** 2, WEIGHT[1, :, 0, 1]),
    "gate": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "product": lambda x: (x - 1) * (2 - x),
    "maximum of two": lambda x: torch.maximum(x, -x) + torch.min(x, x.flip(3)),
    "max along": lambda x: torch.max(x, 3)[0] + x.max(dim=2).values + torch.min(x, 2)[0],
    "max of all": lambda x: x.flatten(1).amax(1, True) - x.flatten(1).amin(1, True),
    "stack": lambda x: torch.stack([x, 2 - x], 1).flatten(1, 2),
    "chunk": lambda x: torch.cat([x.chunk(2, 1)[1], torch.chunk(x, 2, 1)[0].relu()], 1),
    "split": lambda x: x.split([1, 3], dim=1)[1] + torch.split(x, 3, 1)[0],
    "unbind": lambda x: x.unbind(2)[1] - torch.unbind(x, 3)[0],
    "pad": lambda x: F.pad(x, (1, 2)) + F.pad(x, (2, 1), value=-1.0) + F.pad(x, (2, 1, 0, 0), "reflect"),
    "channels": lambda x: F.channel_shuffle(F.pixel_unshuffle(x, 2), 4),
    "matmul": lambda x: x @ MATRIX + torch.matmul(MATRIX, x) - x.matmul(MATRIX.T),
    "linear": lambda x: F.linear(x, MATRIX, MATRIX[0]),
    "shapes": lambda x: x.view(x.size(0), x.shape[1] // 2, -1, x.size(-1)).transpose(1, 2).contiguous().flatten(1),
    "more shapes": lambda x: x.movedim(1, 3).roll(1, 2).narrow(1, 0, 2).unflatten(2, (2, -1)),
    "expanded": lambda x: x[:, :1].expand_as(x) - x[:, :1].expand(-1, 4, 6, 6) * 2,
    "transposed": lambda x: x.mT - x.transpose(2, 3).detach() * 2,
    "where": lambda x: torch.where(MASK, x, -x) + x[..., MASK].repeat(1, 1, 1, 2),
    "interpolate": lambda x: F.interpolate(x, size=(3, 4), mode="bilinear", antialias=True),
    "pools": lambda x: F.adaptive_max_pool2d(x, 2) + F.adaptive_avg_pool2d(x, (2, 1)) - F.avg_pool2d(x, 3),
    "cast": lambda x: x.to(torch.float64).type_as(x).clone(),
    "attention by constant scores": lambda x: F.scaled_dot_product_attention(*[MATRIX.expand_as(x)] * 2, x),
    "glu": lambda x: F.glu(x, 1),
    "variance": lambda x: x.var((2, 3)) - x.flatten(1).std(1, correction=0, keepdim=True),
    "what torch defines by other operators": lambda x: torch.diff(x, dim=2).repeat_interleave(2, 3).flatten(1, 2),
    "cosine": lambda x: F.cosine_similarity(x[:, :2], x[:, 2:].exp(), 1),
    "hstack": lambda x: torch.hstack([x, -x]).positive() * 0.5,
    "mean over pixels": lambda x: x.mean([2, 3]) - x.sum(dim=(2, 3)) / 7,
}


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_a_layers_bounds_contain_its_values(layer: nn.Module) -> None:
    torch.manual_seed(0)
    for norm in (m for m in layer.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    assert_sound_and_exact_at_points(nn.Sequential(layer).double().eval(), x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_functions_bounds_contain_its_values(name: str) -> None:
    torch.manual_seed(0)
    assert_sound_and_exact_at_points(Program(FUNCTIONS[name]).eval(), torch.randn(2, 4, 6, 6, dtype=torch.float64))


def test_signals_and_volumes() -> None:
    """Layers of one and of three dimensions."""
    torch.manual_seed(0)
    one = nn.Sequential(nn.ConvTranspose1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReplicationPad1d(1), nn.AdaptiveMaxPool1d(4))
    assert_sound_and_exact_at_points(one.double().eval(), torch.randn(2, 2, 7, dtype=torch.float64))
    head = (nn.Upsample(scale_factor=2, mode="trilinear"), nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(1), nn.Flatten())
    three = nn.Sequential(nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.ReLU(), nn.MaxPool3d(2, 1), *head, nn.Linear(3, 2))
    assert_sound_and_exact_at_points(three.double().eval(), torch.randn(2, 1, 4, 4, 4, dtype=torch.float64))


class Functional(nn.Module):
    """A convolution and a BatchNorm, called as functions."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)
        return F.batch_norm(x, self.norm.running_mean, self.norm.running_var, self.norm.weight, self.norm.bias)


def test_a_function_is_bounded_as_its_layer() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 4, 6, 6, dtype=torch.float64)
    box = Box(x - 0.2, x + 0.1)
    conv, norm = nn.Conv2d(4, 3, 3, padding=1).double(), nn.BatchNorm2d(3).double()
    nn.init.normal_(norm.weight)
    by_function, by_layer = propagate(Functional(conv, norm).eval(), box), propagate(nn.Sequential(conv, norm), box)
    assert torch.allclose(by_function.lower, by_layer.lower, atol=1e-12)
    assert torch.allclose(by_function.upper, by_layer.upper, atol=1e-12)


# ---- what has no rule ----------------------------------------------------------------------------------------------


class Halved(nn.Conv2d):
    """A layer with a forward and a rule of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


rule.register(Halved)(lambda layer, box: Box(*(e / 2 for e in vars(rule(unhalved(layer), box)).values())))


def unhalved(layer: Halved) -> nn.Conv2d:
    plain = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size).to(layer.weight.dtype)
    plain.load_state_dict(layer.state_dict())
    return plain


class Standardised(Halved):
    """With a forward of its own: the rule of its parent does not bound it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.abs().sum(), self.bias)


def test_a_layer_with_its_own_forward_inherits_no_rule() -> None:
    layer = Halved(1, 1, 1)
    assert has_rule(layer) and not has_rule(Standardised(1, 1, 1)) and not has_rule(nn.Module())
    layer.forward = lambda x: -x
    assert not has_rule(layer)
    weighted = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 2, 3))
    torch.manual_seed(0)
    for model in (Standardised(4, 2, 3), weighted):  # the first is traced into, and its function bounded
        assert_sound_and_exact_at_points(nn.Sequential(model).double().eval(), torch.randn(2, 4, 5, 5).double())


@pytest.mark.parametrize(
    "head", [nn.Softmax(1), nn.LogSoftmax(1), Program(lambda x: F.log_softmax(x, 1)), Program(lambda x: x.softmax(1))]
)
def test_a_final_softmax_is_refused_with_what_to_do(head: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), head).eval()
    with pytest.raises(TypeError, match=r"a softmax has no interval rule. If it is the last layer, drop it"):
        certified_radius(model, torch.rand(2, 4), torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize(
    "f, message",
    [
        (lambda x: F.softplus(x, -1), "Softplus with beta = -1 <= 0"),
        (lambda x: F.celu(x, -1), "celu with alpha < 0 is not monotone"),
        (lambda x: torch.lerp(x, x + 1, x), "lerp with a weight that depends on the input"),
        (lambda x: x.scatter(1, torch.zeros_like(x).long(), x, reduce="multiply"), "a scatter that multiplies"),
        (lambda x: x.index_add(1, torch.arange(3), x, alpha=-1), "index_add with alpha = -1 < 0 is not monotone"),
        (lambda x: F.grid_sample(x, x[..., :2], align_corners=False), "for a constant grid only"),
        (lambda x: x**x, "a power with an exponent that depends on the input"),
        (lambda x: torch.div(x, 0.3, rounding_mode="floor"), "a division that is rounded to whole numbers"),
        (lambda x: F.conv2d(x, x), "conv2d has no interval rule where its weight or bias depends on the input"),
        (lambda x: F.batch_norm(x, None, None, training=True), "statistics of a batch"),
        (lambda x: F.dropout2d(x, 0.3), "with p=0.3 is active"),
    ],
)
def test_a_function_without_a_sound_bound_is_refused(f: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        propagate(Program(f).eval(), Box(torch.zeros(1, 3, 3, 3), torch.ones(1, 3, 3, 3)))


@pytest.mark.parametrize(
    "f", [lambda x: 1 / x, lambda x: x**-1, lambda x: x**-1.5, lambda x: (x + 1) / x, torch.rsqrt, torch.log]
)
def test_what_has_a_pole_in_its_box_certifies_nothing(f: object) -> None:
    wide = propagate(Program(f).eval(), Box(torch.full((1, 2), -0.5), torch.ones(1, 2)))
    assert not (wide.lower.isfinite() & wide.upper.isfinite()).any()
    model = nn.Sequential(nn.Linear(2, 2), Program(f), nn.Linear(2, 2)).eval()
    for layer, bias in ((model[0], -0.5), (model[2], 0.0)):
        nn.init.eye_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    x = torch.tensor([[0.6, 0.9]])
    radius = certified_radius(model, x, model(x).argmax(1), 0.4).radius
    assert 0 < radius < 0.1  # of which no box reaches 0.5, where the function has its pole


def test_stochastic_depth_in_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"is active, so outputs are random"):
        rule(torchvision.ops.StochasticDepth(0.5, "row").train(), Box(torch.zeros(1, 2), torch.ones(1, 2)))


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_an_error_names_the_module_and_what_to_do() -> None:
    box = Box(torch.zeros(1, 3), torch.ones(1, 3))
    inner = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), Program(torch.tan)))
    with pytest.raises(TypeError, match=r"operator 'tan' in '1\.1\.1' of type Program(.|\n)*acertlab.rule.register"):
        propagate(nn.Sequential(nn.ReLU(), inner), box)
    with pytest.raises(TypeError, match=r"operator 'tan' in the model's own forward"):
        propagate(Program(torch.tan), box)
    with pytest.raises(TypeError, match=r"forward of Sequential cannot be captured: its control flow.*acertlab\.rule"):
        propagate(nn.Sequential(nn.Sequential(nn.ReLU(), Branches())), box)
    with pytest.raises(TypeError, match="a power with an exponent") as caught:
        propagate(nn.Sequential(nn.Sequential(nn.ReLU(), Program(lambda x: x**x))), box)
    assert caught.value.__notes__ == ["This was at operator 'pow' in '0.1' of type Program."]


@pytest.mark.parametrize(
    "f",
    [
        lambda x: F.hardtanh(h := x + 0, 0.0, 1.0, True) + h,
        lambda x: F.leaky_relu(h := x + 0, 0.1, True) + h,
        lambda x: (h := x + 0).chunk(2, 1)[0].relu_() + h[:, :1],
        lambda x: (h := x + 0).mT.clamp_(0.1, 0.2).mT + h,
    ],
)
def test_what_was_changed_in_place_is_used_as_changed(f: object) -> None:
    assert_sound_and_exact_at_points(Program(f).eval(), torch.randn(3, 2, 2, dtype=torch.float64))


def test_a_rule_of_ones_own_is_not_passed_over_for_the_parents() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Halved(4, 2, 3), nn.BatchNorm2d(2)).double().eval()
    assert_sound_and_exact_at_points(model, torch.randn(2, 4, 5, 5).double())


# ---- networks of torchvision ---------------------------------------------------------------------------------------


def averaging_(model: nn.Module) -> nn.Module:
    """Hidden weights >= 0 that add up to 1: random, and yet bounds do not explode through a hundred layers."""
    weights = [layer.weight for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        for weight in weights[:-1]:
            weight.abs_().div_(weight.flatten(1).sum(1).view(-1, *[1] * (weight.dim() - 1)))
    return model.eval()


NETWORKS = (
    *("resnet18", "vgg11", "squeezenet1_1", "densenet121", "googlenet", "mobilenet_v2", "mobilenet_v3_small"),
    *("shufflenet_v2_x0_5", "efficientnet_b0", "regnet_y_400mf", "mnasnet0_5"),
)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_torchvision_certifies(name: str) -> None:
    torch.manual_seed(0)
    quickly = {"init_weights": False} if name in ("vgg11", "googlenet") else {}
    model = averaging_(torchvision.models.get_model(name, num_classes=10, **quickly))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        y = model(x).argmax(1)
    result = certified_radius(model, x, y, 0.1, rtol=1e-2).raise_if_failed()
    assert (result.status == RadiusStatus.CONVERGED).all() and (result.radius > 1e-4).all()
    noise = result.radius.view(-1, 1, 1, 1) * (2 * torch.rand(8, *x.shape) - 1).sign()
    with torch.no_grad():
        assert (model((x + noise).clamp(0, 1).flatten(0, 1)).argmax(1).view(8, 2) == y).all()


def test_a_pool_that_turns_signs_is_refused() -> None:
    for falling in (nn.AvgPool2d(2, divisor_override=-4), Program(lambda x: F.avg_pool2d(x, 2, divisor_override=-4))):
        with pytest.raises(ValueError, match="average pooling with divisor_override = -4 < 0 is not monotone"):
            propagate(nn.Sequential(falling), Box(torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)))
