"""Freed memory stays with the process while it works."""

import subprocess
import sys

import pytest
import torch

from acertlab import _memory as module
from acertlab._memory import ON_CPU, PeakMemory, free_memory, memory_kept, peak_growth

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


def test_peak_memory_follows_what_lives() -> None:
    def three_but_two_at_once() -> None:
        a = torch.ones(1000)
        b = a + 1
        del a
        b.mul_(2).view(10, 100)  # in place and as a view: nothing new
        c = b * 2
        del b, c

    with PeakMemory() as seen:
        three_but_two_at_once()
    assert (seen.peak, seen.held) == (2 * 4000, 0)
    with PeakMemory() as seen:
        kept = torch.zeros(500)
        torch.zeros(500)
    assert (seen.peak, seen.held) == (4000, 2000)
    assert len(kept) == 500


def test_growth_is_the_rows_own(device: str = "meta") -> None:
    weight = torch.ones(100, 100, device=device)

    def work(rows: int) -> None:
        (torch.ones(rows, 100, device=device) @ weight.abs()).relu_().sum()

    assert peak_growth(work, 8) == 2 * 400  # input and product, whatever |weight| takes


def test_half_of_a_gpus_free_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for name, value in {"mem_get_info": (60, 80), "memory_reserved": 20, "memory_allocated": 5}.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value if device == gpu else None)
    assert free_memory(gpu) == (60 + 20 - 5) // 2
    assert free_memory(torch.device("cpu")) == ON_CPU == 2**29
