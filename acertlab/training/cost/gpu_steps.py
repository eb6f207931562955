"""What `acertlab gpu-check` looks at, step by step; each finding is a row, and no step needs the next one."""

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from acertlab import __version__
from acertlab.bounds.box import ball
from acertlab.bounds.checks import full_precision
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import certified_margin
from acertlab.data.datasets import ImageData, to_float
from acertlab.models.architectures import MODELS
from acertlab.models.initialisation import ibp_init_
from acertlab.radius.certified import certified_radius
from acertlab.radius.metrics import summarise
from acertlab.radius.search import SearchSettings
from acertlab.training.config import PRECISIONS, TrainConfig
from acertlab.training.cost.estimate import seconds_of
from acertlab.training.cost.roofline import GPUS, begun, count, random_batch, step_config
from acertlab.training.loop.state import State, initial_state
from acertlab.training.loop.step import session, train_step
from acertlab.training.loop.train import evaluate, train_epoch

METHODS = ("Standard", "FastIBP", "ACERT-fast", "ACERT")  # of `STEPS`
BATCHES = 128, 4096, 1024, 256, 512, 2048  # the ends first, in case time runs out
RADII = {torch.float32: 1e-6, torch.float64: 1e-12}  # of eps_max: by so much no device may change a radius
MARGINS = {torch.float32: 1e-5, torch.float64: 1e-13}  # of the largest margin
GAIN = 1.1  # from which on CUDA graphs or torch.compile would be worth their lines
NO_GPU = "there is no CUDA device"
Row = dict[str, Any]  # "what" was looked at, "verdict" (passed, failed, measured, not done), "said", and numbers


def row(what: str, verdict: str | bool, said: str, **numbers: Any) -> Row:
    """A finding; True is passed, False failed."""
    verdict = verdict if isinstance(verdict, str) else "passed" if verdict else "failed"
    return {"what": what, "verdict": verdict, "said": said, **numbers}


@dataclass
class Check:
    """What the steps look at, and the time that the one at work has."""

    out: Path
    small: bool
    device: torch.device
    mnist: tuple[Tensor, Tensor]  # uint8 images and labels of the test part
    images: ImageData  # CIFAR-10's; without a packed file the digits
    net: Mapping[str, Any]  # a trained network for ``mnist``: model, width, state; radii known from a CPU, cap
    deadline: float = 0.0
    known: set[str] = field(default_factory=set)  # what an earlier call of the same command has found

    @property
    def left(self) -> float:
        """Seconds of the step's time; below 0: it is up."""
        return self.deadline - time.perf_counter()

    def config(self, name: str, precision: str = "full") -> TrainConfig:
        """The settings of a step of `STEPS` on ``images``; a small check's network is narrow."""
        width = 4 if self.small else 64
        return replace(step_config(name, self.images.name, precision), model="cnn7", width=width, batch_size=128)


