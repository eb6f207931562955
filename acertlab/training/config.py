"""`TrainConfig`: all that decides a training run, with reasons; and `preset`, which fills it in."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from acertlab._validation import Accepted, Within, check, refuse, tidy
from acertlab.data.datasets import DATASETS
from acertlab.models.architectures import MODELS
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import SearchSettings
from acertlab.training import presets
from acertlab.training.methods.base import Standard
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.methods.regularisers import L1_REACH
from acertlab.training.schedules import RAMPS

PROTOCOLS = ("held-out", "published")
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("full", "tf32")
SEED = Within(0, 2**64 - 1, int, says="a whole number >= 0 and < 2^64")  # what torch takes


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run. Change a setting with `dataclasses.replace`.

    Raises:
        ValueError, TypeError: a setting is of the wrong kind or out of range, or two do not go together; the message
            names it, its value and what is accepted.

    Example:
        >>> from dataclasses import replace
        >>> replace(al.TrainConfig(), eps_max=8 / 255, kappa=0.25).method
        'acert'
    """

    # what is trained
    dataset: str = "digits"  # a name that load_dataset knows; embedded, so it needs no download
    method: str = "acert"  # a key of METHODS
    kappa: float = 0.0  # share of the clean loss in Eq. (11); 0 as in Table 1. "standard" is kappa = 1 by definition
    eps_max: float = 0.4  # largest radius that counts, pixel units (Table 4, MNIST)
    train_eps_factor: float = 1.0  # boxes while training reach up to this times eps_max (CTRAIN's name)
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
    clip: float | None = 10.0  # largest gradient norm (Table 4); None: any
    l1: float = 0.0  # weight of sum |w| (Table 4; 1e-4 for TinyImageNet)
    l1_reach: str = "weights"  # of affine layers (Shi et al. 2021); "parameters": biases and BatchNorm's too
    lambda0: float = 0.5  # weight of FastIBP's regularisers when the ramp starts (Table 4; 0.2 for TinyImageNet)

    # what only some methods have
    small_box: float = 0.4  # SABR: lambda, the small box's share of the radius
    small_box_at_border: str = "inside"  # moved into the ball that is cut to the domain (published code), or "cut"
    relu_shrinkage: float = 0.0  # SABR, STAPS: by it the boxes' upper ends fall at ReLUs that they cross; 0.2 at 2/255
    alpha: float = 0.5  # MTL-, CC- and Exp-IBP: the share of the IBP loss
    batch_statistics: str = "attacked"  # MTL-, CC- and Exp-IBP: of the bounds and f(x_adv) (published code); or "clean"
    beta_end: float = 0.0  # CROWN-IBP: its share once the ramp is over (0: Zhang et al. 2020, Xu et al. 2020)
    attack: str = "authors"  # while training: what its points are and which is used, see `training_attack`; or "last"
    attack_steps: int = 8  # of PGD while training (Mueller et al. 2023)
    attack_step_size: float = 0.5  # relative to the attack's radius (Mueller et al. 2023)
    attack_eps_factor: float = 1.0  # the attack's radius over eps_{max,t}
    classifier_relus: int = 1  # TAPS, STAPS: ReLUs in the last part of the network, which is attacked (17 + 4 layers)
    taps_weight: float = 5.0  # TAPS, STAPS: of the TAPS loss's gradient (Mao et al. 2023: --alpha-box)
    latent_steps: int = 20  # TAPS, STAPS: of PGD inside the network (Mao et al. 2023: --train-steps)
    link_share: float = 0.5  # TAPS, STAPS: c of the gradient connector (Mao et al. 2023: --soft-thre)

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
    patience: int = 0  # "published": it ends after so many epochs without a better ART (published code); 0: it does not
    min_epochs: int = 0  # "published": but not before so many (published code)
    radius_cap: float | None = None  # test radii are searched up to here; None: 1.25 eps_max, at most 1
    eval_xtol: float = 1e-8  # tolerances of the test radii (NUMERICS, section 2)
    eval_rtol: float = 1e-5
    eval_batch: int = 1024  # samples bounded at once

    device: str = "auto"  # cuda, else mps, else cpu
    amp: bool = False  # on CUDA: attacks (never bounds, losses or radii) in bfloat16
    train_precision: str = "full"  # or "tf32", of a step's products, on GPUs that have it; never of a certificate

    def __post_init__(self) -> None:
        for name, accepted in ACCEPTED.items():
            self._set(name, tidy(check(name, getattr(self, name), accepted)))
        room = self.epochs - self.clean_epochs
        if self.ramp_epochs > room:
            refuse("ramp_epochs", self.ramp_epochs, f"at most epochs - clean_epochs, here {room}")
        if self.radius_cap is not None:
            self._set("radius_cap", tidy(check("radius_cap", self.radius_cap, Within(self.eps_max))))
        if self.method == "standard":
            self._set("kappa", 1.0)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @property
    def train_eps(self) -> float:
        """Where the ramp of eps_{max,t} ends, pixel units."""
        return self.train_eps_factor * self.eps_max

    @property
    def cap(self) -> float:
        """The largest test radius that is searched for, >= eps_max, so that nearby eps_max can be analysed too."""
        return max(self.eps_max, min(1.25 * self.eps_max, 1.0)) if self.radius_cap is None else self.radius_cap

    @property
    def search(self) -> SearchSettings:
        """How the test radii are searched for."""
        return SearchSettings(
            merged=self.merged, domain=self.domain, solver=self.solver, xtol=self.eval_xtol, rtol=self.eval_rtol
        )

    @property
    def val_search(self) -> SearchSettings:
        """How the validation radii are searched for: to the paper's tolerances (section 4)."""
        return replace(self.search, xtol=1e-6, rtol=1e-4)

    def objective(self) -> Standard:
        """The method's objective, with the hyperparameters of the same names; its eps_max is where the ramp ends."""
        kind = METHODS[self.method].objective
        own = {field.name: getattr(self, field.name) for field in fields(kind)}
        return kind(**own | ({"eps_max": self.train_eps} if "eps_max" in own else {}))

    def torch_device(self) -> torch.device:
        """The device that ``device`` names on this machine; ValueError where it has none."""
        usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
        name = next(name for name in usable if usable[name]) if self.device == "auto" else self.device
        if not usable[name]:
            refuse("device", self.device, "what this machine has: " + ", ".join(n for n in usable if usable[n]))
        return torch.device(name)


