"""Fronts seed by seed: ratios at equal accuracy by hand, over several settings; clear errors."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from acertlab.__main__ import main
from acertlab.analysis import equal_accuracy
from acertlab.data.run import SHIPPED, SHIPPED_FRONTS
from tests.helpers.synthetic_runs import scores_of


def runs_of(factor: dict[int, float], kappas: tuple[float, ...] = (0.0, 0.5, 1.0)) -> pd.DataFrame:
    """FastIBP on the line acr = 1 - acc, ACERT `factor[seed]` times as high."""
    rows = [
        (method, kappa, seed, 0.4 + 0.4 * kappa, (0.6 - 0.4 * kappa) * (f if method == "acert" else 1.0))
        for seed, f in factor.items()
        for method in ("acert", "fast-ibp")
        for kappa in kappas
    ]
    runs = scores_of(rows)
    return runs.assign(path=runs.method + runs.kappa.astype(str) + runs.seed.astype(str))


def test_the_ratio_is_each_seeds_own() -> None:
    found = equal_accuracy.ratios_by_seed(runs_of({0: 1.1, 1: 1.3, 2: 1.2}))
    assert found.accuracy.tolist() == pytest.approx(np.arange(40, 81) / 100)
    assert np.allclose(found.ratio, 1.2) and np.allclose(found.standard_error, 0.1 / 3**0.5)
    assert np.allclose(found.low, 1.1) and np.allclose(found.high, 1.3) and (found.seeds == 3).all()
    assert np.allclose(found.other_acr, 1 - found.accuracy) and np.allclose(found.acr, 1.2 * (1 - found.accuracy))


def test_another_setting_adds_points_to_the_front() -> None:
    runs = runs_of({0: 1.0, 1: 1.0}).assign(train_eps_factor=np.nan)  # runs that know nothing of it have 1
    better = runs[(runs.method == "acert") & (runs.kappa == 0.5)].assign(train_eps_factor=0.5)
    found = equal_accuracy.ratios_by_seed(pd.concat([runs, better.assign(acr=2 * better.acr)]))
    at = dict(zip(found.accuracy.round(2), found.ratio, strict=True))
    assert at[0.6] == pytest.approx(2) and at[0.8] == pytest.approx(1)
    with pytest.raises(ValueError, match="there are two with .*train_eps_factor = 1.0, seed = 0; keep one"):
        equal_accuracy.ratios_by_seed(pd.concat([runs, runs]))


def test_only_what_all_seeds_reach() -> None:
    runs = runs_of({0: 1.0, 1: 1.0})
    runs.loc[(runs.seed == 1) & (runs.method == "acert"), "acc"] += 0.3
    assert equal_accuracy.ratios_by_seed(runs).accuracy.min() == pytest.approx(0.7)
    runs.loc[(runs.seed == 1) & (runs.method == "acert"), "acc"] += 0.3
    assert equal_accuracy.ratios_by_seed(runs).empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs.assign(dataset=["mnist", *runs.dataset[1:]]), r"several dataset \(digits, mnist\); choose"),
        (lambda runs: runs[runs.method == "acert"], "both must be among acert; got 'acert', 'fast-ibp'"),
        (lambda runs: runs[(runs.seed == 0) | (runs.method == "acert")], r"got \[0, 1\] and \[0\]"),
        (lambda runs: runs[runs.seed == 0], "at least two seeds"),
    ],
)
def test_one_clear_error(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        equal_accuracy.ratios_by_seed(change(runs_of({0: 1.0, 1: 1.1})))


def test_the_command_on_the_shipped_runs(capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", str(SHIPPED)]) == 0
    said = capsys.readouterr().out
    assert "cifar10" in said and "| Acc % | ACERT: ACR % | FastIBP: ACR % |" in said
    assert main(["compare", "/nowhere"]) == 1 and "there is no folder of runs" in capsys.readouterr().err


SEPARATE = {20: [SHIPPED], 40: [SHIPPED.parent / "trials/epochs-40", SHIPPED_FRONTS / "separate-40"]}  # by their epochs


@pytest.mark.parametrize("method", ["acert", "fast-ibp"])
@pytest.mark.parametrize(("epochs", "walk"), [(20, "cifar10-40"), (20, "cifar10-68"), (40, "cifar10-68")])
def test_the_tables_of_walks_beside_separate_trainings_are_the_commands(
    epochs: int, walk: str, method: str, capsys: pytest.CaptureFixture
) -> None:
    """A dataset that lacks one of the two is left out."""
    told_apart = ["--method", f"{method} (front)", "--other", method]
    check_rows([*SEPARATE[epochs], SHIPPED_FRONTS / walk], told_apart, capsys)


@pytest.mark.parametrize("folders", [SEPARATE[40], *([SHIPPED_FRONTS / f"cifar10-{n}"] for n in (40, 68))])
def test_the_tables_of_two_methods_are_the_commands(folders: list[Path], capsys: pytest.CaptureFixture) -> None:
    check_rows(folders, [], capsys)


def check_rows(folders: list[Path], options: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["compare", *map(str, folders), *options]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    told = (SHIPPED_FRONTS / "README.md").read_text(encoding="utf-8")
    assert len(rows) > 5 and [row for row in rows if row not in told] == []
