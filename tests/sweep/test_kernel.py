"""Kernels die with their parents."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.notebooks import ROOT, wait_for


@pytest.fixture
def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


PARENT = """
import os, subprocess, sys, time
kernel = subprocess.Popen([sys.executable, "-m", "acertlab.sweep.kernel", "-f", sys.argv[1]],
                          env=os.environ | {"JPY_PARENT_PID": str(os.getpid())}, start_new_session=True)
print(kernel.pid, flush=True)
time.sleep(600)
"""


def test_a_kernel_dies_with_its_parent(tmp_path: Path, environment: dict[str, str]) -> None:
    """Once while it starts, once when it is up; without help from the parent, which is killed."""
    for up in (False, True):
        told = tmp_path / f"kernel-{up}.json"
        command = [sys.executable, "-c", PARENT, told]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, cwd=tmp_path) as parent:
            kernel = psutil.Process(int(parent.stdout.readline()))
            if up:
                wait_for(told.exists, "the kernel is up")
            parent.kill()
        wait_for(lambda kernel=kernel: not kernel.is_running() or kernel.status() == "zombie", "the kernel ends")
        assert up or not told.exists()


def test_a_kernel_without_its_parent_does_not_start(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "acertlab.sweep.kernel", "-f", "nowhere.json"]
    ended = subprocess.run(command, env=environment | {"JPY_PARENT_PID": "1"}, capture_output=True, text=True)
    assert ended.returncode == 1 and "has ended" in ended.stderr