def _dataset(name: str) -> str:
    if not isinstance(name, str) or not (name in DATASETS or name.startswith("folder:")):
        raise ValueError(", ".join(DATASETS) + ", folder:PATH")
    return name


def _domain(given: Any) -> tuple[float, float] | None:
    """(low, high), a list as JSON has it, or None."""
    if given is None:
        return None
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not given[0] < given[1]:
        raise ValueError("(low, high) with low < high, or None")
    return given[0], given[1]


def _milestones(given: Any) -> tuple[int, ...]:
    whole = isinstance(given, (tuple, list)) and all(isinstance(epoch, int) and epoch > 0 for epoch in given)
    if not whole or list(given) != sorted(given):
        raise ValueError("rising epochs >= 1")
    return tuple(given)


def _clip(given: Any) -> float | None:
    try:
        return None if given is None else check("clip", given, Within(0, open_low=True), parse=isinstance(given, str))
    except ValueError:
        raise ValueError("a finite number > 0, or None") from None


_RANGES = (
    (Within(0, open_low=True), "eps_max train_eps_factor lr div final_div xtol rtol eval_xtol eval_rtol"),
    (Within(0, open_low=True), "attack_step_size attack_eps_factor link_share"),
    (Within(0), "l1 lambda0 taps_weight"),
    (Within(0, 1), "kappa decay pct_start small_box alpha beta_end"),
    (Within(0, 1, open_high=True), "relu_shrinkage"),
    (Within(1, kind=int), "width epochs batch_size eval_batch attack_steps classifier_relus latent_steps"),
    (Within(0, kind=int), "clean_epochs ramp_epochs root_iterations patience min_epochs"),
    (bool, "merged three_phase radius_history amp"),
)
ACCEPTED: dict[str, Accepted] = {  # of each setting by itself, for `check`; radius_cap is at least eps_max
    **{name: accepted for accepted, names in _RANGES for name in names.split()},
    "seed": SEED,
    "dataset": _dataset,
    "method": METHODS,
    "model": MODELS,
    "ramp": RAMPS,
    "scheduler": ("onecycle", "step"),
    "solver": SOLVERS,
    "device": DEVICES,
    "protocol": PROTOCOLS,
    "domain": _domain,
    "milestones": _milestones,
    "clip": _clip,
    "l1_reach": L1_REACH,
    "attack": ("authors", "last"),
    "small_box_at_border": ("inside", "cut"),
    "batch_statistics": ("attacked", "clean"),
    "train_precision": PRECISIONS,
}


def preset(dataset: str, method: str, *, budget: str = "paper", setting: str = "") -> TrainConfig:
    """The settings of Table 4 for ACERT and its kin, of each other method's authors, or smaller ones for two CPU cores.

    Args:
        dataset: "digits", "mnist", "fashion-mnist", "cifar10", "tinyimagenet" or "folder:PATH".
        method: a key of METHODS.
        budget: "paper" needs a GPU (except digits); "fast" takes minutes on two cores, with the same OneCycle schedule
            for all methods; "smoke" only shows that everything runs.
        setting: another one of the dataset's: "0.1" (MNIST) or "2/255" (CIFAR-10), its eps_max and what goes with it;
            "prototype", for "fast-ibp" on the paper's datasets: what the paper's own code trained it with.

    Raises:
        ValueError: an unknown name; the message lists the known ones.

    Example:
        >>> config = al.preset("cifar10", "acert")
        >>> config.model, config.epochs, round(255 * config.eps_max, 6)
        ('cnn7', 200, 8.8)
    """
    check("budget", budget, presets.BUDGETS)
    config = TrainConfig(dataset=dataset, method=method)  # refuses unknown names
    key = dataset.partition(":")[0]
    rows = presets.METHOD_SETTINGS.get(presets.LOSS_OF_COMBINATION.get(method, method), {})
    radii = presets.EPS.get(key, {})
    if setting not in (known := ["", *radii, *(["prototype"] if f"{key} prototype" in rows else [])]):
        refuse("setting", setting, f"of {method} on {key}: " + ", ".join(name or '""' for name in known))
    own = rows.get(f"{presets.PRESET_OF_DATASET.get(key, key)} {setting}".strip(), {})
    settings = presets.PAPER[key] | radii.get(setting, {})
    if budget != "paper" or method in presets.LOSS_OF_COMBINATION:
        settings |= {name: value for name, value in own.items() if name in presets.LOSS_SETTINGS}
    elif own:  # of authors who never saw the paper's table
        settings = {name: settings[name] for name in ("model", "width", "eps_max")} | own
    if budget in ("fast", "smoke"):
        settings |= presets.FAST[key] | presets.SMALL_NETWORK
    if budget == "smoke":
        settings |= presets.SMOKE
    return replace(config, **settings)
