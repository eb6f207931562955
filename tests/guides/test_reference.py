"""Every public name is documented, and its worked example runs."""

import doctest
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import acertlab as al

ROOT = Path(__file__).parents[2]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def run(name: str, text: str, names: dict) -> list[str]:
    """What the examples of a docstring said otherwise than it promises; `names` is what they may use, and adds to."""
    said: list[str] = []
    test = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    test.globs = names
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=said.append, clear_globs=False)
    return said


@pytest.fixture(scope="module")
def begun() -> dict:
    """What the package's own docstring begins with."""
    names: dict = {}
    assert run("acertlab", inspect.getdoc(al) or "", names) == []
    assert {"torch", "al", "model", "x", "y"} <= set(names)
    return names


@pytest.mark.parametrize("name", al.__all__)
def test_a_public_name_has_a_worked_example(
    name: str, begun: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = inspect.getdoc(getattr(al, name)) or ""
    assert ">>> " in text, f"al.{name} has no example that runs"
    assert run(name, text, dict(begun)) == []


@pytest.mark.parametrize("name", [name for name in al.__all__ if inspect.isfunction(getattr(al, name))])
def test_a_functions_docstring_names_every_argument(name: str) -> None:
    """In its own docstring, or in that of a function which this one says it is called as."""
    function = getattr(al, name)
    text = inspect.getdoc(function) or ""
    for other in re.findall(r"as (?:in )?`(?:acertlab\.)?(\w+)`", text):
        text += inspect.getdoc(getattr(al, other, None)) or ""
    missing = [p for p in inspect.signature(function).parameters if not re.search(rf"\b{p}\b", text)]
    assert not missing, f"al.{name} does not say what {', '.join(missing)} is"


def test_the_pages_hold_every_name_and_need_no_network(tmp_path: Path) -> None:
    """`make docs`, with one small handout."""
    pytest.importorskip("pdoc", reason="pdoc is not installed: pip install -e '.[dev]'")
    pytest.importorskip("latex2mathml", reason="latex2mathml is not installed: pip install -e '.[dev]'")
    (tmp_path / "handouts").mkdir()
    link = '<a href="../data/results/README.md">two errors</a>'  # as 03 has it
    (tmp_path / "handouts" / "01_certified_radius.html").write_text(f"<p>The box around an image</p>{link}")
    command = [sys.executable, ROOT / "docs" / "build.py", tmp_path / "handouts", tmp_path / "html"]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0 and "Warn" not in built.stderr, built.stderr[-3000:]
    first = (tmp_path / "html" / "acertlab.html").read_text()
    for name in al._NAMES:
        assert f'id="{name}"' in first, name
    for page in (tmp_path / "html").rglob("*.html"):
        for link in re.findall(r'href="([^"#:$]+)[#"]', page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), f"{page}: {link}"
    assert 'href="tutorials/01_certified_radius.html"' in first and 'href="acertlab/bounds/ibp.html"' in first
    assert "<table" in (tmp_path / "html" / "results.html").read_text(encoding="utf-8")
    formulas = sum((inspect.getdoc(getattr(al, name)) or "").count("$$") for name in al._NAMES) // 2
    assert formulas == first.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') > 3
    if CHROMIUM is None:
        pytest.skip("the pages were made but not opened; no chromium on the PATH: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page, asked = browser.new_context(offline=True).new_page(), []
        page.on("request", lambda request: asked.append(request.url))
        page.goto((tmp_path / "html" / "acertlab.html").as_uri(), wait_until="load")
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert page.locator("math").count() == formulas and "$$" not in page.inner_text("main")
        browser.close()
