"""The figures of an analysis show the numbers that were computed, in percent."""

from dataclasses import replace

import numpy as np
import pytest

from acertlab.analysis.acr_breakdown import ACRBreakdown, CapSensitivity, acr_breakdown, cap_sensitivity
from acertlab.analysis.fronts import Analysis, analyse
from acertlab.data.run_table import load_runs
from acertlab.visualization import comparison as figures
from acertlab.visualization.style import method_style
from tests.helpers.synthetic_runs import EPS_MAX, synthetic_radii, write_sweep


@pytest.fixture(scope="module")
def analysis(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    root = write_sweep(tmp_path_factory.mktemp("sweep"), synthetic_radii({"fast-ibp": 1.0, "acert": 1.3}, n=200))
    return analyse(load_runs(root), resamples=60)


@pytest.fixture(scope="module")
def sensitivity(analysis: Analysis) -> CapSensitivity:
    return cap_sensitivity(analysis.samples, analysis.resamples)


@pytest.fixture(scope="module")
def breakdowns(analysis: Analysis) -> list[ACRBreakdown]:
    return [
        acr_breakdown(analysis.samples, analysis.resamples, best.method, best.kappa, EPS_MAX, [0.05, EPS_MAX])
        for best in analysis.tuned
    ]


def test_fronts(analysis: Analysis) -> None:
    figure = figures.fronts(analysis)
    shown = {trace.name: trace for trace in figure.data if trace.mode == "markers+text"}
    assert list(shown) == ["FastIBP", "ACERT"]
    cells = analysis.samples.settings
    for method, name in (("fast-ibp", "FastIBP"), ("acert", "ACERT")):
        of_method = (cells.method == method).to_numpy()
        np.testing.assert_allclose(shown[name].x, 100 * analysis.scores.acc[0, of_method])
        np.testing.assert_allclose(shown[name].y, 100 * analysis.scores.acr[0, of_method])
        assert (shown[name].marker.color, shown[name].marker.symbol) == method_style(method)[1:]
        low, high = (np.percentile(100 * analysis.scores.acr[1:, of_method], q, axis=0) for q in (2.5, 97.5))
        np.testing.assert_allclose(np.add(shown[name].y, shown[name].error_y.array), high)
        np.testing.assert_allclose(np.subtract(shown[name].y, shown[name].error_y.arrayminus), low)
    assert sum(trace.fill == "toself" for trace in figure.data) == 2


def test_difference(analysis: Analysis) -> None:
    (pair,) = analysis.comparisons
    figure = figures.difference(pair)
    assert figure.layout.title.text == "ACR at equal accuracy: ACERT minus FastIBP"
    line = next(trace for trace in figure.data if trace.mode == "lines" and trace.fill is None)
    np.testing.assert_allclose(line.y, 100 * pair.band.difference)
    assert (figure.layout.shapes[0].y0, figure.layout.shapes[0].line.width) == (0, 1.5)


def test_each_image_stands_in_one_bar(breakdowns: list[ACRBreakdown]) -> None:
    """Also one whose radius lies just below eps_max."""
    radii = EPS_MAX * np.array([0.0, 0.5, 1 - 5e-7, 1.0])
    (bars,) = figures.radius_shares([replace(breakdowns[0], radii=radii, zero=0.25, full=0.25)]).data
    assert sum(bars.y) == pytest.approx(100)


def test_what_cannot_be_compared_has_no_figure(tmp_path) -> None:
    radii = synthetic_radii({"fast-ibp": 1.0}, (0.0,), n=100) | synthetic_radii({"acert": 1.0}, (0.9,), n=100)
    (pair,) = analyse(load_runs(write_sweep(tmp_path, radii)), resamples=20).comparisons
    with pytest.raises(ValueError, match="do not overlap"):
        figures.difference(pair)


def test_art_over_caps(sensitivity: CapSensitivity) -> None:
    figure = figures.art_over_caps(sensitivity, EPS_MAX)
    for trace in (trace for trace in figure.data if trace.mode == "lines+markers"):
        rows = sensitivity.table[sensitivity.table.method.map({"fast-ibp": "FastIBP", "acert": "ACERT"}) == trace.name]
        np.testing.assert_allclose(trace.y, 100 * rows.art)
    assert [shape.x0 for shape in figure.layout.shapes] == [EPS_MAX, *(c.eps_max for c in sensitivity.crossings)]


def test_the_parts_of_an_acr(breakdowns: list[ACRBreakdown]) -> None:
    curve = figures.certified_areas(breakdowns).data[0]
    area = np.trapezoid(curve.y, curve.x) / EPS_MAX
    assert area == pytest.approx(100 * breakdowns[0].acr, abs=0.3)
    assert curve.name.endswith(f"area {100 * breakdowns[0].acr:.1f} %")
    bars = figures.radius_shares(breakdowns).data[0]
    assert sum(bars.y) == pytest.approx(100) and (bars.x[0], bars.x[-1]) == ("0", "100")
    assert (bars.y[0], bars.y[-1]) == (100 * breakdowns[0].zero, 100 * breakdowns[0].full)
    easy = figures.concentration(breakdowns).data[0]
    assert easy.y[2] == pytest.approx(100 * breakdowns[0].easy)
    classes = figures.class_radii(breakdowns).data[1]
    assert dict(zip(map(int, classes.x), classes.y, strict=True)) == {
        k: 100 * acr for k, acr in breakdowns[1].per_class.items()
    }
    fixed = figures.fixed_eps(breakdowns).data[1]
    assert [*fixed.x] == ["0.05", "0.2"]
    assert [*fixed.y] == [100 * share.estimate for share in breakdowns[1].certified.values()]


def test_one_method_twice_differs_by_its_dash(analysis: Analysis) -> None:
    twice = [
        acr_breakdown(analysis.samples, analysis.resamples, "acert", kappa, EPS_MAX, [0.1]) for kappa in (0.0, 0.9)
    ]
    lines = [trace.line for trace in figures.certified_areas(twice).data if trace.mode == "lines"]
    assert [line.dash for line in lines] == ["solid", "dash"] and lines[0].color == lines[1].color
