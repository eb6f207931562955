"""Estimated duration of a run, from ten of its own steps in each phase; cost of a step beside another method's.

    acertlab estimate cifar10 acert --budget paper --steps 3   # and how much memory

A run has up to three phases: clean steps (eps_{max,t} = 0), the ramp, and what comes after. Where radii are searched a
step's cost depends on how many images are classified correctly (on a CPU, done ones are dropped), so the steps are
taken one after the other on one and the same batch, which the network soon knows.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from acertlab._text import seconds_text
from acertlab._validation import Within, check
from acertlab.data.datasets import ImageData, augment, load_dataset, to_float
from acertlab.data.run import Run
from acertlab.radius.search import SearchSettings
from acertlab.training.config import TrainConfig, preset
from acertlab.training.loop.state import initial_state
from acertlab.training.loop.step import normalisation, session, train_step
from acertlab.training.loop.train import evaluate
from acertlab.training.parameters import config_of
from acertlab.training.schedules import RAMPS

COUNT = 10  # steps measured in each phase
WARM = 2  # and not measured before them
EVALUATED = 256  # images whose radii are searched to learn what validation costs; a GPU takes a whole batch
Name = TypeVar("Name")


@dataclass(frozen=True)
class Duration:
    """Durations of a run's parts, on the device on which they were measured."""

    steps: int  # an epoch
    step: dict[str, float]  # seconds a step, by phase: "clean", "ramp", "after"
    epochs: dict[str, int]  # of each phase
    validation: float  # seconds an epoch
    test: float  # seconds, once

    @property
    def training(self) -> float:
        """Seconds of all steps."""
        return self.steps * sum(self.epochs[phase] * seconds for phase, seconds in self.step.items())

    @property
    def total(self) -> float:
        """Seconds of training, validation and test."""
        return self.training + sum(self.epochs.values()) * self.validation + self.test

    def __str__(self) -> str:
        parts = []
        for phase, name in (("clean", "clean"), ("ramp", "on the ramp"), ("after", "after it")):
            if count := self.epochs[phase]:
                epochs = f"{count} epoch{'s' if count > 1 else ''} {name}"
                parts.append(f"{epochs} of {self.steps} steps at {seconds_text(self.step[phase])}")
        parts += [f"validation {seconds_text(self.validation)} an epoch", f"test {seconds_text(self.test)}"]
        return f"about {seconds_text(self.total)}: {', '.join(parts)}"


