"""The paper's figures: they agree with each other but where we say so; and what stands beside them is ours."""

import math
from dataclasses import replace
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
import torch

import acertlab as al
from acertlab import _text
from acertlab.__main__ import main
from acertlab.analysis.paper import ablations
from acertlab.analysis.paper import tables as paper
from acertlab.analysis.paper.ablations import ACERT, ACERT_FAST, FAST_IBP, NO_RAMP, RAMP, Setting
from acertlab.analysis.paper.tables import ROWS, Row
from acertlab.training import estimate as duration
from acertlab.training.loop import step
from tests.helpers.synthetic_runs import run_of

SCORED = [row for row in ROWS if row.art is not None]
# the last digit of every figure is the second decimal, but for what standard networks certify
LAST = {0.001: 0.001, 0.0002: 0.0001, 0.0004: 0.0001}


def off(row: Row) -> float:
    """By how much ART is above (or below: < 0) all that sqrt(Acc x ACR) can be, given the rounding of all three."""
    half = {value: LAST.get(value, 0.01) / 2 for value in (row.acc, row.acr, row.art)}
    low, high = (math.sqrt((row.acc + s * half[row.acc]) * (row.acr + s * half[row.acr])) for s in (-1, 1))
    return max(0.0, row.art - half[row.art] - high) - max(0.0, low - row.art - half[row.art])


def one(table: int, dataset: str, method: str, kappa: float, variant: str = "") -> Row:
    (row,) = (row for row in paper.rows(dataset, method, kappa, variant) if row.table == table)
    return row


# ---- do the paper's figures agree with each other?


def test_every_table_is_whole():
    sizes = {table: len(list(rows)) for table, rows in groupby(ROWS, key=lambda row: row.table)}
    assert sizes == {1: 17, 2: 4, 5: 2, 6: 4, 7: 8}
    assert len({(r.table, r.dataset, r.method, r.kappa, r.variant) for r in ROWS}) == len(ROWS)
    for row in ROWS:
        assert 0 < row.acc < 100 and (row.acr is None or 0 < row.acr < row.acc)
        assert (row.art is None) == (row.acr is None) == (row.table == 7) == (row.certified is not None)
        assert row in paper.rows(row.dataset, row.method, row.kappa, row.variant)


def test_art_is_the_geometric_mean_where_we_do_not_say_otherwise():
    different = list({(row.acc, row.acr): row for row in SCORED}.values())  # FastIBP and ACERT's means are there twice
    wrong = [row for row in different if off(row) != 0]
    assert (len(wrong), len(different)) == (16, 25)
    above = [row for row in wrong if off(row) > 0]
    assert above == [one(2, "cifar10", "acert", 0.0, "no-ramp")]
    for row in wrong:  # and it is never far off
        gap = row.art - math.sqrt(row.acc * row.acr)
        assert (-0.0855 < gap < 0) if row not in above else gap == pytest.approx(0.035, abs=5e-4)
    assert min(row.art - math.sqrt(row.acc * row.acr) for row in wrong) == pytest.approx(-0.085, abs=5e-4)
    assert "16 of the 25 rows" in paper.INCONSISTENT[0] and "In 15 of them" in paper.INCONSISTENT[0]
    assert "0.085" in paper.INCONSISTENT[0] and "0.035" in paper.INCONSISTENT[1]


def test_what_was_lost_without_the_ramp():
    for row in (row for row in ROWS if row.table == 2):
        with_ramp = one(1, row.dataset, row.method, row.kappa)
        assert row.art - with_ramp.art == pytest.approx(row.delta_art, abs=0.005)


def test_rows_that_are_in_two_tables_are_the_same_but_for_one_digit():
    scores = ("acc", "acr", "art")
    for table, row in ((6, one(1, "cifar10", "fast-ibp", 0.0)), (6, one(5, "cifar10", "acert", 0.0))):
        twin = one(table, "cifar10", row.method, 0.0, "root-100" if row.method == "acert" else "")
        assert all(getattr(row, name) == getattr(twin, name) for name in scores)
    assert one(5, "cifar10", "acert", 0.0).runs == 7  # beside single runs: the fourth sentence of INCONSISTENT
    for row in (row for row in ROWS if row.table == 7):
        twin = one(1, row.dataset, row.method, row.kappa)
        different = row.dataset == "cifar10" and row.kappa == 0.8
        assert row.acc - twin.acc == pytest.approx(-0.01 if different else 0.0, abs=1e-9)
        assert row.tuned == twin.tuned
    assert "62.84 in Table 1 and 62.83 in Table 7" in paper.INCONSISTENT[2]


