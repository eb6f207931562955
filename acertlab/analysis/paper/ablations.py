"""ACERT without the ramp (Table 2) and with imprecise radii (Table 6, Fig. 2); where its certificates lie (Fig. 3).

Tables in the paper's layout, the paper's figures beside ours, and sentences that are made of the numbers, whatever they
say.
"""

import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from pandas.io.formats.style import Styler

from acertlab._validation import check
from acertlab.analysis.paper import tables as paper
from acertlab.bounds.checks import full_precision
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import clean_margin
from acertlab.data.datasets import ImageData, to_float
from acertlab.data.run import Run
from acertlab.radius import metrics
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import MarginGrowth, SearchSettings, margin_function, search_radius
from acertlab.training.cost import estimate
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.methods.catalogue import name_of
from acertlab.training.methods.sample_radii import SampleSearch, approximate_radius
from acertlab.training.parameters import config_of

DATASET = "cifar10"  # of the paper's ablations


class Setting(NamedTuple):
    """A method, its kappa and what of it is changed; the seeds of a setting are averaged."""

    method: str
    kappa: float
    variant: str = ""  # as `acertlab.analysis.paper.tables.varied` takes it

    @property
    def name(self) -> str:
        """Its name in tables and figures, but for kappa."""
        return name_of(self.method)

    @property
    def iterations(self) -> int | None:
        """The most iterations of the root finder; 0 where nothing is searched, None where it is not limited here."""
        root = self.variant.removeprefix("root-")
        return int(root) if root.isdigit() else None if self.method == "acert" else 0


RAMP = tuple(Setting(row.method, row.kappa) for row in paper.ROWS if row.table == 2)  # Table 2, with the ramp
NO_RAMP = tuple(setting._replace(variant="no-ramp") for setting in RAMP)
FAST_IBP, ACERT_FAST, ACERT = Setting("fast-ibp", 0.0), Setting("acert-fast", 0.0), Setting("acert", 0.0)
Runs = Mapping[Setting, Sequence[Run]]  # the seeds of every setting


def root_settings(iterations: Sequence[int]) -> tuple[Setting, ...]:
    """Table 6: FastIBP, ACERT-fast, then ACERT with at most so many iterations of Brent's method."""
    return FAST_IBP, ACERT_FAST, *(ACERT._replace(variant=f"root-{n}") for n in iterations)


def settings(iterations: Sequence[int]) -> tuple[Setting, ...]:
    """Settings that Tables 2 and 6 and Figs. 2 and 3 need, each once."""
    return tuple(dict.fromkeys((*RAMP, *NO_RAMP, *root_settings(iterations))))


def _mean(runs: Sequence[Run]) -> dict[str, float]:
    """Means over the seeds, in per cent, and the standard deviation of ART (0 for one seed)."""
    table = pd.DataFrame([paper.scores(run) for run in runs])
    return table.mean().to_dict() | {"± ART": float(table.ART.std()) if len(table) > 1 else 0.0}


def ramp_table(runs: Runs) -> pd.DataFrame:
    """Table 2: training without the ramp, and ΔART, its ART less that of training with the ramp, in per cent.

    A row a method and kappa (the index); columns (ours | the paper's, Acc | ACR | ART | ± ART | with ramp | ΔART).
    """
    rows = {}
    for setting in NO_RAMP:
        ours, ramped = _mean(runs[setting]), _mean(runs[setting._replace(variant="")])["ART"]
        ours |= {"with ramp": ramped, "ΔART": ours["ART"] - ramped}
        ((row, change),) = ((row, row.delta_art) for row in paper.rows(DATASET, *setting) if row.delta_art is not None)
        theirs = paper.figures(row) | {"with ramp": paper.figures(row)["ART"] - change, "ΔART": change}
        rows[setting.name, setting.kappa] = ours, theirs
    return _beside(rows, ["method", "kappa"])


