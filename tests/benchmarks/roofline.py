"""What a training step takes at least on a GPU, and what searches and steps hold there: tables of what is counted.

    python -m tests.benchmarks.roofline [--dataset cifar10] [--batch 128] [--gpu H100]
    python -m tests.benchmarks.roofline --memory

`acertlab gpu-check` measures the same steps beside what is calculated here.
"""

import argparse

import pandas as pd
import torch

from acertlab._memory import SHARE, peak_growth
from acertlab._text import markdown
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.ibp import freeze
from acertlab.data.datasets import DATASETS
from acertlab.models.architectures import MODELS
from acertlab.radius.certified import bytes_a_row
from acertlab.radius.search import SearchSettings
from acertlab.training.config import PRECISIONS
from acertlab.training.cost.roofline import GPUS, STEPS, begun, count, random_batch, step_config
from acertlab.training.loop.step import train_step
from acertlab.training.presets import PAPER

SIZES = 16, 80, 141  # GB of a GPU
BATCH, TRAINED = 4096, ("FastIBP", "ACERT")
CNN7 = tuple(name for name in DATASETS if PAPER[name]["model"] == "cnn7")


def table(dataset: str, batch: int, precision: str = "full", gpu: str = "H100") -> pd.DataFrame:
    """A row a step: GFLOP, GB moved, the least time of both, and relative to FastIBP's in the same precision."""
    rows = {}
    for name in STEPS:
        config = step_config(name, dataset, precision)
        cost = count(begun(config, "meta", batch), config, batch, GPUS[gpu])
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


def memory() -> pd.DataFrame:
    """A row a network: what a sample takes, chunks of a search on a GPU that is empty, and steps on a large batch."""
    rows = {}
    for name, dataset in (("small_cnn", "mnist"), ("cnn7", "mnist"), ("cnn7", "cifar10"), ("cnn7", "tinyimagenet")):
        known = DATASETS[dataset]
        with torch.device("meta"), torch.no_grad():
            model, x = MODELS[name](known.shape, known.classes).eval(), torch.rand(1, *known.shape)
            graph = graph_of(model, x)
            a_row = bytes_a_row(model, graph, freeze(model, graph=graph), x, 0.1, SearchSettings())
        told = {"certified: MB an image": a_row / 1e6}
        told |= {f"images at once, {size} GB": int(SHARE * size * 1e9) // a_row for size in SIZES}
        if name == "cnn7":
            told |= {f"{step}: GB, batch {BATCH}": BATCH * bytes_of_a_step(step, dataset) / 1e9 for step in TRAINED}
        rows[f"{name}, {known.title}"] = told
    return pd.DataFrame(rows).T


def bytes_of_a_step(name: str, dataset: str, rows: int = 64) -> int:
    """Bytes that a training step holds at most for every image of its batch."""
    config = step_config(name, dataset)
    state = begun(config, "meta", rows)
    return peak_growth(lambda n: train_step(state, config, *random_batch(config, "meta", n)), rows)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=CNN7, default="cifar10")
    parser.add_argument("--batch", type=int, default=0, help="images a step (default: the paper's)")
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    parser.add_argument("--memory", action="store_true", help="what searches and steps hold instead")
    asked = parser.parse_args()
    if asked.batch < 0:
        parser.error(f"--batch: {asked.batch} is not a number of images; 1 or more, or 0 for the paper's")
    if asked.memory:
        found = memory().map(lambda value: "" if value != value else f"{value:,.0f}" if value > 99 else f"{value:.3g}")
        print(markdown(found.rename_axis("network").reset_index()))
        return 0
    batch = asked.batch or PAPER[asked.dataset]["batch_size"]
    found, several = table(asked.dataset, batch, gpu=asked.gpu), in_each_precision(asked.dataset, batch, asked.gpu)
    print(f"A training step on {asked.dataset}, CNN7 of width 64, batch {batch}, on an {asked.gpu} in float32:\n")
    print(markdown(found.map("{:.3g}".format).rename_axis("step").reset_index()))
    print("\nAnd by train_precision, at least:\n")
    print(markdown(several.map("{:.3g}".format).rename_axis("step").reset_index()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
