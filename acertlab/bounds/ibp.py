"""Interval bound propagation (IBP): a `Box` of inputs through the captured graph of any network.

`freeze` prepares a network for many passes: what does not depend on the input is computed once, BatchNorm is folded
into the affine operator before it, and |W| is made. The same pass serves the search for radii (no gradient), the robust
loss and the regularisers (with gradient).

Source: Gowal et al. 2019 (IBP); Shi et al. 2021 (BatchNorm with the clean batch's statistics).

Example:
    >>> al.interval.propagate(model, al.Box.around(x, 0.1)).upper
    tensor([[0.3000, 0.8000]])
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from acertlab.bounds.box import Box
from acertlab.bounds.graph.capture import changes, check_module
from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.graph.plan import Plan
from acertlab.bounds.graph.structure import WHOLE_MODULE, Graph
from acertlab.bounds.rules.affine import (
    BATCH_STATISTICS,
    Affine,
    AffineCall,
    IntervalAffine,
    NormCall,
    Scale,
    Standardisation,
)
from acertlab.bounds.rules.batch_invariance import TILE, batch_invariant
from acertlab.bounds.rules.dispatch import RULES, rule
from acertlab.bounds.rules.elementwise import at_both_ends, pattern_of
from acertlab.bounds.rules.operators import arguments_of, aten, module_of, operation_of, packet, place
from acertlab.bounds.rules.shapes import SIZES

Statistics = dict[str, tuple[Tensor, Tensor]]
SOFTMAX = (aten.softmax, aten._softmax, aten.log_softmax, aten._log_softmax)


def _tensors(model: nn.Module) -> list[tuple[Tensor, int]]:
    """The parameters and buffers, and how often each was changed in place."""
    return [(t, changes(t)) for t in (*model.parameters(), *model.buffers())]


class Step(NamedTuple):
    """One operator of a pass."""

    node: fx.Node
    work: Callable[..., Any]  # computes its value
    args: tuple[Any, ...]  # of which nodes stand for their values
    kwargs: dict[str, Any]
    nested: bool  # whether some of those lie inside lists


class IntervalNetwork:
    """A network prepared for many bound passes with the same weights.

    Args:
        model: any module whose forward can be captured.
        statistics: see `freeze`.
        graph: the model's, where it is known; else it is captured at the first pass, for samples like that one's.
    """

    monotone = True  # a larger box never has smaller bounds
    # batches of a multiple of it are computed alike, see `pad`; on a CPU matrix products see to themselves
    # (`batch_invariant`), and convolutions only have another kernel for a single row
    tile = TILE
    graph: Graph
    plan: Plan

    def __init__(self, model: nn.Module, statistics: Statistics | None = None, graph: Graph | None = None) -> None:
        check_module(model)
        self.model, self.statistics = model, statistics or {}
        self.gradients = torch.is_grad_enabled()
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}  # of each box in the last pass, without the batch
        self.head: fx.Node | None = None
        self.ready, self.held = graph is not None, _tensors(model)
        if graph is not None:
            self._prepare(graph)

    # ---- preparation

    def _ready(self, x: Tensor) -> None:
        """Captures the graph at the first pass, where it was not given; the weights must still be those of before."""
        if not self.ready:
            now = _tensors(self.model)
            if len(now) != len(self.held) or any(
                a is not b or v != w for (a, v), (b, w) in zip(self.held, now, strict=True)
            ):
                raise ValueError("model: its parameters or buffers have changed since freeze; prepare it once more")
            self._prepare(graph_of(self.model, x))
            self.ready = True

    def _prepare(self, graph: Graph) -> None:
        if packet(graph.output) in SOFTMAX:
            raise TypeError(
                "model: a softmax has no interval rule. If it is the last layer, drop it (put nn.Identity() there): "
                "margins are differences of logits, and the softmax of logits has the same order"
            )
        plan = graph.plan
        with torch.set_grad_enabled(self.gradients):
            self.graph, self.plan, self.constants = graph, plan, self._constants(graph)
            self.works = self._works(plan)
        self.affine = {n: work for n, work in self.works.items() if isinstance(plan.call(n), AffineCall)}
        self.head = plan.head  # the final linear operator; None if the network ends otherwise
        self.steps = [self._step(node) for node in plan.nodes]
        self.own_input = {node for node in plan.owners if isinstance(self.works[arguments_of(node)[0]], IntervalAffine)}
        weights = [work.weight for work in self.affine.values()]
        self.tile = 2 if weights and all(w.device.type == "cpu" for w in weights) else TILE

    def _constants(self, graph: Graph) -> dict[fx.Node, Any]:
        """All values that are the same in each pass."""
        return graph.constants(self.model)

    def _works(self, plan: Plan) -> dict[fx.Node, Any]:
        """What does the work of affine operators and BatchNorms, by node."""
        modules = dict(self.model.named_modules(remove_duplicate=False)) if self.statistics else {}
        known = {modules[name]: pair for name, pair in self.statistics.items()}
        of = partial(self._statistics_of, modules=modules, known=known)
        norms = {n: self._norm(call, of(n, call)) for n, call in plan.calls.items() if isinstance(call, NormCall)}
        works: dict[fx.Node, Any] = {}
        for node in plan.nodes:
            call = plan.call(node)
            if isinstance(call, AffineCall):
                works[node] = self._affine(call, norms.get(node))
            elif isinstance(call, NormCall):
                works[node] = self._alone(norms[node])
            elif call is not None:
                works[node] = self._standard(*(self.constants[n].flatten() for n in (call.mean, call.std)))
        return works

    def _affine(self, call: AffineCall, norm: Any = None) -> Affine:
        return IntervalAffine.of(*self._weights(call), call.operation, norm, call.repeats)

    def _weights(self, call: AffineCall) -> tuple[Tensor, Tensor | None]:
        weight = self.constants[call.weight]
        bias = None if call.bias is None else self.constants[call.bias]
        return weight.mT.contiguous() if call.turned else weight, bias

    def _norm(self, norm: NormCall, statistics: tuple[Tensor, Tensor]) -> Any:
        return Scale.of(*statistics, self._value(norm.weight), self._value(norm.bias), norm.eps)

    def _value(self, node: fx.Node | None) -> Any:
        return None if node is None else self.constants[node]

    def _standard(self, mean: Tensor, std: Tensor) -> Any:
        return Standardisation(1 / std, -mean / std, mean, std)

    def _alone(self, norm: Any) -> Any:
        """What a BatchNorm does that follows no affine operator."""
        return norm

    def _statistics_of(
        self,
        node: fx.Node,
        norm: NormCall,
        modules: dict[str, nn.Module],
        known: dict[nn.Module, tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """The mean and variance by which it normalises: of a batch, where its module is known to `clean_pass`."""
        if not norm.by_batch:
            return self._value(norm.mean), self._value(norm.var)
        path, _ = module_of(node)
        if modules.get(path) not in known:
            raise ValueError(BATCH_STATISTICS)
        return known.pop(modules[path])  # asked for once: called twice, it would have two

    def _step(self, node: fx.Node) -> Step:
        """The node, what computes its value, with which arguments, and whether some of those lie inside lists."""
        arguments = (*node.args, *node.kwargs.values())
        nested = any(isinstance(a, (list, tuple, dict)) for a in arguments) and bool(node.all_input_nodes)
        if node in self.works:
            return Step(node, self.works[node].propagate, tuple(self.plan.sources(node)), {}, False)
        if packet(node) is WHOLE_MODULE:
            return Step(node, self._whole_module, node.args, {}, True)
        if packet(node) in SIZES:
            return Step(node, RULES[packet(node)], (node.target, *node.args), node.kwargs, nested)
        if node not in self.plan.boxed:
            return Step(node, operation_of(node), node.args, node.kwargs, nested)
        value, call = node.meta.get("val"), self._rule_of(node)
        if call is None or (isinstance(value, Tensor) and not value.is_floating_point()):
            raise TypeError(
                f"model: no interval rule for {place(node)}. Put it into a module of its own and give that a rule:\n"
                "    @acertlab.rule.register(MyLayer)\n"
                "    def my_rule(layer, box):\n"
                "        return acertlab.Box(lower, upper)  # must hold layer(x) for every x in box"
            )
        if pattern := pattern_of(node):
            return Step(node, at_both_ends, pattern, {}, False)
        return Step(node, call, (node.target, *node.args), node.kwargs, nested)

    def _rule_of(self, node: fx.Node) -> Callable[..., Any] | None:
        return RULES.get(packet(node))

    def _whole_module(self, tensors: list[Any], index: int) -> Any:
        whole = self.graph.whole[index]
        layer, (args, kwargs) = self.model.get_submodule(whole.path), whole.arguments(tensors)
        if any(isinstance(a, Box) for a in tensors):
            return self._module_rule(layer, *args, **kwargs)
        return layer.forward(*args, **kwargs)

    def _module_rule(self, layer: nn.Module, *args: Any, **kwargs: Any) -> Box:
        return rule(layer, *args, **kwargs)

    def is_relu(self, node: fx.Node) -> bool:
        return packet(node) is aten.relu

    # ---- passes

    def logits(self, x: Tensor) -> Tensor:
        """(B, classes) the network at the points x (B, ...), with the statistics that it was prepared with."""
        self._ready(x)
        values: dict[fx.Node, Any] = {**self.constants, self.graph.input: x}
        for node, _, args, _, _ in self.steps:
            if node in self.works:
                values[node] = self.works[node].evaluate(values[args[0]])
            else:
                arguments = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = self.graph.call(self.model, node, *arguments)
            for done in self.plan.last_uses.get(node, ()):
                del values[done]
        return values[self.graph.output]

    def propagate(self, box: Box, relu_inputs: list[Box] | None = None, *, until: fx.Node | None = None) -> Box:
        """Bounds of the output over ``box`` (B, ...), without the checks of `acertlab.propagate`.

        ``relu_inputs`` receives the box at the input of every ReLU, in order (for the regularisers). Stops at the node
        ``until``, and then returns the box that enters it.
        """
        self._ready(box.lower)
        values: dict[fx.Node, Any] = {**self.constants, self.graph.input: box}
        in_place = relu_inputs is None and not torch.is_grad_enabled()
        for node, work, args, kwargs, nested in self.steps:
            if node is until:
                return values[self.plan.sources(node)[0]]
            if relu_inputs is not None and self.is_relu(node):
                relu_inputs.append(values[self.plan.sources(node)[0]])
            if node in self.works:
                value = work(values[args[0]])
            elif in_place and node in self.own_input:
                entering = values[self.plan.sources(node)[0]]
                value = Box(entering.lower.relu_(), entering.upper.relu_())
            else:
                try:
                    if nested:
                        args, kwargs = map_arg((args, kwargs), values.__getitem__)
                    else:
                        args = [values[a] if isinstance(a, fx.Node) else a for a in args]
                        kwargs = {k: values[a] if isinstance(a, fx.Node) else a for k, a in kwargs.items()}
                    value = work(*args, **kwargs)
                except (TypeError, ValueError) as error:
                    error.add_note(f"This was at {place(node)}.")
                    raise
            values[node] = value
            if isinstance(value, Box):
                self.shapes[node] = tuple(value.lower.shape[1:])
            for done in self.plan.last_uses.get(node, ()):
                del values[done]
        return values[self.graph.output]

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
        self._ready(box.lower)
        own = y.unsqueeze(1)
        head = self.head
        if not merged or head is None:
            out = self.propagate(box, relu_inputs)
            return (out.upper - out.lower.gather(1, own)).scatter(1, own, 0.0)
        last, features = self.affine[head], self.propagate(box, relu_inputs, until=head)
        center = batch_invariant(F.linear, features.center, last.weight, last.bias)
        return center - center.gather(1, own) + difference_radius(last.weight, features.radius, y)


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


def freeze(model: nn.Module, statistics: Statistics | None = None, graph: Graph | None = None) -> IntervalNetwork:
    """Prepares a network for many bound passes: constants once, BatchNorm folded into the layer before it, |W| once.

    Differentiable: with gradients enabled the prepared weights stay attached to the parameters and the statistics;
    passes under ``torch.no_grad()`` then cost no graph.

    Args:
        model: a module.
        statistics: those of `clean_pass`, for BatchNorm layers in training mode.
        graph: see `IntervalNetwork`.

    Raises:
        TypeError: the model cannot be captured or holds an operator without a rule.
        ValueError: a BatchNorm or Dropout in training mode without ``statistics`` for it.

    Example:
        >>> al.freeze(model).propagate(al.Box.around(x, 0.1)).lower
        tensor([[0.1000, 0.6000]])
    """
    return IntervalNetwork(model, statistics, graph)


def propagate(model: nn.Module, box: Box, *, statistics: Statistics | None = None) -> Box:
    r"""Eq. (16)-(19): bounds of ``model`` over ``box``; of a linear layer, with the box's centre c and half width r:

    $$c' = W c + b, \qquad r' = |W|\, r$$

    Args:
        model: in evaluation mode, or in training mode with the ``statistics`` of `clean_pass`.
        box: (B, ...) input box with lower <= upper.
        statistics: see `freeze`.

    Returns:
        The output's box, (B, classes); differentiable. NaN or infinite weights give NaN or infinite bounds.

    Raises:
        TypeError: a model that cannot be captured, or an operator without a rule.
        ValueError: lower > upper somewhere, or training mode without statistics.

    Example:
        >>> al.propagate(torch.nn.ReLU(), al.Box(torch.tensor([-2.0]), torch.tensor([3.0])))
        Box(lower=tensor([0.]), upper=tensor([3.]))
    """
    if not isinstance(box, Box):
        raise TypeError(f"box: must be an acertlab.Box, not {type(box).__name__}")
    if (box.lower > box.upper).any():
        raise ValueError(f"box: lower exceeds upper in {int((box.lower > box.upper).sum())} elements")
    check_module(model)
    weight = next((p for p in model.parameters() if p.is_floating_point()), box.lower)
    if weight.dtype != box.lower.dtype:
        raise ValueError(f"box: dtype {box.lower.dtype} differs from the model's {weight.dtype}; convert one of them")
    return freeze(model, statistics, graph_of(model, box.lower)).propagate(box)


@rule.register(nn.Module)
def _of_any_module(layer: nn.Module, box: Box) -> Box:
    return IntervalNetwork(layer).propagate(box)


class Network(Protocol):
    """A network prepared for bounds: `IntervalNetwork`, `AutoLirpaNetwork` or `SoundNetwork`."""

    monotone: bool  # whether the margin grows with eps
    tile: int  # batches are padded to a multiple of it, see `pad`; TILE, where nothing better is known

    def margins(self, box: Box, y: Tensor, *, merged: bool = True) -> Tensor:
        """Upper bounds of logit_i - logit_y over ``box``, (B, classes); column y is 0."""
        ...
