"""Many short jobs: what a sweep costs beyond its kernels, flat memory, and failing jobs that disturb nobody.

pytest -m slow -s tests/sweep/test_load.py     # 500 jobs of a second each; about 20 minutes on two cores
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median

import numpy as np
import psutil
import pytest

from acertlab._lock import LockHeldError
from acertlab.data.files import read_json
from acertlab.sweep import executor as sweep
from tests.helpers.notebooks import wait_for, write_notebook

CELLS = [
    """what = "sleep"
number = 0
seconds = 0.1
run_dir = "" """,
    """import json, os, time
from pathlib import Path

first, folder = time.time(), Path(run_dir)
attempts = folder / "attempts"
attempts.write_text(attempts.read_text() + "I" if attempts.exists() else "I")
if what == "assertion":
    assert number > 100, "this number is too small"
if what == "nan":
    import numpy as np
    from acertlab.data.datasets import ImageData
    from acertlab.training.config import TrainConfig
    from acertlab.training.loop.train import train
    import torch
    x, y = torch.randint(0, 255, (64, 1, 8, 8), dtype=torch.uint8), torch.arange(64) % 10
    data = ImageData("digits", x, y, x[:10], y[:10], x[:10], y[:10], tuple("0123456789"), (0.5,), (0.5,))
    train(TrainConfig(lr=1e30, clip=1e30, width=2, epochs=2, clean_epochs=2, ramp_epochs=0), data, folder / "run")
if what == "dies" or (what == "dies once" and len(attempts.read_text()) == 1):
    os.kill(os.getpid(), 9)
time.sleep(seconds)""",
    """import psutil
times = {"created": psutil.Process().create_time(), "first": first, "last": time.time()}
if what != "no result":
    (folder / "aside").write_text(json.dumps(times))
    os.replace(folder / "aside", folder / "result.json")""",
]
FLAT = 30.0  # MB that a process may grow by at its start,
FLAT_LATER = 5.0  # and by in the second half of 500 jobs


@contextmanager
def watched_memory() -> Iterator[dict[int, list[tuple[float, float]]]]:
    """(Time, resident MB) of this process and of the workers below it, twice a second; by process id."""
    sizes: dict[int, list[tuple[float, float]]] = {}
    me, done = psutil.Process(), threading.Event()

    def watch() -> None:
        while not done.wait(0.5):
            for process in (me, *me.children()):
                try:
                    if process == me or "spawn_main" in " ".join(process.cmdline()):
                        sizes.setdefault(process.pid, []).append((time.time(), process.memory_info().rss / 2**20))
                except psutil.Error:
                    pass

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


def load(folder: Path, jobs: int, seconds: float) -> tuple[float, dict[int, tuple[float, float]]]:
    """Seconds a job beyond its kernel's start and its own work; and every process's memory, early and late (MB)."""
    notebook = write_notebook(folder / "load.ipynb", CELLS)
    spec = {
        "notebook": str(notebook),
        "out": str(folder / "out"),
        "seconds": seconds,
        "grid": {"number": list(range(jobs))},
    }
    started = time.time()
    with watched_memory() as sizes:
        table = sweep.run(spec, workers=2, show=False)
    wall = time.time() - started
    assert (table.state == "done").all() and len(table) == jobs
    times = [read_json(Path(path) / "result.json") for path in table.path]
    own = [t["last"] - t["created"] for t in times]
    begin, end = min(t["created"] for t in times), max(t["last"] for t in times)
    overhead = 2 * (end - begin) / jobs - mean(own)
    starts = mean(t["first"] - t["created"] for t in times)
    print(
        f"\n{jobs} jobs: {wall:.0f} s; kernel's start {starts:.2f} s, its work {mean(own) - starts:.2f} s, "
        f"beyond {overhead:.2f} s a job"
    )
    memory = {}
    quarters = np.quantile([t["last"] for t in times], (0.25, 0.5, 0.75))
    for pid, samples in sizes.items():
        early = [size for at, size in samples if quarters[0] <= at <= quarters[1]]
        memory[pid] = median(early), median(size for at, size in samples if at >= quarters[2])
        who = "sweep and scheduler" if pid == os.getpid() else "worker"
        print(f"  {who}: {memory[pid][0]:.0f} MB in the second quarter, {memory[pid][1]:.0f} MB in the last")
    return overhead, memory


@pytest.mark.slow
def test_five_hundred_cells(tmp_path: Path) -> None:
    overhead, memory = load(tmp_path, 500, 1.0)
    assert overhead < 3.0
    assert len(memory) == 3 and all(late - early < FLAT_LATER for early, late in memory.values())


def test_twelve_cells(tmp_path: Path) -> None:
    overhead, memory = load(tmp_path, 12, 0.1)
    assert overhead < 20.0  # a fraction of a second, but not on every machine at every time
    assert len(memory) == 3 and all(late - early < FLAT for early, late in memory.values())


def test_failing_cells_disturb_nobody_and_a_second_sweep_is_refused(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "load.ipynb", CELLS)
    what = ["assertion", "dies", "dies once", "nan", "no result", "sleep"]
    spec = {"notebook": str(notebook), "out": str(tmp_path / "out"), "grid": {"what": what}}
    tables = []
    thread = threading.Thread(target=lambda: tables.append(sweep.run(spec, workers=2, show=False)))
    thread.start()
    wait_for((tmp_path / "out" / "cells").exists, "the first sweep begins")
    with pytest.raises(
        LockHeldError, match=f"the sweep's folder {tmp_path}/out is in use by process {os.getpid()} on .* since"
    ):
        sweep.run(spec, workers=2, show=False)
    thread.join()
    table = tables[0].set_index("what")
    assert table.state.to_dict() == {
        "assertion": "failed",
        "dies": "failed",
        "dies once": "done",
        "nan": "failed",
        "no result": "failed",
        "sleep": "done",
    }
    assert table.reason["assertion"] == "AssertionError: this number is too small"
    assert "the kernel died" in table.reason["dies"] and "3 attempts" in table.reason["dies"]
    assert "stopped being finite" in table.reason["nan"] and table.reason["nan"].startswith("NonFiniteLossError")
    assert "without writing result.json" in table.reason["no result"]
    attempts = {name: len((Path(table.path[name]) / "attempts").read_text()) for name in what}
    assert attempts == {"assertion": 1, "dies": 3, "dies once": 2, "nan": 1, "no result": 1, "sleep": 1}
    again = sweep.run(spec | {"grid": {"what": ["assertion", "sleep", "no result"]}}, workers=1, show=False)
    assert again.state.tolist() == ["failed", "done", "failed"]  # what failed is tried again,
    assert again.seconds.isna().tolist() == [False, True, False]  # what is done is not
