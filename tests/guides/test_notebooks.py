"""What every committed notebook keeps to; `test_handouts.py` runs them."""

import ast
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def test_there_are_notebooks() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


def test_committed_without_outputs(notebook: nbformat.NotebookNode) -> None:
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
    assert "widgets" not in notebook.metadata


def test_the_first_code_cell_is_typed_commented_parameters(notebook: nbformat.NotebookNode) -> None:
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert cell.metadata.tags == ["parameters"]
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign)
        assert isinstance(ast.literal_eval(statement.value), (str, int, float, bool, dict))  # plain values
    assert all("  # " in line for line in cell.source.splitlines())


def test_logic_lives_in_the_package(notebook: nbformat.NotebookNode) -> None:
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert max(source.count("\n") for source in code) < 40
    assert any("assert " in source for source in code)


def test_live_cells_are_skipped_headlessly(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        live = cell.cell_type == "code" and "_explorer(" in cell.source
        assert live == ("skip-execution" in cell.metadata.get("tags", []))
