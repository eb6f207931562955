"""Notebooks 01 and 03 in a real JupyterLab, in a real browser: keys move every control, the figures and numbers follow.

What the page shows is read from the figures themselves (plotly's `gd.data`), and compared with what the package
computes for the same position. Screenshots go into the folder that ACERTLAB_ARTEFACTS names, or a temporary one.
"""

import base64
import html
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from PIL import Image

import acertlab as al
from acertlab.analysis import tradeoff
from acertlab.data.run import load_run
from acertlab.data.run_table import load_radii, load_runs
from acertlab.visualization import widgets

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")

WAIT = 240  # seconds that anything may take on a busy machine
SETTINGS = {  # of JupyterLab: no question at the start, and cells are in the page whether or not they are in view
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}
# anywidget gives each widget two seconds to load, which a machine that runs other tests beside may not have
PATIENCE = "AbortSignal.timeout = (given => ms => given.call(AbortSignal, Math.max(ms, 300_000)))(AbortSignal.timeout)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of both notebooks; 01 trains as briefly as it may, into a folder that the test can read."""
    folder = tmp_path_factory.mktemp("lab")
    for name, changed in (("01_certified_radius", {"epochs": 3, "run_dir": str(folder / "run")}), ("03_pareto", {})):
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        parameters = next(cell for cell in notebook.cells if cell.cell_type == "code")
        for key, value in changed.items():
            parameters.source, times = re.subn(rf"(?m)^{key} = \S+", f"{key} = {value!r}", parameters.source)
            assert times == 1
        nbformat.write(notebook, folder / f"{name}.ipynb")
    for name, content in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def lab(folder: Path, synthetic_runs: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves the copies, with synthetic runs to show."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--notebook-dir={folder}",
    ]
    environment = os.environ | {"ACERTLAB_RUNS": str(synthetic_runs), "OMP_NUM_THREADS": "1"}
    environment |= {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    with (folder / "lab.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: server.poll() is not None or answers(f"{address}/api"), "JupyterLab's answer")
        assert server.poll() is None, f"JupyterLab did not start: {(folder / 'lab.log').read_text()[-2000:]}"
        yield address
    finally:
        server.terminate()
        server.wait(30)


def answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address, timeout=5).close()
    except OSError:
        return False
    return True


def until(true: Callable[[], Any], what: str, pause: Callable[[], None] = lambda: time.sleep(0.2)) -> None:
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline, f"waited {WAIT} s for {what}"
        pause()


def kept(folder: Path, name: str) -> Path:
    """Where a screenshot goes."""
    path = Path(os.environ.get("ACERTLAB_ARTEFACTS") or folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@dataclass
class Opened:
    """A page with one notebook."""

    page: Any
    notebook: str
    folder: Path
    errors: list[str]

    def until(self, true: Callable[[], Any], what: str, found: Callable[[], Any] = lambda: "") -> None:
        """Waits; a failure tells what was found instead and what JupyterLab is at, and leaves a screenshot."""
        try:
            until(true, what, lambda: self.page.wait_for_timeout(200))
        except AssertionError as error:
            path = kept(self.folder, f"{Path(self.notebook).stem}_failed")
            self.page.screenshot(path=path)
            raise AssertionError(f"{error}; {found()}\n{self.report()}\nscreenshot: {path}") from None

    def report(self) -> str:
        state = self.page.evaluate(STATE)
        cells = [f"  {prompt:<6} {first}" for prompt, first in state.pop("cells")]
        said = (self.folder / "lab.log").read_text()[-1500:]
        return "\n".join([f"{state}", *cells, f"errors in the browser: {self.errors}", f"JupyterLab said: {said}"])

    def run_all(self) -> None:
        """Runs every cell, to its end."""
        self.until(lambda: self.page.locator(".jp-Notebook .jp-CodeCell").count(), "the notebook")
        assert self.page.evaluate(STATE)["notebooks"] == [self.notebook]
        self.until(lambda: "| Idle" in self.page.inner_text("body"), "a kernel")
        self.page.get_by_text("Run", exact=True).first.click()
        self.page.get_by_text("Run All Cells", exact=True).click()
        self.until(lambda: self.page.evaluate(FINISHED), "the notebook's cells")
        assert self.page.evaluate(FAILED) == []


@dataclass
class Shown(Opened):
    """The same, whose cells have all been run, and the cell that holds an explorer."""

    cell: Any

    def figures(self) -> list[dict]:
        """Title and traces of every figure of the cell, in the order of the page."""
        return self.cell.evaluate(FIGURES)

    def press(self, target: Any, key: str, times: int = 1) -> None:
        target.focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def values(self) -> list[float]:
        """Where the sliders stand."""
        return self.cell.evaluate(SLIDERS)

    def wait_for(self, wanted: Callable[[], dict[str, go.Figure]]) -> None:
        """Until the cell's figures hold what the package computes for where the controls stand."""
        differs = ["nothing yet"]

        def agree() -> bool:
            figures = wanted().values()
            differs[:] = differences(self.figures(), list(figures))
            return not differs

        self.until(agree, "figures", lambda: differs)

    def click(self, figure: int, trace: int, point: int) -> None:
        """A click of the mouse on a point of a figure of the cell, once plotly has seen the mouse there."""
        plot = self.cell.locator(".js-plotly-plot").nth(figure)
        plot.scroll_into_view_if_needed()
        x, y = plot.evaluate(PIXEL, [trace, point])

        def hovered() -> bool:
            self.page.mouse.move(x - 3, y - 3)
            self.page.mouse.move(x, y, steps=3)
            self.page.wait_for_timeout(100)
            return [trace, point] in plot.evaluate(HOVERED)

        self.until(hovered, f"plotly to see the mouse at {x:.0f}, {y:.0f}", lambda: plot.evaluate(HOVERED))
        self.page.mouse.down()
        self.page.wait_for_timeout(50)
        self.page.mouse.up()

    def picture(self, name: str) -> None:
        self.cell.locator(".jp-OutputArea").first.screenshot(path=kept(self.folder, name))


EMPTY_SCRIPT = {"content-type": "text/javascript", "access-control-allow-origin": "*"}
# Arrays come to plotly as typed arrays; a NaN has no JSON
FIGURES = """cell => {
    const plain = value => value === null || typeof value === 'string' ? value :
        [...value].map(v => Number.isNaN(v) ? null : v);
    const traces = gd => gd.data.map(trace => Object.fromEntries(
        ['name', 'source', 'x', 'y'].map(key => [key, plain(trace[key] ?? null)])));
    const drawn = gd => [...gd.querySelectorAll('.imagelayer image')].map(image => image.getAttribute('href') ||
        image.getAttributeNS('http://www.w3.org/1999/xlink', 'href'));
    return [...cell.querySelectorAll('.js-plotly-plot')].filter(gd => gd.data).map(
        gd => ({ title: gd.layout.title.text, traces: traces(gd), drawn: drawn(gd) }));
}"""
SLIDERS = """cell => [...cell.querySelectorAll('.noUi-target')].map(slider => Number(slider.noUiSlider.get(true)))"""
FAILED = """() => [...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.error"]')]
    .map(error => error.innerText)"""
# Where a point of a figure is in the page; and which points plotly has under the mouse
PIXEL = """(gd, [trace, point]) => {
    const { xaxis, yaxis } = gd._fullLayout, box = gd.getBoundingClientRect(), { x, y } = gd._fullData[trace];
    return [box.left + xaxis._offset + xaxis.c2p(x[point]), box.top + yaxis._offset + yaxis.c2p(y[point])];
}"""
HOVERED = """gd => (gd._hoverdata ?? []).map(found => [found.curveNumber, found.pointNumber])"""
STATE = """() => {
    const texts = (where, what) => [...where.querySelectorAll(what)].map(found => found.innerText.trim());
    const first = cell => texts(cell, '.cm-line')[0] ?? '';
    return {
        cells: [...document.querySelectorAll('.jp-CodeCell')].map(
            cell => [texts(cell, '.jp-InputPrompt')[0] ?? '', first(cell)]),
        notebooks: texts(document, '.lm-DockPanel-tabBar .lm-TabBar-tabLabel'),
        dialogs: texts(document, '.jp-Dialog'),
        status: texts(document, '#jp-main-statusbar')[0],
    };
}"""
FINISHED = f"""() => {{
    const prompts = ({STATE})().cells.map(([prompt, _]) => prompt);
    return ({FAILED})().length > 0 || (prompts.length > 5 && prompts.every(text => /\\[\\d+\\]:/.test(text)));
}}"""


def differences(shown: list[dict], wanted: list[go.Figure]) -> list[str]:
    """In what figures in the page differ from those of the package."""
    if len(shown) != len(wanted):
        return [f"{len(shown)} figures instead of {len(wanted)}"]
    found = []
    for figure, plain in zip(shown, wanted, strict=True):
        if (figure["title"] or "") != (plain.layout.title.text or ""):
            found.append(f"{figure['title']!r} instead of {plain.layout.title.text!r}")
        if len(figure["traces"]) != len(plain.data):
            found.append(f"{figure['title']}: {len(figure['traces'])} traces")
            continue
        pictures = [trace.source for trace in plain.data if trace.type == "image"]
        if figure["drawn"] != pictures:
            apart = list(map(pixels_apart, figure["drawn"], pictures))
            found.append(f"{figure['title']}: {len(figure['drawn'])} other pictures are drawn: {apart}")
        for trace, other in zip(figure["traces"], plain.data, strict=True):
            other = other.to_plotly_json()
            apart = [key for key in ("x", "y") if not alike(trace.get(key), other.get(key))]
            apart += [key for key in ("name", "source") if trace.get(key) != other.get(key)]
            found += [f"{figure['title']}, {other.get('name')}: {', '.join(apart)}"] if apart else []
    return found


def pixels_apart(shown: str | None, wanted: str) -> str:
    """How much two pictures in data addresses differ: by rounding, or as two pictures do."""
    if not (shown or "").startswith("data:"):
        return f"{shown} instead of a picture"
    one, other = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))), dtype=int)
        for address in (shown, wanted)
    )
    if one.shape != other.shape:
        return f"{one.shape} instead of {other.shape}"
    return f"{np.count_nonzero(one != other)} values, by up to {np.abs(one - other).max()} of 255"


