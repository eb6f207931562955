"""A front as one training: a path along kappa, whose networks and all networks between them can be asked for.

The first network is trained as always; each next one goes on from the one before, by the next kappa. Between neighbours
weights are interpolated; BatchNorm's statistics there are taken anew from training images and stored. What the walk's
direction, epochs and rate do is measured in data/fronts/README.md.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn

from acertlab._lock import locked
from acertlab._validation import Within, check, refuse
from acertlab.bounds.checks import full_precision
from acertlab.data.datasets import ImageData, to_float
from acertlab.data.files import read_json, write_json, write_weights
from acertlab.data.run import FILES, FRONT_FILES, LOCK_WAIT, NOT_IDENTIFYING, Run, as_today, load_run, open_folder
from acertlab.training.config import TrainConfig
from acertlab.training.loop.step import session
from acertlab.training.loop.train import Start, described_run, train_from, write_results

KAPPAS = (0.9, 0.5, 0.25, 0.1, 0.0)  # of methods that train each sample at its own radius
KAPPAS_OF_FIXED_EPS = (0.98, 0.95, 0.9, 0.8, 0.5)  # of the others, whose networks at smaller kappas are alike
PARTS = 4  # of the way between two neighbours: BatchNorm's statistics are stored at each
IMAGES, BATCH = 5000, 500  # training images that give them, and how many at once
FILE, STATISTICS = FRONT_FILES
DONE = "networks"  # in `front.json`, once all are measured: their scores


@dataclass(frozen=True)
class Front:
    """One training along kappa: networks at its knots, measured there and half way, and a network at any kappa between.

    Attributes:
        path: the folder, in which `load_runs` finds a run a knot and a run half way between neighbours.
        kappas: of the knots, in the order in which they were trained.
        knots, between: the runs, by kappa.

    Example:
        >>> config, data = al.preset("digits", "acert", budget="smoke"), al.load_dataset("digits")
        >>> front = al.train_front(config, data, "runs/front", (0.0, 1.0), epochs=1, progress=False)
        >>> front.network(0.3)(al.to_float(data.test_x[:2])).shape
        torch.Size([2, 10])
    """

    path: Path
    kappas: tuple[float, ...]
    knots: dict[float, Run]
    between: dict[float, Run]

    def network(self, kappa: float) -> nn.Module:
        """The network at ``kappa``, within the front, in evaluation mode; at a knot, the one that was trained."""
        check("kappa", kappa, Within(min(self.kappas), max(self.kappas)))
        i = next(i for i, pair in enumerate(pairwise(self.kappas)) if min(pair) <= kappa <= max(pair))
        first, second = self.kappas[i], self.kappas[i + 1]
        model = self.knots[first].load_model()
        t = (kappa - first) / (second - first)
        model.load_state_dict(_mixed(self._states[i], self._states[i + 1], t, self._stored[i]))
        return model

    @cached_property
    def _states(self) -> list[dict[str, Tensor]]:
        return [self.knots[kappa].load_model().state_dict() for kappa in self.kappas]

    @cached_property
    def _stored(self) -> list[list[dict[str, Tensor]]]:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            stored = load_file(self.path / STATISTICS)
        except SafetensorError as error:
            raise ValueError(f"{self.path / STATISTICS} cannot be read: {error}") from None
        keys = [[f"{i}.{part}." for part in range(1, PARTS)] for i in range(len(self.kappas) - 1)]
        return [[{n.removeprefix(k): v for n, v in stored.items() if n.startswith(k)} for k in row] for row in keys]


def train_front(
    config: TrainConfig,
    data: ImageData,
    run_dir: str | Path,
    kappas: Sequence[float] | None = None,
    *,
    epochs: int | None = None,
    lr: float | None = None,
    progress: bool = True,
) -> Front:
    """Trains a whole front by one walk along kappa; the same call again goes on, or returns what is done.

    The first network is trained by ``config`` at the first kappa. Each next one begins with the weights of the one
    before and is trained for ``epochs`` more by its own kappa, at eps_max, without a ramp, by one cycle of the learning
    rate. All networks, and those half way between neighbours, are measured on the test part; then `front.json` tells
    their scores.

    Args:
        config: of the first network; its kappa is replaced.
        data: as of `train`.
        run_dir: the front's folder.
        kappas: falling or rising, in [0, 1]; None: the method's own, falling: from accurate to robust (CIFAR-10 and the
            digits gain by it; MNIST, and few images of TinyImageNet, do not).
        epochs: of each network after the first; None: three fifths of the first one's.
        lr: the largest learning rate there; None: the first one's.
        progress: show a bar a network.

    Raises:
        ValueError: a method without kappa, kappas that neither rise nor fall, or ``run_dir`` holds another front (the
            message names what differs; nothing is overwritten). And as `train`.

    Example:
        >>> config, data = al.preset("digits", "acert", budget="smoke"), al.load_dataset("digits")
        >>> front = al.train_front(config, data, "runs/front", (0.0, 1.0), epochs=1, progress=False)
        >>> sorted(front.knots)
        [0.0, 1.0]
    """
    kappas, run_dir = checked_walk(config, kappas), Path(run_dir)
    epochs = epochs_after_first(config) if epochs is None else check("epochs", epochs, Within(1, kind=int))
    lr = config.lr if lr is None else check("lr", lr, Within(0, open_low=True))
    asked = {"kappas": list(kappas), "epochs": epochs, "lr": lr, "parts": PARTS, "images": IMAGES}
    asked |= {"first": _identifying(described_run(replace(config, kappa=kappas[0]), data))}
    with locked(run_dir / ".lock", f"run_dir: {run_dir}", wait=LOCK_WAIT):
        _begin(run_dir, asked)
        knots: dict[float, Run] = {}
        start, this = None, replace(config, kappa=kappas[0])
        for i, kappa in enumerate(kappas):
            run = train_from(start, this, data, run_dir / f"knot-{i:02d}", True, progress)
            knots[kappa] = run
            start = Start(run.load_model().state_dict(), kappas[: i + 1])
            shorter = {"epochs": epochs, "clean_epochs": 0, "ramp_epochs": 0, "lr": lr, "scheduler": "onecycle"}
            this = replace(config, kappa=kappas[min(i + 1, len(kappas) - 1)], **shorter)
        front = measured_front(run_dir, knots, this, data)
        for run in knots.values():  # a front is many runs, and its disk should not hold each three times
            shutil.rmtree(run.path / "checkpoint", ignore_errors=True)
        scores = ("kappa", "acc", "acr", "art", "seconds", "test_seconds")
        runs = [{name: run.result[name] for name in scores} for run in (knots | front.between).values()]
        if DONE not in read_json(run_dir / FILE):
            write_json(run_dir / FILE, asked | {DONE: sorted(runs, key=lambda of: of["kappa"])})
    return front


def load_front(path: str | Path) -> Front:
    """A finished front from its folder, or from a folder into which it was packed with its weights.

    Args:
        path: the folder that `train_front` wrote, or a packed one.

    Raises:
        FileNotFoundError: there is no front, or it lacks a network; the message says which.
        ValueError: a file cannot be read.

    Example:
        >>> config, data = al.preset("digits", "acert", budget="smoke"), al.load_dataset("digits")
        >>> _ = al.train_front(config, data, "runs/front", (0.0, 1.0), epochs=1, progress=False)
        >>> sorted(al.load_front("runs/front").knots)
        [0.0, 1.0]
    """
    path = Path(path)
    if not (path / FILE).is_file():
        raise FileNotFoundError(f"path: {path} holds no {FILE}; a front's folder is made by acertlab.train_front")
    if not (path / STATISTICS).is_file():
        raise FileNotFoundError(f"path: {path} is unfinished: the same call of acertlab.train_front goes on")
    told = read_json(path / FILE)
    if not isinstance(told.get("kappas"), list):
        raise ValueError(f"path: {path / FILE} lacks kappas; it was not written by this version")
    try:
        walked = [load_run(path / f"knot-{i:02d}") for i in range(len(told["kappas"]))]
        middle = [load_run(path / f"between-{i:02d}") for i in range(len(walked) - 1)]
    except FileNotFoundError as error:
        again = "where it was trained the same call of acertlab.train_front makes again what is missing"
        raise FileNotFoundError(f"path: {path} lacks a network ({error}); {again}") from None
    if [run.config["kappa"] for run in walked] != told["kappas"]:
        raise ValueError(f"path: {path / FILE} tells of other kappas than its networks were trained by")
    knots, between = ({run.config["kappa"]: run for run in runs} for runs in (walked, middle))
    return Front(path, tuple(told["kappas"]), knots, between)


def measured_front(run_dir: Path, knots: dict[float, Run], later: TrainConfig, data: ImageData) -> Front:
    """The front of these networks, with what lies between neighbours: statistics stored, networks half way measured.

    ``later`` is the configuration of the networks after the first; its kappa is replaced.
    """
    device = later.torch_device()
    if not (run_dir / STATISTICS).is_file():
        _write_statistics(knots, data, run_dir, device)
    front = Front(run_dir, tuple(knots), knots, {})
    for i, pair in enumerate(pairwise(front.kappas)):
        kappa, folder = round(sum(pair) / 2, 9), run_dir / f"between-{i:02d}"  # not .8500000000000001
        model, config = front.network(kappa), replace(later, kappa=kappa)
        described = described_run(config, data, Start(model.state_dict(), pair)) | {"interpolated": True}
        run = open_folder(folder, described, resume=True)
        if not run:
            with session(device):
                write_results(model.to(device), config, data, folder, lambda: None, more={"interpolated": True})
        front.between[kappa] = run or load_run(folder)
    return front


def epochs_after_first(config: TrainConfig) -> int:
    """Epochs of each network of a front after the first, whose budget is ``config``'s: three fifths, rounded."""
    return max(1, round(0.6 * config.epochs))


