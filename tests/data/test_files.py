"""What is written aside and renamed is whole, or not there; JSON of everything that a run writes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors.torch import load_file

from acertlab.data import files


class TestAtomicWriting:
    @pytest.mark.parametrize(
        ("write", "old", "new"),
        [
            (files.write_json, {"a": 1}, {"a": object()}),
            (files.write_parquet, pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [object()]})),
            (files.write_weights, {"a": torch.ones(2)}, {"a": "not a tensor"}),
        ],
    )
    def test_a_failed_write_leaves_the_old_file_alone(self, tmp_path, write, old, new):
        path = tmp_path / "file"
        write(path, old)
        before = path.read_bytes()
        with pytest.raises(Exception):  # noqa: B017 - whatever the writer raises
            write(path, new)
        assert path.read_bytes() == before
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_a_crash_before_the_renaming_leaves_no_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            files.write_json(tmp_path / "result.json", {"a": 1})
        assert list(tmp_path.iterdir()) == []

    def test_json_of_tensors_arrays_and_odd_numbers(self, tmp_path):
        content = {
            "t": torch.tensor([1.0, float("nan")]),
            "n": np.float32(0.5),
            "i": np.int64(3),
            "inf": float("inf"),
            "path": tmp_path,
            0.1: (True, None),
        }
        files.write_json(tmp_path / "a.json", content)
        read = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
        assert read == {"t": [1.0, None], "n": 0.5, "i": 3, "inf": None, "path": str(tmp_path), "0.1": [True, None]}

    def test_weights_that_share_memory_or_are_views(self, tmp_path):
        w = torch.arange(6.0).reshape(2, 3)
        files.write_weights(tmp_path / "w", {"a": w, "b": w, "t": w.T})

        read = load_file(tmp_path / "w")
        assert torch.equal(read["a"], w)
        assert torch.equal(read["b"], w)
        assert torch.equal(read["t"], w.T)

    @given(
        st.dictionaries(
            st.text(),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.text()
                | st.floats(allow_nan=False, allow_infinity=False),
                st.lists,
            ),
        )
    )
    def test_plain_content_comes_back(self, content):
        assert json.loads(json.dumps(files._plain(content), allow_nan=False)) == content


class TestShipped:
    def test_what_comes_with_the_package(self):
        assert files.shipped("notebooks/02_training.ipynb").is_file()
        assert files.shipped("data/results/README.md").is_file()

    def test_what_does_not(self):
        with pytest.raises(FileNotFoundError, match=r"notebooks/a.ipynb does not come with acertlab"):
            files.shipped("notebooks/a.ipynb")
