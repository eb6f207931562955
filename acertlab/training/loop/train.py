"""The training loop: one step, one epoch, one run, which goes on bit for bit where it was killed.

A run is decided by its `TrainConfig` and its data alone. All randomness of an epoch comes from generators seeded by
(seed, epoch), so a checkpoint holds no random state: the weights, the optimiser, the schedule and the history are all.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from acertlab._lock import locked
from acertlab.data.datasets import ImageData, augment, certified_at, to_float
from acertlab.data.files import write_json, write_parquet, write_weights
from acertlab.data.run import (
    LOCK_WAIT,
    NOT_IDENTIFYING,
    ORIGIN_BEFORE,
    RADII_COLUMNS,
    Run,
    defaults_before,
    history_table,
    load_run,
    open_folder,
)
from acertlab.models.split import split
from acertlab.radius.certificate import certify_batch
from acertlab.radius.metrics import mean_of_batches, summarise
from acertlab.radius.search import SearchSettings
from acertlab.training.config import TrainConfig
from acertlab.training.loop.checkpoint import full_disk_explained, restore, save_checkpoint
from acertlab.training.loop.diagnostics import NonFiniteLossError, find_layer
from acertlab.training.loop.state import State, initial_state, network
from acertlab.training.loop.step import history_sums, normalisation, session, train_step
from acertlab.training.schedules import RAMPS

CHECK_EVERY = 100  # steps between two looks at whether the loss is still finite: each waits for the device
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a training begins, in place of random weights."""

    weights: Mapping[str, Tensor]  # a state dict of the network that the configuration asks for
    kappas: tuple[float, ...]  # those by which it was trained until then, one after the other

    def digest(self) -> str:
        """Of all values, by name."""
        whole = hashlib.sha256()
        for name, value in sorted(self.weights.items()):
            whole.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return whole.hexdigest()


def train(config: TrainConfig, data: ImageData, run_dir: str | Path, resume: bool = True, progress: bool = True) -> Run:
    """Trains a network by ``config`` and writes its run folder; the same call again goes on, or returns what is done.

    Args:
        config: see `TrainConfig` and `preset`.
        data: the dataset that ``config.dataset`` names, from `load_dataset`. Validation is read after each epoch (not
            at all where it is empty), the test part once, at the end.
        run_dir: the run's folder. It is made if it is not there; a finished run of the same configuration in it is
            returned as it is, an unfinished one continued from its last checkpoint.
        resume: False: refuse a folder that holds a run.
        progress: show a bar with Acc, ACR and ART of the last validation.

    Returns:
        The finished run. On one machine's CPU the same configuration, data and number of threads give the same
        weights bit for bit.

    Raises:
        ValueError: ``data`` is not what ``config`` asks for, the device is not there, or ``run_dir`` holds a run of
            another configuration (the message names what differs; nothing is overwritten).
        FileExistsError: ``resume`` is False and ``run_dir`` holds a run.
        LockHeldError: another process trains in ``run_dir``.
        NonFiniteLossError: the message names epoch, step, learning rate, eps and the layer.
        OSError: the disk is full; the last checkpoint is whole, and the same call goes on from it. Or the folder was
            deleted or moved while it was trained in.

    Example:
        >>> config = al.preset("digits", "acert", budget="smoke")
        >>> run = al.train(config, al.load_dataset("digits"), "runs/acert", progress=False)
        >>> 0 <= run.result["acr"] <= run.result["acc"] <= 1
        True
    """
    return train_from(None, config, data, run_dir, resume, progress)


def train_from(
    start: Start | None, config: TrainConfig, data: ImageData, run_dir: str | Path, resume: bool, progress: bool
) -> Run:
    """`train`, but beginning with the weights of ``start`` where one is given."""
    _check_data(config, data)
    config.torch_device()  # refuses one that is not there
    run_dir, described = Path(run_dir), described_run(config, data, start)
    if (run_dir / "result.json").is_file() and (finished := open_folder(run_dir, described, resume)):
        return finished  # needs no lock, which a read-only folder could not give
    with locked(run_dir / ".lock", f"run_dir: {run_dir}", wait=LOCK_WAIT) as held, full_disk_explained(run_dir):
        if finished := open_folder(run_dir, described, resume):
            return finished

        def ready() -> None:
            """Refuse to write into a folder that is no longer ours; write what was taken out of ours."""
            if not held():
                raise FileNotFoundError(
                    f"run_dir: {run_dir} was deleted, moved or replaced while it was trained in; nothing more is "
                    "written. Where it was moved, the same call with its new path goes on"
                )
            if not (run_dir / "config.json").is_file():
                write_json(run_dir / "config.json", described)

        return _train(start, config, data, run_dir, progress, ready)


