"""Figures of radii hold the numbers they are given, in percent where shown."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from acertlab import visualization as plots


class TestRadiusRanges:
    CERTIFIED = {"ibp": [0.1, 0.0, 0.2], "crown": [0.15, 0.05, 0.2]}  # noqa: RUF012
    ATTACKED = [0.18, 0.06, np.inf]  # noqa: RUF012

    def test_proved_unknown_and_attacked_meet(self):
        figure = plots.radius_ranges(self.CERTIFIED, self.ATTACKED, 0.2, ["a 3", "a 5", "a 7"])
        proved, unknown, ibp, crown, attacked = figure.data
        np.testing.assert_allclose(proved.x, [0.15, 0.05, 0.2])
        base, length = np.array(unknown.base, dtype=float), np.array(unknown.x, dtype=float)
        np.testing.assert_allclose(base, proved.x)
        np.testing.assert_allclose(base + length, [0.18, 0.06, 0.2])
        np.testing.assert_allclose(ibp.x, [0.1, 0.0, 0.2])
        np.testing.assert_allclose(crown.x, [0.15, 0.05, 0.2])
        np.testing.assert_allclose(np.array(attacked.x, dtype=float), [0.18, 0.06, np.nan])
        assert ibp.marker.symbol != crown.marker.symbol
        assert figure.layout.yaxis.ticktext == ("a 3", "a 5", "a 7")

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(ValueError, match=r"attacked: 2 values for 3 samples"):
            plots.radius_ranges(self.CERTIFIED, self.ATTACKED[:2], 0.2)
        with pytest.raises(ValueError, match=r"certified: no bound"):
            plots.radius_ranges({}, self.ATTACKED, 0.2)


class TestCertifiedAccuracyCurves:
    def test_the_share_at_every_eps(self):
        figure = plots.certified_accuracy_curves({"acert": [0.0, 0.1, 0.2, 0.2]}, 0.2, eps=0.05, points=5)
        curve, line = figure.data
        np.testing.assert_allclose(curve.x, [0, 0.05, 0.1, 0.15, 0.2])
        np.testing.assert_allclose(curve.y, [75, 75, 75, 50, 50])
        assert list(line.x) == [0.05, 0.05]
        assert curve.name == "ACERT"
        assert curve.line.color == plots.VERMILLION

    def test_curves_of_one_method_differ_in_dash(self):
        methods = {"a": "acert", "b": "acert", "c": "ibp"}
        figure = plots.certified_accuracy_curves({name: [0.1] for name in "abc"}, 0.2, methods=methods)
        assert [trace.line.dash for trace in figure.data[:3]] == ["solid", "dash", "solid"]
        assert [trace.name for trace in figure.data[:3]] == ["a", "b", "c"]

    @given(arrays(float, st.integers(1, 30), elements=st.floats(0, 0.3)))
    def test_the_area_is_the_mean_radius(self, radii):
        curve = plots.certified_accuracy_curves({"acert": radii}, 0.3, points=2001).data[0]
        area = np.trapezoid(curve.y, curve.x) / 100
        assert area == pytest.approx(radii.mean(), abs=0.3 / 2000)


class TestRadiusHistogram:
    @given(arrays(float, st.integers(1, 60), elements=st.sampled_from([0.0, 0.01, 0.05, 0.0999, 0.1, 0.3])))
    def test_the_shares_add_up(self, radii):
        zero, inside, end, line = plots.radius_histogram(radii, 0.1, eps=0.04).data
        assert list(line.x) == [0.04, 0.04]
        shares = [100 * np.mean(part) for part in (radii == 0, (radii > 0) & (radii < 0.1), radii >= 0.1)]
        np.testing.assert_allclose([sum(bar.y) for bar in (zero, inside, end)], shares, atol=1e-9)
        assert end.name == f"at eps_max: {shares[2]:.1f} %"

    def test_float32_radii_at_eps_max(self):
        assert plots.radius_histogram(np.full(3, np.float32(0.11)), 0.11).data[2].y[0] == 100

    def test_ticks_are_levels_or_round(self):
        levels, tenths = (plots.radius_histogram([0, end / 2, end], end).layout.xaxis for end in (8.8 / 255, 0.4))
        assert levels.ticktext == ("0", "2/255", "4/255", "6/255", "8.8/255")
        assert tenths.ticktext == ("0", "0.1", "0.2", "0.3", "0.4")

    def test_none(self):
        with pytest.raises(ValueError, match="radii: the array is empty"):
            plots.radius_histogram([], 0.1)


class TestOneSample:
    def test_margin_curve(self):
        iterates = [(0.0, -1.0), (0.2, 1.0), (0.1, 0.01)]
        figure = plots.margin_curve([0, 0.1, 0.2], [-1, 0, 1], iterates=iterates, radius=0.0999, current=(0.2, 1.0))
        curve, certified, _zero, radius, visited, here, sizes = figure.data
        np.testing.assert_allclose(curve.y, [-1, 0, 1])
        np.testing.assert_allclose(certified.y, [-1, 0, 0])
        assert list(radius.x) == [0.0999, 0.0999]
        assert list(zip(visited.x, visited.y, strict=True)) == iterates
        assert list(visited.text) == ["1", "2", "3"]
        assert (here.x[0], here.y[0]) == (0.2, 1.0)
        assert (list(sizes.x), list(sizes.y), figure.layout.yaxis2.type) == ([1, 2, 3], [1.0, 1.0, 0.01], "log")

    def test_iterates_can_be_told_apart(self):
        root = 0.1 + 10.0 ** -np.arange(1, 9)  # from the fourth on they lie within a thousandth
        figure = plots.margin_curve([0, 0.2], [-1, 1], iterates=[(e, 10 * (e - 0.1)) for e in root])
        visited, sizes = figure.data[4], figure.data[6]
        assert [text for text in visited.text if text] == ["1", "2", "3"]
        heights = np.log10(np.array(sizes.y, dtype=float))
        assert (np.diff(heights) < -0.9).all() and list(sizes.x) == list(range(1, 9))

    def test_margin_curve_has_the_same_traces_without_extras(self):
        plain = plots.margin_curve([0, 0.1], [-1, -0.5])
        assert len(plain.data) == 6
        assert [len(trace.x) for trace in plain.data[3:]] == [0, 0, 0]

    def test_logit_intervals_break_where_one_reaches_the_true_class(self):
        figure = plots.logit_intervals([0, 2, -1], [1, 3, 2.5], 1, classes=["a", "b", "c"])
        true, below, reach, line = figure.data
        assert (list(true.y), list(below.y), list(reach.y)) == (["b"], ["a"], ["c"])
        assert (reach.base[0], reach.x[0]) == (-1, 3.5)
        assert list(line.x) == [2, 2]
        assert "= 0.5, certificate broken" in figure.layout.title.text
        assert "= -1, certified" in plots.logit_intervals([0, 2], [1, 3], 1).layout.title.text

    def test_intervals_of_one_point_are_strokes_on_an_axis_that_stays(self):
        point = plots.logit_intervals([0, 2], [0, 2], 1, span=(-5, 7))
        assert [list(bar.x) for bar in point.data[:2]] == [[0], [0]]
        assert all(bar.marker.line.width > 1 and bar.marker.line.color == bar.marker.color for bar in point.data[:3])
        assert point.layout.xaxis.range == (-5, 7)
        assert plots.logit_intervals([0, 2], [1, 3], 1).layout.xaxis.range is None

    def test_interval_growth(self):
        figure = plots.interval_growth(["input", "linear"], {0.1: [0.2, 3.0], 0.01: [0.02, 0.0]})
        assert [trace.name for trace in figure.data] == ["eps = 0.1", "eps = 0.01"]
        assert figure.layout.yaxis.type == "log"
        assert np.isnan(figure.data[1].y[1])  # a width of 0 has no place on a logarithm
        assert list(figure.layout.xaxis.ticktext) == ["input", "linear"]


class TestImageGrid:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_light_and_labelled(self, channels):
        images = np.random.default_rng(0).random((20, channels, 28, 28))
        figure = plots.image_grid(images, [f"n{i}" for i in range(20)], radii=np.linspace(0, 0.19, 20), columns=8)
        assert len(figure.data) == 1
        assert len(figure.layout.annotations) == 20
        assert figure.layout.annotations[19].text == "n19<br>radius 0.19"
        assert len(figure.to_json()) < 100_000

    @pytest.mark.parametrize("shape", [(3, 8, 8), (2, 2, 8, 8), (0, 1, 8, 8)])
    def test_wrong_shapes(self, shape):
        with pytest.raises(ValueError, match=r"images: shape .*accepted is \(N, 1, H, W\)"):
            plots.image_grid(np.zeros(shape))
