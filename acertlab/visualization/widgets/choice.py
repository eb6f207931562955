"""Which runs are looked at: of one dataset, trained for one eps_max, those that came with acertlab, yours, or both."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from acertlab.data.run import SHIPPED
from acertlab.data.run_table import fronts_apart, load_runs
from acertlab.training.methods.catalogue import name_of
from acertlab.visualization.style import MINE

ORIGINS = {"both": "both", "shipped": "those that come with acertlab", "mine": "mine"}  # name: in words
FIRST = "cifar10"  # the dataset that teaches most, where it is there


@dataclass(frozen=True)
class Choice:
    """One position of the pickers of `pareto_explorer`."""

    dataset: str
    eps_max: float  # pixel units
    origin: str  # "shipped", "mine" or "both"

    def of(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The chosen runs; where others stand beside them, the methods of yours are called so, and those of fronts."""
        chosen = runs.loc[(runs.dataset == self.dataset) & np.isclose(runs.eps_max, self.eps_max)]
        if self.origin != "both":
            return fronts_apart(chosen.loc[chosen.origin == self.origin] if "origin" in chosen else chosen)
        chosen = fronts_apart(chosen)
        mine = [f"{name_of(method)}{MINE}" for method in chosen.method]
        return chosen.assign(method=chosen.method.where(chosen.origin == "shipped", mine))


def load_beside_shipped(root: str | Path) -> pd.DataFrame:
    """`load_runs` of a folder of yours, if there is one, and of those that come with acertlab: the column `origin`."""
    folders = {"mine": Path(root), "shipped": SHIPPED}
    tables = {origin: load_runs(folder) for origin, folder in folders.items() if folder.is_dir()}
    found = [table.assign(origin=origin) for origin, table in tables.items()]
    runs = pd.concat([table for table in found if len(table)] or found[:1], ignore_index=True)
    runs = runs.loc[~runs.path.map(os.path.realpath).duplicated()].reset_index(drop=True)  # the folder may be theirs
    runs.attrs["unfinished"] = tables["mine"].attrs["unfinished"] if "mine" in tables else []
    return runs


def options(runs: pd.DataFrame, dataset: str, eps_max: float | None) -> list[str]:
    """What `Choice.origin` may be; "both" first, which says most; nothing where there are no such runs."""
    of = runs.loc[(runs.dataset == dataset) & np.isclose(runs.eps_max, np.nan if eps_max is None else eps_max)]
    there = set(of.origin) if "origin" in of else {"mine"} if len(of) else set()
    return [name for name in ORIGINS if name in there or len(there) > 1]


def first_choice(runs: pd.DataFrame, dataset: str = "", eps_max: float = 0.0, origin: str = "") -> Choice:
    """Where the pickers stand at the start.

    Of what is not given ("" or 0): CIFAR-10, or without its runs, or where yours are asked for, the dataset of which
    there are most; the eps_max of most runs; both origins where there are both. ValueError, which tells what there is,
    without such a run.
    """
    if origin and origin not in ORIGINS:
        raise ValueError(f"origin = {origin!r}: accepted are {', '.join(ORIGINS)}, or '' for all that there are")
    among = runs.loc[runs.origin == origin] if origin in ("shipped", "mine") and "origin" in runs else runs
    if among.empty:
        raise ValueError(f"runs: there is no finished run{' of yours' if origin == 'mine' else ''}; train one first")
    most = str(among.dataset.value_counts().sort_index().idxmax())
    dataset = dataset or (FIRST if FIRST in set(among.dataset) and origin != "mine" else most)
    there = among.loc[among.dataset == dataset].eps_max.value_counts().sort_index()
    if eps_max:
        there = there[np.isclose(there.index, eps_max)]
    if there.empty:
        pairs = sorted(set(zip(among.dataset, among.eps_max, strict=True)))
        held = "; ".join(f"{name}, {eps:.6g}" for name, eps in pairs)
        wanted = f"dataset = {dataset!r}" + (f", eps_max = {eps_max:g}" if eps_max else "")
        raise ValueError(f"runs: there is none with {wanted}. There are (dataset, trained eps_max): {held}")
    eps = float(there.idxmax())
    accepted = options(runs, dataset, eps)
    return Choice(dataset, eps, origin if origin in accepted else accepted[0])