def _train(
    start: Start | None, config: TrainConfig, data: ImageData, run_dir: Path, progress: bool, ready: Callable[[], None]
) -> Run:
    device, owners = config.torch_device(), _owners(described_run(config, data, start))
    steps = math.ceil(len(data.train_x) / config.batch_size)
    train_x, train_y = data.train_x.to(device), data.train_y.to(device)
    label = f"{config.method} kappa={config.kappa:g}"
    with session(device):
        state = _begun(start, config, data, device, steps)
        restore(state, run_dir / "checkpoint", owners)
        done = len(state.history) * steps
        with tqdm(total=config.epochs * steps, initial=done, desc=label, disable=not progress, mininterval=1.0) as bar:
            for epoch in range(len(state.history), config.epochs):
                if _ends_early(config, state.history):
                    break
                started = time.perf_counter()
                try:
                    row = {"epoch": epoch} | train_epoch(state, config, data, train_x, train_y, epoch, bar)
                except NonFiniteLossError as error:
                    state = _begun(start, config, data, device, steps)
                    restore(state, run_dir / "checkpoint", owners)
                    again = partial(train_epoch, state, config, data, train_x, train_y, epoch, bar)
                    raise NonFiniteLossError(f"{error}. {find_layer(state, error, again)}", error.eps) from error
                row |= _validate(state.model, config, data, row["eps_t"])
                _keep_best(state, config, row["val_art"])
                state.history.append(row | {"seconds": time.perf_counter() - started})
                if row["val_acc"] is not None:
                    shown = {"Acc": row["val_acc"], "ACR": row["val_acr"], "ART": row["val_art"]}
                    bar.set_postfix({name: f"{100 * value:.1f}" for name, value in shown.items()})
                _warn_of_spiral(state)
                ready()
                write_parquet(run_dir / "history.parquet", history_table(state.history))
                save_checkpoint(state, run_dir / "checkpoint", owners[0])
        _finish(state, config, data, run_dir, ready)
    return load_run(run_dir)


def _begun(start: Start | None, config: TrainConfig, data: ImageData, device: torch.device, steps: int) -> State:
    state = initial_state(config, data, device, steps)
    if start is not None:
        state.model.load_state_dict(dict(start.weights))
    return state


def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, cap: float, settings: SearchSettings, batch_size: int
) -> pd.DataFrame:
    """Predictions and certified radii (Def. 3.1), up to ``cap`` (pixel units), as a run's `radii.parquet` holds them.

    The model is put into evaluation mode; x (N, C, H, W) are uint8 images. A row a sample.
    """
    model.eval()
    batches = zip(x.split(batch_size), y.split(batch_size), strict=True)
    table = pd.concat([certify_batch(model, *batch, cap, settings) for batch in batches], ignore_index=True)
    return pd.DataFrame(table.assign(index=range(len(table))), columns=list(RADII_COLUMNS))


def train_epoch(
    state: State, config: TrainConfig, data: ImageData, train_x: Tensor, train_y: Tensor, epoch: int, bar: tqdm
) -> dict[str, Any]:
    """One pass over the training set. Nothing waits for the device but a look at the loss every `CHECK_EVERY` steps."""
    state.model.train()
    n, device = len(train_x), train_x.device
    batches, generator = shuffled_batches(config, n, epoch, device)
    torch.manual_seed(generator.initial_seed())  # for layers that draw at random
    steps, std = len(batches), normalisation(data, device)
    ramp_first, ramp_last = config.clean_epochs * steps, (config.clean_epochs + config.ramp_epochs) * steps
    totals, bounded = torch.zeros(9, device=device), 0
    first_bad = torch.full((), -1, device=device)
    eps = lr = 0.0
    for i, index in enumerate(batches):
        t = epoch * steps + i
        eps, lr = RAMPS[config.ramp](t, ramp_first, ramp_last, config.train_eps), state.optimizer.param_groups[0]["lr"]
        x, y = augment(to_float(train_x[index]), config.dataset, generator), train_y[index]
        loss, norm, logits, logged = train_step(state, config, x, y, index, eps, std)
        bar.update()
        totals += history_sums(loss, logged, logits, y, eps)
        bounded += len(y) if eps > 0 else 0
        first_bad = torch.where((first_bad < 0) & ~(loss + norm).isfinite(), t, first_bad)
        if ((i + 1) % CHECK_EVERY == 0 or i + 1 == steps) and (bad := int(first_bad)) >= 0:
            eps = RAMPS[config.ramp](bad, ramp_first, ramp_last, config.train_eps)
            raise NonFiniteLossError(
                f"the loss or its gradient stopped being finite in epoch {epoch} at step {bad} (learning rate about "
                f"{lr:.3g}, eps_t {eps:.4g}); a smaller lr, a longer ramp_epochs or a smaller clip may help",
                eps,
            )
    names = ("loss", "clean_loss", "robust_loss", "regulariser", "train_acc", "zero", "cap", "radius_mean", "passes")
    row: dict[str, Any] = dict(zip(names, (totals / n).tolist(), strict=True))
    zero, cap = (row.pop(name) * n / max(1, bounded) for name in ("zero", "cap"))
    shares = (zero, max(0.0, 1 - zero - cap), cap) if bounded else (None, None, None)
    row |= dict(zip(("share_zero", "share_inside", "share_cap"), shares, strict=True))
    return row | {"lr": lr, "eps_t": eps}


