"""What is shown while a sweep runs."""

import io
import time
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from acertlab.data.files import write_json, write_parquet
from acertlab.sweep import progress as board_module
from acertlab.sweep.progress import ProgressTable, Row, time_left
from acertlab.sweep.spec import read_spec


@pytest.fixture
def progress(tmp_path: Path) -> ProgressTable:
    return ProgressTable(
        read_spec({"grid": {"method": ["acert", "fast-ibp"], "kappa": [0, 0.5]}}, out=tmp_path), show=True
    )


def text_of(progress: ProgressTable, height: int = 40) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(progress.table(height))
    return console.file.getvalue()


def trained(row: Row, epochs: int, seconds: float = 10.0) -> None:
    """As training leaves a folder after so many of eight epochs."""
    write_json(row.job.folder / "config.json", {"epochs": 8})
    if epochs:
        history = pd.DataFrame({"epoch": range(epochs), "seconds": seconds, "val_art": 0.5 + 0.01 * epochs})
        write_parquet(row.job.folder / "history.parquet", history)


def test_every_state_is_told(progress: ProgressTable, capsys: pytest.CaptureFixture) -> None:
    waiting, running, done, failed = progress.rows.values()
    progress.finished(done.job.name, "Acc 93.10, ACR 80.00, ART 86.30")
    progress.begun(failed.job.name, "tcp://b")
    progress.finished(failed.job.name, "FloatingPointError: no longer finite", failed=True, seconds=12)
    progress.begun(running.job.name, "tcp://a")
    progress.refresh(["tcp://a", "tcp://b"])
    assert "acert kappa=0.5 seed=0     running  starting" in text_of(progress)
    trained(running, 0)
    progress.refresh(["tcp://a", "tcp://b"])
    assert "epoch 0/8" in text_of(progress)
    trained(running, 3)
    progress.refresh(["tcp://a", "tcp://b"])
    text = text_of(progress)
    assert (
        "4 jobs: 1 done, 1 running, 1 waiting, 1 failed; about 80 s left" in text
    )  # the waiting one's 8 epochs of 10 s
    assert "epoch 3/8, ART 53.0" in text and "Acc 93.10" in text and "FloatingPointError: no longer finite" in text
    assert waiting.state == "waiting"
    assert "fast-ibp kappa=0.5 seed=0: FAILED: FloatingPointError" in capsys.readouterr().out  # a line, off a terminal


def test_a_worker_that_is_heard_of_again_still_runs_its_cell(progress: ProgressTable) -> None:
    row = next(iter(progress.rows.values()))
    progress.begun(row.job.name, "tcp://a")
    for workers, state in (([], "waiting"), (["tcp://b"], "waiting"), (["tcp://a", "tcp://b"], "running")):
        progress.refresh(workers)
        assert row.state == state and row.attempts == 1


def test_a_cell_whose_worker_is_gone_waits_and_says_its_next_attempt(progress: ProgressTable) -> None:
    row = next(iter(progress.rows.values()))
    progress.begun(row.job.name, "tcp://a")
    progress.refresh(["tcp://b"])
    assert row.state == "waiting"
    progress.begun(row.job.name, "tcp://b")
    progress.refresh(["tcp://b"])
    assert row.state == "running" and row.progress() == "starting, attempt 2"


def test_no_worker_at_all_is_told(progress: ProgressTable) -> None:
    progress.refresh([])
    assert progress.summary() == "4 jobs: 4 waiting; no worker"
    progress.refresh(["tcp://a"])
    assert progress.summary() == "4 jobs: 4 waiting"


def test_damaged_files_do_not_stop_the_display(progress: ProgressTable) -> None:
    row = next(iter(progress.rows.values()))
    trained(row, 2)
    (row.job.folder / "history.parquet").write_bytes(b"PAR1 no")
    row.peek()
    (row.job.folder / "config.json").write_text("[")
    row.peek()
    assert (row.epoch, row.epochs) == (0, 8)


def test_the_table_fits_the_screen_and_shows_what_runs(tmp_path: Path) -> None:
    progress = ProgressTable(read_spec({"grid": {"seed": list(range(300))}}, out=tmp_path), show=False)
    for i, row in enumerate(progress.rows.values()):
        if i < 200:
            progress.finished(row.job.name, "Acc 1")
        elif i < 204:
            progress.begun(row.job.name, "tcp://a")
    text = text_of(progress, height=24)
    assert len(text.splitlines()) <= 24
    assert all(f"seed={i} " in text for i in (200, 201, 202, 203, 199)) and "seed=10 " not in text


def test_time_left(progress: ProgressTable) -> None:
    rows = list(progress.rows.values())
    assert time_left(rows, 1) is None  # nothing to judge by
    progress.finished(rows[0].job.name, "", seconds=100)
    assert time_left(rows, 1) == pytest.approx(300)
    assert time_left(rows, 2) == pytest.approx(150)
    progress.finished(rows[2].job.name, "", seconds=20)  # the other method
    assert time_left(rows, 1) == pytest.approx(120)
    progress.begun(rows[1].job.name, "tcp://a")
    rows[1].began = time.monotonic() - 60
    assert time_left(rows, 1) == pytest.approx(60, abs=1)
    trained(rows[1], 6, seconds=30)
    rows[1].peek()
    assert time_left(rows, 1) == pytest.approx(80, abs=1)  # two epochs, and the other method's job
    assert time_left(rows, 2) == pytest.approx(60, abs=1)  # no sooner than the longest
    for row in rows:
        progress.finished(row.job.name, "", seconds=1)
    assert time_left(rows, 2) == 0 and progress.summary() == "4 jobs: 4 done"


def test_off_a_terminal_what_runs_is_told_once_in_a_while(
    progress: ProgressTable, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(iter(progress.rows.values()))
    progress.begun(row.job.name, "tcp://a")
    with progress:
        progress.refresh(["tcp://a"])
        assert capsys.readouterr().out == ""
        monkeypatch.setattr(board_module, "EVERY", 0.0)
        progress.refresh(["tcp://a"])
    assert "acert kappa=0 seed=0: starting  [4 jobs: 1 running, 3 waiting]" in capsys.readouterr().out
