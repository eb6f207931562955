"""The figures of `acertlab.bench`'s table: contenders take turns, and a ratio is of one round."""

import copy
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from acertlab.bounds.crown.auto_lirpa_compat import bounded_module
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import clean_margin, margin_at
from acertlab.data.datasets import ImageData, to_float
from acertlab.radius.certified import certified_radius
from acertlab.radius.search import RadiusResult, RadiusStatus, SearchSettings, search_radius
from acertlab.training.config import TrainConfig, preset
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.loop.state import State, initial_state
from acertlab.training.loop.step import train_step
from acertlab.training.methods.base import Step
from tests.benchmarks.peers import Batch, FastIBPThroughLirpa, LirpaIBP, brentq_one_by_one, find_root

XTOL = 1e-6  # of every search, pixel units; the relative tolerance is 0
AGREE = 1e-4  # what roundings may change: a radius, relative to eps_max; a margin, relative to the largest
LEAST, MOST = 3, 25  # rounds
SQUARE = 1024  # rows and columns of the matrices whose product shows how fast this machine's arithmetic is
ONE_BY_ONE = 8  # samples of a loop over scipy.optimize.brentq


@dataclass(frozen=True)
class Figure:
    """One entry of a table.

    Attributes:
        table, row, column: where it stands.
        value: the median, where there are quartiles.
        low, high: quartiles over the rounds; None where nothing was repeated.
    """

    table: str
    row: str
    column: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Case:
    """A trained network with samples that it has not seen.

    Attributes:
        label: what the table calls it.
        model, earlier: in evaluation mode, as it is now and as it was an epoch ago.
        x, y: (B, C, H, W) pixels and (B,) labels, as many as the largest batch has.
        config: by which it was trained.
        data: on which it was trained.
    """

    label: str
    model: nn.Module
    earlier: nn.Module
    x: Tensor
    y: Tensor
    config: TrainConfig
    data: ImageData


def interleaved(
    calls: dict[str, Callable[[], object]], seconds: float, before: Callable[[str], object] = lambda name: None
) -> dict[str, list[float]]:
    """Seconds of each call in each round, where the calls take turns and every round begins with another one.

    With one thread it is processor time, so that other processes count little; else wall time.

    Args:
        calls: by name. One that returns a float was timed elsewhere, and says how long it took.
        seconds: rounds go on for about so long; at least `LEAST`, at most `MOST`. The first one warms up, and is not
            counted, where it takes less than a third of the time.
        before: called with the name before each call, outside of the time.
    """
    names = list(calls)
    clock = _clock()
    rounds: list[dict[str, float]] = []
    begun = time.perf_counter()
    warm = False
    while len(rounds) < LEAST or (len(rounds) < MOST and time.perf_counter() - begun < seconds):
        turn, times = len(rounds) % len(names), {}
        for name in names[turn:] + names[:turn]:
            before(name)
            start = clock()
            spent = calls[name]()
            times[name] = spent if isinstance(spent, float) else clock() - start
        if warm or time.perf_counter() - begun > seconds / 3:
            rounds.append(times)
        warm = True
    return {name: [each[name] for each in rounds] for name in names}


def _clock() -> Callable[[], float]:
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def ratio(table: str, row: str, column: str, times: Sequence[float], reference: Sequence[float]) -> Figure:
    """The median over the rounds of times / reference, with its quartiles."""
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Figure(table, row, column, middle, low, high)


def flops(call: Callable[[], object]) -> int:
    """Of the matrix products and convolutions of a call, gradients included; two a multiplication and addition."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _agree(name: str, reference: Tensor, other: Tensor, tolerance: float) -> None:
    """Refuses to compare the cost of things that give different results."""
    gap = float((reference - other).abs().max())
    if not gap <= tolerance:
        raise AssertionError(f"{name}: differs from ours by {gap:.3g}, more than {tolerance:.3g}")


# ---- one bound pass
def bound_pass(case: Case, size: int, seconds: float) -> list[Figure]:
    """One bound pass over a clean forward pass: ours, prepared or not, and auto_LiRPA's."""
    x, y, eps = case.x[:size], case.y[:size], torch.full((size,), 0.1)
    frozen, lirpa = freeze(case.model), LirpaIBP(case.model, x)
    calls = {
        "clean forward": lambda: case.model(x),
        "ours, weights prepared before": lambda: margin_at(frozen, x, y, eps),
        "ours, preparation included": lambda: margin_at(freeze(case.model), x, y, eps),
        "auto_LiRPA's IBP": lambda: margin_at(lirpa, x, y, eps),
    }
    with torch.no_grad():
        mine, theirs = margin_at(frozen, x, y, eps), margin_at(lirpa, x, y, eps)
        _agree("auto_LiRPA's IBP", mine, theirs, AGREE * float(mine.abs().max()))
        times = interleaved(calls, seconds)
    table, column = "bound pass / clean forward", f"{case.label}, batch {size}"
    clean = times.pop("clean forward")
    rows = [Figure(table, "clean forward, ms", column, 1e3 * statistics.median(clean))]
    rows += [ratio(table, row, column, spent, clean) for row, spent in times.items()]
    with torch.no_grad():
        mine, once = (flops(calls[name]) for name in ("ours, weights prepared before", "clean forward"))
    return [*rows, Figure(table, "ours: arithmetic alone", column, mine / once)]


