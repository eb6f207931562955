"""Locks die with their processes."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from acertlab._lock import LockHeldError, locked
from acertlab.data.datasets import load_dataset
from acertlab.training.config import TrainConfig
from acertlab.training.loop import train as loop
from acertlab.training.loop.train import train
from tests.helpers.notebooks import ROOT

HOLD = """
import sys, time
from pathlib import Path
from acertlab._lock import locked
with locked(Path(sys.argv[1]), "the folder"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def test_another_process_is_named_and_its_death_frees_the_lock(tmp_path: Path, environment: dict[str, str]) -> None:
    path = tmp_path / "new" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"held\n"
        said = rf"^my folder is in use by process {other.pid} on .+ since \d{{4}}-"
        with pytest.raises(LockHeldError, match=said), locked(path, "my folder"):
            pass
        other.kill()
    with locked(path, "my folder"):
        assert f'"pid": {os.getpid()}' in path.read_text()
        with pytest.raises(LockHeldError, match=f"process {os.getpid()} "), locked(path, "my folder", wait=0.2):
            pass
    with locked(path, "my folder"):  # given up at the end of the block
        pass


FORK = HOLD.replace("time.sleep", "if child := os.fork():\n        print(child, flush=True)\n    time.sleep")


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", FORK.replace("import sys", "import os, sys"), tmp_path / ".lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout.readline() == b"held\n"
        child = int(other.stdout.readline())
        with pytest.raises(LockHeldError), locked(tmp_path / ".lock", "the folder"):
            pass
        other.kill()
        with locked(tmp_path / ".lock", "the folder", wait=5.0):
            assert psutil.pid_exists(child)
        os.kill(child, signal.SIGKILL)


def test_two_processes_never_train_the_same_run(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LOCK_WAIT", 0.2)
    config, images = TrainConfig(width=2, epochs=1, clean_epochs=1, ramp_epochs=0), load_dataset("digits")
    lock = tmp_path / "run" / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, env=environment) as other:
        other.stdout.readline()
        with pytest.raises(LockHeldError, match=f"run_dir: {tmp_path}/run is in use by process {other.pid}"):
            train(config, images, tmp_path / "run", progress=False)
        assert not (tmp_path / "run" / "config.json").exists()
        other.kill()
    result = train(config, images, tmp_path / "run", progress=False).result
    with locked(lock, "the folder"):  # a finished run is read whoever has the lock: its folder may be read-only
        assert train(config, images, tmp_path / "run", progress=False).result == result


def test_where_there_are_no_locks_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with locked(tmp_path / ".lock", "the folder"), locked(tmp_path / ".lock", "the folder"):
        pass
    assert caplog.text.count("cannot be locked ([Errno 95] Operation not supported): nothing keeps two processes") == 2
