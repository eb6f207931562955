"""Certificates of a whole data set: `certify` works through a loader and gives a `Report`; killed, it goes on.

A run's folder holds `certify.json` (the settings and the network's fingerprint) and, for every finished batch,
`batch-<position>-<sha256 of its samples>.parquet`, renamed into place when complete: what has its name is done.
"""

from __future__ import annotations

import hashlib
import json
import operator
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from acertlab._text import eps_text
from acertlab._validation import Within, check
from acertlab.bounds.box import DomainLike
from acertlab.bounds.checks import check_samples, full_precision, inputs_of, labels_of, weight_of
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.margin import Sound
from acertlab.data.datasets import on_device_of, to_float
from acertlab.data.files import read_json, write_json, write_parquet, written_aside
from acertlab.data.run import RADII_COLUMNS
from acertlab.radius.certified import find_radii
from acertlab.radius.metrics import certified_accuracy, correct, summarise
from acertlab.radius.search import RadiusStatus, SearchSettings, checked_limit

if TYPE_CHECKING:
    from plotly import graph_objects as go

Batch = tuple[Tensor, Tensor]
Worst = tuple[pd.DataFrame, Tensor]  # rows, and their images
PLAIN = (int, float, complex, str, bool, tuple, list, type(None))  # what prints the same in each process
ELSEWHERE = "choose another run_dir, or resume=False to start anew there"
ACCEPTED = (
    "give batches (x, y) of two tensors, as a DataLoader or a list of pairs does, be a Dataset of such pairs, or one "
    "pair of tensors or arrays (x, y)"
)
PAIR_BATCH = 256  # samples a batch, where the data come as a Dataset or one pair of tensors


@dataclass(frozen=True)
class Report:
    """What a data set's certificates say, with the settings that every number carries.

    Attributes:
        accuracy: share of samples classified correctly.
        acr, art: Eq. (12) and (13), fractions.
        cert_acc: from eps (pixel units) to the share of samples certified there.
        radii: a row a sample: index (its place in the loader), label, predicted (-1: logits not finite), radius, upper
            (pixel units), status (`RadiusStatus`), evaluations.
        worst: the rows of the correctly classified samples with the smallest radii, smallest first.
        images: (len(worst), ...) these samples, on the CPU.
        settings: verifier, merged, sound, domain, eps_max, solver, xtol, rtol, maxiter, time_limit, model (its sha256),
            version, dtype, device, n, monotone (whether the bound is, in eps), seconds (of all calls together),
            evaluations.

    Example:
        >>> al.certify(model, [(x, y)], eps_max=0.5, progress=False).summary()
        'Acc 100.00 %, ACR 50.00 %, ART 70.71 % (eps_max = 0.5, ibp)'
    """

    accuracy: float
    acr: float
    art: float
    cert_acc: dict[float, float]
    radii: pd.DataFrame
    worst: pd.DataFrame
    images: Tensor
    settings: dict[str, Any]

    def table(self) -> pd.DataFrame:
        """The scores in percent and the settings, a row each: columns quantity and value."""
        scores = {"Acc (%)": 100 * self.accuracy, "ACR (%)": 100 * self.acr, "ART (%)": 100 * self.art}
        scores |= {f"certified at eps = {eps:.4g} (%)": 100 * share for eps, share in self.cert_acc.items()}
        reached = self.radii["status"].to_numpy()
        scores |= {f"samples {status.name}": int((reached == status).sum()) for status in RadiusStatus}
        rows = scores | {name: str(value) for name, value in self.settings.items()}
        return pd.DataFrame({"quantity": rows.keys(), "value": rows.values()})

    def plot(self) -> go.Figure:
        """The certified accuracy at every eps, the histogram of the radii and, of images, the worst ones."""
        from acertlab.visualization.pages.certificate import certificate  # plotly is loaded when a figure is asked for

        return certificate(self)

    def to_json(self, path: str | Path) -> None:
        """Scores, settings and every sample's row, as one JSON file, atomically; an infinite number becomes null."""
        scores = {"accuracy": self.accuracy, "acr": self.acr, "art": self.art, "cert_acc": self.cert_acc}
        tables = {"worst": list(self.worst["index"]), "radii": self.radii.to_dict("list")}
        write_json(path, {**scores, "settings": self.settings, **tables})

    def to_html(self, path: str | Path) -> None:
        """One page with the picture, the table and the worst samples, atomically; it needs no network."""
        from acertlab.visualization.pages.certificate import certificate_page

        with written_aside(Path(path)) as aside:
            aside.write_text(certificate_page(self), encoding="utf-8")

    def _repr_html_(self) -> str:
        table = self.table()
        aside = table["quantity"].isin(self.settings) | table["quantity"].str.startswith("samples ")
        parts = (table[~aside], self.outcomes(), table[aside])
        scores, outcomes, more = (part.to_html(index=False, float_format="{:.2f}".format, border=0) for part in parts)
        said = f"<p>{escape(self.sentence())}</p>{outcomes}"
        return f"{scores}{said}<details><summary>Settings and numbers</summary>{more}</details>"

    def __str__(self) -> str:
        """What one would tell a colleague: the scores in a sentence, and what became of the samples."""
        known = self.cert_acc.items()
        shares = "\n".join(f"certified at eps = {eps:<8.4g}{100 * share:7.2f} %" for eps, share in known)
        outcomes = "\n".join(f"{n:6} samples: {outcome}" for outcome, n in self.outcomes().itertuples(index=False))
        return f"{self.sentence()}\n\n{outcomes}\n\n{shares}"

    def sentence(self) -> str:
        """The scores in words."""
        eps_max = self.settings["eps_max"]
        whole = certified_accuracy(self.radii["radius"], [eps_max])[0]
        rounding = "" if self.settings["sound"] else "; rounding errors are not bounded"
        return (
            f"Of {self.settings['n']} samples {100 * self.accuracy:.1f} % are classified correctly, and "
            f"{100 * whole:.1f} % provably stay so when inputs change by up to eps_max = {eps_text(eps_max)}. "
            f"The certified radius is on average {100 * self.acr:.1f} % of that (ACR), by "
            f"{self.settings['verifier']}{rounding}."
        )

    def outcomes(self) -> pd.DataFrame:
        """How many samples ended how, in words: columns outcome and samples."""
        counts = self.radii["status"].value_counts()
        found = {RadiusStatus(s).sentence: count for s, count in zip(counts.index.tolist(), counts, strict=True)}
        return pd.DataFrame({"outcome": found.keys(), "samples": found.values()})

    def summary(self) -> str:
        """The scores in a line."""
        scores = f"Acc {100 * self.accuracy:.2f} %, ACR {100 * self.acr:.2f} %, ART {100 * self.art:.2f} %"
        return f"{scores} (eps_max = {self.settings['eps_max']:.4g}, {self.settings['verifier']})"


