"""Pages that need no network: the certificate of a data set, and an analysis of many runs.

`acertlab report RUNS [--output report.html]` writes the second one: for every dataset and trained eps_max, which front
leads where, the kappa-tuned table, what another eps_max would have said, and what each ACR is made of.
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs
from tqdm import tqdm

from acertlab._optional import need
from acertlab._text import eps_text
from acertlab.analysis.acr_breakdown import acr_breakdown, cap_sensitivity, order_sentence
from acertlab.analysis.fronts import Analysis, analyse
from acertlab.data.files import written_aside
from acertlab.data.run_table import load_finished
from acertlab.radius.certificate import Report
from acertlab.radius.search import RadiusStatus
from acertlab.training.methods.catalogue import name_of
from acertlab.visualization.comparison import PANELS, art_over_caps, difference, fronts
from acertlab.visualization.radius import certified_accuracy_curves, image_grid, radius_histogram
from acertlab.visualization.style import page, panels


def certificate(report: Report) -> go.Figure:
    """A data set's certificate: certified accuracy at every eps, the radii, and the images with the smallest ones."""
    eps_max, radii = report.settings["eps_max"], report.radii["radius"]
    parts = [certified_accuracy_curves({report.settings["verifier"]: radii}, eps_max), radius_histogram(radii, eps_max)]
    images, worst = report.images, report.worst
    if images.dim() == 4 and images.shape[1] in (1, 3) and len(images):
        titles = [f"no. {i} (class {label})" for i, label in zip(worst["index"], worst["label"], strict=True)]
        title = "Correctly classified, smallest radii"
        parts.append(image_grid(images.numpy(), titles, radii=worst["radius"], title=title))
    rows = len(parts) - 1
    title = f"{report.settings['n']} samples, {report.summary()}"
    figure = panels(parts, title, 140 + 340 * rows, row_heights=[0.65, 0.35][:rows])
    return figure.update_layout(showlegend=False, bargap=0)


def certificate_page(report: Report) -> str:
    """HTML with the picture of a data set's certificate, its table and its worst samples."""
    words = [RadiusStatus(status).sentence for status in report.worst["status"]]
    settings = report.table().set_index("quantity").loc[list(report.settings)].reset_index()
    return page(
        "certificate.html",
        title=f"Certified radii of {report.settings['n']} samples",
        plotly=Markup(get_plotlyjs()),
        sentence=report.sentence(),
        picture=_drawn(certificate(report)),
        outcomes=_table(report.outcomes()),
        worst=_table(report.worst.assign(status=words)),
        settings=_table(settings),
    )


def write_report(root: str | Path, output: str | Path, resamples: int = 1000, progress: bool = True) -> list[str]:
    """Analyse every finished run below a folder and write the page, atomically.

    Args:
        root: A folder that holds run folders or packed runs, at any depth.
        output: The page, an HTML file; replaced where it is there.
        resamples: Draws of the bootstrap.
        progress: Show a bar over the datasets and trained eps_max.

    Returns:
        What could not be analysed, a sentence each: those parts of the page say why.

    Raises:
        FileNotFoundError: There is no such folder, or no finished run in it.
        ValueError: Nothing could be analysed, or `output` is a folder; nothing is written.
    """
    if Path(output).is_dir():
        raise ValueError(f"output: {output} is a folder; give the name of an HTML file")
    runs = load_finished(root)
    parts, failed = [], []
    groups = [
        (rows["dataset"].iloc[0], rows["eps_max"].iloc[0], rows) for _, rows in runs.groupby(["dataset", "eps_max"])
    ]
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
    html = page("report.html", plotly=Markup(get_plotlyjs()), root=root, parts=parts, **text)
    with written_aside(Path(output)) as aside:
        aside.write_text(html, encoding="utf-8")
    return failed


