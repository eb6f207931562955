"""The clean pass gives every BatchNorm's statistics, and their gradients, as torch's own graph has them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.training.loop.batch_statistics import batch_norm, clean_pass
from tests.helpers.gradients import assert_same_gradients


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(9, 4), (7, 4, 5, 3)])
def test_batch_norm_gives_its_statistics_and_their_gradients(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    z = (2 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()
    parts = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)] if affine else [None, None]
    running = [(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)) for _ in range(2)]
    out, mean, var = batch_norm(z, running[0], *parts, 0.1, 1e-5)
    theirs = F.batch_norm(z, *running[1], *parts, True, 0.1, 1e-5)
    var_, mean_ = torch.var_mean(z, [0, *range(2, z.dim())], correction=0)
    assert torch.allclose(mean, mean_) and torch.allclose(var, var_)
    assert all(torch.equal(a, b) for a, b in zip(*running, strict=True))
    factor = torch.randn_like(z)
    ours = (out * factor).sum() + (mean * var.sqrt() * mean).sum() + out.square().sum()
    theirs = (theirs * factor).sum() + (mean_ * var_.sqrt() * mean_).sum() + theirs.square().sum()
    assert_same_gradients(ours, theirs, [z, *(p for p in parts if p is not None)])


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.norm(x))


class OwnBatchNorm(nn.BatchNorm1d):
    """Normalises by operations of its own, so that its statistics have to be taken apart."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, 0, correction=0)
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


def test_statistics_of_every_batch_norm() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, dtype=torch.float64)
    model = nn.Sequential(OwnBatchNorm(3), nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval(), nn.Linear(3, 3)).double()
    model[2].running_mean.fill_(0.5)
    expected = model(x)
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            out, statistics = clean_pass(model, x)
            assert torch.allclose(out, expected) and set(statistics) == {"0", "1"}
            for name, z in (("0", x), ("1", model[0](x))):
                var, mean = torch.var_mean(z, 0, correction=0)
                assert torch.allclose(statistics[name][0], mean) and torch.allclose(statistics[name][1], var)
                assert statistics[name][1].requires_grad == (gradient and name == "1")
    with pytest.raises(ValueError, match="'norm' is called twice"):
        clean_pass(Twice().double(), x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        clean_pass(nn.Sequential(nn.BatchNorm1d(3)), torch.zeros(1, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("settings", [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}])
def test_a_layer_is_left_as_its_own_pass_leaves_it(settings: dict) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, **settings), nn.BatchNorm2d(3, **settings))
    twin = copy.deepcopy(model)
    for _ in range(3):
        x = torch.rand(4, 1, 5, 5)
        ours, statistics = clean_pass(model, x)
        assert torch.equal(ours, twin(x)) and set(statistics) == {"1", "2"}
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert all("forward" not in vars(module) and not module._forward_pre_hooks for module in model.modules())
