"""What the precisions of tensor cores cost: errors of training's radii, and ART of networks trained to the end.

TF32 is emulated on a CPU (`tests.helpers.tensor_cores`), which multiplies bfloat16 as a GPU does.

    python -m tests.benchmarks.precision steps   # what a step should take by the roofline: half a minute
    python -m tests.benchmarks.precision radii [--images 1000] [--runs FOLDER ...]   # a few minutes
    python -m tests.benchmarks.precision train [--out FOLDER] [--datasets mnist ...] [--precisions full tf32 ...]

Each training has a folder of its own: the same call goes on with what is missing, and prints what is there.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch import Tensor, fx, nn

from acertlab._text import markdown
from acertlab.bounds.box import Box
from acertlab.bounds.checks import float32_products
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.ibp import IntervalNetwork, freeze
from acertlab.bounds.margin import clean_margin
from acertlab.bounds.rules.affine import Affine, AffineCall, IntervalAffine
from acertlab.data.datasets import load_dataset, to_float
from acertlab.data.run import SHIPPED_FRONTS, load_run
from acertlab.radius.search import SearchSettings, search_radius
from acertlab.training.config import TrainConfig, preset
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.loop.step import session
from acertlab.training.loop.train import train
from acertlab.training.methods.acert import ACERT
from acertlab.training.methods.base import Step
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.methods.sample_radii import RadiusEstimates
from tests.benchmarks import roofline
from tests.helpers.tensor_cores import BF16, TF32, TensorCores


class CoarseAffine(IntervalAffine):
    """A layer whose boxes are in bfloat16."""

    @classmethod
    def of(cls, *layer: Any, **more: Any) -> Any:
        made = super().of(*layer, **more)
        return replace(made, half=made.half.bfloat16(), half_magnitude=made.half_magnitude.bfloat16())

    def propagate(self, box: Box) -> Box:
        bias = None if self.bias is None else self.bias.bfloat16()
        center = self.operation((box.upper + box.lower).bfloat16(), self.half, bias)
        radius = self.operation((box.upper - box.lower).bfloat16(), self.half_magnitude, None)
        return Box(center - radius, center.add_(radius))


class CoarseNetwork(IntervalNetwork):
    """A network with boxes in bfloat16 from its first affine layer to the last one, which is in float32."""

    def _affine(self, call: AffineCall, norm: Any = None) -> Affine:
        return CoarseAffine.of(*self._weights(call), call.operation, norm)

    def propagate(self, box: Box, relu_inputs: list[Box] | None = None, *, until: fx.Node | None = None) -> Box:
        out = super().propagate(box, relu_inputs, until=until)
        return Box(out.lower.float(), out.upper.float())


@dataclass(frozen=True)
class CoarseACERT(ACERT):
    """ACERT whose search runs in bfloat16 but for a last pass, in the loss's precision, that moves the radii.

    By half of a secant's step: how a margin grows is known from the network's growth only, within a factor of two or
    three; two bfloat16 points of a narrow bracket tell less.
    """

    def radii(self, step: Step) -> RadiusEstimates:
        if step.eps == 0:
            return super().radii(step)
        with torch.no_grad():
            assert step.model is not None
            coarse = CoarseNetwork(step.model, step.statistics, step.network.graph)
            found = super().radii(replace(step, frozen=coarse))
            margin, args = self.searched(step)
            growth, clean = self.growth(step), clean_margin(step.logits, step.y)
            log_growth = torch.log((margin(found.radius, *args) - clean) / -clean)
            moved = (found.radius.log() - log_growth * growth.slope(found.radius) / 2).exp().clamp(max=step.eps)
            radius = torch.where(moved.isfinite() & (clean < 0), moved, found.radius)
            return found._replace(radius=radius, calls=found.calls + (clean < 0))


class Precision(NamedTuple):
    """How a training step computes."""

    train_precision: str = "tf32"
    bits: int = TF32  # of factors, where TF32 is allowed
    cut: bool = False  # rather than rounded, as hardware may
    objective: type[ACERT] = ACERT

    @contextmanager
    def emulated(self) -> Iterator[TensorCores]:
        """A GPU of this precision, inside."""
        method = METHODS["acert"]._replace(objective=self.objective)
        with patch.dict(METHODS, acert=method), TensorCores(self.bits, self.cut) as cores:
            yield cores


PRECISIONS = {
    "full": Precision("full"),
    "tf32": Precision(),
    "tf32, cut off": Precision(cut=True),
    "bf16-search": Precision(objective=CoarseACERT),  # no setting
    "bf16 in all products": Precision(bits=BF16),  # no setting
}
QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
SEEDS = 3
SHIPPED = [SHIPPED_FRONTS / run for run in ("digits-acert/knot-04", "mnist-acert/knot-00")]  # of kappa 0
SETTINGS: dict[str, dict[str, Any]] = {  # beside those of ACERT's preset "fast"
    "digits": {},
    "mnist": {"width": 4, "kappa": 0.1},
    "cifar10": {"width": 8, "kappa": 0.0},
}


# ---- errors of radii


def training_radii(model: nn.Module, x: Tensor, y: Tensor | None, eps: float, precision: str) -> Tensor:
    """(B,) the radii of a training step at eps_{max,t} = ``eps``; of the predicted labels where there are no others."""
    how, cpu = PRECISIONS[precision], torch.device("cpu")
    products = float32_products(cpu, tf32=how.train_precision != "full")
    with session(cpu), products, how.emulated(), torch.no_grad():
        logits, statistics = clean_pass(deepcopy(model), x)
        y = logits.argmax(1) if y is None else y
        frozen = freeze(model, statistics, graph_of(model, x))
        step = Step(x, y, logits, frozen, eps, model=model, statistics=statistics)
        return how.objective(eps_max=eps).radii(step).radius


def exact_radii(model: nn.Module, x: Tensor, y: Tensor | None, eps: float) -> Tensor:
    """(B,) the same in float64, to 1e-9."""
    model, x = deepcopy(model).double(), x.double()
    with torch.no_grad():
        logits, statistics = clean_pass(deepcopy(model), x)
        y = logits.argmax(1) if y is None else y
        network, settings = freeze(model, statistics, graph_of(model, x)), SearchSettings(xtol=1e-10, rtol=1e-9)
        return search_radius(network, x, y, clean_margin(logits, y), eps, settings).radius


def errors(model: nn.Module, x: Tensor, y: Tensor | None, eps: float) -> pd.DataFrame:
    """A row a precision: mean error of a radius, mean with its sign, and quantiles; in percent of eps_{max,t}."""
    exact, rows = exact_radii(model, x, y, eps), {}
    for precision in PRECISIONS:
        error = 100 * (training_radii(model, x, y, eps, precision).double() - exact) / eps
        quantiles = error.abs().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()
        named = {f"{100 * q:g} %" if q < 1 else "largest": value for q, value in zip(QUANTILES, quantiles, strict=True)}
        rows[precision] = {"mean": error.abs().mean().item(), "with its sign": error.mean().item()} | named
    return pd.DataFrame(rows).T


def radii_table(runs: Sequence[Path], images: int) -> pd.DataFrame:
    """`errors` of radii of runs' networks, at eps_max and as on the ramp."""
    found = {}
    for run in map(load_run, runs):
        dataset, network, eps = run.config["dataset"], run.config["model"], run.result["eps_max"]
        data = load_dataset(dataset)
        x, y = to_float(data.test_x[:images]), data.test_y[:images]
        for share in (1, 0.1):
            found[f"{dataset}, {network}, eps_t = {share:g} eps_max"] = errors(run.load_model(), x, y, share * eps)
    return pd.concat(found, names=["network", "precision"])


