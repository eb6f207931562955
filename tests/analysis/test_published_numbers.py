"""The numbers that the runs in data/ give, through the functions that users call, are those of published_numbers.json.

Code may move and merge; these numbers may not. Where one is meant to change, say why in the commit and write them anew:

    python -m tests.analysis.test_published_numbers

A table is a dict of its columns. Of more than `MOST` numbers there are two: how many are finite, and a mean whose
weights differ from place to place, so that an exchange is noticed; of as many words, how many and a checksum. Of
sentences and pages the numbers count: their words are free to change, verdicts apart.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest

import acertlab as al
from acertlab.analysis.acr_breakdown import order_sentence
from acertlab.analysis.method_table import chosen_runs, methods_table, tuned_table
from acertlab.analysis.paper.ablations import (
    NO_RAMP,
    RAMP,
    guess_sentence,
    lead_sentence,
    pooled,
    ramp_sentence,
    ramp_table,
    root_sentence,
    root_settings,
    root_table,
)
from acertlab.analysis.paper.tables import beside, nearby
from acertlab.analysis.seeds import mean_over_seeds, rescore
from acertlab.analysis.tradeoff import front, means
from acertlab.data.run import HISTORY_COLUMNS
from acertlab.data.run_table import load_histories, load_radii
from acertlab.radius.metrics import mean_of_batches, summarise
from acertlab.visualization.comparison import PANELS, art_over_caps, difference, fronts
from acertlab.visualization.pages.report import write_report
from acertlab.visualization.widgets import first_view, pair_scores, pareto_figures, scores_at
from tests.helpers.digest import MOST, Page, differences, ends, heights, joined, numbers_in, plain
from tests.helpers.shipped_runs import (
    BY_BRENTQ,
    BY_LOG_SECANT,
    CTRAIN,
    DATA,
    FRONTS,
    HISTORY,
    JOINED,
    METHODS,
    ONE_METHOD,
    REPORTED,
    SEED_BY_SEED,
    STEP_DECAY,
    SWEEPS,
    Sweep,
    seed_by_seed,
)

NUMBERS = Path(__file__).with_name("published_numbers.json")

EXACT = {"rel": 1e-9, "abs": 1e-12}
SHARES = {"rel": 1e-7, "abs": 1e-9}  # means of min(radius, eps_max) / eps_max in float32: up to 3e-8 from float64's
DRAWN = {"rel": 1e-5, "abs": 1e-6}  # sums over draws in float32, by the processor (2.4e-7 seen); crossings to 1e-6


def stored(sweep: Sweep) -> dict:
    """Tables as they are read: results, samples, epochs."""
    columns = ["method", "kappa", "seed", "acc", "acr", "art", "n", "epochs", "seconds", "radius_cap"]
    eps = sorted({eps for run in sweep.runs.cert_acc for eps in run})
    epochs = load_histories(sweep.runs, HISTORY_COLUMNS).values()
    return {
        "runs": sweep.runs[columns],
        "certified": {e: [run.get(e, np.nan) for run in sweep.runs.cert_acc] for e in eps},
        "samples": pd.concat(sweep.samples.values()),
        "epochs": pd.concat([table for table in epochs if len(table)]),  # what was imported has none
    }


def scored(sweep: Sweep) -> dict:
    """Scores at several eps_max, run by run and over seeds; the tuned kappas; fronts and their areas."""
    found = {}
    for name in ("0.5", "1", "cap"):
        eps_max = sweep.eps[name]
        runs = rescore(sweep.runs, sweep.radii, eps_max)
        table, shown = mean_over_seeds(runs), ["acc", "acr", "art", "acc_std", "acr_std", "art_std", "seeds"]
        pd.testing.assert_frame_equal(means(sweep.points, eps_max)[shown], table[shown], rtol=1e-9)
        methods = sweep.points.methods
        found[name] = {
            "runs": runs[["acr", "art"]],
            "means": table[["acr", "art", "acr_std", "art_std"]],
            "tuned": tuned_table(runs)[["method", "kappa", "Acc", "ACR", "ART"]],
            "front": al.pareto_front(table)[["method", "kappa"]],
            "areas": [al.hypervolume(table[table.method == method]) for method in methods],
            "fronts": [p.kappa for method in methods for p in front(sweep.points, method, eps_max)],
        }
    return found


def sampled(sweep: Sweep) -> dict:
    """From the samples of each run: certified accuracies; scores pooled and by batches."""
    eps, rows, grid = sweep.eps, [], np.linspace(0, sweep.eps["cap"], 41)
    for table in sweep.samples.values():
        whole = summarise(table, eps["0.5"], [eps["0.1"]], eps["cap"])
        certified, batches = whole.pop("cert_acc"), mean_of_batches(table, eps["1"], 500)
        rows.append(
            {"certified": certified[eps["0.1"]], **whole, **{f"{of} by batches": batches[of] for of in batches}}
        )
    return {
        "runs": pd.DataFrame(rows),
        "curves": np.concatenate([al.certified_accuracy(radii, grid) for radii in sweep.radii.values()]),
        "curves of kappas": np.concatenate([point.certified(grid) for point in sweep.points.points]),
    }


def explored(sweep: Sweep) -> dict:
    """What the Pareto explorer shows where its sliders stand at first, and elsewhere."""
    first = first_view(sweep.points)
    kappas = [point.kappa for point in sweep.points.points]
    between = 0.7 * min(kappas) + 0.3 * max(kappas)
    moved = replace(first, kappa=between, eps_max=0.7 * first.eps_max, eps=first.eps_max)
    place = ("kappa", "eps_max", "eps", "picked", "first", "second", "accuracy")
    found: dict[str, Any] = {"place": {name: getattr(first, name) for name in place}}
    for name, view in (("first", first), ("moved", moved)):
        tables = {"kappa": scores_at(sweep.points, view), "pair": pair_scores(sweep.points, view)}
        found[name] = {which: table.drop(columns="method", errors="ignore") for which, table in tables.items()}
    return found | {"figures": joined(map(heights, pareto_figures(sweep.points, moved).values()))}


def tabled(sweep: Sweep) -> dict:
    """The table of methods at the kappa that validation chose; CTRAIN's networks had no validation."""
    validated = sweep.folders != (CTRAIN,)
    runs = chosen_runs(sweep.runs) if validated else sweep.runs
    eps = sorted(set.intersection(*(set(run) for run in runs.cert_acc)))
    return {"table": methods_table(runs, eps)}


