"""`torch.compile` for the robust loss: loss and gradient as one graph, without the interpreter of the bounds.

The graph is traced with the objective's own code (`make_fx`), the gradient in it, and compiled once for each shape of
batch; both are the same arithmetic in another order. Only the loss after the ramp is: on the ramp eps, which is a
constant of the graph, changes with every step.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from acertlab.interval import freeze
from acertlab.tracing import Traced

if TYPE_CHECKING:
    from acertlab.interval import Statistics
    from acertlab.objectives import IBP, Step


class CompiledLoss:
    """The robust loss of one objective on one network, compiled for each shape that it is asked for.

    Args:
        traced: the network, as it trains.
        backend: of `torch.compile`; "eager" runs the traced graph as it is.
    """

    def __init__(self, traced: Traced, backend: str = "inductor") -> None:
        self.traced, self.backend = traced, backend
        self.graphs: dict[tuple, Callable[..., tuple[Tensor, ...]]] = {}

    def __call__(self, objective: "IBP", step: "Step", radii: Tensor) -> Tensor:
        """() `IBP.robust_loss`, with gradients to the parameters and to the step's statistics."""
        state = dict(self.traced.model.named_parameters()) | dict(self.traced.model.named_buffers())
        norms = [value for pair in step.statistics.values() for value in pair]
        data = (step.x, step.y, radii, *([] if step.x_adv is None else [step.x_adv]))
        wanted = [value for value in (*state.values(), *norms) if value.requires_grad]
        key = tuple((value.shape, value.dtype, value.device) for value in data)
        values = (*data, *state.values(), *norms)
        if key not in self.graphs:
            self.graphs[key] = self._compiled(objective, step, list(state), list(step.statistics), values)
        return _Loss.apply(self.graphs[key], values, *wanted)

    def _compiled(
        self, objective: "IBP", step: "Step", names: list[str], norms: list[str], values: tuple[Tensor, ...]
    ) -> Callable[..., tuple[Tensor, ...]]:
        within = _Within(self.traced, objective, step)
        n_data = len(values) - len(names) - 2 * len(norms)
        wants = [value.requires_grad for value in values]

        def loss_and_gradient(*values: Tensor) -> tuple[Tensor, ...]:
            values = [v.detach().requires_grad_(w) for v, w in zip(values, wants, strict=True)]
            data, state, rest = values[:n_data], values[n_data : n_data + len(names)], values[n_data + len(names) :]
            statistics = dict(zip(norms, zip(rest[::2], rest[1::2], strict=True), strict=True))
            named = {f"model.{name}": value for name, value in zip(names, state, strict=True)}
            loss = torch.func.functional_call(within, named, (statistics, *data))
            wanted = [value for value in values if value.requires_grad]
            grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
            return loss, *grads

        with torch.enable_grad():
            graph = make_fx(loss_and_gradient, tracing_mode="fake")(*(value.detach() for value in values))
        if self.backend == "eager":
            return graph
        return torch.compile(graph, backend=self.backend)


class _Within(nn.Module):
    """The objective's robust loss, as a function of the network's tensors."""

    def __init__(self, traced: Traced, objective: "IBP", step: "Step") -> None:
        super().__init__()
        self.model, self.traced, self.objective, self.step = traced.model, traced, objective, step

    def forward(
        self, statistics: "Statistics", x: Tensor, y: Tensor, radii: Tensor, x_adv: Tensor | None = None
    ) -> Tensor:
        step = replace(self.step, x=x, y=y, x_adv=x_adv, frozen=freeze(self.traced, statistics))
        return self.objective.robust_loss(step, radii)


class _Loss(torch.autograd.Function):
    """The loss of a graph that brings its gradients along."""

    @staticmethod
    def forward(
        ctx: Any, graph: Callable[..., tuple[Tensor, ...]], values: tuple[Tensor, ...], *wanted: Tensor
    ) -> Tensor:
        loss, *ctx.grads = graph(*(value.detach() for value in values))
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(value * grad for value in ctx.grads)


@cache
def check_compiler(device: str) -> None:
    """Compiles a sum: whether `torch.compile` works on this machine is known before training begins.

    Args:
        device: "cpu" or "cuda".

    Raises:
        RuntimeError: it does not.
    """
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except RuntimeError as error:
        reason = str(getattr(error, "inner_exception", error)).splitlines()[0]
        raise RuntimeError(
            f"compile: torch.compile fails here ({reason}). On a CPU it takes a C++ compiler (on Debian: apt install "
            "g++); or train with compile=False"
        ) from error