def _analysed(analysis: Analysis) -> dict[str, object]:
    """What the template says of one dataset and eps_max."""
    samples, resamples = analysis.samples, analysis.resamples
    sensitivity = cap_sensitivity(samples, resamples)
    grid = sorted({eps for run in samples.runs.cert_acc for eps in run if eps <= samples.cap})
    best = [
        acr_breakdown(samples, resamples, tuned.method, tuned.kappa, analysis.eps_max, grid) for tuned in analysis.tuned
    ]
    compared = [pair for pair in analysis.comparisons if pair.compared is not None]
    return {
        "verdict": analysis.verdict,
        "comparisons": analysis.comparisons,
        "tuned": analysis.tuned,
        "table": _table(analysis.table()),
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
    return _table(table.assign(**percent).rename(columns={"acc": "Acc (%)", "acr": "ACR (%)", "art": "ART (%)"}))


def _table(table: pd.DataFrame) -> Markup:
    return Markup(table.to_html(index=False, border=0))  # pandas escapes


def _titled(figure: go.Figure) -> dict[str, str]:
    """A figure without its title, and the title, which becomes a heading."""
    title = figure.layout.to_plotly_json()["title"]["text"]
    untitled = figure.update_layout(title=None, margin={"t": 50, "l": 55, "r": 15, "b": 50})
    return {"title": title, "html": _drawn(untitled)}


def _drawn(figure: go.Figure) -> Markup:
    config = {"responsive": True, "displaylogo": False}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, include_mathjax=False, config=config))


# A figure's script stands in the page's head once; formulas are MathML, which browsers draw by themselves. What a cell
# tells while it runs is no error and not shown as one.
_NOTEBOOK = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}<script>{{ resources.plotly }}</script>{% endblock %}
{% block html_head_js_mathjax %}<style>
.highlight pre { white-space: pre-wrap }
.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"] { background: none }</style>{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}"""


def notebook_page(notebook: str | Path, output: str | Path, preface: str = "") -> None:
    """Write an executed notebook as one HTML page that needs no network, atomically.

    Args:
        notebook: With its outputs. Of widgets the page has what stands below them, a still picture.
        output: The page, an HTML file; replaced where it is there.
        preface: Markdown to stand above the notebook.

    Raises:
        ValueError: A cell's figure has no data that can be drawn.
    """
    need("notebooks", "a notebook's page", "nbconvert", "latex2mathml")
    import nbformat
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from nbconvert.preprocessors import CoalesceStreamsPreprocessor

    class MathML(IPythonRenderer):
        def block_math(self, body: str) -> str:
            return f"<p>{mathml(body, 'block')}</p>"

        def inline_math(self, body: str) -> str:
            return mathml(body, "inline")

    def html(source: str) -> str:
        source = re.sub(r"\]\((\d\d_\w+)\.ipynb\)", r"](\1.html)", source)  # the other notebooks are pages, too
        return MarkdownWithMath(renderer=MathML(escape=False)).render(source)

    content = nbformat.read(notebook, as_version=4)
    if preface:
        content.cells.insert(0, nbformat.v4.new_markdown_cell(preface))
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        cell.metadata["transient"] = {"remove_source": cell.metadata.get("jupyter", {}).get("source_hidden", False)}
        outputs = []
        for out in cell.get("outputs", []):
            data = out.get("data", {})
            if figure := data.get("application/vnd.plotly.v1+json"):
                out.data = {"text/html": _drawn(go.Figure(data=figure["data"], layout=figure["layout"]))}
            elif "window.PlotlyConfig" in data.get("text/html", ""):
                continue  # where the notebook itself has plotly's script from
            outputs.append(out)
        if cell.cell_type == "code":
            cell.outputs = outputs
    exporter = HTMLExporter(raw_template=_NOTEBOOK, filters={"markdown2html": html})
    exporter.register_preprocessor(CoalesceStreamsPreprocessor, enabled=True)  # of a progress bar its last state
    resources = {"plotly": get_plotlyjs(), "metadata": {"name": Path(notebook).stem}}
    body, _ = exporter.from_notebook_node(content, resources)
    with written_aside(Path(output)) as aside:
        aside.write_text(body, encoding="utf-8")


# Fonts that know where an index stands: what a browser takes by itself need not be one of them
_FONTS = "font-family: 'Latin Modern Math', 'STIX Two Math', 'Cambria Math', 'DejaVu Math TeX Gyre', math"


def mathml(latex: str, display: str) -> str:
    """A formula as browsers draw it; script letters by their own code points, which is what they know of script."""
    from latex2mathml.converter import convert  # pyright: ignore[reportMissingImports]

    def script(letter: re.Match[str]) -> str:
        with suppress(KeyError):
            return f"<mi>{unicodedata.lookup(f'MATHEMATICAL SCRIPT CAPITAL {letter[1]}')}</mi>"
        return f"<mi>{unicodedata.lookup(f'SCRIPT CAPITAL {letter[1]}')}</mi>"

    formula = convert(latex.strip(), display=display).replace("<mrow>", f'<mrow style="{_FONTS}">', 1)
    return re.sub(r'<mi mathvariant="script">([A-Z])</mi>', script, formula)