def beside_the_paper(sweep: Sweep) -> dict:
    """The first seed at every kappa beside the paper's rows."""
    tables = []
    for point in sweep.points.points:
        rows, run = nearby(sweep.dataset, point.method, point.kappa), al.load_run(point.paths[0])
        tables.append(beside(rows, run, step_ratio=1.5, runtime_ratio=1.25).dropna(axis="columns", how="all"))
    return {"rows": pd.concat(tables)}


def estimated(sweep: Sweep) -> dict:
    """The estimates around which the bootstrap puts its intervals."""
    found: dict[str, Any] = {}
    for name, analysis in sweep.analyses.items():
        pairs, best, scores = analysis.comparisons, analysis.tuned, ("acc", "acr", "art", "hypervolume")
        at = [pair.at for pair in pairs if pair.at]
        found[name] = {
            "verdict": analysis.verdict,
            "scores": {score: getattr(analysis.scores, score)[0] for score in ("acc", "acr", "art")},
            "tuned": {of: [getattr(row, of) for row in best] for of in ("method", "kappa", "chosen_on")},
            "tuned scores": {score: [getattr(row, score).estimate for row in best] for score in scores},
            "pairs": [f"{pair.method} {pair.verdict} {pair.other}" for pair in pairs],
            "reach": joined((pair.reach, pair.other_reach) for pair in pairs),
            "at": joined((a.accuracy, a.acr.estimate, a.other_acr.estimate, a.ratio.estimate) for a in at),
            "bands": joined(pair.band[["accuracy", "acr", "other_acr", "difference"]] for pair in pairs),
        }
    found["caps"] = sweep.caps.table[["method", "eps_max", "kappa", "art"]]
    parts = ("acr", "zero", "inside", "full", "easy")
    found["portraits"] = {
        **{of: [getattr(part, of) for part in sweep.portraits] for of in parts},
        "concentration": joined(part.concentration for part in sweep.portraits),
        "classes": joined(list(part.per_class.values()) for part in sweep.portraits),
        "certified": [at.estimate for part in sweep.portraits for at in part.certified.values()],
    }
    return found


