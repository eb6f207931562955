"""The least time that a training step can take on a GPU: its arithmetic and memory traffic, counted without running it.

The package's own training step runs on torch's meta device, where tensors have shapes and no values. Each operation
takes at least the time of its arithmetic or of its traffic, whichever is longer, if nothing is kept in caches and
launching costs nothing; their sum is the step's time.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from acertlab.data.datasets import DATASETS, ImageData
from acertlab.training.config import TrainConfig, preset
from acertlab.training.loop.state import State, initial_state
from acertlab.training.loop.step import train_step


class Gpu(NamedTuple):
    """What a GPU does in a second at most, by NVIDIA's data sheets: SXM, dense matrices."""

    float32: float  # operations outside tensor cores
    tf32: float  # of tensor cores, as the next
    bfloat16: float
    bandwidth: float  # bytes of its memory


GPUS = {
    "A100": Gpu(float32=19.5e12, tf32=156e12, bfloat16=312e12, bandwidth=2.039e12),
    "H100": Gpu(float32=66.9e12, tf32=494.7e12, bfloat16=989.4e12, bandwidth=3.35e12),
    "H200": Gpu(float32=66.9e12, tf32=494.7e12, bfloat16=989.4e12, bandwidth=4.8e12),
}
STEPS: dict[str, tuple[str, dict[str, object]]] = {  # what a step is called: its method, and what of the preset changes
    "Standard": ("standard", {}),
    "FastIBP": ("fast-ibp", {}),
    "ACERT-fast": ("acert-fast", {}),
    "ACERT, 2 iterations": ("acert", {"root_iterations": 2}),
    "ACERT, from the radii of an epoch ago": ("acert", {"radius_history": True}),
    "ACERT": ("acert", {}),
}


@dataclass
class Cost(TorchDispatchMode):
    """Sums up what the operations inside take at least on a GPU, with the precision of products that torch is set to.

    Attributes:
        flops: of matrix products and convolutions, two a multiplication and addition.
        arithmetic: the seconds of those alone.
        traffic: bytes read and written by all operations that move data.
        seconds: the sum over operations of the longer of both times.
    """

    gpu: Gpu = GPUS["H100"]
    flops: float = 0.0
    arithmetic: float = 0.0
    traffic: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [t for t in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(t, Tensor)]
        if func.is_view or not made:
            return out
        read = [t for arg in args for t in (arg if isinstance(arg, (tuple, list)) else [arg]) if isinstance(t, Tensor)]
        counter = flop_registry.get(func.overloadpacket)
        flops = counter(*args, **(kwargs or {}), out_val=out) if counter else 0
        traffic = sum(t.numel() * t.element_size() for t in (*read, *made))
        rate = self.gpu.float32 if torch.get_float32_matmul_precision() == "highest" else self.gpu.tf32
        arithmetic = flops / (self.gpu.bfloat16 if made[0].dtype == torch.bfloat16 else rate)
        self.flops, self.traffic = self.flops + flops, self.traffic + traffic
        self.arithmetic += arithmetic
        self.seconds += max(arithmetic, traffic / self.gpu.bandwidth)
        return out


def step_config(name: str, dataset: str, precision: str = "full") -> TrainConfig:
    """The settings of a step of `STEPS`, with the paper's CNN7."""
    method, changes = STEPS[name]
    return replace(preset(dataset, method), train_precision=precision, **changes)


def begun(config: TrainConfig, device: torch.device | str, images: int = 128) -> State:
    """The state of training before the first step, on so many images."""
    known, device = DATASETS[config.dataset], torch.device(device)
    x, y = torch.zeros(images, *known.shape, dtype=torch.uint8), torch.zeros(images, dtype=torch.int64)
    data = ImageData(config.dataset, x, y, x, y, x, y, tuple(map(str, range(known.classes))), known.mean, known.std)
    state = initial_state(config, data, device, 10)
    state.model.train()
    return state


def random_batch(config: TrainConfig, device: torch.device | str, size: int) -> tuple:
    """The arguments of a step after the ramp, from its images on."""
    known, device = DATASETS[config.dataset], torch.device(device)
    x, y, index = torch.rand(size, *known.shape), torch.arange(size) % known.classes, torch.arange(size)
    std = torch.tensor(known.std or (1.0,), device=device).view(1, -1, 1, 1)
    return x.to(device), y.to(device), index.to(device), config.train_eps, std


def count(state: State, config: TrainConfig, batch: int, gpu: Gpu = GPUS["H100"]) -> Cost:
    """What one step costs at least, of a state on the meta device."""
    arguments = random_batch(config, "meta", batch)
    train_step(state, config, *arguments)  # the optimiser makes its buffers
    with Cost(gpu) as cost:
        train_step(state, config, *arguments)
    return cost