# ---- the search
def search(case: Case, eps_max: float, solver: str, seconds: float) -> list[Figure]:
    """All radii of a batch to `XTOL`: by ``solver``, cold and from an epoch ago, and by the peers.

    Preparing the weights and the clean pass come before the search and are timed for none of them. Evaluations count
    the clean pass.
    """
    with torch.no_grad():
        frozen, lirpa = freeze(case.model), LirpaIBP(case.model, case.x)
        batch = Batch(frozen, case.x, case.y, clean_margin(case.model(case.x), case.y), eps_max, XTOL)
        searches = _searches(batch, replace(batch, network=lirpa), solver, _radii(case.earlier, case, eps_max, solver))
        found: dict[str, tuple[Tensor, float]] = {}
        calls = {name: lambda name=name: found.update({name: searches[name]()}) for name in searches}
        calls["pass"] = lambda: margin_at(frozen, case.x, case.y, torch.full_like(batch.clean, eps_max))
        times = interleaved(calls, seconds)
    mine, *_, loop = searches
    times[loop] = [t * len(case.x) / ONE_BY_ONE for t in times[loop]]
    for name, (radius, _) in found.items():
        _agree(name, found[mine][0][: len(radius)], radius, 2 * XTOL + AGREE * eps_max)
    table, column = f"search of {len(case.x)} radii to 1e-6 / ours", f"{case.label}, eps_max {eps_max:g}"
    rows = [
        *describe(batch, solver, table, column),
        Figure(table, f"{mine}, seconds", column, statistics.median(times[mine])),
        ratio(table, f"{mine}, in bound passes of the whole batch", column, times[mine], times.pop("pass")),
    ]
    rows += [ratio(table, row, column, spent, times[mine]) for row, spent in times.items() if row != mine]
    counted = {f"evaluations a sample, {name}": count for name, (_, count) in found.items() if name != loop}
    return rows + [Figure(table, row, column, count) for row, count in counted.items()]


def _searches(batch: Batch, lirpa: Batch, solver: str, old: Tensor) -> dict[str, Callable[[], tuple[Tensor, float]]]:
    """The contenders: ours first, the loop over single samples last."""
    few = replace(batch, **{name: getattr(batch, name)[:ONE_BY_ONE] for name in ("x", "y", "clean")})
    return {
        f"ours: {solver}": lambda: ours(batch, solver),
        f"ours: {solver}, from the radii of an epoch ago": lambda: ours(batch, solver, old),
        **({} if solver == "brentq" else {"ours: brentq": lambda: ours(batch, "brentq")}),
        "scipy's elementwise.find_root on our bounds": lambda: find_root(batch),
        "our brentq on auto_LiRPA's bounds": lambda: ours(lirpa, "brentq"),
        f"scipy's brentq in a loop ({ONE_BY_ONE} samples, extrapolated)": lambda: brentq_one_by_one(few),
    }


def _search(batch: Batch, solver: str, warm_start: Tensor | None = None) -> RadiusResult:
    settings = SearchSettings(solver=solver, xtol=batch.xtol, rtol=0.0)
    return search_radius(batch.network, batch.x, batch.y, batch.clean, batch.eps_max, settings, warm_start=warm_start)


def ours(batch: Batch, solver: str, warm_start: Tensor | None = None) -> tuple[Tensor, float]:
    """Our search, called as the peers are: (B,) radii, evaluations a sample."""
    found = _search(batch, solver, warm_start)
    return found.radius, float(found.evaluations.double().mean())


def _radii(model: nn.Module, case: Case, eps_max: float, solver: str, xtol: float = XTOL) -> Tensor:
    return certified_radius(model, case.x, case.y, eps_max, solver=solver, xtol=xtol, rtol=0.0).radius


