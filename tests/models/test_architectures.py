"""The networks' shapes, against Table 3, and the IBP initialisation."""

import math

import pytest
import torch
from torch import nn

from acertlab.bounds.box import Box, ball
from acertlab.bounds.ibp import freeze
from acertlab.bounds.rules.affine import Normalize
from acertlab.models.architectures import MODELS, cnn7, residual_cnn, small_cnn
from acertlab.models.initialisation import ibp_init_


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape, classes", [((1, 8, 8), 10), ((1, 28, 28), 10), ((3, 32, 32), 10), ((3, 64, 64), 200)])
def test_every_network_takes_every_dataset(name: str, shape: tuple[int, int, int], classes: int) -> None:
    model = MODELS[name](shape, classes, width=4, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    assert model.training and model.eval()(torch.rand(2, *shape)).shape == (2, classes)
    assert isinstance(model[0], Normalize)
    assert freeze(model).propagate(ball(torch.rand(2, *shape), 0.01)).lower.shape == (2, classes)


def test_cnn7_is_table_3() -> None:
    layers = [m for m in cnn7((3, 32, 32), 10) if isinstance(m, (nn.Conv2d, nn.Linear))]
    convolutions = [(m.out_channels, m.kernel_size, m.stride[0]) for m in layers[:5]]
    assert convolutions == [(64, (3, 3), 1), (64, (3, 3), 1), (128, (3, 3), 2), (128, (3, 3), 1), (128, (3, 3), 1)]
    assert [m.out_features for m in layers[5:]] == [512, 10]
    assert cnn7((3, 64, 64), 200, width=4)[12].stride == (2, 2)  # the published code's, for TinyImageNet
    assert cnn7((3, 64, 64), 200, width=4, last_stride=1)[12].stride == (1, 1)  # Table 3's


def test_ibp_initialisation() -> None:
    torch.manual_seed(0)
    model = small_cnn((1, 28, 28), 10, width=32, linear=200)
    head, norm = model[-1].weight.clone(), model[1].weight.clone()
    ibp_init_(model)
    for layer in (model[0], model[3], model[7]):
        fan_in = layer.weight[0].numel()
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / fan_in, rel=0.1)
    assert torch.equal(model[-1].weight, head) and torch.equal(model[1].weight, norm)
    # its purpose: the width of the bounds neither explodes nor vanishes
    boxes: list[Box] = []
    for name, m in model.named_modules():
        if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) and name:
            m.eval()
    freeze(model.eval()).propagate(ball(torch.rand(8, 1, 28, 28), 0.1), boxes)
    widths = [b.radius.mean().item() for b in boxes]
    assert max(widths) / min(widths) < 3


def test_a_weight_fed_by_an_addition_is_halved() -> None:
    torch.manual_seed(0)
    model = residual_cnn((1, 28, 28), 10, width=16)
    ibp_init_(model)
    first, second = model[3].body[0].weight, model[4].body[0].weight  # the second block is fed by the first's sum
    expected = math.sqrt(2 * math.pi) / first[0].numel()
    assert first.std().item() == pytest.approx(expected, rel=0.1)
    assert second.std().item() == pytest.approx(expected / 2, rel=0.1)
    linear = model[6].weight
    assert linear.std().item() == pytest.approx(math.sqrt(2 * math.pi) / linear.shape[1] / 2, rel=0.1)


def test_normalize_refuses_bad_statistics() -> None:
    with pytest.raises(ValueError, match="std: 1 values for 3 means"):
        Normalize((0.1, 0.2, 0.3), (1.0,))
    with pytest.raises(ValueError, match="holds a value <= 0"):
        Normalize((0.1,), (0.0,))
