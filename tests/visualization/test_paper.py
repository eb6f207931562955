"""Figures beside the paper's: a trace a setting, ours left, the paper's right."""

import numpy as np
import pandas as pd

from acertlab.analysis.paper import ablations
from acertlab.analysis.paper.ablations import NO_RAMP, RAMP
from acertlab.analysis.paper.tables import ROWS
from acertlab.visualization import paper as figures
from tests.helpers.synthetic_runs import run_of


def test_ramp_effect():
    table = ablations.ramp_table({setting: [run_of(0.8, 0.8)] for setting in (*RAMP, *NO_RAMP)})
    drawn = figures.ramp_effect(table, "ours").data
    assert len(drawn) == 2 * 4 + 2
    assert list(drawn[0].x) == [table["ours", "ART"].iloc[0], table["ours", "with ramp"].iloc[0]]


def test_root_precision():
    settings = ablations.root_settings([1, 2, 100])
    runs = {setting: [run_of(0.8, 0.8)] for setting in settings}
    table = ablations.root_table(runs, [1, 2, 100], {setting: 0.01 for setting in settings})
    drawn = figures.root_precision(table, "ours").data
    assert [list(trace.text) for trace in drawn if trace.name == "ACERT"] == [["1", "2", "100"], ["2", "100"]]


def test_radius_errors():
    errors = pd.DataFrame({"iterations": [0, 2], "largest": [30.0, 1.0], "mean": [10.0, 0.0]})
    largest, mean = figures.radius_errors(errors).data
    assert (largest.name, list(largest.y)) == ("largest", [30.0, 1.0])
    assert mean.name == "mean" and mean.y[0] == 10 and np.isnan(mean.y[1])  # an error of 0 has no place on the axis


def test_certified_beside_paper():
    low, rows = np.array([0.1] * 9 + [0.05]), [row for row in ROWS if row.table == 7 and row.dataset == "mnist"]
    figure = figures.certified_beside_paper({"a": low}, 0.4, rows, methods={"a": "acert"}, ours="ours")
    assert list(figure.data[1].y) == [97.61, 93.13] and list(figure.data[1].x) == [0, 0.3]
    assert len(figures.certified_beside_paper({"a": low}, 0.4, [], methods={"a": "acert"}, ours="ours").data) == 1
