"""Networks of others as runs, read by everything that reads runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import acertlab as al
from acertlab.analysis.fronts import analyse
from acertlab.analysis.tradeoff import pool_seeds
from acertlab.data.datasets import ImageData, load_dataset
from acertlab.data.pack import pack_runs
from acertlab.data.run import RESULT_KEYS, load_run
from acertlab.data.run_table import load_radii, load_runs
from acertlab.models.architectures import MODELS
from acertlab.models.state_dict import load_weights
from acertlab.models.torch_program import load_program
from acertlab.training.config import TrainConfig
from acertlab.training.imported_run import _architecture, import_run
from acertlab.training.loop.train import train
from acertlab.visualization.fronts import tradeoff
from acertlab.visualization.pages.report import write_report
from acertlab.visualization.training import training_history
from acertlab.visualization.widgets.pareto import first_view, pareto_figures, pareto_texts
from tests.helpers.checkpoints import MEAN, SHAPE, STD, as_export, lively


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def digits() -> ImageData:
    """A hundred or so images, so that a run takes a moment."""
    data, cut = load_dataset("digits"), {"train": 200, "val": 50, "test": 60}
    return replace(data, **{f"{part}_{k}": getattr(data, f"{part}_{k}")[:n] for part, n in cut.items() for k in "xy"})


@pytest.fixture(scope="module")
def root(digits: ImageData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run, the same network imported, and a program imported."""
    root, config = (
        tmp_path_factory.mktemp("runs"),
        TrainConfig(
            method="ibp",
            eps_max=0.1,
            model="mlp",
            width=32,
            epochs=4,
            ramp_epochs=2,
            batch_size=32,
            lr=1e-2,
            device="cpu",
        ),
    )
    trained = train(config, digits, root / "trained", progress=False)
    import_run(trained.load_model(), digits, root / "same", "sabr", 0.1, source="a paper", progress=False)
    as_export(trained.load_model(), root / "net.pt2")
    program = load_program(root / "net.pt2")
    import_run(program, digits, root / "program", "SABR (published)", 0.1, kappa=0.5, progress=False)
    return root


def test_an_imported_run_is_the_trained_one_under_another_name(root: Path, digits: ImageData) -> None:
    trained, same, program = (load_run(root / name) for name in ("trained", "same", "program"))
    for run in (same, program):
        np.testing.assert_allclose(run.radii["radius"], trained.radii["radius"], rtol=1e-4, atol=1e-7)
        assert (run.radii["radius"] > 0).any() and not len(run.history)
        assert run.result["cert_acc"].keys() == trained.result["cert_acc"].keys()
        shared = ("dataset", "eps_max", "radius_cap", "verifier", "merged", "domain", "xtol", "rtol", "n", "split")
        assert all(run.result[name] == trained.result[name] for name in shared) and set(RESULT_KEYS) <= set(run.result)
        assert run.result["acr"] == pytest.approx(trained.result["acr"], rel=1e-4)
        assert not (run.path / "certify").exists()
    x = al.to_float(digits.test_x)
    assert torch.equal(same.load_model()(x), trained.load_model()(x)) and same.config["source"] == "a paper"
    assert program.config["model"] == "external"
    with pytest.raises(ValueError, match="is an imported network, none of small_cnn, .*acertlab.load_weights"):
        program.load_model()
    kept = load_weights(load_program(root / "net.pt2"), root / "program" / "model.safetensors")
    assert torch.allclose(kept(x), trained.load_model()(x), atol=1e-5)


def test_every_reader_takes_an_imported_run(root: Path, tmp_path: Path) -> None:
    runs = load_runs(root)
    assert set(runs.method) == {"ibp", "sabr", "SABR (published)"} and not runs.attrs["unfinished"]
    assert "SABR (published)" in {trace.name for trace in tradeoff(runs).data}
    networks = pool_seeds(runs, load_radii(runs))
    view = first_view(networks)
    assert len(pareto_figures(networks, view)) and "SABR (published)" in pareto_texts(networks, view)["kappa_text"]
    picked = replace(view, picked=[point.method for point in networks.points].index("SABR (published)"))
    assert "so that the run cannot be repeated" in pareto_texts(networks, picked)["command"]
    training_history(load_run(root / "same").history)
    assert write_report(root, tmp_path / "report.html", resamples=20, progress=False) == []
    assert "SABR (published)" in (tmp_path / "report.html").read_text()
    packed = load_runs(pack_runs(root, tmp_path / "packed"))
    for table in (runs, packed):  # the trained run keeps its validation, the imported ones have none
        chosen = {best.method: best.chosen_on for best in analyse(table, resamples=20).tuned}
        assert chosen == {"ibp": "validation", "sabr": "test", "SABR (published)": "test"}


