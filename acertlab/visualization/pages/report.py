"""The page of an analysis of many runs: `acertlab report RUNS [--output report.html]`.

For every dataset and trained eps_max: which front leads where, the kappa-tuned table, what another eps_max would have
said, and what each ACR is made of.
"""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from tqdm import tqdm

from acertlab._text import eps_text
from acertlab.analysis.acr_breakdown import acr_breakdown, cap_sensitivity, order_sentence
from acertlab.analysis.fronts import Analysis, analyse
from acertlab.data.files import written_aside
from acertlab.data.run_table import by_sweep, load_finished
from acertlab.training.methods.catalogue import name_of
from acertlab.visualization.comparison import PANELS, art_over_caps, difference, fronts
from acertlab.visualization.pages.template import drawn, page, table_html


def write_report(root: str | Path, output: str | Path, resamples: int = 1000, progress: bool = True) -> list[str]:
    """Analyse every finished run below the folder ``root``, and write the HTML page ``output``, atomically.

    Returns what could not be analysed, a sentence each: those parts of the page say why. ``resamples`` are draws of the
    bootstrap; ``progress`` shows a bar over the datasets and trained eps_max.

    Raises:
        FileNotFoundError: There is no such folder, or no finished run in it.
        ValueError: Nothing could be analysed, or `output` is a folder; nothing is written.
    """
    if Path(output).is_dir():
        raise ValueError(f"output: {output} is a folder; give the name of an HTML file")
    runs = load_finished(root)
    parts, failed, groups = [], [], list(by_sweep(runs))
    for dataset, eps_max, rows in tqdm(groups, "report", unit="sweep", disable=not progress):
        part = {"dataset": dataset, "eps_max": eps_text(eps_max), "count": len(rows), "runs": _all_runs(rows)}
        try:
            part |= _analysed(analyse(rows, resamples=resamples))
        except ValueError as error:
            failed.append(f"{dataset}, eps_max = {eps_text(eps_max)}: {error}")
            part |= {"error": str(error)}
        parts.append(part)
    if len(failed) == len(groups):
        raise ValueError("; ".join(failed))
    unfinished = runs.attrs["unfinished"]
    left_out = f", {len(unfinished)} unfinished and left out" if unfinished else ""
    text = {"title": f"Accuracy against certified robustness: {root}", "summary": f"{len(runs)} runs{left_out}."}
    html = page("report.html", root=root, parts=parts, **text)
    with written_aside(Path(output)) as aside:
        aside.write_text(html, encoding="utf-8")
    return failed


def _analysed(analysis: Analysis) -> dict[str, object]:
    """What the template says of one dataset and eps_max."""
    samples, resamples = analysis.samples, analysis.resamples
    sensitivity = cap_sensitivity(samples, resamples)
    grid = sorted({eps for run in samples.runs.cert_acc for eps in run if eps <= samples.cap})
    best = [acr_breakdown(samples, resamples, of.method, of.kappa, analysis.eps_max, grid) for of in analysis.tuned]
    compared = [pair for pair in analysis.comparisons if pair.compared is not None]
    return {
        "verdict": analysis.verdict,
        "comparisons": analysis.comparisons,
        "tuned": analysis.tuned,
        "table": table_html(analysis.table()),
        "fronts": _titled(fronts(analysis)),
        "differences": [(name_of(p.method), name_of(p.other), _titled(difference(p))) for p in compared],
        "sensitivity": sensitivity.sentence,
        "caps": _titled(art_over_caps(sensitivity, analysis.eps_max)),
        "breakdowns": [*(part.sentence for part in best), order_sentence(best)],
        "panels": [(_titled(draw(best)), see) for draw, see in PANELS.items()],
    }


def _all_runs(runs: pd.DataFrame) -> Markup:
    columns = ["method", "kappa", "seed", "acc", "acr", "art", "epochs", "n", "split", "verifier", "merged", "version"]
    table = runs.sort_values(by=["method", "kappa", "seed"])[columns]
    percent = {name: [f"{100 * value:.2f}" for value in table[name]] for name in ("acc", "acr", "art")}
    return table_html(table.assign(**percent).rename(columns={"acc": "Acc (%)", "acr": "ACR (%)", "art": "ART (%)"}))


def _titled(figure: go.Figure) -> dict[str, str]:
    """A figure without its title, and the title, which becomes a heading."""
    title = figure.layout.to_plotly_json()["title"]["text"]
    untitled = figure.update_layout(title=None, margin={"t": 50, "l": 55, "r": 15, "b": 50})
    return {"title": title, "html": drawn(untitled)}
