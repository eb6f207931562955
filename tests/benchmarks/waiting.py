"""What a user waits for beside the arithmetic: the fixed cost of a call, and the start of a process."""

import copy
import resource
import subprocess
import sys
from collections.abc import Callable

import torch

from acertlab.bounds.graph.capture import capture
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import clean_margin, margin_at
from acertlab.radius.certified import certified_radius
from acertlab.radius.search import SearchSettings, search_radius
from tests.benchmarks.peers import LirpaIBP
from tests.benchmarks.rows import Case, Figure, interleaved, ratio

FEW = (1, 8)  # samples of a call that a slider makes
STARTS = {  # what a process does, and beside what it is to be seen
    "import torch": ("import torch", None),
    "import pandas": ("import pandas", None),
    "import acertlab": ("import acertlab", None),
    "al.certified_radius": ("import acertlab as al; al.certified_radius", "import torch"),
    "import torch, pandas": ("import torch, pandas", None),
    "al.train": ("import acertlab as al; al.train", "import torch, pandas"),  # a run's tables are pandas's
    "al.load_runs": ("import acertlab as al; al.load_runs", "import pandas"),
}


def fixed_cost(case: Case, eps_max: float, seconds: float) -> list[Figure]:
    """Calls of few samples beside one bound pass of all, with their search and without it."""
    x, y, model = case.x, case.y, case.model
    frozen, settings = freeze(model), SearchSettings()
    eps = torch.full(y.shape, eps_max, dtype=x.dtype)

    def searched(n: int) -> Callable[[], object]:
        clean = clean_margin(model(x[:n]), y[:n])
        return lambda: search_radius(frozen, x[:n], y[:n], clean, eps_max, settings)

    with torch.no_grad():
        calls = {"pass": lambda: margin_at(frozen, x, y, eps)}
        calls |= {f"search {n}": searched(n) for n in FEW}
        calls |= {f"call {n}": lambda n=n: certified_radius(model, x[:n], y[:n], eps_max) for n in FEW}
        calls["a first call captures"] = lambda: capture(model, x)
        calls["auto_LiRPA's BoundedModule"] = lambda: LirpaIBP(copy.deepcopy(model), x[:1])
        times = interleaved(calls, seconds)
    table, column = f"fixed cost / one bound pass of {len(x)}", f"{case.label}, eps_max {eps_max:g}"
    rows = []
    for n in FEW:
        beside = [max(0.0, a - b) for a, b in zip(times[f"call {n}"], times[f"search {n}"], strict=True)]
        rows.append(ratio(table, f"radii of {n}", column, times[f"call {n}"], times["pass"]))
        rows.append(ratio(table, f"radii of {n}, beside the search", column, beside, times["pass"]))
    return rows + [ratio(table, name, column, times[name], times["pass"]) for name in list(calls)[-2:]]


def cold_start(seconds: float) -> list[Figure]:
    """Processor time of a process that begins: alone, and over what the library below it takes."""
    times = interleaved({name: lambda code=code: _process(code) for name, (code, _) in STARTS.items()}, seconds)
    table = "a process that only does this, processor seconds"
    rows = []
    for name, (_, below) in STARTS.items():
        one = [1.0] * len(times[name])
        rows.append(ratio(table, name, "in all", times[name], one))
        if below:
            above = [a - b for a, b in zip(times[name], times[below], strict=True)]
            rows.append(ratio(table, name, "above torch, pandas or both alone", above, one))
    return rows


def _process(code: str) -> float:
    """Processor seconds, user and system, of a Python process that runs ``code``."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
