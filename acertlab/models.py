"""The networks of the experiments. Normalisation is their first layer, so that eps is always in pixel units."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx, nn

from acertlab.box import Box
from acertlab.rules import Scale, rule
from acertlab.tracing import trace


class Normalize(nn.Module):
    """(x - mean) / std per channel, as the first layer of a model.

    Args:
        mean: one value a channel, in pixel units.
        std: the same length, > 0.

    Raises:
        ValueError: lengths differ, or a std that is not positive.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(mean):
            raise ValueError(f"std: {len(std)} values for {len(mean)} means; give one of each a channel")
        if min(std) <= 0:
            raise ValueError(f"std: {tuple(std)} holds a value <= 0; standard deviations are positive")
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.dim() - 2))
        return (x - self.mean.view(shape)) / self.std.view(shape)


@rule.register(Normalize)
def _normalize(layer: Normalize, box: Box) -> Box:
    return rule(Scale(1 / layer.std, -layer.mean / layer.std), box)


Stats = Sequence[float] | None


def _normalization(channels: int, mean: Stats, std: Stats) -> list[nn.Module]:
    if mean is None and std is None:
        return []
    return [Normalize(mean or (0.0,) * channels, std or (1.0,) * channels)]


def _conv(inputs: int, outputs: int, kernel: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def _with_head(body: list[nn.Module], in_shape: Sequence[int], linear: int, classes: int) -> nn.Sequential:
    """Flatten, a hidden linear layer and the output layer; the features are counted on a blank image."""
    with torch.no_grad():
        features = nn.Sequential(*body).eval()(torch.zeros(1, *in_shape)).numel()
    hidden = [nn.Flatten(), nn.Linear(features, linear), nn.BatchNorm1d(linear), nn.ReLU()]
    return nn.Sequential(*body, *hidden, nn.Linear(linear, classes)).train()


def cnn7(
    in_shape: Sequence[int],
    classes: int,
    width: int = 64,
    linear: int = 512,
    *,
    mean: Stats = None,
    std: Stats = None,
    last_stride: int | None = None,
) -> nn.Sequential:
    """CNN7 (Table 3): five 3x3 convolutions, two linear layers, BatchNorm and ReLU after all but the last.

    Args:
        in_shape: (channels, height, width) of an image.
        classes: number of classes.
        width: channels of the first two convolutions; the other three have twice as many.
        linear: features of the hidden linear layer.
        mean, std: of `Normalize`, in pixel units; None: no normalisation.
        last_stride: stride of the fifth convolution. None follows the published code: 2 for images of 64 pixels and
            more (TinyImageNet), else 1. Table 3 says 1.
    """
    if last_stride is None:
        last_stride = 2 if min(in_shape[1:]) >= 64 else 1
    body = _normalization(in_shape[0], mean, std)
    inputs = in_shape[0]
    for outputs, stride in ((width, 1), (width, 1), (2 * width, 2), (2 * width, 1), (2 * width, last_stride)):
        body += _conv(inputs, outputs, 3, stride)
        inputs = outputs
    return _with_head(body, in_shape, linear, classes)


def small_cnn(
    in_shape: Sequence[int], classes: int, width: int = 16, linear: int = 100, *, mean: Stats = None, std: Stats = None
) -> nn.Sequential:
    """Gowal et al.'s small network with BatchNorm: 4x4 convolutions of stride 2 and 1, a hidden linear layer.

    Args:
        in_shape, classes, mean, std: as in `cnn7`.
        width: channels of the first convolution; the second has twice as many.
        linear: features of the hidden linear layer.
    """
    body = _normalization(in_shape[0], mean, std)
    body += _conv(in_shape[0], width, 4, 2) + _conv(width, 2 * width, 4, 1)
    return _with_head(body, in_shape, linear, classes)


def mlp(
    in_shape: Sequence[int], classes: int, width: int = 100, depth: int = 2, *, mean: Stats = None, std: Stats = None
) -> nn.Sequential:
    """A fully connected network of ``depth`` hidden layers with ``width`` features each, without BatchNorm."""
    layers = [*_normalization(in_shape[0], mean, std), nn.Flatten()]
    features = math.prod(in_shape)
    for _ in range(depth):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


class ResidualBlock(nn.Module):
    """relu(x + BN(conv(relu(BN(conv(x))))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_conv(channels, channels, 3, 1), *_conv(channels, channels, 3, 1)[:2])
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.body(x))


def residual_cnn(
    in_shape: Sequence[int], classes: int, width: int = 16, linear: int = 100, *, mean: Stats = None, std: Stats = None
) -> nn.Sequential:
    """A strided convolution, two residual blocks and a hidden linear layer; arguments as in `small_cnn`."""
    body = _normalization(in_shape[0], mean, std)
    body += [*_conv(in_shape[0], width, 3, 2), ResidualBlock(width), ResidualBlock(width)]
    return _with_head(body, in_shape, linear, classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_cnn": small_cnn,
    "cnn7": cnn7,
    "mlp": mlp,
    "residual_cnn": residual_cnn,
}


def ibp_init_(model: nn.Module) -> nn.Module:
    """IBP initialisation, in place: every weight but the last ~ N(0, sqrt(2 pi) / fan_in).

    Keeps the mean width of the bounds constant from layer to layer. Biases and BatchNorm stay as they are; a weight fed
    by a residual addition, whose interval is the sum of two, is halved.

    Source: Shi et al. 2021, Sec. 3.1.
    """
    traced = trace(model)
    modules = dict(traced.model.named_modules(remove_duplicate=False))
    affine = (nn.Linear, nn.Conv1d, nn.Conv2d)
    nodes = [n for n in traced.graph.nodes if n.op == "call_module" and isinstance(modules[n.target], affine)]
    with torch.no_grad():
        for node in nodes[:-1]:
            weight = modules[node.target].weight
            weight.normal_(0, math.sqrt(2 * math.pi) / weight[0].numel())
        for node in nodes:
            if _is_fed_by_addition(node, modules):
                modules[node.target].weight.mul_(0.5)
    return model


def _is_fed_by_addition(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the input is a sum of two activations, looking back through activations, pooling and changes of shape."""
    affine = (nn.Linear, nn.Conv1d, nn.Conv2d)
    while len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if node.op == "call_module" and isinstance(modules[node.target], affine):
            return False
    return len(node.all_input_nodes) == 2 and "add" in str(getattr(node.target, "__name__", node.target))
