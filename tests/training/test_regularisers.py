"""The sums that FastIBP's regularisers are made of, against torch's own graph of the same."""

import pytest
import torch

from acertlab.training.methods import regularisers
from tests.helpers.gradients import assert_same_gradients


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
