"""CROWN-IBP's margins with their gradient, for training: ReLU inputs bounded by IBP, margins by one linear bound back.

For certificates of a trained network `acertlab.lirpa` has this bound and tighter ones; a training step needs it with
the batch's statistics, and cheaply.

Source: Zhang et al. 2018 (CROWN: the relaxation of a ReLU); Zhang et al. 2020 (CROWN-IBP).
"""

import operator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_input
from torch.nn.modules.dropout import _DropoutNd

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import IntervalNetwork
from acertlab.bounds.rules.affine import Affine, Normalize, Scale

ADDITIONS = (operator.add, operator.iadd, torch.add)
RESHAPING = (nn.Identity, nn.Flatten, nn.Unflatten)
SMALLEST = 1e-8  # width of a ReLU's input below which its slope is not computed from it, as auto_LiRPA has it


def crown_ibp_margins(
    frozen: IntervalNetwork, box: Box, y: Tensor, relu_inputs: list[Box], *, merged: bool = True
) -> Tensor:
    """Upper bounds of logit_i - logit_y over ``box`` that are linear in the input, for every class i.

    Args:
        frozen: the network: linear and convolutional layers, BatchNorm, ReLU, changes of shape and sums, ending in a
            linear layer.
        box: (B, ...) input box.
        y: (B,) int64 labels.
        relu_inputs: the box at the input of every ReLU, in order, as `IntervalNetwork.margins` collects it.
        merged: bound the difference itself; False: the difference of the logits' bounds.

    Returns:
        (B, classes), differentiable in the weights; column y is 0.

    Raises:
        TypeError: a layer through which nothing is propagated back; the message names it.
    """
    if frozen.head is None:
        raise TypeError("model: CROWN-IBP training wants a network that ends in a linear layer")
    head = frozen.layers[frozen.head]
    weight, bias = head.weight, torch.zeros_like(head.weight[:, 0]) if head.bias is None else head.bias
    own, bound = y.unsqueeze(1), partial(_bound, frozen, frozen.head, box, relu_inputs)
    if merged:
        rows, offset = weight - weight[own], bias - bias[own]
        return bound(rows, offset).scatter(1, own, 0.0)
    upper = bound(weight.expand(len(y), -1, -1), bias.expand(len(y), -1))
    lower = -bound(-weight[own], -bias[own])
    return (upper - lower).scatter(1, own, 0.0)


def _bound(
    frozen: IntervalNetwork, head: fx.Node, box: Box, relu_inputs: list[Box], rows: Tensor, offset: Tensor
) -> Tensor:
    """Upper bounds (B, K) of rows (B, K, features) times what enters the head, plus offset (B, K)."""
    relus = iter(reversed(relu_inputs))
    start = frozen.nodes.index(head)
    coefficients = {frozen.sources(head)[0]: rows}
    for node in reversed(frozen.nodes[:start]):
        if (a := coefficients.pop(node, None)) is None:
            continue
        if node.op == "placeholder":
            center, radius = (end.flatten(1).unsqueeze(2) for end in (box.center, box.radius))
            a = a.flatten(2)
            return offset + (a @ center + a.abs() @ radius).squeeze(2)
        inputs = frozen.sources(node)
        if node.op == "call_function" and node.target in ADDITIONS and len(inputs) == len(node.args) == 2:
            back, shift = a, 0.0
        elif frozen.is_relu(node):
            back, shift = _through_relu(a, next(relus))
        elif node.op == "call_module":
            back, shift = _through(frozen, node, a, frozen.shapes[inputs[0]])
        else:
            raise _unknown(node, node.target)
        offset = offset + shift
        for source in inputs:
            coefficients[source] = coefficients[source] + back if source in coefficients else back
    raise AssertionError("a traced graph begins with its input")


def _through_relu(a: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Positive coefficients take the chord above an unstable ReLU, negative ones x or 0 below, whichever cuts off less.

    a (B, K, ...) of its output becomes that of its input and a constant (B, K).
    """
    lower, upper = box.lower.clamp(max=0.0), box.upper.clamp(min=0.0)
    chord = upper / torch.maximum(upper - lower, torch.full_like(upper, SMALLEST))
    line = (chord > 0.5).to(chord)
    above, below = a.clamp(min=0.0), a.clamp(max=0.0)
    shift = (above.flatten(2) @ (-chord * lower).flatten(1).unsqueeze(2)).squeeze(2)
    return above * chord.unsqueeze(1) + below * line.unsqueeze(1), shift


def _through(
    frozen: IntervalNetwork, node: fx.Node, a: Tensor, shape: tuple[int, ...]
) -> tuple[Tensor, Tensor | float]:
    """The same for a linear layer whose input has this ``shape``, without the batch."""
    layer, module = frozen.layers[node], frozen.traced.model.get_submodule(str(node.target))
    if isinstance(layer, Normalize):
        layer = Scale(1 / layer.std, -layer.mean / layer.std)
    if isinstance(layer, Scale):
        scale, shift = layer.spread(len(shape) - 1)
        return a * scale, (a * shift).flatten(2).sum(2)
    if isinstance(layer, RESHAPING) or (isinstance(layer, _DropoutNd) and not (layer.training and layer.p)):
        return a.reshape(*a.shape[:2], *shape), 0.0
    if not isinstance(layer, Affine):
        raise _unknown(node, type(layer).__name__)
    if layer.operation is F.linear:
        return a @ layer.weight, _times_bias(a, layer.bias)
    if not isinstance(module, nn.Conv2d) or module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise _unknown(node, type(module).__name__)
    sizes = (module.stride, module.padding, module.dilation, module.groups)
    size = (a.shape[0] * a.shape[1], *shape)
    # torch documents "int or tuple", but annotates int
    back = conv2d_input(size, layer.weight, a.flatten(0, 1), *sizes)  # pyright: ignore[reportArgumentType]
    bias = None if layer.bias is None else layer.bias.view(-1, 1, 1)
    return back.view(*a.shape[:2], *shape), _times_bias(a, bias)


def _times_bias(a: Tensor, bias: Tensor | None) -> Tensor | float:
    return 0.0 if bias is None else (a * bias).flatten(2).sum(2)


def _unknown(node: fx.Node, what: Any) -> TypeError:
    return TypeError(
        f"model: CROWN-IBP training cannot go back through '{node.name}' ({what}), only through linear layers, Conv2d "
        "with zero padding, BatchNorm, Normalize, ReLU, changes of shape and sums; method='ibp' takes every layer"
    )
