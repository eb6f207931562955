"""Interval bound propagation (IBP): a `Box` of inputs through any network that ``torch.fx`` can trace.

`freeze` prepares a network for many passes: BatchNorm folded into the affine layer before it and |W| computed once. The
same pass serves the search for radii (no gradient), the robust loss and the regularisers (with gradient).

Source: Gowal et al. 2019 (IBP); Shi et al. 2021 (BatchNorm with the clean batch's statistics).
"""

import operator
from typing import Any, Protocol, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.dropout import _DropoutNd

from acertlab.bounds.box import Box
from acertlab.bounds.graph import Traced, _place, fold, trace
from acertlab.bounds.rules.affine import Affine, IntervalAffine, batch_norm_scale, evaluate
from acertlab.bounds.rules.batch_invariance import TILE, batch_invariant
from acertlab.bounds.rules.dispatch import rule
from acertlab.bounds.rules.functions import FUNCTIONS, RELU_FUNCTIONS, RELU_METHODS, TENSOR_METHODS

Points = TypeVar("Points", Box, Tensor)
Statistics = dict[str, tuple[Tensor, Tensor]]


class IntervalNetwork:
    """A network prepared by `freeze` for many bound passes with the same weights.

    Attributes:
        monotone: a larger box never has smaller bounds.
        tile: batches of a multiple of it are computed alike, see `acertlab.margin.pad`; on a CPU matrix products see to
            themselves (`batch_invariant`), and convolutions only have another kernel for a single row.
        shapes: of each node's box in the last pass, without the batch.
        rule, functions, methods: what a layer, a function and a method do to a box; another kind of pass has others.
    """

    monotone = True
    tile = TILE
    rule = staticmethod(rule)
    functions, methods = FUNCTIONS, TENSOR_METHODS

    def __init__(self, traced: Traced, layers: dict[fx.Node, Any], folded: dict[fx.Node, fx.Node]) -> None:
        self.traced, self.layers, self.folded = traced, layers, folded
        self.nodes = [n for n in traced.graph.nodes if n not in folded]
        last_use = {source: node for node in self.nodes for source in self.sources(node)}
        self.last_uses: dict[fx.Node, list[fx.Node]] = {}
        for source, node in last_use.items():
            self.last_uses.setdefault(node, []).append(source)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.tile = 2 if self._on_cpu() else TILE
        self.own_input = {node for node in self.nodes if self._owns_input(node)}
        self.head = self._find_head()

    def _on_cpu(self) -> bool:
        weights = [layer.weight for layer in self.layers.values() if isinstance(layer, IntervalAffine)]
        return bool(weights) and all(weight.device.type == "cpu" for weight in weights)

    def _owns_input(self, node: fx.Node) -> bool:
        """Whether it is a ReLU of what an affine layer made for it alone, where it may work in place."""
        layer, sources = self.layers.get(node), node.all_input_nodes
        if rule.dispatch(type(layer)) is not rule.dispatch(nn.ReLU) or node.args != tuple(sources):
            return False
        made_by = self.layers.get(self.folded.get(sources[0], sources[0]))
        return isinstance(made_by, IntervalAffine) and len(sources[0].users) == 1

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose values enter this one; of a folded BatchNorm the layer that does its work."""
        return [self.folded.get(n, n) for n in node.all_input_nodes]

    def _find_head(self) -> fx.Node | None:
        """The final linear layer, looking back through layers that change nothing; None if the net ends otherwise."""
        node = self.nodes[-1].all_input_nodes[0]
        while True:
            node = self.folded.get(node, node)
            layer = self.layers.get(node)
            if isinstance(layer, Affine):
                return node if layer.operation is F.linear and node.all_input_nodes else None
            if not isinstance(layer, (nn.Identity, _DropoutNd)):
                return None
            node = node.all_input_nodes[0]

    def logits(self, x: Tensor) -> Tensor:
        """(B, classes) the network at the points x (B, ...), with the statistics that it was prepared with."""
        return self.propagate(x)

    def propagate(self, box: Points, relu_inputs: list[Box] | None = None, *, until: fx.Node | None = None) -> Points:
        """Bounds of the output over ``box``; without the checks of `acertlab.propagate`. Of a point: its values.

        Args:
            box: (B, ...) input box.
            relu_inputs: receives the box at the input of every ReLU, in order (for the regularisers).
            until: stop at this node and return the box that enters it.
        """
        values: dict[fx.Node, Any] = {}
        in_place = relu_inputs is None and not torch.is_grad_enabled()
        for node in self.nodes:
            args, kwargs = map_aggregate(
                (node.args, node.kwargs), lambda a: values[self.folded.get(a, a)] if isinstance(a, fx.Node) else a
            )
            if node.op == "output" or node is until:
                return args[0]
            if relu_inputs is not None and self.is_relu(node):
                relu_inputs.append(args[0])
            try:
                if in_place and node in self.own_input and isinstance(args[0], Box):
                    values[node] = Box(args[0].lower.relu_(), args[0].upper.relu_())
                else:
                    values[node] = self._apply(node, box, values, args, kwargs)
            except (TypeError, ValueError) as error:
                error.add_note(f"This was at {_place(node)}.")
                raise
            if isinstance(values[node], Box):
                self.shapes[node] = tuple(values[node].lower.shape[1:])
            for done in self.last_uses.get(node, ()):
                del values[done]
        raise AssertionError("a traced graph ends with its output")

    def is_relu(self, node: fx.Node) -> bool:
        """Whether the node is a ReLU, as a layer, a function or a method."""
        if node.op == "call_module":
            return isinstance(self.layers[node], nn.ReLU)
        return node.target in (RELU_FUNCTIONS if node.op == "call_function" else RELU_METHODS)

    def _apply(self, node: fx.Node, box: Box | Tensor, values: dict, args: tuple, kwargs: dict) -> Any:
        target = cast(Any, node.target)  # a name or a function, by the op
        if node.op == "placeholder":
            return box if not values else (args[0] if args else None)  # further arguments keep their defaults
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.traced.model)
        if node.op == "call_module":
            bounded = any(isinstance(a, Box) for a in (*args, *kwargs.values()))
            return (self.rule if bounded else evaluate)(self.layers[node], *args, **kwargs)
        found: list[Box] = []
        map_aggregate((args, kwargs), lambda a: found.append(a) if isinstance(a, Box) else None)
        if node.op == "call_method":
            call = self.methods.get(target) if found else operator.methodcaller(target, *args[1:], **kwargs)
            args, kwargs = (args, kwargs) if found else (args[:1], {})
        else:
            call = self.functions.get(target) if found else target
        if call is None:
            name = target if isinstance(target, str) else getattr(target, "__name__", target)
            raise TypeError(
                f"model: no interval rule for the {node.op[5:]} '{name}' ({_place(node)}). Put it into a module of its "
                "own and give that a rule (acertlab.rule.register), add it to FUNCTIONS or TENSOR_METHODS of "
                "acertlab.bounds.rules.functions, or use bound='crown', through auto_LiRPA"
            )
        return call(*args, **kwargs)

    def margins(self, box: Box, y: Tensor, *, merged: bool = True, relu_inputs: list[Box] | None = None) -> Tensor:
        """Upper bounds of logit_i - logit_y over ``box``, for every class i.

        Args:
            box: (B, ...) input box.
            y: (B,) int64 labels.
            merged: fold the difference into the final linear layer, (W_i - W_y) c + |W_i - W_y| r + b_i - b_y, never
                looser than Eq. (3); False: Eq. (3), upper_i - lower_y. A network that does not end in a linear layer
                has nothing to merge, and both are Eq. (3).
            relu_inputs: as in `propagate`.

        Returns:
            (B, classes); column y is 0, so cross entropy of it is the loss of Eq. (5)-(6).
        """
        own = y.unsqueeze(1)
        if not merged or self.head is None:
            out = self.propagate(box, relu_inputs)
            return (out.upper - out.lower.gather(1, own)).scatter(1, own, 0.0)
        head = self.layers[self.head]
        features = self.propagate(box, relu_inputs, until=self.head)
        center = batch_invariant(F.linear, features.center, head.weight, head.bias)
        return center - center.gather(1, own) + difference_radius(head.weight, features.radius, y)


def difference_radius(weight: Tensor, radius: Tensor, y: Tensor, limit: int = 2**24) -> Tensor:
    """|W_i - W_y| r for every class i, (B, classes), never holding more than ``limit`` numbers at once."""
    classes, features = weight.shape
    if classes * classes * features <= min(limit, 64 * weight.numel()):  # few classes: one table of all pairs
        pairs = (weight.unsqueeze(0) - weight.unsqueeze(1)).abs_()  # (y, i, features)
        table = batch_invariant(F.linear, radius, pairs.view(-1, features), None).view(-1, classes, classes)
        return table.gather(1, y.view(-1, 1, 1).expand(-1, 1, classes)).squeeze(1)
    step = max(1, limit // weight.numel())
    parts = zip(radius.split(step), y.split(step), strict=True)
    return torch.cat([((weight - weight[k].unsqueeze(1)).abs_() @ r.unsqueeze(2)).squeeze(2) for r, k in parts])


def freeze(model: nn.Module | Traced, statistics: Statistics | None = None) -> IntervalNetwork:
    """Prepares a network for many bound passes: each BatchNorm folded into the affine layer before it, |W| once.

    Differentiable: with gradients enabled the prepared weights stay attached to the parameters and the statistics;
    passes under ``torch.no_grad()`` then cost no graph.

    Args:
        model: a module, or its `trace` (which saves tracing again).
        statistics: those of `clean_pass`, for BatchNorm layers in training mode.

    Raises:
        TypeError: the model cannot be traced or holds a layer without a rule.
        ValueError: a BatchNorm or Dropout in training mode without ``statistics`` for it.
    """
    traced = model if isinstance(model, Traced) else trace(model)
    modules = dict(traced.model.named_modules(remove_duplicate=False))
    known = {modules[name]: value for name, value in (statistics or {}).items()}
    work = fold(traced, IntervalAffine.of_layer, lambda layer: batch_norm_scale(layer, known.get(layer)), set(known))
    return IntervalNetwork(traced, *work)


def propagate(model: nn.Module, box: Box, *, statistics: Statistics | None = None) -> Box:
    """Eq. (16)-(19): bounds of ``model`` over ``box``, any network that ``torch.fx`` traces.

    Args:
        model: in evaluation mode, or in training mode with the ``statistics`` of `clean_pass`.
        box: (B, ...) input box with lower <= upper.
        statistics: see `freeze`.

    Returns:
        The output's box, (B, classes); differentiable. NaN or infinite weights give NaN or infinite bounds.

    Raises:
        TypeError: a model that cannot be traced, or a layer without a rule.
        ValueError: lower > upper somewhere, or training mode without statistics.
    """
    if not isinstance(box, Box):
        raise TypeError(f"box: must be an acertlab.Box, not {type(box).__name__}")
    if (box.lower > box.upper).any():
        raise ValueError(f"box: lower exceeds upper in {int((box.lower > box.upper).sum())} elements")
    frozen = freeze(model, statistics)
    weight = next((p for p in model.parameters() if p.is_floating_point()), box.lower)
    if weight.dtype != box.lower.dtype:
        raise ValueError(f"box: dtype {box.lower.dtype} differs from the model's {weight.dtype}; convert one of them")
    return frozen.propagate(box)


class Network(Protocol):
    """A network prepared for bounds: `IntervalNetwork`, `AutoLirpaNetwork` or `SoundNetwork`."""

    monotone: bool  # whether the margin grows with eps
    tile: int  # batches are padded to a multiple of it, see `pad`; TILE, where nothing better is known

    def margins(self, box: Box, y: Tensor, *, merged: bool = True) -> Tensor:
        """Upper bounds of logit_i - logit_y over ``box``, (B, classes); column y is 0."""
        ...
