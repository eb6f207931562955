"""Certificates that hold in spite of rounding: IBP in float64 with the error of every operation bounded.

``sound=True`` speaks of the network in exact real arithmetic on its stored weights, whatever their dtype, with
BatchNorm as (z - mean) / sqrt(var + eps) * weight + bias. ``sound="float32"`` speaks of every evaluation in float32,
layer by layer: any order of summation, with or without FMA, BatchNorm apart or folded into the layer before it,
denormals kept or flushed to zero. It presumes that convolutions are sums of products (direct, or unrolled into matrix
products; not Winograd, not FFT), that sums are made in float32 or better, and no TF32, bfloat16 or other format of
fewer bits. `acertlab.rounding` has the argument.

The pass itself runs in float64, with cuDNN off: torch's other float64 convolutions are sums of products (oneDNN and
NNPACK take float32 only).

Source: K. Jia and M. Rinard, "Exploiting Verified Neural Networks via Floating Point Numerical Error", SAS 2021, for
what goes wrong without; Higham 2002 for the error bounds.
"""

import copy
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from acertlab.bounds.box import Box
from acertlab.bounds.graph import Traced, fold, trace
from acertlab.bounds.ibp import IntervalNetwork, difference_radius
from acertlab.bounds.rules.functions import FUNCTIONS, TENSOR_METHODS
from acertlab.bounds.sound.rules import (
    ROUNDINGS,
    UNROUNDED,
    Norm,
    RoundedAffine,
    Rounding,
    has_sound_rule,
    name_of,
    sound_rule,
    sound_tables,
)


class SoundNetwork(IntervalNetwork):
    """A network prepared by `prepare_sound` for many bound passes with the same weights."""

    def __init__(
        self, traced: Traced, layers: dict[fx.Node, Any], folded: dict[fx.Node, fx.Node], rounding: Rounding
    ) -> None:
        super().__init__(traced, layers, folded)
        self.rounding = rounding
        self.functions, self.methods = sound_tables(rounding)

    def rule(self, layer: Any, box: Box) -> Box:
        return sound_rule(layer, box, self.rounding)

    def _apply(self, node: fx.Node, box: Box | Tensor, values: dict, args: tuple, kwargs: dict) -> Any:
        value = super()._apply(node, box, values, args, kwargs)
        by_name = node.op in ("call_function", "call_method") and name_of(node.target) not in UNROUNDED
        computed = by_name or node.op == "call_module"
        if computed and isinstance(value, Tensor) and value.is_floating_point():
            raise _computed_constant(node)
        return value

    def margins(self, box: Box, y: Tensor, *, merged: bool = True, relu_inputs: list[Box] | None = None) -> Tensor:
        """Proved upper bounds of logit_i - logit_y over ``box``, for every class i; never differentiable.

        Args:
            box: (B, ...) float64 input box, whose ends are those of the real box, rounded to nearest.
            y: (B,) int64 labels.
            merged, relu_inputs: as in `acertlab.bounds.ibp.IntervalNetwork.margins`.

        Returns:
            (B, classes) float64; column y is 0. < 0: for every input in the box logit_i < logit_y, exactly or as
            computed in float32. NaN or inf where anything overflows or is not finite.
        """
        if box.lower.dtype != torch.float64:
            raise TypeError(f"box: sound bounds are computed in torch.float64, not {box.lower.dtype}; convert its ends")
        own, infinity = y.unsqueeze(1), box.lower.new_tensor(torch.inf)
        with torch.no_grad(), torch.autocast(box.lower.device.type, enabled=False), torch.backends.cudnn.flags(False):
            box = Box(box.lower.nextafter(-infinity), box.upper.nextafter(infinity))
            if merged and self.head is not None:
                margins = self._merged(self.layers[self.head], self.propagate(box, relu_inputs, until=self.head), y)
            else:
                out = self.propagate(box, relu_inputs)
                margins = (out.upper - out.lower.gather(1, own)).nextafter(infinity)
            return margins.scatter(1, own, 0.0)

    def _merged(self, head: RoundedAffine, features: Box, y: Tensor) -> Tensor:
        own = y.unsqueeze(1)
        center, radius, size = head.split(features)
        logits = F.linear(center, head.weight, head.bias)
        error = F.linear(size * head.gain, head.magnitude, head.slack)
        difference = difference_radius(head.weight, radius, y) * head.scale
        return logits - logits.gather(1, own) + (difference + error + error.gather(1, own))


