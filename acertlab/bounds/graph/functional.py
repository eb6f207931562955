"""A captured program as a functional graph: without in-place changes, copies, and what no output depends on."""

import operator
from typing import Any, cast

import torch
from torch import fx
from torch.export.graph_signature import InputKind
from torch.fx.node import map_arg

from acertlab.bounds.graph.structure import Graph, WholeCall
from acertlab.bounds.rules.dispatch import RULES
from acertlab.bounds.rules.operators import BATCH_NORMS, arguments_of, aten, packet, place

UNCHANGED = (aten.alias, aten.clone, aten.lift_fresh_copy, aten.contiguous)  # in a functional graph
RECURRENT = (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
DROPOUTS = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)
KNOWN = {*RULES, *BATCH_NORMS, *UNCHANGED, *RECURRENT, *DROPOUTS}


def defined_by_others(program: torch.export.ExportedProgram) -> dict[Any, Any]:
    """How torch defines operators without a rule by others, where the input reaches one of those."""
    reached: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node.name in program.graph_signature.user_inputs or not reached.isdisjoint(node.all_input_nodes):
            reached.add(node)
    if not any(_is_composite(node.target) for node in reached):
        return {}
    return {op: by for op, by in torch.export.default_decompositions().items() if _is_composite(op)}


def _is_composite(op: Any) -> bool:
    """Whether torch defines it by others, and nothing here knows it as it is."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    if not isinstance(op, torch._ops.OpOverload) or op._schema.is_mutable or op.overloadpacket in KNOWN:
        return False
    return op.has_kernel_for_dispatch_key(composite)


def made_functional(graph: fx.Graph) -> bool:
    """Whether no operator changes a tensor, once those that plainly may are written out of place.

    Plainly: what is changed is an operator's own result, no view, and nobody else asks for it.
    """
    changing = []
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if isinstance(node.meta.get("val"), (int, torch.SymInt)):
            continue  # arithmetic of sizes
        if not isinstance(node.target, torch._ops.OpOverload):
            return False
        if packet(node) is aten.batch_norm and node.args[5] and any(len(b.users) > 1 for b in node.args[3:5] if b):
            return False  # it moves its running statistics, and somebody else reads them
        if node.target._schema.is_mutable and not _is_unread(node):
            changed, name = node.args[0], packet(node).__name__
            known = hasattr(aten, name.removesuffix("_")) and isinstance(changed, fx.Node)
            if not known or not _is_new(changed) or set(changed.users) != {node} or node.args.count(changed) != 1:
                return False
            functional = getattr(aten, name.removesuffix("_"))
            if not name.endswith("_") or node.target._overloadname not in functional.overloads():
                return False
            changing.append((node, getattr(functional, node.target._overloadname)))
    for node, target in changing:
        node.target = target
    return True


def _is_unread(node: fx.Node) -> bool:
    """Whether it changes a buffer that nothing else reads, as BatchNorm counts its batches."""
    changed = node.args[0]
    return (
        isinstance(changed, fx.Node) and changed.op == "placeholder" and set(changed.users) == {node} and not node.users
    )


def _is_new(node: fx.Node) -> bool:
    """Whether its value is a tensor of its own, that shares memory with no other."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    returned = node.target._schema.returns
    if node.target._schema.is_mutable:  # what it changed in place, it hands on
        return len(returned) == 1 and isinstance(node.args[0], fx.Node) and _is_new(node.args[0])
    may_alias = packet(node) in (aten.reshape, aten.contiguous, aten.flatten, aten.to, aten.type_as, *DROPOUTS)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), "CompositeImplicitAutograd")
    trusted = packet(node) in (aten.linear, aten.conv1d, aten.conv2d, aten.conv3d, aten.batch_norm, aten.matmul)
    return not may_alias and (trusted or not composite) and all(r.alias_info is None for r in returned)


