"""Networks of others: checkpoints in published layouts, program files, and imported runs on the Pareto picture."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

import acertlab as al
from acertlab.analysis.fronts import analyse
from acertlab.analysis.tradeoff import pool_seeds
from acertlab.bounds.rules.affine import Normalize
from acertlab.data.datasets import ImageData, load_dataset
from acertlab.data.pack import pack_runs
from acertlab.data.run import RESULT_KEYS, load_run
from acertlab.data.run_table import load_radii, load_runs
from acertlab.models.architectures import MODELS, small_cnn
from acertlab.models.state_dict import load_weights
from acertlab.models.torch_program import load_program
from acertlab.radius.certified import certified_radius
from acertlab.training.config import TrainConfig
from acertlab.training.imported_run import _architecture, import_run
from acertlab.training.loop.train import train
from acertlab.visualization.fronts import tradeoff
from acertlab.visualization.report import write_report
from acertlab.visualization.training import training_history
from acertlab.visualization.widgets.pareto import first_view, pareto_figures, pareto_texts

MEAN, STD = (0.3,), (0.4,)
SHAPE = (1, 8, 8)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def lively(model: nn.Module) -> nn.Module:
    """In evaluation mode, with BatchNorms that do something."""
    for layer in model.modules():
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            if layer.affine:
                nn.init.uniform_(layer.weight, 0.5, 1.5), nn.init.normal_(layer.bias, 0, 0.1)
            nn.init.normal_(layer.running_mean, 0, 0.1), nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return model.eval()


def assert_same(ours: nn.Module, theirs: nn.Module, merged: tuple[bool, ...] = (True, False)) -> None:
    """The same outputs and, with and without merged margins, the same certified radii."""
    x = torch.rand(7, *SHAPE)
    assert not ours.training and all(p.dtype == torch.float32 for p in ours.parameters())
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs(x), atol=1e-5)
        y = theirs(x).argmax(1)
    for how in merged:
        radii = [certified_radius(m.double(), x.double(), y, 0.5, merged=how).radius for m in (ours, theirs)]
        assert (radii[0] > 0).all() and torch.allclose(*radii, rtol=1e-4)
        ours.float(), theirs.float()


# ---- state dicts in the layouts of publications


class Normalization(nn.Module):
    """SABR's: statistics as parameters of shape (1, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(MEAN).view(1, -1, 1, 1), requires_grad=False)
        self.sigma = nn.Parameter(torch.tensor(STD).view(1, -1, 1, 1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.sigma


class Blocks(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def layers() -> list[nn.Module]:
    return list(small_cnn(SHAPE, 10, width=2, linear=6))


def sabr(path: Path) -> nn.Module:
    net = lively(Blocks(Normalization(), *layers()))
    torch.save(net.state_dict(), path)
    return net


def sabr_with_relaxations(path: Path) -> nn.Module:
    """As its abstract network has it: the slopes of DeepZ are among the parameters."""
    net = lively(Blocks(Normalization(), *layers()))
    state = OrderedDict((f"layers.0.{name}", t) for name, t in net.state_dict().items())
    torch.save({"state_dict": state | {"layers.0.3.deepz_lambda": torch.zeros(2, 3, 3)}}, path)
    return net


def fast(path: Path) -> nn.Module:
    """Shi et al.'s and expressive-losses': no normalisation inside, the state dict beside optimiser and epoch."""
    net = lively(nn.Sequential(*layers()))
    optimizer = torch.optim.Adam(net.parameters())
    held = {"state_dict": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "best": (9.0, 9.0, -1)}
    torch.save(held, path)
    return nn.Sequential(Normalize(MEAN, STD), net).eval()


def crown_ibp(path: Path) -> nn.Module:
    """Of 2019: DataParallel's names, no counters, an error that is numpy's, and the old file format."""
    net = lively(nn.Sequential(*layers()))
    state = {f"module.{name}": t for name, t in net.state_dict().items() if "num_batches" not in name}
    held = {"state_dict": state, "robust_err": np.float64(0.1), "epoch": 3}
    torch.save(held, path, _use_new_zipfile_serialization=False)
    return nn.Sequential(Normalize(MEAN, STD), net).eval()


@pytest.mark.parametrize("publish", [sabr, sabr_with_relaxations, fast, crown_ibp])
def test_a_published_layout_certifies_like_the_network_itself(publish: Callable, tmp_path: Path) -> None:
    theirs = publish(tmp_path / "net.pth")
    ours = load_weights(
        small_cnn(SHAPE, 10, width=2, linear=6, mean=MEAN, std=STD), tmp_path / "net.pth", ignore=("deepz_lambda",)
    )
    assert_same(ours, theirs)
    # and where the user's architecture has no normalisation
    outside = load_weights(nn.Sequential(*layers()), tmp_path / "net.pth", mean=MEAN, std=STD, ignore=["deepz_lambda"])
    assert str(outside) == str(ours)
    assert_same(outside, theirs)


def test_the_same_names_go_by_name_whatever_their_order(tmp_path: Path) -> None:
    net = lively(small_cnn(SHAPE, 10, width=2, linear=6, mean=MEAN, std=STD))
    backwards = dict(reversed(net.state_dict().items()))
    torch.save(backwards, tmp_path / "net.pth")
    save_file(backwards, tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        assert_same(load_weights(small_cnn(SHAPE, 10, width=2, linear=6, mean=(0,), std=(1,)), tmp_path / name), net)
    with pytest.raises(ValueError, match=r"by name \(safetensors keep no order\). Missing in the file: blocks.0"):
        load_weights(Blocks(*layers()), tmp_path / "net.safetensors")


@pytest.mark.parametrize("statistics", [{}, {"mean": (0.3,), "std": (0.5,)}])
def test_a_normalisation_that_differs_is_not_dropped(statistics: dict, tmp_path: Path) -> None:
    sabr(tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"normalises otherwise than the model: blocks.0.mean = \[0.3\]; .*\[0.4\]"):
        load_weights(small_cnn(SHAPE, 10, width=2, linear=6, **statistics), tmp_path / "net.pth")
    with pytest.raises(ValueError, match="has a Normalize already"):
        load_weights(small_cnn(SHAPE, 10, mean=MEAN, std=STD), tmp_path / "net.pth", mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="mean, std: give both"):
        load_weights(small_cnn(SHAPE, 10), tmp_path / "net.pth", mean=MEAN)


@pytest.mark.parametrize(
    "model, message",
    [
        (
            lambda: nn.Sequential(*layers()[:-1], nn.Linear(6, 5)),
            r"Missing in the file: none. Unexpected in it: none. Other shapes: 10.weight \(10, 6\) in the file, "
            r"\(5, 6\) in the model, 10.bias \(10,\)",
        ),
        (
            lambda: nn.Sequential(*layers(), nn.Linear(10, 10)),
            r"Missing in the file: 11.weight, 11.bias. Unexpected in it: none. Other shapes: none",
        ),
        (lambda: nn.Sequential(*layers()[:-1]), r"Missing in the file: none. Unexpected in it: 10.weight, 10.bias"),
        (
            lambda: Blocks(*layers()[:-1], nn.Linear(6, 5)),
            r"blocks.0.weight, .* and 8 more. .*: 0.weight, .* and 8 more. Other shapes: none",
        ),
    ],
)
def test_another_layout_is_listed_and_nothing_is_loaded(model: Callable, message: str, tmp_path: Path) -> None:
    fast(tmp_path / "net.pth")
    net = model()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(net, tmp_path / "net.pth")
    assert net.training and all(torch.equal(before[name], t) for name, t in net.state_dict().items())


# ---- files that are hostile, damaged or something else


class Code:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("ran",)


def write_bytes(content: Callable[[], bytes]) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content())


def half(path: Path, **settings: Any) -> None:
    torch.save(nn.Linear(50, 50).state_dict(), path, **settings)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def script(path: Path, net: nn.Module | None = None, **settings: Any) -> None:
    torch.jit.save(torch.jit.script(net or nn.Linear(3, 2), **settings), path)


HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "code": (lambda path: torch.save({"state_dict": Code()}, path), r"more than tensors \(posix.mkdir\).*its code"),
    "a pickled network": (lambda path: torch.save(nn.Linear(3, 2), path), r"nn.modules.linear.Linear\), and is not re"),
    "a bare pickle": (write_bytes(lambda: pickle.dumps(Code())), "is no checkpoint, or a damaged one"),
    "an old pickle": (write_bytes(lambda: pickle.dumps(Code(), 2)), r"posix.mkdir|is no checkpoint"),
    "half a file": (half, "is no checkpoint, or a damaged one"),
    "half an old file": (lambda path: half(path, _use_new_zipfile_serialization=False), "is no checkpoint, or a damag"),
    "text": (write_bytes(lambda: b"hello world"), "is no checkpoint"),
    "empty": (write_bytes(lambda: b""), "is no checkpoint"),
    "TorchScript": (script, "is TorchScript, a whole program: use load_program"),
    "a tensor": (lambda path: torch.save(torch.zeros(2), path), "holds a Tensor, no state dict"),
    "no tensors": (lambda path: torch.save({"epoch": 3, "model": {"a": 1}}, path), "holds a table of a, no state dict"),
    "nothing": (lambda path: torch.save({}, path), "no state dict"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is deprecated
@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_is_no_state_dict_is_one_clear_error(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, message = HOSTILE[name]
    write(tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(nn.Linear(3, 2), tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for load in (load_program, lambda path: load_weights(nn.Linear(3, 2), path)):
        with pytest.raises(FileNotFoundError, match="path: there is no file .*gone"):
            load(tmp_path / "gone.pt")
    (tmp_path / "net.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_weights(nn.Linear(3, 2), tmp_path / "net.safetensors")


# ---- programs


class Residual(nn.Module):
    """A normalisation of its own, in-place ReLUs, a residual sum, pooling, dropout, and views of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding="same", bias=False)
        self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm1d(6, affine=False)
        self.hidden, self.head = nn.Linear(64, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu((x - 0.3) / 0.4, inplace=True)
        x = F.leaky_relu(self.first(x), 0.1)
        x = torch.relu_(x + self.norm(self.second(x)))
        x = F.dropout2d(F.max_pool2d(x, 2), 0.5, self.training)
        x = x.view(x.size(0), -1)
        return self.head(F.elu(1 - self.last(self.hidden(x)).clamp(min=-1)))


class Bare(nn.Module):
    """Weights without layers, a transposed one among them; slices, and the softmax of a deployed network."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.deployed = nn.Parameter(torch.randn(5, 32) / 5), True

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, 0, 4:], 0.5 * x[:, 0, :4]], 1).reshape(-1, 64)
        x = F.pad(x, (1, 1))[:, 1:-1].unflatten(1, (2, 32)).mean(1)
        x = x @ self.weight.t()
        return torch.softmax(x, -1) if self.deployed else x


PROGRAMS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 5)),
    "blocks": lambda: Blocks(Normalization(), *layers()),
    "residual": Residual,
    "bare": Bare,
}


def as_script(net: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.script(net), path)
    return path


def as_trace(net: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.trace(net, torch.rand(1, *SHAPE)), path)
    return path


def as_frozen(net: nn.Module, path: Path) -> Path:
    torch.jit.save(torch.jit.freeze(torch.jit.script(net)), path)
    return path


def as_export(net: nn.Module, path: Path, batch: int = 1, **settings: Any) -> Path:
    torch.export.save(torch.export.export(net, (torch.rand(batch, *SHAPE),), **settings), path)
    return path


def as_dynamic(net: nn.Module, path: Path) -> Path:
    return as_export(net, path, 3, dynamic_shapes=({0: torch.export.Dim("batch")},))


FORMATS = (as_script, as_trace, as_frozen, as_export, as_dynamic, lambda net, path: as_export(net, path, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("save", FORMATS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_certifies_like_the_network_itself(name: str, save: Callable, tmp_path: Path) -> None:
    net = lively(PROGRAMS[name]())
    path, random = save(net, tmp_path / "net.pt2"), torch.get_rng_state()
    ours = load_program(path, input_shape=SHAPE)
    assert torch.equal(random, torch.get_rng_state())
    net.deployed = False
    assert_same(ours, net, merged=(False,) if name == "bare" else (True, False))  # without layers nothing is merged


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_last_layer_of_a_program_is_merged_and_inputs_are_normalised(tmp_path: Path) -> None:
    net = lively(Bare())
    ours = load_program(as_script(net, tmp_path / "net.pt"), input_shape=SHAPE, mean=MEAN, std=STD)
    net.deployed = False
    theirs = nn.Sequential(Normalize(MEAN, STD), net).eval()
    assert_same(ours, theirs, merged=(False,))
    x, y = torch.rand(20, *SHAPE), torch.zeros(20, dtype=torch.int64)
    radii = [certified_radius(ours, x, y, 0.5, merged=merged).radius for merged in (True, False)]
    assert (radii[0] >= radii[1]).all() and (radii[0] > radii[1]).any()


def test_other_bounds_take_a_program(tmp_path: Path) -> None:
    net = lively(Blocks(Normalization(), *layers()))
    ours, theirs = (
        load_program(as_export(net, tmp_path / "net.pt2")),
        nn.Sequential(Normalize(MEAN, STD), *net.blocks[1:]),
    )
    x = torch.rand(3, *SHAPE)
    y = net(x).argmax(1)
    for settings in ({"bound": "crown", "rtol": 1e-3}, {"sound": True}, {"sound": "float32"}):
        radii = [certified_radius(model, x, y, 0.5, **settings).radius for model in (ours, theirs.eval())]
        assert (radii[0] > 0).all() and torch.allclose(*radii, rtol=1e-2)


class Program(nn.Module):
    """A function as a forward that `torch.export` takes."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return 2 * x


class FourAtOnce(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 3)


class ChangesElsewhere(nn.Module):
    """What a change in place does to another name is not in the graph; pixels alone would not show it here."""

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        x[:, :2].clamp_(max=2.5)
        return x


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def exported(net: nn.Module, *inputs: Tensor) -> Callable[[Path], Any]:
    return lambda path: torch.export.save(torch.export.export(net, inputs), path)


X, TRAINED = torch.rand(1, 3), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "operators": (
        exported(Program(lambda x: torch.det(x.cos().unsqueeze(0)) + x.cumsum(1)), torch.rand(1, 1)),
        r"no rule for aten.cos.default, aten.det.default, aten.cumsum.default of .*load_weights",
    ),
    "data": (lambda path: script(path, Decides()), "cannot be traced with a batch of 1 of shape"),
    "a batch of four": (lambda path: script(path, FourAtOnce()), "cannot be traced with a batch of 1 of shape"),
    "a mean over the batch": (exported(Program(lambda x: x + x.mean(0, keepdim=True)), X), "computes something else"),
    "a change in place": (lambda path: script(path, ChangesElsewhere()), "computes something else"),
    "training mode": (exported(TRAINED.train(), torch.rand(2, 3)), "no rule for aten.batch_norm.default in training"),
    "two inputs": (exported(Two(), X, X), "has 2 inputs and 1 outputs; accepted is one of each"),
    "two outputs": (exported(Program(lambda x: (x, x)), X), "has 1 inputs and 2 outputs"),
    "two outputs of TorchScript": (lambda path: script(path, nn.AdaptiveMaxPool1d(2, True)), "several outputs"),
    "no classes": (exported(Program(lambda x: x.sum(1)), X), r"has shape \(1,\); it must be \(1, classes\)"),
    "a state dict": (lambda path: torch.save(TRAINED.state_dict(), path), "a state dict goes to load_weights"),
    "text": (write_bytes(lambda: b"hello world"), "is no TorchScript or torch.export file, or is damaged"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", UNFIT)
def test_a_program_that_does_not_fit_is_one_clear_error(name: str, tmp_path: Path) -> None:
    write, message = UNFIT[name]
    write(path := tmp_path / "net.pt2")
    with pytest.raises(ValueError, match=message):
        load_program(path, input_shape=None if name == "operators" else (3,))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_damaged_program_and_an_open_shape(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    script(path)
    with pytest.raises(ValueError, match="input_shape: .* leaves the shape of a sample open; give it"):
        load_program(path)
    for write in (script, exported(nn.Linear(3, 2), X)):
        write(path)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError, match="is no TorchScript or torch.export file, or is damaged"):
            load_program(path, input_shape=(3,))


def replaced(path: Path, ending: str, content: bytes) -> None:
    """One file of an archive, replaced."""
    with zipfile.ZipFile(path) as archive:
        files = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in files:
            archive.writestr(name, content if name.endswith(ending) else old)


def test_pickled_code_in_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Code(), tmp_path / "code.pt")
    opaque = {"config": {"x": {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}}}
    for ending, content in (
        ("sample_inputs/model.pt", (tmp_path / "code.pt").read_bytes()),
        ("constants_config.json", json.dumps(opaque).encode()),
    ):
        exported(nn.Linear(3, 2), X)(tmp_path / "net.pt2")
        assert load_program(tmp_path / "net.pt2")(X).shape == (1, 2)
        replaced(tmp_path / "net.pt2", ending, content)
        with pytest.raises(ValueError, match=r"it holds pickled code( \(posix\.mkdir\))?, which is not run"):
            load_program(tmp_path / "net.pt2")
        assert not (tmp_path / "ran").exists()


# ---- runs


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


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_ours_is_known_again(name: str, digits: ImageData) -> None:
    net = lively(MODELS[name](SHAPE, 10, width=4, mean=MEAN, std=STD))
    found = _architecture(net, digits)
    assert found["model"] == name and found["width"] == 4
    assert found["mean"] == pytest.approx(MEAN) and found["std"] == pytest.approx(STD)
    assert _architecture(MODELS[name](SHAPE, 10, width=4).eval(), digits)["mean"] is None
    assert _architecture(nn.Sequential(*net, nn.Identity()).eval(), digits) == {"model": "external"}
