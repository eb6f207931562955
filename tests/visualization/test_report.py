"""The page over many runs: it says what was computed, stands alone, and what cannot be analysed says why."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import plotly.io
import pytest

from acertlab.__main__ import main
from acertlab.analysis.fronts import analyse
from acertlab.data.files import read_json, write_json
from acertlab.data.run_table import load_runs
from acertlab.visualization.radius import radius_histogram
from acertlab.visualization.report import notebook_page, write_report
from tests.helpers.synthetic_runs import synthetic_radii, write_sweep

METHODS = {"fast-ibp": 1.0, "acert": 1.3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"), synthetic_radii(METHODS, n=100))


class Page(HTMLParser):
    """A page's text, tags, and whatever it would load from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.text, self.tags, self._inside = [], "", [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags.append(tag)
        self._inside.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        self._inside.append(tag)

    def handle_data(self, data: str) -> None:
        if not self._inside or self._inside[-1] not in ("script", "style") or not data.strip():
            self.text += data.replace("\xa0", " ")


def test_the_page_says_what_was_computed_and_loads_nothing(root: Path, tmp_path: Path) -> None:
    assert write_report(root, tmp_path / "page.html", resamples=50, progress=False) == []
    page = Page(tmp_path / "page.html")
    assert page.loads == []
    analysis = analyse(load_runs(root), resamples=50)
    for sentence in analysis.sentences:
        assert sentence in page.text
    assert "digits, eps_max = 0.2" in page.text and "All 18 runs" in page.text and "18 runs." in page.text
    drawn = re.findall(r"Plotly\.newPlot\(", (tmp_path / "page.html").read_text())
    assert len(drawn) == 1 + len(analysis.comparisons) + 1 + 5


def test_what_cannot_be_analysed_says_why_and_the_rest_is_there(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "runs/digits")
    other = tmp_path / "runs/mixed"
    shutil.copytree(root, other)
    for i, path in enumerate(sorted(other.iterdir())):
        write_json(path / "result.json", read_json(path / "result.json") | {"dataset": "<i>mine</i>", "epochs": i})
    (failed,) = write_report(tmp_path / "runs", tmp_path / "page.html", resamples=30, progress=False)
    assert failed.startswith("<i>mine</i>, eps_max = 0.2: runs: those with dataset")
    page = Page(tmp_path / "page.html")
    assert "differ in epochs" in page.text and "i" not in page.tags
    assert "ACERT dominates every other method" in page.text
    shutil.rmtree(tmp_path / "runs/digits")
    before = (tmp_path / "page.html").read_bytes()
    with pytest.raises(ValueError, match="differ in epochs"):
        write_report(tmp_path / "runs", tmp_path / "page.html", progress=False)
    assert (tmp_path / "page.html").read_bytes() == before


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(root), "--output", str(page), "--resamples", "30"]) == 0 and page.is_file()
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    (tmp_path / "empty/half").mkdir(parents=True)
    (tmp_path / "empty/half/config.json").write_text('{"dataset": "digits"}')
    for folder, message in (
        ("empty", "there is no finished run below .*empty .1 unfinished"),
        ("nowhere", "there is no folder of runs .*nowhere"),
    ):
        assert main(["report", str(tmp_path / folder), "--output", str(tmp_path / "none.html")]) == 1
        assert re.search(f"acertlab report: .*{message}", capsys.readouterr().err)
    assert main(["report", str(root), "--resamples", "3", "--output", str(tmp_path / "none.html")]) == 1
    assert "resamples: must be a whole number >= 20, not 3" in capsys.readouterr().err
    assert not (tmp_path / "none.html").exists()


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
