"""What a widget shows after a control moves is what the package computes; driven headlessly, by setting values."""

import re
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import acertlab as al
from acertlab.analysis import seeds, tradeoff
from acertlab.analysis.seeds import rescore
from acertlab.bounds.margin import certified_margin
from acertlab.data.files import write_json
from acertlab.data.run import load_run
from acertlab.data.run_table import load_radii
from acertlab.models import architectures as models
from acertlab.radius import metrics
from acertlab.radius.certified import certified_radius
from acertlab.training.parameters import training_command
from acertlab.visualization import widgets
from acertlab.visualization.widgets import explorer, gallery

CAP = 0.25


def plain(figure):
    """A figure's traces and layout, arrays as lists; without what is only of a live one, or of one size of window."""
    content = {"data": [trace.to_plotly_json() for trace in figure.data], "layout": figure.layout.to_plotly_json()}

    def listed(value):
        if isinstance(value, dict):
            return {k: listed(v) for k, v in value.items() if k not in ("uid", "template", "width") and v is not None}
        if isinstance(value, (list, tuple, np.ndarray)):
            return [listed(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
        return "nan" if isinstance(value, float) and np.isnan(value) else value

    widths = [trace.get("width") for trace in content["data"]]  # of bars
    return listed(content) | {"bars": widths}


def same(live, figure):
    """A live figure holds what the pure one holds, in every trace and in the layout."""
    assert plain(live) == plain(figure)


class TestRescore:
    def test_the_trained_eps_max_gives_the_stored_scores(self, runs):
        again = rescore(runs, load_radii(runs), 0.2)
        np.testing.assert_allclose(again.acr, runs.acr, rtol=1e-12)
        np.testing.assert_allclose(again.art, runs.art, rtol=1e-12)

    @pytest.mark.parametrize("eps_max", [0.01, 0.1, CAP])
    def test_any_other_by_its_definition(self, runs, eps_max):
        radii = load_radii(runs)
        again = rescore(runs, radii, eps_max)
        by_hand = [sum(min(r, eps_max) for r in radii[path]) / 40 / eps_max for path in runs.path]
        np.testing.assert_allclose(again.acr, by_hand, rtol=1e-12)
        np.testing.assert_allclose(again.art, np.sqrt(0.9 * np.array(by_hand)), rtol=1e-12)
        assert (again.eps_max == eps_max).all()
        assert (runs.eps_max == 0.2).all()  # a copy

    @pytest.mark.parametrize("eps_max", [0.0, -0.1, 0.26, np.nan])
    def test_beyond_what_was_searched(self, runs, eps_max):
        with pytest.raises(ValueError, match=r"eps_max = .*accepted is > 0 and <= 0\.25"):
            rescore(runs, load_radii(runs), eps_max)

    def test_runs_trained_for_several_eps_max(self, runs):
        with pytest.raises(ValueError, match=r"trained for several eps_max \(0\.1, 0\.2\)"):
            rescore(runs.assign(eps_max=[0.1, 0.2, 0.2, 0.2]), load_radii(runs), 0.1)


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
        assert ring.y[1] == pytest.approx(100 * (0.75 * ends[1] + 0.25 * ends[2]))

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
        acert = box.parts["tradeoff"].data[2]
        assert acert.name == "ACERT"
        assert acert.x[1] == 90
        for callback in acert._click_callbacks:
            callback(acert, SimpleNamespace(point_inds=[1]), None)
        assert box.controls["picked"].value == 2
        assert list(box.parts["tradeoff"].data[4].x) == [90]
        assert "ACERT, kappa = 0.5" in box.parts["picked_text"].value

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
        with pytest.raises(ValueError, match="several dataset"):
            widgets.pareto_explorer(runs.assign(dataset=["a", "b", "b", "b"]))


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """A run on the digits, barely trained."""
    config = replace(al.preset("digits", "acert", budget="smoke"), epochs=4, ramp_epochs=3)
    folder = tmp_path_factory.mktemp("real") / "run"
    al.train(config, al.load_dataset("digits"), folder, progress=False)
    return folder


class TestGallery:
    def test_best_and_worst_with_their_ranges(self, real_run):
        run, shown = load_run(real_run), widgets.gallery_of([str(real_run)])
        positive = np.sort(run.radii.radius[run.radii.radius > 0])
        np.testing.assert_allclose(shown.certified[: shown.best], positive[::-1][: gallery.EACH])
        np.testing.assert_allclose(shown.certified[shown.best :], positive[: gallery.EACH])
        assert (shown.certified <= shown.attacked).all()
        assert shown.note == ""
        numbers = [int(title.split("no. ")[1]) for title in shown.titles]
        data = al.load_dataset("digits")
        np.testing.assert_array_equal(shown.images, al.to_float(data.test_x[numbers]))
        y = data.test_y[numbers]
        certified = torch.tensor(shown.certified, dtype=torch.float32)
        assert (certified_margin(run.load_model(), torch.tensor(shown.images), y, certified) < 0).all()
        texts = [note.text for note in widgets.gallery_figure(shown).layout.annotations]
        assert texts[0] == f"{shown.titles[0]}<br>{shown.ranges[0]}"
        assert widgets.gallery_of([str(real_run)]) is shown  # kept

    def test_without_weights_without_a_dataset(self, real_run, tmp_path):
        packed = tmp_path / "run"
        packed.mkdir()
        for name in ("config.json", "history.parquet", "radii.parquet", "result.json"):
            (packed / name).write_bytes((real_run / name).read_bytes())
        (packed / "model.safetensors").write_bytes(b"")
        shown = widgets.gallery_of([str(packed)])
        assert shown.attacked is None and shown.images is not None
        assert "No attacks" in widgets.gallery_text(shown)
        (packed / "model.safetensors").unlink()
        shown = widgets.gallery_of([str(packed)])
        assert "it lacks model.safetensors" in widgets.gallery_text(shown)
        (packed / "model.safetensors").write_bytes(b"")
        write_json(packed / "result.json", load_run(real_run).result | {"dataset": f"folder:{tmp_path}/none"})
        shown = widgets.gallery_of([str(packed)])
        assert shown.images is None
        assert "No images are shown" in widgets.gallery_text(shown)
        assert f"certified {shown.certified[0]:.3g}" in widgets.gallery_text(shown)
        assert len(widgets.gallery_figure(shown).data) == 1

    def test_in_the_explorer_once_asked_for(self, real_run):
        box = widgets.pareto_explorer(real_run.parent)
        images = next(row for row in box.children if box.controls["images"] in getattr(row, "children", ()))
        assert len(images.children) == 1
        box.controls["images"].value = True
        _, fitted, text = images.children
        live = fitted.children[0].children[0]
        same(live, widgets.gallery_figure(widgets.gallery_of([str(real_run)])))
        assert text.value.startswith("Up to the first number")
        box.controls["images"].value = False
        assert len(images.children) == 1

    def test_the_command_of_the_picked_network(self, real_run, runs, networks):
        box = widgets.pareto_explorer(real_run.parent)
        command = re.search("<pre.*?>(.*)</pre>", box.parts["command"].value, re.S).group(1)
        config = replace(al.preset("digits", "acert", budget="smoke"), epochs=4, ramp_epochs=3)
        assert command.replace("&#x27;", "'") == training_command(config)
        unfinished = widgets.pareto_texts(networks, widgets.first_view(networks))["command"]
        assert "# the run folder" in unfinished  # no command, but why


def many_runs(count=100, n=10_000):
    """A table of runs, and their radii, as many as the explorer has to be quick with."""
    rng, rows, radii = np.random.default_rng(0), [], {}
    for i in range(count):
        method, kappa = ("ibp", "fast-ibp", "acert", "acert-fast")[i % 4], round(0.04 * (i // 4), 2)
        r = rng.uniform(0, 0.6 - 0.2 * kappa, n).clip(max=0.5) * (rng.random(n) < 0.85 + 0.1 * kappa)
        radii[str(i)] = r
        rows.append({"path": str(i), "method": method, "kappa": kappa, "acc": np.mean(r > 0), "n": n,
                     "acr": np.minimum(r, 0.4).mean() / 0.4, "dataset": "mnist", "seed": 0, "eps_max": 0.4,
                     "radius_cap": 0.5, "art": 0.0})  # fmt: skip
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


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = models.mlp((1, 8, 8), 4, width=20).eval()
    x = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified
    return model, x, y


class TestRadiusExplorer:
    def test_every_slider_redraws_what_the_package_computes(self, network):
        model, x, y = network
        found = certified_radius(model, x, y, 0.05)
        assert found.radius[0] == 0 < found.radius[1:].min()
        box = widgets.radius_explorer(model, (x, y), 0.05, classes="abcd")
        radius = float(found.radius[4])
        moves = [("image", 3), ("eps", 0.0), ("eps", 0.05), ("image", 0), ("eps", radius / 2), ("image", 4)]
        for name, value in moves:
            box.controls[name].value = value
            i, eps = box.controls["image"].value, box.controls["eps"].value
            one = slice(i, i + 1)
            wanted = widgets.radius_figures(model, x[one], y[one], eps, 0.05, float(found.radius[i]), classes="abcd")
            assert wanted.keys() == box.parts.keys() - {"verdict"}
            for part, figure in wanted.items():
                same(box.parts[part], figure)
            margin = certified_margin(model, x[one], y[one], eps).item()
            assert f"R_cert = {margin:.4g}" in box.parts["verdict"].value
            assert ("certificate broken" in box.parts["verdict"].value) == (margin >= 0)

    def test_the_buttons_go_to_both_sides_of_the_radius(self, network):
        model, x, y = network
        box = widgets.radius_explorer(model, (x, y), 0.5)
        box.controls["image"].value = 2
        radius = float(certified_radius(model, x[2:3], y[2:3], 0.5).radius)
        at, beyond = box.children[0].children[-1].children
        beyond.click()
        assert "certificate broken" in box.parts["verdict"].value
        at.click()
        assert box.controls["eps"].value == pytest.approx(radius, rel=1e-6)
        assert "certificate broken" not in box.parts["verdict"].value

    def test_a_dataset(self):
        data = al.load_dataset("digits")
        model = models.mlp(data.in_shape, data.num_classes, width=20).eval()
        box = widgets.radius_explorer(model, data, images=7)
        assert (box.controls["image"].max, box.controls["eps"].max) == (6, 0.2)
        assert [trace.name for trace in box.parts["logits"].data[:1]] == ["true class"]

    def test_what_is_needed(self, network):
        model, x, y = network
        with pytest.raises(ValueError, match="eps_max: is needed where data are tensors"):
            widgets.radius_explorer(model, (x, y))
        with pytest.raises(ValueError, match="data: holds no images"):
            widgets.radius_explorer(model, (x[:0], y[:0]), 0.1)

    def test_certified_up_to_the_radius_and_not_beyond(self, network):
        model, x, y = network
        found = certified_radius(model, x, y, 0.5)
        for i in range(1, 6):
            one = slice(i, i + 1)
            assert widgets.certificate_at(model, x[one], y[one], float(found.radius[i])).margin < 0
            assert widgets.certificate_at(model, x[one], y[one], float(found.upper[i])).margin >= 0

    def test_certificate_at(self, network):
        model, x, y = network
        found = widgets.certificate_at(model, x[1:2], y[1:2], 0.01)
        wrong = torch.arange(4) != y[1]
        difference = found.logits.upper[0][wrong].max() - found.logits.lower[0, y[1]]
        assert found.margin_eq3 == pytest.approx(float(difference), rel=1e-5)
        assert found.margin <= found.margin_eq3 + 1e-6

    def test_margins_over_is_the_margin_at_each_eps(self, network):
        model, x, y = network
        eps = np.linspace(0, 0.1, 7)
        one_by_one = [certified_margin(model, x[1:2], y[1:2], float(e)).item() for e in eps]
        np.testing.assert_allclose(widgets.margins_over(model, x[1:2], y[1:2], eps), one_by_one, atol=1e-6)
