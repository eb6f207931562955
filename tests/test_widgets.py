"""What a widget shows after a slider moves is what the package computes; driven headlessly, by setting values."""

import numpy as np
import pytest
import torch

from acertlab import metrics, models, widgets
from acertlab.margin import certified_margin
from acertlab.radius import certified_radius
from acertlab.runs import load_radii, load_runs, rescore

CAP = 0.25


@pytest.fixture(scope="module")
def runs(synthetic_runs):
    return load_runs(synthetic_runs)


def same(live, figure):
    """Every trace of a live figure holds what the pure figure holds."""
    assert len(live.data) == len(figure.data)
    for shown, wanted in zip(live.data, figure.data, strict=True):
        assert shown.to_plotly_json().keys() >= (wanted.to_plotly_json().keys() - {"uid"})
        for axis in "xyz":
            if axis in wanted:
                np.testing.assert_array_equal(np.asarray(shown[axis]), np.asarray(wanted[axis]))
        assert shown.name == wanted.name
        assert getattr(shown, "source", None) == getattr(wanted, "source", None)
    assert live.layout.title.text == figure.layout.title.text


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


class TestPureParts:
    def test_radii_near_pools_the_seeds_of_the_nearest_kappa(self, runs):
        radii = load_radii(runs)
        curves = widgets.radii_near(runs, radii, 0.1)
        assert list(curves) == ["Standard, kappa = 1", "ACERT, kappa = 0"]
        pooled = np.concatenate([radii[p] for p in runs.path if "acert-0.0" in p])
        np.testing.assert_array_equal(curves["ACERT, kappa = 0"].radii, pooled)
        assert "ACERT, kappa = 0.5" in widgets.radii_near(runs, radii, 0.4)
        assert "ACERT, kappa = 0" in widgets.radii_near(runs, radii, 0.25)  # equally near: the smaller

    def test_scores_at(self, runs):
        radii = load_radii(runs)
        scores = widgets.scores_at(runs, radii, 0.5, 0.1, 0.05).set_index("method")
        path = next(p for p in runs.path if "acert-0.5" in p)
        assert scores.loc["ACERT", "ACR"] == pytest.approx(1000 * np.minimum(radii[path], 0.1).mean())
        assert scores.loc["ACERT", "certified at 0.05"] == pytest.approx(100 * np.mean(radii[path] >= 0.05))
        assert scores.loc["ACERT", "ART"] == pytest.approx((scores.loc["ACERT", "ACR"] * 90) ** 0.5)


class TestParetoExplorer:
    def test_every_slider_redraws_what_the_package_computes(self, synthetic_runs, runs):
        radii = load_radii(runs)
        box = widgets.pareto_explorer(synthetic_runs)
        (eps_max, kappa, eps), label, tradeoff, curves = box.children[0].children, *box.children[1:]
        assert (eps_max.value, kappa.value, eps.value) == (0.2, 0.0, 0.1)
        assert not any(slider.continuous_update for slider in (eps_max, kappa, eps))
        for slider, value in [(eps_max, 0.05), (kappa, 0.5), (eps, 0.02), (eps_max, CAP), (eps, 0.25), (kappa, 1.0)]:
            slider.value = value
            at_eps = min(eps.value, eps_max.value)
            figures = widgets.pareto_figures(runs, radii, kappa.value, eps_max.value, at_eps)
            same(tradeoff, figures[0])
            same(curves, figures[1])
            rescored = metrics.mean_over_seeds(rescore(runs, radii, eps_max.value))
            np.testing.assert_allclose(tradeoff.data[2].y, 100 * rescored[rescored.method == "acert"].acr)
            scores = widgets.scores_at(runs, radii, kappa.value, eps_max.value, at_eps)
            assert all(f"{art:.4g}" in label.value for art in scores.ART)

    def test_starts_where_it_is_told(self, runs):
        sliders = widgets.pareto_explorer(runs, eps_max=0.1, kappa=0.6).children[0].children
        assert (sliders[0].value, sliders[1].value) == (0.1, 0.5)

    def test_nothing_to_explore(self, runs, tmp_path):
        with pytest.raises(ValueError, match="no finished run"):
            widgets.pareto_explorer(tmp_path)
        with pytest.raises(ValueError, match="several dataset"):
            widgets.pareto_explorer(runs.assign(dataset=["a", "b", "b", "b"]))


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
        radii = certified_radius(model, x, y, 0.05).radius
        assert radii[0] == 0 < radii[1:].min()
        box = widgets.radius_explorer(model, x, y, 0.05, classes="abcd")
        (image, eps), label, *figures = box.children[0].children, *box.children[1:]
        for slider, value in [(image, 3), (eps, 0.0), (eps, 0.05), (image, 0), (eps, float(radii[4]) / 2), (image, 4)]:
            slider.value = value
            one = slice(image.value, image.value + 1)
            wanted = widgets.radius_figures(
                model, x[one], y[one], eps.value, 0.05, float(radii[image.value]), classes="abcd"
            )
            for live, figure in zip(figures, wanted, strict=True):
                same(live, figure)
            margin = certified_margin(model, x[one], y[one], eps.value).item()
            assert f"R_cert = {margin:.4g}" in label.value
            assert ("certificate broken" in label.value) == (margin >= 0)

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
