"""Packed runs read as the folders that they were made of; and what is shipped says what its own radii say."""

import json
import runpy
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from acertlab.__main__ import main
from acertlab.data import files, pack, run as runs, run_table
from acertlab.data.pack import pack_runs
from acertlab.data.run import defaults_before
from acertlab.radius.metrics import summarise
from acertlab.sweep.spec import read_spec
from acertlab.training.config import TrainConfig
from acertlab.training.parameters import config_from_parameters, front_kappas
from tests.helpers.run_folders import CONFIG, write_run

DATA = runs.SHIPPED.parent  # results, and trials of other settings beside them
SHIPPED = sorted(file.parent for file in DATA.glob(f"**/{runs.PACKED}"))
MOST_BYTES = {runs.SHIPPED: 5e6, DATA: 12e6}  # of what 03 shows, and of everything that is shipped


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three runs at two depths, one of them in float64, and one that is unfinished."""
    for i, name in enumerate(("a", "grid/b", "grid/c")):
        write_run(tmp_path / "runs" / name, seed=i, n=200 if name == "a" else 4)
    table = pd.read_parquet(tmp_path / "runs/a/radii.parquet").astype({"radius": "float32", "upper": "float32"})
    table = pd.concat([table] * 50, ignore_index=True).assign(index=range(200))
    files.write_parquet(tmp_path / "runs/a/radii.parquet", table)
    write_run(tmp_path / "runs" / "half")
    (tmp_path / "runs/half/result.json").unlink()
    return tmp_path / "runs"


def test_packed_runs_read_as_their_folders(root: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("kappa: [0, 0.5]")
    out = pack_runs(root, tmp_path / "packed", spec=tmp_path / "sweep.yaml")
    assert (out / "sweep.yaml").read_text() == "kappa: [0, 0.5]"
    folders, packed = run_table.load_runs(root), run_table.load_runs(tmp_path / "packed")
    assert packed.path.tolist() == [str(out / name) for name in ("a", "grid/b", "grid/c")]
    pd.testing.assert_frame_equal(folders.drop(columns="path"), packed.drop(columns="path"))
    radii, samples = run_table.load_radii(packed), run_table.load_samples(packed)
    for before, path in zip(folders.path, packed.path, strict=True):
        one, other = runs.load_run(before), runs.load_run(path)
        assert (one.config, one.result) == (other.config, other.result) and str(other.path) == path
        pd.testing.assert_frame_equal(one.history, other.history)
        pd.testing.assert_frame_equal(one.radii, other.radii, check_dtype=False)  # exact: nothing was rounded
        pd.testing.assert_frame_equal(one.radii, samples[path], check_dtype=False)
        assert radii[path].dtype == float and (radii[path] == one.radii.radius).all()
    assert {str(run) for run in run_table.load_samples(packed[1:])} == set(packed.path[1:])


def test_what_runs_have_alike_stands_once_and_each_keeps_its_own(root: Path, tmp_path: Path) -> None:
    for name, kappa in (("a", 0), ("grid/b", False), ("grid/c", 0.0)):  # equal, and not the same
        config = files.read_json(root / name / "config.json") | {"kappa": kappa, f"only {kappa}": None}
        files.write_json(root / name / "config.json", config)
    held = files.read_json(pack_runs(root, tmp_path / "out") / runs.PACKED)
    shared = held["default"]["config"]
    assert shared["model"] == CONFIG["model"] and "only 0" not in shared
    assert "model" not in held["runs"]["grid/b"]["config"]
    for name, (result, config) in runs.read_packed(tmp_path / "out").items():
        alone = runs.load_run(root / name)
        assert json.dumps(config, sort_keys=True) == json.dumps(alone.config, sort_keys=True)
        assert json.dumps(result, sort_keys=True) == json.dumps(alone.result, sort_keys=True)
    now = runs.read_packed(tmp_path / "out")
    whole = {name: {"result": result, "config": config} for name, (result, config) in now.items()}
    files.write_json(tmp_path / "out" / runs.PACKED, {"runs": whole})  # as folders were written before
    assert runs.read_packed(tmp_path / "out") == now


def test_float32_stays_float32_and_other_columns_come_along(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "grid")
    table = pd.read_parquet(root / "a/radii.parquet").assign(attacked=np.float32(0.5))
    files.write_parquet(root / "a/radii.parquet", table)
    pack_runs(root, tmp_path / "packed")
    pd.testing.assert_frame_equal(runs.load_run(tmp_path / "packed/a").radii, table)


@pytest.mark.parametrize(("radius", "upper"), [("float32", "float32"), ("float64", "float64"), ("float32", "float64")])
def test_upper_comes_back_to_the_bit(root: Path, tmp_path: Path, radius: str, upper: str) -> None:
    shutil.rmtree(root / "grid")
    table = pd.read_parquet(root / "a/radii.parquet").astype({"radius": radius, "upper": upper})
    table.loc[:3, "upper"] = [np.inf, np.nextafter(np.float32(0.15), np.float32(1)), 0.0, 0.1 + 1e-12]
    table.loc[:3, "radius"] = [0.2, 0.15, 0.0, 0.1]
    files.write_parquet(root / "a/radii.parquet", table)
    out = pack_runs(root, tmp_path / "packed")
    pd.testing.assert_frame_equal(runs.load_run(out / "a").radii, table, check_dtype=radius == upper, check_exact=True)
    assert not {"upper", "predicted"} & set(pd.read_parquet(out / "radii.parquet"))
    assert run_table.load_samples(run_table.load_runs(out), ["predicted"])[str(out / "a")].equals(table[["predicted"]])
    files.write_parquet(out / "radii.parquet", table.assign(run="a"))  # as it was packed before
    pd.testing.assert_frame_equal(runs.load_run(out / "a").radii, table)
    assert run_table.load_samples(run_table.load_runs(out), ["upper"])[str(out / "a")].equals(table[["upper"]])
    files.write_parquet(out / "radii.parquet", table.assign(run="a").drop(columns="upper"))
    with pytest.raises(ValueError, match=r"radii.parquet lacks the columns? upper"):
        run_table.load_samples(run_table.load_runs(out))
    for gone, lost in (("label", "label, predicted"), ("radius", "radius, upper")):
        packed = pd.read_parquet(pack_runs(root, out) / "radii.parquet")
        files.write_parquet(out / "radii.parquet", packed.drop(columns=gone))
        with pytest.raises(ValueError, match=f"radii.parquet lacks the columns {lost}"):
            run_table.load_samples(run_table.load_runs(out))


def test_folders_and_packed_folders_below_one_root(root: Path, tmp_path: Path) -> None:
    pack_runs(root, tmp_path / "all/packed")
    shutil.copytree(root / "grid", tmp_path / "all/grid")
    table = run_table.load_runs(tmp_path / "all")
    assert [Path(path).relative_to(tmp_path / "all").as_posix() for path in table.path] == [
        "grid/b",
        "grid/c",
        "packed/a",
        "packed/grid/b",
        "packed/grid/c",
    ]
    radii = run_table.load_radii(table)
    assert list(radii) == table.path.tolist()
    assert (radii[table.path[0]] == radii[table.path[3]]).all() and len(radii[table.path[2]]) == 200


def test_packing_again_replaces(root: Path, tmp_path: Path) -> None:
    pack_runs(root, tmp_path / "packed")
    shutil.rmtree(root / "grid")
    assert len(run_table.load_runs(pack_runs(root, tmp_path / "packed"))) == 1


def test_packing_again_by_the_file_that_lies_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("grid: []\n")
    out = pack_runs(root, tmp_path / "packed", spec=tmp_path / "sweep.yaml")
    pack_runs(root, out, spec=out / "sweep.yaml")
    assert (out / "sweep.yaml").read_text() == "grid: []\n"
    assert len(run_table.load_runs(out)) == len(run_table.load_runs(root))


def test_a_crash_leaves_no_packed_folder(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = pack_runs(root, tmp_path / "packed")
    monkeypatch.setattr(pack, "write_json", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        pack_runs(root, out)
    assert run_table.load_runs(out).empty
    (out / ".radii.parquet.0123abcd.tmp").touch()  # as a killed process leaves it
    monkeypatch.undo()
    assert len(run_table.load_runs(pack_runs(root, out))) == len(run_table.load_runs(root))


class TestFaults:
    def test_what_cannot_be_packed(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ValueError, match="root: there is no finished run below .*empty"):
            pack_runs(tmp_path / "empty", tmp_path / "out")
        with pytest.raises(ValueError, match=r"out: .* lies in"):
            pack_runs(root, root / "out")
        with pytest.raises(ValueError, match=r"out: .* holds other things"):
            pack_runs(root, tmp_path)
        with pytest.raises(FileNotFoundError, match="spec: there is no file"):
            pack_runs(root, tmp_path / "out", spec=tmp_path / "none.yaml")
        with pytest.raises(ValueError, match=r"spec: .*config.json has a name that a packed folder needs"):
            pack_runs(root, tmp_path / "out", spec=root / "a/config.json")
        packed = pack_runs(root, tmp_path / "out")
        with pytest.raises(ValueError, match=r"root: .*out.a is packed already"):
            pack_runs(packed, tmp_path / "again")

    def test_faults_of_a_packed_folder_name_it(self, root: Path, tmp_path: Path) -> None:
        out = pack_runs(root, tmp_path / "out")
        with pytest.raises(FileNotFoundError, match=r"packed.json holds no run 'z'; it holds a, grid/b"):
            runs.load_run(out / "z")
        with pytest.raises(FileNotFoundError, match="packed runs come without weights"):
            runs.load_run(out / "a").load_model()
        table = run_table.load_runs(out)
        with pytest.raises(ValueError, match=r"radii\.parquet"):
            run_table.load_samples(table, ["attacked"])
        samples = pd.read_parquet(out / "radii.parquet")
        files.write_parquet(out / "radii.parquet", samples[samples.run != "a"])
        with pytest.raises(ValueError, match=r"radii.parquet has no rows of the run .*out.a"):
            run_table.load_radii(table)
        files.write_json(out / runs.PACKED, {"runs": {"a": {"result": {}, "config": CONFIG}}})
        with pytest.raises(ValueError, match=r"packed.json: a lacks dataset, method"):
            run_table.load_runs(out)
        whole = {"runs": {"a": {"result": {}, "config": CONFIG}}}
        for broken in ({"runs": [1]}, whole | {"default": 1}, whole | {"default": {"result": {}}}):
            files.write_json(out / runs.PACKED, broken)
            with pytest.raises(ValueError, match=r"packed.json holds no table `runs`"):
                run_table.load_runs(out)

    def test_the_command(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
        assert main(["pack", str(root), str(tmp_path / "out")]) == 0
        assert "3 runs, 0.0" in capsys.readouterr().out
        assert main(["pack", str(tmp_path / "nowhere"), str(tmp_path / "out2")]) == 1
        assert "there is no folder of runs" in capsys.readouterr().err


# ---- what is shipped


@pytest.mark.skipif(not SHIPPED, reason=f"there are no packed runs in {runs.SHIPPED} yet")
class TestShipped:
    @pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
    def test_the_table_follows_from_the_radii(self, folder: Path) -> None:
        table = run_table.load_runs(folder)
        samples = run_table.load_samples(table)
        for run in table.itertuples():
            radii = samples[run.path]
            assert len(radii) == run.n and (radii["index"] == np.arange(run.n)).all()
            assert (
                radii.radius.between(0, run.radius_cap * (1 + 2.0**-24)).all() and (radii.upper >= radii.radius).all()
            )
            scores = summarise(radii, run.eps_max, sorted(run.cert_acc), run.radius_cap)
            assert scores.pop("cert_acc") == pytest.approx(run.cert_acc, abs=1e-12)
            for name, value in scores.items():
                assert value == pytest.approx(getattr(run, name), abs=1e-9), (run.path, name)

    def test_it_is_small_and_says_how_it_was_made(self) -> None:
        for root, most in MOST_BYTES.items():
            folders = [folder for folder in SHIPPED if folder.is_relative_to(root)]
            assert 0 < sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < most
        assert all([*folder.glob("*.yaml"), *folder.parent.glob("make.py")] for folder in SHIPPED)

    @pytest.mark.parametrize("folder", [f for f in SHIPPED if (f / "sweep.yaml").is_file()], ids=lambda f: f.name)
    def test_its_sweep_makes_these_runs_and_no_others(self, folder: Path) -> None:
        jobs = [job.parameters for job in read_spec(folder / "sweep.yaml").jobs]
        asked = [config_from_parameters(parameters) for parameters in jobs]
        walks = [front_kappas(*pair) or (0.0,) for pair in zip(jobs, asked, strict=True)]
        settings = [field.name for field in fields(TrainConfig) if field.name != "device"]
        table = run_table.load_runs(folder)
        assert len(table) == sum(2 * len(kappas) - 1 for kappas in walks)  # of a front: the networks half way, too
        first = table.path[[not config.get("front") for config in table.config]]  # the others follow from it
        configs = [runs.load_run(path).config for path in first]
        made = [{name: (defaults_before(config) | config).get(name) for name in settings} for config in configs]
        assert sorted(map(str, made)) == sorted(
            str({name: json.loads(json.dumps(getattr(config, name))) for name in settings}) for config in asked
        )


def test_extracts_are_made_by_their_script(tmp_path: Path) -> None:
    script = runpy.run_path(str(runs.SHIPPED / "extracts.py"))
    (tmp_path / "images").mkdir()
    script["standard"](tmp_path / "standard")
    there, here = runs.SHIPPED / "standard", tmp_path / "standard"
    assert (there / runs.PACKED).read_text() == (here / runs.PACKED).read_text()
    for file in ("radii.parquet", "history.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(there / file), pd.read_parquet(here / file))
    try:
        script["images"](tmp_path / "images")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert files.read_json(runs.SHIPPED / "images/images.json") == files.read_json(tmp_path / "images/images.json")