def alike(shown: Any, wanted: Any) -> bool:
    if wanted is None or shown is None:
        return (shown is None or len(shown) == 0) and (wanted is None or len(wanted) == 0)
    if len(shown) != len(wanted):
        return False
    if any(isinstance(value, str) for value in wanted):
        return list(shown) == list(wanted)
    numbers = np.array([np.nan if value is None else value for value in shown], dtype=float)
    return np.allclose(numbers, np.asarray(wanted, dtype=float), rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, lab: str, folder: Path) -> Iterator[Callable[[str, str], Shown]]:
    """Opens a notebook, runs all its cells and finds the one with the given source; afterwards there are no errors."""
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 1300, "height": 1500})
    page.set_default_timeout(1000 * WAIT)
    page.add_init_script(PATIENCE)
    # plotly's figures name its script on a CDN, for readers outside of JupyterLab; here nothing is needed from there
    page.route(lambda url: not url.startswith(lab), lambda route: route.fulfill(body="", headers=EMPTY_SCRIPT))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(f"{m.text} {m.location}") if m.type == "error" else None)

    def open_(notebook: str, source: str) -> Shown:
        # a workspace of its own: in the default one JupyterLab opens the notebooks of earlier pages again, too, whose
        # cells nobody runs
        page.goto(f"{lab}/lab/workspaces/{uuid.uuid4().hex}/tree/{notebook}")
        Opened(page, notebook, folder, errors).run_all()
        cell = page.locator(".jp-CodeCell", has_text=source)
        cell.locator(".noUi-handle").first.wait_for(state="attached")
        cell.scroll_into_view_if_needed()
        return Shown(page, notebook, folder, errors, cell)

    yield open_
    page.close()
    assert errors == []


