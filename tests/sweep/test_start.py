"""What keeps a sweep from starting is said at once."""

import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from acertlab.sweep import executor as sweep, job as jobs
from acertlab.sweep.start import visible_gpus
from tests.helpers.notebooks import ROOT, WAIT, write_notebook
from tests.sweep.test_executor import QUICK


def test_a_long_folder_for_temporary_files_is_no_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))  # a kernel's sockets would have too long a path
    monkeypatch.setattr(tempfile, "tempdir", None)
    spec = {"notebook": str(write_notebook(tmp_path / "quick.ipynb", QUICK)), "out": str(tmp_path / "out")}
    table = sweep.run(spec, workers=1, show=False)
    assert table.state.tolist() == ["done"] and table.acc.tolist() == [0.5]


def test_folders_that_will_not_do_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    folder = jobs._socket_folder()
    assert Path(folder).parent != tmp_path / "gone"
    os.rmdir(folder)
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"TMPDIR = .*gone: .*No space left on device"):
        jobs._socket_folder()


def test_the_reason_of_a_kernel_that_does_not_come_is_told(tmp_path: Path) -> None:
    (tmp_path / "ipykernel").mkdir()
    (tmp_path / "ipykernel" / "__init__.py").write_text("raise ImportError('this ipykernel is broken')")
    notebook = write_notebook(tmp_path / "quick.ipynb", QUICK)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({"notebook": str(notebook), "out": str(tmp_path / "out")}))
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "acertlab", "sweep", str(tmp_path / "spec.yaml"), "--workers", "1"]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=WAIT)
    assert ran.returncode == 1
    assert "kernel.log: ImportError: this ipykernel is broken" in ran.stderr


def test_a_script_without_a_main_guard_gets_one_sentence(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "quick.ipynb", QUICK)
    call = f"sweep.run({{'notebook': {str(notebook)!r}, 'out': {str(tmp_path / 'out')!r}}}, workers=1, show=False)"
    (tmp_path / "bare.py").write_text(f"from acertlab import sweep\ndef go():\n    {call}\ngo()\n")
    (tmp_path / "guarded.py").write_text(f"from acertlab import sweep\nif __name__ == '__main__':\n    {call}\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": WAIT}
    bare, guarded = (subprocess.run([sys.executable, name], **options) for name in ("bare.py", "guarded.py"))
    assert bare.returncode == 1 and bare.stderr.count("\n") < 15 and not bare.stdout
    assert "bare.py, line 4: a sweep on this machine belongs below" in bare.stderr.strip().splitlines()[-1]
    assert guarded.returncode == 0, guarded.stderr


WHOLE = "GPU 0: NVIDIA H200 (UUID: GPU-5d1)\nGPU 1: NVIDIA H200 (UUID: GPU-7f0)\n"
CUT = "GPU 0: A100 (UUID: GPU-5d1)\n  MIG 3g.20gb  Device  0: (UUID: MIG-a1)\n  MIG 1g.5gb  Device  1: (UUID: MIG-b2)\n"
GPUS = {  # CUDA_VISIBLE_DEVICES, what nvidia-smi lists -> what a sweep uses
    (None, WHOLE): ["GPU-5d1", "GPU-7f0"],
    (None, CUT + "GPU 1: A100 (UUID: GPU-7f0)\n"): ["MIG-a1", "MIG-b2", "GPU-7f0"],
    (None, "No devices found.\n"): [],
    ("2,0", WHOLE): ["2", "0"],
    ("MIG-b2", CUT): ["MIG-b2"],
    ("GPU-7f0, MIG-GPU-5d1/1/0", CUT): ["GPU-7f0", "MIG-GPU-5d1/1/0"],
    ("", WHOLE): [],
    ("-1", WHOLE): [],
    ("1,-1,0", WHOLE): ["1"],  # CUDA hides what follows an entry that is no device
}


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands for nvidia-smi")
@pytest.mark.parametrize(("visible", "listed"), GPUS)
def test_gpus_are_those_that_cuda_shows(
    visible: str | None, listed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "listed").write_text(listed)
    (tmp_path / "nvidia-smi").write_text(f'#!/bin/sh\n[ "$*" = -L ] && cat {tmp_path}/listed\n')
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == GPUS[visible, listed]


def test_gpus_are_found_without_torch() -> None:
    code = "from acertlab.sweep.start import visible_gpus\nvisible_gpus()\nimport sys\nprint('torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"


ON_A_GPU = [
    'device = "auto"\nlog = ""\njob = 0\nrun_dir = ""',
    """import json, os, signal, time
from itertools import pairwise
from pathlib import Path

killed = Path(log, "killed")
if job == 0 and not killed.exists():
    killed.touch()
    os.kill(os.getppid(), signal.SIGKILL)  # its worker
    time.sleep(60)
began = time.time()
time.sleep(1)
told = {"gpu": os.environ["CUDA_VISIBLE_DEVICES"], "began": began, "ended": time.time()}
Path(log, f"{job}.json").write_text(json.dumps(told))
Path(run_dir, "result.json").write_text("{}")""",
]


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process")
def test_a_gpu_is_one_jobs_at_a_time_also_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-5d1,MIG-b2")
    spec = {"notebook": str(write_notebook(tmp_path / "on_a_gpu.ipynb", ON_A_GPU)), "out": str(tmp_path / "out")}
    table = sweep.run(spec | {"log": str(tmp_path), "grid": {"job": list(range(5))}}, show=False)
    assert (tmp_path / "killed").exists() and (table.state == "done").all()
    told = [json.loads((tmp_path / f"{job}.json").read_text()) for job in range(5)]
    assert {job["gpu"] for job in told} == {"GPU-5d1", "MIG-b2"}
    for gpu in ("GPU-5d1", "MIG-b2"):
        of = sorted((job["began"], job["ended"]) for job in told if job["gpu"] == gpu)
        assert all(one[1] <= next_[0] for one, next_ in pairwise(of))
