"""Specifications are checked as a whole before anything starts."""

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dask.config
import distributed  # noqa: F401 -- its settings
import pytest
import yaml

import acertlab
from acertlab.__main__ import main
from acertlab.data.files import write_json
from acertlab.sweep import executor as sweep
from acertlab.sweep.job import FAILED, RUNNING
from acertlab.sweep.plan import read_plan
from acertlab.sweep.spec import describe, read_spec
from acertlab.training.parameters import config_from_parameters
from tests.helpers.notebooks import write_notebook

ROOT = Path(__file__).parents[2]


def cells_of(spec: Any, **options: Any) -> list[dict[str, Any]]:
    return [job.parameters for job in read_spec(spec, **options).jobs]


def test_lists_are_combined_and_grids_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "dataset: mnist\nbudget: fast\ngrid:\n"
        "  - {method: fast-ibp, kappa: [0, 0.8], seed: [0, 1]}\n"
        "  - {method: acert, kappa: 0.25, eps_max: [0.1, 8/255]}\n"
    )
    sweep = read_spec(path)
    got = [[job.parameters[name] for name in ("method", "kappa", "seed", "eps_max")] for job in sweep.jobs]
    assert got == [
        ["fast-ibp", 0, 0, 0],
        ["fast-ibp", 0, 1, 0],
        ["fast-ibp", 0.8, 0, 0],
        ["fast-ibp", 0.8, 1, 0],
        ["acert", 0.25, 0, 0.1],
        ["acert", 0.25, 0, 8 / 255],
    ]
    assert all(job.parameters["dataset"] == "mnist" and job.notebook.stem == "02_training" for job in sweep.jobs)
    assert sweep.varied == ("method", "kappa", "eps_max", "seed")
    assert describe(sweep.jobs[5].parameters, sweep.varied) == "acert kappa=0.25 eps_max=0.03137 seed=0"
    assert sweep.jobs[5].name.startswith("mnist-acert-kappa0.25-eps_max0.03137-seed0-")


def test_the_folder_is_named_by_the_file_unless_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACERTLAB_RUNS", raising=False)
    Path("mine.yaml").write_text("kappa: 0.5")
    assert read_spec("mine.yaml").out == tmp_path / "runs" / "mine"
    monkeypatch.setenv("ACERTLAB_RUNS", str(tmp_path / "elsewhere"))
    assert read_spec("mine.yaml").out == tmp_path / "elsewhere" / "mine"
    Path("mine.yaml").write_text("kappa: 0.5\nout: there")
    assert read_spec("mine.yaml").out == tmp_path / "there"
    assert read_spec("mine.yaml", out="here").out == tmp_path / "here"
    (job,) = read_spec("mine.yaml").jobs
    assert job.folder == tmp_path / "there" / "cells" / job.name


def test_a_cells_name_depends_on_parameters_and_version_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = (job.name for job in read_spec({"kappa": 0.5, "eps_max": "1/4"}).jobs)
    for same in ({"eps_max": 0.25, "kappa": "1/2", "seed": 0}, {"kappa": 0.5, "eps_max": 0.25, "data_root": "/x"}):
        assert read_spec(same).jobs[0].name == name  # order, spelling, defaults and places do not matter
    assert read_spec({"kappa": 0.5, "eps_max": 0.25, "epochs": 3}).jobs[0].name != name
    monkeypatch.setattr(acertlab, "__version__", "99")
    assert read_spec({"kappa": 0.5, "eps_max": "1/4"}).jobs[0].name != name


