"""The graph of a network: which BatchNorms are folded into the layer before them."""

import torch
from torch import nn

from acertlab.bounds.ibp import freeze
from acertlab.models.architectures import small_cnn
from acertlab.training.loop.batch_statistics import clean_pass


def test_a_linear_layers_batch_norm_is_folded_when_weights_serve_many_steps() -> None:
    model = small_cnn((1, 8, 8), 4, width=3, linear=9)
    _, statistics = clean_pass(model, torch.rand(8, 1, 8, 8))
    assert {norm.target for norm in freeze(model, statistics).folded} == {"1", "4"}
    assert {norm.target for norm in freeze(model.eval()).folded} == {"1", "4", "8"}
    ends = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))  # the last layer is to be merged with the margin
    _, statistics = clean_pass(ends, torch.rand(8, 4))
    assert freeze(ends, statistics).head is not None