def describe(batch: Batch, solver: str, table: str, column: str) -> list[Figure]:
    """Where the roots lie, and how wide the widest bracket is."""
    found = _search(batch, solver)
    inside, cap = found.status == RadiusStatus.CONVERGED, found.status == RadiusStatus.AT_EPS_MAX
    width = float((found.upper - found.radius)[inside].max()) if inside.any() else 0.0
    return [
        Figure(table, "roots inside, %", column, 100 * float(inside.float().mean())),
        Figure(table, "certified at eps_max, %", column, 100 * float(cap.float().mean())),
        Figure(table, "widest bracket, 1e-6", column, 1e6 * width),
    ]


def eps_at_cap(case: Case, eps_max: float, solver: str, share: float = 0.9) -> float:
    """An eps_max at which this share of the samples that are certified at all reach it, to two digits.

    Raises:
        ValueError: no sample is certified at any eps.
    """
    radii = _radii(case.model, case, eps_max, solver, xtol=1e-4)
    if not (radii > 0).any():
        raise ValueError(f"{case.label}: no sample is certified at any eps; the network is trained too little")
    return float(f"{float(radii[radii > 0].quantile(1 - share)):.1e}")


def test_set(case: Case, x: Tensor, y: Tensor, eps_max: float, solver: str) -> list[Figure]:
    """`certified_radius` of many images, from the network to the radii, its checks included; once."""
    table, column = f"certified_radius of {len(x)} test images", f"{case.label}, eps_max {eps_max:g}"
    start = time.perf_counter()
    found = certified_radius(case.model, x, y, eps_max, solver=solver, xtol=XTOL, rtol=0.0).raise_if_failed()
    seconds = time.perf_counter() - start
    return [
        Figure(table, f"ours: {solver}, seconds", column, seconds),
        Figure(table, "evaluations a sample", column, float(found.evaluations.double().mean())),
        Figure(table, "roots inside, %", column, 100 * float((found.status == RadiusStatus.CONVERGED).float().mean())),
    ]


# ---- the training step
METHODS: dict[str, tuple[str, dict[str, Any]]] = {  # what a step is called: its method, and what of the preset changes
    "FastIBP": ("fast-ibp", {}),
    "ACERT-fast": ("acert-fast", {}),
    "ACERT": ("acert", {"radius_history": False}),
    "ACERT, from the radii of an epoch ago": ("acert", {"radius_history": True}),
}
Steps = list[tuple[Tensor, Tensor, Tensor]]  # pixels, labels, and which samples of the training set they are


def training_step(case: Case, steps: int, eps_max: float, seconds: float) -> list[Figure]:
    """A step of each method over one of FastIBP's, after the ramp: `train_step` on the same batches.

    Each is timed from the trained network, after untimed steps on the same batches of the network as it was an epoch
    ago: what a method remembers of a sample is as old as it is in training. The learning rate is so small that the
    weights stay.
    """
    batches = _batches(case, steps)
    begun = {name: _begun(case, batches, method, eps_max, **changes) for name, (method, changes) in METHODS.items()}
    ready: dict[str, tuple[State, TrainConfig]] = {}
    calls = {name: lambda name=name: _run(*ready[name], batches) for name in begun}
    lirpa = _through_lirpa(*copy.deepcopy(begun["FastIBP"]), batches)
    calls["FastIBP through auto_LiRPA"] = lambda: _run(*lirpa, batches)
    process, calls["FastIBP through auto_LiRPA, in a process of its own"] = _lirpa_elsewhere(case, steps, eps_max)
    square = torch.rand(SQUARE, SQUARE)
    calls["product"] = lambda: square @ square

    def fresh(name: str) -> None:
        if name in begun:
            ready[name] = copy.deepcopy(begun[name])

    try:
        times = interleaved(calls, seconds, fresh)
    finally:
        process.kill()
        process.join()
    table, column = "training step / FastIBP's", f"{case.label}, eps_max {eps_max:g}"
    reference, product = times.pop("FastIBP"), statistics.median(times.pop("product"))
    rows = [Figure(table, "FastIBP, ms a step", column, 1e3 * statistics.median(reference) / steps)]
    rows += [ratio(table, row, column, spent, reference) for row, spent in times.items()]
    least = flops(lambda: _run(*copy.deepcopy(begun["FastIBP"]), batches))
    for name in ("ACERT", "ACERT, from the radii of an epoch ago"):
        more = flops(lambda name=name: _run(*copy.deepcopy(begun[name]), batches))
        values = {"arithmetic alone": more / least} | _radius_errors(*copy.deepcopy(begun[name]), batches)
        rows += [Figure(table, f"{name}: {what}", column, value) for what, value in values.items()]
    speeds = {"FastIBP": least / statistics.median(reference), f"{SQUARE} x {SQUARE} matrices": 2 * SQUARE**3 / product}
    return rows + [Figure(table, f"GFLOP a second: {name}", column, 1e-9 * value) for name, value in speeds.items()]


