"""IBP initialisation of weights."""

import math

import torch
from torch import fx, nn

from acertlab.bounds.rules.affine import Normalize
from acertlab.bounds.rules.dispatch import has_rule


class LayerTracer(fx.Tracer):
    """A sketch of the network by its layers: enough for weights to begin with; nothing is bounded by it."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize) or has_rule(m) or super().is_leaf_module(m, module_qualified_name)


AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d)


def ibp_init_(model: nn.Module) -> nn.Module:
    """IBP initialisation of a model, in place: every weight but the last ~ N(0, sqrt(2 pi) / fan_in).

    Keeps the mean width of the bounds constant from layer to layer. Biases and BatchNorm stay as they are; a weight fed
    by a residual addition, whose interval is the sum of two, is halved. Returns the model.

    Source: Shi et al. 2021, "Fast Certified Robust Training with Short Warmup", Sec. 3.1.

    Example:
        >>> wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(400, 400), torch.nn.Linear(400, 2))
        >>> round(al.ibp_init_(wide)[1].weight.std().item(), 3)  # sqrt(2 pi) / 400
        0.006
    """
    root: nn.Module = nn.Sequential(model)
    try:
        graph = LayerTracer().trace(root)
    except Exception as error:  # torch.fx raises many kinds
        what = f"torch.fx cannot trace {type(model).__name__}, and so not tell which weights follow an addition"
        raise TypeError(f"model: {what}: {error}. Take a method without IBP initialisation") from error
    modules: dict[str, nn.Module] = dict(root.named_modules(remove_duplicate=False))
    called = [(node, modules[str(node.target)]) for node in graph.nodes if node.op == "call_module"]
    layers = [(node, layer) for node, layer in called if isinstance(layer, AFFINE)]
    with torch.no_grad():
        for _, layer in layers[:-1]:
            layer.weight.normal_(0, math.sqrt(2 * math.pi) / layer.weight[0].numel())
        for node, layer in layers:
            if _is_fed_by_addition(node, modules):
                layer.weight.mul_(0.5)
    return model


def _is_fed_by_addition(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether the input is a sum of two activations, looking back through activations, pooling and changes of shape."""
    while len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if node.op == "call_module" and isinstance(modules[str(node.target)], AFFINE):
            return False
    return len(node.all_input_nodes) == 2 and "add" in str(getattr(node.target, "__name__", node.target))
