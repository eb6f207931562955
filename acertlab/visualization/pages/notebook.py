"""The page of an executed notebook, with figures that are drawn and formulas that browsers know."""

import re
import unicodedata
from contextlib import suppress
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from acertlab._optional import need
from acertlab.data.files import written_aside
from acertlab.visualization.pages.template import drawn

# A figure's script stands in the page's head once; formulas are MathML, which browsers draw by themselves. What a cell
# tells while it runs is no error and not shown as one.
_NOTEBOOK = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}<script>{{ resources.plotly }}</script>{% endblock %}
{% block html_head_js_mathjax %}<style>
.highlight pre { white-space: pre-wrap }
.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.stderr"] { background: none }</style>{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}"""


def notebook_page(notebook: str | Path, output: str | Path, preface: str = "") -> None:
    """Write an executed notebook as one HTML page that needs no network, atomically; ``preface`` (Markdown) above it.

    Of widgets the page has what stands below them, a still picture. ValueError where a figure cannot be drawn.
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
                out.data = {"text/html": drawn(go.Figure(data=figure["data"], layout=figure["layout"]))}
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