def certify(
    model: nn.Module,
    loader: Iterable[Batch] | Batch,
    eps_max: float | str,
    *,
    bound: str = "ibp",
    merged: bool = True,
    domain: DomainLike = (0.0, 1.0),
    sound: Sound = False,
    solver: str = "log-secant",
    xtol: float = 1e-8,
    rtol: float = 1e-5,
    maxiter: int = 100,
    time_limit: float = 60.0,
    eps_grid: Sequence[float] | None = None,
    worst: int = 8,
    run_dir: str | Path | None = None,
    resume: bool = True,
    progress: bool = True,
) -> Report:
    """Def. 3.1 over a whole data set: certified radii, accuracy, ACR and ART (Eq. 12-13), pooled over the samples.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes).
        loader: batches (x, y), once through, as a DataLoader or a list gives them, a Dataset, or one pair of tensors,
            arrays or tables: x (B, ...) in pixel units or uint8 images, y (B,) integer labels. They are moved to the
            model's device.
        eps_max: the perceptual limit in pixel units, > 0; "8/255" will do.
        bound, merged, domain, sound, solver, xtol, rtol, maxiter, time_limit: as in `acertlab.certified_radius`.
        eps_grid: where to give the certified accuracy, in [0, eps_max]; None: at eleven points.
        worst: how many of the correctly classified samples with the smallest radii to keep, images included.
        run_dir: a folder that keeps every finished batch; None: nothing is kept.
        resume: go on where an earlier call with the same folder, network, settings and samples was stopped, at any
            moment and in any way; False: start anew.
        progress: show a progress bar over the batches.

    Raises:
        ValueError: ``run_dir`` was begun with another network, other settings or other samples.

    Example:
        >>> report = al.certify(model, [(x, y)], eps_max=0.5, progress=False)
        >>> report.accuracy, round(report.acr, 3), len(report.radii)
        (1.0, 0.5, 1)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, not {type(model).__name__}")
    eps_max, worst = checked_limit(eps_max, domain), check("worst", worst, Within(0, kind=int))
    grid = [float(eps) for eps in (np.linspace(0, eps_max, 11) if eps_grid is None else eps_grid)]
    if not all(0 <= eps <= eps_max for eps in grid):
        raise ValueError(f"eps_grid: {grid} has values outside [0, eps_max = {eps_max}], where radii are searched")
    settings = SearchSettings(bound, merged, domain, sound, solver, xtol, rtol, maxiter, time_limit)
    asked = {"eps_max": eps_max, **settings.plain(), "model": "", "version": version("acertlab")}
    folder, parts, kept, place = None, [], None, 0
    given: Any = DataLoader(loader, PAIR_BATCH) if isinstance(loader, Dataset) else loader
    like = weight_of(model, torch.zeros(()))
    if _is_pair(given) and given[0].ndim:
        x, y = _check_batch(given, 0, like)
        given = list(zip(x.split(PAIR_BATCH), y.split(PAIR_BATCH), strict=True))
    total = operator.length_hint(given, 0) or None
    for i, (x, y) in enumerate(tqdm(_batches(given, like), "certify", total, disable=not progress)):
        try:
            if not len(y):
                continue
            if not parts:
                sample = on_device_of(model, x[:1])
                model, _, _ = check_samples(model, sample, y[:1].to(sample.device), domain)
                asked["model"] = fingerprint(model, x)
                folder = None if run_dir is None else _Folder(Path(run_dir), asked, resume)
            path = folder.path_of(i, x, y) if folder else None
            if path and path.is_file():
                part = _read(path)
            else:
                part = certify_batch(model, x, y, eps_max, settings)
                if folder and path:
                    folder.keep(path, part)
        except (TypeError, ValueError) as error:
            error.add_note(f"This was batch {i} of the loader.")
            raise
        part.insert(0, "index", range(place, place + len(y)))
        place += len(y)
        parts.append(part)
        kept = _keep_worst(kept, part, x, worst)
    if kept is None:
        raise ValueError("loader: gave no samples (empty, or a generator that was used up before)")
    return _report(pd.concat(parts, ignore_index=True), kept, grid, asked, model)


def _is_pair(batch: Any) -> bool:
    two = isinstance(batch, (tuple, list)) and len(batch) == 2
    return two and hasattr(batch[0], "__array__") and (isinstance(batch[1], list) or hasattr(batch[1], "__array__"))


def _batches(loader: Iterable[Batch], like: Tensor) -> Iterator[Batch]:
    """The loader's batches, each one a pair of tensors of the same length, of arrays in the dtype of ``like``."""
    if isinstance(loader, (str, bytes, dict, Tensor, nn.Module)) or not isinstance(loader, Iterable):
        raise TypeError(f"loader: must {ACCEPTED}; not {type(loader).__name__}")
    for i, batch in enumerate(loader):
        yield _check_batch(batch, i, like)