def test_a_folder_with_another_run_is_refused(root: Path, digits: ImageData, tmp_path: Path) -> None:
    net, before = load_run(root / "same").load_model(), {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    again = import_run(net, digits, root / "same", "sabr", 0.1, source="a paper")
    assert again.result == load_run(root / "same").result
    with pytest.raises(ValueError, match="holds a run of another configuration: kappa = 0.0 there, 0.5 here"):
        import_run(net, digits, root / "same", "sabr", 0.1, kappa=0.5, source="a paper")
    with pytest.raises(ValueError, match="holds a run of another configuration: .*method = 'ibp' there, 'sabr' here"):
        import_run(net, digits, root / "trained", "sabr", 0.1)
    with torch.no_grad():
        net[-1].bias[0] += 1
    with pytest.raises(ValueError, match="holds a run of another configuration: network = "):
        import_run(net, digits, root / "same", "sabr", 0.1, source="a paper")
    assert before == {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_a_stopped_import_goes_on(
    root: Path, digits: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = load_run(root / "same").load_model()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("acertlab.training.imported_run.write_weights", stop)
        import_run(net, digits, tmp_path / "run", "sabr", 0.1, progress=False)
    assert load_runs(tmp_path).attrs["unfinished"] == [str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("acertlab.radius.certificate.certify_batch", stop)  # what is done is not done again
        run = import_run(net, digits, tmp_path / "run", "sabr", 0.1, progress=False)
    assert run.result["acr"] == load_run(root / "same").result["acr"]


@pytest.mark.parametrize(
    "model, settings, message",
    [
        (nn.Linear(3, 10), {}, r"model: it does not take images \(1, 8, 8\) of digits"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), {}, r"model: it gives \(4, 3\) for 4 images .* not \(4, 10\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"kappa": 2}, "kappa = 2: accepted is"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"eps_max": 0}, "eps_max = 0: accepted is"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"method": ""}, "method = '': accepted is a name"),
    ],
)
def test_an_import_that_makes_no_sense_leaves_no_folder(
    model: nn.Module, settings: dict, message: str, digits: ImageData, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        import_run(model.eval(), digits, tmp_path / "run", **{"method": "sabr", "eps_max": 0.1, **settings})
    assert not (tmp_path / "run").exists()


def test_one_logit_of_several_outputs_is_imported(digits: ImageData, tmp_path: Path) -> None:
    labels = {f"{part}_y": getattr(digits, f"{part}_y") % 2 for part in ("train", "val", "test")}
    data = replace(digits, classes=("even", "odd"), **labels)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logit": self.net(x), "twice": 2 * self.net(x)}

    expected = al.certified_radius(net, al.to_float(data.test_x), data.test_y, 0.1)
    for name, model in {"plain": net, "named": al.select_output(Named().eval(), "logit")}.items():
        run = import_run(model, data, tmp_path / name, "binary", 0.1, radius_cap=0.1, progress=False)
        assert run.result["acc"] == al.accuracy(net, data.test_x, data.test_y)
        assert np.allclose(run.radii["radius"], expected.radius.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_ours_is_known_again(name: str, digits: ImageData) -> None:
    net = lively(MODELS[name](SHAPE, 10, width=4, mean=MEAN, std=STD))
    found = _architecture(net, digits)
    assert found["model"] == name and found["width"] == 4
    assert found["mean"] == pytest.approx(MEAN) and found["std"] == pytest.approx(STD)
    assert _architecture(MODELS[name](SHAPE, 10, width=4).eval(), digits)["mean"] is None
    assert _architecture(nn.Sequential(*net, nn.Identity()).eval(), digits) == {"model": "external"}
