"""Run folders: what is written is what is read, nothing half written is ever seen, and every fault names its file."""

import dataclasses
import json
import time
import warnings

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from acertlab._validation import Within
from acertlab.data import files, run_table
from acertlab.data import run as runs
from acertlab.data.pack import pack_runs
from acertlab.models import architectures as models
from acertlab.training.parameters import check_parameters


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


SPEC = {
    "eps_max": Within(0, 1, open_low=True),
    "kappa": Within(0, 1),
    "method": ("ibp", "acert"),
    "epochs": Within(1, kind=int),
    "seed": int,
    "out_dir": str,
    "fast": bool,
}
GOOD = {"eps_max": 0.4, "kappa": 0.0, "method": "acert", "epochs": 3, "seed": 0, "out_dir": "", "fast": False}


class TestParameters:
    def test_coerced_in_the_order_of_the_spec(self):
        values = check_parameters(
            GOOD | {"eps_max": "8/255", "kappa": 1, "epochs": "5", "fast": "true", "other": 3}, SPEC
        )
        assert list(values) == list(SPEC)
        assert values == GOOD | {"eps_max": 8 / 255, "kappa": 1.0, "epochs": 5, "fast": True}
        assert isinstance(values["kappa"], float)
        assert isinstance(values["epochs"], int)
        assert check_parameters({"eps": "8.8/255"}, {"eps": float}) == {"eps": 8.8 / 255}

    @pytest.mark.parametrize(
        ("name", "value", "accepted"),
        [
            ("eps_max", 0, r"a number \(0.1 or \"8/255\"\) > 0 and <= 1"),
            ("eps_max", 1.5, "<= 1"),
            ("eps_max", "8/0", "> 0"),
            ("eps_max", "large", "> 0"),
            ("eps_max", float("nan"), "> 0"),
            ("eps_max", None, "> 0"),
            ("eps_max", True, "> 0"),
            ("kappa", -0.1, ">= 0 and <= 1"),
            ("method", "acret", r"ibp, acert; did you mean 'acert'\?"),
            ("epochs", 2.5, "a whole number >= 1"),
            ("epochs", 0, "a whole number >= 1"),
            ("seed", "x", "a whole number"),
            ("out_dir", 3, "text"),
            ("fast", 1, "True or False"),
        ],
    )
    def test_every_fault_names_parameter_value_and_what_is_accepted(self, name, value, accepted):
        with pytest.raises(ValueError, match=f"parameter {name} = .*: accepted (is|are) .*{accepted}") as error:
            check_parameters(GOOD | {name: value}, SPEC)
        assert repr(value) in str(error.value)

    def test_a_function_as_the_check(self):
        def even(value):
            if value % 2:
                raise ValueError("an even number")
            return value

        assert check_parameters({"a": 2}, {"a": even}) == {"a": 2}
        with pytest.raises(ValueError, match="parameter a = 3: accepted is an even number"):
            check_parameters({"a": 3}, {"a": even})

    def test_a_parameter_that_is_not_set(self):
        with pytest.raises(ValueError, match="does not set kappa"):
            check_parameters({"eps_max": 0.1}, {"eps_max": float, "kappa": float})

    @given(st.integers(0, 10**6), st.integers(1, 10**6))
    def test_fractions(self, top, bottom):
        assert check_parameters({"eps": f"{top}/{bottom}"}, {"eps": float})["eps"] == top / bottom


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """A notebook with one parameter, whose last cell is run twice over variables of its own."""
    check = (
        "from acertlab._validation import Within\nfrom acertlab.training.parameters import check_parameters\n"
        "(kappa,) = check_parameters(globals(), {'kappa': Within(0, 1)}).values()"
    )
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    new = nbformat.v4
    cells = [
        new.new_code_cell("kappa = 0.0  # share of the clean loss", metadata={"tags": ["parameters"]}),
        new.new_code_cell(check),
        new.new_code_cell("own_variable = 3"),
        new.new_code_cell(check + "\nprint(repr(kappa))"),
    ]
    path = tmp_path_factory.mktemp("notebook") / "a.ipynb"
    nbformat.write(new.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def execute(notebook, **parameters):
    with warnings.catch_warnings():  # papermill's and the kernel's own
        warnings.simplefilter("ignore")
        return papermill.execute_notebook(notebook, None, parameters, progress_bar=False, log_output=False)


class TestThroughPapermill:
    def test_a_fraction_arrives_as_a_number(self, notebook):
        executed = execute(notebook, kappa="1/4")
        assert executed.cells[-1].outputs[0].text == "0.25\n"

    def test_a_misspelt_name_stops_the_notebook(self, notebook):
        with pytest.raises(papermill.PapermillExecutionError, match=r"'kapa' is not a parameter.*did you mean 'kappa'"):
            execute(notebook, kapa=0.5)

    def test_out_of_range(self, notebook):
        with pytest.raises(papermill.PapermillExecutionError, match="parameter kappa = 2: accepted is a number"):
            execute(notebook, kappa=2)