def test_jobs_of_version_0_1_0_are_gone_on_with(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    grid = {"method": "fast-ibp", "kappa": 0, "seed": 2}
    spec = {"dataset": "cifar10", "width": 8, "budget": "fast", "grid": grid}
    (job,) = read_spec(spec, out=tmp_path).jobs
    assert not job.name.endswith("-2d1fe7984f") and not caplog.records
    folder = tmp_path / "cells" / f"{job.name.rpartition('-')[0]}-2d1fe7984f"
    folder.mkdir(parents=True)
    (job,) = read_spec(spec, out=tmp_path).jobs
    assert job.folder == folder  # or a sweep would train again what is there
    assert "1 jobs were begun by version 0.1.0" in caplog.text


def test_jobs_of_version_0_1_0_that_did_something_else_are_not(tmp_path: Path) -> None:
    """SABR's box and attack were others by the same parameters; by settings that say so they are those jobs."""
    grid = {"method": "sabr", "kappa": 0, "seed": 2}
    spec = {"dataset": "digits", "budget": "fast", "grid": grid}
    (job,) = read_spec(spec, out=tmp_path).jobs
    keyed = {k: v for k, v in job.parameters.items() if k not in ("settings", "data_root", "front", "kappas")}
    digest = hashlib.sha256(json.dumps(["02_training", "0.1.0", keyed], sort_keys=True).encode()).hexdigest()[:10]
    folder = tmp_path / "cells" / f"{job.name.rpartition('-')[0]}-{digest}"
    folder.mkdir(parents=True)
    config = asdict(config_from_parameters(job.parameters))
    for name in ("attack", "attack_eps_factor", "small_box_at_border", "batch_statistics", "l1_reach"):
        del config[name]
    (folder / "config.json").write_text(json.dumps(config))
    assert read_spec(spec, out=tmp_path).jobs[0].folder != folder
    then = spec | {"settings": {"attack": "last", "small_box_at_border": "cut"}}
    assert read_spec(then, out=tmp_path).jobs[0].folder == folder


def test_equal_trainings_written_differently_are_one_job() -> None:
    def name(**spec: Any) -> str:
        (job,) = read_spec({"dataset": "mnist", "method": "mtl-ibp"} | spec).jobs
        return job.name.rpartition("-")[2]

    assert name(kappa=0.3) == name(kappa=0.1 + 0.2) != name(kappa=0.3 + 1e-9)
    one = name(settings={"alpha": 0.3, "lr": 0.001})
    assert one == name(settings={"lr": "1e-3", "alpha": "3/10"}) != name(settings={"alpha": 0.3})
    with pytest.raises(ValueError, match="is there twice"):
        read_spec({"dataset": "mnist", "grid": {"kappa": [0.3, 0.1 + 0.2]}})


def test_a_job_is_known_by_its_notebooks_code(tmp_path: Path) -> None:
    spec = {"notebook": str(tmp_path / "mine.ipynb"), "out": str(tmp_path / "out")}

    def name(*cells: str) -> str:
        write_notebook(tmp_path / "mine.ipynb", list(cells))
        (job,) = read_spec(spec).jobs
        return job.name

    one = name('x = 1\nrun_dir = ""', "print(x)")
    assert name('x = 1  # of the same value\nrun_dir = ""', "print(x)") == one
    assert name('x = 1\nrun_dir = ""', "print(2 * x)") != one
    assert name('x = 2\nrun_dir = ""', "print(x)") != one


def test_defaults_are_read_as_python_reads_them(tmp_path: Path) -> None:
    write_notebook(tmp_path / "a.ipynb", ['x: int = 1\ntext = "alpha=0.3 # no"\nlong = (1,\n 2)\nrun_dir = ""', ""])
    assert cells_of({"notebook": str(tmp_path / "a.ipynb")}) == [{"x": 1, "text": "alpha=0.3 # no", "long": (1, 2)}]


def test_yaml_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "grid:\n  - &base {method: acert, kappa: [0, 0.5], seed: 1}\n  - {<<: *base, method: fast-ibp, seed: 2}\n"
    )
    got = [tuple(job[name] for name in ("method", "kappa", "seed")) for job in cells_of(path)]
    assert got == [("acert", 0, 1), ("acert", 0.5, 1), ("fast-ibp", 0, 2), ("fast-ibp", 0.5, 2)]


def test_other_settings_can_be_swept() -> None:
    grid = {"method": "mtl-ibp", "settings": [{}, {"alpha": 0.3}, {"alpha": 0.3, "scheduler": "step"}]}
    sweep = read_spec({"dataset": "mnist", "grid": grid})
    assert [job.parameters["settings"] for job in sweep.jobs] == grid["settings"]
    assert "settings" in sweep.varied and len({job.name for job in sweep.jobs}) == 3


