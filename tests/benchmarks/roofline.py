"""What a training step should take on a GPU: its arithmetic and its memory traffic, counted without running it.

The package's own training step runs on torch's meta device, where tensors have shapes and no values. Each operation
takes at least the time of its arithmetic or of its traffic, whichever is longer, if nothing is kept in caches and
launching costs nothing; their sum is the step's time, for each `train_precision`. ``--measure`` runs the same step on
the GPU and prints the ratio.

    python -m tests.benchmarks.roofline [--dataset cifar10] [--batch 128] [--gpu H100] [--measure]
"""

import argparse
import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from acertlab._text import markdown
from acertlab.data.datasets import DATASETS, ImageData
from acertlab.training.config import PRECISIONS, TrainConfig, preset
from acertlab.training.loop.state import State, initial_state
from acertlab.training.loop.step import normalisation, train_step
from acertlab.training.presets import PAPER
from tests.helpers.tensor_cores import takes_tf32


class Gpu(NamedTuple):
    """What a GPU does in a second at most, by NVIDIA's data sheets: SXM, dense matrices."""

    float32: float  # operations outside tensor cores
    tf32: float  # of tensor cores, as the next
    bfloat16: float
    bandwidth: float  # bytes of its memory


GPUS = {
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
        rate = self.gpu.tf32 if takes_tf32(func) else self.gpu.float32
        arithmetic = flops / (self.gpu.bfloat16 if made[0].dtype == torch.bfloat16 else rate)
        self.flops, self.traffic = self.flops + flops, self.traffic + traffic
        self.arithmetic += arithmetic
        self.seconds += max(arithmetic, traffic / self.gpu.bandwidth)
        return out


def a_step(
    name: str, dataset: str, batch: int, device: str, precision: str = "full"
) -> tuple[State, TrainConfig, tuple]:
    """The state, the settings and the arguments of one training step after the ramp, with the paper's CNN7."""
    method, changes = STEPS[name]
    config = replace(preset(dataset, method), batch_size=batch, train_precision=precision, **changes)
    known = DATASETS[dataset]
    shape, classes = known.shape, known.classes
    empty = torch.zeros(0, *shape, dtype=torch.uint8)
    none = torch.zeros(0, dtype=torch.int64)
    names = tuple(map(str, range(classes)))
    data = ImageData(dataset, empty, none, empty, none, empty, none, names, known.mean, known.std)
    state = initial_state(config, data, torch.device(device), 10)
    state.model.train()
    x, y, index = torch.rand(batch, *shape), torch.randint(0, classes, (batch,)), torch.arange(batch)
    std = normalisation(data, torch.device(device))
    return state, config, (x.to(device), y.to(device), index.to(device), config.eps_max, std)


def table(dataset: str, batch: int, precision: str = "full", gpu: str = "H100") -> pd.DataFrame:
    """A row a step: GFLOP, GB moved, the least time of both, and relative to FastIBP's in the same precision."""
    rows = {}
    for name in STEPS:
        state, config, arguments = a_step(name, dataset, batch, "meta", precision)
        train_step(state, config, *arguments)  # the optimiser makes its buffers
        with Cost(GPUS[gpu]) as cost:
            train_step(state, config, *arguments)
        rows[name] = {
            "GFLOP": cost.flops / 1e9,
            "GB": cost.traffic / 1e9,
            "arithmetic alone, ms": 1e3 * cost.arithmetic,
            "at least, ms": 1e3 * cost.seconds,
        }
    found = pd.DataFrame(rows).T
    found["/ FastIBP's"] = found["at least, ms"] / found.loc["FastIBP", "at least, ms"]
    return found


def in_each_precision(dataset: str, batch: int, gpu: str) -> pd.DataFrame:
    """A row a step: the least ms in each precision, relative to FastIBP's there, and full precision's over it."""
    found = {precision: table(dataset, batch, precision, gpu) for precision in PRECISIONS}
    columns = {}
    for precision, rows in found.items():
        columns[f"{precision}, ms"] = rows["at least, ms"]
        columns[f"{precision}: / FastIBP's"] = rows["/ FastIBP's"]
        columns[f"{precision}: times faster"] = found["full"]["at least, ms"] / rows["at least, ms"]
    return pd.DataFrame(columns).drop(columns="full: times faster")


def measured(dataset: str, batch: int, precision: str = "full", rounds: int = 20) -> pd.Series:
    """Milliseconds a step on this machine's GPU, medians; the steps take turns."""
    begun = {name: a_step(name, dataset, batch, "cuda", precision) for name in STEPS}
    times: dict[str, list[float]] = {name: [] for name in STEPS}
    for n in range(rounds + 3):
        for name, (state, config, arguments) in begun.items():
            torch.cuda.synchronize()
            started = time.perf_counter()
            train_step(state, config, *arguments)
            torch.cuda.synchronize()
            if n >= 3:
                times[name].append(1e3 * (time.perf_counter() - started))
    return pd.Series({name: float(np.median(values)) for name, values in times.items()}, name="measured, ms")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--dataset", choices=[name for name in DATASETS if PAPER[name]["model"] == "cnn7"], default="cifar10"
    )
    parser.add_argument("--batch", type=int, default=0, help="images a step (default: the paper's)")
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    parser.add_argument("--measure", action="store_true", help="run the steps on this machine's GPU as well")
    asked = parser.parse_args()
    if asked.batch < 0:
        parser.error(f"--batch: {asked.batch} is not a number of images; 1 or more, or 0 for the paper's")
    if asked.measure and not torch.cuda.is_available():
        parser.error("--measure: this machine has no CUDA device; without it the calculation alone is printed")
    batch = asked.batch or PAPER[asked.dataset]["batch_size"]
    found = table(asked.dataset, batch, gpu=asked.gpu)
    several = in_each_precision(asked.dataset, batch, asked.gpu)
    if asked.measure:
        found["measured, ms"] = measured(asked.dataset, batch)
        found["measured / at least"] = found["measured, ms"] / found["at least, ms"]
        for precision in PRECISIONS:
            several[f"{precision}: measured"] = measured(asked.dataset, batch, precision)
        print(torch.cuda.get_device_name())
    print(f"A training step on {asked.dataset}, CNN7 of width 64, batch {batch}, on an {asked.gpu} in float32:\n")
    print(markdown(found.map("{:.3g}".format).rename_axis("step").reset_index()))
    print("\nAnd by train_precision, at least:\n")
    print(markdown(several.map("{:.3g}".format).rename_axis("step").reset_index()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