def estimate(config: TrainConfig, data: ImageData, count: int = COUNT) -> Duration:
    """Estimated duration of ``train(config, data, ...)``, from ``count`` steps a phase and the radii of some images.

    The run itself is not begun, and no random state is touched. Validation and test are measured as if every image were
    classified correctly, so that a radius is searched for each of them: rather too much than too little.
    """
    device, steps = config.torch_device(), math.ceil(len(data.train_x) / config.batch_size)
    first, last = config.clean_epochs * steps, (config.clean_epochs + config.ramp_epochs) * steps
    half_way = RAMPS[config.ramp]((first + last) // 2, first, last, config.train_eps)
    with session(device):
        stepper, step = _Stepper(config, data), {}
        for phase, eps in {"clean": 0.0, "ramp": half_way, "after": config.train_eps}.items():
            spent = [stepper.seconds(0, eps) for _ in range(WARM + count)]
            step[phase] = statistics.median(spent[WARM:])
        model, watched = stepper.state.model, data.test_x if config.protocol == "published" else data.val_x
        validation = _per_image(model, config, watched, config.eps_max, config.val_search, device) * len(watched)
        test = _per_image(model, config, data.test_x, config.cap, config.search, device)
    epochs = {"clean": config.clean_epochs, "ramp": config.ramp_epochs}
    epochs["after"] = config.epochs - sum(epochs.values())
    return Duration(steps, step, epochs, validation, test * len(data.test_x))


def beside_fast_ibp(run: Run, data: ImageData, validation: float) -> tuple[float, float]:
    """A step of a run, and an epoch with its validation, over those of FastIBP, for the same network after the ramp.

    ``validation`` is the seconds that an epoch's validation takes, the same for both.
    """
    config, model = config_of(run.config), run.load_model()
    seconds = step_seconds({"own": (config, model), "base": (replace(config, method="fast-ibp"), model)}, data)
    steps = math.ceil(len(data.train_x) / config.batch_size)
    own, base = (steps * seconds[name] + validation for name in ("own", "base"))
    return seconds["own"] / seconds["base"], own / base


def step_seconds(
    trained: Mapping[Name, tuple[TrainConfig, nn.Module]], data: ImageData, count: int = COUNT
) -> dict[Name, float]:
    """Seconds a step after the ramp, from trained networks that take turns on the same batches.

    Steps are taken at a learning rate so small that the weights stay, and without radii of an earlier epoch. Medians of
    ``count`` steps; with one thread on a CPU it is processor time, so that other processes count little.
    """
    contenders = {}
    for name, (config, model) in trained.items():
        contenders[name] = _Stepper(replace(config, lr=1e-9, radius_history=False), data)
        contenders[name].state.model.load_state_dict(model.state_dict())
    devices = {contender.device for contender in contenders.values()}
    spent: dict[Name, list[float]] = {name: [] for name in trained}
    names, one_thread = list(trained), torch.get_num_threads() == 1 and {d.type for d in devices} == {"cpu"}
    clock = time.process_time if one_thread else time.perf_counter
    with session(*devices):
        for i in range(-WARM, count):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                seconds = contenders[name].seconds(i, contenders[name].config.train_eps, clock)
                if i >= 0:
                    spent[name].append(seconds)
    return {name: statistics.median(seconds) for name, seconds in spent.items()}


class _Stepper:
    """Steps of a training as its loop takes them, from a state of its own, on batches of its images."""

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        self.config, self.device = replace(config, scheduler="step", milestones=()), config.torch_device()
        self.data, size = data, min(config.batch_size, len(data.train_x))
        self.batches = torch.arange(len(data.train_x) // size * size).split(size)  # which images each is made of
        with session(self.device):
            self.state = initial_state(self.config, data, self.device, 1)
        self.state.model.train()

    def seconds(self, i: int, eps: float, clock: Callable[[], float] = time.perf_counter) -> float:
        """Seconds that a step at ``eps`` on the i-th batch takes."""
        index = self.batches[i % len(self.batches)]
        x, y = (part[index].to(self.device) for part in (self.data.train_x, self.data.train_y))
        index, std, generator = index.to(self.device), normalisation(self.data, self.device), torch.Generator()

        def step() -> None:
            images = augment(to_float(x), self.config.dataset, generator.manual_seed(0))
            train_step(self.state, self.config, images, y, index, eps, std)

        return seconds_of(step, self.device, clock)


def _per_image(
    model: nn.Module, config: TrainConfig, images: Tensor, cap: float, settings: SearchSettings, device: torch.device
) -> float:
    """Seconds that the radius of one image takes."""
    x = images[: min(EVALUATED, config.eval_batch) if device.type == "cpu" else config.eval_batch]
    if not len(x):
        return 0.0
    with torch.no_grad():
        y = model.eval()(to_float(x, device)).argmax(1).cpu()
    search = partial(evaluate, model, x, y, cap, settings, config.eval_batch)
    if device.type != "cpu":
        search()  # the first one of a shape is slow
    return seconds_of(search, device) / len(x)


def seconds_of(
    call: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds that a call takes, with what it leaves to the device."""
    _wait(device)
    start = clock()
    call()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def peak_memory(device: torch.device) -> float:
    """GiB that this process held at most: of the device's tensors on CUDA, else of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def estimate_sentence(dataset: str, method: str, budget: str, steps: int) -> str:
    """`estimate` of a preset in words, with the network, the machine and the peak memory."""
    check("steps", steps, Within(1, kind=int))
    config, data = preset(dataset, method, budget=budget), load_dataset(dataset)
    device, found = config.torch_device(), estimate(config, data, steps)
    network = f"{config.model} of width {config.width}, batch {config.batch_size}"
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    phases = ", ".join(f"{seconds_text(seconds)} {phase}" for phase, seconds in found.step.items())
    return (
        f"{dataset}, {method}, {network}, {device}{threads}: a step takes {phases}; an epoch of "
        f"{found.steps} steps after the ramp {seconds_text(found.steps * found.step['after'])}; peak memory "
        f"{peak_memory(device):.1f} GiB\nthe whole run {found}"
    )
