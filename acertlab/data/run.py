"""One training run on disk: its folder, or its part of a packed folder.

A run's folder holds `config.json`, `history.parquet` (a row an epoch), `radii.parquet` (a row a test sample),
`model.safetensors`, `checkpoint/` and, renamed into place last, `result.json`: a folder without it is unfinished.
Nothing is ever pickled.

Many runs go into one packed folder, see `acertlab.data.pack`. The path of a packed run is the packed folder and its
name below it, as if it were a folder there; every function takes both kinds.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from acertlab._validation import tidy
from acertlab.data import files
from acertlab.data.files import read_json, read_parquet, write_json

if TYPE_CHECKING:
    import torch

    from acertlab.data.datasets import ImageData

log = logging.getLogger(__name__)

FILES = ("config.json", "history.parquet", "radii.parquet", "model.safetensors", "result.json")
RADII_COLUMNS = ("index", "label", "predicted", "radius", "upper", "status")
FLOATS_TO_UPPER, LABEL_TO_PREDICTED = "floats_to_upper", "label_to_predicted"  # in a packed folder, see `read_samples`
RESULT_KEYS = (
    *("dataset", "method", "kappa", "eps_max", "seed", "acc", "acr", "art", "cert_acc"),
    *("verifier", "merged", "domain", "n", "split", "epochs", "seconds", "version", "radius_cap"),
)
NUMBERS = ("kappa", "eps_max", "seed", "acc", "acr", "art", "n", "radius_cap")  # of RESULT_KEYS, in any case
HISTORY_COLUMNS = (
    "epoch",  # 0, 1, ...
    "loss",  # the whole loss, mean over the epoch's samples, as are the next three
    "clean_loss",  # Eq. (10)
    "robust_loss",  # Eq. (9) or its like, before the weighting by kappa
    "regulariser",  # all regularisers, weighted
    "lr",  # of the epoch's last step
    "eps_t",  # eps_{max,t} of the epoch's last step, pixel units
    "train_acc",  # of the clean passes, in training mode
    "share_zero",  # of samples whose box in the robust loss has radius 0, as misclassified ones; null while eps_t = 0
    "share_inside",  # radius between 0 and eps_{max,t}; likewise
    "share_cap",  # radius eps_{max,t}; likewise
    "radius_mean",  # of the boxes in the robust loss, pixel units
    "passes",  # bound passes that the search for a radius took, mean over the samples
    "val_acc",  # on the validation part at eps_max; null where there is none
    "val_acr",
    "val_art",
    "seconds",  # training and validation
)
NOT_IDENTIFYING = ("device", "version")  # of `config.json`: with another one it is still the same run
# Settings that version 0.1.0 does not name, and what it did; of methods with no use for one, today's default
DEFAULTS_BEFORE: dict[str, Any] = {"train_eps_factor": 1.0, "l1_reach": "weights", "attack_eps_factor": 1.0}
DEFAULTS_BEFORE |= {"classifier_relus": 1, "taps_weight": 5.0, "latent_steps": 20, "link_share": 0.5}
DEFAULTS_BEFORE |= {"relu_shrinkage": 0.0, "patience": 0, "min_epochs": 0, "train_precision": "full"}
ORIGIN_BEFORE = {"weights": "", "front": []}  # of a run that does not say where it began: at random, in no front
UNATTACKED = ("standard", "ibp", "fast-ibp", "crown-ibp", "acert", "acert-fast", "taps")
RULES_BEFORE = {  # what it did, what is done today, and the methods with no use for the setting
    "attack": ("last", "authors", UNATTACKED),
    "small_box_at_border": ("cut", "inside", (*UNATTACKED, "mtl-ibp", "cc-ibp", "exp-ibp", "acert-mtl-ibp")),
    "batch_statistics": ("clean", "attacked", (*UNATTACKED, "sabr", "staps", "acert-sabr", "acert-mtl-ibp")),
}
LOCK_WAIT = 10.0  # seconds for another process in the same folder to end: a kernel may live on for one after its parent
EXTERNAL = "external"  # config["model"] of an imported network that is none of MODELS
PACKED = "packed.json"  # a folder with this file holds packed runs
WEIGHTS = "weights.safetensors"  # there, of all runs, where they were packed with them
FRONT_FILES = ("front.json", "statistics.safetensors")  # what a front has beside its runs, see `acertlab.train_front`
SHIPPED = files.SHIPPED / "data" / "results"  # the packed runs that come with the package
SHIPPED_FRONTS = files.SHIPPED / "data" / "fronts"  # and fronts, of the digits and MNIST with their weights


def runs_folder(given: str | Path = "") -> Path:
    """The folder that holds the runs: ``given``, else the environment's ACERTLAB_RUNS, else ``runs``."""
    return Path(given or os.environ.get("ACERTLAB_RUNS") or "runs")


