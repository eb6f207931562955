"""Any number of samples in bounded memory; and memory that the C library keeps instead of giving it back."""

import ctypes
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEEP = 2**30  # bytes of free memory that are not given back, and of a block that is not mapped by itself
USUAL = {TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25}  # where glibc's own adjustment ends once large blocks were freed
SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
ON_CPU = 2**29  # bytes that a call's tensors may take there
SHARE = 0.5  # of a GPU's free memory: the rest is for cuDNN's own buffers, which nobody can count before, and for gaps
Part = TypeVar("Part")


_inside = 0  # calls of memory_kept that have not ended


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, freed memory stays with the process; when the outermost such block ends it is given back as before.

    By itself glibc gives each large block back to the operating system, which clears it again page by page: a training
    step of a CNN7 of width 64 takes 1.085 times as long, a search for 1024 radii of a small CNN 1.5 times. Where there
    is no glibc, or its thresholds are set by the environment, nothing is changed.
    """
    global _inside
    if any(name in os.environ for name in SET_BY_USER) or not (mallopt := _mallopt()):
        yield
        return
    if not _inside:
        for threshold in USUAL:
            mallopt(threshold, KEEP)
    _inside += 1
    try:
        yield
    finally:
        _inside -= 1
        if not _inside:
            for threshold, value in USUAL.items():
                mallopt(threshold, value)


def _mallopt() -> Callable[[int, int], int] | None:
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
        return ctypes.CDLL(None).mallopt
    except (AttributeError, ValueError, OSError):  # macOS and Windows, musl
        return None


def out_of_memory(error: Exception) -> bool:
    told = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        "allocate memory" in told or "not enough memory" in told or "out of memory" in told
    )


def in_chunks(work: Callable[[slice], Part], n: int, size: int, *, desc: str, progress: bool) -> list[Part]:
    """``work`` on the slices of n samples, ``size`` each, on an empty one if n is 0; one too large is halved."""
    parts, start = [], 0
    with tqdm(total=n, desc=desc, unit="sample", disable=not progress) as bar:
        while start < n or not parts:
            try:
                parts.append(work(slice(start, start + size)))
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
                size = (min(size, n) + 1) // 2  # the next try is outside, where the failed work's tensors are free
            else:
                bar.update(min(size, n - start))
                start += size
    return parts


def free_memory(device: torch.device) -> int:
    """Bytes that a call's tensors may take: on a CPU `ON_CPU`, on a GPU the `SHARE` of what is free there."""
    if device.type != "cuda":
        return ON_CPU
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes
    return int(SHARE * (torch.cuda.mem_get_info(device)[0] + kept))


def peak_growth(work: Callable[[int], object], rows: int) -> int:
    """Bytes by which the peak memory of ``work(n)`` grows with each of many rows, from n = ``rows`` and twice as many.

    At each moment what is held grows with the rows, from what does not: where it grows most is the peak of many rows,
    and need not be that of few.
    """
    held = []
    for batch in (rows, 2 * rows):
        with PeakMemory() as seen:
            work(batch)
        held.append(seen.moments)
    return max(1, max((two - one for one, two in zip(*held, strict=False)), default=0) // rows)


class PeakMemory(TorchDispatchMode):
    """Follows the storage of every tensor that an operation inside returns; what a kernel holds for itself is unseen.

    Attributes:
        moments: bytes held after each operation; of tensors on the meta device, what they would hold.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held, self.moments = 0, [0]
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
        shared = {a.untyped_storage()._cdata for a in given}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage(), shared)
        self.moments.append(self.held)
        return out

    @property
    def peak(self) -> int:
        """Bytes, the most at once."""
        return max(self.moments)

    def _follow(self, storage: torch.UntypedStorage, shared: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or key in shared:
            return
        self._known.add(key)
        self.held += size
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.held -= size
