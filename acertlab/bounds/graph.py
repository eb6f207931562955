"""The graph of a network, by ``torch.fx``; refused where it has no interval rules, or computes something else."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth

from acertlab.bounds.rules.affine import Affine
from acertlab.bounds.rules.dispatch import has_rule, rule

WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


class _Tracer(fx.Tracer):
    failed = ""  # where, in the innermost module

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or f" in '{self.path_of_module(m)}' of type {type(m).__name__}"
            raise

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return has_rule(m) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Traced:
    """A network's graph. Valid while the model's structure (not its weights) stays as it is."""

    model: nn.Module
    graph: fx.Graph


def trace(model: nn.Module, *, live_buffers: bool = False) -> Traced:
    """The graph of ``model``, by ``torch.fx``.

    Args:
        model: any module.
        live_buffers: keep what forward computes from buffers in the graph; else torch.fx puts its value there.

    Raises:
        TypeError: not a module; forward depends on data; or a layer has no rule (the error names it and says how to
            give it one).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, not {type(model).__name__}")
    if (kind := type(model).__name__) in WRAPPERS:
        raise TypeError(f"model: is wrapped in {kind}; give the model inside, model.{WRAPPERS[kind]}")
    root = nn.Sequential(model) if has_rule(model) else model
    tracer = _Tracer()
    tracer.proxy_buffer_attributes = live_buffers
    try:
        graph = tracer.trace(root)
    except Exception as error:  # fx raises many kinds
        raise TypeError(
            f"model: torch.fx cannot trace {type(model).__name__}{tracer.failed}: {error}. Write forward without "
            "control flow that depends on the data, make that part a module of its own and give it a rule "
            "(acertlab.rule), or use bound='crown', through auto_LiRPA"
        ) from error
    for node in graph.nodes:
        if node.op == "call_module" and not has_rule(layer := root.get_submodule(node.target)):
            kind = type(layer).__name__
            raise TypeError(
                f"model: no interval rule for layer '{node.target}' of type {kind}. Give it one:\n"
                f"    @acertlab.rule.register({kind})\n"
                f"    def {kind.lower()}_rule(layer, box):\n"
                "        return acertlab.Box(lower, upper)  # must hold layer(x) for every x in box\n"
                "or use bound='crown', through auto_LiRPA"
            )
    _refuse_reuse_after_in_place(root, graph)
    return Traced(root, graph)


SAME_STORAGE = (nn.Identity, nn.Flatten, nn.Unflatten, _DropoutNd, StochasticDepth)
VIEWS = {
    *("view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "swapaxes"),
    *("movedim", "t", "contiguous", "getitem", "narrow", "chunk", "split", "unbind", "expand", "expand_as", "detach"),
    *("to", "float", "double", "type_as", "dropout", "stochastic_depth", "interpolate", "pad"),
}


def _refuse_reuse_after_in_place(root: nn.Module, graph: fx.Graph) -> None:
    """Refuses y = relu_(x) followed by another use of x: the model then sees the changed x, and no rule says so."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    storage: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        storage[node] = storage[source] if source and _shares_storage(node, root) else node
        if source is None or not _is_in_place(node, root):
            continue
        for other in graph.nodes:
            if order[other] < order[node] and storage[other] is storage[source]:
                later = [user for user in other.users if order[user] > order[node]]
                if later:
                    raise ValueError(
                        f"model: '{node.name}' changes '{other.name}' in place, and '{later[0].name}' uses it again "
                        "afterwards; write that operation out of place (inplace=False)"
                    )


def _is_in_place(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_function":
        in_operator = name in ("iadd", "isub", "imul", "itruediv")
        return in_operator or bool(_argument(node, "inplace")) or name.endswith("_")
    return node.op == "call_method" and name.endswith("_") and not name.endswith("__")


def _argument(node: fx.Node, name: str) -> Any:
    """What a Python function is called with for one of its parameters, by name or by position; else None."""
    code = getattr(node.target, "__code__", None)
    names = code.co_varnames[: code.co_argcount] if code else ()
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}.get(name)


def _shares_storage(node: fx.Node, root: nn.Module) -> bool:
    if _is_in_place(node, root) or (node.target is getattr and node.args[1] in ("T", "mT", "data")):
        return True
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), SAME_STORAGE)
    return (node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")) in VIEWS


def _place(node: fx.Node) -> str:
    """Where in the model a node is: the module's dotted path, and the node's name."""
    path, kind = list(node.meta.get("nn_module_stack", {"": ("", None)}).values())[-1]
    inside = f"module '{path}' of type {kind.__name__}" if kind else "the model's own forward"
    return f"node '{node.name}' of {inside}"


def fold(
    traced: Traced,
    affine: Callable[..., Affine],
    norm: Callable[[_BatchNorm], Any],
    passing: Collection[nn.Module] = (),
) -> tuple[dict[fx.Node, Any], dict[fx.Node, fx.Node]]:
    """What does each layer's work, with every BatchNorm that follows an affine layer folded into it.

    Args:
        traced: the network.
        affine: prepares an affine layer, given the layer and, where one is folded in, what ``norm`` made of it.
        norm: prepares a BatchNorm.
        passing: the BatchNorms whose statistics serve one step only. Such a one stays apart between a fully connected
            layer and a ReLU: its weights are more than a batch's outputs, and scaling them costs more.

    Returns:
        What does the work at each node, and, for each folded BatchNorm's node, the affine node that now does its work.
    """
    modules = dict(traced.model.named_modules(remove_duplicate=False))
    layers: dict[fx.Node, Any] = {}
    folded: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        layer = modules[node.target]
        known = rule.dispatch(type(layer))  # a subclass may have a rule of its own
        if known is rule.dispatch(nn.Linear):
            layers[node] = affine(layer)
        elif isinstance(layer, _BatchNorm) and known is rule.dispatch(nn.BatchNorm1d):
            before = node.all_input_nodes[0]
            apart = (
                layer in passing and isinstance(modules.get(before.target), nn.Linear) and _feeds_relu(node, modules)
            )
            if isinstance(layers.get(before), Affine) and len(before.users) == 1 and not apart:
                layers[before] = affine(modules[str(before.target)], norm(layer))
                folded[node] = before
            else:
                layers[node] = norm(layer)
        else:
            layers[node] = layer
    return layers, folded


def _feeds_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return all(user.op == "call_module" and isinstance(modules[str(user.target)], nn.ReLU) for user in node.users)
