"""The paper's Tables 1, 2, 5, 6 and 7 as data, the configuration that trains each row, and a run beside a row.

Percentages as printed there; all certificates by IBP, all networks CNN7. A row says which dataset, method and kappa it
is of, and by `variant` what of the method's preset it changes. `INCONSISTENT` says where the paper's figures do not
agree with each other; the tests recompute it.

Source: Nurlanov, Schmidt, Bernard, "Adaptive Certified Training: Towards Better Accuracy-Robustness Tradeoffs".
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from acertlab._text import printed_eps, short
from acertlab._validation import refuse
from acertlab.data.datasets import DATASETS, ImageData
from acertlab.data.run import Run
from acertlab.radius import metrics
from acertlab.training.config import TrainConfig
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.parameters import config_from_parameters
from acertlab.training.presets import PAPER, PRESET_OF_DATASET

SCORES: tuple[str, ...] = ("Acc", "ACR", "ART")
STEP, RUNTIME = "step / FastIBP's", "runtime / FastIBP's"  # what Table 6's ratios are called
CHECKPOINT = "the paper certified a network that the method's authors had trained; this one is trained anew"


@dataclass(frozen=True)
class Row:
    """One row of a table, in per cent where nothing else is said; None: the table has no such column."""

    table: int
    dataset: str
    method: str  # a key of METHODS
    kappa: float
    acc: float
    acr: float | None = None
    art: float | None = None
    variant: str = ""  # what of the preset changes, see `varied`
    tuned: bool = False  # marked † there: the highest ART among the kappas tried
    delta_art: float | None = None  # Table 2: ART less that of the training with the ramp
    runs: int = 1  # averaged
    stds: tuple[float, float, float] | None = None  # Table 5: standard deviations of acc, acr, art
    step: float | None = None  # Table 6: seconds a training step, Tesla V100
    hours: float | None = None  # Table 6: training and validation
    eps: float | None = None  # Table 7: where the share of certified images was read off, pixel units
    certified: float | None = None  # Table 7: that share
    note: str = ""  # what keeps a training from repeating the row

    @property
    def eps_max(self) -> float:
        """The largest radius that counts, pixel units."""
        return PAPER[self.dataset]["eps_max"]  # Table 4


ROWS: tuple[Row, ...] = (
    # Table 1. Standard accuracy, average certified radius, and their geometric mean
    Row(1, "mnist", "standard", 1.0, acc=99.24, acr=0.001, art=0.35),
    Row(1, "mnist", "crown-ibp", 0.0, acc=98.20, acr=95.13, art=96.65, note=CHECKPOINT),
    Row(1, "mnist", "sabr", 0.0, acc=98.75, acr=87.27, art=92.83, note=CHECKPOINT),
    Row(1, "mnist", "fast-ibp", 0.0, acc=97.61, acr=94.69, art=96.13),
    Row(1, "mnist", "acert", 0.0, acc=98.42, acr=95.01, art=96.69),
    Row(1, "cifar10", "standard", 1.0, acc=91.84, acr=0.0002, art=0.14),
    Row(1, "cifar10", "crown-ibp", 0.0, acc=45.40, acr=38.59, art=41.84, note=CHECKPOINT),
    Row(1, "cifar10", "sabr", 0.0, acc=52.38, acr=42.45, art=47.14, note=CHECKPOINT),
    Row(1, "cifar10", "fast-ibp", 0.0, acc=48.94, acr=41.23, art=44.91),
    Row(1, "cifar10", "fast-ibp", 0.8, acc=62.84, acr=40.70, art=50.49, tuned=True),
    Row(1, "cifar10", "acert", 0.0, acc=62.21, acr=41.80, art=50.96),
    Row(1, "cifar10", "acert", 0.25, acc=64.63, acr=41.20, art=51.58, tuned=True),
    Row(1, "tinyimagenet", "standard", 1.0, acc=46.09, acr=0.0004, art=0.13),
    Row(1, "tinyimagenet", "sabr", 0.0, acc=28.85, acr=19.99, art=23.96, note=CHECKPOINT),
    Row(1, "tinyimagenet", "fast-ibp", 0.0, acc=25.08, acr=21.06, art=22.96),
    Row(1, "tinyimagenet", "fast-ibp", 0.85, acc=30.67, acr=19.90, art=24.63, tuned=True),
    Row(1, "tinyimagenet", "acert", 0.0, acc=32.66, acr=21.38, art=26.34, tuned=True),
    # Table 2. Without the ramp of eps_{max,t}
    Row(2, "cifar10", "fast-ibp", 0.0, acc=33.44, acr=29.64, art=31.46, variant="no-ramp", delta_art=-13.45),
    Row(2, "cifar10", "fast-ibp", 0.8, acc=52.10, acr=37.10, art=43.97, variant="no-ramp", delta_art=-6.52),
    Row(2, "cifar10", "acert", 0.0, acc=52.65, acr=38.95, art=45.32, variant="no-ramp", delta_art=-5.64),
    Row(2, "cifar10", "acert", 0.25, acc=54.41, acr=37.96, art=45.43, variant="no-ramp", delta_art=-6.15),
    # Table 5. Means and standard deviations over 7 runs
    Row(5, "cifar10", "acert", 0.0, acc=61.64, acr=41.79, art=50.74, runs=7, stds=(0.34, 0.19, 0.13)),
    Row(5, "cifar10", "acert", 0.25, acc=64.35, acr=40.48, art=51.02, runs=7, stds=(0.16, 0.32, 0.24)),
    # Table 6. At most so many iterations of Brent's method in training
    Row(6, "cifar10", "fast-ibp", 0.0, acc=48.94, acr=41.23, art=44.91, step=0.02, hours=6.1),
    Row(6, "cifar10", "acert-fast", 0.0, acc=54.35, acr=42.37, art=47.92, step=0.02, hours=6.1),
    Row(6, "cifar10", "acert", 0.0, acc=61.82, acr=41.66, art=50.70, variant="root-2", step=0.07, hours=7.2),
    Row(6, "cifar10", "acert", 0.0, acc=61.64, acr=41.79, art=50.74, variant="root-100", step=0.22, hours=10.0),
    # Table 7. Certified accuracy at one eps
    Row(7, "mnist", "fast-ibp", 0.0, acc=97.61, eps=0.3, certified=93.13),
    Row(7, "mnist", "acert", 0.0, acc=98.42, eps=0.3, certified=93.20),
    Row(7, "cifar10", "fast-ibp", 0.0, acc=48.94, eps=8 / 255, certified=34.97),
    Row(7, "cifar10", "fast-ibp", 0.8, acc=62.83, eps=8 / 255, certified=23.71, tuned=True),
    Row(7, "cifar10", "acert", 0.0, acc=62.21, eps=8 / 255, certified=26.61),
    Row(7, "tinyimagenet", "fast-ibp", 0.0, acc=25.08, eps=1 / 255, certified=17.29),
    Row(7, "tinyimagenet", "fast-ibp", 0.85, acc=30.67, eps=1 / 255, certified=11.51, tuned=True),
    Row(7, "tinyimagenet", "acert", 0.0, acc=32.66, eps=1 / 255, certified=12.42, tuned=True),
)
DATASETS_OF_PAPER = tuple(dict.fromkeys(row.dataset for row in ROWS))
INCONSISTENT = (
    "ART is not sqrt(Acc x ACR) within rounding in 16 of the 25 rows of Tables 1, 2, 5 and 6 (FastIBP's row of Table 1 "
    "is also in Table 6 and counted once). In 15 of them it is too low, by up to 0.085: the published code averages "
    "the roots of batches, which is never above the root of the averages.",
    "Table 2, ACERT, kappa 0: ART 45.32 is 0.035 above sqrt(52.65 x 38.95) = 45.285, which neither way of averaging "
    "within one run explains.",
    "CIFAR-10, FastIBP, kappa 0.8: Acc is 62.84 in Table 1 and 62.83 in Table 7.",
    "Table 6's ACERT with 100 iterations is the mean over 7 runs of Table 5; the rows beside it are single runs.",
    "Section 4.2.2 says that 2 iterations cost 3.3 times FastIBP's step; the seconds of Table 6 say 3.5, or anything "
    "from 2.6 to 5 before rounding.",
)


def varied(config: TrainConfig, variant: str) -> TrainConfig:
    """The configuration with what the variant changes.

    "" nothing; "no-ramp": eps_max from the first epoch after the clean ones (Table 2); "root-N": radii by at most N
    iterations of Brent's method, each epoch's search from nothing (Table 6, Fig. 2; N = 0 is ACERT-fast's radii).
    ValueError for another variant, or "root-N" for a method that searches no radii.
    """
    if variant == "":
        return config
    if variant == "no-ramp":
        return replace(config, ramp_epochs=0)
    if not (root := re.fullmatch(r"root-(\d+)", variant)):
        refuse("variant", variant, '"", no-ramp, or root-N with a number N, as root-2')
    if not METHODS[config.method].objective.searches:
        able = ", ".join(name for name, method in METHODS.items() if method.objective.searches)
        raise ValueError(f"variant = {variant!r}: {config.method} searches no radii; {able} do")
    return replace(config, solver="brentq", radius_history=False, root_iterations=int(root[1]))


def configuration(
    dataset: str, method: str, kappa: float, *, variant: str = "", budget: str = "paper", **settings: Any
) -> TrainConfig:
    """Configuration that trains a row: preset, variant, and more fields of `TrainConfig` (0, "" and None: preset's).

    FastIBP's is what the paper's code trained, the preset's setting "prototype", and not Shi et al.'s.
    """
    chosen = {"dataset": dataset, "method": method, "kappa": kappa, "seed": 0, "budget": budget} | settings
    if method == "fast-ibp" and budget == "paper" and dataset in DATASETS_OF_PAPER:
        chosen |= {"setting": "prototype"}
    return varied(config_from_parameters(chosen), variant)


def rows(dataset: str, method: str, kappa: float, variant: str = "") -> tuple[Row, ...]:
    """The rows that a training reproduces, if its budget is "paper"; () where the paper has none."""
    kappa = 1.0 if method == "standard" else kappa  # whatever is given
    return tuple(r for r in _rows_of(dataset, method, variant) if math.isclose(r.kappa, kappa, abs_tol=1e-9))


def nearby(dataset: str, method: str, kappa: float, variant: str = "") -> tuple[Row, ...]:
    """`rows`; else, to have something beside ours, those of the dataset that this one is like, or of other kappas."""
    like = {"digits": "mnist"} | PRESET_OF_DATASET
    other = like.get(dataset.partition(":")[0], dataset)
    return (
        rows(dataset, method, kappa, variant)
        or rows(other, method, kappa, variant)
        or tuple(_rows_of(other, method, variant))
    )


def as_table(found: Sequence[Row]) -> Styler:
    """Rows as a notebook shows them, the tuned ones with a †, without the columns that none of them has."""
    shown = [asdict(row) | {"table": _number(row), "eps_max": printed_eps(row.eps_max)} for row in found]
    table = pd.DataFrame(shown).drop(columns="tuned").replace("", None).dropna(axis="columns", how="all")
    plain = table.style.hide(axis="index")
    plain.format(lambda value: f"{value:g}" if isinstance(value, float) else value, na_rep="")
    return plain


def _rows_of(dataset: str, method: str, variant: str) -> list[Row]:
    return [row for row in ROWS if (row.dataset, row.method, row.variant) == (dataset, method, variant)]


def shortfalls(config: TrainConfig, data: ImageData, variant: str = "") -> list[str]:
    """Reasons why a run is no reproduction of a row of the paper, a phrase each; none if it is one (of one seed)."""
    found = []
    if not rows(config.dataset, config.method, config.kappa, variant):
        what = f"{config.method} at kappa {config.kappa:g} on {config.dataset}" + (f", {variant}" if variant else "")
        found.append(f"the paper has no {what}")
    wanted = configuration(config.dataset, config.method, config.kappa, variant=variant)
    free = ("seed", "device", "protocol", "eval_batch", "radius_cap", "eval_xtol", "eval_rtol")
    names = [field.name for field in fields(config) if field.name not in free]
    pairs = {name: (getattr(config, name), getattr(wanted, name)) for name in names}
    if other := [f"{name} {short(is_)} instead of {short(of)}" for name, (is_, of) in pairs.items() if is_ != of]:
        found.append("its settings are not those of the budget paper (" + ", ".join(other) + ")")
    if config.dataset in DATASETS:
        counts = {"training": len(data.train_x) + len(data.val_x), "test": len(data.test_x)}
        for (part, count), whole in zip(counts.items(), DATASETS[config.dataset].sizes, strict=True):
            if count != whole:
                found.append(f"{count:,} of the {whole:,} {part} images")
    return found


PROTOCOLS = {
    "held-out": "a tenth of the training images held out, the last epoch's network, scores pooled over the test images",
    "published": "all training images, the epoch that is best on the test set, ACR and ART averaged over batches, as "
    "in the paper's code",
}


def label(config: TrainConfig, data: ImageData, variant: str = "") -> str:
    """Name of a run beside the paper's figures: "NOT a reproduction: ..." wherever it falls short."""
    if reasons := shortfalls(config, data, variant):
        return "NOT a reproduction: " + "; ".join(reasons)
    found = rows(config.dataset, config.method, config.kappa, variant)
    tables = " and ".join(str(table) for table in dict.fromkeys(row.table for row in found))
    notes = "".join(f"; {note}" for note in dict.fromkeys(row.note for row in found) if note)
    notes += "; by the paper's own settings of FastIBP, not Shi et al.'s" if config.method == "fast-ibp" else ""
    return f"seed {config.seed} of the setting of Table {tables}: {PROTOCOLS[config.protocol]}{notes}"


def scores(run: Run) -> dict[str, float]:
    """Acc, ACR and ART of a run in per cent; by the published protocol the last two are means over batches."""
    found = run.result | run.result.get("means_of_batches", {}) | {"acc": run.result["acc"]}  # 0.1.0 averaged Acc, too
    return {name: 100 * found[name.lower()] for name in SCORES}


def beside(
    found: Sequence[Row], run: Run, *, step_ratio: float | None = None, runtime_ratio: float | None = None
) -> pd.DataFrame:
    """The paper's figures beside a finished run's.

    ``step_ratio`` and ``runtime_ratio`` are a training step's and the whole run's, over FastIBP's; None: not measured.

    Returns:
        A row a figure: table, dataset and kappa (of the paper's row), figure, paper, std (of the paper's; NaN where it
        has one run), ours, difference (ours less the paper's). Per cent, but for the two ratios. A figure that only
        one of the two has is NaN in the other. Without rows: ours alone.
    """
    ours: dict[str, float | None] = {**scores(run), STEP: step_ratio, RUNTIME: runtime_ratio}
    ours |= {_certified_at(row.eps): _certified(run, row.eps) for row in found if row.eps is not None}
    lines = [
        (_number(row), row.dataset, row.kappa, name, value, dict(zip(SCORES, row.stds or (), strict=False)).get(name))
        for row in found
        for name, value in figures(row).items()
    ]
    lines = lines or [("", "", math.nan, name, math.nan, math.nan) for name in SCORES]
    table = pd.DataFrame(lines, columns=["table", "dataset", "kappa", "figure", "paper", "std"])
    numbers = dict.fromkeys(("kappa", "paper", "std", "ours"), float)
    table = table.assign(ours=[ours[name] for name in table.figure]).astype(numbers)
    return table.assign(difference=table.ours - table.paper)


def figures(row: Row) -> dict[str, float]:
    """The figures of a row, by name."""
    found: dict[str, float | None] = {"Acc": row.acc, "ACR": row.acr, "ART": row.art, **ratios(row)}
    if row.eps is not None:
        found[_certified_at(row.eps)] = row.certified
    return {name: value for name, value in found.items() if value is not None}


def _certified_at(eps: float) -> str:
    return f"certified at {printed_eps(eps)}"


def _number(row: Row) -> str:
    return f"{row.table} †" if row.tuned else str(row.table)


def ratios(row: Row) -> dict[str, float]:
    """Table 6: a row's training step and runtime over those of FastIBP's row; {} for rows of other tables."""
    if row.step is None or row.hours is None:
        return {}
    ((step, hours),) = ((r.step, r.hours) for r in ROWS if r.method == "fast-ibp" and r.step and r.hours)
    return {STEP: row.step / step, RUNTIME: row.hours / hours}


def _certified(run: Run, eps: float) -> float:
    if eps > run.result["radius_cap"]:
        return math.nan
    return 100 * float(metrics.certified_accuracy(run.radii.radius.to_numpy(float), np.array([eps]))[0])
