"""Which of auto_LiRPA's bounds hold: those that tests/bounds/test_relaxations.py compared with the exact maximum.

Its relaxations are wrong for some operators and parameters, and nothing that a pass computes shows it. So every node of
a converted network is looked up here, by the version that is installed; what is not in the list is refused.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

NEWEST = "0.7.1"
HOW_TO_GET_IT = f"auto_LiRPA {NEWEST} from its repository (environment.yml has the address)"

Condition = Callable[[Any], str]  # of a node: what of it was not tested; empty where all was


_CONSTANTS = ("BoundBuffers", "BoundParams", "BoundConstant")  # in some versions they "depend" on the input


class UnprovedError(TypeError):
    """A bound that was not tested against the exact maximum, or was found below it."""


def _varies(node: Any) -> bool:
    return node.from_input and type(node).__name__ not in _CONSTANTS


# ---- conditions on a node


def always(node: Any) -> str:
    return ""


def _slope(node: Any) -> str:
    slope = float(node.attr["alpha"])
    return "" if 0 <= slope <= 1 else f"with negative_slope={slope:g} (only 0 to 1 is)"


def _whole_windows(node: Any) -> str:
    """Pooling by windows side by side that leave as many rows of the image out as columns."""
    height, width = (size % kernel for size, kernel in zip(node.input_shape[-2:], node.kernel_size, strict=True))
    what = f"with kernel_size={list(node.kernel_size)}, stride={list(node.stride)}, padding={list(node.padding)}"
    if list(node.kernel_size) != list(node.stride) or any(node.padding):
        return f"{what} (only stride=kernel_size without padding is)"
    return "" if height == width else f"{what} on an image of {tuple(node.input_shape[-2:])} (it must fit)"


def _any_windows(node: Any) -> str:
    return "" if list(node.kernel_size) != list(node.stride) or any(node.padding) else _whole_windows(node)


def _no_larger_constant(node: Any) -> str:
    if all(map(_varies, node.inputs)):
        return ""
    (varying,) = filter(_varies, node.inputs)
    return "" if varying.output_shape[1:] == node.output_shape[1:] else "with a constant of larger shape"


def _constant_divisor(node: Any) -> str:
    return "by what depends on the input" if _varies(node.inputs[1]) else _no_larger_constant(node)


def _constant_weight(node: Any) -> str:
    return "of two values that depend on the input" if any(map(_varies, node.inputs[1:])) else ""


def _each_once(node: Any) -> str:
    indices = node.indices.flatten()
    return "that takes an element twice" if len(torch.unique(indices)) < len(indices) else ""


def _axes_in_order(node: Any) -> str:
    axes = [axis % len(node.input_shape) for axis in node.axis]
    return "" if axes == sorted(axes) else f"over dimensions {axes} (only in rising order)"


# ---- the list


_BOTH: dict[str, Condition] = {
    **dict.fromkeys(("BoundInput", "BoundRelu", "BoundTanh", "BoundSigmoid", "BoundExp", "BoundAbs"), always),
    "BoundLeakyRelu": _slope,
    **dict.fromkeys(("BoundAdd", "BoundSub", "BoundNeg"), always),
    "BoundMul": _no_larger_constant,
    **dict.fromkeys(("BoundLinear", "BoundMatMul", "BoundConv", "BoundConvTranspose"), _constant_weight),
    "BoundBatchNormalization": always,
    **dict.fromkeys(("BoundAveragePool", "BoundMaxPool"), _whole_windows),
    "BoundGlobalAveragePool": always,
    **dict.fromkeys(("BoundReduceMean", "BoundReduceSum"), _axes_in_order),
    **dict.fromkeys(("BoundReshape", "BoundFlatten", "BoundTranspose", "BoundSqueeze", "BoundUnsqueeze"), always),
    **dict.fromkeys(("BoundConcat", "BoundSlice", "BoundSplit"), always),
}
TESTED: dict[str, dict[str, Condition]] = {
    "0.3": {**_BOTH, "BoundDiv": _constant_divisor, "BoundGather": _each_once},
    NEWEST: {
        **_BOTH,
        **dict.fromkeys(("BoundSqrt", "BoundSqr", "BoundSin", "BoundCos", "BoundGather"), always),
        "BoundAveragePool": _any_windows,
    },
}


def check_nodes(nodes: Iterable[Any], version: str) -> None:
    """Refuses, by an UnprovedError that says what to do, a converted network unless all its nodes' bounds were tested.

    ``nodes`` and ``version`` are auto_LiRPA's.
    """
    if version not in TESTED:
        raise UnprovedError(
            f"bound: auto_LiRPA {version} was not tested against the exact maximum, only {' and '.join(TESTED)} were; "
            "install one of these, or use bound='ibp'"
        )
    for node in nodes:
        if _varies(node) and (untested := _untested(node, version)) is not None:
            kind = type(node).__name__.removeprefix("Bound")
            newer = version != NEWEST and _untested(node, NEWEST) is None
            raise UnprovedError(
                f"model: the bound of {' '.join(filter(None, (kind, untested)))} by auto_LiRPA {version} is not among "
                "those that hold when compared with the exact maximum (acertlab.bounds.crown.relaxations lists them); "
                f"use bound='ibp'{f', or {HOW_TO_GET_IT}, whose bound of it holds' if newer else ''}"
            )


def _untested(node: Any, version: str) -> str | None:
    """What of a node was not tested; None if all was."""
    condition = TESTED[version].get(type(node).__name__)
    return "" if condition is None else condition(node) or None


# ---- the compact form of a convolution's coefficients


_FIT = ("BoundInput", "BoundRelu", "BoundLinear", "BoundBatchNormalization")


def fit_for_patches(nodes: list[Any], version: str) -> bool:
    """Whether these nodes, in order, allow the compact form of a convolution's coefficients, "patches".

    Bounds do not hold, or fail, where other activations, pooling, groups, constants, sums (0.7.1) or changes of shape
    come before a convolution, and where a convolution is dilated or unequal in height and width.
    """
    kinds = [type(node).__name__ for node in nodes]
    last = max((i for i, kind in enumerate(kinds) if kind == "BoundConv"), default=-1)
    for i, (node, kind) in enumerate(zip(nodes, kinds, strict=True)):
        if not _varies(node):
            continue
        if kind in ("BoundAdd", "BoundSub"):
            fit = version == "0.3" and all(map(_varies, node.inputs))
        elif kind == "BoundConv":
            fit = node.groups == 1 and len(node.output_shape) == 4 and list(node.dilation) == [1, 1]
            sides = (node.input_shape, node.output_shape, node.inputs[1].output_shape, node.stride, node.padding)
            fit = fit and all(side[-2] == side[-1] for side in sides)
        else:
            fit = kind in _FIT or i > last
        if not fit:
            return False
    return True
