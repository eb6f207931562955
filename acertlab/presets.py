"""`TrainConfig`: all that decides a training run, with reasons; `preset`: settings by name, with their sources."""

import ast
import difflib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from acertlab.catalogue import METHODS
from acertlab.models import MODELS
from acertlab.parameters import Within
from acertlab.radius import SOLVERS
from acertlab.runs import runs_folder
from acertlab.schedules import RAMPS

SCHEDULERS = ("onecycle", "step")
PROTOCOLS = ("held-out", "published")
DEVICES = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run. Change a setting with `dataclasses.replace`.

    Raises:
        ValueError, TypeError: a setting is of the wrong kind or out of range, or two do not go together; the message
            names it, its value and what is accepted.
    """

    # what is trained
    dataset: str = "digits"  # a name that load_dataset knows; embedded, so it needs no download
    method: str = "acert"  # a key of METHODS
    kappa: float = 0.0  # share of the clean loss in Eq. (11); 0 as in Table 1. "standard" is kappa = 1 by definition
    eps_max: float = 0.4  # largest radius that counts, pixel units (Table 4, MNIST)
    train_eps_factor: float = (
        1.0  # boxes while training reach up to this times eps_max (a dial like kappa; CTRAIN's name)
    )
    seed: int = 0  # of the weights, the order of the samples and the augmentation
    model: str = "small_cnn"  # a key of MODELS; the paper's is cnn7, which needs a GPU
    width: int = 16  # channels of the model's first layer

    # how long
    epochs: int = 15  # passes over the training set
    batch_size: int = 128  # Table 4
    clean_epochs: int = 1  # at eps = 0 before the ramp (Table 4: the ramp starts at epoch 1, counted from 0)
    ramp_epochs: int = 8  # from eps = 0 to eps_max; half of a short run, since a quick ramp lets ACERT's radii collapse
    ramp: str = "smooth"  # or "linear" (Shi et al. 2021 use the smooth one)

    # optimiser: Adam
    lr: float = 2e-3  # OneCycle's max_lr (Table 4), or the first rate of "step"
    scheduler: str = "onecycle"  # "step" hardly trains in short budgets, so "onecycle" for all methods is the fair one
    pct_start: float = 0.3  # OneCycle: share of the steps that warms up (published code)
    div: float = 25.0  # OneCycle: max_lr / first rate (published code)
    final_div: float = 100.0  # OneCycle: first rate / last rate (published code)
    three_phase: bool = True  # OneCycle: symmetric fall, then the tail (published code)
    milestones: tuple[int, ...] = ()  # "step": epochs after which the rate falls
    decay: float = 0.2  # "step": by this factor (Shi et al. 2021)
    clip: float = 10.0  # largest gradient norm (Table 4)
    l1: float = 0.0  # weight of sum |w| (Table 4; 1e-4 for TinyImageNet)
    lambda0: float = 0.5  # weight of FastIBP's regularisers when the ramp starts (Table 4; 0.2 for TinyImageNet)

    # what only some methods have
    small_box: float = 0.4  # SABR: lambda, the small box's share of the radius
    alpha: float = 0.5  # MTL-, CC- and Exp-IBP: the share of the IBP loss
    beta_end: float = 0.0  # CROWN-IBP: its share once the ramp is over (0: Zhang et al. 2020, Xu et al. 2020)
    attack_steps: int = 8  # of PGD while training (Mueller et al. 2023)
    attack_step_size: float = 0.5  # relative to eps_{max,t} (Mueller et al. 2023); falls tenfold at 50, 80, 90 %

    # bounds and radii while training
    merged: bool = True  # last layer merged with the margin: never looser, and what the published code does
    domain: tuple[float, float] | None = (0.0, 1.0)  # boxes are clipped to it: Eq. (1) asks x' in X
    solver: str = "log-secant"  # to 1 % of eps_t, in fewer passes than "brentq" (the paper's), "chandrupatla", "bisect"
    xtol: float = 1e-6  # tolerance of those three while training, pixel units (paper, section 4)
    rtol: float = 1e-4  # their relative tolerance while training (paper, section 4)
    radius_history: bool = False  # the log secant starts from the last epoch's radii, and stops at 4 % of eps_t
    root_iterations: int = 10  # the solver's most iterations while training (published code; Table 6 tries 2 and 100)

    # evaluation
    protocol: str = "held-out"  # "published": the paper's own code, which selects the best epoch on the test set
    radius_cap: float | None = None  # test radii are searched up to here; None: 1.25 eps_max, at most 1
    eval_xtol: float = 1e-8  # tolerances of the test radii (NUMERICS, section 2)
    eval_rtol: float = 1e-5
    eval_batch: int = 1024  # samples bounded at once

    device: str = "auto"  # cuda, else mps, else cpu
    amp: bool = False  # on CUDA: attacks (never bounds, losses or radii) in bfloat16

    def __post_init__(self) -> None:
        for name in ("eps_max", "train_eps_factor", "lr", "clip", "div", "final_div", "attack_step_size", "xtol",
                     "rtol", "eval_xtol", "eval_rtol"):  # fmt: skip
            self._number(name, above=0.0)
        for name in ("l1", "lambda0"):
            self._number(name, low=0.0)
        for name in ("kappa", "decay", "pct_start", "small_box", "alpha", "beta_end"):
            self._number(name, low=0.0, high=1.0)
        for name in ("width", "epochs", "batch_size", "eval_batch", "attack_steps"):
            self._whole(name, low=1)
        for name in ("seed", "clean_epochs", "ramp_epochs", "root_iterations"):
            self._whole(name, low=0)
        for name in ("merged", "three_phase", "radius_history", "amp"):
            self._require(isinstance(getattr(self, name), bool), name, "True or False")
        choices = {"method": METHODS, "model": MODELS, "ramp": RAMPS, "scheduler": SCHEDULERS, "solver": SOLVERS}
        for name, accepted in (choices | {"device": DEVICES, "protocol": PROTOCOLS}).items():
            self._require(getattr(self, name) in accepted, name, ", ".join(accepted))
        known = isinstance(self.dataset, str) and (self.dataset in DATASETS or self.dataset.startswith("folder:"))
        self._require(known, "dataset", ", ".join(DATASETS) + ", folder:PATH")
        low_high = isinstance(self.domain, (tuple, list)) and len(self.domain) == 2 and self.domain[0] < self.domain[1]
        self._require(self.domain is None or low_high, "domain", "(low, high) with low < high, or None")
        room = self.epochs - self.clean_epochs
        self._require(self.ramp_epochs <= room, "ramp_epochs", f"at most epochs - clean_epochs, here {room}")
        whole = all(isinstance(m, int) and m > 0 for m in self.milestones)
        self._require(whole and list(self.milestones) == sorted(self.milestones), "milestones", "rising epochs >= 1")
        if self.radius_cap is not None:
            self._number("radius_cap", low=self.eps_max)
        if self.method == "standard":
            object.__setattr__(self, "kappa", 1.0)
        for name in ("milestones", "domain"):  # lists, as JSON has them
            object.__setattr__(self, name, None if getattr(self, name) is None else tuple(getattr(self, name)))

    @property
    def train_eps(self) -> float:
        """Where the ramp of eps_{max,t} ends, pixel units."""
        return self.train_eps_factor * self.eps_max

    @property
    def cap(self) -> float:
        """The largest test radius that is searched for, >= eps_max, so that nearby eps_max can be analysed too."""
        return max(self.eps_max, min(1.25 * self.eps_max, 1.0)) if self.radius_cap is None else self.radius_cap

    def torch_device(self) -> torch.device:
        """The device that ``device`` names on this machine.

        Raises:
            ValueError: the machine has no such device.
        """
        usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(name for name in usable if usable[name]) if self.device == "auto" else self.device
        self._require(usable[name], "device", "what this machine has: " + ", ".join(n for n in usable if usable[n]))
        return torch.device(name)

    def _require(self, fine: bool, name: str, accepted: str) -> None:
        if not fine:
            raise ValueError(f"{name} = {getattr(self, name)!r}: accepted is {accepted}")

    def _number(self, name: str, *, low: float = -math.inf, high: float = math.inf, above: float = -math.inf) -> None:
        value = getattr(self, name)
        ends = [f"> {above:g}"] if above > -math.inf else [f">= {low:g}"]
        ends += [f"<= {high:g}"] if high < math.inf else []
        real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        self._require(real and above < value and low <= value <= high, name, "a finite number " + " and ".join(ends))

    def _whole(self, name: str, *, low: int) -> None:
        value = getattr(self, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        self._require(whole and value >= low, name, f"a whole number >= {low}")


# Settings that runs of earlier versions do not name, and what those versions did
LATER: dict[str, Any] = {"train_eps_factor": 1.0}

# The paper's settings: Table 4 (ACERT), with Shi et al. 2021 for what the table leaves open. Where the paper has no
# such dataset, the source stands beside.
PAPER: dict[str, dict[str, Any]] = {
    # ours: 8 x 8 images need no larger network; half of MNIST's eps_max, since the strokes are grey; 1,294 images make
    # few steps, hence small batches and a high rate: of 2e-3, 5e-3, 1e-2 and 2e-2 the last has the best validation
    # ART for ACERT 0 (87.2 against 80.2 at 2e-3) and FastIBP 0.8 (86.4, 74.1), budget "fast", seeds 0 and 1
    "digits": {"model": "small_cnn", "width": 16, "eps_max": 0.2, "batch_size": 64, "epochs": 60, "ramp_epochs": 30,
               "lr": 2e-2},
    "mnist": {"model": "cnn7", "width": 64, "eps_max": 0.4, "batch_size": 128, "epochs": 100, "ramp_epochs": 20},
    # MNIST's, with the eps of Wong & Kolter 2018
    "fashion-mnist": {"model": "cnn7", "width": 64, "eps_max": 0.1, "batch_size": 128, "epochs": 100,
                      "ramp_epochs": 20},
    "cifar10": {"model": "cnn7", "width": 64, "eps_max": 8.8 / 255, "batch_size": 128, "epochs": 200,
                "ramp_epochs": 80},
    "tinyimagenet": {"model": "cnn7", "width": 64, "eps_max": 1 / 255, "batch_size": 256, "epochs": 200,
                     "ramp_epochs": 80, "lambda0": 0.2, "l1": 1e-4},
    # any folder of images: as CIFAR-10, with the eps of Madry et al. 2018
    "folder": {"model": "cnn7", "width": 64, "eps_max": 8 / 255, "batch_size": 128, "epochs": 200, "ramp_epochs": 80},
}  # fmt: skip

# The methods' own settings, each from its authors. FastIBP's (Shi et al. 2021) are also taken for IBP and, as in their
# comparison, for CROWN-IBP. Step decay hardly trains in short budgets, so the budgets "fast" and "smoke" take from here
# only what is the method's own, and give every method the same OneCycle.
STEP_DECAY = {"scheduler": "step", "lr": 5e-4, "decay": 0.2}  # Shi et al. 2021: Adam 5e-4, x 0.2 at each milestone
SHI: dict[str, dict[str, Any]] = {
    "mnist": STEP_DECAY | {"batch_size": 256, "epochs": 70, "milestones": (50, 60), "ramp_epochs": 20},
    "cifar10": STEP_DECAY | {"batch_size": 128, "epochs": 160, "milestones": (120, 140), "ramp_epochs": 80},
    "tinyimagenet": STEP_DECAY | {"batch_size": 128, "epochs": 80, "milestones": (61, 71), "ramp_epochs": 20},
}
# Mueller et al. 2023, their README's commands; MNIST's are for eps 0.3, CIFAR-10's for 8/255. Clipping of the robust
# loss alone, their attack's random directions first, and crops of 56 pixels for TinyImageNet are left out.
MUELLER: dict[str, dict[str, Any]] = {
    "mnist": SHI["mnist"] | {"small_box": 0.6, "l1": 1e-6},
    "cifar10": SHI["cifar10"] | {"epochs": 180, "milestones": (140, 160), "small_box": 0.7, "l1": 0.0},
    "tinyimagenet": SHI["cifar10"] | {"epochs": 180, "milestones": (140, 160), "small_box": 0.4, "l1": 1e-6},
}
# De Palma et al. 2024, their README's commands: one step to a corner of the ball; MNIST's are for eps 0.3 trained at
# 0.4, which is our eps_max. Exp-IBP was not run on MNIST: there it has MTL-IBP's.
ONE_STEP = {"attack_steps": 1, "attack_step_size": 10.0}
DE_PALMA: dict[str, dict[str, Any]] = {
    "mnist": SHI["mnist"] | ONE_STEP,
    "cifar10": SHI["cifar10"] | ONE_STEP | {"epochs": 260, "milestones": (180, 220)},
    "tinyimagenet": SHI["cifar10"] | ONE_STEP | {"l1": 5e-5},
}
MTL = {"mnist": {"alpha": 0.08, "l1": 1e-6}, "cifar10": {"alpha": 0.5, "l1": 1e-7}, "tinyimagenet": {"alpha": 0.01}}
CC = {"mnist": {"alpha": 0.3, "l1": 3e-6}, "cifar10": {"alpha": 0.5}, "tinyimagenet": {"alpha": 0.01}}
EXP = {"mnist": {"alpha": 0.08, "l1": 1e-6}, "cifar10": {"alpha": 0.5}, "tinyimagenet": {"alpha": 0.04}}


def _merged(settings: dict[str, dict], own: dict[str, dict]) -> dict[str, dict[str, Any]]:
    return {dataset: values | own[dataset] for dataset, values in settings.items()}


OWN: dict[str, dict[str, dict[str, Any]]] = {
    "ibp": SHI,
    "fast-ibp": SHI,
    "crown-ibp": SHI,
    "sabr": MUELLER,
    "mtl-ibp": _merged(DE_PALMA, MTL),
    "cc-ibp": _merged(DE_PALMA, CC),
    "exp-ibp": _merged(DE_PALMA, EXP),
}
OF_THE_LOSS = ("small_box", "alpha", "attack_steps", "attack_step_size")  # settings that do not belong to a schedule
LIKE = {"fashion-mnist": "mnist", "folder": "cifar10"}  # datasets on which the authors ran nothing
COMBINED = {"acert-sabr": "sabr", "acert-mtl-ibp": "mtl-ibp"}  # ours: ACERT's schedule, the successor's loss

# Ours, for two CPU cores: the small CNN, about one clean epoch and a ramp over half of the run. eps_max, batch size and
# the regularisers' weight stay those of PAPER.
FAST: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 20, "ramp_epochs": 10},
    "mnist": {"epochs": 6, "ramp_epochs": 3},
    "fashion-mnist": {"epochs": 6, "ramp_epochs": 3},
    "cifar10": {"epochs": 20, "ramp_epochs": 10},
    "tinyimagenet": {"epochs": 20, "ramp_epochs": 10, "l1": 0.0},  # 1e-4 is meant for the 17 million weights of CNN7
    "folder": {"epochs": 20, "ramp_epochs": 10},
}
# Two phases: with three the rate has all but vanished when a ramp over half of the run ends (MNIST, 6 epochs, FastIBP
# kappa 0.8: validation ART 86.5 with three phases, 91.7 with two)
SMALL = {"model": "small_cnn", "width": 16, "three_phase": False, "radius_history": True}
SMOKE = {"width": 4, "epochs": 1, "clean_epochs": 0, "ramp_epochs": 1}  # does it run? Its numbers mean nothing

BUDGETS = ("smoke", "fast", "paper")
DATASETS = ("digits", "mnist", "fashion-mnist", "cifar10", "tinyimagenet")


def _model_or_preset(name: Any) -> str:
    if name not in ("", *MODELS):
        raise ValueError(f'{", ".join(MODELS)}, or "" for the preset\'s')
    return name


def _readable_settings(text: Any) -> str:
    parse_settings(text)
    return text


def parse_settings(text: str) -> dict[str, Any]:
    """Settings of `TrainConfig` written as in a call: "alpha=0.3, scheduler=step, milestones=(10, 15), lr=1/500".

    Raises:
        ValueError: it cannot be read so, or a name is no setting, or one that has a parameter of its own; the message
            says what is accepted.
    """
    accepted = "NAME=VALUE, NAME=VALUE, ... with the names of TrainConfig"
    try:
        call = ast.parse(f"dict({text})", mode="eval").body
        if not isinstance(text, str) or not isinstance(call, ast.Call) or call.args or ast.unparse(call.func) != "dict":
            raise ValueError
        given = {word.arg: _literal(word.value) for word in call.keywords}
        if len(given) < len(call.keywords):
            raise ValueError
    except (ValueError, TypeError, SyntaxError, ZeroDivisionError):
        raise ValueError(accepted) from None
    names = [field.name for field in fields(TrainConfig) if field.name not in PARAMETERS]
    for name in given:
        if name not in names:
            close = difflib.get_close_matches(str(name), names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            why = "is a parameter of its own" if name in PARAMETERS else "is none of them"
            raise ValueError(f"{accepted}: {name} {why}{hint}. They are {', '.join(names)}")
    return given


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return node.id  # a word, such as step
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return ast.literal_eval(node.left) / ast.literal_eval(node.right)
    return ast.literal_eval(node)


# What a training notebook's parameters may be, for `check_parameters`; 0 and "" stand for the preset's value
PARAMETERS: dict[str, Any] = {
    "dataset": str,
    "method": tuple(METHODS),
    "kappa": Within(0, 1),
    "eps_max": Within(0, 1),
    "seed": Within(0, kind=int),
    "model": _model_or_preset,
    "width": Within(0, kind=int),
    "epochs": Within(0, kind=int),
    "batch_size": Within(0, kind=int),
    "device": DEVICES,
    "data_root": str,
    "run_dir": str,
    "budget": BUDGETS,
    "settings": _readable_settings,
}


def preset(dataset: str, method: str, *, budget: str = "paper") -> TrainConfig:
    """The settings of Table 4 for ACERT and its kin, of each other method's authors, or smaller ones for two CPU cores.

    Args:
        dataset: "digits", "mnist", "fashion-mnist", "cifar10", "tinyimagenet" or "folder:PATH".
        method: a key of METHODS.
        budget: "paper" needs a GPU (except digits); "fast" takes minutes on two cores, with the same OneCycle schedule
            for all methods; "smoke" only shows that everything runs.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if budget not in BUDGETS:
        raise ValueError(f"budget = {budget!r}: accepted is {', '.join(BUDGETS)}")
    config = TrainConfig(dataset=dataset, method=method)  # refuses unknown names
    key = dataset.partition(":")[0]
    own = OWN.get(COMBINED.get(method, method), {}).get(LIKE.get(key, key), {})
    if budget != "paper" or method in COMBINED:
        own = {name: value for name, value in own.items() if name in OF_THE_LOSS}
    settings = PAPER[key] | own
    if budget in ("fast", "smoke"):
        settings |= FAST[key] | SMALL
    if budget == "smoke":
        settings |= SMOKE
    return replace(config, **settings)


