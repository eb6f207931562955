"""The layer in which a training run stopped being finite: the epoch is trained again, looking at every step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from acertlab.bounds.box import Box, ball
from acertlab.bounds.ibp import freeze
from acertlab.bounds.rules.operators import module_of
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.loop.state import State
from acertlab.training.methods.ibp import IBP


class NonFiniteLossError(FloatingPointError):
    """A loss or a gradient that is infinite or NaN; at eps_{max,t} = ``eps`` (pixel units)."""

    def __init__(self, message: str, eps: float) -> None:
        super().__init__(message)
        self.eps = eps


class _LocatedError(Exception):
    """The layer, as a sentence."""


def find_layer(state: State, error: NonFiniteLossError, train_again: Callable[[], object]) -> str:
    """A sentence that names the layer in which ``error`` began; ``train_again`` trains its epoch on ``state``."""
    latest: dict[str, Tensor] = {}

    def look(*_: object) -> None:
        parameters = list(state.model.named_parameters())
        if all(p.grad is None or p.grad.isfinite().all() for _, p in parameters):
            return
        if name := _first_in_the_clean_pass(state.model, latest["x"]):
            raise _LocatedError(f"It began in layer {name}: its output is not finite")
        if name := _first_bounds(state, latest["x"], error.eps):
            raise _LocatedError(f"It began in layer {name}: its bounds at eps_t are not finite")
        bad = [name for name, p in parameters if p.grad is not None and not p.grad.isfinite().all()]
        raise _LocatedError(f"It began on the way back, in the gradient of {bad[-1]}")

    def keep(_: object, args: tuple[Tensor, ...]) -> None:
        latest["x"] = args[0].detach()

    with state.optimizer.register_step_pre_hook(look), state.model.register_forward_pre_hook(keep):
        try:
            train_again()
        except _LocatedError as found:
            return str(found)
        except NonFiniteLossError:
            return "Each gradient was finite: the loss itself, or the norm of all gradients, is too large"
    return "Training that epoch once more from its start, it did not happen again"


def _first_in_the_clean_pass(model: nn.Module, x: Tensor) -> str:
    """The first layer whose output is not finite, and its kind; empty if there is none."""
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, _: object, output: object) -> None:
        if not list(module.children()) and isinstance(output, Tensor) and not output.isfinite().all():
            found.append(f"'{names[module]}' ({type(module).__name__})")

    with register_module_forward_hook(look), torch.no_grad():  # of every module
        model(x)
    return found[0] if found else ""


def _first_bounds(state: State, x: Tensor, eps: float) -> str:
    """The first layer whose bounds are not finite; empty if there is none, or the method bounds nothing."""
    if not isinstance(state.objective, IBP):
        return ""
    with torch.no_grad():
        frozen = freeze(state.model, clean_pass(state.model, x)[1], state.graph)
        box = ball(x, eps, state.objective.domain)
        for node in frozen.plan.nodes[1:]:
            entering = frozen.propagate(box, until=node)
            if isinstance(entering, Box) and not (entering.lower.isfinite() & entering.upper.isfinite()).all():
                source = frozen.plan.sources(node)[0]
                path, kind = module_of(frozen.plan.folded.get(source, source))
                return f"'{path}' ({kind})"
    return ""