def simplified(program: torch.export.ExportedProgram, whole: tuple[WholeCall, ...]) -> Graph:
    graph, signature = program.graph_module.graph, program.graph_signature
    if len(signature.user_outputs) != 1 or (out := program.call_spec.out_spec) is None or not out.is_leaf():
        raise TypeError(
            "model: must return one tensor; of several, acertlab.select_output(model, name or place) picks one"
        )
    sources: dict[fx.Node, Any] = {}
    (given, *_), (returned,) = signature.user_inputs, signature.user_outputs
    entry = next(node for node in graph.nodes if node.name == given)
    placeholders = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for spec in signature.input_specs:
        node = placeholders[spec.arg.name]
        if spec.kind == InputKind.CONSTANT_TENSOR:
            sources[node] = program.constants[str(spec.target)]
        elif spec.kind != InputKind.USER_INPUT:
            sources[node] = spec.target
    result = next(node for node in graph.nodes if node.name == returned)
    dependent = _refuse_what_is_no_function(graph, entry)
    _check_batch(program, entry)
    skipped = {node: _equal_to(node) for node in graph.nodes}

    def real(node: fx.Node) -> fx.Node:
        while (source := skipped[node]) is not None:
            node = source
        return node

    for node in graph.nodes:
        node.args, node.kwargs = map_arg((node.args, node.kwargs), real)
        if packet(node) in (aten.view, aten._unsafe_view):
            node.target = aten.reshape.default  # what it views may lie otherwise in memory than it did
        elif packet(node) is aten.view_as:
            node.target = aten.reshape_as.default
        elif node.target is aten.squeeze.default:  # of a batch of one it would squeeze that as well
            ones = [i for i, size in enumerate(node.args[0].meta["val"].shape) if isinstance(size, int) and size == 1]
            node.target, node.args = aten.squeeze.dims, (node.args[0], ones)
    output = real(result)
    needed = {output}
    for node in reversed(graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    for node in reversed(graph.nodes):
        if node not in needed:
            for user in list(node.users):
                graph.erase_node(user)  # the output, which named all that forward changes
            graph.erase_node(node)
    nodes = tuple(node for node in graph.nodes if node.op != "placeholder")
    sources = {node: source for node, source in sources.items() if node in needed}
    return Graph(nodes, entry, output, sources, dependent & needed, whole)


def _check_batch(program: torch.export.ExportedProgram, entry: fx.Node) -> None:
    size = entry.meta["val"].shape[0]
    bounds = program.range_constraints.get(cast(Any, size.node.expr)) if isinstance(size, torch.SymInt) else None
    if bounds is None:
        raise TypeError("model: its forward fixes the size of the batch; write it for batches of any size")
    if bounds.lower > 2 or bounds.upper < 2**31:
        raise TypeError(f"model: its forward takes batches of {bounds.lower} to {bounds.upper} samples only")


def _refuse_what_is_no_function(graph: fx.Graph, entry: fx.Node) -> frozenset[fx.Node]:
    """The nodes that depend on the input; refuses those that read values of it or draw random numbers."""
    dependent = {entry}
    for node in graph.nodes:
        if node.op == "call_function" and dependent.intersection(node.all_input_nodes):
            dependent.add(node)
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                raise TypeError(
                    f"model: {place(node)} has no interval rule: a part of forward under a mode of its own (autocast, "
                    "compiled control flow). Put it into a module of its own and give that a rule (acertlab.rule)"
                )
            if packet(node) in (aten.item, aten._local_scalar_dense):
                raise TypeError(f"model: its control flow depends on the values of tensors ({place(node)})")
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _is_idle(node):
            chance = f" with p={node.args[1]}" if packet(node) in DROPOUTS else ""
            raise ValueError(f"model: {place(node)}{chance} is active, so outputs are random; call model.eval() first")
    return frozenset(dependent)


def _is_idle(node: fx.Node) -> bool:
    """Whether it is a dropout that drops nothing, or attention or a recurrent layer with one."""
    args = arguments_of(node)
    if packet(node) in RECURRENT:
        return len(args) > 6 and (args[5] == 0 or args[6] is False)
    if packet(node) is aten.scaled_dot_product_attention:
        return bool(node.kwargs.get("dropout_p", [*args[4:5], 0.0][0]) == 0)
    return packet(node) in DROPOUTS and (args[2] is False or args[1] == 0)


def _equal_to(node: fx.Node) -> fx.Node | None:
    """The node whose value this one only hands on."""
    if node.op != "call_function":
        return None
    args = arguments_of(node)
    operation, first = packet(node), args[0] if args else None
    if operation in UNCHANGED:
        return first
    if operation is operator.getitem and args[1] == 0 and packet(first) in BATCH_NORMS:
        return first
    if operation in DROPOUTS and _is_idle(node):
        return first
    if operation is aten.slice and args[2:] == (0, 2**63 - 1):
        return first
    reshaping = operation in (aten.view, aten.reshape, aten.expand)
    if reshaping and isinstance(first, fx.Node) and _shape(node) == _shape(first):
        return first
    return None


def _shape(node: fx.Node) -> tuple[str, ...]:
    return tuple(map(str, node.meta["val"].shape))  # comparing sizes that are open would fix them
