"""Means over seeds, and scores at another eps_max from the stored radii."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from acertlab.analysis.seeds import mean_over_seeds, rescore
from acertlab.data.run import defaults_before
from acertlab.data.run_table import load_radii
from acertlab.training.config import TrainConfig
from tests.helpers.synthetic_runs import RUNS

CAP = 0.25


class TestMeanOverSeeds:
    def test_means_deviations_and_order(self):
        means = mean_over_seeds(RUNS)
        assert means.method.tolist() == ["standard", "fast-ibp", "fast-ibp", "acert", "acert"]
        assert means.kappa.tolist() == [1.0, 0.0, 0.8, 0.0, 0.25]
        assert means.seeds.tolist() == [1, 1, 1, 2, 1]
        np.testing.assert_allclose(means.acc, [0.98, 0.70, 0.88, 0.82, 0.90])
        np.testing.assert_allclose(means.acr_std, [0, 0, 0, np.std([0.70, 0.74], ddof=1), 0])

    @pytest.mark.parametrize("column", ["model", "epochs", "verifier", "domain"])
    def test_what_is_not_a_seed_of_one_setting_is_not_averaged(self, column):
        runs = RUNS.assign(**{column: ["a", "b", "c", "d", "e", "f"]})
        with pytest.raises(ValueError, match=f"method = acert, kappa = 0.0 differ in {column}"):
            mean_over_seeds(runs)

    @pytest.mark.parametrize(("method", "apart"), [("sabr", True), ("exp-ibp", True), ("fast-ibp", False)])
    def test_runs_of_before_are_not_averaged_with_those_by_other_rules(self, method, apart):
        """Where the method has a use for what 0.1.0 did not name; by today's setting of what was done they are."""
        today = asdict(TrainConfig(method=method))
        before = {name: value for name, value in today.items() if name not in defaults_before(today)}
        runs = RUNS.iloc[:2].assign(method=method, kappa=0.0, seed=[0, 1], config=[before, today])
        if apart:
            with pytest.raises(ValueError, match="differ in attack, so that they are not seeds"):
                mean_over_seeds(runs)
        as_then = runs.assign(config=[before, today | defaults_before(today)])
        assert mean_over_seeds(as_then if apart else runs).seeds.tolist() == [2]

    def test_the_same_seed_twice(self):
        with pytest.raises(ValueError, match=r"two with .*method = acert, kappa = 0.25, seed = 0"):
            mean_over_seeds(pd.concat([RUNS, RUNS.iloc[:1]]))


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
        with pytest.raises(ValueError, match=r"runs: several eps_max \(0\.1, 0\.2\); choose one"):
            rescore(runs.assign(eps_max=[0.1, 0.2, 0.2, 0.2]), load_radii(runs), 0.1)