def checked_walk(config: TrainConfig, kappas: Sequence[float] | None) -> tuple[float, ...]:
    """The kappas along which `train_front` walks; ValueError where these, or the method, cannot be walked."""
    if config.method == "standard":
        refuse("config.method", config.method, "a method with kappa")
    if config.protocol == "published":
        refuse("config.protocol", config.protocol, "held-out: a front's networks are not selected on the test part")
    if kappas is None:
        kappas = KAPPAS if config.objective().searches else KAPPAS_OF_FIXED_EPS
    walk = tuple(float(check("kappas", kappa, Within(0, 1))) for kappa in kappas)
    steps = [b - a for a, b in pairwise(walk)]
    if not steps or not (all(step > 0 for step in steps) or all(step < 0 for step in steps)):
        refuse("kappas", kappas, "two or more, all rising or all falling")
    return walk


def _identifying(described: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in as_today(described).items() if name not in NOT_IDENTIFYING}


def _begin(run_dir: Path, asked: dict[str, Any]) -> None:
    file = run_dir / FILE
    if there := [name for name in FILES if (run_dir / name).exists()]:
        raise ValueError(f"run_dir: {run_dir} holds a run ({', '.join(there)}), no front. Give another folder")
    if not file.is_file():
        write_json(file, asked)
        return
    before = read_json(file)
    first = _identifying(before.get("first", {}))
    pairs = {name: (before.get(name), value) for name, value in asked.items() if name != "first"}
    pairs |= {f"first network's {name}": (first.get(name), value) for name, value in asked["first"].items()}
    differs = [f"{name} = {then!r} there, {now!r} here" for name, (then, now) in pairs.items() if then != now]
    if differs:
        raise ValueError(f"run_dir: {run_dir} holds another front: {'; '.join(differs)}. Give another folder")