def resampled(sweep: Sweep) -> dict:
    """The ends of intervals, and what depends on them; the numbers in sentences and tables."""
    found: dict[str, Any] = {}
    for name, analysis in sweep.analyses.items():
        pairs, best, scores = analysis.comparisons, analysis.tuned, ("acc", "acr", "art", "hypervolume")
        found[name] = {
            "tuned": {score: ends(getattr(row, score) for row in best) for score in scores},
            "again": [row.again for row in best],
            "wholly": joined((pair.better, pair.worse) for pair in pairs),
            "compared": joined(pair.compared or () for pair in pairs),
            "ratios": ends(pair.at.ratio for pair in pairs if pair.at),
            "stretches": joined((*pair.leads, *pair.trails) for pair in pairs),
            "bands": joined(pair.band[["low", "high"]] for pair in pairs),
            "said": numbers_in(*analysis.sentences),
            "table": numbers_in(*map(str, analysis.table().to_numpy().ravel())),
        }
    crossings, portraits = sweep.caps.crossings, sweep.portraits
    return found | {
        "caps": sweep.caps.table[["low", "high"]],
        "crossings": [f"{crossing.below} {crossing.above}" for crossing in crossings],
        "crossings at": joined((crossing.eps_max, crossing.share) for crossing in crossings),
        "portraits": ends(at for part in portraits for at in part.certified.values()),
        "said": numbers_in(sweep.caps.sentence, *(part.sentence for part in portraits), order_sentence(portraits)),
    }


def drawn(sweep: Sweep) -> dict:
    """What the figures of the analysis draw."""
    analysis, portraits = sweep.analyses["1"], sweep.portraits
    panels = joined(heights(panel(portraits)) for panel in PANELS)
    caps, gap = art_over_caps(sweep.caps, sweep.eps["1"]), difference(analysis.comparisons[0])
    return {"fronts": heights(fronts(analysis)), "caps": heights(caps), "difference": heights(gap), "panels": panels}


def reported(folder: str) -> dict:
    """The numbers in the lists and tables of the report on a folder."""
    with TemporaryDirectory() as made:
        failed = write_report(DATA / folder, Path(made, "page.html"), resamples=20, progress=False)
        page = Page(Path(made, "page.html").read_text(encoding="utf-8"))
    return {"failed": len(failed), "page": numbers_in(*page.told)}


def ablated() -> dict:
    """The ablations' tables. Their runs are not shipped: those of other settings stand in, to have numbers."""
    sweep = {(*sweep.folders, *sweep.where): sweep for sweep in SWEEPS + ONE_METHOD if sweep.dataset == "cifar10"}
    runs = {cell: sweep[(FRONTS,)].seeds(cell.method, cell.kappa) for cell in RAMP}
    runs |= {cell: sweep[(STEP_DECAY,)].seeds(cell.method, cell.kappa) for cell in NO_RAMP}
    roots, stand_ins = (
        root_settings([2, 100]),
        ((FRONTS,), (METHODS,), (HISTORY, *BY_LOG_SECANT), (HISTORY, *BY_BRENTQ)),
    )
    runs |= {cell: sweep[of].seeds(cell.method, cell.kappa) for cell, of in zip(roots, stand_ins, strict=True)}
    ramp = ramp_table(runs)
    root = root_table(runs, [2, 100], {cell: 0.01 * (i + 1) for i, cell in enumerate(roots)})
    radii = {f"{cell.method} {cell.kappa:g}": pooled(runs[cell]) for cell in RAMP}
    said = ramp_sentence(ramp), root_sentence(root), guess_sentence(runs, 10), guess_sentence(runs, 5)
    leads = lead_sentence(radii, "acert 0", "fast-ibp 0.8", 8.8 / 255)
    return {"ramp": ramp, "root": root, "radii": radii, "said": numbers_in(*said, leads)}


