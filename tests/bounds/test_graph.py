"""The graph of a network: which BatchNorms are folded into the layer before them."""

import torch
from torch import nn

from acertlab.bounds.graph.capture import capture
from acertlab.bounds.graph.comparison import check_operators
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.ibp import freeze
from acertlab.bounds.rules.operators import module_of
from acertlab.models.architectures import small_cnn
from acertlab.training.loop.batch_statistics import clean_pass


def test_a_linear_layers_batch_norm_is_folded_when_weights_serve_many_steps() -> None:
    model, x = small_cnn((1, 8, 8), 4, width=3, linear=9), torch.rand(8, 1, 8, 8)
    _, statistics = clean_pass(model, x)
    assert {module_of(norm)[0] for norm in freeze(model, statistics, capture(model, x)).plan.folded} == {"1", "4"}
    assert {module_of(norm)[0] for norm in graph_of(model.eval(), x).plan.folded} == {"1", "4", "8"}
    ends = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))  # the last layer is to be merged with the margin
    _, statistics = clean_pass(ends, torch.rand(8, 4))
    assert freeze(ends, statistics, capture(ends, torch.rand(8, 4))).head is not None


def test_comparing_leaves_running_statistics_as_they_were() -> None:
    """A batch_norm changes them in place without counting it as a change."""
    model, x = small_cnn((1, 8, 8), 4, width=3, linear=9), torch.rand(8, 1, 8, 8)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    check_operators(model, capture(model, x), x)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name]), name
