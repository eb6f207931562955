"""A notebook in a JupyterLab in a browser: running it, moving its widgets, reading its figures, looking at it."""

import base64
import io
import os
import shutil
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WAIT = 240  # seconds that anything may take on a busy machine
SETTINGS = {  # of JupyterLab: no question at the start, and cells are in the page whether or not they are in view
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},
}


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

    def ready(self) -> None:
        """Waits for the notebook and its kernel."""
        self.until(lambda: self.page.locator(".jp-Notebook .jp-CodeCell").count(), "the notebook")
        assert self.page.evaluate(STATE)["notebooks"] == [self.notebook]
        self.until(lambda: "| Idle" in self.page.inner_text("body"), "a kernel")

    def run_all(self) -> None:
        """Runs every cell, to its end."""
        self.page.get_by_text("Run", exact=True).first.click()
        self.page.get_by_text("Run All Cells", exact=True).click()
        self.until(lambda: self.page.evaluate(FINISHED), "the notebook's cells")
        assert self.page.evaluate(FAILED) == []

    def look(self, theme: str, width: int, name: str = "") -> None:
        """In JupyterLab's light or dark theme and in a window so wide nothing is cut, covered or glaring."""
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.evaluate(THEME, theme)
        self.until(lambda: self.page.evaluate(IS_LIGHT) == (theme == "Light"), f"the theme {theme}")
        faults = []

        def settled() -> bool:  # figures take their new width
            done = self.page.evaluate(SETTLED)
            faults[:] = self.page.evaluate(FAULTS)
            return done and not faults

        self.until(settled, f"no faults, {theme}, {width} pixels wide", lambda: faults)
        for place, plot in enumerate(self.shown()):
            pixels = np.asarray(Image.open(io.BytesIO(plot.screenshot())).convert("L"), dtype=int)
            corner = pixels[3, 3]
            assert (corner > 225) if theme == "Light" else (corner < 60), (self.notebook, theme, place, corner)
            assert np.abs(pixels - corner).max() > 120, (self.notebook, theme, place)  # its text can be read
        self.to_the_point()
        stem = f"{Path(self.notebook).stem}_{width}_{theme.lower()}"
        self.page.screenshot(path=kept(self.folder, f"{stem}_{name}" if name else stem))

    def shown(self) -> list[Any]:
        """The notebook's first figures."""
        return [plot for plot in self.page.locator(".js-plotly-plot").all()[:4] if plot.is_visible()]

    def to_the_point(self) -> None:
        """Scroll to what there is to see."""
        self.page.locator(".js-plotly-plot").nth(1).scroll_into_view_if_needed()

    def toolbar(self) -> None:
        """Plotly's toolbar comes with the mouse, has no logo, and covers no title."""
        plot = self.page.locator(".js-plotly-plot").first
        plot.scroll_into_view_if_needed()
        self.page.mouse.move(1, 1)
        self.until(lambda: plot.evaluate(TOOLBAR)["opacity"] == 0, "no toolbar")
        plot.hover(position={"x": 200, "y": 150})
        self.until(lambda: plot.evaluate(TOOLBAR)["opacity"] == 1, "the toolbar")
        bar = plot.evaluate(TOOLBAR)
        assert bar["buttons"] >= 3 and not bar["logo"] and not bar["over"], bar


@dataclass
class Shown(Opened):
    """The same, whose cells have all been run, and the cell that holds an explorer."""

    cell: Any

    def figures(self) -> list[dict]:
        """Title and traces of every figure of the cell that is in view, in the order of the page."""
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

    def open_tab(self, name: str) -> None:
        self.cell.locator(".lm-TabBar-tab", has_text=name).click()

    def in_view(self, height: int) -> None:
        """Scroll to the explorer, all of which must be in view in a window so high."""
        self.to_the_point()
        output = self.cell.locator(".jp-OutputArea").first
        needs, has = output.evaluate(
            "area => [area.offsetHeight, document.querySelector('.jp-NotebookPanel-notebook').clientHeight]"
        )
        window = self.page.viewport_size["height"]
        assert needs <= has + height - window, f"{needs} pixels where there are {has} in a window of {window}"

    def shown(self) -> list[Any]:
        """The notebook's first figures and those of the explorer that are in view."""
        plots = self.cell.locator(".js-plotly-plot").all()
        return super().shown() + [plot for plot in plots if plot.is_visible()]

    def to_the_point(self) -> None:
        """Scroll to the explorer."""
        self.cell.locator(".jp-OutputArea").first.evaluate("area => area.scrollIntoView()")

    def picture(self, name: str) -> None:
        """Of the explorer alone, in few colours: a small file."""
        self.look("Light", 1400)
        path = Path(os.environ.get("README_PICTURES") or self.folder) / f"{name}.png"
        self.cell.locator(".jp-OutputArea").first.screenshot(path=path)
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


