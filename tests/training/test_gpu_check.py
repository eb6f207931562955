"""`acertlab gpu-check`: what it needs, what a cut-off leaves, and that what is wrong on a device is told."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from acertlab.__main__ import main
from acertlab.data.datasets import load_dataset
from acertlab.data.files import read_json
from acertlab.training.config import PRECISIONS
from acertlab.training.cost import gpu_check, gpu_steps
from acertlab.training.cost.gpu_steps import NO_GPU, STEPS, Check, Row, row
from tests.helpers.image_files import real, write_folder, write_idx

LACKING = {"pyarrow", "plotly", "IPython", "ipywidgets", "jupyterlab", "ipykernel", "nbformat", "papermill"}
LACKING |= {"distributed", "safetensors", "torchvision", "PIL", "sklearn", "onnx", "hypothesis", "rich", "yaml"}
ALONE = f"""
import sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec
missing = {LACKING}
PathFinder.find_spec = lambda name, *of: None if name.partition(".")[0] in missing else found(name, *of)
from acertlab.__main__ import main
sys.exit(main(["gpu-check", sys.argv[1], "--small"]))
"""


def test_a_small_check_runs_on_a_cpu_with_torch_numpy_scipy_and_pandas_alone(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", ALONE, str(tmp_path / "out")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == [f"{i}-{name}.json" for i, name in enumerate(STEPS, 1)]
    told = {name: read_json(tmp_path / "out" / f"{i}-{name}.json")["rows"] for i, name in enumerate(STEPS, 1)}
    assert [r["verdict"] for r in told["compared"]] == ["passed"] * 4 and min(
        r["inside"] for r in told["compared"]
    ) > 20
    assert len(told["table"]) == 2 * len(PRECISIONS) and all(r["seconds"] > r["least"] > 0 for r in told["table"])
    assert [r["epochs"] for r in told["training"]] == [2, 2] and all(0 <= r["art"] <= 1 for r in told["training"])
    assert len(told["mnist"]) == 2 and all(r["seconds"] > 0 for r in told["mnist"])
    words = ran.stdout.rpartition("\n\n")[2]
    assert words.startswith("passed: 4\nfailed: 0\nnot done:\n") and "slower than calculated: ACERT, " in words
    assert [line.partition(": ")[2] for line in words.splitlines() if line.startswith("decides: ")] == [
        f"a CUDA graph of an ACERT step: {NO_GPU}",
        f"a bound pass by torch.compile: {NO_GPU}",
    ]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    return replace(gpu_check._prepared(tmp_path / "out", None, small=True), deadline=time.perf_counter() + 300)


def test_a_cut_off_loses_nothing_and_an_error_costs_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    taken: list[str] = []
    mended = False

    def three(check: Check) -> Iterator[Row]:
        for what in ("one", "two", "three"):
            if what not in check.known:
                taken.append(what)
                yield row(what, True, "")
                if taken == ["one", "two"]:
                    raise KeyboardInterrupt

    def broken(check: Check) -> Iterator[Row]:
        yield row("before", "measured", "")
        if mended:
            return
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    steps = {"versions": STEPS["versions"], "three": (1, three), "broken": (1, broken), "last": (1, three)}
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    command = ["gpu-check", str(tmp_path), "--small"]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    assert [r["what"] for r in read_json(tmp_path / "2-three.json")["rows"]] == ["one", "two"]
    assert main(command) == 1  # something failed
    assert taken == ["one", "two", "three", "one", "two", "three"]
    assert [r["what"] for r in read_json(tmp_path / "2-three.json")["rows"]] == ["one", "two", "three"]
    said = capsys.readouterr().out.rpartition("\n\n")[2]
    assert "passed: 6\nfailed: 1\n  broken: RuntimeError: CUDA error: an illegal memory access\n" in said
    assert read_json(tmp_path / "3-broken.json")["failed"]["said"].startswith("RuntimeError: CUDA error")
    mended = True
    assert main(command) == 0 and len(taken) == 6  # only what failed is taken again
    assert "passed: 6\nfailed: 0\n" in capsys.readouterr().out.rpartition("\n\n")[2]
    assert main(command) == 0 and capsys.readouterr().out.startswith("\npassed: 6\n")  # all is there


def test_a_folder_of_another_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(gpu_check, "STEPS", {"versions": STEPS["versions"]})
    assert main(["gpu-check", str(tmp_path), "--small"]) == 0
    monkeypatch.setattr(gpu_check, "device_name", lambda device: "NVIDIA H200")
    assert main(["gpu-check", str(tmp_path), "--small"]) == 1
    assert "was begun with device = 'cpu', not 'NVIDIA H200'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    {
        ("out",): "--pack FILE wrote, or --small",
        (): "give OUT, a folder for what is found, or --pack FILE",
        ("out", "--images", "none.npz"): "none.npz is not what acertlab gpu-check --pack writes",
        ("out", "--images", "text.npz"): "text.npz is not what acertlab gpu-check --pack writes",
    }.items(),
)
def test_what_cannot_be_done_is_told_in_a_line(
    arguments: tuple[str, ...],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.npz").write_text("no images")
    assert main(["gpu-check", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.startswith("acertlab gpu-check: error: ") and told in said and said.count("\n") == 1
    assert not Path("out").exists()


def test_radii_that_differ_on_a_device_fail(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model, x, y, eps_max, batch_size=None):
        found = original(model, x, y, eps_max, batch_size=batch_size)
        return found if batch_size is None else replace(found, radius=found.radius + 2e-6 * eps_max)  # the device's

    original = gpu_steps.certified_radius
    monkeypatch.setattr(gpu_steps, "certified_radius", shifted)
    first = next(gpu_steps.compared(check))
    assert first["verdict"] == "failed" and max(first["radii"]) == pytest.approx(2e-6, rel=0.3)


def test_time_that_is_up_ends_a_step(check: Check) -> None:
    over = replace(check, deadline=time.perf_counter() - 1)
    (only,) = gpu_steps.tables(over)
    assert only["verdict"] == "not done" and "the time was up before FastIBP, full, batch 8" in only["said"]
    assert [r["epochs"] for r in gpu_steps.training(over)] == [0, 0]


MARKED = """
import pytest

