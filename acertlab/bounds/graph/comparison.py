"""Whether a model computes what its graph does: operator by operator on a few points, and on points of every chunk."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acertlab.bounds.box import Domain, DomainLike, ball
from acertlab.bounds.graph.capture import state_kept
from acertlab.bounds.graph.structure import Graph
from acertlab.bounds.rules.operators import place

STRUCTURE = {  # changes of shape, copies and what in-place changes through views become: their values enter others
    *("view", "_unsafe_view", "_reshape_alias", "reshape", "t", "transpose", "permute", "expand"),
    *("unsqueeze", "squeeze"),
    *("slice", "select", "as_strided", "alias", "detach", "clone", "copy", "_to_copy", "lift_fresh", "lift_fresh_copy"),
    *("contiguous", "unbind", "split", "split_with_sizes", "narrow", "diagonal", "unfold", "view_as", "empty"),
    *("slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter", "empty_like", "new_empty"),
    *("_assert_tensor_metadata", "sym_size", "sym_stride", "sym_numel", "new_empty_strided", "empty_strided"),
    *("scalar_tensor", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "fill", "arange", "zero"),
}
READING = ("_local_scalar_dense", "item", "equal", "is_nonzero")
ROWS = 6  # points on which operators are compared
SHARE = 4  # of each chunk every so many-th sample is compared


@dataclass
class _Call:
    name: str
    values: list[Tensor]
    node: fx.Node | None = None


class _Recorder(TorchDispatchMode):
    """Records what operators run and what they compute; refuses those that make Python values of what x decides."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.flow: list[tuple[set[int], set[int], _Call | None]] = []  # the memory that each operator reads and writes
        self.dependent: dict[int, Tensor] = {id(x): x}
        self.inside = 0  # a module that stays whole, of which a rule speaks

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        if any(id(a) in self.dependent for a in tree_leaves((args, kwargs))):
            if name in READING and not self.inside:
                raise TypeError(
                    f"model: forward reads values of its input ('{name}'), so that its control flow may depend on them"
                )
            results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            self.dependent.update((id(t), t) for t in results)
            call = None
            if name not in STRUCTURE and not self.inside:
                name = "batch_norm" if "batch_norm" in name else name
                call = _Call(name, [t.clone() for t in results[:1] if t.is_floating_point()])
                self.calls.append(call)
            reads = _memory((args, kwargs))
            self.flow.append((reads, _memory(out) | (reads if func._schema.is_mutable else set()), call))
        return out

    def used(self, out: Any) -> list[_Call]:
        """The calls on which an output depends, in order; forward may compute what it does not return."""
        needed, kept = _memory(out), []
        for reads, writes, call in reversed(self.flow):
            if not needed.isdisjoint(writes):
                needed |= reads
                kept += [] if call is None else [call]
        return kept[::-1]

    def whole(self, model: nn.Module, graph: Graph) -> None:
        """Lets the modules that stay whole count as one operator; to be undone by `state_kept`."""

        def forward(own: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
            self.inside += 1
            try:
                out = own(*args, **kwargs)
            finally:
                self.inside -= 1
            self.dependent[id(out)] = out
            self.calls.append(_Call("whole_module", [out.clone()]))
            self.flow.append((_memory((args, kwargs)), _memory(out), self.calls[-1]))
            return out

        for path in {call.path for call in graph.whole}:
            layer = model.get_submodule(path)
            layer.forward = partial(forward, layer.forward)

    def label(self, node: fx.Node) -> None:
        for call in reversed(self.calls):
            if call.node is not None:
                return
            call.node = node


def _memory(values: Any) -> set[int]:
    """Where the tensors among these lie."""
    return {t.untyped_storage().data_ptr() for t in tree_leaves(values) if isinstance(t, Tensor)}


def check_operators(model: nn.Module, graph: Graph, x: Tensor) -> None:
    """Runs the model itself and its graph side by side on x (B, ...), a few points.

    TypeError where forward reads values, or runs other operators than the graph; ValueError names the first operator
    that computes another value.
    """
    with torch.no_grad():
        own = x.clone()  # forward may change its input
        theirs, ours = _Recorder(own), _Recorder(x)
        with state_kept(model), theirs:
            theirs.whole(model, graph)
            out = model(own)
        with state_kept(model), ours:
            ours.whole(model, graph)
            expected = graph.run(model, x, lambda node, _: ours.label(node))
    calls = theirs.used(out), ours.used(expected)
    for a, b in zip(*calls, strict=False):
        if a.name != b.name:
            raise TypeError(
                f"model: runs '{a.name}' where its captured graph has {_named(b)}; forward asks whether it is "
                "being captured, or for something else that differs then; or it changes a view in place, beside which "
                "torch.export takes some operators apart: write h = f(h) instead"
            )
        for value, own in zip(a.values, b.values, strict=True):
            if not same(value, own):
                raise ValueError(
                    f"model: computes something else than its graph; the first that differs is {_named(b)}"
                )
    if len(calls[0]) != len(calls[1]):
        raise TypeError(f"model: runs {len(calls[0])} operators, its captured graph holds {len(calls[1])}")
    if not same(out, expected):
        raise ValueError("model: returns something else than its graph, though all its operators agree")
    _check_with_gradients(model, x, out)


def _check_with_gradients(model: nn.Module, x: Tensor, out: Tensor) -> None:
    """Whether the model computes the same where gradients are followed, as a user may call it."""
    try:
        with torch.enable_grad(), state_kept(model):
            followed = model(x.clone().requires_grad_().clone()).detach()
    except RuntimeError:  # it cannot be called so, as where it changes one of several views in place
        return
    if (followed - out).abs().max() > torch.finfo(out.dtype).eps ** 0.5 * (1 + out.abs().max()):
        raise ValueError("model: computes something else where gradients are followed; its forward asks for that mode")


def _named(call: _Call) -> str:
    return place(call.node) if call.node is not None else call.name


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two results of the same arithmetic agree, as far as kernels of this device repeat themselves."""
    if a.shape != b.shape:
        return a.numel() == b.numel() and same(a.flatten(), b.flatten())
    unit = torch.finfo(a.dtype).eps
    allowed = (
        (64 * unit if a.device.type == "cpu" else unit**0.5) * a.abs().nan_to_num(posinf=0.0).amax() if a.numel() else 0
    )
    return bool((((a - b).abs() <= allowed) | (a == b) | (a.isnan() & b.isnan())).all())


def points(x: Tensor, domain: DomainLike, eps: float, rows: int) -> Tensor:
    """Points at which to compare a model and its graph: samples x, corners and random points, ``rows`` in turn."""
    x = x.detach()[torch.linspace(0, len(x) - 1, rows, device=x.device).round().long()]
    box = ball(x, eps, domain)
    generator = torch.Generator(x.device).manual_seed(0)
    u = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    low, high = Domain.of(domain).filled(x, box.lower, box.upper)
    kinds: list[Callable[[], Tensor]] = [
        lambda: x,
        lambda: torch.where(u < 0.5, box.lower, box.upper),
        lambda: box.lower + u * (box.upper - box.lower),
        lambda: low + u * (high - low),
        lambda: torch.where(u < 0.5, low, high),
        lambda: box.upper,
    ]
    kind = torch.arange(rows, device=x.device) % len(kinds)
    out = x.clone()
    for i, make in enumerate(kinds[1:], 1):
        out[kind == i] = make()[kind == i]
    return out


def check_chunk(model: nn.Module, graph: Graph, x: Tensor, domain: DomainLike, eps: float) -> None:
    """Compares outputs on points of this chunk, ROWS or a quarter of its samples; where they differ, operators."""
    if not len(x):
        return
    at = points(x, domain, eps, max(ROWS, -(-len(x) // SHARE)))
    with torch.no_grad(), state_kept(model):
        if same(model(at.clone()), graph.run(model, at)):
            return
    for part in at.split(ROWS):
        check_operators(model, graph, part)
    raise ValueError("model: computes something else than its graph, in batches of this size only")
