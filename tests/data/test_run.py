"""Run folders: what is written is what is read, nothing half written is ever seen, and every fault names its file."""

import dataclasses
import json
import time
import warnings

import numpy as np
import pandas as pd
import pytest
import torch

from acertlab.data import files, run as runs, run_table
from acertlab.data.pack import pack_runs
from acertlab.models import architectures as models


def result(**changes):
    return {
        "dataset": "digits",
        "method": "acert",
        "kappa": 0.25,
        "eps_max": 0.1,
        "seed": 0,
        "acc": 0.9,
        "acr": 0.5,
        "art": 0.67,
        "cert_acc": {"0.05": 0.7, "0.1": 0.4},
        "verifier": "ibp",
        "merged": True,
        "domain": [0.0, 1.0],
        "n": 4,
        "split": "test",
        "epochs": 3,
        "seconds": 1.5,
        "version": "0.1.0",
        "radius_cap": 0.2,
    } | changes


CONFIG = {
    "dataset": "digits",
    "model": "mlp",
    "width": 8,
    "in_shape": [1, 8, 8],
    "classes": 10,
    "mean": None,
    "std": None,
}


def write_run(path, model=None, **changes):
    """A complete run folder, as the trainer leaves it; the radii are at 0, inside, above eps_max and at the cap."""
    torch.manual_seed(0)
    model = model or models.mlp((1, 8, 8), 10, width=8)
    files.write_json(path / "config.json", CONFIG)
    files.write_parquet(path / "history.parquet", pd.DataFrame({"epoch": [0, 1], "loss": [2.0, 1.0]}))
    radii = {
        "index": range(4),
        "label": [1, 2, 3, 4],
        "predicted": [2, 2, 3, 4],
        "radius": [0.0, 0.05, 0.15, 0.2],
        "upper": [0.0, 0.0501, 0.1501, np.inf],
        "status": [0, 1, 1, 2],
    }
    files.write_parquet(path / "radii.parquet", pd.DataFrame(radii))
    files.write_weights(path / "model.safetensors", model.state_dict())
    files.write_json(path / "result.json", result(**changes))
    return model


class TestRunFolder:
    def test_what_is_written_is_what_is_read(self, tmp_path):
        model = write_run(tmp_path / "a").eval()
        run = runs.load_run(tmp_path / "a")
        assert run.config == CONFIG
        assert run.result == result() | {"cert_acc": {0.05: 0.7, 0.1: 0.4}}
        assert run.radii.upper.tolist() == [0.0, 0.0501, 0.1501, np.inf]
        assert run.history.loss.tolist() == [2.0, 1.0]
        x = torch.rand(5, 1, 8, 8)
        rebuilt = run.load_model()
        assert torch.equal(rebuilt(x), model(x))
        assert not rebuilt.training
        with pytest.raises(dataclasses.FrozenInstanceError):
            run.result = {}

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"there is no run folder .*nowhere"):
            runs.load_run(tmp_path / "nowhere")

    @pytest.mark.parametrize("name", runs.FILES)
    def test_a_missing_file_is_named(self, tmp_path, name):
        write_run(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(FileNotFoundError, match=f"lacks {name}. A run's folder holds config.json"):
            runs.load_run(tmp_path)

    @pytest.mark.parametrize("name", ["config.json", "history.parquet", "radii.parquet", "result.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe not text"])
    def test_a_corrupt_file_is_named(self, tmp_path, name, content):
        write_run(tmp_path)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            runs.load_run(tmp_path)

    def test_radii_without_their_columns(self, tmp_path):
        write_run(tmp_path)
        files.write_parquet(tmp_path / "radii.parquet", pd.DataFrame({"radius": [0.1]}))
        with pytest.raises(ValueError, match=r"radii.parquet lacks the columns index, label"):
            runs.load_run(tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": "cnn9"}, "'cnn9' is unknown; known: .*cnn7"),
            ({"width": 16}, "model.safetensors does not fit the mlp"),
        ],
    )
    def test_a_network_that_cannot_be_rebuilt(self, tmp_path, changes, message):
        write_run(tmp_path)
        files.write_json(tmp_path / "config.json", CONFIG | changes)
        with pytest.raises(ValueError, match=message):
            runs.load_run(tmp_path).load_model()

    def test_weights_cut_short(self, tmp_path):
        write_run(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            runs.load_run(tmp_path).load_model()


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