PARTS: dict[str, tuple[Callable[[Sweep], dict], dict[str, float], list[Sweep]]] = {
    "stored": (stored, EXACT, SWEEPS + ONE_METHOD),
    "scored": (scored, EXACT, SWEEPS + ONE_METHOD),
    "sampled": (sampled, EXACT, SWEEPS + ONE_METHOD),
    "explored": (explored, EXACT, SWEEPS + JOINED),
    "tabled": (tabled, EXACT, SWEEPS + JOINED),
    "beside the paper": (beside_the_paper, EXACT, SWEEPS + ONE_METHOD),
    "estimated": (estimated, SHARES, SWEEPS + ONE_METHOD),
    "resampled": (resampled, DRAWN, SWEEPS),
    "drawn": (drawn, DRAWN, SWEEPS[:2]),
}
COMPUTED: dict[str, tuple[Callable[[], dict], dict[str, float]]] = {
    f"{part}: {sweep.name}": (partial(make, sweep), tolerance)
    for part, (make, tolerance, sweeps) in PARTS.items()
    for sweep in sweeps
}
COMPUTED |= {f"seed by seed: {' + '.join(of)}": (partial(seed_by_seed, of), EXACT) for of in SEED_BY_SEED}
COMPUTED |= {f"reported: {folder}": (partial(reported, folder), DRAWN) for folder in REPORTED}
COMPUTED["ablated"] = ablated, EXACT


@cache
def published() -> dict[str, Any]:
    return json.loads(NUMBERS.read_text(encoding="utf-8"))


def test_all_that_is_shipped_is_covered() -> None:
    elsewhere = {"results/standard"}  # networks of the trials once more; fronts: tests/training/test_front.py
    shipped = {path.parent.relative_to(DATA).as_posix() for path in DATA.glob("[rt]*/**/packed.json")} - elsewhere
    covered = SWEEPS + ONE_METHOD
    assert shipped == {folder for sweep in covered for folder in sweep.folders}
    assert sum(len(al.load_runs(DATA / folder)) for folder in shipped) == sum(len(sweep.runs) for sweep in covered)
    assert set(COMPUTED) == set(published())


def test_the_standard_networks_of_the_results_are_those_of_the_trials() -> None:
    copies = al.load_runs(DATA / "results/standard")
    trials = al.load_runs(DATA / "trials")
    copied = load_radii(copies)
    for run in copies.itertuples():
        same = trials[(trials.dataset == run.dataset) & (trials.method == "standard") & (trials.seed == run.seed)]
        assert any((radii == copied[run.path]).all() for radii in load_radii(same).values() if len(radii) == run.n)
    assert len(copies) == 6


@pytest.mark.parametrize("name", COMPUTED)
def test_the_numbers_are_those_of_before(name: str) -> None:
    make, tolerance = COMPUTED[name]
    changed = list(differences(plain(make()), published()[name], tolerance))
    assert not changed, "\n".join([f"{len(changed)} in {name}", *changed[:20]])


@pytest.mark.parametrize("n", [1, MOST, MOST + 1, 5000])
def test_a_changed_number_is_noticed(n: int) -> None:
    values = np.random.default_rng(0).random(n)
    kept = plain({"a": {"b": values}})
    assert not list(differences(plain({"a": {"b": values * (1 + 1e-11)}}), kept, EXACT))
    for place in {0, n // 2, n - 1}:
        for wrong in (values[place] * (1 + 1e-4), np.nan):
            other = values.copy()
            other[place] = wrong
            assert list(differences(plain({"a": {"b": other}}), kept, EXACT))
    assert n == 1 or list(differences(plain({"a": {"b": values[::-1]}}), kept, EXACT))
    assert list(differences(plain({"a": {}}), kept, EXACT)) and list(differences(kept, {"a": {"c": 0}}, EXACT))


if __name__ == "__main__":
    found = {name: plain(make()) for name, (make, _) in COMPUTED.items()}
    lines = [
        f"{json.dumps(name)}:{json.dumps(of, separators=(',', ':'), allow_nan=False)}" for name, of in found.items()
    ]
    NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{NUMBERS}: {len(found)} entries, {NUMBERS.stat().st_size / 1e3:.0f} kB")