def test_a_curve_that_falls_passes_through_table_7():
    for row in (row for row in ROWS if row.table == 7):
        acr, share = one(1, row.dataset, row.method, row.kappa).acr, row.eps / row.eps_max
        assert share * row.certified <= acr <= share * row.acc + (1 - share) * row.certified + 0.01


def test_the_best_kappa_has_the_highest_art():
    for dataset in paper.DATASETS_OF_PAPER:
        for method in ("fast-ibp", "acert"):
            tried = [row for row in ROWS if (row.table, row.dataset, row.method) == (1, dataset, method)]
            tuned = [row for row in tried if row.tuned]
            assert len(tuned) == (dataset != "mnist")
            assert all(row.art == max(r.art for r in tried) for row in tuned)


def test_the_ratio_of_the_text_is_within_the_rounding_of_the_table():
    row, base = one(6, "cifar10", "acert", 0.0, "root-2"), one(6, "cifar10", "fast-ibp", 0.0)
    low, high = (row.step - 0.005) / (base.step + 0.005), (row.step + 0.005) / (base.step - 0.005)
    assert (low, high) == pytest.approx((2.6, 5.0)) and low < 3.3 < high
    assert paper.ratios(row) == pytest.approx({paper.STEP: 3.5, paper.RUNTIME: 7.2 / 6.1})
    assert "3.5" in paper.INCONSISTENT[4] and "2.6 to 5" in paper.INCONSISTENT[4]


# ---- which row, and what trains it


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row.table}-{row.dataset}-{row.method}-{row.kappa}{row.variant}"
)
def test_every_row_has_its_configuration(row):
    config = paper.configuration(row.dataset, row.method, row.kappa, variant=row.variant)
    assert (config.dataset, config.method, config.kappa) == (row.dataset, row.method, row.kappa)
    assert (config.eps_max, config.model, config.width) == (row.eps_max, "cnn7", 64)
    preset = replace(al.preset(row.dataset, row.method), kappa=row.kappa)
    changed = {"": {}, "no-ramp": {"ramp_epochs": 0}}.get(row.variant)
    if changed is None:
        changed = {"solver": "brentq", "root_iterations": int(row.variant[5:]), "radius_history": False}
    assert config == replace(preset, **changed)


def test_rows_are_shown_with_the_columns_that_they_have():
    shown = paper.as_table(paper.rows("cifar10", "acert", 0.0)).to_html()
    assert "delta_art" not in shown and "8.8/255" in shown and "26.61" in shown and "nan" not in shown
    assert "1 †" in paper.as_table(paper.rows("cifar10", "acert", 0.25)).to_html()
    assert "0.0002" in paper.as_table(paper.rows("cifar10", "standard", 1.0)).to_html()


def test_what_is_not_in_the_paper():
    assert paper.rows("digits", "acert", 0.0) == () == paper.rows("cifar10", "acert", 0.1)
    assert paper.rows("mnist", "standard", 0.0) == paper.rows("mnist", "standard", 1.0) != ()
    assert {row.dataset for row in paper.nearby("digits", "acert", 0.0)} == {"mnist"}
    assert {row.kappa for row in paper.nearby("cifar10", "acert", 0.1)} == {0.0, 0.25}
    assert paper.nearby("folder:/x", "acert", 0.25)[0].dataset == "cifar10"
    assert paper.nearby("mnist", "mtl-ibp", 0.0) == ()


@pytest.mark.parametrize("variant", ["no_ramp", "root", "root-", "root--1", "root-2.5", " "])
def test_an_unknown_variant_is_refused(variant):
    with pytest.raises(ValueError, match='accepted is "", no-ramp, or root-N'):
        paper.configuration("cifar10", "acert", 0.0, variant=variant)


def test_a_method_that_searches_nothing_has_no_root_finder():
    with pytest.raises(ValueError, match="fast-ibp searches no radii; acert, .* do"):
        paper.configuration("cifar10", "fast-ibp", 0.0, variant="root-2")


