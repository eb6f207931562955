"""Notebook 03, run as a batch does: it speaks of what it shows."""

import json
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest

import acertlab as al
from acertlab.data.files import write_json, write_parquet
from acertlab.data.run import SHIPPED

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "03_pareto.ipynb"


def said(tmp_path: Path, **parameters: object) -> str:
    """All that an executed copy shows, figures' titles and texts."""
    out = tmp_path / "out.ipynb"
    papermill.execute_notebook(NOTEBOOK, out, parameters, kernel_name="python3", progress_bar=False, start_timeout=600)
    outputs = [out for cell in nbformat.read(out, 4).cells if cell.cell_type == "code" for out in cell.outputs]
    return "\n".join(json.dumps(output) for output in outputs)


@pytest.fixture
def one_method(synthetic_runs: Path, tmp_path: Path) -> Path:
    root = tmp_path / "mine"
    for run in synthetic_runs.glob("acert-*"):
        shutil.copytree(run, root / run.name)
    return root


def test_with_one_method_nothing_is_compared(one_method: Path, tmp_path: Path) -> None:
    text = said(tmp_path, runs_root=str(one_method))
    assert "3 of digits (mine)" in text and "Accuracy against robustness" in text
    assert "At equal accuracy" not in text and "At a standard accuracy" not in text and " x that of" not in text
    assert "standard network" not in text and "first row" not in text  # there is none, and there are no images


def test_one_run_of_mine_stands_beside_the_shipped_fronts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = al.load_runs(SHIPPED / "fronts")
    run = al.load_run(shipped[(shipped.dataset == "cifar10") & (shipped.method == "acert")].path.iloc[0])
    mine = tmp_path / "runs" / "mine"  # a run's folder of the same content
    for name, content in (("config", run.config), ("result", run.result)):
        write_json(mine / f"{name}.json", content)
    for name, table in (("radii", run.radii), ("history", run.history)):
        write_parquet(mine / f"{name}.parquet", table)
    monkeypatch.setenv("ACERTLAB_RUNS", str(mine.parent))
    text = said(tmp_path)
    assert "37 of cifar10 (both)" in text
    assert "At equal accuracy" in text and "the ACR of ACERT is 1.132 x that of FastIBP" in text
    assert '"name": "ACERT (mine)"' in text
