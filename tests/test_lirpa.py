"""Our bounds beside auto_LiRPA's: the same numbers from an independent implementation."""

import copy

import pytest
import torch
from conftest import Trained
from test_interval import warm_up

from acertlab import lirpa
from acertlab.interval import freeze
from acertlab.models import MODELS, ibp_init_
from acertlab.rules import ball


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_ibp_equals_auto_lirpa(name: str, merged: bool) -> None:
    torch.manual_seed(0)
    model = MODELS[name]((1, 28, 28), 10, mean=(0.1307,), std=(0.3081,))
    model = warm_up(ibp_init_(model) if name == "cnn7" else model, (1, 28, 28))
    x, y = torch.rand(12, 1, 28, 28), torch.arange(12) % 10
    for eps in (0.0, 0.01, torch.linspace(0, 0.4, 12)):
        box = ball(x, eps)
        ours, theirs = freeze(model).margins(box, y, merged=merged), lirpa.margins(model, box, y, merged=merged)
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert theirs.abs().max() > 0.01


@pytest.mark.parametrize("merged", [True, False])
def test_ibp_equals_auto_lirpa_on_a_trained_network(trained: Trained, merged: bool) -> None:
    x, y, model = trained.x[:100], trained.y[:100], trained.model
    before = copy.deepcopy(model.state_dict())
    ours = freeze(model).margins(ball(x, 0.1), y, merged=merged)
    theirs = lirpa.margins(model, ball(x, 0.1), y, merged=merged)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_an_unknown_bound_is_refused() -> None:
    model = MODELS["mlp"]((1, 4, 4), 3).eval()
    with pytest.raises(ValueError, match="bound: 'crowned' is unknown; choose from 'ibp'"):
        lirpa.margins(model, ball(torch.rand(1, 1, 4, 4), 0.1), torch.tensor([0]), bound="crowned")
