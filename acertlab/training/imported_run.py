"""A network that others trained, as a run beside one's own."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from acertlab._lock import locked
from acertlab._validation import refuse
from acertlab.bounds.checks import check_mode
from acertlab.bounds.graph.output import as_classifier
from acertlab.bounds.rules.affine import Normalize
from acertlab.data.datasets import ImageData, certified_at, on_device_of
from acertlab.data.files import write_json, write_parquet, write_weights
from acertlab.data.run import EXTERNAL, LOCK_WAIT, Run, history_table, load_run, open_folder
from acertlab.models.architectures import MODELS
from acertlab.radius.certificate import certify, fingerprint
from acertlab.radius.metrics import summarise
from acertlab.training.config import TrainConfig


def import_run(
    model: nn.Module,
    data: ImageData,
    run_dir: str | Path,
    method: str,
    eps_max: float,
    *,
    kappa: float = 0.0,
    seed: int = 0,
    radius_cap: float | None = None,
    bound: str = "ibp",
    source: str = "",
    progress: bool = True,
) -> Run:
    """Certifies a network on the test part of a dataset and writes a run folder, read like those of `acertlab.train`.

    Its settings are those of `TrainConfig` (merged, domain, solver, tolerances), so that the numbers compare. Stopped
    at any moment, the same call goes on; a finished run is returned as it is. The weights are written in any case, but
    `Run.load_model` rebuilds the network only where it is one of `acertlab.models`: `config.json` names it, or says
    "external". The history is empty; of several kappa the best is thus chosen on the test images, as `al.analyse` says.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes), for inputs in pixel units.
        data: from `load_dataset`; only its test part is read.
        run_dir: the run's folder, made if it is not there.
        method: what tables and legends call it: a key of METHODS, such as "sabr", or another, such
            as "SABR (published)".
        eps_max: the perceptual limit, pixel units: that of the runs it is compared with.
        kappa, seed: where it stands among the points of ``method``; kappa is the share of the clean loss.
        radius_cap: up to where radii are searched, pixel units; None: as in `TrainConfig`.
        bound: as in `acertlab.certified_radius`; fronts are compared for one bound only.
        source: where the network is from, for the reader of `config.json`.
        progress: show a bar over the batches.

    Raises:
        ValueError: a setting is out of range, the model does not fit the data, or ``run_dir`` holds another run (the
            message names what differs; nothing is overwritten).
        LockHeldError: another process writes in ``run_dir``.

    Example:
        >>> data = al.load_dataset("digits")
        >>> net = al.models.mlp(data.in_shape, data.num_classes)
        >>> run = al.import_run(net, data, "runs/untrained", method="untrained", eps_max=0.1)
        >>> run.result["acc"] == al.accuracy(net.eval(), data.test_x, data.test_y)
        True
    """
    if not isinstance(method, str) or not method.strip():
        refuse("method", method, "a name")
    settings = TrainConfig(data.name, eps_max=eps_max, kappa=kappa, seed=seed, radius_cap=radius_cap)  # checks them
    run_dir, described = Path(run_dir), _described(model, data, settings, method, bound, source)
    with locked(run_dir / ".lock", f"run_dir: {run_dir}", wait=LOCK_WAIT):
        if finished := open_folder(run_dir, described, resume=True):
            return finished
        _measure(model, data, run_dir, described, progress)
    return load_run(run_dir)


def _classifier(model: nn.Module, data: ImageData) -> nn.Module:
    """The model as one with logits of the dataset's classes."""
    check_mode(model)
    x = on_device_of(model, data.test_x[:4])
    try:
        classifier, logits = as_classifier(model, x)
    except ValueError as error:
        raise ValueError(f"model: it does not take images {data.in_shape} of {data.name}: {error}") from error
    if (shape := tuple(logits.shape)) != (len(x), data.num_classes):
        raise ValueError(f"model: it gives {shape} for {len(x)} images of {data.name}, not {len(x), data.num_classes}")
    return classifier


def _described(
    model: nn.Module, data: ImageData, settings: TrainConfig, method: str, bound: str, source: str
) -> dict[str, Any]:
    """`config.json`, in JSON's own types."""
    classifier = _classifier(model, data)
    names = ("dataset", "eps_max", "kappa", "seed", "merged", "domain", "solver", "eval_xtol", "eval_rtol")
    asked = {name: getattr(settings, name) for name in names}
    asked |= {"method": method, "radius_cap": settings.cap, "verifier": bound, "source": source}
    asked |= {"in_shape": data.in_shape, "classes": data.num_classes, "n_test": len(data.test_x)}
    asked |= {"data": {"test": data.digests()["test"]}}
    asked |= _architecture(model, data) | {"version": version("acertlab")}
    asked |= {"network": fingerprint(classifier, data.test_x)}
    return json.loads(json.dumps(asked))


def _architecture(model: nn.Module, data: ImageData) -> dict[str, Any]:
    """Settings by which `Run.load_model` rebuilds the network."""
    front = next((m for m in model.modules() if isinstance(m, Normalize)), None)
    mean, std = (front.mean.tolist(), front.std.tolist()) if front else (None, None)
    width = next((len(m.weight) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), 1)
    weights, x = model.state_dict(), on_device_of(model, data.test_x[:4])
    for name, build in MODELS.items():
        try:
            with torch.device("meta"), torch.no_grad():
                like = build(data.in_shape, data.num_classes, width=width, mean=mean, std=std).eval()
            if str(like) == str(model) and torch.equal(functional_call(like, weights, x, strict=True), model(x)):
                return {"model": name, "width": width, "mean": mean, "std": std}
        except RuntimeError:  # its kernels are larger than these images
            continue
    return {"model": EXTERNAL}


def _measure(model: nn.Module, data: ImageData, run_dir: Path, asked: dict[str, Any], progress: bool) -> None:
    """Writes radii, an empty history and weights, and `result.json` last."""
    batches = run_dir / "certify"  # each of them is kept until the run is complete
    cap, eps_max = asked["radius_cap"], asked["eps_max"]
    how = {name: asked[name] for name in ("merged", "domain", "solver")}
    how |= {"bound": asked["verifier"], "xtol": asked["eval_xtol"], "rtol": asked["eval_rtol"]}
    report = certify(model, (data.test_x, data.test_y), cap, **how, run_dir=batches, progress=progress)
    grid = certified_at(data.name, eps_max, cap)
    write_parquet(run_dir / "radii.parquet", report.radii)
    write_parquet(run_dir / "history.parquet", history_table([]))
    write_weights(run_dir / "model.safetensors", model.state_dict())
    names = ("dataset", "method", "kappa", "eps_max", "seed", "merged", "domain", "model", "verifier", "radius_cap")
    result = {name: asked[name] for name in names} | summarise(report.radii, eps_max, grid, cap)
    result |= {"width": asked.get("width"), "xtol": asked["eval_xtol"], "rtol": asked["eval_rtol"]}
    result |= {"n": len(report.radii), "split": "test", "epochs": 0, "seconds": 0.0}  # no training
    result |= {"test_seconds": report.settings["seconds"], "device": report.settings["device"]}
    write_json(run_dir / "result.json", result | {"version": asked["version"]})
    shutil.rmtree(batches)
