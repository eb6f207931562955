"""The networks of the experiments. Normalisation is their first layer, so that eps is always in pixel units."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from acertlab.bounds.rules.affine import Normalize

Stats = Sequence[float] | None  # one value a channel, in pixel units; None: not normalised


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
        classes: Number of classes.
        width: Channels of the first two convolutions; the other three have twice as many.
        linear: Features of the hidden linear layer.
        mean, std: Of `Normalize`, in pixel units; None: no normalisation.
        last_stride: Stride of the fifth convolution. None follows the published code: 2 for images of 64 pixels and
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

    Arguments as in `cnn7`; the second convolution has twice the first one's ``width`` channels.
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


MODELS: dict[str, Callable[..., nn.Module]] = {made.__name__: made for made in (small_cnn, cnn7, mlp, residual_cnn)}
