"""Each fused function against torch's own graph of the same, in values and gradients."""

import torch
from torch import nn

from acertlab.bounds.graph.capture import capture
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.ibp import freeze
from acertlab.bounds.rules import affine
from acertlab.bounds.rules.operators import module_of
from acertlab.models.architectures import small_cnn
from acertlab.training.loop.batch_statistics import clean_pass
from tests.helpers.gradients import assert_same_gradients


def test_sum_and_difference() -> None:
    a, b = (torch.randn(5, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    total, difference = affine.sum_and_difference(a, b)
    assert torch.equal(total, a + b) and torch.equal(difference, a - b)
    assert_same_gradients((total**3 + difference.exp()).sum(), ((a + b) ** 3 + (a - b).exp()).sum(), [a, b])
    total.sum().backward()  # the difference is not used
    assert (a.grad == 1).all() and (b.grad == 1).all()


def test_a_linear_layers_batch_norm_is_folded_when_weights_serve_many_steps() -> None:
    model, x = small_cnn((1, 8, 8), 4, width=3, linear=9), torch.rand(8, 1, 8, 8)
    _, statistics = clean_pass(model, x)
    assert {module_of(norm)[0] for norm in freeze(model, statistics, capture(model, x)).plan.folded} == {"1", "4"}
    assert {module_of(norm)[0] for norm in graph_of(model.eval(), x).plan.folded} == {"1", "4", "8"}
    ends = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))  # the last layer is to be merged with the margin
    _, statistics = clean_pass(ends, torch.rand(8, 4))
    assert freeze(ends, statistics, capture(ends, torch.rand(8, 4))).head is not None
