"""The fixed path of the search and the whole training step never wait for the device."""

import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.stateless import _reparametrize_module
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from acertlab.bounds.box import ball
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import clean_margin
from acertlab.data import datasets as data
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import margin_function
from acertlab.training.config import preset
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.loop.state import State, initial_state
from acertlab.training.loop.step import train_step
from acertlab.training.methods import acert
from acertlab.training.methods.catalogue import METHODS
from acertlab.training.methods.sample_radii import RadiusEstimates, SampleSearch, approximate_radius
from tests.helpers.networks import Trained

BATCH = 80  # of which a search's later passes take a part

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten._unique2.default,
}


class NoSync(TorchDispatchMode):
    """Fails on every operation whose result the host must wait for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = [a for arg in args if isinstance(arg, (list, tuple)) for a in arg if isinstance(a, Tensor)]
        by_mask = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_)
        if func in WAITING or (by_mask and any(m.dtype == torch.bool for m in masks)):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_guard_sees_what_it_should() -> None:
    x = torch.arange(3.0)
    for waits in (lambda: x.sum().item(), lambda: x[x > 1], lambda: bool(x.sum() > 0), lambda: x.nonzero()):
        with NoSync(), pytest.raises(AssertionError, match="waits"):
            waits()


def host_value(counter: Tensor | float) -> float:
    """Adam counts its steps in tensors on the host, wherever the network is. The meta test below needs no exception."""
    with _disable_current_modes():
        return float(counter)


def state_of(device: str, method: str = "acert", eps: float = 0.1, **changes) -> tuple[State, object, tuple]:
    images = data.load_dataset("digits")
    config = replace(preset("digits", method, budget="smoke"), l1=1e-5, **changes)
    state = initial_state(config, images, torch.device("cpu"), 10)
    if device != "cpu":  # the optimiser is made anew: its parameters are others now
        state.model.to(device)
        state.optimizer = torch.optim.Adam(state.model.parameters(), lr=config.lr)
        state.scheduler = torch.optim.lr_scheduler.LambdaLR(state.optimizer, lambda t: 1.0)
        state.radii = state.radii and RadiusEstimates._make(row.to(device) for row in state.radii)
    state.model.train()
    x, y = data.to_float(images.train_x[:BATCH]), images.train_y[:BATCH]
    batch = (x, y, torch.arange(BATCH), eps, torch.ones(1, 1, 1, 1))
    return state, config, tuple(t.to(device) if isinstance(t, Tensor) else t for t in batch)


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_operation_of_a_training_step_waits(
    solver: str, history: bool, monkeypatch: pytest.MonkeyPatch, method: str = "acert", eps: float = 0.1
) -> None:
    monkeypatch.setattr(
        acert,
        "approximate_radius",
        lambda *call, **more: approximate_radius(*call[:4], call[4]._replace(compact=False), **more),
    )
    state, config, batch = state_of("cpu", method, eps, solver=solver, radius_history=history)
    monkeypatch.setitem(vars(sys.modules[torch.optim.Adam.__module__]), "_get_value", host_value)
    for _ in range(2):  # the optimiser's first step makes its buffers
        with NoSync():
            loss, norm, _, logged = train_step(state, config, *batch)
        assert loss.isfinite() and norm > 0
    radii = logged.radii.radius
    assert ((radii >= 0) & (radii <= eps + 1e-6)).all() and ((radii > 0).any() or method == "standard")
    assert state.radii is None or torch.equal(state.radii.radius[:BATCH], radii)


@pytest.mark.parametrize("method", METHODS)
def test_no_operation_of_any_methods_step_waits(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for eps in (0.1, preset("digits", method, budget="smoke").train_eps):  # on the ramp, and after it
        test_no_operation_of_a_training_step_waits("log-secant", False, monkeypatch, method, eps)


@pytest.mark.parametrize("history", [False, True])
def test_a_training_step_runs_where_there_is_nothing_to_wait_for(history: bool) -> None:
    """On the meta device no value exists: whatever branched on one would raise."""
    state, config, batch = state_of("meta", radius_history=history)
    loss, _, logits, logged = train_step(state, config, *batch)
    assert loss.is_meta and logits.shape == (BATCH, 10) and logged.radii.radius.shape == (BATCH,)
    with pytest.raises(RuntimeError):
        loss.item()


def test_loss_and_gradient_trace_into_one_graph() -> None:
    """Fake tensors have no values: a branch on one could not be traced."""
    state, _, (x, y, _, eps, _) = state_of("cpu")
    parameters, buffers = dict(state.model.named_parameters()), dict(state.model.named_buffers())
    names = (*parameters, *buffers)

    def step(x: Tensor, y: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        with _reparametrize_module(state.model, dict(zip(names, values, strict=True))):
            logits, statistics = clean_pass(state.model, x)
            frozen, clean = freeze(state.model, statistics, state.graph), clean_margin(logits.detach(), y)
            margin = margin_function(frozen, True, (0.0, 1.0))
            settings = SampleSearch(maxiter=3, compact=False, halve_after=1)
            radii = approximate_radius(margin, (x, y), clean, eps, settings).radius
            loss = F.cross_entropy(frozen.margins(ball(x, radii), y), y)
            return loss, radii, *torch.autograd.grad(loss, values[: len(parameters)])

    def inputs() -> tuple[Tensor, ...]:  # BatchNorm counts up in its buffers
        return x, y, *parameters.values(), *(buffer.clone() for buffer in buffers.values())

    graph = make_fx(step, tracing_mode="fake")(*inputs())
    traced, eager = graph(*inputs()), step(*inputs())
    assert len(graph.graph.nodes) > 200
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(traced, eager, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_fixed_search_is_captured_in_a_cuda_graph(digits_net: Trained) -> None:
    model, x, y = digits_net.model.cuda(), digits_net.x[:64].cuda(), digits_net.y[:64].cuda()
    with torch.no_grad():
        frozen, clean = freeze(model), clean_margin(model(x), y)
        margin = margin_function(frozen, True, (0.0, 1.0))
        search = partial(approximate_radius, margin, (x, y), clean, 0.2, maxiter=4, compact=False, halve_after=2)
        eager = search().radius
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            search()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = search().radius
        graph.replay()
    assert (captured - eager).abs().max() <= 1e-6 * 0.2
    digits_net.model.cpu()
