"""One set of defaults; and the curve by which a search knows where to begin: no network breaks it."""

from collections.abc import Callable
from dataclasses import fields
from inspect import signature

import pytest
import torch
from torch import Tensor

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import certified_margin, clean_margin, margin_at
from acertlab.radius.attack import attacked_radius, pgd
from acertlab.radius.bracket import exact_radius, radius_bracket
from acertlab.radius.certificate import certify
from acertlab.radius.certified import certified_radius
from acertlab.radius.exact.radii import ExactSettings
from acertlab.radius.rootfind.log_secant import EXPONENT
from acertlab.radius.search import (
    CLOSE,
    POINTS,
    RANGE,
    MarginGrowth,
    RadiusStatus,
    SearchSettings,
    probe_image,
    search_radius,
)
from acertlab.training.config import TrainConfig
from tests.helpers.networks import Trained


def defaults(function: Callable) -> dict[str, object]:
    """Those of the parameters that are search settings."""
    names, parameters = {field.name for field in fields(SearchSettings)}, signature(function).parameters
    return {name: parameters[name].default for name in parameters if name in names}


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (certified_radius, {"bound", "merged", "domain", "sound", "solver", "xtol", "rtol", "maxiter", "time_limit"}),
        (certify, {"bound", "merged", "domain", "sound", "solver", "xtol", "rtol", "maxiter", "time_limit"}),
        (radius_bracket, {"bound", "merged", "domain", "sound", "time_limit"}),
        (exact_radius, {"domain", "time_limit"}),
        (ExactSettings, {"domain", "time_limit"}),
        (certified_margin, {"bound", "merged", "domain", "sound"}),
        (margin_at, {"merged", "domain"}),
        (pgd, {"domain"}),
    ],
)
def test_one_set_of_defaults(function: Callable, names: set[str]) -> None:
    ours, agreed = defaults(function), vars(SearchSettings())
    assert ours.keys() == names and ours == {name: agreed[name] for name in names}


def test_attacks_share_the_domain_and_a_run_shares_all() -> None:
    assert signature(attacked_radius).parameters["domain"].default == SearchSettings().domain
    assert TrainConfig().search == SearchSettings()
    other = TrainConfig(merged=False, domain=None, solver="bisect", eval_xtol=1e-3, eval_rtol=1e-2, xtol=0.5)
    assert other.search == SearchSettings(merged=False, domain=None, solver="bisect", xtol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"bound": "deeppoly"}, "bound: 'deeppoly' is unknown; choose from 'ibp'"),
        ({"sound": "float16"}, "sound: 'float16' is unknown; choose False, True or 'float32'"),
        ({"sound": True, "bound": "crown"}, "sound: .* for bound='ibp' only"),
        ({"domain": (1.0, 0.0)}, r"domain: \(1.0, 0.0\) is not \(low, high\) with low < high, nor None"),
        ({"domain": "pixels"}, "domain: 'pixels' is not"),
        (
            {"solver": "newton"},
            "solver = 'newton': accepted is brentq, bisect, chandrupatla, log-secant",
        ),
        ({"xtol": 0.0}, "xtol = 0.0: accepted is a finite number > 0 and < 1"),
        ({"xtol": True}, "xtol = True: accepted is a finite number > 0 and < 1"),
        ({"rtol": float("nan")}, "rtol = nan: accepted is a finite number >= 0 and < 1"),
        ({"maxiter": 0}, "maxiter = 0: accepted is a whole number >= 1"),
        ({"maxiter": 2.0}, "maxiter = 2.0: accepted is a whole number >= 1"),
    ],
)
def test_settings_are_checked_where_they_are_made(setting: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchSettings(**setting)


class Power:
    """Margins that grow like a power of the box's width, whatever the input; -3 at the input itself."""

    monotone, tile = True, 1

    def __init__(self, exponent: float, factor: float = 1.0) -> None:
        self.exponent, self.factor = exponent, factor

    def margins(self, box: Box, y: Tensor, *, merged: bool = True) -> Tensor:
        width = (box.upper - box.lower).flatten(1).amax(1, keepdim=True)
        return torch.cat([0 * width, self.factor * width**self.exponent - 3], 1)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 4.0])