# ---- trained to the end


def name_of(dataset: str, precision: str, seed: int) -> str:
    """The folder of a run."""
    return f"{dataset}-{precision.replace(', ', '-').replace(' ', '-')}-{seed}"


def config_of(dataset: str, precision: str, seed: int) -> TrainConfig:
    """The settings of a run."""
    config = preset(dataset, "acert", budget="fast")
    return replace(config, seed=seed, train_precision=PRECISIONS[precision].train_precision, **SETTINGS[dataset])


def train_all(out: Path, datasets: Sequence[str], precisions: Sequence[str], seeds: Sequence[int]) -> None:
    """Trains what is missing below ``out``: the first seed of all first."""
    for seed, dataset, precision in product(seeds, datasets, precisions):
        folder = out / name_of(dataset, precision, seed)
        if not (folder / "result.json").is_file():
            started = time.process_time()
            with PRECISIONS[precision].emulated():
                train(config_of(dataset, precision, seed), load_dataset(dataset), folder, progress=False)
            print(f"{folder.name}: {time.process_time() - started:.0f} CPU seconds", flush=True)


def art_table(out: Path, datasets: Sequence[str]) -> pd.DataFrame:
    """A row a dataset and precision: Acc, ACR and ART, means of the seeds that are there, and ART's spread beside full.

    ``beside full`` is the mean difference of ART to the full run of the same seed; ``inside`` says whether it is no
    larger than the largest distance between two of full's seeds.
    """
    rows: dict[tuple[str, str], dict[str, object]] = {}
    for dataset in datasets:
        full = pd.Series(dtype=float)
        for precision in PRECISIONS:
            found = {seed: out / name_of(dataset, precision, seed) for seed in range(SEEDS)}
            runs = {seed: load_run(path).result for seed, path in found.items() if (path / "result.json").is_file()}
            if not runs:
                continue
            scores = 100 * pd.DataFrame(runs).T[["acc", "acr", "art"]].astype(float)
            full = scores.art if precision == "full" else full
            beside = (scores.art - full).mean()  # of the seeds that both have
            row = {"seeds": len(scores), "Acc": scores.acc.mean(), "ACR": scores.acr.mean(), "ART": scores.art.mean()}
            row |= {"sd": scores.art.std(), "largest distance": np.ptp(scores.art), "beside full": beside}
            rows[dataset, precision] = row | {"inside": "yes" if len(full) and abs(beside) <= np.ptp(full) else "no"}
    return pd.DataFrame(rows).T.rename_axis(["dataset", "precision"])