def config_from_parameters(parameters: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a notebook's parameters ask for: a preset, with what is set replaced.

    Args:
        parameters: names and values as `check_parameters` returns them (a training notebook's: by `PARAMETERS`).
            ``dataset``, ``method`` and ``budget`` choose the preset; ``kappa`` and ``seed`` replace its values, and so
            does every other field of `TrainConfig` that is neither 0 nor "" nor None. Other ``epochs`` keep the
            preset's shares of clean epochs, ramp and milestones. ``settings`` is read by `parse_settings`; they replace
            what the preset and other ``epochs`` say. Names that are no field are passed over.

    Raises:
        ValueError: as `preset` and `TrainConfig`.
    """
    config = preset(parameters["dataset"], parameters["method"], budget=parameters["budget"])
    names = {field.name for field in fields(TrainConfig)}
    always = ("kappa", "seed")
    chosen = {n: v for n, v in parameters.items() if n in names and (n in always or v not in (0, "", None))}
    if epochs := chosen.pop("epochs", None):
        config = with_epochs(config, epochs)
    return replace(config, **chosen | parse_settings(parameters.get("settings", "")))


def with_epochs(config: TrainConfig, epochs: int) -> TrainConfig:
    """The same schedule, stretched or shrunk to ``epochs``."""
    clean = min(config.clean_epochs, epochs - 1)
    ramp = min(round(config.ramp_epochs * epochs / config.epochs), epochs - clean)
    milestones = tuple(max(1, round(m * epochs / config.epochs)) for m in config.milestones)
    return replace(config, epochs=epochs, clean_epochs=clean, ramp_epochs=ramp, milestones=milestones)


def default_run_dir(config: TrainConfig, root: str | Path = "") -> Path:
    """Where a run goes if nobody says: below `runs_folder`, named by its main settings and a hash of all of them."""
    dataset = Path(config.dataset).name if ":" in config.dataset else config.dataset
    settings = json.dumps({name: value for name, value in asdict(config).items() if name != "device"})
    key = hashlib.sha256(settings.encode()).hexdigest()[:6]
    name = f"{dataset}-{config.method}-kappa{config.kappa:g}-eps{config.eps_max:.4g}-seed{config.seed}-{key}"
    return runs_folder(root) / name
