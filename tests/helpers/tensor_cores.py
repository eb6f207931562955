"""A GPU's TF32 on a CPU: products of float32 round their factors wherever torch's settings let a GPU do so."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)
FACTORS = {  # of products: the arguments that are multiplied; what is only added is not rounded
    aten.convolution.default: (0, 1),
    aten.convolution_backward.default: (0, 1, 2),  # the gradient with the weight, and with the input
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}
TF32, BF16 = 10, 7  # bits of mantissa that are stored; both have float32's eight of exponent
FLOAT32 = 23


def rounded(x: Tensor, bits: int, cut: bool = False) -> Tensor:
    """float32 rounded to so many bits of mantissa, to the nearest, ties to even; or what is beyond them ``cut`` off.

    Infinity and NaN stay what they are; what is too large becomes infinite.
    """
    lost = FLOAT32 - bits
    whole, mask = x.contiguous().view(torch.int32), -(1 << lost)
    if cut:
        few = whole & mask
    else:  # in place: a sixth of the time, which was half of an emulated training's
        few = (whole >> lost).bitwise_and_(1).add_((1 << (lost - 1)) - 1).add_(whole).bitwise_and_(mask)
    return torch.maximum(few.view(torch.float32), x.clamp(max=-torch.inf))  # which is NaN where x is


def takes_tf32(func: Any) -> bool:
    """Whether torch's settings let a GPU compute this operation, where it is a product of float32, in TF32."""
    if func in CONVOLUTIONS:
        return torch.backends.cudnn.allow_tf32
    return torch.get_float32_matmul_precision() != "highest"


class TensorCores(TorchDispatchMode):
    """Inside, products of float32 are those of tensor cores, where `torch.backends` allow TF32; sums are in float32.

    What is in bfloat16 already is left alone: a CPU multiplies it as a GPU does.

    Args:
        bits: of the mantissa that factors keep.
        cut: whether the rest is cut off, as the hardware does to factors that were not rounded before.
    """

    def __init__(self, bits: int = TF32, cut: bool = False) -> None:
        super().__init__()
        self.bits, self.cut, self.products = bits, cut, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func in FACTORS and takes_tf32(func) and args[FACTORS[func][0]].dtype == torch.float32:
            self.products += 1
            at = FACTORS[func]
            few = tuple(rounded(a, self.bits, self.cut) if i in at else a for i, a in enumerate(args))
            out = func(*few, **(kwargs or {}))
            if func is aten.convolution_backward.default and args[-1][2]:  # the bias's gradient is a plain sum
                out = (*out[:2], args[0].sum((0, *range(2, args[0].dim()))))
            return out
        return func(*args, **(kwargs or {}))
