"""Fronts compared at equal accuracy: against few-line definitions, and on made-up sweeps whose verdict is known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from acertlab.analysis import method_table
from acertlab.analysis.bootstrap import Samples, Scores, draw, resampled_scores
from acertlab.analysis.fronts import Curve, analyse, compare, simultaneous_half_width, tuned
from acertlab.data.run_table import load_runs
from acertlab.radius import metrics
from acertlab.training.methods.catalogue import METHODS
from tests.helpers.synthetic_runs import EPS_MAX, in_memory, synthetic_radii, write_sweep

PLACES = st.integers(0, 12).map(lambda k: k / 12)  # coarse, so that ties are frequent
POINTS = st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=8)
FIRST, BETTER = {"fast-ibp": 1.0}, {"fast-ibp": 1.0, "acert": 1.3}


def analysed(radii: dict) -> tuple[Samples, Scores]:
    """`analyse`, but for the folders."""
    samples = in_memory(radii)
    return samples, resampled_scores(samples, draw(samples, 200), EPS_MAX)


def shifted(radii: dict, method: str, *, wrong: float = 0.0, factor: float = 1.0) -> dict:
    """Another method like the first one, but with a share of the correct images wrong, and radii times a factor."""
    out = dict(radii)
    for (_, kappa, seed), radius in radii.items():
        other = np.minimum(radius * factor, 0.25)
        other[np.flatnonzero(radius > 0)[: round(wrong * len(radius))]] = 0.0
        out[method, kappa, seed] = other
    return out


class TestCurve:
    @settings(max_examples=200)
    @given(POINTS, st.lists(st.floats(0, 1), min_size=1, max_size=6))
    def test_interpolation_by_the_definition(self, points: list, accuracies: list) -> None:
        """In O(n^2): the front's points, and the segment between the two neighbours of an accuracy."""
        acc, acr = np.array(points).T[:, None]  # (1, K)
        curve = Curve(acc, acr, metrics.front_places(acc[0], acr[0]))
        front = sorted({p for p in points if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points)})
        assert curve.reach == (front[0][0], front[-1][0])
        found = curve.acr_at(np.array([accuracies]))[0] if len(accuracies) > 1 or len(front) > 1 else []
        for accuracy, value in zip(accuracies, found, strict=False):
            right = [p for p in front if p[0] >= accuracy]
            left = [p for p in front if p[0] < accuracy]
            if not right:
                assert np.isnan(value)
            elif not left:
                assert value == right[0][1]  # the best at an accuracy of at least this
            else:
                (a, r), (b, q) = left[-1], right[0]
                assert value == pytest.approx(r + (accuracy - a) / (b - a) * (q - r), abs=1e-12)

    @settings(max_examples=50)
    @given(POINTS, st.integers(0, 2**16))
    def test_hypervolume_by_monte_carlo(self, points: list, seed: int) -> None:
        acc, acr = np.array(points).T
        dart = np.random.default_rng(seed).random((4000, 2))
        below = ((dart[:, :1] <= acc) & (dart[:, 1:] <= acr)).any(1).mean()
        assert metrics.dominated_area(acc, acr) == pytest.approx(below, abs=0.04)  # 5 sigma

    def test_a_coin_between_two_networks_attains_the_segment(self) -> None:
        """The argument for interpolating: choose one of two neighbouring networks for every image at random."""
        samples, scores = analysed(synthetic_radii(FIRST, seeds=1, n=4000))
        curve, coin = Curve.of(samples, scores, "fast-ibp"), np.random.default_rng(0).random(4000) < 0.3
        one, other = curve.front[:2]
        accuracy = np.where(coin, samples.correct[one], samples.correct[other]).mean()
        acr = np.where(coin, samples.share(EPS_MAX)[one], samples.share(EPS_MAX)[other]).mean()
        assert curve.acr_at(np.full((len(curve.acc), 1), accuracy))[0, 0] == pytest.approx(acr, abs=0.02)


def test_a_simultaneous_band_holds_whole_curves() -> None:
    rng = np.random.default_rng(0)
    values = np.vstack([np.zeros(30), np.cumsum(rng.normal(size=(2000, 30)), 1)])  # random walks
    half = simultaneous_half_width(values)
    assert (np.abs(values[1:]) <= half).all(1).mean() == pytest.approx(0.95, abs=0.002)
    values[1:100] = np.nan  # draws that reach no accuracy say nothing
    values[100:200, 20:] = np.nan
    np.testing.assert_allclose(simultaneous_half_width(values), half, rtol=0.1)
    assert simultaneous_half_width(np.empty((5, 0))).shape == (0,)


