"""What the explorer shows after a control moves is what the package computes; driven by setting values."""

import statistics
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from acertlab.analysis import seeds, tradeoff
from acertlab.analysis.seeds import rescore
from acertlab.data.run_table import load_radii
from acertlab.radius import metrics
from acertlab.visualization import widgets
from acertlab.visualization.widgets import explorer
from tests.helpers.figures import same

CAP = 0.25

VIEWS = {  # a movement a line: the control and where it goes
    "eps_max": [0.05, CAP, 0.12],
    "kappa": [0.5, 0.3, 1.0, 0.0],
    "eps": [0.02, 0.25, 0.0],
    "picked": [0, 2],
    "accuracy": [0.9],
    "first": ["acert"],
    "second": ["standard", "acert"],
}


class TestParetoExplorer:
    def test_every_control_redraws_what_the_package_computes(self, synthetic_runs, networks):
        box = widgets.pareto_explorer(synthetic_runs)
        view = widgets.first_view(networks)
        assert {name: box.controls[name].value for name in VIEWS} == {name: getattr(view, name) for name in VIEWS}
        for name, values in VIEWS.items():
            for value in values:
                box.controls[name].value = value
                view = replace(view, **{name: value})
                for part, figure in widgets.pareto_figures(networks, view).items():
                    same(box.parts[part], figure)
                for part, text in widgets.pareto_texts(networks, view).items():
                    assert box.parts[part].value == text

    def test_what_is_computed_is_what_metrics_say(self, runs, networks):
        radii = load_radii(runs)
        view = widgets.first_view(networks, eps_max=0.12, kappa=0.5, eps=0.05)
        table = seeds.mean_over_seeds(rescore(runs, radii, 0.12))
        figures = widgets.pareto_figures(networks, view)
        np.testing.assert_allclose(figures["tradeoff"].data[2].y, 100 * table[table.method == "acert"].acr)
        path = next(p for p in runs.path if "acert-0.5" in p)
        curve = next(trace for trace in figures["curves"].data if trace.name == "ACERT, kappa = 0.5")
        np.testing.assert_allclose(
            curve.y, 100 * metrics.certified_accuracy(radii[path], np.asarray(curve.x)), atol=1e-9
        )
        scores = widgets.scores_at(networks, view).set_index("method").loc["ACERT"]
        assert scores["ACR"] == pytest.approx(100 * np.minimum(radii[path], 0.12).mean() / 0.12)
        assert scores["certified at 0.05"] == pytest.approx(100 * np.mean(radii[path] >= 0.05))
        assert scores["network"] == "trained"

    def test_a_kappa_between_trained_ones_is_interpolated_and_says_so(self, networks):
        view = widgets.first_view(networks, kappa=0.125)
        assert "interpolated between kappa = 0 and 0.5" in widgets.pareto_texts(networks, view)["kappa_text"]
        ring = widgets.pareto_figures(networks, view)["tradeoff"].data[3]
        ends = tradeoff.means(networks, 0.2).acr[1:]
        # ACERT alone: the standard method has no network with this kappa
        assert list(ring.y) == [pytest.approx(100 * (0.75 * ends[1] + 0.25 * ends[2]))]

    def test_controls(self, runs):
        controls = widgets.pareto_explorer(runs, eps_max=0.1, kappa=0.604).controls
        assert (controls["eps_max"].value, controls["kappa"].value) == (0.1, 0.6)
        assert not any(controls[name].continuous_update for name in ("kappa", "eps_max", "eps", "accuracy"))
        labels = dict(controls["kappa"].options)
        assert [label for label in labels if "trained" in label] == ["0 (trained)", "0.5 (trained)", "1 (trained)"]
        assert len(labels) == 101

    def test_a_click_picks_the_network(self, runs):
        box = widgets.pareto_explorer(runs)
        box.controls["picked"].value = 0
        acert = box.parts["tradeoff"].figure.data[2]
        assert acert.name == "ACERT"
        assert acert.x[1] == 90
        box.parts["tradeoff"].clicked = [2, 1]  # what the browser sends: trace and point
        assert box.controls["picked"].value == 2
        assert list(box.parts["tradeoff"].figure.data[4].x) == [90]
        assert "ACERT, kappa = 0.5" in box.parts["picked_text"].value
        for mark in ([3, 0], [0, 5]):  # a circle, the map
            box.parts["tradeoff"].clicked = mark
            assert box.controls["picked"].value == 2

    def test_equal_accuracy(self, networks):
        view = replace(widgets.first_view(networks), first="standard", second="acert", accuracy=0.9)
        text = widgets.pareto_texts(networks, view)["pair_text"]
        standard, acert = widgets.pair_scores(networks, view).itertuples()
        assert f"the ACR of ACERT is {acert.ACR / standard.ACR:.3f} x that of Standard" in text
        beyond = widgets.pareto_texts(networks, replace(view, accuracy=0.95))["pair_text"]
        assert "At a standard accuracy of 95 % there is no comparison" in beyond
        assert "the front of ACERT holds 90 to 90 %" in beyond
        curves = widgets.pareto_figures(networks, replace(view, accuracy=0.95))["pair"]
        assert np.isnan(np.asarray(curves.data[0].y)).all()

    def test_names_cannot_be_markup(self, runs):
        named = runs.assign(method=["<b>x", *runs.method[1:]])
        made = tradeoff.pool_seeds(named, load_radii(named))
        assert "<b>x" not in widgets.pareto_texts(made, widgets.first_view(made))["kappa_text"]

    def test_nothing_to_explore(self, runs, tmp_path):
        with pytest.raises(ValueError, match="no finished run"):
            widgets.pareto_explorer(tmp_path)

    def test_with_one_method_there_is_no_pair(self, runs):
        one = runs[runs.method == "acert"]
        points = tradeoff.pool_seeds(one, load_radii(one))
        view = widgets.first_view(points)
        assert widgets.pareto_texts(points, view).keys() == {"kappa_text", "picked_text", "command"}
        figures = widgets.pareto_figures(points, view)
        assert "pair" not in figures and len(figures["tradeoff"].data[-1].x) == 0
        box = widgets.pareto_explorer(one)
        assert box.controls["tab"].titles == ("Every radius", "One network", "Its images")