def prepare_sound(model: nn.Module, sound: bool | Literal["float32"] = True) -> SoundNetwork:
    """Prepares a copy of a network, in float64, for bounds that hold in spite of rounding.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes); left exactly as it was.
        sound: True: bounds of the network in exact real arithmetic; "float32": of its evaluations in float32. Python
            numbers that forward computes count as they are.

    Raises:
        TypeError: the model cannot be traced, or holds a layer, function or method without a proved rounding bound.
        ValueError: ``sound`` is unknown; training mode; "float32" and weights that are not float32 numbers.
    """
    if sound not in ROUNDINGS:
        raise ValueError(f"sound: {sound!r} is unknown; choose True or 'float32'")
    rounding = ROUNDINGS[sound]
    traced = _trace(copy.deepcopy(model).double().requires_grad_(False) if isinstance(model, nn.Module) else model)
    _check_graph(traced, *sound_tables(rounding))
    if sound == "float32":
        _check_float32(traced.model)
    with torch.no_grad():
        work = fold(traced, partial(RoundedAffine.of_layer, rounding), partial(Norm.of_batch_norm, rounding))
    return SoundNetwork(traced, *work, rounding)


def _trace(model: nn.Module) -> Traced:
    """With buffers in the graph where that can be traced, so that it shows which constants are computed."""
    try:
        return trace(model, live_buffers=True)
    except TypeError:
        return trace(model)


def _check_graph(traced: Traced, functions: dict, methods: dict) -> None:
    """Refuses, before anything is computed, what has no proved bound."""
    for node in traced.graph.nodes:
        if node.op == "call_module":
            layer = traced.model.get_submodule(node.target)
            kind = type(layer).__name__
            if not has_sound_rule(layer):
                raise _refusal(
                    f"layer '{node.target}' of type {kind}",
                    f", or give it one with @acertlab.sound.sound_rule.register({kind})",
                )
            if is_parametrized(layer):
                raise _refusal(f"layer '{node.target}' whose weights are computed (see remove_parametrizations)")
        elif node.op == "get_attr" and node.target.startswith("_tensor_constant"):  # torch.fx met it, already computed
            if getattr(traced.model, node.target).is_floating_point():
                raise _computed_constant(node)
        elif node.op in ("call_function", "call_method"):
            plain, proved = (FUNCTIONS, functions) if node.op == "call_function" else (TENSOR_METHODS, methods)
            if node.target in plain and node.target not in proved:
                raise _refusal(f"the {node.op[5:]} '{name_of(node.target)}' (node '{node.name}' of the forward)")


def _check_float32(model: nn.Module) -> None:
    for name, values in (*model.named_parameters(), *model.named_buffers()):
        if values.is_floating_point() and not ((values.float().double() == values) | values.isnan()).all():
            raise ValueError(f"sound: 'float32' is for models in float32, but '{name}' holds other numbers; use True")


def _computed_constant(node: fx.Node) -> TypeError:
    return _refusal(f"the constant '{node.name}' that forward computes (make it a buffer)")


def _refusal(what: str, otherwise: str = "") -> TypeError:
    return TypeError(
        f"model: sound: no rounding bound is proved for {what}; accepted: linear and convolutional layers, BatchNorm, "
        "Normalize, ReLU, ReLU6, LeakyReLU, PReLU, Hardtanh, max and average pooling, padding, dropout, changes of "
        f"shape, sums, products and quotients{otherwise}"
    )


def rounding_example() -> tuple[nn.Module, Tensor, Tensor, float]:
    """A float32 network for which the certificate computed in float32 is wrong.

    Its two logits are 1 and relu(2 x + 2^24) - 2^24, that is 2 x, of one pixel x = 0.45: class 0 up to x = 0.5, class 1
    beyond, so the radius is 0.05. Float32 has only even numbers beyond 2^24: in the bounds, the centre 2^24 + 0.9 and
    its radius 2 eps < 1 are rounded away, and the box is certified up to eps = 0.5. Inputs beyond 0.5 are classified
    otherwise, in exact arithmetic and in float32.

    Returns:
        the model, x (1, 1), y (1,) and an eps, 0.25, at which the float32 margin is negative.
    """
    hidden, head = nn.Linear(1, 1), nn.Linear(1, 2)
    model = nn.Sequential(hidden, nn.ReLU(), head).eval().requires_grad_(False)
    for layer, weight, bias in ((hidden, [[2.0]], [2.0**24]), (head, [[0.0], [1.0]], [1.0, -(2.0**24)])):
        layer.weight.copy_(torch.tensor(weight))
        layer.bias.copy_(torch.tensor(bias))
    return model, torch.tensor([[0.45]]), torch.tensor([0]), 0.25