class TestCompare:
    def test_a_front_above_another_by_a_known_factor(self) -> None:
        """Radii times 1.3, below the cap, at equal accuracies: x1.30 everywhere, exactly."""
        radii = {cell: np.minimum(r, 0.15) for cell, r in synthetic_radii(FIRST, n=400).items()}
        samples, scores = analysed(shifted(radii, "acert", factor=1.3))
        found = compare(samples, scores, "acert", "fast-ibp")
        assert found.verdict == "leads" and found.trails == () and len(found.leads) == 1
        assert found.leads[0] == found.compared
        assert found.at.ratio.estimate == pytest.approx(1.3, rel=1e-5) and found.at.ratio.half < 0.1
        assert found.at.covers == "seeds and test images"
        np.testing.assert_allclose(found.band.acr / found.band.other_acr, 1.3, rtol=1e-5)
        low, high = (100 * end for end in found.compared)
        assert f"ACERT's front dominates FastIBP's at accuracies {low:.1f}-{high:.1f} %" in found.sentence
        assert f"x1.30 ± {found.at.ratio.half:.2f}" in found.sentence
        back = compare(samples, scores, "fast-ibp", "acert")
        assert back.verdict == "trails" and back.trails == found.leads
        assert back.at.ratio.estimate == pytest.approx(1 / 1.3, rel=1e-5)
        assert "ACERT's front dominates FastIBP's" in back.sentence

    def test_equal_kappa_is_not_compared(self) -> None:
        """One network for one kappa of the other method: more accuracy, less radius, the same curve."""
        radii = synthetic_radii(FIRST, kappas=tuple(np.linspace(0, 0.9, 10)), n=600, noise=0.002)
        names = dict(zip(np.linspace(0, 0.9, 10), ("fast-ibp", "acert") * 5, strict=True))
        samples, scores = analysed({(names[kappa], kappa, k): r for (_, kappa, k), r in radii.items()})
        found = compare(samples, scores, "acert", "fast-ibp")
        assert abs(found.at.ratio.estimate - 1) < 0.05
        assert found.compared[0] < found.at.accuracy < found.compared[1]

    def test_the_same_twice_is_undecided(self) -> None:
        samples, scores = analysed(shifted(synthetic_radii(FIRST), "acert"))
        found = compare(samples, scores, "acert", "fast-ibp")
        assert found.verdict == "undecided" and (found.leads, found.trails) == ((), ())
        assert found.sentence.startswith("Neither front dominates: at accuracies")
        assert found.at.ratio.estimate == pytest.approx(1)

    def test_each_leads_somewhere(self) -> None:
        """A steeper curve crosses a flatter one."""
        radii = synthetic_radii(FIRST, n=2000, noise=0.001)
        for (_, kappa, seed), radius in list(radii.items()):
            radii["acert", kappa, seed] = np.minimum(radius * {0.0: 0.94, 0.5: 1.0, 0.9: 1.4}[kappa], 0.25)
        samples, scores = analysed(radii)
        found = compare(samples, scores, "acert", "fast-ibp")
        assert found.verdict == "each leads somewhere"
        assert found.trails[0][1] < found.leads[0][0]
        assert "ACERT's front dominates FastIBP's at accuracies" in found.sentence
        assert "and FastIBP's front dominates ACERT's" in found.sentence

    def test_no_common_accuracy(self) -> None:
        """Half of the correct images wrong: less accuracy. Where the radii are larger there, neither dominates."""
        radii = synthetic_radii(FIRST, kappas=(0.0, 0.1), n=1000, noise=0.001)
        worse = analysed(shifted(radii, "acert", wrong=0.2))
        found = compare(*worse, "acert", "fast-ibp")
        assert found.compared is None and found.at is None and found.verdict == "trails" and found.worse == 1
        assert "FastIBP's front dominates ACERT's: in 100 % of the resamples" in found.sentence
        larger = analysed(shifted(radii, "acert", wrong=0.2, factor=4.0))
        found = compare(*larger, "acert", "fast-ibp")
        assert found.verdict == "no common accuracy" and (found.better, found.worse) == (0, 0)
        assert "do not overlap, so that there is no equal accuracy" in found.sentence

    def test_a_front_of_one_network_is_compared_at_its_own_accuracy(self) -> None:
        radii = synthetic_radii(FIRST, n=1000)
        for seed in range(3):
            radii["acert", 0.5, seed] = np.minimum(1.5 * radii["fast-ibp", 0.5, seed], 0.25)
        samples, scores = analysed(radii)
        found = compare(samples, scores, "acert", "fast-ibp")
        assert found.compared == (found.at.accuracy,) * 2 == found.reach
        assert found.verdict == "leads" and found.at.ratio.estimate > 1.2
        assert "elsewhere" not in found.sentence

    def test_one_seed_says_what_its_interval_covers(self) -> None:
        samples, scores = analysed(synthetic_radii(BETTER, seeds=1))
        assert compare(samples, scores, "acert", "fast-ibp").at.covers == "test images only"
        said = tuned(samples, scores, EPS_MAX)[0].sentence
        assert "One seed: the intervals cover the choice of test images only" in said

    def test_an_unknown_method(self) -> None:
        samples, scores = analysed(synthetic_radii(BETTER, n=50))
        with pytest.raises(ValueError, match="method: there is no run of 'sabr'; there are fast-ibp, acert"):
            compare(samples, scores, "acert", "sabr")


