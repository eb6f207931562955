"""The ablations: tables and sentences of made-up runs, and radii that more iterations bring nearer."""

from dataclasses import replace

import numpy as np
import pytest

import acertlab as al
from acertlab.analysis.paper import ablations, tables as paper
from acertlab.analysis.paper.ablations import ACERT, ACERT_FAST, FAST_IBP, NO_RAMP, RAMP, Setting
from acertlab.training.cost import estimate
from tests.helpers.synthetic_runs import run_of


def test_settings_are_those_of_the_paper():
    ramp = [("fast-ibp", 0), ("fast-ibp", 0.8), ("acert", 0), ("acert", 0.25)]
    assert [(setting.method, setting.kappa) for setting in RAMP] == ramp
    wanted = ablations.settings([2, 100])
    assert len(wanted) == len(set(wanted)) == 4 + 4 + 3
    assert [setting.iterations for setting in ablations.root_settings([2, 100])] == [0, 0, 2, 100]
    assert ablations.iteration_counts("1 2 100") == [1, 2, 100] and ablations.iteration_counts(5) == [5]
    for wrong in ("", "0 1", "2 1", "1 1", "2, 3", "1.5", "-1"):
        with pytest.raises(ValueError, match="rising whole numbers"):
            ablations.iteration_counts(wrong)


def test_the_table_without_the_ramp_and_its_sentence():
    runs = {setting: [run_of(0.81, 0.81), run_of(0.83, 0.83)] for setting in RAMP}
    runs |= {setting: [run_of(0.64 + i / 100, 0.64 + i / 100)] * 2 for i, setting in enumerate(NO_RAMP)}
    table = ablations.ramp_table(runs)
    assert table["ours", "ART"].to_numpy() == pytest.approx([64, 65, 66, 67])
    assert table["ours", "ΔART"].to_numpy() == pytest.approx([-18, -17, -16, -15])
    assert (table["ours", "± ART"] == 0).all()
    assert list(table["paper", "ΔART"]) == [-13.45, -6.52, -5.64, -6.15]
    said = ablations.ramp_sentence(table)
    assert said.startswith("Here training without the ramp changes ART by -18.00 to -15.00 points; the least is lost")
    assert "by ACERT at kappa 0.25, the highest ART without it has ACERT at kappa 0.25 (67.00 %)." in said
    assert (
        "the least is lost by ACERT at kappa 0, the highest ART without it has ACERT at kappa 0.25 (45.43 %)." in said
    )
    assert "with ramp" in ablations.shown(table).to_html()
    some = {FAST_IBP: [run_of(0.15, 0.1), run_of(0.3, 0.1)], ACERT: [run_of(0.9, 0.5)]}
    assert ablations.guess_sentence(some, 10) == "Hardly better than guessing: FastIBP, kappa 0 (1 of 2)."
    assert ablations.guess_sentence({ACERT: [run_of(0.9, 0.5)]}, 10) == "Hardly better than guessing: none."


def test_the_table_of_iterations_and_its_sentence():
    settings = ablations.root_settings([1, 2, 100])
    runs = {setting: [run_of(0.8, 0.8 + i / 100, seconds=10 + i, passes=i)] for i, setting in enumerate(settings)}
    table = ablations.root_table(runs, [1, 2, 100], {setting: 0.01 * (i + 1) for i, setting in enumerate(settings)})
    assert list(table.index) == [("FastIBP", 0), ("ACERT-fast", 0), ("ACERT", 1), ("ACERT", 2), ("ACERT", 100)]
    assert table["ours", "step ratio"].to_numpy() == pytest.approx([1, 2, 3, 4, 5])
    assert table["ours", "runtime ratio"].to_numpy() == pytest.approx([1, 1.1, 1.2, 1.3, 1.4])
    assert list(table["ours", "passes"]) == [0, 1, 2, 3, 4]  # after the ramp alone
    assert table["paper", "ART"].isna().to_list() == [False, False, True, False, False]
    said = ablations.root_sentence(table)
    assert "Here 2 iterations instead of 100 change ART by -0.49 points and take a step from 5.00 to 4.00 times" in said
    assert (
        "In the paper 2 iterations instead of 100 change ART by -0.04 points and take a step from 11.00 to 3.50" in said
    )


def test_who_leads_where():
    high, low = np.array([0.3] * 8 + [0.0] * 2), np.array([0.1] * 9 + [0.05])
    said = ablations.lead_sentence({"a": low, "b": high}, "a", "b", 0.4)
    assert said == "More images are certified by a from 0 to 0.1, by b from 0.101 to 0.3."
    one_point = ablations.lead_sentence({"a": np.array([0.4, 0.0]), "b": np.array([0.399, 0.399])}, "a", "b", 0.4)
    assert one_point == "More images are certified by b from 0 to 0.399, by a at 0.4."
    assert "equally many" in ablations.lead_sentence({"a": low, "b": low}, "a", "b", 0.4)


def test_more_iterations_are_nearer(tmp_path):
    data = al.load_dataset("digits").first(400)
    config = paper.configuration("digits", "acert", 0.0, budget="fast", epochs=3)
    run = al.train(replace(config, width=4), data, tmp_path, progress=False)
    errors = ablations.radius_errors(run, data, (0, 1, 2, 100), samples=128).set_index("iterations")
    assert errors["mean"].is_monotonic_decreasing and errors.passes.is_monotonic_increasing
    assert errors.passes[0] == 0 and errors["mean"][0] > 10 * errors["mean"][2] > errors["mean"][100]
    assert errors.largest[100] < 0.05  # % of eps_max
    ours = ablations.radius_errors(run, data, (0, 2, 100), samples=128, solver="log-secant").set_index("iterations")
    assert ours["mean"][0] == errors["mean"][0] and ours.largest[100] < 0.05 and ours["mean"][2] > ours["mean"][100]
    with pytest.raises(ValueError, match="solver = 'brent': accepted is brentq"):
        ablations.radius_errors(run, data, (0,), solver="brent")
    spent = ablations.step_seconds({setting: [run] for setting in ablations.root_settings([2])}, [2], data)
    assert list(spent) == [FAST_IBP, ACERT_FAST, Setting("acert", 0.0, "root-2")] and min(spent.values()) > 0
    step_ratio, runtime_ratio = estimate.beside_fast_ibp(run, data, validation=1e6)
    assert step_ratio > 0 and runtime_ratio == pytest.approx(1.0)  # all of the time is validation