def _batches(case: Case, steps: int) -> Steps:
    indices = torch.arange(steps * case.config.batch_size).split(case.config.batch_size)
    return [(to_float(case.data.train_x[index]), case.data.train_y[index], index) for index in indices]


def _begun(case: Case, batches: Steps, method: str, eps_max: float, **changes: Any) -> tuple[State, TrainConfig]:
    """A run by the method's preset, with the trained weights, after steps with the earlier ones."""
    config = replace(
        preset(case.config.dataset, method, budget="fast"),
        model=case.config.model,
        width=case.config.width,
        eps_max=eps_max,
        clean_epochs=0,
        ramp_epochs=0,
        scheduler="step",
        lr=1e-9,
        device="cpu",
        **changes,
    )
    state = initial_state(config, case.data, torch.device("cpu"), len(batches))
    state.model.load_state_dict(case.earlier.state_dict())
    _run(state, config, batches)
    state.model.load_state_dict(case.model.state_dict())
    return state, config


def _run(state: State, config: TrainConfig, batches: Steps) -> None:
    state.model.train()
    for x, y, index in batches:
        train_step(state, config, x, y, index, config.eps_max, torch.ones(1, 1, 1, 1))


def _through_lirpa(state: State, config: TrainConfig, batches: Steps) -> tuple[State, TrainConfig]:
    """The same run with auto_LiRPA's graph in the network's place, and its bounds in the loss."""
    with redirect_stdout(io.StringIO()):  # its warning of BatchNorm in training mode, which is meant
        converted = bounded_module(state.model.train(), batches[0][0][:2])
    state.model = nn.Sequential(converted)  # its own train() returns nothing
    state.objective = FastIBPThroughLirpa(**vars(state.objective), converted=converted)
    state.optimizer = torch.optim.Adam(state.model.parameters(), lr=config.lr)
    state.scheduler = torch.optim.lr_scheduler.ConstantLR(state.optimizer, 1.0)
    return state, config


def _lirpa_elsewhere(case: Case, steps: int, eps_max: float) -> tuple[BaseProcess, Callable[[], float]]:
    """The same steps in a new process, whose allocator is as the C library has it; and what has it run them once.

    A loop of one's own through auto_LiRPA does without `memory_kept`, from which every contender in
    this process gains.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (there, case, steps, eps_max, torch.get_num_threads())
    process = context.Process(target=_serve_lirpa, args=arguments, daemon=True)
    process.start()
    there.close()  # so that recv fails, and does not wait, once the process is gone

    def call() -> float:
        here.send("once")
        return here.recv()

    return process, call


def _serve_lirpa(connection: Connection, case: Case, steps: int, eps_max: float, threads: int) -> None:
    torch.set_num_threads(threads)
    batches, clock = _batches(case, steps), _clock()
    run = _through_lirpa(*_begun(case, batches, "fast-ibp", eps_max), batches)
    with suppress(EOFError):  # of a connection whose other end is gone
        while connection.recv():
            start = clock()
            _run(*run, batches)
            connection.send(clock() - start)


def _radius_errors(state: State, config: TrainConfig, batches: Steps) -> dict[str, float]:
    """Passes a sample, and by how much the radii that training uses differ from those of a search to 1e-8."""
    gaps, calls = [], []
    state.model.train()
    with torch.no_grad():
        for x, y, index in batches:
            logits, found = clean_pass(state.model, x)
            frozen = freeze(state.model, found, state.graph)
            known = state.radii.of(index) if state.radii else None
            used = state.objective.radii(Step(x, y, logits, frozen, config.eps_max, history=known))
            clean = clean_margin(logits, y)
            settings = SearchSettings(solver="brentq", rtol=0.0)
            exact = search_radius(frozen, x, y, clean, config.eps_max, settings).radius
            gaps.append((used.radius - exact).abs() / config.eps_max)
            calls.append(used.calls)
    gap, passes = torch.cat(gaps), torch.cat(calls).double()
    return {
        "passes a sample": float(passes.mean()),
        "mean error / eps_max": float(gap.mean()),
        "largest error / eps_max": float(gap.max()),
    }
