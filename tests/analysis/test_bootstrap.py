"""Intervals that cover what they say: against scipy where it fits, and on made-up runs whose truth is known."""

import numpy as np
import pytest
import scipy.stats

from acertlab.analysis import seeds
from acertlab.analysis.bootstrap import (
    ConfidenceInterval,
    confidence_interval,
    draw,
    image_means,
    joint_samples,
    resampled_scores,
    seed_means,
)
from acertlab.data.run_table import load_runs
from tests.helpers.synthetic_runs import EPS_MAX, in_memory, synthetic_radii, write_sweep

METHODS = {"fast-ibp": 1.0, "acert": 1.3}


def test_the_data_as_they_are_come_first() -> None:
    samples = in_memory(synthetic_radii(METHODS))
    scores = resampled_scores(samples, draw(samples, 20), EPS_MAX)
    means = seeds.mean_over_seeds(samples.runs)
    for name in ("acc", "acr", "art"):
        assert getattr(scores, name).shape == (21, 6)
        np.testing.assert_allclose(getattr(scores, name)[0], means[name], rtol=1e-6)


def test_one_seed_is_scipys_bootstrap() -> None:
    """Over images alone, several numbers of one network, drawn together: scipy's percentile interval."""
    samples = in_memory(synthetic_radii({"acert": 1.0}, (0.5,), seeds=1, n=300))
    scores = resampled_scores(samples, draw(samples, 4000), EPS_MAX)
    share, correct = samples.share(EPS_MAX)[0].astype(float), samples.correct[0].astype(float)

    def art(share: np.ndarray, correct: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.sqrt(share.mean(axis) * correct.mean(axis))

    of_one = [(scores.acr, (share,), np.mean), (scores.acc, (correct,), np.mean)]
    for values, data, statistic in [*of_one, (scores.art, (share, correct), art)]:
        settings = {"n_resamples": 4000, "method": "percentile", "paired": len(data) > 1, "rng": 0}
        expected = scipy.stats.bootstrap(data, statistic, **settings).confidence_interval
        mine, width = confidence_interval(values[:, 0]), expected.high - expected.low
        assert mine.low == pytest.approx(expected.low, abs=0.08 * width)
        assert mine.high == pytest.approx(expected.high, abs=0.08 * width)


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_the_variance_over_seeds_is_not_biased(seeds: int) -> None:
    """Images all alike: what is left is the variance of a mean over seeds, s^2 / S with s^2 the unbiased one."""
    levels = np.linspace(0.02, 0.1, seeds) ** 1.5
    samples = in_memory({("acert", 0.0, k): np.full(30, level) for k, level in enumerate(levels)})
    values = resampled_scores(samples, draw(samples, 20000), EPS_MAX).acr[1:, 0]
    assert values.var() == pytest.approx((levels / EPS_MAX).var(ddof=1) / seeds, rel=0.05)


def test_methods_are_paired_image_by_image() -> None:
    """Two methods with the same radii but for a factor: their ratio is far surer than either."""
    images = np.random.default_rng(0).random(300) * 0.1
    samples = in_memory({("acert", 0.0, 0): images, ("fast-ibp", 0.0, 0): 0.5 * images})
    acr = resampled_scores(samples, draw(samples, 200), EPS_MAX).acr
    assert samples.methods == ["fast-ibp", "acert"]
    ratio = confidence_interval(acr[:, 1] / acr[:, 0])
    assert ratio.estimate == pytest.approx(2) and ratio.half < 1e-5 < confidence_interval(acr[:, 1]).half


def simulated_coverage(seeds: int, of_seeds: float, trials: int = 300) -> float:
    """How often the interval of a cell's mean holds the truth; the images alone move it by 0.018 (one sigma)."""
    rng, held, truth, n = np.random.default_rng(seeds), 0, 0.5, 200
    samples = in_memory({("acert", 0.0, k): np.full(n, 0.1) for k in range(seeds)})
    for trial in range(trials):
        seed, image = rng.normal(0, of_seeds, (seeds, 1)), rng.normal(0, 0.25, n)
        values = truth + image + seed + rng.normal(0, 0.05, (seeds, n))
        drawn = draw(samples, 200, seed=trial)
        found = confidence_interval(seed_means(image_means(values, drawn), drawn)[:, 0])
        held += found.low <= truth <= found.high
    return held / trials


def test_coverage() -> None:
    """Of 95 % intervals; in 500 trials 94 % of eight seeds, 92 % of three, and 81 % where three seeds decide all."""
    assert 0.91 < simulated_coverage(8, 0.02) < 0.985
    assert 0.90 < simulated_coverage(3, 0.02) < 0.985
    assert 0.60 < simulated_coverage(3, 0.2) < 0.92


def test_an_interval_as_text() -> None:
    assert ConfidenceInterval(0.412, 0.40, 0.42).percent() == "41.2 ± 1.0"


class TestRefusals:
    def test_runs_that_do_not_compare(self, tmp_path) -> None:
        runs = load_runs(write_sweep(tmp_path, synthetic_radii(METHODS, n=20)))
        with pytest.raises(ValueError, match="runs: the table is empty"):
            joint_samples(runs[:0])
        for column, value in (("dataset", "mnist"), ("eps_max", 0.1), ("verifier", "crown"), ("split", "val")):
            values = [value, *runs[column][1:]]
            with pytest.raises(ValueError, match=f"runs: several {column} .*choose one"):
                joint_samples(runs.assign(**{column: values}))

    def test_other_images(self, tmp_path) -> None:
        write_sweep(tmp_path, synthetic_radii({"acert": 1.0}, n=20))
        write_sweep(tmp_path, synthetic_radii({"fast-ibp": 1.0}, n=30))
        with pytest.raises(ValueError, match=r"runs: .*fast-ibp-0-0 was tested on other images"):
            joint_samples(load_runs(tmp_path))

    def test_numbers_out_of_range(self) -> None:
        samples = in_memory(synthetic_radii(METHODS, n=20))
        with pytest.raises(ValueError, match="eps_max = 0.3: accepted is > 0 and <= 0.25"):
            samples.share(0.3)
        with pytest.raises(ValueError, match="resamples: must be a whole number >= 20, not 5"):
            draw(samples, 5)
