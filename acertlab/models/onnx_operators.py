"""What ONNX's operators compute, in PyTorch: one table from an operator's name to a function of a node and tensors.

Sizes of one sample are known from a run of the file, so nothing here asks a tensor for its shape, and the batch stays
open: it is the leading dimension.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FLOATS = (1, 10, 11, 16)  # TensorProto's float, float16, double, bfloat16
CONV: list[Any] = [F.conv1d, F.conv2d, F.conv3d]
CONV_TRANSPOSE: list[Any] = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d]
MAX_POOL: list[Any] = [F.max_pool1d, F.max_pool2d, F.max_pool3d]
AVERAGE_POOL: list[Any] = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d]


@dataclass(eq=False)
class Node:
    """One operator of a file: its attributes, and what a run on one sample told of its inputs and its first output."""

    name: str
    operator: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]
    opset: int
    constants: list[np.ndarray | None]  # by position; None where an input is missing or depends on the network's
    sizes: list[tuple[int, ...]]  # of the inputs, for one sample
    shape: tuple[int, ...]  # of the first output, for one sample

    def __str__(self) -> str:
        return f"operator {self.operator} (node '{self.name}')"

    def of_batch(self) -> tuple[int, ...]:
        """The output's shape, with the batch open where it is the leading dimension."""
        return (-1, *self.shape[1:]) if self.shape[:1] == (1,) else self.shape

    def per_sample(self) -> "Node":
        """The same operator on samples one behind the other in a new first dimension: each axis is one later."""
        rank, changed = len(self.sizes[0]), dict(self.attributes)
        if self.operator in ("Slice", "Pad") or self.operator.startswith("Reduce"):
            given = self.setting("axes", 3 if self.operator in ("Slice", "Pad") else 1)
            if self.operator == "Slice":
                given = given or list(range(len(self.setting("starts", 1))))
            elif self.operator == "Pad" or not self.attributes.get("noop_with_empty_axes"):
                given = given or list(range(rank))
            changed["axes"] = [axis % rank + 1 for axis in given or ()]
        if self.operator == "Transpose":
            changed["perm"] = [0, *(axis + 1 for axis in self.setting("perm", default=list(range(rank))[::-1]))]
        if self.operator == "Tile":
            changed["repeats"] = [1, *self.setting("repeats", 1)]
        old_softmax = self.operator in ("Softmax", "LogSoftmax") and self.opset < 13
        if old_softmax or self.operator in ("Concat", "Gather", "Split"):
            changed.setdefault("axis", int(old_softmax))
        if changed.get("axis", -1) >= 0:
            changed["axis"] += 1
        known = zip(self.sizes, self.constants, strict=True)
        sizes = [(1, *size) if value is None else size for size, value in known]
        return replace(self, attributes=changed, sizes=sizes, shape=(1, *self.shape))

    def setting(self, name: str, position: int | None = None, default: Any = None) -> Any:
        """A number or list of numbers: an attribute or, in later opsets, an input, which has to be constant."""
        if name in self.attributes:
            return self.attributes[name]
        if position is None or position >= len(self.inputs) or not self.inputs[position]:
            return default
        value = self.constants[position]
        if value is None:
            raise ValueError(f"{self}: its {name} depends on the network's input; accepted is a constant")
        return value.tolist()


