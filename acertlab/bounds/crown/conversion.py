"""A prepared network as a plain module for auto_LiRPA: BatchNorm folded, constants computed, no hook, no idle layer."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import skip_init

from acertlab.bounds.graph.structure import WHOLE_MODULE
from acertlab.bounds.ibp import IntervalNetwork
from acertlab.bounds.rules.affine import Affine, Scale, Standardisation
from acertlab.bounds.rules.operators import arguments_of, aten, packet, place


class PlainModule(nn.Module):
    """The operators of a prepared network, in order, on tensors that are this module's own buffers and parameters."""

    def __init__(self, network: IntervalNetwork) -> None:
        super().__init__()
        self.network = [network]  # in a list: no submodule
        self.names: dict[fx.Node, str] = {}
        used = {source for node in network.plan.nodes for source in network.plan.sources(node)}
        for node, value in network.constants.items():
            if isinstance(value, Tensor) and node in used:
                self.names[node] = f"constant_{len(self.names)}"
                if {aten.add, aten.sub}.intersection(map(packet, node.users)):  # 0.3 takes a buffer for rows of samples
                    self.register_parameter(self.names[node], nn.Parameter(value.detach(), requires_grad=False))
                else:
                    self.register_buffer(self.names[node], value.detach())
        self.layers = nn.ModuleDict()
        self.inputs: dict[fx.Node, fx.Node] = {}  # of the layers
        for node in network.plan.nodes:
            if node in network.works:
                self.layers[node.name] = _as_layer(network, node, network.works[node])
                self.inputs[node] = network.plan.sources(node)[0]

    def forward(self, x: Tensor) -> Tensor:
        network = self.network[0]
        values = {**network.constants, network.graph.input: x}
        values |= {node: getattr(self, name) for node, name in self.names.items()}
        for node in network.plan.nodes:
            if node in self.inputs:
                values[node] = self.layers[node.name](values[self.inputs[node]])
            elif packet(node) is WHOLE_MODULE:
                raise TypeError(f"{place(node)} is known by its interval rule only")
            elif packet(node) is aten.reshape and node in network.shapes:  # with its batch left open
                values[node] = values[arguments_of(node)[0]].reshape(-1, *network.shapes[node])
            else:
                args, kwargs = map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = network.graph.call(network.model, node, args, kwargs)
        return values[network.graph.output]


def _as_layer(network: IntervalNetwork, node: fx.Node, work: Affine | Scale) -> nn.Module:
    if isinstance(work, Standardisation):
        return Normalization(work.mean.detach(), work.std.detach())
    if isinstance(work, Scale):
        return _Scale(work)
    weight = nn.Parameter(work.weight.detach(), requires_grad=False)
    bias = None if work.bias is None else nn.Parameter(work.bias.detach(), requires_grad=False)
    if work.operation is F.linear:
        layer = skip_init(nn.Linear, *weight.shape[::-1], device=weight.device, dtype=weight.dtype)  # draws no numbers
        layer.weight = weight
        # without a bias, 0.3 finds a matrix product of two unknowns
        layer.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False) if bias is None else bias
        return layer
    affine = network.plan.folded.get(node, node)
    return _Convolution(affine.target, affine.args[3:], weight, bias)


class _Convolution(nn.Module):
    def __init__(self, target: Any, sizes: tuple[Any, ...], weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.target, self.sizes, self.weight, self.bias = target, sizes, weight, bias

    def forward(self, x: Tensor) -> Tensor:
        return self.target(x, self.weight, self.bias, *self.sizes)


class _Scale(nn.Module):
    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.register_buffer("scale", scale.scale.detach())
        self.register_buffer("shift", scale.shift.detach())

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.scale.view(shape) + self.shift.view(shape)


class Normalization(_BatchNorm):
    """(x - mean) / std as a BatchNorm of any dimension: of a division, auto_LiRPA 0.3 cannot bound what follows."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__(len(mean), eps=0.0, dtype=mean.dtype, device=mean.device)
        self.running_mean, self.running_var = mean.clone(), std.square()
        self.eval()

    def _check_input_dim(self, input: Tensor) -> None:
        pass
