"""The robust loss through `torch.compile`: the same loss, the same gradients, the same run after an interrupt."""

import copy
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from acertlab.compiled import CompiledLoss, check_compiler
from acertlab.data import ImageData, load_dataset
from acertlab.interval import clean_pass, freeze
from acertlab.models import small_cnn
from acertlab.objectives import IBP, OBJECTIVES, Step
from acertlab.presets import TrainConfig
from acertlab.tracing import trace
from acertlab.train import train

train_module = sys.modules[train.__module__]
CONFIG = TrainConfig(eps_max=0.1, model="mlp", width=16, epochs=4, clean_epochs=1, ramp_epochs=1, batch_size=32,
                     lr=1e-2, device="cpu", compile=True)  # fmt: skip
compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def few() -> ImageData:
    return load_dataset("digits").first(192)


def loss_and_gradient(model: nn.Module, objective: IBP, eps: float, compiled: CompiledLoss | None) -> tuple:
    """Of one step on made-up images; the model comes back as it was."""
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    x, y = torch.rand(16, 1, 8, 8), torch.randint(0, 10, (16,))
    logits, statistics = clean_pass(model, x)
    frozen = freeze(compiled.traced if compiled else model, statistics)
    step = Step(x, y, logits, frozen, eps, model=model, statistics=statistics, compiled=compiled)
    loss, logged = objective(step)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    model.load_state_dict(before)
    return loss.detach(), logged["radii"].radius, grads


@pytest.mark.parametrize("method", [name for name, kind in OBJECTIVES.items() if issubclass(kind, IBP)])
def test_every_methods_graph_is_its_loss_and_gradient(method: str) -> None:
    torch.manual_seed(0)
    model = small_cnn((1, 8, 8), 10, width=4, linear=20).train()
    objective = OBJECTIVES[method](eps_max=0.1, kappa=0.25)
    compiled = CompiledLoss(trace(model), backend="eager")
    loss, radii, grads = loss_and_gradient(model, objective, 0.1, compiled)
    expected, same, wanted = loss_and_gradient(model, objective, 0.1, None)
    assert len(compiled.graphs) == 1 and torch.equal(radii, same)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    largest = max(float(grad.abs().max()) for grad in wanted)  # of a bias before BatchNorm there are roundings alone
    assert largest > 0
    for grad, expected in zip(grads, wanted, strict=True):
        assert torch.allclose(grad, expected, rtol=1e-4, atol=1e-5 * largest)
    loss_and_gradient(model, objective, 0.05, compiled)
    assert len(compiled.graphs) == 1, "on the ramp nothing is compiled"


@compiler
def test_a_compiled_run_is_the_run_and_goes_on_bit_for_bit(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(CONFIG, few, tmp_path / "whole", progress=False)
    plain = train(replace(CONFIG, compile=False), few, tmp_path / "plain", progress=False)
    ours, theirs = (load_file(run.path / "model.safetensors") for run in (whole, plain))
    assert all(torch.allclose(ours[name], theirs[name], rtol=1e-2, atol=1e-3) for name in ours)
    saved = train_module.save_checkpoint

    def killed(state: object, *args: object) -> None:
        saved(state, *args)
        if len(state.history) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        train(CONFIG, few, tmp_path / "killed", progress=False)
    monkeypatch.undo()
    again = load_file(train(CONFIG, few, tmp_path / "killed", progress=False).path / "model.safetensors")
    assert ours.keys() == again.keys() and all(torch.equal(ours[name], again[name]) for name in ours)


def test_without_a_compiler_training_says_so_before_it_begins(
    few: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*args: object) -> None:
        raise OSError("no such file: g++")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=no_compiler))
    check_compiler.cache_clear()
    with pytest.raises(RuntimeError, match=r"^compile: .*no such file: g\+\+.*C\+\+ compiler .*compile=False$"):
        train(CONFIG, few, tmp_path / "run", progress=False)
    check_compiler.cache_clear()
    assert not (tmp_path / "run" / "checkpoint").exists()