def _mixed(
    first: dict[str, Tensor], second: dict[str, Tensor], t: float, stored: Sequence[dict[str, Tensor]] = ()
) -> dict[str, Tensor]:
    """Weights (1 - t) first + t second; statistics between those that are stored on the way."""
    if t in (0.0, 1.0):
        return second if t else first
    weights = {n: torch.lerp(a, second[n], t) if a.is_floating_point() else a for n, a in first.items()}
    if not stored:
        return weights
    part = min(int(t * PARTS), PARTS - 1)
    ends = [first, *stored, second]
    return weights | {n: torch.lerp(ends[part][n], ends[part + 1][n], t * PARTS - part) for n in stored[0]}


def _write_statistics(knots: dict[float, Run], data: ImageData, run_dir: Path, device: torch.device) -> None:
    """BatchNorm's statistics on the way between neighbours, of the first training images."""
    x = to_float(data.train_x[:IMAGES])
    runs = list(knots.values())
    states = [run.load_model().state_dict() for run in runs]
    model = runs[0].load_model().to(device)
    norms = {name for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    kept = [n for n in states[0] if n.rpartition(".")[0] in norms and n.endswith(("running_mean", "running_var"))]
    found = {}
    with session(device), full_precision(device):
        for i, (first, second) in enumerate(pairwise(states)):
            for part in range(1, PARTS):
                model.load_state_dict(_mixed(first, second, part / PARTS))
                update_bn(x.split(BATCH), model, device)
                state = model.state_dict()
                found |= {f"{i}.{part}.{name}": state[name].clone() for name in kept}
    write_weights(run_dir / STATISTICS, found)