def steps_table(gpu: str, batch: int = 128) -> pd.DataFrame:
    """What steps on CIFAR-10 take at least on a GPU by `tests.benchmarks.roofline`, a row a step, in each precision."""
    columns = {}
    for name in ("full", "tf32", "bf16-search"):
        with PRECISIONS[name].emulated():
            found = roofline.table("cifar10", batch, PRECISIONS[name].train_precision, gpu)
        columns |= {f"{name}, ms": found["at least, ms"], f"{name}: / FastIBP's": found["/ FastIBP's"]}
    return pd.DataFrame(columns).rename_axis("step")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.precision", description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["radii", "train", "steps"])
    parser.add_argument("--out", type=Path, default=Path("runs/precision"), help="of train; what is there is kept")
    parser.add_argument("--datasets", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--precisions", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=range(SEEDS), default=list(range(SEEDS)))
    parser.add_argument("--images", type=int, default=1000, help="of radii, of each dataset")
    parser.add_argument("--runs", nargs="+", type=Path, default=SHIPPED, help="of radii: whose networks")
    asked = parser.parse_args()
    if asked.part == "train":
        train_all(asked.out, asked.datasets, asked.precisions, asked.seeds)
        print("\nIn percent; inside: no further from full than two of its seeds are apart\n")
        print(written(art_table(asked.out, asked.datasets), "{:.2f}"))
    elif asked.part == "radii":
        print("In percent of eps_t; training asks for 1\n")
        print(written(radii_table(asked.runs, asked.images), "{:.2g}"))
    else:
        for gpu in roofline.GPUS:
            print(f"\nOn CIFAR-10, CNN7 of width 64, batch 128, on an {gpu}, at least\n")
            print(written(steps_table(gpu), "{:.3g}"))
    return 0


def written(table: pd.DataFrame, how: str) -> str:
    """The table in Markdown."""
    return markdown(table.map(lambda value: how.format(value) if isinstance(value, float) else value).reset_index())


if __name__ == "__main__":
    raise SystemExit(main())