def shuffled_batches(
    config: TrainConfig, n: int, epoch: int, device: torch.device | str = "cpu"
) -> tuple[tuple[Tensor, ...], torch.Generator]:
    """The indices of an epoch's batches of n samples, and the generator that drew them and goes on to augment."""
    generator = torch.Generator().manual_seed(_mixed_seed(config.seed, epoch))
    order = torch.randperm(n, generator=generator).to(device)
    return order.tensor_split(math.ceil(n / config.batch_size)), generator


def _mixed_seed(seed: int, epoch: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {epoch}".encode()).digest()[:7])


def _validate(model: nn.Module, config: TrainConfig, data: ImageData, eps: float) -> dict[str, Any]:
    """Scores on the validation part; by the published protocol on the test part, as its code has them.

    There radii count up to eps, the eps_{max,t} of the epoch, so that no epoch of the ramp is the best by chance.
    """
    published = config.protocol == "published"
    x, y = (data.test_x, data.test_y) if published else (data.val_x, data.val_y)
    if not len(x):
        return {"val_acc": None, "val_acr": None, "val_art": None}
    table = evaluate(model, x, y, config.eps_max, config.val_search, config.eval_batch)
    if published:
        table = table.assign(radius=table.radius.clip(upper=eps))
        scores = mean_of_batches(table, config.eps_max, config.batch_size)
    else:
        scores = summarise(table, config.eps_max, (), config.eps_max)
    return {f"val_{name}": scores[name] for name in ("acc", "acr", "art")}


def _keep_best(state: State, config: TrainConfig, art: float | None) -> None:
    """By the published protocol the best epoch's weights are the result, not the last's; the first's of equal ones."""
    best_before = max((row["val_art"] for row in state.history if row["val_art"] is not None), default=-1.0)
    if config.protocol == "published" and art is not None and art > best_before:
        state.best_epoch = len(state.history)
        state.best_weights = {name: value.clone() for name, value in state.model.state_dict().items()}


def _ends_early(config: TrainConfig, history: list[dict[str, Any]]) -> bool:
    """By the published protocol, after ``patience`` epochs without a better ART, but not before ``min_epochs``."""
    if config.protocol != "published" or not config.patience or len(history) < max(1, config.min_epochs):
        return False
    arts = [-1.0 if row["val_art"] is None else row["val_art"] for row in history]
    return len(arts) - 1 - arts.index(max(arts)) >= config.patience


def _warn_of_spiral(state: State) -> None:
    """Warns once where the radii fall back: eps_{max,t} grew too fast for the number of steps (NUMERICS, section 8)."""
    positive = [1 - row["share_zero"] for row in state.history if row["share_zero"] is not None]
    radii = [row["radius_mean"] for row in state.history]
    if state.warned or not positive or (positive[-1] >= max(positive) - 0.1 and radii[-1] >= 0.5 * max(radii)):
        return
    state.warned = True
    shares, sizes = (max(positive), positive[-1]), (radii[-1], max(radii))
    with tqdm.external_write_mode():  # on a line of its own, not behind a bar
        log.warning(
            "epoch %d: the share of training samples with a positive radius fell from %.2f to %.2f, their mean radius "
            "is %.4g (at best %.4g). A ramp that is too quick makes radii shrink: more ramp_epochs, a larger kappa or "
            "a smaller eps_max help",
            *(state.history[-1]["epoch"], *shares, *sizes),
        )


def _check_data(config: TrainConfig, data: ImageData) -> None:
    if data.name != config.dataset:
        raise ValueError(f"data: holds {data.name!r}, but config.dataset = {config.dataset!r}; they must be the same")
    if len(data.train_x) < 2 or not len(data.test_x):
        raise ValueError(f"data: {len(data.train_x)} training and {len(data.test_x)} test images; at least 2 and 1")
    if data.num_classes < 2:
        raise ValueError(f"data: {data.name!r} has one class ({', '.join(data.classes)}); at least 2")
    smallest = len(data.train_x) // math.ceil(len(data.train_x) / config.batch_size)
    if config.objective().splits:
        split(network(config, data), config.classifier_relus)  # refuses what cannot be split
    if smallest < 2 and config.model != "mlp":  # which has no BatchNorm
        raise ValueError(
            f"batch_size = {config.batch_size}: {len(data.train_x)} training images come to a batch of one, of which "
            "BatchNorm has no statistics; accepted is a size that leaves at least 2 in every batch"
        )


def described_run(config: TrainConfig, data: ImageData, start: Start | None = None) -> dict[str, Any]:
    """`config.json`: what the run was asked to do, and what it takes to rebuild the network; in JSON's own types."""
    parts = {f"n_{part}": len(getattr(data, f"{part}_x")) for part in ("train", "val", "test")}
    network = {"in_shape": data.in_shape, "classes": data.num_classes, "mean": data.mean, "std": data.std}
    origin = {"weights": start.digest(), "front": list(start.kappas)} if start else ORIGIN_BEFORE
    described = asdict(config) | network | parts | origin
    described |= {"data": data.digests(), "version": version("acertlab")}
    return json.loads(json.dumps(described))


def _owners(described: dict[str, Any]) -> tuple[str, str]:
    """What a checkpoint must have been made for: all but where it ran; and as version 0.1.0 had it."""
    images, unnamed = {"data": described.pop("data")}, ORIGIN_BEFORE | defaults_before(described)
    settings = {n: v for n, v in described.items() if n not in NOT_IDENTIFYING and unnamed.get(n, ...) != v}

    def digest(content: dict[str, Any]) -> str:
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    return digest(settings | images), digest(settings)


def _finish(state: State, config: TrainConfig, data: ImageData, run_dir: Path, ready: Callable[[], None]) -> None:
    """Measures the network that training gives: the last epoch's, by the published protocol the best one's."""
    selected: dict[str, Any] = {}
    if state.best_weights:
        state.model.load_state_dict(state.best_weights)
        selected = {"selected_epoch": state.best_epoch, "selected_on": "test"}
        selected |= {"ended_after": len(state.history)} if len(state.history) < config.epochs else {}
    write_results(state.model, config, data, run_dir, ready, state.history, selected)


def write_results(
    model: nn.Module,
    config: TrainConfig,
    data: ImageData,
    run_dir: Path,
    ready: Callable[[], None],
    history: Sequence[dict[str, Any]] = (),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Reads the test part once; writes radii and weights, and `result.json`, with ``more``, last."""
    started = time.perf_counter()
    table = evaluate(model, data.test_x, data.test_y, config.cap, config.search, config.eval_batch)
    grid = certified_at(config.dataset, config.eps_max, config.cap)
    ready()
    write_parquet(run_dir / "history.parquet", history_table(list(history)))  # it may be gone since
    write_parquet(run_dir / "radii.parquet", table)
    write_weights(run_dir / "model.safetensors", model.state_dict())
    asked = ("dataset", "method", "kappa", "eps_max", "seed", "merged", "domain")
    asked += ("epochs", "batch_size", "model", "width", "train_eps_factor")
    result = {name: getattr(config, name) for name in asked} | summarise(table, config.eps_max, grid, config.cap)
    result |= {"verifier": "ibp", "radius_cap": config.cap, "protocol": config.protocol} | dict(more)
    if "selected_on" in more:
        result |= {"means_of_batches": mean_of_batches(table, config.eps_max, config.batch_size)}
    result |= {"xtol": config.eval_xtol, "rtol": config.eval_rtol, "n": len(table), "split": "test"}
    result |= {"seconds": sum(row["seconds"] for row in history), "test_seconds": time.perf_counter() - started}
    device = next(model.parameters()).device
    write_json(run_dir / "result.json", result | {"device": str(device), "version": version("acertlab")})