def root_table(runs: Runs, iterations: Sequence[int], step: Mapping[Setting, float]) -> pd.DataFrame:
    """Table 6: the cost and the effect of the root finder's precision, of the runs of `root_settings(iterations)`.

    ``step`` has the seconds of a training step of each setting.

    Returns:
        A row a method and its most iterations (the index); columns (ours | the paper's, Acc | ACR | ART | ± ART | step,
        ms | step ratio | runtime, s | runtime ratio | passes). Ratios are over FastIBP's; passes are those that the
        search for an image's radius took, after the ramp; runtimes are training and validation.
    """
    rows, base = {}, _runtime(runs[FAST_IBP])
    for setting in root_settings(iterations):
        seconds = _runtime(runs[setting])
        ours = _mean(runs[setting]) | {
            "step, ms": 1e3 * step[setting],
            "step ratio": step[setting] / step[FAST_IBP],
            "runtime, s": seconds,
            "runtime ratio": seconds / base,
            "passes": passes(runs[setting]),
        }
        theirs = {}
        for row in (row for row in paper.rows(DATASET, *setting) if row.table == 6):
            renamed = {paper.STEP: "step ratio", paper.RUNTIME: "runtime ratio"}
            theirs = {renamed.get(name, name): value for name, value in paper.figures(row).items()}
        rows[setting.name, setting.iterations] = ours, theirs
    return _beside(rows, ["method", "iterations"])


def _beside(rows: Mapping[tuple, tuple[dict, dict]], names: Sequence[str]) -> pd.DataFrame:
    """Our figures and the paper's of each row as one table, with a column (side, figure) each."""
    index = pd.MultiIndex.from_tuples(rows, names=names)
    sides = zip(("ours", "paper"), zip(*rows.values(), strict=True), strict=True)
    return pd.concat({side: pd.DataFrame(list(held), index=index) for side, held in sides}, axis=1).astype(float)


def _runtime(runs: Sequence[Run]) -> float:
    return statistics.mean(run.result["seconds"] for run in runs)


def passes(runs: Sequence[Run]) -> float:
    """Bound passes that the search took a sample, mean over the epochs after the ramp (else the last) and the seeds."""
    told = [(run.history.passes, run.history.eps_t >= run.result["eps_max"] * (1 - 1e-9)) for run in runs]
    return statistics.mean((passes[after] if after.any() else passes[-1:]).mean() for passes, after in told)


def shown(table: pd.DataFrame) -> Styler:
    """A table of this module as the notebook shows it: two decimals, ours and the paper's under a line each."""
    line = "text-align: center; border-bottom: 1px solid #8C8C8C"
    styled = table.style.set_table_styles([{"selector": "th.col_heading.level0", "props": line}])
    styled.format(precision=2, na_rep="").format_index("{:g}", level=1)
    return styled


@torch.no_grad()
def radius_errors(
    run: Run, data: ImageData, iterations: Sequence[int], samples: int = 512, solver: str = "brentq"
) -> pd.DataFrame:
    """Error of the radii of training by the solver's most iterations, against a search to 1e-8.

    On a run's network as training sees it, with the statistics of the batch: the first training images. 0 iterations:
    eps_max for all that are classified correctly. A solver that extrapolates begins where `MarginGrowth` tells.

    Returns:
        A row a number of iterations: iterations, mean, largest (of the error, % of eps_max), passes (a sample).
    """
    config = config_of(run.config)
    model, device = run.load_model().train(), torch.device("cpu")
    x, y = to_float(data.train_x[:samples]), data.train_y[:samples]
    rows = []
    with full_precision(device):
        logits, of_batch = clean_pass(model, x)
        frozen, clean = freeze(model, of_batch), clean_margin(logits, y)
        exact = search_radius(frozen, x, y, clean, config.eps_max, SearchSettings(solver="brentq", rtol=0.0)).radius
        margin, how = margin_function(frozen, config.merged, config.domain), (config.merged, config.domain)
        extrapolates = SOLVERS[check("solver", solver, SOLVERS)].extrapolates
        growth = MarginGrowth.of(frozen, x, config.eps_max, *how) if extrapolates else None
        for most in iterations:
            settings = SampleSearch(solver, config.xtol, config.rtol, most)
            found = approximate_radius(margin, (x, y), clean, config.eps_max, settings, growth=growth)
            error = 100 * (found.radius - exact).abs() / config.eps_max
            rows.append((most, float(error.mean()), float(error.max()), float(found.calls.double().mean())))
    return pd.DataFrame(rows, columns=["iterations", "mean", "largest", "passes"])