def _reduce(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(node: Node, x: Tensor) -> Tensor:
        axes, rank = node.setting("axes", 1), len(node.sizes[0])
        axes = axes or ([] if node.attributes.get("noop_with_empty_axes") else range(rank))
        axes = [axis % rank for axis in axes]
        return function(x, axes, keepdim=bool(node.setting("keepdims", default=1))) if axes else x

    return apply


def _softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def apply(node: Node, x: Tensor) -> Tensor:
        if node.opset >= 13:
            return function(x, dim=node.setting("axis", default=-1))
        axis = node.setting("axis", default=1) % len(node.shape)  # all from this axis on, as one
        return function(x.flatten(axis), dim=-1).reshape(node.of_batch())

    return apply


def _reshape(node: Node, x: Tensor) -> Tensor:
    return x.reshape(node.of_batch())


def _expand(node: Node, x: Tensor) -> Tensor:
    sizes = node.sizes[0]
    if len(sizes) < len(node.shape):  # new dimensions come behind the batch
        x = x.reshape(-1, *[1] * (len(node.shape) - len(sizes)), *sizes[1:])
    return x.expand(node.of_batch())


def _slice(node: Node, x: Tensor) -> Tensor:
    starts, ends = node.setting("starts", 1), node.setting("ends", 2)
    axes = node.setting("axes", 3) or range(len(starts))
    steps = node.setting("steps", 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = node.sizes[0][axis]
        taken = range(size)[slice(start, end, step)]
        if taken == range(size):
            continue  # the whole batch, among others
        if step < 0:
            x, taken = x.flip(axis), range(size - 1 - taken.start, size - 1 - taken.stop, -step)
        x = x[(slice(None),) * (axis % len(node.shape)) + (slice(taken.start, taken.stop, taken.step),)]
    return x


def _split(node: Node, x: Tensor) -> tuple[Tensor, ...]:
    axis = node.setting("axis", default=0)
    size, parts = node.sizes[0][axis], len(node.outputs)
    return x.split(node.setting("split", 1) or -(-size // node.setting("num_outputs", default=parts)), axis)


def _gather(node: Node, x: Tensor, index: Tensor) -> Tensor:
    axis = node.setting("axis", default=0)
    index = torch.where(index < 0, index + node.sizes[0][axis], index)
    if index.dim() == 0:
        return x.index_select(axis, index.reshape(1)).squeeze(axis)
    return x.index_select(axis, index.flatten()).reshape(node.of_batch())


def _concat(node: Node, *parts: Tensor) -> Tensor:
    batch = next(part.shape[0] for part, value in zip(parts, node.constants, strict=True) if value is None)
    rank, same = len(node.shape), []
    for part, value in zip(parts, node.constants, strict=True):
        if value is not None and (value.ndim < rank or value.shape[0] == 1):  # the same for each sample
            part = part.expand(batch, *part.shape[part.dim() - rank + 1 :])
        same.append(part)
    return torch.cat(same, node.attributes["axis"])


def _pad(node: Node, x: Tensor) -> Tensor:
    pads, value = node.setting("pads", 1), node.setting("value", 2, 0.0)
    axes = [axis % len(node.shape) for axis in node.setting("axes", 3) or range(len(node.shape))]
    sides = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    first = min((axis for axis in axes if any(sides[axis])), default=len(node.shape))
    flat = [n for axis in reversed(range(first, len(node.shape))) for n in sides.get(axis, (0, 0))]
    kind = node.setting("mode", default="constant")
    if kind == "constant":
        return F.pad(x, flat, value=value if isinstance(value, float) else float(np.reshape(value, ())))
    if kind not in ("reflect", "edge"):
        raise ValueError(f"{node}: mode '{kind}'; accepted are constant, reflect and edge")
    return F.pad(x, flat, mode="replicate" if kind == "edge" else kind)


def _windows(node: Node, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and padding before and after, of each dimension of the image."""
    count, sizes = len(kernel), node.sizes[0][2:]
    strides, dilations = (list(node.setting(name, default=[1] * count)) for name in ("strides", "dilations"))
    pads, kind = node.setting("pads", default=[0] * 2 * count), node.setting("auto_pad", default="NOTSET")
    if not kind.startswith("SAME"):
        return strides, dilations, list(pads[:count]), list(pads[count:])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    total = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, strides, reach, strict=True)]
    less, more = [n // 2 for n in total], [n - n // 2 for n in total]
    return (strides, dilations, less, more) if kind == "SAME_UPPER" else (strides, dilations, more, less)


def _padded(x: Tensor, before: list[int], after: list[int], value: float = 0.0) -> Tensor:
    flat = [n for pair in reversed(list(zip(before, after, strict=True))) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    strides, dilations, before, after = _windows(node, node.sizes[1][2:])
    if before != after:
        x, before = _padded(x, before, after), [0] * len(before)
    groups = node.setting("group", default=1)
    return CONV[len(strides) - 1](x, weight, bias, strides, before, dilations, groups)


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    kernel = node.sizes[1][2:]
    strides, dilations, before, after = _windows(node, kernel)
    if "output_shape" in node.attributes or node.setting("auto_pad", default="NOTSET").startswith("SAME"):
        raise ValueError(f"{node}: output_shape or auto_pad; accepted are pads and output_padding")
    more, groups = node.setting("output_padding", default=[0] * len(kernel)), node.setting("group", default=1)
    crop = before != after
    padding = [0] * len(kernel) if crop else before
    x = CONV_TRANSPOSE[len(kernel) - 1](x, weight, bias, strides, padding, more, groups, dilations)
    return _padded(x, [-n for n in before], [-n for n in after]) if crop else x


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.attributes["kernel_shape"]
    strides, dilations, before, after = _windows(node, kernel)
    if before != after or any(2 * n > k for n, k in zip(before, kernel, strict=True)):
        x, before = _padded(x, before, after, -math.inf), [0] * len(before)
    ceil = bool(node.setting("ceil_mode", default=0))
    return MAX_POOL[len(kernel) - 1](x, kernel, strides, before, dilations, ceil)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.attributes["kernel_shape"]
    strides, dilations, before, after = _windows(node, kernel)
    ceil, counted = bool(node.setting("ceil_mode", default=0)), bool(node.setting("count_include_pad", default=0))
    if any(n > 1 for n in dilations):
        raise ValueError(f"{node}: dilations {dilations}; accepted are 1s")
    pool = AVERAGE_POOL[len(kernel) - 1]
    if before == after and all(2 * n <= k for n, k in zip(before, kernel, strict=True)):
        return pool(x, kernel, strides, before, ceil, counted)
    sums = pool(_padded(x, before, after), kernel, strides, 0, ceil)
    if counted:
        return sums
    return sums / pool(_padded(x.new_ones(1, 1, *node.sizes[0][2:]), before, after), kernel, strides, 0, ceil)


def _over_pixels(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda node, x: function(x, list(range(2, len(node.shape))), keepdim=True)


def _resize(node: Node, x: Tensor) -> Tensor:
    kind, place = (
        node.setting(name, default=usual)
        for name, usual in (("mode", "nearest"), ("coordinate_transformation_mode", "half_pixel"))
    )
    image = len(node.shape) - 2
    if kind == "nearest":
        whole = all(out % size == 0 for out, size in zip(node.shape, node.sizes[0], strict=True))
        return F.interpolate(x, node.shape[2:], mode="nearest" if whole or place == "asymmetric" else "nearest-exact")
    if kind != "linear" or image > 2:
        raise ValueError(f"{node}: mode '{kind}' in {image} dimensions; accepted are nearest, and linear in 1 and 2")
    modes = {1: "linear", 2: "bilinear"}
    return F.interpolate(x, node.shape[2:], mode=modes[image], align_corners=place == "align_corners")


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a, b = (m.mT if node.attributes.get(name) else m for m, name in ((a, "transA"), (b, "transB")))
    product = node.setting("alpha", default=1.0) * (a @ b)
    return product if c is None else product + node.setting("beta", default=1.0) * c


def _batch_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    if node.attributes.get("training_mode"):
        raise ValueError(f"{node}: training_mode; accepted is inference")
    return F.batch_norm(x, mean, var, weight, bias, eps=node.setting("epsilon", default=1e-5))


def _layer_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    shape = node.sizes[0][node.setting("axis", default=-1) :]
    return F.layer_norm(x, shape, weight, bias, node.setting("epsilon", default=1e-5))


def _instance_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=weight, bias=bias, eps=node.setting("epsilon", default=1e-5))


def _group_norm(node: Node, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    groups, channels = node.attributes["num_groups"], node.sizes[0][1]
    if node.opset < 21:  # one number a group
        weight, bias = (t.repeat_interleave(channels // groups) for t in (weight, bias))
    return F.group_norm(x, groups, weight, bias, node.setting("epsilon", default=1e-5))


def _p_relu(node: Node, x: Tensor, slope: Tensor) -> Tensor:
    if slope.numel() != max(node.sizes[1][:1] or (1,)):
        raise ValueError(f"{node}: slopes of shape {node.sizes[1]}; accepted is one, or one a channel")
    return F.prelu(x, slope.flatten())


def _pow(node: Node, x: Tensor) -> Tensor:
    exponent = np.unique(node.setting("exponent", 1))
    if exponent.size != 1:
        raise ValueError(f"{node}: several exponents; accepted is one constant")
    return x.pow(int(exponent[0]) if float(exponent[0]).is_integer() else float(exponent[0]))


def _clip(node: Node, x: Tensor) -> Tensor:
    low, high = (node.setting(*given) for given in (("min", 1), ("max", 2)))
    return x if low is None and high is None else x.clamp(low, high)


def _cast(node: Node, x: Tensor) -> Tensor:
    if node.attributes["to"] not in FLOATS:
        raise ValueError(f"{node}: a cast to other than floating-point numbers; no rule bounds it")
    return x


def _dropout(node: Node, x: Tensor) -> Tensor:
    if node.setting("training_mode", 2):
        raise ValueError(f"{node}: training_mode; accepted is inference")
    return x


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda node, *tensors: function(*tensors)


def _with(function: Callable[..., Tensor], **parameters: Any) -> Callable[..., Tensor]:
    """A function of x and attributes of these names and defaults, in the function's order."""
    return lambda node, x: function(x, *(node.setting(name, default=usual) for name, usual in parameters.items()))


def _of_several(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda node, *tensors: functools.reduce(function, tensors)


ONE_TENSOR: dict[str, Callable[..., Any]] = {  # further inputs are settings
    **dict.fromkeys(("Reshape", "Squeeze", "Unsqueeze", "Flatten"), _reshape),
    **{"Expand": _expand, "Slice": _slice, "Split": _split, "Pad": _pad, "Pow": _pow, "Clip": _clip},
    **{"MaxPool": _max_pool, "AveragePool": _average_pool, "Resize": _resize, "Upsample": _resize},
    **{"Cast": _cast, "Dropout": _dropout, "Tile": lambda node, x: x.repeat(node.setting("repeats", 1))},
    **{"ReduceSum": _reduce(torch.sum), "ReduceMean": _reduce(torch.mean)},
    **{"ReduceMax": _reduce(torch.amax), "ReduceMin": _reduce(torch.amin)},
    "ReduceL1": _reduce(lambda x, axes, keepdim: x.abs().sum(axes, keepdim)),
    "ReduceL2": _reduce(lambda x, axes, keepdim: torch.linalg.vector_norm(x, 2, axes, keepdim)),
    "ReduceSumSquare": _reduce(lambda x, axes, keepdim: x.square().sum(axes, keepdim)),
    **{"Softmax": _softmax(torch.softmax), "LogSoftmax": _softmax(torch.log_softmax)},
    **{"GlobalAveragePool": _over_pixels(torch.mean), "GlobalMaxPool": _over_pixels(torch.amax)},
    "Transpose": lambda node, x: x.permute(node.setting("perm", default=list(range(len(node.shape)))[::-1])),
    **{"LeakyRelu": _with(F.leaky_relu, alpha=0.01), "Elu": _with(F.elu, alpha=1.0), "Celu": _with(F.celu, alpha=1.0)},
    "Selu": _with(lambda x, alpha, gamma: gamma * F.elu(x, alpha), alpha=1.6732632, gamma=1.0507010),
    "HardSigmoid": _with(lambda x, alpha, beta: (alpha * x + beta).clamp(0.0, 1.0), alpha=0.2, beta=0.5),
    "ThresholdedRelu": _with(lambda x, alpha: F.threshold(x, alpha, 0.0), alpha=1.0),
    "Gelu": lambda node, x: F.gelu(x, approximate=node.setting("approximate", default="none")),
}
PLAIN: dict[str, Callable[..., Tensor]] = {  # of tensors alone
    **{"Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "HardSwish": F.hardswish, "Mish": F.mish},
    **{"Softplus": F.softplus, "Softsign": F.softsign, "Erf": torch.erf, "Exp": torch.exp, "Log": torch.log},
    **{"Sqrt": torch.sqrt, "Sin": torch.sin, "Cos": torch.cos, "Atan": torch.atan, "Sinh": torch.sinh},
    **{"Cosh": torch.cosh, "Asinh": torch.asinh, "Abs": torch.abs, "Sign": torch.sign, "Neg": torch.neg},
    **{"Reciprocal": torch.reciprocal, "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round},
    **{"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "MatMul": torch.matmul},
    **{"Linear": F.linear, "Where": torch.where},
}
TENSORS: dict[str, Callable[..., Any]] = {
    **{name: _plain(function) for name, function in PLAIN.items()},
    **{"Identity": lambda node, x: x, "Gemm": _gemm, "Concat": _concat, "Gather": _gather, "PRelu": _p_relu},
    **{"Max": _of_several(torch.maximum), "Min": _of_several(torch.minimum), "Sum": _of_several(torch.add)},
    "Mean": lambda node, *tensors: functools.reduce(torch.add, tensors) / len(tensors),
    "Einsum": lambda node, *tensors: torch.einsum(node.attributes["equation"], *tensors),
    **{"Conv": _conv, "ConvTranspose": _conv_transpose, "BatchNormalization": _batch_norm},
    **{"LayerNormalization": _layer_norm, "InstanceNormalization": _instance_norm, "GroupNormalization": _group_norm},
}
OPERATORS = {**ONE_TENSOR, **TENSORS}
