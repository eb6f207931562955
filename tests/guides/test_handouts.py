"""Every notebook as a page that is complete without a network: `make handouts`.

In `make test` the pages are made of what nbval executed, which ACERTLAB_EXECUTED names; else the notebooks are run here
with small parameters. The command itself is run from the wheel (test_wheel.py).
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from acertlab.__main__ import _executed
from acertlab.visualization.pages.notebook import notebook_page
from tests.guides.test_exercises import SMALL

FEWER = {"06_beyond_ibp": {"epochs": 8, "images": 20}}
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FIGURE = "application/vnd.plotly.v1+json"
# What a reader would find missing: formulas as they were typed, and figures without a drawn trace
TEX = r"""() => [...document.querySelectorAll('.jp-RenderedMarkdown')].flatMap(
    text => text.innerText.match(/\$[^$]+\$|\\[a-zA-Z]+|\\[\[(]/g) ?? [])"""
DRAWN = """() => [...document.querySelectorAll('.js-plotly-plot')].map(
    figure => figure.querySelectorAll('.mlayer path, .mlayer image, .mlayer text').length)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        yield None
        return
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_handout_is_complete_without_a_network(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, browser: Any
) -> None:
    if executed := os.environ.get("ACERTLAB_EXECUTED"):
        shutil.copy(Path(executed, notebook.name), tmp_path)
        notebook_page(tmp_path / notebook.name, (tmp_path / notebook.name).with_suffix(".html"))
    else:
        monkeypatch.setenv("ACERTLAB_RUNS", str(tmp_path / "runs"))
        _executed(notebook, tmp_path, SMALL[notebook.stem] | FEWER.get(notebook.stem, {}))
    executed = nbformat.read(tmp_path / notebook.name, as_version=4)
    code = [cell for cell in executed.cells if cell.cell_type == "code"]
    figures = [sum(FIGURE in output.get("data", {}) for output in cell.outputs) for cell in code]
    for cell, drawn_below in zip(code, figures[1:], strict=False):  # a still picture below what only a kernel can show
        assert drawn_below or "skip-execution" not in cell.metadata.get("tags", [])
    assert any(figures)
    if browser is None:
        pytest.skip("the page was made but not opened; no chromium on the PATH: apt-get install chromium")
    with browser.new_context(offline=True) as context:
        page, said, asked = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((tmp_path / notebook.name).with_suffix(".html").as_uri())
        page.wait_for_function(
            f"() => document.querySelectorAll('.js-plotly-plot').length == {sum(figures)}", timeout=60_000
        )
        page.wait_for_function(f"() => ({DRAWN})().every(count => count > 0)", timeout=60_000)
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == [] and said == []
        assert page.evaluate(TEX) == []
        formulas = sum(cell.source.count("$$") for cell in executed.cells if cell.cell_type == "markdown") // 2
        assert page.locator("math[display=block]").count() == formulas
