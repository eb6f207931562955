"""The state of training, and what it is before the first step."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from acertlab.bounds.checks import full_precision
from acertlab.bounds.graph.comparison import ROWS, check_operators, points
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.graph.structure import Graph
from acertlab.data.datasets import ImageData, to_float
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
    graph: Graph | None  # of the network in training mode; None: the method bounds nothing
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
    graph = _training_graph(model, data, device, config.eps_max) if objective.bounds else None
    return State(model, graph, objective, optimizer, learning_rate(config, optimizer, steps), radii)


def _training_graph(model: nn.Module, data: ImageData, device: torch.device, eps: float) -> Graph:
    """The graph that each step's bounds are made from; its operators' values are the network's on points of a batch."""
    x = to_float(data.train_x[:ROWS]).to(device)
    graph = graph_of(model, x)
    if device.type != "meta":
        with full_precision(device):
            check_operators(model, graph, points(x, (0.0, 1.0), eps, ROWS))
    return graph


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
