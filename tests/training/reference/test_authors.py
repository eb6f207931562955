"""Losses, gradients, attacks, boxes and statistics beside those of the methods' authors' own code: see README.md."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from acertlab.bounds.graph.memory import graph_of
from acertlab.training.config import TrainConfig
from acertlab.training.loop.state import State, learning_rate
from acertlab.training.loop.step import train_step
from acertlab.training.methods import adversarial
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.schedules import smooth_ramp
from tests.training.reference.networks import STD, batch, network, noise, told

NUMBERS = json.loads(Path(__file__).with_name("numbers.json").read_text(encoding="utf-8"))
EPS_MAX = 0.3
CLOSE = {"rel": 1e-10, "abs": 1e-10}  # a box of 1e-6 around a sample, and its tightness, cancel six digits
FORMER = {"attack": "last", "small_box_at_border": "cut", "batch_statistics": "clean", "relu_shrinkage": 0.0}


def name(case: dict[str, Any]) -> str:
    return " ".join([f"eps {case['eps']}", *map(str, case["settings"].values())])


def step(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    """What one step of ours gives, told as in numbers.json."""
    config = TrainConfig(eps_max=EPS_MAX, clip=None, **case["settings"] | changes)
    model, (x, y), found = network(), batch(), {}
    attack, small = adversarial.training_attack, adversarial.SABR._small

    def attacked(*args: Any, **settings: Any) -> Tensor:
        found["x_adv"] = attack(*args, **settings)
        return found["x_adv"]

    def boxed(*args: Any) -> Any:
        box = small(*args)
        found["lower"], found["upper"] = box.lower, box.upper
        return box

    with monkeypatch.context() as patched:
        patched.setattr(torch, "rand_like", lambda like: noise(like.shape))
        patched.setattr(torch, "rand", lambda shape, **_: noise(torch.Size(shape)))
        patched.setattr(adversarial, "training_attack", attacked)
        patched.setattr(adversarial.SABR, "_small", boxed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        state = State(
            model, graph_of(model, x), config.objective(), optimizer, learning_rate(config, optimizer, 1), None
        )
        std = torch.tensor(STD, dtype=torch.float64)
        loss, *_ = train_step(state, config, x, y, torch.arange(len(y)), case["eps"], std)
    norms = [layer for layer in model if isinstance(layer, _BatchNorm)]
    return {
        "loss": loss.item(),
        **{what: told(value) for what, value in found.items()},
        "gradients": [told(p.grad) for p in model.parameters()],
        "running": [told(value) for norm in norms for value in (norm.running_mean, norm.running_var)],
    }


@pytest.mark.parametrize("case", NUMBERS["steps"], ids=name)
def test_a_step_is_the_authors(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ours = step(case, monkeypatch)
    for what in case.keys() - {"source", "settings", "eps"}:
        found, expected = (torch.tensor(of[what], dtype=torch.float64).flatten().tolist() for of in (ours, case))
        assert found == pytest.approx(expected, **CLOSE), what


@pytest.mark.parametrize("setting", FORMER)
def test_by_any_of_the_former_settings_it_is_not(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each method that has a use for it, or the test above could not tell."""
    for method, entry in METHODS.items():
        cases = [case for case in NUMBERS["steps"] if case["settings"]["method"] == method and case["eps"] > 0]
        if setting in {field.name for field in fields(entry.objective)} and cases:
            off = [abs(step(case, monkeypatch, **{setting: FORMER[setting]})["loss"] - case["loss"]) for case in cases]
            assert max(off) > 1e-3, (method, off)


@pytest.mark.parametrize("ramp", NUMBERS["ramps"], ids=lambda ramp: ramp["source"])
def test_a_ramp_is_the_authors(ramp: dict[str, Any]) -> None:
    """Mueller et al.'s has the shape of Shi et al.'s, and begins one step earlier."""
    ours = [smooth_ramp(t, ramp["first"], ramp["last"], EPS_MAX) for t in range(len(ramp["eps"]))]
    assert ours == pytest.approx(ramp["eps"], rel=1e-12, abs=1e-15) and 0 < ours.count(EPS_MAX) < len(ours)


def test_a_rate_falls_where_the_authors_does() -> None:
    """Mueller et al. step their scheduler before an epoch: milestone 4 is after three epochs."""
    milestones = tuple(epoch - 1 for epoch in NUMBERS["rates"]["milestones"])
    config = TrainConfig(scheduler="step", lr=5e-4, milestones=milestones, epochs=8, ramp_epochs=1)
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler, ours = learning_rate(config, optimizer, 1), []
    for _ in NUMBERS["rates"]["rates"]:
        ours.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert ours == pytest.approx(NUMBERS["rates"]["rates"], rel=1e-12)
