"""What training steps run in: memory that is kept from step to step, random numbers of their own, full precision."""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from acertlab.bounds.checks import full_precision

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEEP = 2**30  # bytes of free memory that are not given back, and of a block that is not mapped by itself
USUAL = {TRIM_THRESHOLD: 2**26, MMAP_THRESHOLD: 2**25}  # where glibc's own adjustment ends once large blocks were freed
SET_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards it is given back as before.

    By itself glibc gives each large block back to the operating system, which clears it again page by page: 0.37 of
    2.1 s for training steps of a CNN7. Where there is no glibc, or its thresholds are set by the environment, nothing
    is changed.
    """
    if any(name in os.environ for name in SET_BY_USER) or not (mallopt := _mallopt()):
        yield
        return
    for threshold in USUAL:
        mallopt(threshold, KEEP)
    try:
        yield
    finally:
        for threshold, value in USUAL.items():
            mallopt(threshold, value)


def _mallopt() -> Callable[[int, int], int] | None:
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
        return ctypes.CDLL(None).mallopt
    except (AttributeError, ValueError, OSError):  # macOS and Windows, musl
        return None


@contextmanager
def session(*devices: torch.device) -> Iterator[None]:
    """Inside, freed memory is kept and precision is full; afterwards the random state is as it was before."""
    with ExitStack() as stack:
        stack.enter_context(memory_kept())
        stack.enter_context(torch.random.fork_rng([device for device in devices if device.type == "cuda"]))
        for device in devices:
            stack.enter_context(full_precision(device))
        yield