def _check_batch(batch: Any, i: int, like: Tensor) -> Batch:
    if not _is_pair(batch):
        names = [type(part).__name__ for part in batch] if isinstance(batch, (tuple, list)) else []
        what = f"({', '.join(names)})" if names else type(batch).__name__
        raise TypeError(f"loader: its item {i} is {what}; it must {ACCEPTED}")
    x, y = batch
    x = inputs_of(x, like, images=True)
    y = labels_of(y, x.device)
    if x.dim() < 2 or y.dim() != 1 or len(x) != len(y):
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"loader: its batch {i} has shapes {shapes}, not (B, ...) and (B,)")
    return x, y


def certify_batch(model: nn.Module, x: Tensor, y: Tensor, eps_max: float, settings: SearchSettings) -> pd.DataFrame:
    """Predictions and certified radii (Def. 3.1), up to eps_max, of one batch x (B, ...), pixels or uint8 images.

    The samples are moved to the device of the model, which is in evaluation mode.

    Returns:
        A row a sample: label, predicted (-1: logits not finite), radius (certified), upper (not certified), status
        (`RadiusStatus`), evaluations, monotone, and seconds (its share of the batch's).
    """
    started = time.perf_counter()
    x = on_device_of(model, x)
    device, y = x.device, y.to(x.device)
    found = find_radii(model, x, y, eps_max, settings)
    with torch.no_grad(), full_precision(device):
        logits = model(x)
    predicted = torch.where(logits.isfinite().all(1), logits.argmax(1), -1)
    columns = {"label": y, "predicted": predicted, "radius": found.radius, "upper": found.upper}
    columns |= {"status": found.status, "evaluations": found.evaluations}
    table = pd.DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
    return table.assign(monotone=found.monotone, seconds=(time.perf_counter() - started) / len(y))


