"""The table of methods: kappa by validation alone, PGD never below the certificate, nothing attacked twice."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import acertlab as al
from acertlab import _text
from acertlab.__main__ import main
from acertlab.analysis import method_table
from acertlab.analysis.method_table import tuned_table
from acertlab.analysis.seeds import validation_art
from acertlab.data.datasets import to_float
from acertlab.radius.attack import adversarial_accuracy
from acertlab.training.methods import catalogue
from tests.helpers.synthetic_runs import CAP, EPS_MAX, RUNS, synthetic_radii, write_sweep


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[al.Run, al.ImageData]:
    """A small network on few digits, finished."""
    data = al.load_dataset("digits").first(200)
    config = al.preset("digits", "acert", budget="smoke")
    return al.train(config, data, tmp_path_factory.mktemp("runs") / "a", progress=False), data


def test_validation_chooses_kappa_and_the_test_images_do_not(tmp_path: Path) -> None:
    radii = synthetic_radii({"acert": 1.0, "fast-ibp": 0.8}, seeds=2)
    best = {"acert": 0.5, "fast-ibp": 0.9}
    validation = {cell: 0.9 if cell[1] == best[cell[0]] else 0.1 for cell in radii}
    runs = al.load_runs(write_sweep(tmp_path, radii, validation))
    chosen = method_table.chosen_runs(runs)
    assert dict(zip(chosen.method, chosen.kappa, strict=True)) == best and len(chosen) == 4
    shown = method_table.methods_table(chosen.assign(adv_acc=None), [EPS_MAX])
    for row in shown.itertuples():
        group = chosen[chosen.method == next(m for m in best if catalogue.name_of(m) == row.method)]
        assert row.Acc == f"{100 * group.acc.mean():.2f} ± {100 * group.acc.std():.2f}" and row.seeds == 2
    assert not [name for name in shown if name.startswith("PGD")]
    attacked = [{str(EPS_MAX): 0.25} if method == "acert" else None for method in chosen.method]
    shown = method_table.methods_table(chosen.assign(adv_acc=attacked), [EPS_MAX])
    assert sorted(shown[f"PGD at {EPS_MAX:g}"]) == ["25.00 ± 0.00", "–"] and list(shown)[-1] == "s / epoch"
    lines = _text.markdown(shown).splitlines()
    assert len(lines) == 4 and all(line.count("|") == len(shown.columns) + 1 for line in lines)


def test_kappa_is_chosen_by_the_seeds_that_all_kappas_have(tmp_path: Path) -> None:
    radii = synthetic_radii({"acert": 1.0}, seeds=3)
    kappas = sorted({cell[1] for cell in radii})
    best, lucky = kappas[:2]  # validated with one lucky seed alone; the best has two more, which are worse
    validation = {cell: 0.9 - 0.2 * cell[2] if cell[1] == best else 0.8 for cell in radii}
    runs = al.load_runs(write_sweep(tmp_path, radii, validation))
    runs = runs[(runs.seed == 0) | (runs.kappa == best)]
    assert runs[runs.kappa == best].seed.nunique() == 3 and (runs.kappa == lucky).sum() == 1
    chosen = method_table.chosen_runs(runs)
    assert set(chosen.kappa) == {best} and sorted(chosen.seed) == [0, 1, 2]
    assert al.analyse(runs, resamples=50).tuned[0].kappa == best
    marked = tuned_table(runs.assign(art=validation_art(runs)))
    assert marked.kappa[marked.method.str.endswith("†")].tolist() == [best]
    apart = runs[(runs.seed > 0) | (runs.kappa != best)]  # no seed in common
    assert set(method_table.chosen_runs(apart).kappa) != {best}


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    radii = synthetic_radii({"acert": 1.0}, seeds=1)
    runs = al.load_runs(write_sweep(tmp_path / "a", radii))
    with pytest.raises(ValueError, match=r"acert.* was not validated"):
        method_table.chosen_runs(runs)
    with pytest.raises(ValueError, match=r"several dataset \(digits, mnist\); choose one"):
        method_table.chosen_runs(runs.assign(dataset=["digits", "mnist", "mnist"]))
    runs = al.load_runs(write_sweep(tmp_path / "b", radii, dict.fromkeys(radii, 0.5)))
    with pytest.raises(ValueError, match="eps = 0.123: certified accuracy was measured at"):
        method_table.methods_table(runs, [0.123])


def test_pgd_is_spared_where_the_certificate_decides(run, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = run
    eps, settings = [0.05, 0.1], {"steps": 5, "restarts": 2}
    seen = []

    def counting(model, x, *args, **kwargs):
        seen.append(len(x))
        return adversarial_accuracy(model, x, *args, **kwargs)

    monkeypatch.setattr(method_table, "adversarial_accuracy", counting)
    found = method_table.attack_run(run, data, eps, **settings)
    assert 0 < sum(seen) < 2 * len(data.test_x)
    model, x, y = run.load_model(), to_float(data.test_x), data.test_y
    for value in eps:
        certified = al.certified_accuracy(run.radii.radius.to_numpy(), [value])[0]
        everywhere = adversarial_accuracy(model, x, y, value, **settings)
        assert certified <= found[str(value)] <= al.accuracy(model, x, y)
        assert abs(found[str(value)] - everywhere) <= 2 / len(x)  # random starts differ
    again = al.load_run(run.path)
    assert again.result["adv_acc"] == found and again.result["acc"] == run.result["acc"]
    seen.clear()
    assert method_table.attack_run(again, data, eps, **settings) == found and not seen
    assert method_table.attack_run(again, data, eps[:1], steps=6, restarts=1).keys() == {"0.05"} and seen
    with pytest.raises(ValueError, match=r"eps = 0.9: accepted is > 0 and <= "):
        method_table.attack_run(again, data, [0.9])


def test_the_command(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["table", str(tmp_path)]) == 1
    assert "there is no finished run" in capsys.readouterr().err
    radii = synthetic_radii({"acert": 1.0, "fast-ibp": 0.8}, seeds=2)
    for method in ("acert", "fast-ibp"):
        own = {cell: of for cell, of in radii.items() if cell[0] == method}
        write_sweep(tmp_path / method, own, {cell: 0.5 + np.mean(own[cell]) / CAP / 10 for cell in own})
    assert main(["table", str(tmp_path), "--eps", "1/20"]) == 0
    said = capsys.readouterr().out
    assert main(["table", str(tmp_path / "acert"), str(tmp_path / "fast-ibp"), "--eps", "1/20"]) == 0
    assert capsys.readouterr().out == said
    with pytest.raises(SystemExit):
        main(["table", str(tmp_path), "--eps", "1/0"])
    assert "--eps: invalid number value: '1/0'" in capsys.readouterr().err
    assert f"digits, eps_max {EPS_MAX:g}" in said and "| ACERT | " in said and "cert. at 0.05" in said


class TestTunedTable:
    def test_the_smallest_kappa_and_the_best(self):
        tuned = tuned_table(RUNS)
        assert tuned.method.tolist() == ["Standard", "FastIBP", "FastIBP †", "ACERT †"]
        assert tuned.kappa.tolist() == [1.0, 0.0, 0.8, 0.0]
        np.testing.assert_allclose(tuned.Acc, [98, 70, 88, 82])
        np.testing.assert_allclose(tuned.ART[2], 100 * np.sqrt(0.88 * 0.62))

    def test_several_datasets(self):
        tuned = tuned_table(pd.concat([RUNS, RUNS.assign(dataset="mnist")]))
        assert tuned.dataset.tolist() == ["digits"] * 4 + ["mnist"] * 4
