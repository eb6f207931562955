"""`TrainConfig`: all that decides a training run, with reasons."""

from dataclasses import dataclass, fields

import torch

from acertlab._validation import Accepted, Within, check, tidy
from acertlab.data.datasets import DATASETS
from acertlab.models.architectures import MODELS
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import SearchSettings
from acertlab.training.methods.base import Standard
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.schedules import RAMPS

SCHEDULERS = ("onecycle", "step")
PROTOCOLS = ("held-out", "published")
DEVICES = ("auto", "cpu", "cuda", "mps")
CHOICES = {
    "method": METHODS,
    "model": MODELS,
    "ramp": RAMPS,
    "scheduler": SCHEDULERS,
    "solver": SOLVERS,
    "device": DEVICES,
    "protocol": PROTOCOLS,
}
POSITIVE = Within(0, open_low=True)
SEED = Within(0, 2**64 - 1, int, says="a whole number >= 0 and < 2^64")  # what torch takes


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
        def accept(accepted: Accepted, *names: str) -> None:
            for name in names:
                object.__setattr__(self, name, tidy(check(name, getattr(self, name), accepted)))

        accept(POSITIVE, "eps_max", "train_eps_factor", "lr", "clip", "div", "final_div", "attack_step_size")
        accept(POSITIVE, "xtol", "rtol", "eval_xtol", "eval_rtol")
        accept(Within(0), "l1", "lambda0")
        accept(Within(0, 1), "kappa", "decay", "pct_start", "small_box", "alpha", "beta_end")
        accept(Within(1, kind=int), "width", "epochs", "batch_size", "eval_batch", "attack_steps")
        accept(SEED, "seed")
        accept(Within(0, kind=int), "clean_epochs", "ramp_epochs", "root_iterations")
        accept(bool, "merged", "three_phase", "radius_history", "amp")
        for name, choices in CHOICES.items():
            accept(choices, name)
        if not (isinstance(self.dataset, str) and self.dataset.startswith("folder:")):
            accept((*DATASETS, "folder:PATH"), "dataset")
        low_high = isinstance(self.domain, (tuple, list)) and len(self.domain) == 2 and self.domain[0] < self.domain[1]
        self._require(self.domain is None or low_high, "domain", "(low, high) with low < high, or None")
        room = self.epochs - self.clean_epochs
        self._require(self.ramp_epochs <= room, "ramp_epochs", f"at most epochs - clean_epochs, here {room}")
        whole = all(isinstance(m, int) and m > 0 for m in self.milestones)
        self._require(whole and list(self.milestones) == sorted(self.milestones), "milestones", "rising epochs >= 1")
        if self.radius_cap is not None:
            accept(Within(self.eps_max), "radius_cap")
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

    @property
    def search(self) -> SearchSettings:
        """How the test radii are searched for."""
        return SearchSettings(
            merged=self.merged, domain=self.domain, solver=self.solver, xtol=self.eval_xtol, rtol=self.eval_rtol
        )

    def objective(self) -> Standard:
        """What the method minimises, with the hyperparameters of the same names; its eps_max is where the ramp ends."""
        kind = METHODS[self.method].objective
        own = {field.name: getattr(self, field.name) for field in fields(kind)}
        return kind(**own | ({"eps_max": self.train_eps} if "eps_max" in own else {}))

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


BUDGETS = ("smoke", "fast", "paper")
