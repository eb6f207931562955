"""Scores at another eps_max, from the stored radii."""

import numpy as np
import pytest

from acertlab.analysis.seeds import rescore
from acertlab.data.run_table import load_radii

CAP = 0.25


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
