"""The context of training steps: memory kept from step to step, random numbers of their own, full precision."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from acertlab._memory import memory_kept
from acertlab.bounds.checks import full_precision


@contextmanager
def session(*devices: torch.device) -> Iterator[None]:
    """Inside, freed memory is kept and precision is full; afterwards the random state is as it was before."""
    with ExitStack() as stack:
        stack.enter_context(memory_kept())
        stack.enter_context(torch.random.fork_rng([device for device in devices if device.type == "cuda"]))
        for device in devices:
            stack.enter_context(full_precision(device))
        yield