def test_a_front_is_one_job() -> None:
    """Its kappas are not the grid's, and kappa says nothing of it; jobs of one network are known as before."""
    one = {"dataset": "digits", "method": "acert", "budget": "smoke"}
    fronts = [one | {"front": True, "kappas": "", "seed": [0, 1]}, one | {"front": True, "kappas": "0 0.5", "seed": 0}]
    sweep = read_spec({"grid": [*fronts, one | {"front": False, "kappas": "", "seed": 0}]})
    assert [describe(job.parameters, sweep.varied) for job in sweep.jobs] == [
        "acert kappa=0.9 front=True 0.9 0.5 0.25 0.1 0 seed=0",
        "acert kappa=0.9 front=True 0.9 0.5 0.25 0.1 0 seed=1",
        "acert kappa=0 front=True 0 0.5 seed=0",
        "acert kappa=0 front=False kappas= seed=0",
    ]
    (alone,) = (job.name.rpartition("-")[2] for job in read_spec(one).jobs)
    assert alone == sweep.jobs[3].name.rpartition("-")[2]
    with pytest.raises(ValueError, match="is there twice"):
        read_spec({"grid": one | {"front": True, "kappa": [0, 0.5]}})
    with pytest.raises(ValueError, match="is there twice"):  # the method's own kappas, written out
        read_spec({"grid": one | {"front": True, "kappas": ["", "0.9, 0.5, 0.25, 0.1, 0"]}})


def test_a_front_is_done_once_all_its_networks_are_measured(tmp_path: Path) -> None:
    (job,) = read_spec({"front": True}, out=tmp_path).jobs
    write_json(job.folder / "front.json", {"kappas": [0.0, 0.5]})
    assert not job.done and job.result
    network = {"kappa": 0.0, "acc": 0.5, "acr": 0.25, "art": 0.3, "seconds": 20.0, "test_seconds": 1.0}
    write_json(job.folder / "front.json", {"kappas": [0.0, 0.5], "networks": [network, network | {"acc": 0.75}]})
    assert job.done
    assert sweep._scores(job) == "2 networks, Acc 50.00 to 75.00, ACR 25.00 to 25.00, ART 30.00 to 30.00"
    said = read_plan({"front": True}, tmp_path).sentence()
    assert "where 1 are done, in 42 s each" in said


def test_a_cell_keeps_its_memory_whatever_dask_tells_its_workers() -> None:
    told = dask.config.get("distributed.nanny.pre-spawn-environ")["MALLOC_TRIM_THRESHOLD_"]
    kept = read_spec({"dataset": "mnist"}).jobs[0].environment["MALLOC_TRIM_THRESHOLD_"]
    assert int(kept) >= 2**28 > int(told)  # an epoch of the small CNN took twice as long with dask's 64 kB


def test_a_cell_is_done_when_its_result_is_there_and_was_checked(tmp_path: Path) -> None:
    (job,) = read_spec({"kappa": 0.5}, out=tmp_path).jobs
    assert not job.done
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").write_text("{}")
    assert job.done
    for name in (RUNNING, FAILED):  # interrupted, or refuted, by the notebook's own checks after the result was written
        (job.folder / name).touch()
        assert not job.done
        (job.folder / name).unlink()
    assert job.done


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"methd": "acert"}, r"'methd' is not a parameter .*\(did you mean 'method'\?\); 02_training.ipynb has"),
        ({"alpha": 0.3}, "settings; all else of TrainConfig as settings: {NAME: VALUE}"),
        ({"settings": [{}, {"alhpa": 0.3}]}, "job .*settings = {'alhpa': 0.3}.*did you mean 'alpha'"),
        ({"settings": "alpha=0.3"}, 'settings = .alpha=0.3.: .* papermill -y "settings: {alpha: 0.3}"'),
        ({"run_dir": "x"}, "'run_dir' is not a parameter that can be swept"),
        ({"grid": {"kappa": [0, 1.5]}}, r"job kappa=1.5: parameter kappa = 1.5: accepted is a number .* <= 1"),
        (
            {"grid": {"method": ["acert", "acrt"]}},
            r"job acrt: parameter method = 'acrt': accepted is .* \(did you mean 'acert'\?\)",
        ),
        ({"dataset": "minst"}, "dataset = 'minst': accepted is digits, mnist"),
        ({"seed": -1}, "parameter seed = -1: accepted is a whole number >= 0"),
        ({"grid": {"kappa": []}}, r"kappa = \[\]: accepted is a text, a number"),
        ({"grid": {"kappa": {"from": 0}}}, "kappa = {'from': 0}: accepted is"),
        ({"grid": {"kappa": [0, None]}}, "accepted is a text, a number"),
        ({"grid": "kappa"}, "grid = 'kappa': accepted is a table"),
        ({"grid": [{"kappa": 0}, {"kappa": [0, 0.5]}]}, "the job .*kappa=0.* is there twice"),
        ({"grid": {"method": "standard", "kappa": [0, 0.5]}}, "the job .*standard.* is there twice"),
        ({"notebook": 3}, "notebook = 3: accepted is a path"),
        ({"out": 5}, "out = 5: accepted is a path"),
        ({3: 0}, "the name 3 is a int"),
        ({"grid": {3: [0]}}, "the name 3 is a int"),
        ({"seed": 2**64}, r"seed = 18446744073709551616: accepted is a whole number >= 0 and < 2\^64"),
        ({"kappas": "0 0.5"}, "job .*kappas = '0 0.5': accepted is \"\", unless front = True"),
        ({"front": True, "kappas": [0, 0.5]}, "job .*parameter kappas = 0: accepted is numbers with blanks"),
        ({"front": True, "kappas": "0.5 0.5"}, "job .*kappas = .*all rising or all falling"),
        ({"grid": {"method": ["acert", "standard"], "front": True}}, "config.method = 'standard'.*a method with kappa"),
        ({"notebook": "nowhere.ipynb"}, "notebook: .*nowhere.ipynb is not there"),
    ],
)
def test_one_clear_error(spec: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(spec))
    with pytest.raises((ValueError, FileNotFoundError), match=f"mine.yaml: .*{message}"):
        read_spec(path, out=tmp_path / "out")
    with pytest.raises((ValueError, FileNotFoundError), match=f"^the specification: .*{message}"):
        sweep.run(spec, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kappa: 0\nkappa: 1", "line 1 and below: kappa is given twice"),
        ("kappa: [0", "cannot be read as YAML"),
        ("- kappa", "a table of names and values is needed, it holds list"),
    ],
)
def test_a_file_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"mine.yaml.*{message}"):
        read_spec(tmp_path / "mine.yaml")
    with pytest.raises(FileNotFoundError, match="there is no specification .*other.yaml"):
        read_spec(tmp_path / "other.yaml")


