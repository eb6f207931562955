"""What may be averaged: runs that differ in nothing but the seed, by whatever table, figure or statement."""

import shutil
from pathlib import Path

import pytest

from acertlab.analysis.equal_accuracy import ratios_by_seed
from acertlab.analysis.fronts import analyse
from acertlab.analysis.method_table import chosen_table, tuned_table
from acertlab.analysis.seeds import mean_over_seeds
from acertlab.analysis.tradeoff import pool_seeds
from acertlab.data.files import read_json, write_json
from acertlab.data.run_table import load_finished, load_radii
from tests.helpers.quick_runs import made, quickly


@pytest.fixture(scope="module")
def four_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("four")
    for method in ("acert", "fast-ibp"):
        for seed in (0, 1):
            quickly(made(), root / f"{method}-{seed}", seed=seed, method=method)
    return root


class TestWhatMayBeAveraged:
    """A group is runs that differ in nothing but the seed, in every table, figure and statement."""

    @pytest.fixture
    def runs(self, four_runs, tmp_path):
        return shutil.copytree(four_runs, tmp_path / "runs")

    def refused(self, folder: Path, what: str) -> None:
        runs = load_finished(folder)
        uses = {
            "mean": mean_over_seeds,
            "tuned": tuned_table,
            "table": lambda runs: chosen_table(runs, None, False),
            "explorer": lambda runs: pool_seeds(runs, load_radii(runs)),
            "analysis": lambda runs: analyse(runs, resamples=10),
            "compare": ratios_by_seed,
        }
        for name, use in uses.items():
            with pytest.raises(ValueError, match=what):
                use(runs)
                raise AssertionError(f"{name} takes them")

    def test_seeds_are_averaged(self, runs):
        table = load_finished(runs)
        assert mean_over_seeds(table).seeds.tolist() == [2, 2]
        assert chosen_table(table, None, False).seeds.tolist() == [2, 2]

    @pytest.mark.parametrize(
        ("settings", "what"),
        [
            ({"epochs": 4}, "differ in epochs"),
            ({"width": 9}, "differ in width"),
            ({"scheduler": "step"}, "differ in scheduler"),
            ({"lr": 1e-3}, "differ in lr"),
            ({"merged": False}, "merged"),
            ({"radius_cap": 0.2}, "differ in radius_cap"),
        ],
    )
    def test_other_trainings_are_no_seeds(self, runs, settings, what):
        quickly(made(), runs / "other", seed=2, method="acert", **settings)
        quickly(made(), runs / "another", seed=2, method="fast-ibp")
        self.refused(runs, what)

    def test_other_images_are_no_seeds(self, runs):
        quickly(made(1), runs / "other", seed=2, method="acert")
        quickly(made(), runs / "another", seed=2, method="fast-ibp")
        with pytest.raises(ValueError, match="differ in data"):
            mean_over_seeds(load_finished(runs))

    def test_a_copy_is_no_seed(self, runs):
        shutil.copytree(runs / "acert-0", runs / "copy")
        self.refused(runs, "there are two with")

    def test_what_version_0_1_0_did_not_note_is_let_pass(self, runs):
        config = read_json(runs / "acert-0/config.json")
        write_json(
            runs / "acert-0/config.json", {n: config[n] for n in config if n not in ("data", "train_eps_factor")}
        )
        assert mean_over_seeds(load_finished(runs)).seeds.tolist() == [2, 2]

    def test_another_verifier_is_no_seed(self, runs):
        result = read_json(runs / "acert-0/result.json")
        write_json(runs / "acert-0/result.json", result | {"verifier": "crown"})
        self.refused(runs, "verifier")