class TestAnalyse:
    def test_kappa_is_chosen_on_validation_images_where_there_are_some(self, tmp_path) -> None:
        """Validation prefers 0.9, which the test images do not."""
        radii = synthetic_radii(BETTER, n=200)
        blind = analyse(load_runs(write_sweep(tmp_path / "a", radii)), resamples=50)
        assert {best.chosen_on for best in blind.tuned} == {"test"}
        table = method_table.tuned_table(blind.samples.runs)
        for best in blind.tuned:
            row = table[table.method == METHODS[best.method].label + " †"].iloc[0]
            assert (best.kappa, 100 * best.art.estimate) == (row.kappa, pytest.approx(row.ART, rel=1e-5))
            assert best.kappa != 0.9 and "which flatters" in best.sentence
        val_art = {cell: cell[1] for cell in radii}
        seen = analyse(load_runs(write_sweep(tmp_path / "b", radii, val_art)), resamples=50)
        assert [(best.kappa, best.chosen_on) for best in seen.tuned] == [(0.9, "validation")] * 2
        assert all("(chosen on validation images)" in best.sentence for best in seen.tuned)
        assert seen.table()["kappa chosen on"].tolist() == ["validation"] * 2

    def test_verdicts(self, tmp_path) -> None:
        better = analyse(load_runs(write_sweep(tmp_path / "a", synthetic_radii(BETTER))), resamples=100)
        assert better.verdict.startswith("ACERT dominates every other method")
        assert len(better.sentences) == 1 + 1 + 2
        alike = analyse(load_runs(write_sweep(tmp_path / "b", shifted(synthetic_radii(FIRST), "acert"))), resamples=100)
        assert alike.verdict == "No method dominates all others."
        alone = analyse(load_runs(write_sweep(tmp_path / "c", synthetic_radii(FIRST))), resamples=50)
        assert "one method" in alone.verdict and alone.comparisons == ()

    def test_the_same_seed_gives_the_same_numbers(self, tmp_path) -> None:
        runs = load_runs(write_sweep(tmp_path, synthetic_radii(BETTER, n=50)))
        one, again, other = (analyse(runs, resamples=50, seed=seed) for seed in (0, 0, 1))
        assert one.sentences == again.sentences and one.tuned != other.tuned

    def test_another_eps_max(self, tmp_path) -> None:
        runs = load_runs(write_sweep(tmp_path, synthetic_radii(BETTER, n=50)))
        half, full = analyse(runs, 0.1, resamples=50), analyse(runs, resamples=50)
        assert half.eps_max == 0.1 and (half.scores.acr > full.scores.acr).all()
        with pytest.raises(ValueError, match="eps_max = 0.3: accepted"):
            analyse(runs, 0.3)
        with pytest.raises(ValueError, match="the table is empty"):
            analyse(pd.DataFrame())