def test_a_power_is_known_exactly(exponent: float) -> None:
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    growth = MarginGrowth.of(Power(exponent), x, 0.4, True, None)
    eps = torch.tensor([0.001, 0.013, 0.1, 0.25], dtype=x.dtype)  # the first is below all that was looked at
    torch.testing.assert_close(growth.guess(-((2 * eps) ** exponent)), eps)
    torch.testing.assert_close(growth.slope(eps), torch.full_like(eps, 1 / exponent))


def test_close_to_the_cap_a_search_begins_there() -> None:
    growth = MarginGrowth.of(Power(1.0), torch.zeros(1, 4), 0.4, True, None)
    eps = torch.tensor([0.9 * CLOSE, 1.1 * CLOSE, 3.0]) * 0.4
    torch.testing.assert_close(growth.guess(-2 * eps), torch.tensor([0.9 * CLOSE * 0.4, 0.4, 0.4]))


@pytest.mark.parametrize("factor", [0.0, -1.0, torch.nan, torch.inf])
def test_margins_that_do_not_grow_tell_nothing(factor: float) -> None:
    network, x = Power(1.0, factor), torch.zeros(2, 4)
    slope = MarginGrowth.of(network, x, 0.4, True, None).slope(torch.tensor([0.1, torch.nan]))
    assert slope.tolist() == pytest.approx([1 / EXPONENT] * 2)
    y, clean = torch.zeros(2, dtype=torch.long), torch.tensor([-3.0, -3.0])
    found = search_radius(network, x, y, clean, 0.4, SearchSettings(domain=None))
    if factor <= 0:  # certified wherever one looks: the cap is the only place where that was done
        assert (found.radius == torch.tensor(0.4)).all() and (found.evaluations == 2).all()
    else:
        assert (found.radius < 1e-6).all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (20,), (4, 16), (1, 1, 1), (2, 4, 4, 4)])
def test_the_image_is_made_for_every_shape(shape: tuple[int, ...]) -> None:
    image = probe_image(torch.zeros(5, *shape), (-1.0, 2.0))
    assert image.shape == (1, *shape) and set(image.unique().tolist()) <= {-1.0, 2.0}


def test_it_costs_one_small_pass_and_saves_many_evaluations(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = trained.x[:200], trained.y[:200]
    with torch.no_grad():
        clean = clean_margin(trained.model(x), y)
    network, rows = freeze(trained.model), []
    margins = network.margins
    monkeypatch.setattr(network, "margins", lambda box, y, **kw: rows.append(len(y)) or margins(box, y, **kw))

    settings = SearchSettings(xtol=1e-6, rtol=0.0)

    cap = 4 * trained.eps_max  # so that most roots lie inside
    informed, spent = search_radius(network, x, y, clean, cap, settings), sum(rows)
    rows.clear()
    monkeypatch.setattr(MarginGrowth, "of", lambda *args: None)
    plain = search_radius(network, x, y, clean, cap, settings)
    inside = plain.status == RadiusStatus.CONVERGED
    assert inside.sum() > 50 and spent < sum(rows)
    saved = plain.evaluations[inside].double().mean() - informed.evaluations[inside].double().mean()
    assert saved > 0.5
    assert (informed.radius - plain.radius).abs().max() <= 1e-6
    assert torch.equal(informed.status, plain.status)


def test_the_guess_is_near_the_radius(trained: Trained) -> None:
    x, y, cap = trained.x[:200], trained.y[:200], 4 * trained.eps_max
    found = certified_radius(trained.model, x, y, cap)
    inside = (found.status == RadiusStatus.CONVERGED) & (found.radius > RANGE * cap) & (found.radius < CLOSE * cap)
    with torch.no_grad():
        clean = clean_margin(trained.model(x), y)[inside]
        growth = MarginGrowth.of(freeze(trained.model), x, cap, True, (0.0, 1.0))
    assert len(growth.eps) == POINTS and (growth.rise.diff() >= 0).all()
    off = (growth.guess(clean) / found.radius[inside]).log().abs()
    assert inside.sum() > 50 and off.median() < 0.7  # a factor of two


def test_a_limit_may_be_written_as_a_fraction(digits_net: Trained) -> None:
    model, x, y = digits_net.model, digits_net.x[:8], digits_net.y[:8]
    text, number = (certified_radius(model, x, y, eps).radius for eps in ("8/255", 8 / 255))
    assert torch.equal(text, number)
    assert certify(model, (x, y), "8/255", progress=False).settings["eps_max"] == 8 / 255
