"""The command `acertlab`: every sub-command says what it does, refuses in one line, and does its work."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import papermill
import pytest
import torch

import acertlab as al
from acertlab.__main__ import main
from acertlab.data.run import load_run
from acertlab.sweep import executor
from acertlab.sweep.plan import Plan
from acertlab.sweep.spec import read_spec
from acertlab.training.loop.front import KAPPAS, KAPPAS_OF_FIXED_EPS
from acertlab.training.parameters import config_from_parameters, front_kappas

ROOT = Path(__file__).parents[2]
COMMANDS = ("demo", "notebooks", "handouts", "sweep", "certify", "report", "table", "compare", "pack", "estimate")
COMMANDS += ("gpu-check",)


def test_alone_it_greets_with_every_command(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    assert all(f"    {command} " in said for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0 and f"usage: acertlab {command}" in capsys.readouterr().out


def test_help_loads_neither_torch_nor_plots() -> None:
    code = "import sys, acertlab.__main__ as m\nm.main([])\nassert not {'torch', 'plotly', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("arguments", [["report"], ["table"], ["compare"], ["pack", "out"]])
def test_a_folder_without_runs_is_refused_in_a_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command, *rest = arguments
    nowhere = tmp_path / "nowhere"
    assert main([command, str(nowhere), *(str(tmp_path / name) for name in rest)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"acertlab {command}: ") and "nowhere" in said and said.count("\n") == 1


def test_certify_takes_a_program_and_writes_a_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.manual_seed(0)
    model = al.models.small_cnn((1, 8, 8), 10, width=2).eval()
    program = torch.export.export(model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, tmp_path / "net.pt2")
    page = tmp_path / "page.html"
    assert main(["certify", str(tmp_path / "net.pt2"), "digits", "1/16", "--images", "20", "--output", str(page)]) == 0
    data = al.load_dataset("digits")
    report = al.certify(model, (data.test_x[:20], data.test_y[:20]), 1 / 16, progress=False)
    said = capsys.readouterr().out
    assert f"{100 * report.acr:.6f}"[:5] in said and "<html" in page.read_text()
    assert main(["certify", str(tmp_path / "none.pt2"), "digits", "0.1"]) == 1
    assert "none.pt2" in capsys.readouterr().err


def test_the_demo_is_two_fronts_from_accurate_to_robust() -> None:
    jobs = read_spec(ROOT / "notebooks" / "demo.yaml").jobs
    assert [(job.parameters["method"], job.parameters["front"]) for job in jobs] == [
        ("acert", True),
        ("fast-ibp", True),
    ]
    for job, kappas in zip(jobs, (KAPPAS, KAPPAS_OF_FIXED_EPS), strict=True):
        config = config_from_parameters(job.parameters)
        assert front_kappas(job.parameters, config) == kappas and min(kappas) <= 0.8 and max(kappas) >= 0.9


def test_the_demo_ends_where_its_sweep_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACERTLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("03 was executed"))
    monkeypatch.setattr(executor, "run_command", lambda plan: 1)
    assert main(["demo"]) == 1


def test_the_demo_draws_03_of_its_own_runs_and_says_what_they_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("ACERTLAB_RUNS", str(tmp_path))
    swept, drawn = [], []

    def run_command(plan: Plan) -> int:
        for method in ("acert", "fast-ibp"):
            config = al.preset("digits", method, budget="smoke")
            al.train_front(config, al.load_dataset("digits"), plan.out / "cells" / method, (0.0, 0.9), progress=False)
        return swept.append((Path(plan.where).name, plan.out)) or 0

    def execute(notebook: Path, out: Path, parameters: dict[str, Any], **_: Any) -> None:
        drawn.append((notebook.name, out, parameters["runs_root"], parameters["front_dir"]))
        shutil.copy(notebook, out)

    monkeypatch.setattr(executor, "run_command", run_command)
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    assert main(["demo"]) == 0
    out = tmp_path / "demo"
    assert swept == [("demo.yaml", out)]
    assert drawn == [("03_pareto.ipynb", out / "03_pareto.ipynb", str(out / "cells"), str(out / "cells/acert"))]
    said, page = capsys.readouterr().out, (out / "03_pareto.html").read_text()
    assert said.startswith(str(ROOT / "notebooks" / "demo.yaml")) and "03_pareto.html" in said
    share = 100 * load_run(out / "cells" / "acert" / "knot-00").history.share_cap.iloc[-1]
    for told in (
        "one training of 2 epochs: 3 networks",
        f"{share:.0f} % of the digits",
        "12 % have the whole box",
    ):  # of data/results: the second
        assert told in said and told in page


SAYS = """if True:
    import builtins, sys, time
    say = builtins.print

    def first(*text, **options):
        builtins.print = say
        say(*{"torch", "plotly", "distributed", "papermill", "nbformat"} & set(sys.modules), file=sys.stderr)
        assert time.process_time() < 1, time.process_time()  # seconds at work: how busy others are does not count
        say(*text)
        raise SystemExit(9)

    builtins.print = first
    from acertlab.__main__ import main
    main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (f"sweep {ROOT / 'data/results/fronts/sweep.yaml'}", "69 jobs of 02_training.ipynb"),
        ("certify net.onnx mnist 8/255", "net.onnx: radii of test images of mnist up to 0.03137, by ibp"),
        ("report runs", "all finished runs below runs, into report.html"),
        ("estimate cifar10 acert", "10 steps of each phase of acert on cifar10, budget paper"),
        ("handouts pages", "notebooks into pages"),
        ("demo", "2 jobs of 02_training.ipynb"),
    ],
)
def test_a_command_says_what_it_will_do_before_it_loads_what_does_it(command: str, said: str, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", SAYS, *command.split()], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 9 and ran.stderr.strip() == "" and said in ran.stdout, ran.stdout + ran.stderr