@pytest.mark.gpu
def test_fine(): pass

@pytest.mark.gpu
def test_wrong(): assert 1 == 2

@pytest.mark.gpu
@pytest.mark.skipif(True, reason="needs two devices")
def test_two(): pass

def test_no_gpu_needed(): assert False
"""


def test_each_test_marked_gpu_is_a_row(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    on_a_gpu = replace(check, device=torch.device("cuda"))
    (none,) = gpu_steps.marked_tests(on_a_gpu)
    assert none["verdict"] == "not done" and none["said"] == f"no tests in {tmp_path / 'tests'}"
    Path("tests").mkdir()
    Path("tests/test_marked.py").write_text(MARKED)
    Path("tests/test_other.py").write_text("import a_library_that_is_missing")  # says nothing of a mark
    Path("tests/test_broken.py").write_text("import a_library_that_is_missing\n# mark.gpu")
    found = {r["what"].rpartition(".")[2]: (r["verdict"], r["said"]) for r in gpu_steps.marked_tests(on_a_gpu)}
    assert found["test_fine"] == ("passed", "") and found["test_two"] == ("not done", "needs two devices")
    assert found["test_wrong"][0] == "failed" and "assert 1 == 2" in found["test_wrong"][1] and len(found) == 4
    assert found["test_broken"] == ("failed", "collection failure")


def test_what_hangs_or_fails_apart_costs_its_row_only(check: Check) -> None:
    late = replace(check, device=torch.device("cuda"), deadline=time.perf_counter() + 1)
    assert gpu_steps._gain(late, "it", _sleeps)["said"].startswith("TimeoutError")
    wrong = gpu_steps._gain(replace(late, deadline=time.perf_counter() + 300), "it", _fails)
    assert (wrong["verdict"], wrong["said"]) == ("not done", "RuntimeError: no capture")
    fine = gpu_steps._gain(replace(late, deadline=time.perf_counter() + 300), "it", _twice_as_fast)
    assert fine["said"] == "10 ms, with it 5: 2.00 times as fast; from 1.1 on it is worth its lines"


def _sleeps(config: object) -> None:
    time.sleep(60)


def _fails(config: object) -> None:
    raise RuntimeError("no capture\nbecause")


def _twice_as_fast(config: object) -> tuple[float, float]:
    return 0.01, 0.005


def test_images_and_a_network_are_packed_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    rng, classes = np.random.default_rng(0), [f"class-{i}" for i in range(10)]
    write_idx(tmp_path / "MNIST" / "raw", rng, n=(12, 40))
    for part in ("train", "test"):
        write_folder(tmp_path / "cifar10" / part, rng, classes, per_class=3, shape=(32, 32, 3))
    monkeypatch.setenv("ACERTLAB_DATA", str(tmp_path))
    monkeypatch.setenv("ACERTLAB_CACHE", str(tmp_path / "cache"))
    assert main(["gpu-check", "--pack", str(tmp_path / "images.npz")]) == 0
    assert f"{(tmp_path / 'images.npz').stat().st_size / 1e6:.2f} MB" in capsys.readouterr().out
    data, (x, y), net = gpu_check._read_pack(tmp_path / "images.npz")
    there = load_dataset("cifar10")
    assert torch.equal(data.train_x, there.train_x) and torch.equal(data.test_y, there.test_y)
    assert torch.equal(x, load_dataset("mnist").test_x) and len(net["radii"]) == len(y) == 40
    monkeypatch.setattr(gpu_check, "STEPS", {name: STEPS[name] for name in ("versions", "mnist")})
    # a trained network on noise: not the radii that it has on MNIST
    assert main(["gpu-check", str(tmp_path / "out"), "--small", "--images", str(tmp_path / "images.npz")]) == 1
    assert "failed: MNIST certified, a small network: 40 images up to 0.5" in capsys.readouterr().out


def test_real_images_are_at_most_40_megabytes_and_their_radii_the_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real("MNIST", "raw"), real("cifar10")
    assert gpu_check.pack(tmp_path / "images.npz") <= 40e6
    monkeypatch.setattr(gpu_check, "STEPS", {name: STEPS[name] for name in ("versions", "mnist")})
    assert main(["gpu-check", str(tmp_path / "out"), "--small", "--images", str(tmp_path / "images.npz")]) == 0
    assert "passed: MNIST certified, a small network" in capsys.readouterr().out
