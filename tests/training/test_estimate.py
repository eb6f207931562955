"""How long a training takes: an estimate that adds up, leaves no trace, and what the command tells."""

from dataclasses import replace

import pytest
import torch

import acertlab as al
from acertlab.__main__ import main
from acertlab.training.cost import estimate
from acertlab.training.loop import step
from acertlab.training.loop.state import initial_state

CONFIG = replace(al.preset("digits", "standard", budget="fast"), model="mlp", width=4, device="cpu")


def test_a_duration_adds_up():
    found = estimate.Duration(
        10, {"clean": 1.0, "ramp": 2.0, "after": 3.0}, {"clean": 1, "ramp": 2, "after": 3}, 5.0, 7.0
    )
    assert found.training == 10 * (1 + 4 + 9) and found.total == found.training + 6 * 5 + 7
    assert str(found).startswith("about 3.0 min: 1 epoch clean of 10 steps at 1 s, 2 epochs on the ramp")


@pytest.mark.parametrize("method", ["standard", "acert"])
def test_an_estimate_leaves_no_trace_and_takes_a_few_steps(method, monkeypatch):
    data = al.load_dataset("digits").first(100)
    config, taken = replace(al.preset("digits", method, budget="fast"), batch_size=32, width=4), []
    original = step.train_step
    monkeypatch.setattr(estimate, "train_step", lambda *args: taken.append(args[5]) or original(*args))
    before = torch.get_rng_state()
    found = estimate.estimate(config, data, count=3)
    assert torch.equal(torch.get_rng_state(), before)
    each = 3 + estimate.WARM
    assert len(taken) == 3 * each and taken[:each] == [0.0] * each and taken[-each:] == [config.eps_max] * each
    assert 0 < taken[each] < config.eps_max
    assert found.steps == 4 and found.epochs == {"clean": 1, "ramp": 10, "after": 9}
    assert min(found.step.values()) > 0 and found.validation > 0 and found.test > 0


def test_each_contender_takes_its_own_steps(monkeypatch):
    """At its own eps, on batches of its own size; not at those of whoever is last."""
    data = al.load_dataset("digits").first(100)
    contenders = {
        "half": replace(CONFIG, train_eps_factor=0.5, batch_size=16),
        "whole": CONFIG,
        "small": replace(CONFIG, eps_max=0.1, batch_size=25),
    }
    model = initial_state(CONFIG, data, torch.device("cpu"), steps=1).model
    taken = {name: set() for name in contenders}
    names = {(c.train_eps_factor, c.eps_max, c.batch_size): name for name, c in contenders.items()}
    original = estimate.train_step

    def watched(state, config, x, y, index, eps, std):
        taken[names[config.train_eps_factor, config.eps_max, config.batch_size]].add((len(x), len(index), eps))
        return original(state, config, x, y, index, eps, std)

    monkeypatch.setattr(estimate, "train_step", watched)
    seconds = estimate.step_seconds({name: (config, model) for name, config in contenders.items()}, data, count=3)
    assert seconds.keys() == contenders.keys() and min(seconds.values()) > 0
    assert taken == {"half": {(16, 16, 0.1)}, "whole": {(64, 64, 0.2)}, "small": {(25, 25, 0.1)}}


def test_the_command_tells_step_epoch_and_memory(capsys):
    assert main(["estimate", "digits", "acert", "--budget", "smoke", "--steps", "1"]) == 0
    said = capsys.readouterr().out
    assert "digits, acert, small_cnn of width 4, batch 64" in said
    memory = float(said.partition("peak memory ")[2].split()[0])
    assert 0.1 < memory < 20  # a process with torch in it holds more than the first
    for wrong, message in (
        (["digits", "acrt"], "method = 'acrt'"),
        (["digits", "acert", "--steps", "0"], "steps = 0"),
    ):
        assert main(["estimate", *wrong]) == 1 and message in capsys.readouterr().err