def many_runs(count=100, n=10_000):
    """A table of runs, and their radii, as many as the explorer has to be quick with."""
    rng, rows, radii = np.random.default_rng(0), [], {}
    for i in range(count):
        method, kappa = ("ibp", "fast-ibp", "acert", "acert-fast")[i % 4], round(0.04 * (i // 4), 2)
        r = rng.uniform(0, 0.6 - 0.2 * kappa, n).clip(max=0.5) * (rng.random(n) < 0.85 + 0.1 * kappa)
        radii[str(i)] = r
        rows.append(
            {
                "path": str(i),
                "method": method,
                "kappa": kappa,
                "acc": np.mean(r > 0),
                "n": n,
                "acr": np.minimum(r, 0.4).mean() / 0.4,
                "dataset": "mnist",
                "seed": 0,
                "eps_max": 0.4,
                "radius_cap": 0.5,
                "art": 0.0,
            }
        )
    return pd.DataFrame(rows), radii


def test_a_movement_takes_less_than_a_tenth_of_a_second(monkeypatch):
    """Of this process's time, with room for a slow machine; `pytest -s -k tenth` prints what it was."""
    runs, radii = many_runs()
    monkeypatch.setattr(explorer, "load_radii", lambda _runs: radii)
    controls = widgets.pareto_explorer(runs).controls
    moves = {
        "kappa": [k for _, k in controls["kappa"].options[3:90:10]],
        "eps_max": np.linspace(0.1, 0.45, 9),
        "eps": np.linspace(0.05, 0.3, 9),
        "picked": range(5, 95, 10),
        "accuracy": np.linspace(0.87, 0.93, 9),
    }
    for name, values in moves.items():
        seconds = []
        for value in values:
            start = time.process_time()
            controls[name].value = value
            seconds.append(time.process_time() - start)
        print(f"{name:<9} median {1000 * statistics.median(seconds):5.1f} ms, most {1000 * max(seconds):5.1f} ms")
        assert statistics.median(seconds) < 0.2
