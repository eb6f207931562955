"""One self-contained page over many runs: `acertlab report RUNS [--output report.html]`.

For every dataset and trained eps_max: which front leads where, the kappa-tuned table, what another eps_max would have
said, and what each ACR is made of; figures that move, sentences that were computed. The page needs no network.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from tqdm import tqdm

from acertlab._text import eps_text
from acertlab.analysis.acr_breakdown import ACRBreakdown, CapSensitivity, acr_breakdown, cap_sensitivity, order_sentence
from acertlab.analysis.fronts import Analysis, analyse
from acertlab.data.files import written_aside
from acertlab.data.run_table import load_finished
from acertlab.training.methods.catalogue import name_of
from acertlab.visualization import comparison as figures

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 72rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.7rem; line-height: 1.2 } h2 { margin-top: 3rem; border-top: 2px solid #ddd; padding-top: 1rem }
h3 { margin: 2rem 0 .3rem }
.verdict { font-size: 1.15rem; font-weight: 600 }
.see { color: #444; margin: .2rem 0 1.2rem } .note { color: #555; font-size: .9rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem; white-space: nowrap }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e3e3e3 }
th:first-child, td:first-child { text-align: left }
.panels { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 1.5rem }
.panels .figure:last-child:nth-child(odd) { grid-column: 1 / -1 }
.figure { min-width: 0 } code { background: #f3f3f3; padding: .1em .3em; overflow-wrap: anywhere }
@media (max-width: 50rem) { body { padding: .6rem } .panels { grid-template-columns: minmax(0, 1fr) } }
"""
READING = """
<p class="note">A network is a point: its accuracy <b>Acc</b>, and its average certified radius <b>ACR</b> as a share of
eps_max (Eq. 12). A method is a curve of networks over kappa, the share of the clean loss; <b>ART</b> is
&radic;(Acc&thinsp;&times;&thinsp;ACR) (Eq. 13). What stands after &plusmn; is half of a 95 % interval from a two-level
bootstrap, over seeds and over the test images, the same images for all methods; where three seeds vary far more than
images do, such an interval holds the truth in 81 % of cases only. A front
dominates another on a stretch of accuracies where the 95 % band that holds the whole difference in ACR stays above 0.
</p>"""


def write_report(root: str | Path, output: str | Path, resamples: int = 1000, progress: bool = True) -> list[str]:
    """Analyses every finished run below a folder and writes the page, atomically.

    Args:
        root: A folder that holds run folders or packed runs, at any depth.
        output: The page, an HTML file; replaced where it is there.
        resamples: Draws of the bootstrap.
        progress: Show a bar over the datasets and trained eps_max.

    Returns:
        What could not be analysed, a sentence each: those parts of the page say why.

    Raises:
        FileNotFoundError: There is no such folder, or no finished run in it.
        ValueError: Nothing could be analysed; nothing is written.
    """
    runs = load_finished(root)
    groups, parts, failed = list(runs.groupby(["dataset", "eps_max"])), [], []
    for (dataset, eps_max), group in tqdm(groups, "report", unit="sweep", disable=not progress):
        heading = f"<h2>{html.escape(dataset)}, eps_max = {eps_text(eps_max)}</h2>"
        try:
            body = _section(analyse(group, resamples=resamples))
        except ValueError as error:
            failed.append(f"{dataset}, eps_max = {eps_text(eps_max)}: {error}")
            body = f'<p class="verdict">Not analysed.</p><p>{html.escape(str(error))}</p>'
        parts.append(heading + body + _all_runs(group))
    if len(failed) == len(groups):
        raise ValueError("; ".join(failed))
    unfinished = runs.attrs["unfinished"]
    left_out = f", {len(unfinished)} unfinished and left out" if unfinished else ""
    page = _page(html.escape(str(root)), f"{len(runs)} runs{left_out}.", parts)
    with written_aside(Path(output)) as aside:
        aside.write_text(page, encoding="utf-8")
    return failed


def _page(root: str, summary: str, parts: Sequence[str]) -> str:
    title = f"Accuracy against certified robustness: {root}"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style>
