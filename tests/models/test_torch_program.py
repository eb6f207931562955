"""Program files, of TorchScript and torch.export."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.rules.affine import Normalize
from acertlab.models.torch_program import load_program
from acertlab.radius.certified import certified_radius
from tests.helpers.checkpoints import (
    MEAN,
    SHAPE,
    STD,
    Blocks,
    Code,
    Normalization,
    as_export,
    assert_same,
    layers,
    lively,
    script,
    write_bytes,
)
from tests.helpers.networks import Program


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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


class Decides(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return 2 * x


class FourAtOnce(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(4, 3)


class ChangesElsewhere(nn.Module):
    """What a change in place does to another name; pixels alone would not show it here."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        x[:, :2].clamp_(max=2.5)
        return self.head(x)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("save", [as_script, as_dynamic])
def test_a_change_in_place_reaches_all_names(save: Callable, tmp_path: Path) -> None:
    net = ChangesElsewhere().eval()
    path = tmp_path / "net.pt2"
    if save is as_script:
        save(net, path)
    else:
        exported(net, X.repeat(3, 1), dynamic_shapes=({0: torch.export.Dim("batch")},))(path)
    ours, x = load_program(path, input_shape=(3,)), 4 * torch.rand(64, 3)
    assert torch.allclose(ours(x), net(x))
    result = certified_radius(ours, x, net(x).argmax(1), 4.0, domain=None)
    for _ in range(20):
        inside = x + result.radius.unsqueeze(1) * (2 * torch.rand_like(x) - 1)
        assert (net(inside).argmax(1) == net(x).argmax(1))[result.radius > 0].all()


class Two(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def exported(net: nn.Module, *inputs: Tensor, **settings: Any) -> Callable[[Path], Any]:
    return lambda path: torch.export.save(torch.export.export(net, inputs, **settings), path)


X, TRAINED = torch.rand(1, 3), nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "data": (lambda path: script(path, Decides()), "cannot be traced with a batch of 1 of shape"),
    "a batch of four": (lambda path: script(path, FourAtOnce()), "cannot be traced with a batch of 1 of shape"),
    "a mean over the batch": (exported(Program(lambda x: x + x.mean(0, keepdim=True)), X), "computes something else"),
    "training mode": (exported(TRAINED.train(), torch.rand(2, 3)), "computes something else"),
    "two inputs": (exported(Two(), X, X), "has 2 inputs; accepted is one"),
    "two outputs": (
        exported(Program(lambda x: (x, x)), X),
        r"output: .* has several, 0 \(1, 3\), 1 \(1, 3\); give the n",
    ),
    "two outputs of TorchScript": (
        lambda path: script(path, nn.AdaptiveMaxPool1d(2, True)),
        "output: .* has several, 0 .*, 1 ",
    ),
    "no classes": (exported(Program(lambda x: x[:, :, None]), X), r"has shape \(1, 3, 1\); it must be \(1, classes\)"),
    "a state dict": (lambda path: torch.save(TRAINED.state_dict(), path), "a state dict goes to load_weights"),
    "text": (write_bytes(lambda: b"hello world"), "is no TorchScript or torch.export file, or is damaged"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", UNFIT)
def test_a_program_that_does_not_fit_is_one_clear_error(name: str, tmp_path: Path) -> None:
    write, message = UNFIT[name]
    write(path := tmp_path / "net.pt2")
    with pytest.raises(ValueError, match=message):
        load_program(path, input_shape=(3,))


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.net(x)
        return {"features": z * 2, "logits": z}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("write", [lambda net: exported(net, X), lambda net: lambda path: script(path, net)])
def test_one_of_several_outputs_of_a_program(write: Callable, tmp_path: Path) -> None:
    net, x = Heads().eval(), torch.rand(5, 3)
    write(net)(path := tmp_path / "net.pt2")
    assert torch.allclose(load_program(path, input_shape=(3,), output="logits")(x), net(x)["logits"])
    with pytest.raises(
        ValueError, match=r"output: .* has several, 'features' \(1, 4\), 'logits' \(1, 4\); give the name"
    ):
        load_program(path, input_shape=(3,))
    with pytest.raises(ValueError, match="has no 'logit'; its outputs are 'features', 'logits'"):
        load_program(path, input_shape=(3,), output="logit")


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
