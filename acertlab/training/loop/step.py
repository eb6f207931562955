"""One step of the optimiser, and the memory that is kept from step to step."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from acertlab.bounds.ibp import freeze
from acertlab.data.datasets import ImageData
from acertlab.training.config import TrainConfig
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.loop.state import State
from acertlab.training.methods.base import Step
from acertlab.training.methods.regularisers import l1_norm
from acertlab.training.methods.sample_radii import Estimates

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


def _mallopt() -> "ctypes._FuncPointer | None":
    try:
        os.confstr("CS_GNU_LIBC_VERSION")
        return ctypes.CDLL(None).mallopt
    except (AttributeError, ValueError, OSError):  # macOS and Windows, musl
        return None


def train_step(
    state: State, config: TrainConfig, x: Tensor, y: Tensor, index: Tensor, eps: float, std: Tensor
) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor | Estimates]]:
    """One step of the optimiser, without a host-device synchronisation (on a CPU, finished samples are dropped).

    Args:
        state, config: the run's; the network in training mode.
        x: (B, C, H, W) pixels in [0, 1]; y: (B,) labels; index: (B,) which training samples these are.
        eps: eps_{max,t}, pixel units.
        std: (1, C, 1, 1) the model's normalisation.

    Returns:
        The loss and the gradient's norm before clipping, (), the logits (B, classes) and what the objective logs; all
        detached.
    """
    logits, statistics = clean_pass(state.model, x)
    frozen = freeze(state.traced, statistics) if state.objective.bounds else None
    known = state.radii.of(index) if state.radii else None
    step = Step(x, y, logits, frozen, eps, std, known, state.model)
    loss, logged = state.objective(step)
    if state.radii and eps > 0:
        state.radii.update_(index, logged["radii"])
    if config.l1:
        loss = loss + config.l1 * l1_norm(state.model)
    state.optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    state.optimizer.step()
    state.scheduler.step()
    return loss.detach(), norm, logits.detach(), logged


def _sums(loss: Tensor, logged: dict[str, Tensor | Estimates], logits: Tensor, y: Tensor, eps: float) -> Tensor:
    """(9,) sums over the batch's samples of what the history shows; stays on the device."""
    radii, means = logged["radii"].radius, (loss, logged["clean"], logged["robust"], logged["regulariser"])
    zero, cap = (radii == 0).sum() * (eps > 0), (radii >= eps).sum() * (eps > 0)  # no shares while eps_{max,t} = 0
    counts = ((logits.argmax(1) == y).sum(), zero, cap, radii.sum(), logged["radii"].calls.sum())
    return torch.stack([*(len(y) * mean for mean in means), *counts])


def normalisation(data: ImageData, device: torch.device) -> Tensor:
    """(1, C, 1, 1) the standard deviations by which the network's first layer divides; 1 where it does not."""
    return torch.tensor(data.std or (1.0,), device=device).view(1, -1, 1, 1)
