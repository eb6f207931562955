"""The page over many runs: it says what was computed, stands alone, and what cannot be analysed says why."""

import re
import shutil
from pathlib import Path

import pytest

from acertlab.__main__ import main
from acertlab.analysis.fronts import analyse
from acertlab.data.files import read_json, write_json
from acertlab.data.run_table import load_runs
from acertlab.visualization.pages.report import write_report
from tests.helpers.html_page import Page
from tests.helpers.synthetic_runs import synthetic_radii, write_sweep

METHODS = {"fast-ibp": 1.0, "acert": 1.3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sweep(tmp_path_factory.mktemp("sweep"), synthetic_radii(METHODS, n=100))


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
