"""Checkpoints from which a killed run goes on bit for bit: safetensors and JSON, never pickle.

checkpoint/epoch-0003/{state.safetensors, state.json, sha256.json}, renamed into place as a whole; two are kept. What
else lies there is left alone.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from acertlab.data.files import write_json, write_weights
from acertlab.training.loop.state import State
from acertlab.training.methods.sample_radii import RadiusEstimates

KEEP = 2  # the last, and the one before in case the last is damaged
STATE = ("state.safetensors", "state.json")
log = logging.getLogger(__name__)


def _checkpoints(root: Path) -> dict[Path, int]:
    """The folders of checkpoints, from the oldest to the newest, and after how many epochs each was written."""
    names = (re.fullmatch(r"epoch-(\d+)", path.name) for path in (root.iterdir() if root.is_dir() else ()))
    return {root / name.string: int(name[1]) for name in sorted(filter(None, names), key=lambda name: int(name[1]))}


def save_checkpoint(state: State, root: Path, owner: str) -> None:
    """Writes what training changes; ``owner`` names its run. Where the disk is full, earlier ones stay as they were."""
    optimizer = state.optimizer.state_dict()
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in (state.best_weights or {}).items()}
    tensors |= {f"optimizer.{i}.{name}": v for i, values in optimizer["state"].items() for name, v in values.items()}
    tensors |= {f"radii.{name}": value for name, value in state.radii._asdict().items()} if state.radii else {}
    plain = {
        "owner": owner,
        "param_groups": optimizer["param_groups"],
        "scheduler": state.scheduler.state_dict(),
        "history": state.history,
        "best_epoch": state.best_epoch,
    }
    final = root / f"epoch-{len(state.history):04d}"
    aside = root / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        write_weights(aside / STATE[0], tensors)
        write_json(aside / STATE[1], plain)
        write_json(aside / "sha256.json", {name: _sha256(aside / name) for name in STATE})
        if final.exists():  # damaged, or it would have been resumed from
            shutil.rmtree(final)
        os.replace(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    there = _checkpoints(root)  # later ones than this are damaged, or another run's
    keep = [folder for folder, epochs in there.items() if epochs <= len(state.history)][-KEEP:]
    for folder in [folder for folder in there if folder not in keep] + list(root.glob(".epoch-*.tmp")):
        shutil.rmtree(folder, ignore_errors=True)  # on a network disk a file that is open stays, as .nfs...


def restore(state: State, root: Path, owners: Sequence[str]) -> None:
    """Takes up the newest checkpoint that is whole and belongs to this run; says which ones are not, and why."""
    from safetensors import SafetensorError

    for folder in reversed(_checkpoints(root)):
        try:
            plain, tensors = _read(state, folder, owners)
        except (OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
            log.warning("checkpoint %s is passed over: %s", folder, error)
            continue
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, name = key.partition(".")
            parts.setdefault(kind, {})[name] = value
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in parts.get("optimizer", {}).items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value
        state.model.load_state_dict(parts["model"])
        state.best_weights, state.best_epoch = parts.get("best"), plain["best_epoch"]
        if state.radii and parts["radii"].keys() == set(state.radii._fields):  # else another version's: costs passes
            device = state.radii.radius.device
            state.radii = RadiusEstimates(*(parts["radii"][name].to(device) for name in state.radii._fields))
        state.optimizer.load_state_dict({"state": moments, "param_groups": plain["param_groups"]})
        state.scheduler.load_state_dict(plain["scheduler"])
        state.history = plain["history"]
        return


def _read(state: State, folder: Path, owners: Sequence[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint holds, after all that could be wrong with it was looked at; ValueError and its like name it."""
    from safetensors.torch import load_file

    sums = json.loads((folder / "sha256.json").read_text())
    for name in STATE:
        if _sha256(folder / name) != sums.get(name):
            raise ValueError(f"it is damaged: {name} does not match its checksum")
    plain, tensors = json.loads((folder / STATE[1]).read_text()), load_file(folder / STATE[0])
    if plain.get("owner") not in owners:
        raise ValueError("it belongs to another run (other settings, data or version)")
    for name, value in state.model.state_dict().items():
        held = tensors[f"model.{name}"]  # a KeyError names it
        if held.shape != value.shape:
            raise ValueError(f"its {name} has shape {tuple(held.shape)}, the network's {tuple(value.shape)}")
    return plain, tensors


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def full_disk_explained(run_dir: Path) -> Iterator[None]:
    """Turns the error of a disk without room into one that says what is safe and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        kept = list(_checkpoints(run_dir / "checkpoint"))
        what = f"the checkpoint {kept[-1].name} is whole" if kept else "no checkpoint was written yet"
        advice = "make room and give the same command again, the run goes on from there"
        raise OSError(error.errno, f"{error.strerror}; {what}; {advice}", str(run_dir)) from error
