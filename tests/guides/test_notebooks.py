"""What every committed notebook keeps to; nbval runs them, `test_exercises.py` solves them, see the Makefile."""

import ast
import json
from pathlib import Path

import nbformat
import pytest

from acertlab.__main__ import main

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
TAGS = {"parameters", "hide-input", "skip-execution", "nbval-skip", "lesson"}  # and those of an exercise
PARTS = {"exercise": "", "attempt": "a", "check": "c", "solution": "s"}  # tag: what follows the exercise's id


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def test_there_are_notebooks() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["00", "01", "02", "03", "04", "05", "06"]


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
        assert live == ("skip-execution" in tags(cell)) == ("nbval-skip" in tags(cell))


def test_the_reader_is_told_what_for_how_long_and_where_in_the_paper(notebook: nbformat.NotebookNode) -> None:
    head, *rest = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    for line in ("- **Goals:** ", "- **Time:** ", "- **Before:** ", "- **Paper:** ["):
        assert line in head
    assert "https://arxiv.org/abs/2307.13078" in head
    assert sum(source.startswith("## Summary") or "\n## Summary" in source for source in rest) == 1


def test_what_one_predicts_has_a_folded_answer(notebook: nbformat.NotebookNode) -> None:
    asked = [i for i, cell in enumerate(notebook.cells[1:], 1) if "**Predict" in cell.source]
    assert asked
    for i in asked:
        answer = notebook.cells[i + 1]
        assert tags(answer) == {"solution"} and answer.source.startswith("<details><summary>Answer</summary>")


def test_an_exercise_is_a_task_an_attempt_a_check_and_a_solution(notebook: nbformat.NotebookNode) -> None:
    ids = [cell.id for cell in notebook.cells]
    exercises = [cell.id for cell in notebook.cells if "exercise" in tags(cell)]
    assert 3 <= len(exercises) <= 5
    for exercise in exercises:
        start = ids.index(exercise)
        task, attempt, check, solution = cells = notebook.cells[start : start + 4]
        for cell, (tag, ending) in zip(cells, PARTS.items(), strict=True):
            assert cell.id == exercise + ending and tag in tags(cell)
        assert task.source.startswith("### ") and "<details><summary>Hint</summary>" in task.source
        assert "..." in attempt.source and "with checking(" in check.source and "hide-input" in tags(check)
        assert solution.source.startswith("<details><summary>Solution</summary>")


def test_tags_are_known_and_hidden_is_hidden_everywhere(notebook: nbformat.NotebookNode) -> None:
    for cell in notebook.cells:
        assert tags(cell) <= TAGS | set(PARTS)
        assert ("hide-input" in tags(cell)) == cell.metadata.get("jupyter", {}).get("source_hidden", False)


def test_a_copy_for_a_class_has_no_solutions(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["notebooks", str(tmp_path / "class"), "--without-solutions"]) == 0
    assert main(["notebooks", str(tmp_path / "whole")]) == 0
    for path in NOTEBOOKS:
        copy = json.loads((tmp_path / "class" / path.name).read_text(encoding="utf-8"))
        nbformat.validate(copy)
        whole = nbformat.read(path, as_version=4).cells
        assert [cell["id"] for cell in copy["cells"]] == [cell.id for cell in whole if "solution" not in tags(cell)]
        assert not any("<summary>Solution" in "".join(cell["source"]) for cell in copy["cells"])
        assert (tmp_path / "whole" / path.name).read_bytes() == path.read_bytes()
    assert str(tmp_path / "class") in capsys.readouterr().out
