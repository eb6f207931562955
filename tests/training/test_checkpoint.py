"""A run that is killed, or whose checkpoints are damaged, another's or cannot be written, goes on or says why."""

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace

import pytest
from safetensors.torch import load_file, save_file

from acertlab.training.config import preset
from acertlab.training.loop.train import train
from tests.helpers.training import SMALL, Interrupted, assert_same_weights, stop_after, weights

CHILD = textwrap.dedent("""
    import sys
    import torch
    torch.set_num_threads(1)
    from acertlab.data.datasets import load_dataset
    from acertlab.training.config import TrainConfig
    from acertlab.training.loop.train import train
    train(TrainConfig(**eval(sys.argv[2])), load_dataset("digits"), sys.argv[1], progress=False)
""")


@pytest.mark.parametrize("history", [False, True])
def test_a_killed_run_goes_on_bit_for_bit(history, digits, tmp_path):
    """SIGKILL at a random moment after the first epoch; the same run again; compared with a run left in peace."""
    config = replace(
        preset("digits", "acert", budget="fast"),
        width=2,
        batch_size=128,
        epochs=10,
        ramp_epochs=5,
        radius_history=history,
        device="cpu",
    )
    killed = tmp_path / "killed"
    command = [sys.executable, "-c", CHILD, str(killed), repr(asdict(config))]
    with subprocess.Popen(command) as process:
        while process.poll() is None and not list((killed / "checkpoint").glob("epoch-*")):
            time.sleep(0.01)
        delay = random.uniform(0, 0.4)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, f"after {delay:.3f} s"
    assert not (killed / "result.json").exists(), f"after {delay:.3f} s"
    resumed, whole = (train(config, digits, folder, progress=False) for folder in (killed, tmp_path / "whole"))
    assert_same_weights(weights(resumed.path), weights(whole.path))
    assert resumed.radii.equals(whole.radii)
    assert resumed.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    assert not [path for path in killed.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("scheduler", ["onecycle", "step"])
@pytest.mark.parametrize("damage", [None, "last", "all", "json"])
def test_a_damaged_checkpoint_is_named_and_passed_over(few, tmp_path, monkeypatch, caplog, damage, scheduler):
    config = replace(SMALL, scheduler=scheduler, milestones=(2,))
    whole = train(config, few, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_after(3, patched)
        train(config, few, tmp_path / "cut", progress=False)
    folders = sorted((tmp_path / "cut" / "checkpoint").iterdir())
    assert [folder.name for folder in folders] == ["epoch-0002", "epoch-0003"]
    damaged = {None: [], "last": folders[1:], "all": folders, "json": folders[1:]}[damage]
    for folder in damaged:
        path = folder / ("state.json" if damage == "json" else "state.safetensors")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    resumed = train(config, few, tmp_path / "cut", progress=False)
    assert [str(folder) in caplog.text for folder in folders] == [folder in damaged for folder in folders]
    assert_same_weights(weights(resumed.path), weights(whole.path))
    assert len(resumed.history) == 4


@pytest.mark.parametrize("foreign", ["seed", "shape"])
def test_a_foreign_checkpoint_is_named_and_never_loaded(few, tmp_path, monkeypatch, caplog, foreign):
    other = replace(SMALL, seed=1) if foreign == "seed" else replace(SMALL, width=16)
    for config, name in ((SMALL, "cut"), (other, "other")):
        with monkeypatch.context() as patched, pytest.raises(Interrupted):
            stop_after(3, patched)
            train(config, few, tmp_path / name, progress=False)
    shutil.rmtree(tmp_path / "cut" / "checkpoint" / "epoch-0003")
    shutil.copytree(tmp_path / "other" / "checkpoint" / "epoch-0003", tmp_path / "cut" / "checkpoint" / "epoch-0003")
    resumed = train(SMALL, few, tmp_path / "cut", progress=False)
    assert "epoch-0003 is passed over: it belongs to another run" in caplog.text
    assert "epoch-0002" not in caplog.text
    assert_same_weights(weights(resumed.path), weights(train(SMALL, few, tmp_path / "whole", progress=False).path))


def test_radii_that_an_earlier_version_kept_are_left_out(few, tmp_path, monkeypatch, caplog):
    """What was remembered of a sample is another thing now: the run goes on from the weights, and searches anew."""
    config = replace(SMALL, method="acert", radius_history=True)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_after(3, patched)
        train(config, few, tmp_path, progress=False)
    folder = tmp_path / "checkpoint" / "epoch-0003"
    state = load_file(folder / "state.safetensors")
    state["radii.slope"] = state.pop("radii.factor")
    save_file(state, folder / "state.safetensors")
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("state.*")}
    (folder / "sha256.json").write_text(json.dumps(sums))
    assert len(train(config, few, tmp_path, progress=False).history) == 4 and "passed over" not in caplog.text


FULL = textwrap.dedent("""
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
""")


def test_a_full_disk_is_a_clear_error_and_loses_nothing(digits, tmp_path, monkeypatch):
    """The child may write no file larger than so many bytes: less than a checkpoint, as on a disk without room."""
    config = replace(SMALL, epochs=3, ramp_epochs=1)
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        stop_after(1, patched)
        train(config, digits, tmp_path / "run", progress=False)
    before = load_file(tmp_path / "run" / "checkpoint" / "epoch-0001" / "state.safetensors")
    limited = CHILD.replace("import torch", FULL + "import torch", 1)
    full = [sys.executable, "-c", limited, str(tmp_path / "run"), repr(asdict(config)), "20000"]
    failed = subprocess.run(full, capture_output=True, text=True)
    assert failed.returncode == 1
    message = failed.stderr.strip().splitlines()[-1]
    assert "File too large; the checkpoint epoch-0001 is whole; make room and give the same command again" in message
    assert str(tmp_path / "run") in message
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoint").iterdir())
    assert kept == ["epoch-0001"] and not list(tmp_path.rglob("*.tmp"))
    after = load_file(tmp_path / "run" / "checkpoint" / "epoch-0001" / "state.safetensors")
    assert_same_weights(before, after)
    resumed, whole = (train(config, digits, tmp_path / name, progress=False) for name in ("run", "whole"))
    assert_same_weights(weights(resumed.path), weights(whole.path))
