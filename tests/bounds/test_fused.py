"""Each fused function against torch's own graph of the same, in values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.ibp import freeze
from acertlab.bounds.rules import affine
from acertlab.models.architectures import small_cnn
from acertlab.training.loop import batch_statistics
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.methods import regularisers


def assert_same_gradients(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(out, inputs) for out in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


def test_sum_and_difference() -> None:
    a, b = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    total, difference = affine.sum_and_difference(a, b)
    assert torch.equal(total, a + b) and torch.equal(difference, a - b)
    assert_same_gradients((total**3 + difference.exp()).sum(), ((a + b) ** 3 + (a - b).exp()).sum(), [a, b])
    total.sum().backward()  # the difference is not used
    assert (a.grad == 1).all() and (b.grad == 1).all()


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(9, 4), (7, 4, 5, 3)])
def test_batch_norm_gives_its_statistics_and_their_gradients(shape: tuple[int, ...], affine: bool) -> None:
    torch.manual_seed(0)
    z = (2 * torch.randn(shape, dtype=torch.float64) + 1).requires_grad_()
    parts = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)] if affine else [None, None]
    running = [(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)) for _ in range(2)]
    out, mean, var = batch_statistics.batch_norm(z, *running[0], *parts, 0.1, 1e-5)
    theirs = F.batch_norm(z, *running[1], *parts, True, 0.1, 1e-5)
    var_, mean_ = torch.var_mean(z, [0, *range(2, z.dim())], correction=0)
    assert torch.allclose(mean, mean_) and torch.allclose(var, var_)
    assert all(torch.equal(a, b) for a, b in zip(*running, strict=True))
    factor = torch.randn_like(z)
    ours = (out * factor).sum() + (mean * var.sqrt() * mean).sum() + out.square().sum()
    theirs = (theirs * factor).sum() + (mean_ * var_.sqrt() * mean_).sum() + theirs.square().sum()
    assert_same_gradients(ours, theirs, [z, *(p for p in parts if p is not None)])


@pytest.mark.parametrize("rows", [7, 32, 75])
def test_box_sums(rows: int) -> None:
    torch.manual_seed(rows)
    c, r = torch.randn(rows, 3, 4, dtype=torch.float64), torch.rand(rows, 3, 4, dtype=torch.float64)
    lower, upper = (c - r).requires_grad_(), (c + r).requires_grad_()
    sums, inactive = regularisers.box_sums(lower, upper)
    c, on, off = (lower + upper) / 2, lower > 0, upper < 0
    spread = (c - c.mean()).square()
    direct = [(upper - lower).mean() / 2, (c * on).mean(), (c * off).mean(), (spread * on).sum(), (spread * off).sum()]
    assert inactive == off.sum() and not inactive.requires_grad
    weights = torch.randn(5, dtype=torch.float64)
    assert_same_gradients((sums * weights).sum(), (torch.stack(direct) * weights).sum(), [lower, upper])


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


def test_a_linear_layers_batch_norm_is_folded_when_weights_serve_many_steps() -> None:
    model = small_cnn((1, 8, 8), 4, width=3, linear=9)
    _, statistics = clean_pass(model, torch.rand(8, 1, 8, 8))
    assert {norm.target for norm in freeze(model, statistics).folded} == {"1", "4"}
    assert {norm.target for norm in freeze(model.eval()).folded} == {"1", "4", "8"}
    ends = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))  # the last layer is to be merged with the margin
    _, statistics = clean_pass(ends, torch.rand(8, 4))
    assert freeze(ends, statistics).head is not None
