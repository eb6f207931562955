"""The state of training, and what it is before the first step."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from acertlab.bounds.graph import Traced, trace
from acertlab.data.datasets import ImageData
from acertlab.models.architectures import MODELS
from acertlab.models.initialisation import ibp_init_
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.training.config import TrainConfig
from acertlab.training.methods.base import Standard
from acertlab.training.methods.sample_radii import RadiusEstimates


@dataclass
class State:
    """What training changes. Everything else follows from the configuration and the data."""

    model: nn.Module
    traced: Traced
    objective: Standard
    optimizer: Optimizer
    scheduler: LRScheduler
    radii: RadiusEstimates | None  # of the training samples, as the last epoch found them; None: not kept
    history: list[dict[str, Any]] = field(default_factory=list)  # a row an epoch, as in a run's `history.parquet`
    best_weights: dict[str, Tensor] | None = None  # of the published protocol: those of the best epoch
    best_epoch: int = -1
    warned: bool = False  # of radii that fall back; once is enough


def network(config: TrainConfig, data: ImageData) -> nn.Module:
    """The network that ``config`` asks for, untrained."""
    return MODELS[config.model](data.in_shape, data.num_classes, width=config.width, mean=data.mean, std=data.std)


def initial_state(config: TrainConfig, data: ImageData, device: torch.device, steps: int) -> State:
    """The state before the first of ``steps`` steps an epoch, on ``device``."""
    torch.manual_seed(config.seed)
    model = network(config, data)
    objective = config.objective()
    if objective.ibp_init:
        ibp_init_(model)
    model = model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    takes_guess = SOLVERS[config.solver].extrapolates
    kept = config.radius_history and objective.searches and takes_guess
    radii = RadiusEstimates.fixed(torch.zeros(len(data.train_x), device=device)) if kept else None
    traced, rate = trace(model), learning_rate(config, optimizer, steps)
    return State(model, traced, objective, optimizer, rate, radii)


def learning_rate(config: TrainConfig, optimizer: Optimizer, steps: int) -> LRScheduler:
    """OneCycle, or a decay at milestones, over the whole of a run with ``steps`` steps an epoch."""
    if config.scheduler == "step":
        return LambdaLR(optimizer, lambda t: config.decay ** sum(t >= m * steps for m in config.milestones))
    return OneCycleLR(
        optimizer,
        config.lr,
        total_steps=config.epochs * steps,
        anneal_strategy="linear",
        pct_start=config.pct_start,
        div_factor=config.div,
        final_div_factor=config.final_div,
        three_phase=config.three_phase,
    )
