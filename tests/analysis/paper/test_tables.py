"""The paper's figures: they agree with each other but where we say so; and what stands beside them is ours."""

import math
from dataclasses import replace
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
import torch

import acertlab as al
from acertlab.analysis.paper import tables as paper
from acertlab.analysis.paper.tables import ROWS, Row
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


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row.table}-{row.dataset}-{row.method}-{row.kappa}{row.variant}"
)
def test_every_row_has_its_configuration(row):
    config = paper.configuration(row.dataset, row.method, row.kappa, variant=row.variant)
    assert (config.dataset, config.method, config.kappa) == (row.dataset, row.method, row.kappa)
    assert (config.eps_max, config.model, config.width) == (row.eps_max, "cnn7", 64)
    setting = "prototype" if row.method == "fast-ibp" else ""  # which the paper's code trained, not Shi et al.'s
    preset = replace(al.preset(row.dataset, row.method, setting=setting), kappa=row.kappa)
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
    variants = {"acert": "root-0", "acert-fast": ""}
    configs = [paper.configuration("digits", name, 0.0, variant=of, budget="smoke") for name, of in variants.items()]
    runs = [al.train(config, data, tmp_path / config.method, progress=False) for config in configs]
    pd.testing.assert_frame_equal(*(run.radii for run in runs))


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
    fast = paper.configuration("mnist", "fast-ibp", 0.0)
    assert fast == replace(al.preset("mnist", "fast-ibp", setting="prototype"), kappa=0.0, seed=0)
    assert paper.label(fast, images("mnist", 60_000, 10_000)).endswith(
        "; by the paper's own settings of FastIBP, not Shi et al.'s"
    )
    shi = paper.label(al.preset("mnist", "fast-ibp"), images("mnist", 60_000, 10_000))
    assert "epochs 70 instead of 100" in shi and shi.startswith("NOT a reproduction")
    few = paper.label(config, images("mnist", 600, 10_000))
    assert few == "NOT a reproduction: 600 of the 60,000 training images"
    small = paper.label(replace(config, epochs=50), images("mnist", 60_000, 500))
    settings = "its settings are not those of the budget paper (epochs 50 instead of 100)"
    assert small == f"NOT a reproduction: {settings}; 500 of the 10,000 test images"
    smoke = paper.configuration("mnist", "acert", 0.0, budget="smoke")
    assert "width 4 instead of 64" in paper.label(smoke, images("mnist", 60_000, 10_000))
    other = paper.configuration("digits", "acert", 0.0)
    absent = paper.label(other, al.load_dataset("digits"))
    assert absent == "NOT a reproduction: the paper has no acert at kappa 0 on digits"
    varied = paper.configuration("cifar10", "acert", 0.0, variant="root-2")
    assert "Table 6:" in paper.label(varied, images("cifar10", 50_000, 10_000), "root-2")
    of_another = paper.label(varied, images("cifar10", 50_000, 10_000))  # its settings are another variant's
    assert of_another.startswith("NOT")


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
    run = run_of(0.6, 0.4, means_of_batches={"acc": 0.61, "acr": 0.41, "art": 0.5})  # as 0.1.0 wrote it
    five = paper.beside([one(5, "cifar10", "acert", 0.25)], run)
    assert list(five["std"]) == [0.16, 0.32, 0.24] and list(five.ours) == pytest.approx([60, 41, 50])  # Acc pooled
    six = paper.beside([one(6, "cifar10", "acert", 0.0, "root-2")], run, step_ratio=1.9, runtime_ratio=1.1)
    assert list(six.figure[3:]) == [paper.STEP, paper.RUNTIME]
    assert six.paper[3:].to_numpy() == pytest.approx([3.5, 7.2 / 6.1]) and list(six.ours[3:]) == [1.9, 1.1]
    unmeasured = paper.beside([one(6, "cifar10", "acert", 0.0, "root-2")], run)
    assert unmeasured.ours[3:].isna().all() and unmeasured.difference[3:].isna().all()


def test_beside_nothing():
    table = paper.beside((), run_of(0.9, 0.4))
    assert list(table.figure) == ["Acc", "ACR", "ART"] and table.paper.isna().all() and table.ours.notna().all()
