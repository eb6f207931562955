"""A plugin for nbval: the notebooks that it executed are kept, for the test of their pages (see the Makefile)."""

import os
from pathlib import Path

import nbformat
import pytest


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """After a notebook's last cell: the notebook with what its cells gave."""
    file = item.parent
    if file is None or not hasattr(file, "nb") or (nextitem is not None and nextitem.parent is file):
        return
    cells = [other for other in item.session.items if other.parent is file]
    for place, cell in enumerate(cells, 1):
        cell.cell.execution_count, cell.cell.outputs = place, cell.test_outputs or []
    nbformat.write(file.nb, Path(os.environ["ACERTLAB_EXECUTED"]) / file.path.name)