# Arrays come to plotly as typed arrays; a NaN has no JSON
FIGURES = """cell => {
    const plain = value => value === null || typeof value === 'string' ? value :
        [...value].map(v => Number.isNaN(v) ? null : v);
    const traces = gd => gd.data.map(trace => Object.fromEntries(
        ['name', 'source', 'x', 'y'].map(key => [key, plain(trace[key] ?? null)])));
    const drawn = gd => [...gd.querySelectorAll('.imagelayer image')].map(image => image.getAttribute('href') ||
        image.getAttributeNS('http://www.w3.org/1999/xlink', 'href'));
    return [...cell.querySelectorAll('.js-plotly-plot')].filter(gd => gd.data && gd.offsetWidth).map(
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
THEME = "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme: `JupyterLab ${theme}` })"
IS_LIGHT = "() => document.body.dataset.jpThemeLight === 'true'"
SETTLED = """async () => {
    const widths = () => [...document.querySelectorAll('.js-plotly-plot .main-svg')].map(svg => svg.clientWidth).join();
    const before = widths();
    await new Promise(resolve => setTimeout(resolve, 300));
    return before === widths();
}"""
TOOLBAR = """gd => {
    const bar = gd.querySelector('.modebar'), title = gd.querySelector('.gtitle');
    const [a, b] = [bar, title].map(part => part.getBoundingClientRect());
    const over = a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
    const opacity = Number(getComputedStyle(bar.querySelector('.modebar-group')).opacity);
    return { opacity, buttons: bar.querySelectorAll('.modebar-btn').length, over,
             logo: Boolean(bar.querySelector('.plotlyjsicon')) };
}"""
# What a reader would complain of: texts over each other, figures wider than their room, short sliders, cut labels
FAULTS = """() => {
    const faults = [], seen = part => part.offsetWidth > 0, box = part => part.getBoundingClientRect();
    const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1;
    for (const gd of [...document.querySelectorAll('.js-plotly-plot')].filter(seen)) {
        const title = gd.layout?.title?.text;
        for (const what of ['.textpoint', '.xtick text', '.ytick text']) {
            const level = text => text.textContent.trim() && !/rotate\\(-?[1-9]/.test(text.getAttribute('transform'));
            const texts = [...gd.querySelectorAll(what)].filter(level).map(box);
            texts.forEach((a, i) => texts.slice(i + 1).forEach(
                b => meet(a, b) && faults.push(`${title}: ${what} over each other`)));
        }
        const [name, legend] = ['.gtitle', '.legend .bg'].map(part => gd.querySelector(part));
        if (name?.textContent && legend && meet(box(name), box(legend))) faults.push(`${title}: legend over it`);
        if (box(gd).right > box(gd.closest('.jp-OutputArea-output')).right + 1)
            faults.push(`${title}: wider than its room`);
    }
    for (const slider of [...document.querySelectorAll('.noUi-target')].filter(seen))
        if (slider.offsetWidth < 150) faults.push(`a slider of ${slider.offsetWidth} pixels`);
    const texts = '.widget-html-content, .widget-tab > .lm-TabBar .lm-TabBar-tabLabel, .widget-button';
    for (const text of [...document.querySelectorAll(texts)].filter(seen))
        if (text.scrollWidth > text.clientWidth + 1) faults.push(`cut: ${text.innerText.slice(0, 60)}`);
    return faults;
}"""
STATE = """() => {
    const texts = (where, what) => [...where.querySelectorAll(what)].map(found => found.innerText.trim());
    return {
        cells: (window.jupyterapp.shell.currentWidget?.content?.widgets ?? []).map(cell => cell.model).filter(
            model => model.type === 'code').map(
            model => [String(model.executionCount ?? ''), model.sharedModel.getSource().split('\\n')[0]]),
        notebooks: texts(document, '.lm-DockPanel-tabBar .lm-TabBar-tabLabel'),
        dialogs: texts(document, '.jp-Dialog'),
        status: texts(document, '#jp-main-statusbar')[0],
    };
}"""
FINISHED = f"""() => {{
    const prompts = ({STATE})().cells.map(([prompt, _]) => prompt);
    return ({FAILED})().length > 0 || (prompts.length > 5 && prompts.every(text => text !== ""));
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