def test_no_iterations_at_all_are_acert_fast(tmp_path):
    data = al.load_dataset("digits").first(96)
    runs = [
        al.train(paper.configuration("digits", method, 0.0, variant=variant, budget="smoke"), data, tmp_path / method,
                 progress=False)
        for method, variant in (("acert", "root-0"), ("acert-fast", ""))
    ]  # fmt: skip
    pd.testing.assert_frame_equal(*(run.radii for run in runs))


# ---- what a run may be called


def images(dataset: str, training: int, test: int) -> al.ImageData:
    x, y = torch.zeros(max(training, test), 1, 1, 1, dtype=torch.uint8), torch.zeros(max(training, test)).long()
    held_out = training // 10
    train = (x[: training - held_out], y[: training - held_out], x[:held_out], y[:held_out])
    return al.ImageData(dataset, *train, x[:test], y[:test], ("a", "b"))


def test_only_the_papers_settings_on_all_images_reproduce():
    config = paper.configuration("mnist", "acert", 0.0, seed=3, device="cpu")
    assert paper.label(config, images("mnist", 60_000, 10_000)).startswith(
        "seed 3 of the setting of Table 1 and 7: a tenth"
    )
    published = paper.label(replace(config, protocol="published"), images("mnist", 60_000, 10_000))
    assert "the epoch that is best on the test set" in published
    authors = paper.label(paper.configuration("mnist", "sabr", 0.0), images("mnist", 60_000, 10_000))
    assert authors.endswith(paper.CHECKPOINT)
    few = paper.label(config, images("mnist", 600, 10_000))
    assert few == "NOT a reproduction: 600 of the 60,000 training images"
    small = paper.label(replace(config, epochs=50), images("mnist", 60_000, 500))
    assert small == "NOT a reproduction: its settings are not those of the budget paper (epochs 50 instead of 100); " \
                    "500 of the 10,000 test images"  # fmt: skip
    smoke = paper.configuration("mnist", "acert", 0.0, budget="smoke")
    assert "width 4 instead of 64" in paper.label(smoke, images("mnist", 60_000, 10_000))
    other = paper.configuration("digits", "acert", 0.0)
    assert (
        paper.label(other, al.load_dataset("digits"))
        == "NOT a reproduction: the paper has no acert at kappa 0 on digits"
    )
    varied = paper.configuration("cifar10", "acert", 0.0, variant="root-2")
    assert "Table 6:" in paper.label(varied, images("cifar10", 50_000, 10_000), "root-2")
    assert paper.label(varied, images("cifar10", 50_000, 10_000)).startswith(
        "NOT"
    )  # its settings are another variant's


# ---- ours beside the paper's


def test_beside_the_paper():
    run = run_of(0.98, 0.95)
    table = paper.beside(paper.rows("mnist", "acert", 0.0), run)
    assert list(table.figure) == ["Acc", "ACR", "ART", "Acc", "certified at 0.3"]
    assert list(table.paper) == [98.42, 95.01, 96.69, 98.42, 93.20]
    assert table.ours.to_numpy() == pytest.approx([98, 95, 100 * (0.98 * 0.95) ** 0.5, 98, 25])
    assert table.difference.to_numpy() == pytest.approx((table.ours - table.paper).to_numpy())
    assert table["std"].isna().all()
    short = run_of(0.98, 0.95, radius_cap=0.2)  # nothing is known at 0.3
    assert np.isnan(paper.beside(paper.rows("mnist", "acert", 0.0), short).ours.iloc[-1])


def test_beside_means_of_seven_runs_and_running_times():
    run = run_of(0.6, 0.4, means_of_batches={"acc": 0.61, "acr": 0.41, "art": 0.5})
    five = paper.beside([one(5, "cifar10", "acert", 0.25)], run)
    assert list(five["std"]) == [0.16, 0.32, 0.24] and list(five.ours) == pytest.approx([61, 41, 50])
    six = paper.beside([one(6, "cifar10", "acert", 0.0, "root-2")], run, step_ratio=1.9, runtime_ratio=1.1)
    assert list(six.figure[3:]) == [paper.STEP, paper.RUNTIME]
    assert six.paper[3:].to_numpy() == pytest.approx([3.5, 7.2 / 6.1]) and list(six.ours[3:]) == [1.9, 1.1]
    unmeasured = paper.beside([one(6, "cifar10", "acert", 0.0, "root-2")], run)
    assert unmeasured.ours[3:].isna().all() and unmeasured.difference[3:].isna().all()


