"""Certificates that hold in spite of rounding: IBP in float64 with the error of every operation bounded.

``sound=True`` speaks of the network in exact real arithmetic on its stored weights, whatever their dtype, with
BatchNorm as (z - mean) / sqrt(var + eps) * weight + bias. ``sound="float32"`` speaks of every evaluation in float32,
layer by layer: any order of summation, with or without FMA, BatchNorm apart or folded into the layer before it,
denormals kept or flushed to zero. It presumes that convolutions are sums of products (direct, or unrolled into matrix
products; not Winograd, not FFT), that sums are made in float32 or better, and no TF32, bfloat16 or other format of
fewer bits. `acertlab.bounds.sound.rounding` has the argument.

The pass itself runs in float64, with cuDNN off: torch's other float64 convolutions are sums of products (oneDNN and
NNPACK take float32 only).

Source: K. Jia and M. Rinard, "Exploiting Verified Neural Networks via Floating Point Numerical Error", SAS 2021, for
what goes wrong without; Higham 2002 for the error bounds.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from acertlab.bounds.box import Box
from acertlab.bounds.graph.structure import WHOLE_MODULE, Graph
from acertlab.bounds.ibp import IntervalNetwork, Step, difference_radius
from acertlab.bounds.rules.affine import BATCH_STATISTICS, AffineCall, NormCall
from acertlab.bounds.rules.operators import arguments_of, packet, place
from acertlab.bounds.sound.rounding import (
    ROUNDINGS,
    Norm,
    RoundedAffine,
    few_at_a_time,
    has_sound_rule,
    per_channel,
    sound_rule,
)
from acertlab.bounds.sound.rules import EXACT, RULES


class SoundNetwork(IntervalNetwork):
    """A network prepared by `prepare_sound`; weights are float64 copies of the model's."""

    def __init__(self, model: nn.Module, sound: bool | Literal["float32"], graph: Graph | None = None) -> None:
        if sound not in ROUNDINGS:
            raise ValueError(f"sound: {sound!r} is unknown; choose True or 'float32'")
        self.rounding, self.single = ROUNDINGS[sound], sound == "float32"
        self.copies: dict[nn.Module, nn.Module] = {}  # of modules that stay whole, in float64
        with torch.no_grad():
            super().__init__(model, graph=graph)

    def _constants(self, graph: Graph) -> dict[fx.Node, Any]:
        """The model's tensors in float64; of what forward makes of them, only copies without rounding."""
        values: dict[fx.Node, Any] = {}
        for node, value in graph.lookup(self.model).items():
            value = value.detach()
            if self.single and value.is_floating_point() and not ((value.float() == value) | value.isnan()).all():
                name = graph.sources[node] if isinstance(graph.sources[node], str) else node.name
                raise ValueError(
                    f"sound: 'float32' is for models in float32, but '{name}' holds other numbers; use True"
                )
            values[node] = value.double() if value.is_floating_point() else value
        for node in graph.plan.constants:
            floating = isinstance(node.meta.get("val"), Tensor) and node.meta["val"].is_floating_point()
            if floating and packet(node) not in EXACT and node.all_input_nodes:
                raise _refusal(f"the constant that forward computes by {place(node)} (make it a buffer)")
            args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
            value = graph.call(self.model, node, args, kwargs)
            values[node] = value.double() if floating else value
        return values

    def _affine(self, call: AffineCall, norm: Norm | None = None) -> RoundedAffine:
        if call.transposed:
            raise _refusal("a transposed convolution")
        is_linear = call.operation is F.linear
        operation = call.operation if is_linear else few_at_a_time(call.operation, call.stride)
        return RoundedAffine.of(*self._weights(call), operation, self.rounding, norm, call.repeats)

    def _norm(self, norm: NormCall, statistics: tuple[Tensor, Tensor]) -> Any:
        if norm.by_batch:
            raise ValueError(BATCH_STATISTICS)
        mean, var = statistics
        var = torch.where(var >= 0, var, torch.nan)
        inverse = 1 / self.rounding.normal(var + norm.eps).sqrt()  # rsqrt has no stated accuracy
        return Norm.of(mean, inverse, self._value(norm.weight), self._value(norm.bias))

    def _standard(self, mean: Tensor, std: Tensor) -> RoundedAffine:
        return self._alone(Norm.of(mean, 1 / self.rounding.normal(std)))

    def _alone(self, norm: Norm) -> RoundedAffine:
        return RoundedAffine.of(torch.ones_like(norm.mean), None, per_channel, self.rounding, norm)

    def _rule_of(self, node: fx.Node) -> Callable[..., Any] | None:
        plain = super()._rule_of(node)
        if plain is None or packet(node) in EXACT:
            return plain
        proved = RULES.get(packet(node))
        if proved is None:
            raise _refusal(place(node))
        return partial(proved, self.rounding, plain)

    def _ready(self, x: Tensor) -> None:
        weight = next((t for t, _ in self.held if t.is_floating_point()), x)
        super()._ready(x.to(weight.dtype))  # the graph is that of the model's own arithmetic

    def _step(self, node: fx.Node) -> Step:
        if packet(node) is WHOLE_MODULE:
            path = self.graph.whole[arguments_of(node)[1]].path
            layer = self.model.get_submodule(path)
            kind = type(layer).__name__
            if not has_sound_rule(layer):
                raise _refusal(
                    f"layer '{path}' of type {kind}",
                    f", or give it one with @acertlab.sound.sound_rule.register({kind})",
                )
        return super()._step(node)

    def _module_rule(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Box:
        if layer not in self.copies:
            self.copies[layer] = copy.deepcopy(layer).double().requires_grad_(False)
        return sound_rule(self.copies[layer], *args, self.rounding, **kwargs)

    def propagate(self, box: Box, relu_inputs: list[Box] | None = None, *, until: fx.Node | None = None) -> Box:
        with torch.no_grad():
            return super().propagate(box, relu_inputs, until=until)

    def margins(self, box: Box, y: Tensor, *, merged: bool = True, relu_inputs: list[Box] | None = None) -> Tensor:
        """As `IntervalNetwork.margins`, proved and never differentiable, over a float64 box.

        Its ends are those of the real box, rounded to nearest. (B, classes) float64; < 0: for every input in the box
        logit_i < logit_y, exactly or as computed in float32. NaN or inf where anything overflows or is not finite.
        """
        if box.lower.dtype != torch.float64:
            raise TypeError(f"box: sound bounds are computed in torch.float64, not {box.lower.dtype}; convert its ends")
        own, infinity = y.unsqueeze(1), box.lower.new_tensor(torch.inf)
        with torch.no_grad(), torch.autocast(box.lower.device.type, enabled=False), torch.backends.cudnn.flags(False):
            box = Box(box.lower.nextafter(-infinity), box.upper.nextafter(infinity))
            if merged and self.head is not None:
                margins = self._merged(self.head, self.propagate(box, until=self.head), y, own)
            else:
                out = self.propagate(box)
                margins = (out.upper - out.lower.gather(1, own)).nextafter(infinity)
            return margins.scatter(1, own, 0.0)

    def _merged(self, last: fx.Node, features: Box, y: Tensor, own: Tensor) -> Tensor:
        head: RoundedAffine = self.works[last]
        center, radius, size = head.split(features)
        logits = F.linear(center, head.weight, head.bias)
        error = F.linear(size * head.gain, head.magnitude, head.slack)
        difference = difference_radius(head.weight, radius, y) * head.scale
        return logits - logits.gather(1, own) + (difference + error + error.gather(1, own))


OF_ONES_OWN = "; else a module with rules of its own, by acertlab.rule and acertlab.sound.sound_rule"


def _refusal(what: str, otherwise: str = "") -> TypeError:
    return TypeError(
        f"model: sound: no rounding bound is proved for {what}; accepted: linear and convolutional layers, BatchNorm, "
        "Normalize, ReLU, ReLU6, LeakyReLU, PReLU, Hardtanh, max and average pooling, padding, dropout, changes of "
        f"shape, sums, products and quotients{otherwise or OF_ONES_OWN}"
    )


def prepare_sound(
    model: nn.Module, sound: bool | Literal["float32"] = True, graph: Graph | None = None
) -> SoundNetwork:
    """Prepares a network, in float64, for bounds that hold in spite of rounding.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes); left exactly as it was.
        sound: True: bounds of the network in exact real arithmetic; "float32": of its evaluations in float32. Python
            numbers that forward computes count as they are.
        graph: the model's, where it is known; else it is captured at the first pass, and what is refused then.

    Raises:
        TypeError: the model cannot be captured, or holds an operator without a proved rounding bound.
        ValueError: ``sound`` is unknown; training mode; "float32" and weights that are not float32 numbers.
    """
    return SoundNetwork(model, sound, graph)


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
