"""A run whose loss stops being finite: it says where, and leaves nothing that looks finished."""

from dataclasses import replace

import pytest

from acertlab.training.loop import step, train as loop
from acertlab.training.loop.diagnostics import NonFiniteLossError
from acertlab.training.loop.train import train
from tests.helpers.training import SMALL


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda model: model[3].weight.data.fill_(3e38), r"It began in layer '3' \(Linear\): its output is not finite"),
        (None, r"It began in layer '1' \(Linear\): its bounds at eps_t are not finite"),
    ],
    ids=["clean pass", "bounds"],
)
def test_the_layer_in_which_a_loss_overflows_is_named(few, tmp_path, monkeypatch, spoil, sentence):
    original = loop.initial_state

    def spoiled(*args):
        state = original(*args)
        if spoil:
            spoil(state.model)
        else:  # finite at x, where the weights cancel each other, and not over a box
            state.model[1].weight.data.fill_(3e38)
            state.model[1].bias.data.zero_()
        return state

    monkeypatch.setattr(loop, "initial_state", spoiled)
    images = few if spoil else replace(few, train_x=few.train_x * 0)
    config = replace(SMALL, method="ibp", clean_epochs=0, ramp_epochs=0, epochs=1)
    with pytest.raises(NonFiniteLossError, match=sentence):
        train(config, images, tmp_path, progress=False)


def test_too_high_a_rate_is_found_in_the_first_steps(few, tmp_path):
    with pytest.raises(
        FloatingPointError, match=r"epoch 0 at step \d+ \(learning rate about .* It began in layer '\d'"
    ):
        train(replace(SMALL, lr=1e30), few, tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops_the_run(few, tmp_path, monkeypatch):
    original = step.l1_norm
    monkeypatch.setattr(step, "l1_norm", lambda model, reach: original(model, reach) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"epoch 0 at step 0 \(learning rate about .*, eps_t 0"):
        train(replace(SMALL, l1=1e-3), few, tmp_path, progress=False)
    assert not (tmp_path / "result.json").exists()
    assert not (tmp_path / "checkpoint").exists()