def test_the_pareto_explorer(opened: Callable[[str, str], Shown], synthetic_runs: Path) -> None:
    runs = load_runs(synthetic_runs)
    networks = tradeoff.pool_seeds(runs, load_radii(runs))
    start = widgets.first_view(networks)
    lab = opened("03_pareto.ipynb", "widgets.pareto_explorer(")
    handles, lists = lab.cell.locator(".noUi-handle"), lab.cell.locator("select")
    kappas, moved, chosen = [round(0.01 * i, 2) for i in range(101)], {}, {}

    def view() -> widgets.View:
        at = dict(zip(("kappa", "eps_max", "eps", "accuracy"), lab.values(), strict=True))
        at["kappa"] = kappas[round(at["kappa"])]
        # where nobody moved a slider it may show the step next to its value
        return replace(start, **{name: at[name] for name in moved}, **chosen)

    def wanted() -> dict[str, go.Figure]:
        return widgets.pareto_figures(networks, view())

    lab.wait_for(wanted)
    assert lab.values()[1] == pytest.approx(0.2)
    moves = (("kappa", "ArrowRight", 3), ("eps_max", "ArrowLeft", 5), ("eps", "ArrowRight", 4), ("accuracy", "Home", 1))
    for slider, (name, key, times) in enumerate(moves):
        before, stood = lab.figures(), lab.values()[slider]
        lab.press(handles.nth(slider), key, times)
        moved[name] = True
        lab.wait_for(wanted)
        assert lab.values()[slider] != stood
        assert lab.figures() != before
        for text in widgets.pareto_texts(networks, view()).values():  # the numbers in words, too
            assert squeezed(re.sub("<[^>]*>", "", text)) in squeezed(lab.cell.inner_text())
    assert "interpolated between kappa = 0 and 0.5" in lab.cell.inner_text()
    for place, (name, options) in enumerate({"picked": (0, 1, 2), "first": networks.methods}.items()):
        after = options[(options.index(getattr(start, name)) + 1) % len(options)]
        lists.nth(place).select_option(index=options.index(after))  # JupyterLab keeps the arrow keys for its cells
        chosen[name] = after
        lab.wait_for(wanted)
    # the one network of the standard method, for those of ACERT lie upon each other here; behind it is the map
    chosen["picked"] = [point.method for point in networks.points].index("standard")
    before = lab.figures()
    lab.click(0, 1 + networks.methods.index("standard"), 0)
    lab.wait_for(wanted)
    assert lab.figures() != before
    lab.picture("pareto_explorer")