def test_any_notebook_with_a_run_dir(tmp_path: Path) -> None:
    write_notebook(tmp_path / "mine.ipynb", ['x = 1  # a number\nname = "a"\nrun_dir = ""', "pass"])
    spec = {"notebook": str(tmp_path / "mine.ipynb"), "grid": {"x": [1, 2], "name": "b"}}
    assert cells_of(spec) == [{"x": 1, "name": "b"}, {"x": 2, "name": "b"}]
    write_notebook(tmp_path / "mine.ipynb", ["x = 1", "pass"])
    with pytest.raises(ValueError, match="mine.ipynb has no parameter run_dir"):
        read_spec(spec)


def test_the_shipped_sweep_is_accepted() -> None:
    jobs = cells_of(ROOT / "data" / "results" / "fronts" / "sweep.yaml")
    assert len(jobs) == 69
    assert {(job["dataset"], job["method"], job["seed"]) for job in jobs} == {
        (dataset, method, seed)
        for dataset in ("mnist", "cifar10")
        for method in ("fast-ibp", "acert")
        for seed in (0, 1, 2)
    }


def test_a_sweep_says_what_is_wanted_before_torch_is_loaded(tmp_path: Path) -> None:
    command = ["sweep", str(ROOT / "notebooks" / "demo.yaml"), "--dry-run", "--out", str(tmp_path / "out")]
    code = f"import sys; sys.modules['torch'] = None; from acertlab.__main__ import main; sys.exit(main({command}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 2 and "torch" in ran.stderr.splitlines()[-1]
    assert f"demo.yaml: 2 jobs of 02_training.ipynb, in {tmp_path / 'out'}, none of them done; checking" in ran.stdout


def test_the_command_refuses_and_lists(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("grid: {kappa: [0, 0.5]}")
    out = ["--out", str(tmp_path / "out")]
    assert main(["sweep", str(path), "--dry-run", *out]) == 0
    said = capsys.readouterr().out
    assert "waiting  acert kappa=0.5 seed=0" in said and "2 jobs, 0 done" in said
    assert not (tmp_path / "out").exists()
    path.write_text("grid: {kappa: [0, 2]}")
    assert main(["sweep", str(path), *out]) == 2
    assert "error: " in (said := capsys.readouterr().err) and "kappa = 2" in said and "Traceback" not in said
    assert main(["sweep", str(path), "--workers", "-1", *out]) == 2
    assert "workers = -1: accepted is a whole number >= 0" in capsys.readouterr().err
