"""Tables of many runs, from their folders and from packed ones."""

import json
import time
import warnings

import pytest

from acertlab.data import files, run as runs, run_table
from acertlab.data.pack import pack_runs
from tests.helpers.run_folders import CONFIG, result, write_run


class TestLoadRuns:
    def test_a_row_a_run_at_any_depth(self, tmp_path):
        write_run(tmp_path / "b", kappa=0.5)
        write_run(tmp_path / "grid" / "a", method="ibp")
        table = run_table.load_runs(tmp_path)
        assert table.path.tolist() == [str(tmp_path / "b"), str(tmp_path / "grid" / "a")]
        assert table.kappa.tolist() == [0.5, 0.25]
        assert table.method.tolist() == ["acert", "ibp"]
        assert table.cert_acc[0] == {0.05: 0.7, 0.1: 0.4}
        assert set(runs.RESULT_KEYS) < set(table.columns)
        assert table.attrs["unfinished"] == []

    def test_settings_become_columns(self, tmp_path):
        for name in ("a", "b"):
            write_run(tmp_path / name)
        files.write_json(tmp_path / "b/config.json", runs.load_run(tmp_path / "a").config | {"alpha": 0.3})
        pack_runs(tmp_path, tmp_path.parent / f"{tmp_path.name}-packed")
        for root in (tmp_path, tmp_path.parent / f"{tmp_path.name}-packed"):
            table = run_table.load_runs(root, settings=["width", "alpha"])
            assert table.width.tolist() == [CONFIG["width"]] * 2
            assert table.alpha.isna().tolist() == [True, False] and table.alpha[1] == 0.3

    def test_unfinished_runs_are_listed_without_a_warning(self, tmp_path):
        write_run(tmp_path / "done")
        write_run(tmp_path / "half")
        (tmp_path / "half" / "result.json").unlink()
        (tmp_path / "notes").mkdir()  # not a run
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table = run_table.load_runs(tmp_path)
        assert table.path.tolist() == [str(tmp_path / "done")]
        assert table.attrs["unfinished"] == [str(tmp_path / "half")]

    def test_none(self, tmp_path):
        table = run_table.load_runs(tmp_path)
        assert len(table) == 0
        assert {"path", "method", "kappa", "art"} <= set(table.columns)

    def test_wrong_folders(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no folder of runs"):
            run_table.load_runs(tmp_path / "nowhere")
        write_run(tmp_path / "a")
        with pytest.raises(ValueError, match="one run's folder: use load_run"):
            run_table.load_runs(tmp_path / "a")

    @pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps(result(cert_acc=[0.1]))])
    def test_a_corrupt_result_is_named(self, tmp_path, content):
        write_run(tmp_path / "good")
        write_run(tmp_path / "bad")
        (tmp_path / "bad" / "result.json").write_text(content)
        with pytest.raises(ValueError, match=r"bad.result.json"):
            run_table.load_runs(tmp_path)

    def test_a_thousand_runs_in_two_seconds(self, tmp_path):
        text = json.dumps(result())
        for i in range(1000):
            (tmp_path / f"run{i}" / "checkpoint").mkdir(parents=True)
            (tmp_path / f"run{i}" / "config.json").write_text("{}")
            (tmp_path / f"run{i}" / "result.json").write_text(text)
        start = time.perf_counter()
        assert len(run_table.load_runs(tmp_path)) == 1000
        assert time.perf_counter() - start < 2  # 0.07 s on one core
