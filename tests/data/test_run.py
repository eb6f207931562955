"""Run folders: what is written is what is read, nothing half written is ever seen, and every fault names its file."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from acertlab.data import files, run as runs
from tests.helpers.run_folders import CONFIG, result, write_run


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
        assert repr(run).startswith(f"Run({str(tmp_path / 'a')!r}: acert on digits, kappa ") and "\n" not in repr(run)
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
