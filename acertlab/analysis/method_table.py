"""Each method at the kappa that validation chose: `acertlab table RUNS... [--eps EPS ...] [--attack]`.

A row a method, mean and standard deviation over seeds. `--attack` runs PGD on the chosen networks, image by image where
neither the prediction nor the certificate has decided yet, and keeps the share of images that withstood it in each
run's `result.json`, as `adv_acc`; what is there is not computed again.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from tqdm import tqdm

from acertlab._text import eps_text
from acertlab.analysis import seeds
from acertlab.data.datasets import ImageData, load_dataset, to_float
from acertlab.data.files import read_json, write_json
from acertlab.data.run import Run, check_tested_on, load_run
from acertlab.radius.attack import adversarial_accuracy
from acertlab.radius.metrics import correct, least_certified
from acertlab.training.methods.catalogue import name_of

SCORES = {"acc": "Acc", "acr": "ACR", "art": "ART"}


def tuned_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Table 1: every method at its smallest kappa and, marked with a dagger, at the kappa of the highest ART.

    Of runs of any datasets and eps_max, seeds averaged: columns dataset, eps_max, method, kappa, seeds, Acc, ACR, ART,
    the last three in percent, not rounded.
    """
    table, by = seeds.mean_over_seeds(runs), ["dataset", "eps_max", "method"]
    best = {key: seeds.tuned_kappa(one, "art") for key, one in runs.groupby(by)}
    tuned = table.kappa == [best[key] for key in table[by].itertuples(index=False, name=None)]
    kappas = table.groupby(by).kappa
    marks = np.where(tuned & (kappas.transform("size") > 1), " †", "")  # one kappa is no tuning
    percent = {shown: 100 * table[name] for name, shown in SCORES.items()}
    table = table.assign(method=table.method.map(name_of) + marks, **percent)
    shown = tuned | (table.kappa == kappas.transform("min"))
    return table.loc[shown, [*by, "kappa", "seeds", *SCORES.values()]].reset_index(drop=True)


def chosen_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of each method at the kappa with the highest ART on the validation images (`tuned_kappa`).

    ValueError where runs do not compare, are no seeds of one setting, or were not validated; the message names it.
    Networks that were interpolated in a front are left out.
    """
    seeds.check_comparable(runs)
    seeds.check_seeds(runs)
    runs = runs.loc[~seeds.interpolated(runs)]
    runs = runs.assign(val_art=seeds.validation_art(runs))
    if runs.val_art.isna().any():
        unknown = runs.path[runs.val_art.isna()].iloc[0]
        raise ValueError(f"runs: {unknown} was not validated, so that kappa cannot be chosen")
    best = {method: seeds.tuned_kappa(of, "val_art") for method, of in runs.groupby("method")}
    return runs.loc[runs.kappa == runs.method.map(best)].reset_index(drop=True)


def attack_run(
    run: Run, data: ImageData, eps: Sequence[float], *, steps: int = 40, restarts: int = 3
) -> dict[str, float]:
    """Share of test images that is classified correctly under PGD, at each eps: never below what is certified.

    Only images that are classified correctly and not certified at eps are attacked: against the others PGD decides
    nothing. The result is kept in the run's `result.json` (`adv_acc`) with what the attack was. ``data`` is the run's
    dataset, ``eps`` in pixel units, ``steps`` and ``restarts`` as in `acertlab.pgd`.

    Raises:
        ValueError: An eps beyond `radius_cap`; the run is packed; `data` is not what it was measured on.
    """
    for value in eps:
        seeds.check_eps_max(value, run.result["radius_cap"], "eps")
    check_tested_on(run, data)
    attack = {"steps": steps, "restarts": restarts}
    known = run.result.get("adv_acc", {}) if run.result.get("attack") == attack else {}
    if missing := [value for value in eps if str(value) not in known]:
        model, table, known = run.load_model(), run.radii, dict(known)
        x, y = to_float(data.test_x), data.test_y
        for value in missing:
            certified = table.radius >= least_certified(value)
            undecided = (correct(table) & ~certified).to_numpy()
            at = table["index"].to_numpy()[undecided]
            share = adversarial_accuracy(model, x[at], y[at], value, steps=steps, restarts=restarts) if len(at) else 0.0
            known[str(value)] = (int(certified.sum()) + round(share * len(at))) / len(table)
        write_json(run.path / "result.json", read_json(run.path / "result.json") | {"adv_acc": known, "attack": attack})
    return {str(value): known[str(value)] for value in eps}


def methods_table(runs: pd.DataFrame, eps: Sequence[float] = ()) -> pd.DataFrame:
    """A row a method at its chosen kappa: scores in percent as "mean ± standard deviation" over seeds; – where none.

    Certified accuracy is given at ``eps``, and accuracy under PGD of the methods that were attacked there with every
    seed; ValueError where certified accuracy was not measured. The seconds of an epoch, validation included, are the
    median over seeds, as they were when the runs were made: whatever else ran on the machine is in them.
    """
    seeds.check_seeds(runs)
    rows, seconds = [], []
    for _, group in runs.groupby(["method", "kappa"], sort=False):
        row = {"method": name_of(group.method.iloc[0]), "kappa": f"{group.kappa.iloc[0]:g}", **scores(group)}
        for value in eps:
            row[f"cert. at {eps_text(value)}"] = spread([_certified_at(value, shares) for shares in group.cert_acc])
        found = group.adv_acc if "adv_acc" in group else [None] * len(group)
        attacked = [held if isinstance(held, dict) else {} for held in found]
        for value in eps:
            if all(str(value) in held for held in attacked):
                row[f"PGD at {eps_text(value)}"] = spread([held[str(value)] for held in attacked])
        rows.append(row)
        seconds.append(epoch_seconds(group))
    return pd.DataFrame(rows).fillna("–").assign(**{"s / epoch": seconds})


def scores(group: pd.DataFrame) -> dict[str, int | str]:
    """How many seeds, and their Acc, ACR and ART, of the runs of one row."""
    return {"seeds": len(group)} | {shown: spread(group.loc[:, name]) for name, shown in SCORES.items()}


def epoch_seconds(group: pd.DataFrame) -> str:
    """The seconds of an epoch, median over the runs of one row."""
    return f"{(group.seconds / group.epochs).median():.1f}"


def spread(shares: Iterable[float]) -> str:
    """Fractions as "mean ± standard deviation" in percent."""
    values = 100 * pd.Series(list(shares), dtype=float)
    return f"{values.mean():.2f} ± {values.std():.2f}" if len(values) > 1 else f"{values.iloc[0]:.2f}"


def _certified_at(eps: float, certified: Mapping[float, float]) -> float:
    if eps not in certified:
        raise ValueError(f"eps = {eps!r}: certified accuracy was measured at {', '.join(map(str, certified))}")
    return certified[eps]


def chosen_table(runs: pd.DataFrame, eps: Sequence[float] | None, attack: bool) -> pd.DataFrame:
    """`methods_table` of the runs that validation chose, at ``eps`` (pixel units) or wherever all were measured.

    With ``attack`` PGD runs there on the networks that were not attacked yet.
    """
    chosen = chosen_runs(runs)
    eps = sorted(set.intersection(*(set(run) for run in chosen.cert_acc))) if eps is None else eps
    if attack:
        data = load_dataset(chosen.dataset[0])
        withstood = {path: attack_run(load_run(path), data, eps) for path in tqdm(chosen.path, "attack", unit="run")}
        chosen = chosen.assign(adv_acc=chosen.path.map(withstood))
    return methods_table(chosen, eps)
