"""The Pareto explorer in a real JupyterLab, in a real browser: a key moves a slider, the numbers follow."""

import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from acertlab import widgets
from acertlab.runs import load_radii, load_runs

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "03_pareto.ipynb"
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")


@pytest.fixture
def lab(tmp_path: Path, synthetic_runs: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a copy of the notebook, with synthetic runs to show."""
    shutil.copy(NOTEBOOK, tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--notebook-dir={tmp_path}",
    ]
    environment = os.environ | {"ACERTLAB_RUNS": str(synthetic_runs), "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, server, tmp_path / "lab.log")
        yield f"{address}/lab/tree/{NOTEBOOK.name}"
    finally:
        server.terminate()
        server.wait(20)


def _wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api", timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


def shown_numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])", text)]


def test_a_key_moves_eps_max_and_the_table_follows(lab: str, synthetic_runs: Path) -> None:
    runs = load_runs(synthetic_runs)
    radii = load_radii(runs)
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        failures: list[str] = []
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook", timeout=90_000)
        page.wait_for_function("() => document.body.innerText.includes('| Idle')", timeout=90_000)  # the kernel is up
        page.wait_for_timeout(3000)
        page.get_by_text("Run", exact=True).first.click()
        page.get_by_text("Run All Cells", exact=True).click()
        _scroll_to_sliders(page)
        before = page.evaluate(SHOWN)
        page.locator(".noUi-handle").first.focus()
        for _ in range(5):
            page.keyboard.press("ArrowLeft")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and set(before) & set(page.evaluate(SHOWN)):
            page.wait_for_timeout(500)
        page.wait_for_timeout(1000)  # the last key's answer
        readout, table, title = page.evaluate(SHOWN)
        browser.close()
    eps_max = float(readout)
    assert eps_max < 0.2
    assert f"eps_max = {eps_max:.4g}" in title  # the figure follows too
    wanted = widgets.scores_at(runs, radii, 0.0, eps_max, 0.1)
    for row in wanted.itertuples(index=False):
        (line,) = (line for line in table.splitlines() if line.startswith(row.method))
        for value in (row.Acc, row.ACR, row.ART):
            assert any(math.isclose(value, number, rel_tol=1e-3, abs_tol=1e-3) for number in shown_numbers(line))
    assert not failures


SCROLL = """() => {
    const cells = [...document.querySelectorAll('.jp-Cell')];
    const cell = cells.find(cell => cell.innerText.includes('widgets.pareto_explorer(')) ?? cells.at(-1);
    cell?.scrollIntoView();
}"""


SHOWN = """() => {  // the first slider's number, the table's text and the first figure's title
    const cell = document.querySelector('.noUi-handle').closest('.jp-Cell');
    return [cell.querySelector('.widget-readout').innerText, cell.querySelector('table').innerText,
            cell.querySelector('.gtitle').textContent];
}"""


def _scroll_to_sliders(page: object) -> None:
    """JupyterLab draws only the cells in view: go down until the explorer's cell has been run and its sliders stand."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not page.query_selector(".noUi-handle"):
        page.evaluate(SCROLL)
        page.wait_for_timeout(1000)
    page.screenshot(path=Path(os.environ.get("ACERTLAB_SCREENSHOTS", tempfile.gettempdir())) / "pareto_explorer.png")
    page.locator(".noUi-handle").first.scroll_into_view_if_needed(timeout=10_000)
    page.wait_for_selector(".gtitle", timeout=60_000)
    page.wait_for_timeout(2000)