def test_the_radius_explorer(opened: Callable[[str, str], Shown], folder: Path) -> None:
    lab = opened("01_certified_radius.ipynb", "widgets.radius_explorer(")
    data, model = al.load_dataset("digits"), load_run(folder / "run").load_model()
    x, y = al.to_float(data.test_x[:200]), data.test_y[:200]
    found = al.certified_radius(model, x, y, 0.2)
    handles = lab.cell.locator(".noUi-handle")

    inside = (found.status == al.RadiusStatus.CONVERGED).nonzero()[:, 0].tolist()
    place = {"image": inside[0], "eps": float(found.radius[inside[0]])}  # where it starts

    def wanted() -> dict[str, go.Figure]:
        i, eps = place["image"], place["eps"]
        return widgets.radius_figures(model, x[i : i + 1], y[i : i + 1], eps, 0.2, float(found.radius[i]), data.classes)

    lab.wait_for(wanted)
    for name, key, times in (
        ("image", "ArrowRight", 2),
        ("eps", "ArrowRight", 7),
        ("eps", "Home", 1),
        ("eps", "End", 1),
    ):
        slider, before = ("image", "eps").index(name), lab.figures()
        lab.press(handles.nth(slider), key, times)
        place[name] = lab.values()[slider] if name == "eps" else round(lab.values()[slider])
        lab.wait_for(wanted)
        assert lab.figures() != before
        says_so(lab, model, x, y, **place)
    lab.press(handles.nth(0), "Home")
    lab.press(handles.nth(0), "ArrowRight", inside[-1])
    place["image"] = inside[-1]
    lab.wait_for(wanted)  # a button's message may overtake a slider's
    for name, ends in (("a hair beyond", found.upper), ("to its certified radius", found.radius)):
        lab.press(lab.cell.get_by_role("button", name=name), "Enter")
        place["eps"] = float(ends[inside[-1]])
        lab.wait_for(wanted)
        says_so(lab, model, x, y, **place)
    lab.picture("radius_explorer")


def says_so(lab: Shown, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, image: int, eps: float) -> None:
    """The verdict in the page is the one computed here: up to the radius certified, beyond it broken."""
    with torch.no_grad():
        margin = al.certified_margin(model, x[image : image + 1], y[image : image + 1], eps).item()
    verdict = "certified" if margin < 0 else "certificate broken"
    lab.until(lambda: f": {verdict}" in lab.cell.inner_text(), verdict)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", html.unescape(text))