<script>{get_plotlyjs()}</script></head>
<body><h1>{title}</h1>
<p>{summary}</p>{READING}
{"".join(parts)}
<p class="note">Made by <code>acertlab report {root}</code>.</p></body></html>
"""


def _section(analysis: Analysis) -> str:
    sensitivity = cap_sensitivity(analysis.samples, analysis.resamples)
    grid = sorted({eps for run in analysis.samples.runs.cert_acc for eps in run if eps <= analysis.samples.cap})
    breakdowns = [acr_breakdown(analysis.samples, analysis.resamples, best.method, best.kappa, analysis.eps_max, grid)
                 for best in analysis.tuned]  # fmt: skip
    return "\n".join([*_fronts(analysis), *_caps(analysis, sensitivity), *_breakdowns(breakdowns)])


def _fronts(analysis: Analysis) -> Iterator[str]:
    yield f'<p class="verdict">{html.escape(analysis.verdict)}</p>'
    yield _list(pair.sentence for pair in analysis.comparisons)
    yield _figure(
        "The fronts", figures.fronts(analysis),
        "The line is the front of a method, the number at a point its kappa; further up and to the right is better. "
        "The band is where the front's ACR lies at each accuracy; two methods differ where the bands part."
    )  # fmt: skip
    for pair in analysis.comparisons:
        if pair.compared:
            figure = figures.difference(pair)
            see = f"Above 0 {name_of(pair.method)}'s front has the higher ACR, below 0 {name_of(pair.other)}'s; "
            yield _figure(figure.layout.title.text, figure, f"{see}where the band holds 0, the data do not decide.")
    yield "<h3>The best kappa of each method</h3>" + _table(analysis.table())
    yield (
        '<p class="see">Acc, ACR and ART of the network with the highest ART; the hypervolume is the area below the '
        "whole front, and grows with the number of kappa.</p>"
    )
    yield _list(best.sentence for best in analysis.tuned)


def _caps(analysis: Analysis, sensitivity: CapSensitivity) -> Iterator[str]:
    figure = figures.art_over_caps(sensitivity, analysis.eps_max)
    see = (
        f"{sensitivity.sentence} Every method is at the kappa that is best at that eps_max on these images. Where the "
        "curves cross (dotted), the choice of eps_max decides which method looks better."
    )
    yield _figure(figure.layout.title.text, figure, see)


def _breakdowns(breakdowns: Sequence[ACRBreakdown]) -> Iterator[str]:
    yield "<h3>What the ACR is made of</h3>"
    yield (
        '<p class="see">The ACR is said to be made by easy images, to depend on eps_max and to hide the robustness at '
        "one eps. Here are its parts, for each method at its best kappa, its seeds pooled.</p>"
    )
    yield _list([*(part.sentence for part in breakdowns), order_sentence(breakdowns)])
    see = (
        "The area below a curve is the ACR; points are the fixed eps. Curves that cross are ordered differently at "
        "different eps.",
        "At 0: misclassified, or nothing proved. At 100: certified up to eps_max, whatever lies beyond.",
        "The share of the ACR that the easiest images make. Far above the dotted line: a few images make most of it.",
        "The mean radius of each class. Where methods change places, the ACR hides it.",
        "What a user who needs one eps asks for, with its interval over seeds and images.",
    )
    panels = [panel(breakdowns) for panel in figures.PANELS]
    shown = (_figure(panel.layout.title.text, panel, text, "h4") for panel, text in zip(panels, see, strict=True))
    yield f'<div class="panels">{"".join(shown)}</div>'


def _all_runs(group: pd.DataFrame) -> str:
    columns = ["method", "kappa", "seed", "acc", "acr", "art", "epochs", "n", "split", "verifier", "merged", "version"]
    table = group[columns].sort_values(["method", "kappa", "seed"])
    percent = {name: (100 * table[name]).map("{:.2f}".format) for name in ("acc", "acr", "art")}
    names = {"acc": "Acc (%)", "acr": "ACR (%)", "art": "ART (%)"}
    shown = _table(table.assign(**percent).rename(columns=names))
    return f"<details><summary>All {len(group)} runs</summary>{shown}</details>"


def _figure(heading: str, figure: go.Figure, see: str, level: str = "h3") -> str:
    """A figure under its heading (on a narrow screen a title in the figure is cut off), and what to see in it."""
    figure.update_layout(title=None, margin={"t": 50, "l": 55, "r": 15, "b": 50})
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax=False,
                           config={"responsive": True, "displaylogo": False})  # fmt: skip
    heading = html.escape(heading)
    return f'<div class="figure"><{level}>{heading}</{level}>{drawn}<p class="see">{_text(see)}</p></div>'


def _text(sentence: str) -> str:
    """Escaped, and no line ends before a % or a ±."""
    return html.escape(sentence).replace(" %", "&nbsp;%").replace(" ±", "&nbsp;±")


def _list(sentences: Sequence[str] | Iterator[str]) -> str:
    return f"<ul>{''.join(f'<li>{_text(sentence)}</li>' for sentence in sentences)}</ul>"


def _table(table: pd.DataFrame) -> str:
    return f'<div class="wide">{table.to_html(index=False, border=0)}</div>'
