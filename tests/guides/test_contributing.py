"""CONTRIBUTING.md's examples: each does what it says with nothing else changed."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import acertlab as al
from acertlab.bounds.margin import BOUNDS
from acertlab.bounds.rules.dispatch import RULES
from acertlab.data.datasets import DATASETS
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.presets import FAST, PAPER

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def tables_as_they_were() -> Iterator[None]:
    tables = (BOUNDS, RULES, DATASETS, SOLVERS, METHODS, FAST, PAPER)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def run(marker: str) -> dict[str, Any]:
    """The names that the one example with this text makes."""
    (example,) = (block for block in EXAMPLES if marker in block)
    names: dict[str, Any] = {"al": al, "torch": torch}
    exec(example, names)
    return names


def network(*layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 8), *layers, nn.Linear(8, 3)).eval()


def radius(model: nn.Module, **settings: Any) -> torch.Tensor:
    x = torch.rand(16, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    result = al.certified_radius(model, x, y, 0.5, **settings)
    attacked = al.attacked_radius(model, x, y, 0.5).radius
    assert (result.radius <= attacked).all() and (result.radius > 0).any()
    return result.radius


def test_a_layer() -> None:
    assert (radius(network(run("class Cube")["Cube"]())) > 0).all()


def test_a_function() -> None:
    class Arsine(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.asin(torch.tanh(x))

    model = network(Arsine())
    with pytest.raises(TypeError, match="no interval rule for operator 'asin'"):
        radius(model)
    run("aten.asin")
    radius(model)


def test_a_bound() -> None:
    run("BOUNDS[")
    model = network(nn.ReLU())
    assert (radius(model, bound="twice-ibp") >= radius(model)).all()  # the least of it and of all cheaper bounds


def test_a_solver() -> None:
    run("SOLVERS[")
    model = network(nn.ReLU())
    assert (radius(model, solver="halving") - radius(model)).abs().max() < 1e-4


def test_a_method_and_a_dataset(tmp_path: Path) -> None:
    run("HalfIBP")
    run("my-digits")
    config = al.preset("my-digits", "half-ibp", budget="smoke")
    trained = al.train(config, al.load_dataset("my-digits", root=tmp_path), tmp_path / "run", progress=False)
    last = trained.history.iloc[-1]
    assert last.radius_mean <= last.eps_t / 2 + 1e-6 and trained.result["dataset"] == "my-digits"
    assert "IBP at half eps" in str(al.plots.tradeoff(al.load_runs(tmp_path)))


def test_a_figure() -> None:
    figure = run("radii_of")["radii_of"]("acert", [0.2, 0.1])
    assert figure.data[0].name == "ACERT" and list(figure.data[0].y) == [0.1, 0.2]


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == 7
