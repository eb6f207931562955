"""A solver is an entry of one dict: whatever searches for radii then knows it."""

import pytest
import torch

from acertlab.radius.certificate import certify
from acertlab.radius.certified import certified_radius
from acertlab.radius.rootfind.bracketed import RootResult
from acertlab.radius.rootfind.chandrupatla import chandrupatla
from acertlab.radius.rootfind.solvers import SOLVERS, FromBothEnds
from acertlab.training.config import TrainConfig
from tests.helpers.networks import Trained


def test_an_entry_is_all_that_a_new_solver_needs(digits_net: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def mine(*args: object, **settings: object) -> RootResult:
        calls.append(1)
        return chandrupatla(*args, **settings)

    model, x, y = digits_net.model, digits_net.x[:100], digits_net.y[:100]
    with pytest.raises(ValueError, match="solver = 'mine': accepted is brentq, bisect, chandrupatla, log-secant"):
        certified_radius(model, x, y, 0.2, solver="mine")
    monkeypatch.setitem(SOLVERS, "mine", FromBothEnds(mine))
    known, found = (certified_radius(model, x, y, 0.2, solver=solver) for solver in ("chandrupatla", "mine"))
    assert calls and torch.equal(found.radius, known.radius) and torch.equal(found.evaluations, known.evaluations)
    report = certify(model, (x, y), 0.2, solver="mine", progress=False)
    assert report.settings["solver"] == "mine" and report.radii["radius"].tolist() == known.radius.tolist()
    assert TrainConfig(solver="mine").search.solver == "mine"
