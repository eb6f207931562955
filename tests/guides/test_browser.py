"""Notebooks 01, 02, 03 and 06 in JupyterLab, in a real browser: keys move every control, figures and numbers follow.

02 and 06, which have no controls, are shown as nbval executed them where ACERTLAB_EXECUTED names the folder (see the
Makefile), else run here.

What the page shows is read from the figures themselves (plotly's `gd.data`), and compared with what the package
computes for the same position. In windows of 1400 and 900 pixels, light and dark, nothing is cut, covered or glaring,
and nothing fails in the browser's console. Screenshots go into the folder that ACERTLAB_ARTEFACTS names, or a temporary
one. The README's two, data/pareto_explorer.png and data/radius_explorer.png, are made by

    README_PICTURES=data python -m pytest tests/guides/test_browser.py -k explorer
"""

import html
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
import pytest
import torch
from nbformat.sign import NotebookNotary

import acertlab as al
from acertlab.analysis import tradeoff
from acertlab.data.run import SHIPPED_FRONTS, load_run
from acertlab.data.run_table import load_radii, load_runs
from acertlab.visualization import widgets
from tests.helpers.browser import CHROMIUM, FAULTS, SETTINGS, WAIT, Opened, Shown, answers, until

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt-get install chromium")
EXECUTED, OTHERS = os.environ.get("ACERTLAB_EXECUTED"), ("02_training", "06_beyond_ibp")
LOOKS = [("Light", 1400), ("Dark", 1400), ("Dark", 900), ("Light", 900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the notebooks, which train as briefly as they may; 01 into a folder that the test can read.

    What nbval executed is signed, as what a user ran is: else its scripts would not run.
    """
    folder = tmp_path_factory.mktemp("lab")
    changes = {
        "01_certified_radius": {"epochs": 3, "run_dir": str(folder / "run")},
        "02_training": {"budget": "smoke"},
        "03_pareto": {"dataset": "digits"},
        "06_beyond_ibp": {"epochs": 2, "images": 20},
    }
    for name, changed in changes.items():
        notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
        parameters = next(cell for cell in notebook.cells if cell.cell_type == "code")
        for key, value in changed.items():
            parameters.source, times = re.subn(rf"(?m)^{key} = \S+", f"{key} = {value!r}", parameters.source)
            assert times == 1
        nbformat.write(notebook, folder / f"{name}.ipynb")
    for name in OTHERS if EXECUTED else ():
        notebook = nbformat.read(Path(EXECUTED, f"{name}.ipynb"), as_version=4)
        NotebookNotary(data_dir=str(folder)).sign(notebook)
        nbformat.write(notebook, folder / f"{name}.ipynb")
    for name, content in SETTINGS.items():
        path = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def lab(folder: Path, synthetic_runs: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves the copies, with synthetic runs to show, and no dataset."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--IdentityProvider.token=",
        f"--notebook-dir={folder}",
        "--LabApp.expose_app_in_browser=True",  # for the theme
    ]
    environment = os.environ | {"ACERTLAB_RUNS": str(synthetic_runs), "OMP_NUM_THREADS": "1"}
    environment |= {"JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings")}
    environment |= {"ACERTLAB_DATA": str(folder / "nowhere"), "JUPYTER_DATA_DIR": str(folder)}
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = p.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, lab: str, folder: Path) -> Iterator[Callable[..., Any]]:
    """Opens a notebook, runs its cells and finds the one with the given source; afterwards there are no errors.

    While they run, so many ``others`` are at work on the machine: anywidget gives a model two seconds to load.
    """
    errors: list[str] = []
    page = browser.new_page(viewport={"width": 1400, "height": 800})
    page.set_default_timeout(1000 * WAIT)
    page.route(lambda url: not url.startswith(lab), lambda route: route.abort())  # no network: an error in the console
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda m: errors.append(f"{m.text} {m.location}") if m.type == "error" else None)

    def open_(notebook: str, source: str = "", run: bool = True, others: int = 0) -> Opened:
        # a workspace of its own: in the default one JupyterLab opens the notebooks of earlier pages again, too, whose
        # cells nobody runs
        page.goto(f"{lab}/lab/workspaces/{uuid.uuid4().hex}/tree/{notebook}")
        found = Opened(page, notebook, folder, errors)
        if run:
            found.ready()
        with busy(others):  # not before: JupyterLab's own start, which takes longest, is no matter
            if run:
                found.run_all()
            if not source:
                return found
            cell = page.locator(".jp-CodeCell", has_text=source)
            cell.locator(".noUi-handle").first.wait_for(state="attached")
            cell.scroll_into_view_if_needed()
            shown = Shown(page, notebook, folder, errors, cell)
            shown.until(shown.figures, "figures")
            return shown

    yield open_
    page.close()
    assert errors == []


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Others at work on the machine."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


TABS = {"Every radius": "curves", "One network": "picked_curve", "Its images": "picked_radii", "Equal accuracy": "pair"}


def test_the_pareto_explorer(opened: Callable[..., Shown], synthetic_runs: Path) -> None:
    runs = load_runs(synthetic_runs)
    networks = tradeoff.pool_seeds(runs, load_radii(runs))
    start = widgets.first_view(networks)
    lab = opened("03_pareto.ipynb", "widgets.pareto_explorer(", others=2)
    handles, lists = lab.cell.locator(".noUi-handle"), lab.cell.locator("select")
    kappas, moved, chosen, tab = [round(0.01 * i, 2) for i in range(101)], {}, {}, ["Every radius"]
    order = ("eps_max", "eps", "kappa", "accuracy")

    def view() -> widgets.View:
        at = dict(zip(order, lab.values(), strict=True))
        at["kappa"] = kappas[round(at["kappa"])]
        # where nobody moved a slider it may show the step next to its value
        return replace(start, **{name: at[name] for name in moved}, **chosen)

    def wanted() -> dict[str, go.Figure]:
        figures = widgets.pareto_figures(networks, view())
        return {name: figures[name] for name in ("tradeoff", TABS[tab[0]])}

    def open_tab(name: str) -> None:
        tab[0] = name
        lab.open_tab(name)
        lab.wait_for(wanted)

    lab.wait_for(wanted)
    assert lab.values()[0] == pytest.approx(0.2)
    moves = (("kappa", "ArrowRight", 3), ("eps_max", "ArrowLeft", 5), ("eps", "ArrowRight", 4), ("accuracy", "Home", 1))
    for name, key, times in moves:
        if name == "accuracy":
            open_tab("Equal accuracy")
        before, stood = lab.figures(), lab.values()[order.index(name)]
        lab.press(handles.nth(order.index(name)), key, times)
        moved[name] = True
        lab.wait_for(wanted)
        assert lab.values()[order.index(name)] != stood
        assert lab.figures() != before
        texts = widgets.pareto_texts(networks, view())  # the numbers in words, too
        assert squeezed(texts["pair_text" if name == "accuracy" else "kappa_text"]) in squeezed(lab.cell.inner_html())
    assert "interpolated between kappa = 0 and 0.5" in lab.cell.inner_html()
    chosen["first"] = networks.methods[(networks.methods.index(start.first) + 1) % len(networks.methods)]
    lists.nth(4).select_option(index=networks.methods.index(chosen["first"]))  # the arrow keys are JupyterLab's
    lab.wait_for(wanted)
    open_tab("One network")
    chosen["picked"] = (start.picked + 1) % 3
    lists.nth(3).select_option(index=chosen["picked"])
    lab.wait_for(wanted)
    # the one network of the standard method, for those of ACERT lie upon each other here; behind it is the map
    chosen["picked"] = [point.method for point in networks.points].index("standard")
    before = lab.figures()
    lab.click(0, 1 + networks.methods.index("standard"), 0)
    lab.wait_for(wanted)
    assert lab.figures() != before
    open_tab("Its images")
    the_shipped_runs(lab)
    the_front(lab)


def the_shipped_runs(lab: Shown) -> None:
    """What a clone without datasets sees: CIFAR-10's fronts, picked in the explorer, and images."""
    runs = widgets.load_beside_shipped("nowhere")
    choice = widgets.first_choice(runs)
    shipped = choice.of(runs)
    networks = tradeoff.pool_seeds(shipped, load_radii(shipped))
    lab.cell.locator("select").first.select_option(label="CIFAR-10")
    tabs = lab.cell.locator(".lm-TabBar-tab")
    lab.until(lambda: tabs.count() == 4, "its tabs")
    figures = widgets.pareto_figures(networks, widgets.first_view(networks))
    for name, part in TABS.items():
        lab.open_tab(name)
        shown = {part: figures[part] for part in ("tradeoff", part)}
        if name == "Its images":
            best = networks.points[widgets.first_view(networks).picked]
            shown["images"] = widgets.gallery_figure(widgets.gallery_of(best.paths))
        lab.wait_for(lambda shown=shown: shown)
        lab.in_view(800)  # what it takes on a laptop's screen
        if name in ("Its images", "Every radius"):
            lab.look("Light", 1400, name.split()[1])
            lab.in_view(800)
    lab.open_tab("Equal accuracy")
    lab.picture("pareto_explorer")
    lab.toolbar()
    lab.in_view(800)
    for theme, width in LOOKS:
        lab.look(theme, width)
    for name in TABS:  # in the narrow window
        lab.open_tab(name)
        lab.page.wait_for_timeout(500)
        assert lab.page.evaluate(FAULTS) == [], name


def the_front(lab: Shown) -> None:
    """The slider that moves a real network, at the end of the same page."""
    front, data = al.load_front(SHIPPED_FRONTS / "digits-acert"), al.load_dataset("digits")
    here, view = widgets.front_explorer(front, data), widgets.FrontView(front, data)
    stops = [kappa for _, kappa in here.controls["kappa"].options]
    place = {"kappa": here.controls["kappa"].value, "attack": False}

    def wanted() -> dict[str, go.Figure]:
        kappa, eps = place["kappa"], here.controls["eps"].value
        figures = {"tradeoff": go.Figure(view.tradeoff(kappa)), "curves": go.Figure(view.curves(kappa, eps))}
        return figures | {"images": view.images(kappa, place["attack"])}

    cell = lab.page.locator(".jp-CodeCell", has_text="widgets.front_explorer(")
    shown = Shown(lab.page, lab.notebook, lab.folder, lab.errors, cell)
    lab.page.set_viewport_size({"width": 1400, "height": 800})
    shown.to_the_point()
    shown.wait_for(wanted)
    for key, times in (("ArrowRight", 7), ("Home", 1), ("End", 1), ("ArrowLeft", 20)):
        shown.press(cell.locator(".noUi-handle").first, key, times)
        place["kappa"] = stops[round(shown.values()[0])]
        shown.wait_for(wanted)
        assert squeezed(view.text(place["kappa"], here.controls["eps"].value)) in squeezed(cell.inner_html())
    shown.press(cell.get_by_role("button", name="attack these images"), "Enter")
    place["attack"] = True
    shown.wait_for(wanted)
    for theme, width in LOOKS:
        shown.look(theme, width, "front")


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
        if key == "Home":  # at eps = 0 every interval is a stroke that one sees
            strokes = lab.cell.evaluate(STROKES)
            assert len(strokes) == 10 and min(strokes) >= 2, strokes
    lab.press(handles.nth(0), "Home")
    lab.press(handles.nth(0), "ArrowRight", inside[-1])
    place["image"] = inside[-1]
    lab.wait_for(wanted)  # a button's message may overtake a slider's
    for name, ends in (("a hair beyond", found.upper), ("to its certified radius", found.radius)):
        lab.press(lab.cell.get_by_role("button", name=name), "Enter")
        place["eps"] = float(ends[inside[-1]])
        lab.wait_for(wanted)
        says_so(lab, model, x, y, **place)
    lab.in_view(800)
    lab.picture("radius_explorer")
    for theme, width in LOOKS:
        lab.look(theme, width)


# How wide the bars of the logits are drawn, in pixels, with their outline
STROKES = """cell => [...cell.querySelectorAll('.barlayer path')].filter(path => path.getAttribute('d')).map(
    path => path.getBBox().width + parseFloat(getComputedStyle(path).strokeWidth))"""


@pytest.mark.parametrize("notebook", OTHERS)
def test_other_notebooks(opened: Callable[..., Opened], notebook: str) -> None:
    lab = opened(f"{notebook}.ipynb", run=not EXECUTED)
    lab.until(lambda: lab.page.locator(".js-plotly-plot .main-svg").count() > 3, "figures")
    for theme, width in LOOKS:
        lab.look(theme, width)


def says_so(lab: Shown, model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, image: int, eps: float) -> None:
    """The verdict in the page is the one computed here: up to the radius certified, beyond it broken."""
    with torch.no_grad():
        margin = al.certified_margin(model, x[image : image + 1], y[image : image + 1], eps).item()
    verdict = "certified" if margin < 0 else "certificate broken"
    lab.until(lambda: f": {verdict}" in lab.cell.inner_text(), verdict)


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", html.unescape(re.sub("<[^>]*>", "", text)))
