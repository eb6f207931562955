"""Networks as points: every number is what `metrics` computes from the radii; between points lie mixtures."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st

from acertlab.analysis import seeds, tradeoff
from acertlab.analysis.seeds import rescore
from acertlab.data.run_table import load_radii
from acertlab.radius import metrics

CAP = 0.25


class TestPoolSeeds:
    def test_seeds_are_one_point(self, networks):
        found = [(point.method, point.kappa, point.seeds) for point in networks.points]
        assert found == [("standard", 1.0, (0,)), ("acert", 0.0, (0, 1)), ("acert", 0.5, (0,))]
        assert (networks.dataset, networks.eps_max, networks.cap, networks.n) == ("digits", 0.2, CAP, 40)
        assert networks.methods == ("standard", "acert")
        assert networks.points[1].label == "ACERT, kappa = 0 (2 seeds)"

    @pytest.mark.parametrize("eps_max", [0.003, 0.1, 0.2, CAP])
    def test_means_are_those_of_metrics(self, runs, networks, eps_max):
        wanted = seeds.mean_over_seeds(rescore(runs, load_radii(runs), eps_max))
        pd.testing.assert_frame_equal(tradeoff.means(networks, eps_max), wanted, rtol=1e-12, check_dtype=False)

    @given(st.floats(0, CAP))
    def test_certified_accuracies_are_those_of_metrics(self, runs, networks, eps):
        radii = load_radii(runs)
        for point in networks.points:
            pooled = np.concatenate([radii[path] for path in point.paths])
            grid = np.array([0.0, eps, *pooled[:5]])
            np.testing.assert_allclose(point.certified(grid), metrics.certified_accuracy(pooled, grid), atol=1e-12)

    def test_float32_radii_at_eps_max(self, runs):
        cap = float(np.float32(0.11))
        one = runs[:1].assign(radius_cap=0.11)
        (point,) = tradeoff.pool_seeds(one, {one.path.iloc[0]: np.full(3, cap)}).points
        assert point.certified([0.11]) == 1.0

    @pytest.mark.parametrize("eps_max", [0.0, -0.1, 0.26, np.nan])
    def test_beyond_what_was_searched(self, networks, eps_max):
        with pytest.raises(ValueError, match=r"eps_max = .*accepted is > 0 and <= 0\.25"):
            tradeoff.means(networks, eps_max)

    def test_what_cannot_be_pooled(self, runs):
        with pytest.raises(ValueError, match="no finished run"):
            tradeoff.pool_seeds(runs[:0], {})
        with pytest.raises(ValueError, match=r"several dataset \(a, b\)"):
            tradeoff.pool_seeds(runs.assign(dataset=["a", "b", "b", "b"]), {})
        with pytest.raises(ValueError, match=r"several eps_max \(0\.1, 0\.2\)"):
            tradeoff.pool_seeds(runs.assign(eps_max=[0.1, 0.2, 0.2, 0.2]), {})
        with pytest.raises(ValueError, match="differ in n"):
            tradeoff.pool_seeds(runs.assign(n=range(4)), load_radii(runs))


class TestInterpolation:
    def test_a_trained_kappa_is_that_network(self, networks):
        mix = tradeoff.at_kappa(networks, "acert", 0.0)
        assert (mix.low, mix.kappa, mix.note) == (networks.points[1], 0.0, "trained")
        table = tradeoff.means(networks, 0.1)
        scores = mix.scores(0.1, 0.05)
        for name in ("acc", "acr", "art"):
            assert scores[name] == pytest.approx(table[name][1], rel=1e-12)

    @given(st.floats(0.001, 0.499), st.floats(0.01, CAP), st.floats(0, CAP))
    def test_between_two_it_is_a_coin_toss(self, networks, kappa, eps_max, eps):
        mix = tradeoff.at_kappa(networks, "acert", kappa)
        assert mix.note == "interpolated between kappa = 0 and 0.5"
        assert mix.kappa == pytest.approx(kappa)
        ends = [tradeoff.at_kappa(networks, "acert", k).scores(eps_max, eps) for k in (0.0, 0.5)]
        scores = mix.scores(eps_max, eps)
        for name in ("acc", "acr", "certified"):
            by_hand = (1 - 2 * kappa) * ends[0][name] + 2 * kappa * ends[1][name]
            assert scores[name] == pytest.approx(by_hand, abs=1e-12)
        assert scores["art"] <= (scores["acc"] * scores["acr"]) ** 0.5 + 1e-12  # a mean of square roots

    def test_the_area_below_a_mixture_is_its_mean_radius(self, networks):
        mix, grid = tradeoff.at_kappa(networks, "acert", 0.3), np.linspace(0, 0.2, 20001)
        assert np.trapezoid(mix.certified(grid), grid) == pytest.approx(0.2 * mix.scores(0.2, 0.1)["acr"], abs=1e-5)

    def test_beyond_what_was_trained(self, networks):
        mix = tradeoff.at_kappa(networks, "acert", 0.9)
        assert mix.low is mix.high is networks.points[2]
        assert "kappa = 0.5 is the nearest" in mix.note
        assert tradeoff.at_kappa(networks, "standard", 0.0).low is networks.points[0]

    def test_an_unknown_method(self, networks):
        with pytest.raises(ValueError, match=r"method = 'ibp': accepted are those of these runs, standard, acert"):
            tradeoff.at_kappa(networks, "ibp", 0.0)


def network(acc: float, radius: float, kappa: float, n: int = 1000) -> dict:
    return {"acc": acc, "radius": radius, "kappa": kappa, "radii": np.full(n, radius) * (np.arange(n) < acc * n)}


@pytest.fixture(scope="module")
def hand_made():
    """One method, four networks; the third is dominated by the second."""
    made = [network(0.8, 0.2, 0.0), network(0.9, 0.15, 0.5), network(0.85, 0.1, 0.6), network(1.0, 0.05, 0.9)]
    common = {"dataset": "digits", "method": "acert", "seed": 0, "eps_max": 0.2, "radius_cap": 0.2, "art": 0.0}
    rows = [
        {"path": str(i), "kappa": m["kappa"], "acc": m["acc"], "acr": m["radii"].mean() / 0.2}
        for i, m in enumerate(made)
    ]
    return tradeoff.pool_seeds(pd.DataFrame(rows).assign(**common), {str(i): m["radii"] for i, m in enumerate(made)})


class TestEqualAccuracy:
    def test_along_the_front(self, hand_made):
        assert [point.kappa for point in tradeoff.front(hand_made, "acert", 0.2)] == [0.0, 0.5, 0.9]
        mix = tradeoff.at_accuracy(hand_made, "acert", 0.875, 0.2)  # not through the dominated one at 0.85
        assert mix.note == "interpolated between kappa = 0 and 0.5"
        assert mix.weight == pytest.approx(0.75)
        scores = mix.scores(0.2, 0.1)
        assert scores["acc"] == pytest.approx(0.875)
        assert scores["acr"] == pytest.approx(0.25 * 0.8 * 1.0 + 0.75 * 0.9 * 0.75)

    def test_the_ends_and_beyond(self, hand_made):
        assert tradeoff.at_accuracy(hand_made, "acert", 0.8, 0.2).note == "trained"
        assert tradeoff.at_accuracy(hand_made, "acert", 1.0, 0.2).low.kappa == 0.9
        assert tradeoff.at_accuracy(hand_made, "acert", 0.79, 0.2) is None

    def test_the_front_depends_on_eps_max(self, hand_made):
        # below the smallest radius only accuracy counts, and the last network dominates the rest
        assert [point.kappa for point in tradeoff.front(hand_made, "acert", 0.05)] == [0.9]
        assert tradeoff.at_accuracy(hand_made, "acert", 0.875, 0.05) is None
