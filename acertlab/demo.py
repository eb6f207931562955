"""``make demo``: the whole story on the embedded digits, from training to the Pareto picture, in a few minutes.

A small sweep (`acertlab.sweep`) of ``notebooks/02_training.ipynb``; then ``03_pareto.ipynb`` draws the picture. The
same command again goes on where it was.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import papermill
from papermill.exceptions import PapermillExecutionError

from acertlab.data.files import CLONE, from_clone
from acertlab.sweep import executor as sweep

# the kappa axes of the methods do not align (ACERT at 0 sits near FastIBP at 0.8): compare curves, not equal kappas
SPEC: dict[str, Any] = {
    "dataset": "digits",
    "budget": "fast",
    "grid": [{"method": "standard"}, {"method": ["fast-ibp", "acert"], "kappa": [0, 0.5, 0.8, 0.95]}],
}


def main() -> int:
    """Trains the grid, executes 03 and prints where everything is; returns the exit status."""
    out = (Path(os.environ["ACERTLAB_RUNS"]) if "ACERTLAB_RUNS" in os.environ else CLONE / "runs") / "demo"
    table = sweep.run(SPEC, out=out)
    failed = table[table.state == "failed"]
    for _, row in failed.iterrows():
        print(f"{row.method} kappa={row.kappa:g} failed: {row.reason}; see {_shown(Path(row.path))}", file=sys.stderr)
    if len(failed):
        print(f"{len(failed)} of {len(table)} runs failed; the same command tries them again", file=sys.stderr)
        return 1
    print("notebooks/03_pareto.ipynb ...", flush=True)
    try:
        executed = draw(out)
    except PapermillExecutionError as error:
        print(f"03_pareto failed: {error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    scores = table[["method", "kappa", "acc", "acr", "art"]].rename(columns=sweep.SHOWN)
    scores = scores.assign(**{name: 100 * scores[name] for name in sweep.SHOWN.values()})
    scores.to_csv(out / "results.csv", index=False, float_format="%.2f")
    print(f"\n{sweep.shown_table(table)}\n")
    for what, path in (("notebook", executed), ("HTML", executed.with_suffix(".html")), ("table", out / "results.csv")):
        print(f"{what + ':':<10}{_shown(path)}")
    return 0


def draw(out: Path) -> Path:
    """Executes 03 on the sweep's runs, with a copy as HTML that works offline; the executed notebook."""
    executed = out / "03_pareto.ipynb"
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+notebook"  # the figures' script goes into the copy
    parameters = {"runs_root": str(out / "cells"), "out_dir": str(out)}
    papermill.execute_notebook(
        from_clone("notebooks/03_pareto.ipynb"), executed, parameters, kernel_name="python3", progress_bar=False,
        cwd=CLONE, store_widget_state=False, start_timeout=600,
    )  # fmt: skip
    convert = [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level=ERROR", str(executed)]
    subprocess.run(convert, check=True)
    return executed


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