def ramp_sentence(table: pd.DataFrame) -> str:
    """Sentence: who loses least ART without the ramp, here and in the paper; of `ramp_table`."""
    said = []
    for side, where in (("ours", "Here"), ("paper", "In the paper")):
        change, art = table[side, "ΔART"], table[side, "ART"]
        best = table.index[[change.argmax(), art.argmax()]]
        loser, leader = (f"{method} at kappa {kappa:g}" for method, kappa in best)
        said.append(
            f"{where} training without the ramp changes ART by {change.min():+.2f} to {change.max():+.2f} points; the "
            f"least is lost by {loser}, the highest ART without it has {leader} ({art.max():.2f} %)."
        )
    return " ".join(said)


def guess_sentence(runs: Runs, classes: int) -> str:
    """Sentence: which networks are hardly better than guessing, not twice as often right."""
    said = []
    for setting, seeds in runs.items():
        if bad := sum(run.result["acc"] < 2 / classes for run in seeds):
            name = f"{setting.name}, kappa {setting.kappa:g}" + (f", {setting.variant}" if setting.variant else "")
            said.append(f"{name} ({bad} of {len(seeds)})")
    return f"Hardly better than guessing: {'; '.join(said) or 'none'}."


def root_sentence(table: pd.DataFrame) -> str:
    """Sentence: what few iterations lose against many, and what they cost; of `root_table`."""
    acert = table.xs("ACERT", level="method")
    few, many = (2 if 2 in acert.index else acert.index[0]), acert.index[-1]
    said = []
    for side, where in (("ours", "Here"), ("paper", "In the paper")):
        values = acert[side]
        if few == many or values.ART.loc[[few, many]].isna().any():
            continue
        change, ratio = values.ART[few] - values.ART[many], values["step ratio"]
        said.append(
            f"{where} {few} iterations instead of {many} change ART by {change:+.2f} points and take a step from "
            f"{ratio[many]:.2f} to {ratio[few]:.2f} times FastIBP's."
        )
    if (spread := acert["ours", "± ART"].loc[[few, many]].max()) > 0:
        said.append(f"(Between our seeds the ART of these varies by {spread:.2f} points, one standard deviation.)")
    return " ".join(said)


def lead_sentence(radii: Mapping[str, np.ndarray], first: str, second: str, eps_max: float) -> str:
    """Sentence: on which stretches of eps up to eps_max the one name certifies more images than the other.

    ``radii`` has certified radii (N,), pixel units, by name, of the same images and as many seeds.
    """
    grid = np.linspace(0.0, eps_max, 401)
    gap = np.sign(np.subtract(*(metrics.certified_accuracy(radii[name], grid) for name in (first, second))))
    at = np.flatnonzero(gap)
    if not len(at):
        return f"{first} and {second} certify equally many images at every eps."
    said = []
    for sign, places in groupby(at, key=lambda place: gap[place]):
        stretch = [f"{eps:.4g}" for eps in grid[list(places)]]
        where = f"from {stretch[0]} to" if len(stretch) > 1 else "at"
        said.append(f"{first if sign > 0 else second} {where} {stretch[-1]}")
    return f"More images are certified by {', by '.join(said[:6])}{', ...' if len(said) > 6 else '.'}"


def pooled(runs: Sequence[Run]) -> np.ndarray:
    """The radii of all seeds, one after the other: their certified accuracy is the mean of the seeds'."""
    return np.concatenate([run.radii.radius.to_numpy(float) for run in runs])


def step_seconds(runs: Runs, iterations: Sequence[int], data: ImageData) -> dict[Setting, float]:
    """Seconds a training step of each of Table 6's settings, from the network of its first seed."""
    first = {setting: runs[setting][0] for setting in root_settings(iterations)}
    trained = {setting: (config_of(run.config), run.load_model()) for setting, run in first.items()}
    return estimate.step_seconds(trained, data)


def iteration_counts(given: str | int) -> list[int]:
    """Numbers of iterations as a notebook's parameter has them, "1 2 100" or 2; ValueError with what is accepted."""
    words = str(given).split()
    numbers = [int(word) for word in words if word.isdecimal()]
    if not numbers or len(numbers) < len(words) or numbers != sorted(set(numbers)) or numbers[0] < 1:
        raise ValueError('rising whole numbers >= 1 with spaces between, as "1 2 100"')
    return numbers
