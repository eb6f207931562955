"""One step of the optimiser, and the context of many: memory kept, random numbers of their own."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from acertlab._memory import memory_kept
from acertlab.bounds.checks import float32_products
from acertlab.bounds.ibp import IntervalNetwork, freeze
from acertlab.data.datasets import ImageData
from acertlab.training.config import TrainConfig
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.loop.state import State
from acertlab.training.methods.base import Step, StepLog
from acertlab.training.methods.regularisers import l1_norm


@contextmanager
def session(*devices: torch.device) -> Iterator[None]:
    """Inside, freed memory is kept; afterwards the random state is as it was before."""
    with memory_kept(), torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
        yield


def train_step(
    state: State, config: TrainConfig, x: Tensor, y: Tensor, index: Tensor, eps: float, std: Tensor
) -> tuple[Tensor, Tensor, Tensor, StepLog]:
    """One step of the optimiser, without a host-device synchronisation (on a CPU, finished samples are dropped).

    ``index`` (B,) says which training samples x and y are, ``eps`` is eps_{max,t} (pixel units), ``std`` (1, C, 1, 1)
    the model's normalisation. Products are as ``config.train_precision`` says, whatever torch is set to. Returns,
    detached, the loss and the gradient's norm before clipping, (), the logits (B, classes) and what the objective logs.
    """

    def own_pass(x: Tensor) -> tuple[Tensor, IntervalNetwork]:
        logits, statistics = clean_pass(state.model, x)
        return logits, freeze(state.model, statistics, state.graph)

    with float32_products(x.device, tf32=config.train_precision != "full"):
        logits, statistics = clean_pass(state.model, x)
        frozen = freeze(state.model, statistics, state.graph) if state.objective.bounds else None
        known = state.radii.of(index) if state.radii else None
        step = Step(x, y, logits, frozen, eps, std, known, state.model, statistics, own_pass)
        loss, logged = state.objective(step)
        if state.radii and eps > 0:
            state.radii.update_(index, logged.radii)
        if config.l1:
            loss = loss + config.l1 * l1_norm(state.model, config.l1_reach)
        state.optimizer.zero_grad()
        loss.backward()
    norm = nn.utils.clip_grad_norm_(state.model.parameters(), math.inf if config.clip is None else config.clip)
    state.optimizer.step()
    state.scheduler.step()
    return loss.detach(), norm, logits.detach(), logged


def history_sums(loss: Tensor, logged: StepLog, logits: Tensor, y: Tensor, eps: float) -> Tensor:
    """(9,) sums over the batch's samples of what the history shows; stays on the device."""
    radii, means = logged.radii.radius, (loss, logged.clean, logged.robust, logged.regulariser)
    zero, cap = (radii == 0).sum() * (eps > 0), (radii >= eps).sum() * (eps > 0)  # no shares while eps_{max,t} = 0
    counts = ((logits.argmax(1) == y).sum(), zero, cap, radii.sum(), logged.radii.calls.sum())
    return torch.stack([*(len(y) * mean for mean in means), *counts])


def normalisation(data: ImageData, device: torch.device) -> Tensor:
    """(1, C, 1, 1) the standard deviations by which the network's first layer divides; 1 where it does not."""
    return torch.tensor(data.std or (1.0,), device=device).view(1, -1, 1, 1)
