"""Freed memory stays with the process while it works."""

import subprocess
import sys

import pytest
import torch

from acertlab import _memory as module
from acertlab._memory import memory_kept

glibc = pytest.mark.skipif(not module._mallopt(), reason="needs glibc's malloc")


COUNT = """
import resource, torch
from acertlab._memory import memory_kept

def faults(rounds):  # pages that the operating system had to clear while blocks of 40 MB came and went
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        blocks = [torch.zeros(10_000_000) for _ in range(3)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = faults(5)
with memory_kept():
    with memory_kept():
        faults(20)
    print(before, faults(5))  # the inner block's end changes nothing
"""


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in module.SET_BY_USER:
        monkeypatch.delenv(name, raising=False)


@glibc
@pytest.mark.usefixtures("unset")
def test_freed_memory_is_used_again() -> None:
    told = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True).stdout
    before, inside = map(int, told.split())
    assert before > 20 * (inside + 100), told


@pytest.mark.usefixtures("unset")
def test_only_the_outermost_block_gives_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(module, "_mallopt", lambda: lambda threshold, size: told.append(size))
    for _ in range(2):
        with pytest.raises(KeyError), memory_kept():
            with memory_kept():
                pass
            assert told == [module.KEEP] * 2
            raise KeyError
        assert told[2:] == list(module.USUAL.values())
        told.clear()


def test_what_the_environment_says_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.setattr(module, "_mallopt", lambda: pytest.fail("the allocator was changed"))
    with memory_kept():
        pass


@pytest.mark.usefixtures("unset")
def test_where_there_is_no_mallopt_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: object())
    assert module._mallopt() is None
    with memory_kept():
        assert torch.zeros(3).sum() == 0
