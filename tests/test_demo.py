"""The demo's parts; the whole is `make demo`."""

import json
from pathlib import Path

import pandas as pd
import pytest

import acertlab as al
from acertlab import demo


def test_a_notebooks_own_error_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = demo.subprocess.run
    monkeypatch.setattr(demo.subprocess, "run", lambda *a, **k: calls.append(a) or run(*a, **k))
    log = tmp_path / "cell.log"
    parameters = {"dataset": "digits", "methd": "acert", "run_dir": str(tmp_path / "run")}
    assert not demo.execute(demo.ROOT / "notebooks/02_training.ipynb", tmp_path / "out.ipynb", parameters, log)
    assert len(calls) == 1
    assert "methd" in log.read_text() and "method" in log.read_text()
    assert not (tmp_path / "run").exists()  # refused before anything is written


def test_a_finished_cell_of_this_version_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "OUT", tmp_path)
    executed = []
    monkeypatch.setattr(demo, "execute", lambda *a: executed.append(a))
    folder = demo.cell_folder("acert", 0.25)
    folder.mkdir(parents=True)
    for version, times in ((al.__version__, 0), ("0.0.0", 1)):
        (folder / "result.json").write_text(json.dumps({"version": version, "acc": 0.5}))
        assert demo.train_cell("acert", 0.25)["acc"] == 0.5
        assert len(executed) == times
    assert demo.train_cell("acert", 0.5) is None  # nothing was written


def test_the_table_is_in_percent_and_in_order() -> None:
    runs = pd.DataFrame({"method": ["b", "a"], "kappa": [0.5, 0.0], "acc": 0.5, "acr": [0.1, 0.2], "art": 0.3, "x": 1})
    table = demo.result_table(runs)
    assert list(table.columns) == ["method", "kappa", "Acc", "ACR", "ART"]
    assert table.values.tolist() == [["a", 0.0, 50.0, 20.0, 30.0], ["b", 0.5, 50.0, 10.0, 30.0]]
