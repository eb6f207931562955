"""pyproject.toml is the authority on dependencies; environment.yml must install the same, and must resolve."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# what auto_LiRPA 0.7.1 declares, at the commit of environment.yml
AUTO_LIRPA = [
    "torch>=2.0.0,<2.9.0",
    "torchvision>=0.12.0,<0.24.0",
    "numpy>=1.20",
    "pytest==8.1.1",
    "pylint>=2.15",
    "pytest-order>=1.0.0",
    "pytest-mock>=3.14",
    "appdirs>=1.4",
    "pyyaml>=5.0",
    "ninja>=1.10",
    "tqdm>=4.64",
    "graphviz>=0.20.3",
]


def of_extra(extra: str) -> list[Requirement]:
    """What an extra asks for; where it names others of the project's, what those do."""
    lines = [Requirement(line) for line in PROJECT["optional-dependencies"][extra]]
    others = [r for line in lines if line.name == "acertlab" for other in line.extras for r in of_extra(other)]
    return [line for line in lines if line.name != "acertlab"] + others


def declared() -> dict[str, Requirement]:
    return {r.name.lower(): r for r in [*map(Requirement, PROJECT["dependencies"]), *of_extra("dev")]}


def pip_part() -> list[str]:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "acertlab"
    (part,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    return part


def test_environment_installs_what_the_project_declares() -> None:
    part = pip_part()
    assert "-e .[dev]" in part  # all dependencies come from pyproject.toml
    pins = {r.name.lower(): r for r in map(Requirement, (line for line in part if not line.startswith("-e")))}
    assert pins.pop("auto-lirpa", pins.pop("auto_lirpa", None)).url.startswith("git+https://github.com/")
    for name, pin in pins.items():  # the pins lie within the project's ranges
        (version,) = (s.version for s in pin.specifier)
        assert declared()[name].specifier.contains(version), name
    assert set(pins) == {"torch", "torchvision", "pytest"}


def test_extras_are_those_of_the_readme_and_an_alias() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"notebooks", "sweep", "onnx", "cluster", "dev", "test"}
    assert of_extra("test") == of_extra("dev")
    for r in of_extra("sweep"):
        assert r.name != "jupyterlab" and str(r) in map(str, of_extra("dev"))


def test_bounds_are_open_above() -> None:
    for name, requirement in declared().items():
        assert all(s.operator == ">=" for s in requirement.specifier), name


def test_the_pip_part_resolves() -> None:
    """Every requirement, auto_LiRPA's as it declares them, by a resolver that reads what wheels say of themselves."""
    pytest.importorskip("uv", reason="uv is not installed: pip install -e '.[dev]'")
    pins = [line for line in pip_part() if "==" in line]
    everything = "\n".join([*pins, *map(str, declared().values()), *AUTO_LIRPA])
    compiled = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-config", "-"]
    wheels = ["--python-version", "3.12", "--python-platform", "linux", "--only-binary", ":all:"]
    run = subprocess.run([*compiled, *wheels], input=everything, capture_output=True, text=True, timeout=600)
    if "error sending request" in run.stderr:
        pytest.skip("no package index within reach: " + run.stderr.strip().splitlines()[-1])
    assert run.returncode == 0, run.stderr[-2000:]
    assert {*pins} <= {*run.stdout.splitlines()}
