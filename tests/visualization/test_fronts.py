"""Accuracy against robustness: a trace a method, in percent, over the map of ART."""

import numpy as np
import pytest

from acertlab import visualization as plots
from acertlab.analysis import seeds
from acertlab.visualization.fronts import PLACES, _labels
from tests.helpers.synthetic_runs import RUNS


class TestTradeoff:
    def test_a_trace_a_method_in_percent(self):
        figure = plots.tradeoff(RUNS, kappa=0.25)
        marks = ["kappa = 0.25", "picked", "equal accuracy"]
        assert [trace.name for trace in figure.data] == ["ART", "Standard", "FastIBP", "ACERT", *marks]
        acert = figure.data[3]
        np.testing.assert_allclose(acert.x, [82, 90])
        np.testing.assert_allclose(acert.y, [72, 60])
        assert acert.error_x.visible
        np.testing.assert_allclose(acert.error_x.array, [np.std([80, 84], ddof=1), 0])
        assert not figure.data[1].error_x.visible
        assert "%" in figure.layout.xaxis.title.text
        assert "%" in figure.layout.yaxis.title.text

    def test_kappa_is_circled(self):
        ring = plots.tradeoff(RUNS, kappa=0.0).data[-3]
        np.testing.assert_allclose(sorted(ring.x), [70, 82])
        none = plots.tradeoff(RUNS)
        assert [len(trace.x) for trace in none.data[-3:]] == [0, 0, 0]
        assert not any(trace.showlegend for trace in none.data[-3:])

    def test_places_of_the_explorer(self):
        means = seeds.mean_over_seeds(RUNS)
        places = dict(circled=[(0.85, 0.65)], picked=(0.9, 0.6), level=0.88, crossed=[(0.88, 0.62), (0.88, 0.5)])
        figure = plots.tradeoff_of_means(means, kappa=0.125, **places, span=((0.5, 1), (0.2, 0.8)))
        ring, frame, line = figure.data[-3:]
        assert (list(ring.x), list(ring.y), ring.name) == ([85], [65], "kappa = 0.125")
        assert (list(frame.x), list(frame.y)) == ([90], [60])
        np.testing.assert_allclose(line.x, 4 * [88])
        np.testing.assert_allclose(line.y, [20, 62, 50, 80])
        assert list(line.marker.size) == [0, 12, 12, 0]

    @pytest.mark.parametrize("width", [330, 450, 700, 1100, 1600])  # in a wide plot two may meet that were past it
    def test_labels_overlap_neither_each_other_nor_a_point(self, width):
        rng = np.random.default_rng(0)
        x, y = rng.random((2, 40))
        texts = [f"{kappa:g}" for kappa in rng.integers(0, 100, 40) / 100]
        labels, places = _labels(x, y, texts, 330, 300)
        assert 15 < sum(label != "" for label in labels) < 40  # here some have no room
        assert set(labels) - {""} <= set(texts)
        centres, boxes = np.column_stack([width * x, 300 * y]), []
        for centre, label, place in zip(centres, labels, places, strict=True):
            size = np.array([2.8 * len(label), 5.5])  # as wide and high as plotly draws them, about
            middle = centre + np.array(PLACES[place]) * (7 + size)
            boxes += [(middle - size, middle + size)] if label else []
        boxes += [(centre - 5, centre + 5) for centre in centres]
        low, high = (np.array(ends) for ends in zip(*boxes, strict=True))
        meet = ((low[:, None] < high) & (high[:, None] > low)).all(axis=2)
        count = len(boxes) - 40
        np.fill_diagonal(meet, False)
        assert not meet[:count].any()

    def test_few_points_keep_all_their_labels(self):
        figure = plots.tradeoff(RUNS)
        assert all(text for trace in figure.data[1:-3] for text in trace.text)

    def test_the_map_is_art_and_lighter_is_higher(self):
        art = plots.tradeoff(RUNS, span=((0.5, 1.0), (0.0, 1.0))).data[0]
        np.testing.assert_allclose(art.z, np.sqrt(np.outer(art.y, art.x)), atol=0.005)
        assert art.colorscale[-1][1] == "#FFFFFF"
        assert (art.x[0], art.x[-1], art.y[0], art.y[-1]) == (50, 100, 0, 100)

    @pytest.mark.parametrize(
        ("runs", "message"),
        [
            (RUNS[:0], "empty"),
            (RUNS.assign(eps_max=[0.1] + 5 * [0.2]), r"several eps_max .*0\.1, 0\.2"),
            (RUNS.assign(dataset=["mnist"] + 5 * ["digits"]), "several dataset .*digits, mnist"),
        ],
    )
    def test_what_cannot_be_compared(self, runs, message):
        with pytest.raises(ValueError, match=message):
            plots.tradeoff(runs)
