"""The demo's parts; the whole is `make demo`."""

from pathlib import Path

import pandas as pd
import pytest

from acertlab import demo
from acertlab.sweep import executor as sweep
from acertlab.sweep.spec import read_spec


def test_the_grid_is_accepted_and_reaches_from_unprotected_to_robust() -> None:
    cells = read_spec(demo.SPEC).cells
    assert len(cells) == 9
    assert {(cell.parameters["method"], cell.parameters["kappa"]) for cell in cells} >= {
        ("standard", 1.0),
        ("acert", 0.0),
    }


def test_what_failed_is_named_and_03_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ACERTLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(demo, "draw", lambda out: pytest.fail("03 was executed"))
    row = {"method": "acert", "acc": 0.9, "acr": 0.5, "art": 0.7, "reason": "", "seconds": 1.0, "path": str(tmp_path)}
    rows = [row | {"kappa": 0.0, "state": "done"}, row | {"kappa": 0.5, "state": "failed", "reason": "ValueError: no"}]
    monkeypatch.setattr(sweep, "run", lambda spec, out: pd.DataFrame(rows) if out == tmp_path / "demo" else None)
    assert demo.main() == 1
    said = capsys.readouterr().err
    assert "acert kappa=0.5 failed: ValueError: no" in said and "1 of 2 runs failed" in said


def test_done_means_table_notebook_and_html(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ACERTLAB_RUNS", str(tmp_path))
    (tmp_path / "demo").mkdir()
    monkeypatch.setattr(demo, "draw", lambda out: out / "03_pareto.ipynb")
    row = {"method": "acert", "kappa": 0.5, "acc": 0.9, "acr": 0.5, "art": 0.67, "state": "done", "reason": "",
           "seconds": 1.0, "path": str(tmp_path)}  # fmt: skip
    monkeypatch.setattr(sweep, "run", lambda spec, out: pd.DataFrame([row]))
    assert demo.main() == 0
    assert (tmp_path / "demo" / "results.csv").read_text() == "method,kappa,Acc,ACR,ART\nacert,0.50,90.00,50.00,67.00\n"
    said = capsys.readouterr().out
    assert "90.00 50.00 67.00" in said and "03_pareto.html" in said and "results.csv" in said