def _keep_worst(kept: Worst | None, part: pd.DataFrame, x: Tensor, worst: int) -> Worst:
    """The worst of those kept and of one more batch, with their images."""
    rows = part.reset_index(drop=True).loc[correct(part).to_numpy()].nsmallest(worst, "radius")
    images = x[rows.index.tolist()].detach().cpu()
    if kept is not None:
        rows, images = pd.concat([kept[0], rows], ignore_index=True), torch.cat([kept[1], images])
    order = np.argsort(rows["radius"].to_numpy(), kind="stable")[:worst].tolist()
    return rows.iloc[order].reset_index(drop=True), images[order]


def _report(table: pd.DataFrame, kept: Worst, grid: list[float], asked: dict[str, Any], model: nn.Module) -> Report:
    eps_max = asked["eps_max"]
    scores = summarise(table, eps_max, grid, eps_max)
    weight = next(model.parameters(), torch.empty(0))
    settings = {"verifier": asked["bound"], **{name: asked[name] for name in asked if name != "bound"}}
    settings |= {"dtype": str(weight.dtype).removeprefix("torch."), "device": str(weight.device), "n": len(table)}
    settings |= {"monotone": bool(table["monotone"].all()), "seconds": float(table["seconds"].to_numpy().sum())}
    settings |= {"evaluations": int(table["evaluations"].to_numpy().sum())}
    worst, images = kept
    columns = [*RADII_COLUMNS, "evaluations"]
    images = to_float(images) if images.dtype == torch.uint8 else images
    acc, acr, art, shares = (scores[name] for name in ("acc", "acr", "art", "cert_acc"))
    return Report(acc, acr, art, shares, table.loc[:, columns], worst.loc[:, columns], images, settings)


class _Folder:
    """The finished batches of one call, under the fingerprint of what they depend on."""

    def __init__(self, path: Path, asked: dict[str, Any], resume: bool) -> None:
        self.path, self.asked = path, json.loads(json.dumps(asked))
        self.header = path / "certify.json"
        if not resume:
            for old in [self.header, *path.glob("batch-*.parquet")]:  # the header first: half deleted is not begun
                old.unlink(missing_ok=True)
        elif self.header.is_file():
            self._refuse_other(read_json(self.header))
        elif any(path.glob("batch-*.parquet")):
            raise ValueError(f"run_dir: {path} holds batches, but no certify.json that says of what; {ELSEWHERE}")

    def _refuse_other(self, earlier: dict[str, Any]) -> None:
        for name, now in self.asked.items():
            if (then := earlier.get(name)) != now:
                what = "another network" if name == "model" else f"{name} = {then!r}, not {now!r}"
                raise ValueError(f"run_dir: {self.path} was begun with {what}; {ELSEWHERE}")

    def path_of(self, i: int, x: Tensor, y: Tensor) -> Path:
        """Where batch i is kept; ValueError where the folder has a batch i of other samples."""
        path = self.path / f"batch-{i:05d}-{_sha256({'x': x, 'y': y})}.parquet"
        if not path.is_file() and any(self.path.glob(f"batch-{i:05d}-*.parquet")):
            why = "a loader that shuffles gives other batches every time; give the same ones"
            raise ValueError(f"run_dir: {self.path} was begun with other samples in batch {i}; {why}, or {ELSEWHERE}")
        return path

    def keep(self, path: Path, table: pd.DataFrame) -> None:
        if not self.header.is_file():
            write_json(self.header, self.asked)
        write_parquet(path, table)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"run_dir: {path} cannot be read ({error}); delete it, and it is computed again") from error


def fingerprint(model: nn.Module, x: Tensor) -> str:
    """A sha256 over what a network computes of samples such as x: its operators with all their tensors and numbers."""
    tensors, structure = dict(model.named_parameters()) | dict(model.named_buffers()), repr(model)
    with suppress(TypeError, ValueError):  # what cannot be captured is not certified either
        graph = graph_of(model, on_device_of(model, x[:1]))
        tensors |= {node.name: tensor for node, tensor in graph.lookup(model).items()}
        structure += "".join(f"{node.name} {node.target} {node.args} {node.kwargs}" for node in graph.nodes)
        for path in {call.path: None for call in graph.whole}:  # whose operators the graph does not tell
            for name, value in vars(model.get_submodule(path)).items():
                tensors |= {f"{path}.{name}": value} if isinstance(value, Tensor) else {}
                structure += f"{path}.{name} {value!r}" if isinstance(value, PLAIN) and name != "training" else ""
    return _sha256(tensors, structure)


def _sha256(tensors: dict[str, Tensor], text: str = "") -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
