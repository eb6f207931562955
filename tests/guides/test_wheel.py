"""The wheel: built, installed into an environment of its own and used in an empty folder, far from the repository."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
Run = Callable[..., subprocess.CompletedProcess[str]]

# Each command of the README in one process, which loads torch once; the demo trains two fronts, for seconds.
COMMANDS = """if True:
    import sys
    from pathlib import Path
    import acertlab
    from acertlab.__main__ import main
    from acertlab.data import run
    from acertlab.sweep import executor
    from acertlab.sweep.plan import read_plan

    assert Path(acertlab.__file__).is_relative_to(sys.prefix), acertlab.__file__
    if __name__ == "__main__":
        run_command = executor.run_command

        def small(plan):
            assert Path(plan.where).is_relative_to(sys.prefix) and executor.read_spec(plan).jobs
            return run_command(read_plan("sweep.yaml", plan.out))

        executor.run_command = small
        assert main(["demo"]) == 0
        (weights,) = Path("runs/demo/cells").glob("*acert*/knot-00/model.safetensors")
        assert main(["certify", str(weights.parent), "digits", "0.1", "--images", "9", "--output", "page.html"]) == 0
        compare = f"compare {run.SHIPPED}"  # of several seeds
        for line in ("report runs", "table runs", compare, "pack runs packed", "estimate digits acert"):
            assert main(line.split()) == 0, line
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("acertlab", "notebooks", "data/results", "data/fronts"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    command = [*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a command of an environment that has the wheel, and else what the tests' environment has."""
    home, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty")
    venv.create(home, symlinks=True)
    binaries = home / "bin"
    subprocess.run([*PIP, "--python", binaries / "python", "install", "--quiet", "--no-deps", wheel], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    ours = {"PYTHONPATH", "ACERTLAB_RUNS", "ACERTLAB_DATA", "PLOTLY_RENDERER", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"JUPYTER_PATH": str(Path(sys.prefix, "share/jupyter"))}  # nbconvert's templates
    environment |= {"OMP_NUM_THREADS": "1", "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        found = shutil.which(command[0], path=environment["PATH"])
        assert found, command
        return subprocess.run([found, *command[1:]], cwd=folder, env=environment, capture_output=True, text=True)

    (folder / "sweep.yaml").write_text(
        "{dataset: digits, budget: smoke, front: true, kappas: 0 0.9, grid: {method: [acert, fast-ibp]}}"
    )
    return run


def succeed(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    return ran.stdout


def test_the_wheel_holds_what_the_repository_has(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    code = [file.relative_to(ROOT).as_posix() for file in (ROOT / "acertlab").rglob("*.py*") if file.suffix != ".pyc"]
    beside = [*(ROOT / "notebooks").glob("*.*"), *(f for f in (ROOT / "data/results").rglob("*") if f.is_file())]
    assert held >= {*code, *(f"acertlab/_shipped/{file.relative_to(ROOT).as_posix()}" for file in beside)}
    assert {name.split("/")[0].split("-")[0] for name in held} == {"acertlab"}
    assert wheel.stat().st_size < 5e6


def test_the_notebooks_are_copied_and_nothing_is_overwritten(installed: Run) -> None:
    copied = succeed(installed("acertlab", "notebooks", "course"))
    assert "course" in copied
    again = installed("acertlab", "notebooks", "course")
    assert again.returncode == 1 and "01_certified_radius.ipynb" in again.stderr and again.stderr.count("\n") == 1
    assert "2 jobs" in succeed(installed("acertlab", "sweep", "course/demo.yaml", "--dry-run"))


def test_every_command_of_the_readme_works(installed: Run) -> None:
    said = succeed(installed("python", "-c", COMMANDS))
    assert "03_pareto.html" in said and "page.html" in said and "ACERT / FastIBP" in said


def test_03_opens_on_the_results_that_come_with_it(installed: Run) -> None:
    page = (ROOT / "data/results/README.md").read_text()
    (analysis,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "al.analyse" in block)
    assert "%" in succeed(installed("python", "-c", f"import acertlab as al\n{analysis}"))
    succeed(installed("acertlab", "notebooks", "copy"))
    made = installed("acertlab", "handouts", "pages", "copy/03_pareto.ipynb")
    assert succeed(made).splitlines()[-1] == "pages/03_pareto.html"
    assert "[IPKernelApp]" not in made.stdout + made.stderr  # a kernel's own end is no news
