"""The page of a notebook: figures and formulas are there without a network."""

from pathlib import Path

import nbformat
import plotly.io
import pytest

from acertlab.visualization.pages.notebook import notebook_page
from acertlab.visualization.radius import radius_histogram
from tests.helpers.html_page import Page


def test_a_notebooks_page_draws_figures_once_and_formulas_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("latex2mathml", reason="latex2mathml is not installed: pip install -e '.[dev]'")
    v4, figure = nbformat.v4, radius_histogram([0.0, 0.1, 0.2], 0.2)
    script = plotly.io.renderers["notebook_connected"].config  # what a live notebook has, and a page must not ask for
    shown = plotly.io.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict())
    shown |= plotly.io.renderers["notebook_connected"].to_mimebundle(figure.to_dict())
    start = {"text/html": f"<script>window.PlotlyConfig = {script}; import 'https://cdn.plot.ly/plotly.js'</script>"}
    cells = [
        v4.new_markdown_cell(r"Of $\mathcal B(x, \varepsilon)$, in `code of $5$`:" "\n\n$$R < 0.$$"),
        v4.new_code_cell("hidden()", metadata={"jupyter": {"source_hidden": True}}, outputs=[]),
        v4.new_code_cell("shown()", outputs=[v4.new_output("display_data", data) for data in (start, shown)]),
    ]
    nbformat.write(v4.new_notebook(cells=cells, metadata={"widgets": {"state": {}}}), tmp_path / "one.ipynb")
    notebook_page(tmp_path / "one.ipynb", tmp_path / "one.html", preface="**Said first**")
    html, page = (tmp_path / "one.html").read_text(), Page(tmp_path / "one.html")
    assert [link for link in page.loads if not link.startswith("#")] == [] and "cdn.plot.ly/plotly" not in html
    assert html.count("Plotly.newPlot(") == 1 and html.count("<math") == 2 and "ℬ" in html
    assert page.text.index("Said first") < page.text.index("code of $5$") and "varepsilon" not in page.text
    assert "shown()" in page.text and "hidden()" not in page.text