def versions(check: Check) -> Iterator[Row]:
    """Versions and device."""
    told: Row = {"device": device_name(check.device), "small": check.small, "acertlab": __version__}
    told |= {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    if check.device.type == "cuda":
        of = torch.cuda.get_device_properties(check.device)
        told |= {"cuda": torch.version.cuda, "capability": f"{of.major}.{of.minor}", "memory": of.total_memory}
    yield row("versions", "measured", ", ".join(f"{name} {value}" for name, value in told.items()), **told)


def device_name(device: torch.device) -> str:
    """The GPU's name, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def marked_tests(check: Check, folder: Path = Path("tests")) -> Iterator[Row]:
    """Every test marked gpu in the folder ``tests`` of the working folder."""
    marked = [str(path) for path in sorted(folder.rglob("test_*.py")) if "mark.gpu" in path.read_text(encoding="utf-8")]
    lacking = {
        NO_GPU: check.device.type != "cuda",
        f"no tests in {folder.absolute()}": not marked,
        "pytest is not installed": not find_spec("pytest"),
    }
    if any(lacking.values()):
        yield row("tests marked gpu", "not done", ", ".join(why for why, lacks in lacking.items() if lacks))
        return
    told = check.out / "gpu-tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junitxml={told}", "-c", os.devnull, "--rootdir", "."]
    command += ["-p", "no:cacheprovider", "--continue-on-collection-errors", *marked]
    alone = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # no test of these needs one, and they take a minute
    subprocess.run(command, env=alone, timeout=check.left, capture_output=True)
    for case in ElementTree.parse(told).iter("testcase"):
        ended = {child.tag: child.get("message", "").partition("\n")[0] for child in case}
        verdict = "failed" if {"failure", "error"} & ended.keys() else "not done" if "skipped" in ended else "passed"
        yield row(f"{case.get('classname')}.{case.get('name')}", verdict, "; ".join(ended.values()))


def compared(check: Check) -> Iterator[Row]:
    """Radii and margins of CPU and device, of the small CNN and CNN7, in other batches and another order."""
    own = check.config("FastIBP")
    for name, images, eps_max in (("small_cnn", check.mnist[0], 0.1), ("cnn7", check.images.test_x, 8 / 255)):
        shape, n = images.shape[1:], 64 if name == "cnn7" else 256
        torch.manual_seed(0)
        model = ibp_init_(MODELS[name](shape, 10, width=own.width if name == "cnn7" else 16))
        optimizer, x = torch.optim.Adam(model.parameters(), lr=1e-3), to_float(images[:n])
        y = torch.arange(len(x)) % 10
        for _ in range(3 if check.small else 10):  # so that its layers are not those of a formula
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        for dtype in RADII:
            yield _compared(model.eval().to(dtype), x.to(dtype), eps_max, check.device, f"{name}, {dtype}")


@torch.no_grad()
def _compared(model: nn.Module, x: Tensor, eps_max: float, device: torch.device, what: str) -> Row:
    there, back = deepcopy(model).to(device), torch.arange(len(x)).flip(0)
    y = model(x).argmax(1)  # so that all have a radius
    here = certified_radius(model, x, y, eps_max)
    other = certified_radius(there, x[back].to(device), y[back].to(device), eps_max, batch_size=len(x) // 3)
    radii = (here.radius - other.radius.cpu()[back]).abs() / eps_max
    eps = here.radius / 2
    margins = certified_margin(model, x, y, eps), certified_margin(there, *(t.to(device) for t in (x, y, eps))).cpu()
    gap = float((margins[0] - margins[1]).abs().max() / margins[0].abs().max())
    statuses, inside = int((here.status != other.status.cpu()[back]).sum()), int((here.status == 1).sum())
    fine = float(radii.max()) <= RADII[x.dtype] and gap <= MARGINS[x.dtype] and not statuses
    said = f"{len(x)} radii, {inside} inside: at most {radii.max():.2g} eps_max apart, {statuses} other statuses; "
    said += f"margins {gap:.2g} of the largest"
    return row(what, fine, said, radii=radii, margins=gap, statuses=statuses, inside=inside)


def waiting(check: Check) -> Iterator[Row]:
    """No training step makes the host wait; and an ACERT step as a CUDA graph."""
    for name in METHODS if check.device.type == "cuda" else ():
        config = check.config(name)
        state, arguments = begun(config, check.device), random_batch(config, check.device, 128)
        for mode in ("default", "default", "error"):  # the first steps make what the others find
            torch.cuda.set_sync_debug_mode(mode)
            try:
                train_step(state, config, *arguments)
                waits = ""
            except RuntimeError as error:
                waits = str(error).partition("\n")[0]
            finally:
                torch.cuda.set_sync_debug_mode("default")
        yield row(f"{name} waits for nothing", not waits, waits)
    yield _gain(check, "a CUDA graph of an ACERT step", graph_gain)


def tables(check: Check) -> Iterator[Row]:
    """Each step's milliseconds, measured beside calculated, in every precision, for batches of 128 to 4096."""
    gpu = next((name for name in GPUS if name in device_name(check.device)), "H100")
    places = check.device, torch.device("meta")
    names, batches = (METHODS[1::2], (8,)) if check.small else (METHODS, BATCHES)
    states = {(name, place): begun(check.config(name), place) for name in names for place in places}
    for batch, precision, name in product(batches, PRECISIONS, names):
        what, config = f"{name}, {precision}, batch {batch}", check.config(name, precision)
        if what in check.known:
            continue
        if check.left < 0:
            yield row("the rest of the table", "not done", f"the time was up before {what}")
            return
        here, meta = (replace(states[name, place], objective=config.objective()) for place in places)
        least = count(meta, config, batch, GPUS[gpu]).seconds
        try:
            seconds = seconds_of_random_step(here, config, batch)
        except torch.OutOfMemoryError:
            yield row(what, "not done", "out of memory", least=least)
        else:
            said = f"{1e3 * seconds:.3g} ms, calculated for an {gpu} {1e3 * least:.3g}: {seconds / least:.2g} times"
            yield row(what, "measured", said, seconds=seconds, least=least)


def mnist(check: Check) -> Iterator[Row]:
    """The complete MNIST test set certified: seconds; of a trained network the radii that a CPU found as well."""
    x, y = check.mnist
    torch.manual_seed(0)
    wide = ibp_init_(MODELS["cnn7"](x.shape[1:], 10, width=check.config("ACERT").width))
    net, cap = MODELS[check.net["model"]](x.shape[1:], 10, width=check.net["width"]), check.net["cap"]
    net.load_state_dict(check.net["state"] or net.state_dict())
    for what, model in (("a small network", net), ("CNN7, untrained", wide)):
        model.to(check.device).eval()
        if model is wide:  # all classified correctly, so that each has a radius
            with torch.no_grad():
                y = torch.cat([model(to_float(part, check.device)).argmax(1).cpu() for part in x.split(1024)])
        evaluate(model, x[:1024], y[:1024], cap, SearchSettings(), 1024)  # the first one of a shape is slow
        started = time.perf_counter()
        found = evaluate(model, x, y, cap, SearchSettings(), len(x))
        seconds = time.perf_counter() - started
        said, verdict = f"{len(x)} images up to {cap:.3g} in {seconds:.2f} s", "measured"
        if model is net and (known := check.net["radii"]) is not None:
            gap = float(np.abs(found.radius.to_numpy() - known).max()) / cap
            said, verdict = f"{said}; at most {gap:.2g} of that from a CPU's radii", gap <= RADII[torch.float32]
        yield row(f"MNIST certified, {what}", verdict, said, seconds=seconds)


def training(check: Check) -> Iterator[Row]:
    """FastIBP and ACERT trained in turns, an epoch each, so that a cut-off finds both at equal epochs; ART."""
    data, device = check.images, check.device
    x, y, steps = data.train_x.to(device), data.train_y.to(device), -(-len(data.train_x) // 128)
    configs = {name: replace(check.config(name), clean_epochs=1) for name in ("FastIBP", "ACERT")}
    with session(device):
        epoch = steps * sum(seconds_of_random_step(begun(c, device), c, 128) for c in configs.values())
        epochs = 2 if check.small else int(min(60, max(2, 0.8 * check.left / epoch)))  # the rest is for the test
        configs = {name: replace(c, epochs=epochs, ramp_epochs=epochs // 2) for name, c in configs.items()}
        states = {name: initial_state(config, data, device, steps) for name, config in configs.items()}
        done, spent = 0, dict.fromkeys(configs, 0.0)
        while done < epochs and check.left > 0:
            for name, config in configs.items():
                work = states[name], config, data, x, y, done, tqdm(disable=True)
                spent[name] += seconds_of(lambda work=work: train_epoch(*work), device)
            done += 1
        for name, config in configs.items():
            found = evaluate(states[name].model, data.test_x, data.test_y, config.cap, config.search, 2048)
            scores = summarise(found, config.eps_max, (), config.cap)
            shown = ", ".join(f"{of} {100 * scores[of.lower()]:.2f} %" for of in ("Acc", "ACR", "ART"))
            said = f"{done} of {epochs} epochs of {len(x)} images, {spent[name] / max(1, done):.2f} s each: {shown}"
            yield row(f"{name} trained", "measured", said, epochs=done, seconds=spent[name], **scores)


def compiled(check: Check) -> Iterator[Row]:
    """A bound pass by torch.compile: last, since it may take long or not come back."""
    yield _gain(check, "a bound pass by torch.compile", compile_gain)


# ---- in a process of its own: what hangs, or breaks the device for all that comes, costs its own row only
def _gain(check: Check, what: str, call: Callable[[TrainConfig], tuple[float, float]]) -> Row:
    if check.device.type != "cuda":
        return row(what, "not done", NO_GPU, decides=True)
    try:
        with get_context("spawn").Pool(1) as pool:
            before, after = pool.apply_async(call, [check.config("ACERT")]).get(check.left)
    except Exception as error:
        return row(what, "not done", f"{type(error).__name__}: {error}".partition("\n")[0], decides=True)
    said = f"{1e3 * before:.3g} ms, with it {1e3 * after:.3g}: {before / after:.2f} times as fast"
    said = f"{said}; from {GAIN} on it is worth its lines"
    return row(what, "measured", said, before=before, after=after, decides=True)


def graph_gain(config: TrainConfig) -> tuple[float, float]:
    """Seconds of a training step, and of its replay as a CUDA graph."""
    device = torch.device("cuda")
    with session(device):
        state, arguments = begun(config, device), random_batch(config, device, 128)
        for group in state.optimizer.param_groups:
            group["capturable"] = True
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                train_step(state, config, *arguments)
        torch.cuda.current_stream().wait_stream(stream)
        before = _median(lambda: train_step(state, config, *arguments), device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            train_step(state, config, *arguments)
        return before, _median(graph.replay, device)


def compile_gain(config: TrainConfig) -> tuple[float, float]:
    """Seconds of a bound pass, and of the compiled one."""
    device = torch.device("cuda")
    state, (x, y, _, eps, _) = begun(config, device), random_batch(config, device, 128)
    with torch.no_grad(), session(device), full_precision(device):
        network = freeze(state.model.eval())

        def bounds(x: Tensor, y: Tensor) -> Tensor:
            return network.margins(ball(x, eps), y)

        calls = (partial(call, x, y) for call in (bounds, torch.compile(bounds)))
        before, after = (_median(call, device) for call in calls)
        return before, after


def seconds_of_random_step(state: State, config: TrainConfig, batch: int) -> float:
    """Seconds of a training step on a batch of random images."""
    device = next(state.model.parameters()).device
    arguments = random_batch(config, device, batch)
    return _median(lambda: train_step(state, config, *arguments), device)


def _median(call: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes: of 4 to 20, in a second if so many can be had, without the first."""
    times: list[float] = []
    while len(times) < 4 or (len(times) < 20 and sum(times) < 1):
        times.append(seconds_of(call, device))
    return statistics.median(times[1:])


STEPS: dict[str, tuple[float, Callable[[Check], Iterator[Row]]]] = {  # seconds that each may take
    "versions": (10, versions),
    "tests": (70, marked_tests),
    "compared": (40, compared),
    "waiting": (50, waiting),
    "table": (90, tables),
    "mnist": (20, mnist),
    "training": (170, training),
    "compiled": (30, compiled),
}
