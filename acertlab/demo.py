"""``make demo``: the whole story on the embedded digits, from training to the Pareto picture, in a few minutes.

Every cell of the grid is a papermill execution of ``notebooks/02_training.ipynb``, two side by side; then
``03_pareto.ipynb`` draws the picture. Finished cells are kept: the same command again goes on where it was.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import acertlab as al
from acertlab.runs import runs_folder

ROOT = Path(__file__).resolve().parent.parent
OUT = (runs_folder() if "ACERTLAB_RUNS" in os.environ else ROOT / "runs") / "demo"
# the kappa axes of the methods do not align (ACERT at 0 sits near FastIBP at 0.8): compare curves, not equal kappas
GRID = (
    ("standard", 1.0),
    *(("fast-ibp", kappa) for kappa in (0.0, 0.5, 0.8, 0.95)),
    *(("acert", kappa) for kappa in (0.0, 0.5, 0.8, 0.95)),
)
ATTEMPTS = 2  # a kernel may fail to start, for want of a port


def main() -> int:
    """Trains the grid, executes 03 and prints where everything is; returns the exit status."""
    print(f"digits, {len(GRID)} runs of notebooks/02_training.ipynb, two at a time, into {_shown(OUT)}")
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda cell: train_cell(*cell), GRID)
        for (method, kappa), result in zip(GRID, tqdm(done, total=len(GRID), unit="run"), strict=True):
            if result is None:
                tqdm.write(f"{method} kappa={kappa:g} failed; see {_shown(cell_folder(method, kappa))}.log", sys.stderr)
            else:
                said = ", ".join(f"{name.upper()} {100 * result[name]:.1f}" for name in ("acc", "acr", "art"))
                tqdm.write(f"  {method:<9} kappa {kappa:<5g} {said}", sys.stdout)
    unfinished = [cell for cell in GRID if not (cell_folder(*cell) / "result.json").is_file()]
    if unfinished:
        print(f"{len(unfinished)} of {len(GRID)} runs failed; the same command tries them again", file=sys.stderr)
        return 1
    print("notebooks/03_pareto.ipynb ...", flush=True)
    executed = OUT / "03_pareto.ipynb"
    parameters = {"runs_root": str(OUT / "cells"), "out_dir": str(OUT)}
    if not execute(ROOT / "notebooks" / "03_pareto.ipynb", executed, parameters, OUT / "03_pareto.log"):
        print(f"03_pareto failed; see {_shown(OUT / '03_pareto.log')}", file=sys.stderr)
        return 1
    convert = [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level=ERROR", str(executed)]
    subprocess.run(convert, check=True)
    table = result_table(al.load_runs(OUT / "cells"))
    table.to_csv(OUT / "results.csv", index=False, float_format="%.2f")
    print(f"\n{table.to_string(index=False, float_format='{:.2f}'.format)}\n")
    for what, path in (("notebook", executed), ("HTML", executed.with_suffix(".html")), ("table", OUT / "results.csv")):
        print(f"{what + ':':<10}{_shown(path)}")
    return 0


def train_cell(method: str, kappa: float) -> dict | None:
    """Executes 02 for one cell, unless this version already has; its result, or None where it failed."""
    folder = cell_folder(method, kappa)
    result = folder / "result.json"
    if not result.is_file() or json.loads(result.read_text())["version"] != al.__version__:
        parameters = {"dataset": "digits", "method": method, "kappa": kappa, "budget": "fast", "run_dir": str(folder)}
        notebook = OUT / "notebooks" / f"{folder.name}.ipynb"
        execute(ROOT / "notebooks" / "02_training.ipynb", notebook, parameters, folder.with_suffix(".log"))
    return json.loads(result.read_text()) if result.is_file() else None


def cell_folder(method: str, kappa: float) -> Path:
    return OUT / "cells" / f"{method}-{round(1000 * kappa):04d}"


def execute(notebook: Path, executed: Path, parameters: dict[str, object], log: Path) -> bool:
    """Runs papermill in a process of its own, one thread of arithmetic; whether it succeeded. ``log`` has its words."""
    for folder in (executed.parent, log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    given = [part for name, value in parameters.items() for part in ("-p", name, str(value))]
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(ROOT), str(notebook), str(executed)]
    # the figures' script goes into the HTML copy, which then works offline
    renderer = {"PLOTLY_RENDERER": "plotly_mimetype+notebook"} if executed.parent == OUT else {}
    environment = os.environ | renderer | {"OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    for _ in range(ATTEMPTS):
        with log.open("w") as file:
            if subprocess.run(command + given, stdout=file, stderr=file, env=environment).returncode == 0:
                return True
        if "PapermillExecutionError" in log.read_text():  # the notebook's own error, not the kernel's: no use again
            return False
    return False


def result_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Method, kappa, Acc, ACR and ART, the last three in per cent."""
    table = runs.sort_values(["method", "kappa"])[["method", "kappa", "acc", "acr", "art"]]
    table = table.assign(**{name: 100 * table[name] for name in ("acc", "acr", "art")})
    return table.rename(columns={"acc": "Acc", "acr": "ACR", "art": "ART"})


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