def runs_beside(what: str, given: str | Path = "") -> Path:
    """``given``, else a folder beside `runs_folder`, for runs that are not to be pooled with those: runs-WHAT."""
    beside = runs_folder().absolute()
    return Path(given or beside.with_name(f"{beside.name}-{what}"))


def as_today(config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's `config.json`, with what earlier versions did not name in it."""
    return ORIGIN_BEFORE | defaults_before(config) | dict(config)


def defaults_before(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run of version 0.1.0 did by settings that it does not name; ``config`` tells its method."""
    method, rules = config.get("method"), RULES_BEFORE.items()
    return DEFAULTS_BEFORE | {name: now if method in without else old for name, (old, now, without) in rules}


@dataclass(frozen=True)
class Run:
    """One finished training run, as its folder tells it, or the packed folder that holds it.

    Attributes:
        path: The folder; of a packed run, the packed folder and the run's name.
        config: What the run was asked to do, and what it takes to rebuild the network.
        history: A row an epoch.
        radii: A row a sample: index, label, predicted, radius, upper (pixel units), status; searched up to
            `result["radius_cap"]`, so that every smaller eps_max can be analysed without another search.
        result: The numbers of the run, with what they were measured by (verifier, merged, domain, n, split).

    Example:
        >>> from acertlab.data.run import SHIPPED
        >>> run = al.load_run(al.load_runs(SHIPPED / "fronts").path[0])
        >>> run.config["dataset"], len(run.radii)
        ('cifar10', 2000)
    """

    path: Path
    config: dict[str, Any]
    history: pd.DataFrame
    radii: pd.DataFrame
    result: dict[str, Any]

    def __repr__(self) -> str:
        """What it is, in a line; its tables and settings would fill screens."""
        of = {**self.config, **self.result}
        scores = ", ".join(f"{name} {100 * of[name.lower()]:.1f} %" for name in ("Acc", "ACR", "ART"))
        return f"Run({str(self.path)!r}: {of['method']} on {of['dataset']}, kappa {of['kappa']:g}, {scores})"

    def load_model(self) -> torch.nn.Module:
        """The trained network, in evaluation mode, rebuilt from `config.json` and `model.safetensors`.

        FileNotFoundError where runs were packed without weights, or these are gone; ValueError where they do not fit.
        """
        from safetensors import SafetensorError, safe_open

        from acertlab.models.architectures import MODELS  # with torch, which tables of runs do not need

        name, weights = self.config.get("model"), self.path / "model.safetensors"
        if name == EXTERNAL:
            how = "load it as before, or fill its own architecture from model.safetensors by acertlab.load_weights"
            raise ValueError(f"{self.path} is an imported network, none of {', '.join(MODELS)}: {how}")
        if name not in MODELS:
            raise ValueError(f"{self.path / 'config.json'}: model = {name!r} is unknown; known: {', '.join(MODELS)}")
        if missing := [key for key in ("in_shape", "classes", "width", "mean", "std") if key not in self.config]:
            raise ValueError(f"{self.path / 'config.json'} lacks {', '.join(missing)}: the network cannot be rebuilt")
        packed, prefix = packed_folder(self.path), ""
        if packed:
            weights, prefix = packed / WEIGHTS, f"{self.path.relative_to(packed).as_posix()}/"
        if not weights.is_file():
            why = "; packed runs come without weights, unless asked for: train it anew by its config" if packed else ""
            raise FileNotFoundError(f"{weights} does not exist: the network cannot be rebuilt{why}")
        shape, classes = tuple(self.config["in_shape"]), self.config["classes"]
        settings = {name: self.config[name] for name in ("width", "mean", "std")}
        model = MODELS[name](shape, classes, **settings)
        try:
            with safe_open(weights, "pt") as held:
                names = [name for name in held.keys() if name.startswith(prefix)]  # noqa: SIM118 (it is no dict)
                model.load_state_dict({name.removeprefix(prefix): held.get_tensor(name) for name in names})
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{weights} does not fit the {name} of config.json: {error}") from error
        return model.eval()


def load_run(path: str | Path) -> Run:
    """Read one finished run from its folder, or by a packed run's path as `load_runs` tells it.

    The network itself is read by `.load_model()` only.

    Raises:
        FileNotFoundError: There is no such folder, or it lacks a file.
        ValueError: A file of it cannot be read; the message names the file.

    Example:
        >>> from acertlab.data.run import SHIPPED
        >>> run = al.load_run(al.load_runs(SHIPPED / "fronts").path[0])
        >>> len(run.history) == run.config["epochs"]
        True
    """
    path = Path(path)
    if packed := packed_folder(path):
        return _load_packed_run(packed, path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no run folder {path}")
    if (path / FRONT_FILES[0]).is_file():
        raise FileNotFoundError(f"{path} is a front's folder, no run's: acertlab.load_front reads it")
    if missing := [name for name in FILES if not (path / name).is_file()]:
        state = "is unfinished (result.json is written last)" if missing == ["result.json"] else "is not complete"
        holds = f"it lacks {', '.join(missing)}. A run's folder holds {', '.join(FILES)}"
        raise FileNotFoundError(f"the run folder {path} {state}: {holds}")
    config, result = (read_json(path / name) for name in ("config.json", "result.json"))
    result = checked_result(result, path / "result.json")
    radii, history = (read_parquet(path / name) for name in ("radii.parquet", "history.parquet"))
    return _checked_run(Run(path, config, history, radii, result), path / "radii.parquet")


def checked_result(result: dict[str, Any], where: str | Path) -> dict[str, Any]:
    """The content of a `result.json`, with `cert_acc` as a table from eps to a fraction; ValueError if it is none."""
    if missing := [key for key in RESULT_KEYS if key not in result]:
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    try:
        cert_acc = {float(eps): float(value) for eps, value in result["cert_acc"].items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: cert_acc = {result['cert_acc']!r} is not a table from eps to a number") from error
    for key in NUMBERS:
        if isinstance(result[key], bool) or not isinstance(result[key], (int, float)):
            raise ValueError(f"{where}: {key} = {result[key]!r} is not a number")
    return result | {"cert_acc": cert_acc}


def check_radii(radii: pd.DataFrame, n: int, cap: float, where: str | Path) -> None:
    """Refuse radii that are not a run's, by a ValueError: too few or many, not numbers, or beyond where it searched."""
    if len(radii) != n:
        raise ValueError(f"{where}: radii.parquet has {len(radii)} rows of this run, and its result is of {n} images")
    values = radii["radius"].to_numpy(float)
    if not ((values >= 0) & (values <= cap * (1 + 1e-6))).all():
        raise ValueError(f"{where}: radii.parquet holds radii that are no numbers from 0 to radius_cap = {cap:g}")


def _checked_run(run: Run, file: Path) -> Run:
    if absent := [name for name in RADII_COLUMNS if name not in run.radii]:
        raise ValueError(f"{file} lacks the columns {', '.join(absent)}")
    check_radii(run.radii, run.result["n"], run.result["radius_cap"], run.path)
    return run


def packed_folder(path: Path) -> Path | None:
    """The packed folder that a run's path goes through; None for a run's own folder."""
    if (path / "result.json").is_file():
        return None
    return next((folder for folder in path.parents if (folder / PACKED).is_file()), None)


def read_packed(folder: Path) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Each packed run's (result, config) by its name."""
    file, parts = folder / PACKED, ("result", "config")
    told = read_json(file)
    held, default = told.get("runs"), told.get("default", {part: {} for part in parts})
    if not isinstance(held, dict) or not all(
        isinstance(of, dict) and all(isinstance(of.get(part), dict) for part in parts)
        for of in (default, *held.values())
    ):
        raise ValueError(
            f"{file} holds no table `runs` from a name to a result and a config, or its `default` is no such pair"
        )
    whole = {name: [default[part] | run[part] for part in parts] for name, run in held.items()}
    return {name: (checked_result(result, f"{file}: {name}"), config) for name, (result, config) in whole.items()}


def _load_packed_run(folder: Path, path: Path) -> Run:
    held, name = read_packed(folder), path.relative_to(folder).as_posix()
    if name not in held:
        raise FileNotFoundError(f"{folder / PACKED} holds no run {name!r}; it holds {', '.join(held)}")
    result, config = held[name]
    radii, history = (
        read(folder / file, filters=[("run", "==", name)]).drop(columns="run")
        for read, file in ((read_samples, "radii.parquet"), (read_parquet, "history.parquet"))
    )
    return _checked_run(Run(path, config, history, radii, result), folder / "radii.parquet")


def read_samples(path: Path, columns: list[str] | None = None, filters: list[tuple] | None = None) -> pd.DataFrame:
    """The samples of a packed folder, or columns or rows of them; ValueError, naming the file, if they cannot be read.

    Where it holds the number of floats from `radius` to `upper` (a quarter of its size less), or how much larger than
    `label` `predicted` is (7 % less for MNIST, none for CIFAR-10), these are made of it.
    """
    if columns and not {"upper", "predicted"} & set(columns):
        return read_parquet(path, columns, filters)
    table = read_parquet(path, filters=filters)
    if {FLOATS_TO_UPPER, "radius"} <= set(table):
        radius = table["radius"].to_numpy()
        whole = f"i{radius.itemsize}"
        upper = (radius.view(whole) + table.pop(FLOATS_TO_UPPER).to_numpy()).astype(whole).view(radius.dtype)
        table.insert(list(table).index("radius") + 1, "upper", upper)
    if {LABEL_TO_PREDICTED, "label"} <= set(table):
        predicted = table["label"] + table.pop(LABEL_TO_PREDICTED)
        table.insert(list(table).index("label") + 1, "predicted", predicted)
    if absent := [name for name in columns or () if name not in table]:
        raise ValueError(f"{path} lacks the columns {', '.join(absent)}")
    return table.filter(columns) if columns else table


def open_folder(run_dir: Path, described: dict[str, Any], resume: bool) -> Run | None:
    """Begin a run's folder by writing ``described`` into its `config.json`, or go on in it; the run, if it is finished.

    FileExistsError for a run and no `resume`; ValueError, which names what differs, for another one. None is harmed.
    """
    path = run_dir / "config.json"
    if (run_dir / FRONT_FILES[0]).exists():
        raise ValueError(f"run_dir: {run_dir} holds a front, whose networks are runs in folders of their own")
    there = [name for name in FILES if (run_dir / name).exists()]
    if not there:
        write_json(path, described)
        return None
    if not resume:
        raise FileExistsError(f"run_dir: {run_dir} holds a run ({', '.join(there)}); resume=True continues it")
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        then = as_today(before)
        differs = [
            f"{key} = {then.get(key)!r} there, {value!r} here"
            for key, value in described.items()
            if key not in (*NOT_IDENTIFYING, "data") and tidy(then.get(key)) != value
        ]
        differs += other_parts(before, described["data"])
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"run_dir: {path} cannot be read ({error}); give another folder") from error
    if differs:
        what = f"{run_dir} holds a run of another configuration: {'; '.join(differs)}"
        raise ValueError(f"run_dir: {what}. Give another folder, or the same configuration")
    if "data" not in before:
        log.warning("%s is of version 0.1.0, which did not note its images: taken for those that are here", run_dir)
    return load_run(run_dir) if "result.json" in there else None


def other_parts(config: Mapping[str, Any], here: Mapping[str, str]) -> list[str]:
    """The parts of a dataset that are others than a run's, by `ImageData.digests`; of version 0.1.0's runs none."""
    there = config.get("data", {})
    return [f"other images or labels for {part}" for part in here if there.get(part, here[part]) != here[part]]


def check_tested_on(run: Run, data: ImageData) -> None:
    """Refuse a dataset whose test part is not the one on which a run was measured, by a ValueError."""
    index, here = run.radii["index"].to_numpy(), {"test": data.digests()["test"]}
    if len(index) and index.max() >= len(data.test_y):
        raise ValueError(f"data: there are fewer test images of {data.name} here than {run.path} was measured on")
    if (data.test_y.cpu().numpy()[index] != run.radii["label"]).any():
        raise ValueError(f"data: the test images of {data.name} have other labels here than {run.path} was measured on")
    if other_parts(run.config, here):
        raise ValueError(f"data: the test images of {data.name} are others here than {run.path} was measured on")


def history_table(history: list[dict[str, float | None]]) -> pd.DataFrame:
    """The content of `history.parquet`, a row an epoch."""
    table = pd.DataFrame(history, columns=list(HISTORY_COLUMNS)).astype(float)
    return table.astype({"epoch": int})