def test_beside_nothing():
    table = paper.beside((), run_of(0.9, 0.4))
    assert list(table.figure) == ["Acc", "ACR", "ART"] and table.paper.isna().all() and table.ours.notna().all()


@pytest.mark.parametrize(
    ("eps", "text"), [(8.8 / 255, "8.8/255"), (8 / 255, "8/255"), (1 / 255, "1/255"), (0.3, "0.3"), (0.0, "0")]
)
def test_a_radius_is_written_as_in_the_paper(eps, text):
    assert _text.printed_eps(eps) == text


# ---- how long


def test_a_duration_adds_up():
    found = duration.Duration(
        10, {"clean": 1.0, "ramp": 2.0, "after": 3.0}, {"clean": 1, "ramp": 2, "after": 3}, 5.0, 7.0
    )
    assert found.training == 10 * (1 + 4 + 9) and found.total == found.training + 6 * 5 + 7
    assert str(found).startswith("about 3.0 min: 1 epoch clean of 10 steps at 1 s, 2 epochs on the ramp")
    assert [_text.seconds_text(s) for s in (0.42, 11.8, 200, 9000, 200_000)] == [
        "0.42 s",
        "12 s",
        "3.3 min",
        "2.5 h",
        "2.3 days",
    ]


@pytest.mark.parametrize("method", ["standard", "acert"])
def test_an_estimate_leaves_no_trace_and_takes_a_few_steps(method, monkeypatch):
    data = al.load_dataset("digits").first(100)
    config = paper.configuration("digits", method, 0.0, budget="fast")
    config, taken = replace(config, batch_size=32, width=4), []
    original = step.train_step
    monkeypatch.setattr(duration, "train_step", lambda *args: taken.append(args[5]) or original(*args))
    before = torch.get_rng_state()
    found = duration.estimate(config, data, count=3)
    assert torch.equal(torch.get_rng_state(), before)
    each = 3 + duration.WARM
    assert len(taken) == 3 * each and taken[:each] == [0.0] * each and taken[-each:] == [config.eps_max] * each
    assert 0 < taken[each] < config.eps_max
    assert found.steps == 4 and found.epochs == {"clean": 1, "ramp": 10, "after": 9}
    assert min(found.step.values()) > 0 and found.validation > 0 and found.test > 0


# ---- the ablations


def test_cells_are_those_of_the_paper():
    assert [(cell.method, cell.kappa) for cell in RAMP] == [
        ("fast-ibp", 0),
        ("fast-ibp", 0.8),
        ("acert", 0),
        ("acert", 0.25),
    ]
    wanted = ablations.settings([2, 100])
    assert len(wanted) == len(set(wanted)) == 4 + 4 + 3
    assert [cell.iterations for cell in ablations.root_settings([2, 100])] == [0, 0, 2, 100]
    assert ablations.iteration_counts("1 2 100") == [1, 2, 100] and ablations.iteration_counts(5) == [5]
    for wrong in ("", "0 1", "2 1", "1 1", "2, 3", "1.5", "-1"):
        with pytest.raises(ValueError, match="rising whole numbers"):
            ablations.iteration_counts(wrong)


def test_the_table_without_the_ramp_and_its_sentence():
    runs = {cell: [run_of(0.81, 0.81), run_of(0.83, 0.83)] for cell in RAMP}
    runs |= {cell: [run_of(0.64 + i / 100, 0.64 + i / 100)] * 2 for i, cell in enumerate(NO_RAMP)}
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
    cells = ablations.root_settings([1, 2, 100])
    runs = {cell: [run_of(0.8, 0.8 + i / 100, seconds=10 + i, passes=i)] for i, cell in enumerate(cells)}
    table = ablations.root_table(runs, [1, 2, 100], {cell: 0.01 * (i + 1) for i, cell in enumerate(cells)})
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
    spent = ablations.step_seconds({cell: [run] for cell in ablations.root_settings([2])}, [2], data)
    assert list(spent) == [FAST_IBP, ACERT_FAST, Setting("acert", 0.0, "root-2")] and min(spent.values()) > 0
    step_ratio, runtime_ratio = duration.beside_fast_ibp(run, data, validation=1e6)
    assert step_ratio > 0 and runtime_ratio == pytest.approx(1.0)  # all of the time is validation


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
