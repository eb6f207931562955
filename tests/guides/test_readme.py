"""The README's Python examples, and its model page's, run as they stand; training on MNIST is left to a person."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest

import acertlab as al
from acertlab.__main__ import _parser
from acertlab.data.run import PACKED, SHIPPED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MODEL = ROOT / "docs" / "your_model.md"
PAGES = [ROOT / "data/results/README.md", ROOT / "data/trials/README.md", ROOT / "tests/benchmarks/README.md"]


def test_the_examples_run_and_certify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    certify, report, training = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    odd, doubt = re.findall(r"```python\n(.*?)```", MODEL.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(certify, names)
    assert (names["result"].radius > 0).float().mean() > 0.5
    exec(report, names)
    assert "<html" in (tmp_path / "report.html").read_text()
    exec(doubt, names)
    radius, bracket = names["radius"], names["bracket"]
    assert (names["deployed"].radius <= names["sound"].radius).all() and (names["sound"].radius > 0).any()
    assert (bracket.attacked >= bracket.certified).all()
    assert names["x"].grad[(radius > 0) & (radius < 0.1)].any()
    assert "al.train(" in training
    exec(odd, names)
    said = capsys.readouterr().out
    assert said.startswith("Acc ") and " samples: " in said and "certified at eps = 8 " in said


@pytest.mark.skipif(not any(SHIPPED.glob(f"**/{PACKED}")), reason=f"there are no packed runs in {SHIPPED} yet")
def test_the_analysis_of_the_shipped_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    page = (ROOT / "data/results/README.md").read_text()
    (analysis,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "al.analyse" in block)
    monkeypatch.chdir(Path(__file__).parents[2])
    exec(analysis, {"al": al})
    assert "%" in capsys.readouterr().out


def test_both_commands_are_named_and_it_is_a_front_page() -> None:
    assert "make demo" in README and "make test" in README
    assert len(README.splitlines()) <= 128 and len(README.encode()) <= 8200


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "docs/your_model.md", *sorted(str(p.relative_to(ROOT)) for p in PAGES)]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_snippets_beside_the_data_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(block, {"al": al})


def test_every_command_is_understood() -> None:
    commands = re.findall(r"(?m)(?:^|`)((?:acertlab|papermill) [^`#\n]+)", README)
    for program, *words in map(shlex.split, commands):
        if program == "acertlab":
            _parser().parse_args(words)  # ends the process where it does not know one
            continue
        notebook, *_ = words
        cells = nbformat.read(ROOT / "notebooks" / Path(notebook).name, as_version=4).cells
        (parameters,) = (cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
        for given, name in pairwise(words):
            assert given != "-p" or re.search(rf"(?m)^{name} = ", parameters), (notebook, name)
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?m)(?:^|`)make ([a-z-]+)", README)
    assert len(commands) > 8 and set(targets) >= {"demo", "test", "docs", "handouts"}
    assert all(f"\n{target}:" in makefile for target in targets)


STOPPED_READERS = r"dearer|dearest|belongs into|networks of others|got for nothing|compare nothing|the words:"


@pytest.mark.parametrize("folder", ["*.md", "docs/*.md", "notebooks/*.ipynb", "data/*/README.md", "tests/*/README.md"])
def test_plain_words(folder: str) -> None:
    pages = [page for page in ROOT.glob(folder) if page.name != "CHANGELOG.md"]
    assert pages
    for page in pages:
        assert re.search(STOPPED_READERS, page.read_text(), re.IGNORECASE) is None, page
