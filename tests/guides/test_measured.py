"""What the repository's pages say of the runs in data/ is what these runs give."""

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest

import acertlab as al
from acertlab._text import markdown
from acertlab.analysis.method_table import chosen_runs, methods_table
from acertlab.data.run_table import load_histories
from tests.helpers.shipped_runs import (
    BY_BRENTQ,
    BY_HISTORY,
    BY_LOG_SECANT,
    CONFIRMATION,
    CTRAIN,
    DATA,
    FRONTS,
    HISTORY,
    JOINED,
    LONGER,
    ROOT,
    SEED_BY_SEED,
    STEP_DECAY,
    TRAIN_EPS,
    Sweep,
    seed_by_seed,
)


def percent(shares: pd.Series) -> str:
    return f"{100 * shares.mean():.2f} ± {100 * shares.std():.2f}"


def said_of_methods() -> Iterator[str]:
    for sweep in (*JOINED, Sweep("cifar10", (LONGER,))):
        chosen = chosen_runs(sweep.runs)
        eps = sorted(set.intersection(*(set(run) for run in chosen.cert_acc)))
        yield from markdown(methods_table(chosen, eps)).splitlines()[2:]


def said_seed_by_seed() -> Iterator[str]:
    of = {folders: seed_by_seed(folders) for folders in SEED_BY_SEED}
    cifar10, mnist = "cifar10 acert / fast-ibp", "mnist acert / fast-ibp"
    tables = [
        of[(FRONTS,)][cifar10],
        of[(FRONTS,)][mnist],
        of[FRONTS, CONFIRMATION][cifar10],
        of[(STEP_DECAY,)][cifar10],
    ]
    for row in pd.concat(tables).itertuples():
        scores = f"{100 * row.accuracy:.1f} | {100 * row.acr:.2f} | {100 * row.other_acr:.2f}"
        yield f"| {scores} | {row.ratio:.3f} ± {row.standard_error:.3f} | {row.low:.3f} | {row.high:.3f} |"
    table = of[(CONFIRMATION,)][cifar10]
    (row,) = table[np.isclose(table.accuracy, 0.52)].itertuples()
    yield f"{row.ratio:.3f} ± {row.standard_error:.3f} (seeds {row.low:.2f} to {row.high:.2f})"
    both = of[FRONTS, TRAIN_EPS][cifar10]
    early, (at, beyond) = both[both.accuracy < 0.515], both[both.accuracy > 0.515].itertuples()
    yield f"the ratios are {early.ratio.min():.2f} to {early.ratio.max():.2f} up to 51 %"
    yield f"{at.ratio:.2f} ± {at.standard_error:.2f} at 52 and {beyond.ratio:.2f} ± {beyond.standard_error:.2f} at 53 %"


def said_of_ctrain() -> Iterator[str]:
    runs = al.load_runs(DATA / CTRAIN)
    for label, method in (("FastIBP", "fast-ibp"), ("SABR", "sabr"), ("MTL-IBP", "mtl-ibp")):
        for by, name in (("acertlab", method), ("CTRAIN", f"{label} by CTRAIN")):
            of = runs[runs.method == name]
            scores, seconds = " | ".join(percent(of[score]) for score in ("acc", "acr", "art")), of.seconds / of.epochs
            yield f"| {label} | {by} | {len(of)} | {scores} | {seconds.median():.1f} |"


def said_of_searches() -> Iterator[str]:
    found = {}
    for by in (BY_BRENTQ, BY_LOG_SECANT, BY_HISTORY):
        sweeps = [Sweep(dataset, (HISTORY,), by) for dataset in ("cifar10", "mnist")]
        found[by] = [100 * sweep.runs.sort_values("seed").art.to_numpy() for sweep in sweeps]
        last = [[of.passes.iloc[-1] for of in load_histories(sweep.runs, ["passes"]).values()] for sweep in sweeps]
        cells = [
            f"{', '.join(f'{a:.2f}' for a in art)} | {min(passes):.1f} to {max(passes):.1f}"
            for art, passes in zip(found[by], last, strict=True)
        ]
        yield f"| {' | '.join(cells)} |"
    apart = [abs(one - other).max() for one, other in zip(found[BY_HISTORY], found[BY_BRENTQ], strict=True)]
    yield "With the history ART is at most {:.2f} (CIFAR-10) and {:.2f} points (MNIST) from".format(*apart)


def said_of_step_decay() -> Iterator[str]:
    runs = al.load_runs(DATA / STEP_DECAY)
    for method, kappa in (("fast-ibp", 0.8), ("acert", 0.0)):
        yield f"to {percent(runs[(runs.method == method) & (runs.kappa == kappa)].art)} (kappa {kappa:g})"


SAID = (said_of_methods, said_seed_by_seed, said_of_ctrain, said_of_searches, said_of_step_decay)


@pytest.mark.parametrize("made", SAID, ids=lambda made: made.__name__)
def test_what_the_readme_says_of_these_runs(made: Callable[[], Iterator[str]]) -> None:
    """In whichever of the repository's pages it stands."""
    pages = [*ROOT.glob("*.md"), *DATA.glob("**/*.md")]
    text = " ".join(" ".join(page.read_text(encoding="utf-8") for page in pages).split())
    lines = list(made())
    assert lines and [line for line in lines if line not in text] == []
