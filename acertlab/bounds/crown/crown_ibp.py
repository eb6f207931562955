"""CROWN-IBP's margins with their gradient, for training: ReLU inputs bounded by IBP, margins by one linear bound back.

For certificates of a trained network `acertlab.bounds.crown.auto_lirpa` has this bound and tighter ones; a training
step needs it with the batch's statistics, and cheaply.

Source: Zhang et al. 2018 (CROWN: the relaxation of a ReLU); Zhang et al. 2020 (CROWN-IBP).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.grad import conv2d_input

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import IntervalNetwork
from acertlab.bounds.rules.affine import Affine, Scale
from acertlab.bounds.rules.operators import arguments_of, aten, packet, place

SMALLEST = 1e-8  # width of a ReLU's input below which its slope is not computed from it, as auto_LiRPA has it
RESHAPING = (aten.reshape, aten.flatten, aten.squeeze, aten.unsqueeze, aten.unflatten)
SIGNS = {aten.add: (1, 1), aten.sub: (1, -1)}


def crown_ibp_margins(
    network: IntervalNetwork, box: Box, y: Tensor, relu_inputs: list[Box], *, merged: bool = True
) -> Tensor:
    """Upper bounds of logit_i - logit_y over ``box`` (B, ...) that are linear in the input, for every class i.

    Arguments as of `IntervalNetwork.margins`, which collects ``relu_inputs``, the box at the input of every ReLU. The
    network has linear and convolutional layers, BatchNorm, ReLU, changes of shape and sums, and ends in a linear layer;
    TypeError names an operator through which nothing is propagated back.

    Returns:
        (B, classes), differentiable in the weights; column y is 0.
    """
    if network.head is None:
        raise TypeError("model: CROWN-IBP training wants a network that ends in a linear layer")
    head = network.affine[network.head]
    weight, bias = head.weight, torch.zeros_like(head.weight[:, 0]) if head.bias is None else head.bias
    own = y.unsqueeze(1)
    if merged:
        rows, offset = weight - weight[own], bias - bias[own]
        return _bound(network, network.head, box, relu_inputs, rows, offset).scatter(1, own, 0.0)
    every, mine = (weight.expand(len(y), -1, -1), bias.expand(len(y), -1)), (-weight[own], -bias[own])
    upper, lower = (_bound(network, network.head, box, relu_inputs, *rows) for rows in (every, mine))
    return (upper + lower).scatter(1, own, 0.0)


def _bound(
    network: IntervalNetwork, head: fx.Node, box: Box, relu_inputs: list[Box], rows: Tensor, offset: Tensor
) -> Tensor:
    """Upper bounds (B, K) of rows (B, K, features) times what enters the head, plus offset (B, K)."""
    relus, plan = iter(reversed(relu_inputs)), network.plan
    nodes = [node for node in plan.nodes if node in plan.boxed]
    coefficients = {plan.sources(head)[0]: rows}
    shapes = {**network.shapes, network.graph.input: tuple(box.lower.shape[1:])}
    for node in reversed(nodes[: nodes.index(head)]):
        if (a := coefficients.pop(node, None)) is None:
            continue
        inputs = [source for source in plan.sources(node) if source in plan.boxed]
        signs = dict.fromkeys(inputs, 1)
        if network.is_relu(node):
            back, shift = _through_relu(a, next(relus))
        elif packet(node) in SIGNS and not node.kwargs and all(shapes[source] == shapes[node] for source in inputs):
            back, shift = a, 0.0
            signs = dict.fromkeys(inputs, 0)
            for source, sign in zip(arguments_of(node), SIGNS[packet(node)], strict=True):
                if source in signs:
                    signs[source] += sign
                else:
                    shift = sign * (a * torch.as_tensor(network.constants.get(source, source))).flatten(2).sum(2)
        else:
            back, shift = _through(network, node, a, shapes[inputs[0]], shapes[node])
        offset = offset + shift
        for source, sign in signs.items():
            part = back if sign == 1 else sign * back
            coefficients[source] = coefficients[source] + part if source in coefficients else part
    a = coefficients[network.graph.input].flatten(2)
    center, radius = (end.flatten(1).unsqueeze(2) for end in (box.center, box.radius))
    return offset + (a @ center + a.abs() @ radius).squeeze(2)


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
    network: IntervalNetwork, node: fx.Node, a: Tensor, shape: tuple[int, ...], own_shape: tuple[int, ...]
) -> tuple[Tensor, Tensor | float]:
    """The same for a linear operator; its input has this ``shape``, its output ``own_shape``, without the batch."""
    work, affine = network.works.get(node), network.plan.folded.get(node, node)
    if isinstance(work, Scale):
        scale, shift = work.spread(len(shape) - 1)
        return a * scale, (a * shift).flatten(2).sum(2)
    if isinstance(work, Affine) and work.operation is F.linear and len(shape) == 1:
        return a @ work.weight, _times_bias(a, work.bias)
    if isinstance(work, Affine) and affine.target is aten.conv2d.default:
        given = arguments_of(affine)[3:]
        stride, padding, dilation, groups = (*given, *(1, 0, 1, 1)[len(given) :])
        size = (a.shape[0] * a.shape[1], *shape)
        back = conv2d_input(size, work.weight, a.flatten(0, 1), stride, padding, dilation, groups)
        bias = None if work.bias is None else work.bias.view(-1, 1, 1)
        return back.view(*a.shape[:2], *shape), _times_bias(a, bias)
    if packet(node) in RESHAPING and math.prod(shape) == math.prod(own_shape):
        return a.reshape(*a.shape[:2], *shape), 0.0
    if packet(node) in (aten.mul, aten.div) and shape == own_shape and not node.kwargs:
        first, second = arguments_of(node)
        x, factor = (first, second) if first in network.plan.boxed else (second, first)
        if factor not in network.plan.boxed and (packet(node) is aten.mul or x is first):
            factor = network.constants.get(factor, factor)
            return (a * factor if packet(node) is aten.mul else a / factor), 0.0
    raise TypeError(
        f"model: CROWN-IBP training cannot go back through {place(node)}, only through linear layers, Conv2d with zero "
        "padding, BatchNorm, Normalize, ReLU, changes of shape and sums; method='ibp' takes every layer"
    )


def _times_bias(a: Tensor, bias: Tensor | None) -> Tensor | float:
    return 0.0 if bias is None else (a * bias).flatten(2).sum(2)
