"""What keeps a sweep from starting is said at once."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from acertlab.sweep import executor as sweep, job as jobs
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
