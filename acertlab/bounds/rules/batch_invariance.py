"""Batch invariance: products whose rows do not depend on how many rows there are."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEWEST = 16  # rows from which on a matrix product on a CPU sums in the same order whatever their number (measured)
ALIGNED = 4  # numbers; where rows are a multiple of it long, the order does not depend on where a row begins (measured)


def batch_invariant(operation: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """operation(x, weight, bias), of which no row depends on how many others there are, or on its place among them.

    Few rows go to another kernel of a matrix product, with another order of summation, and so do images of one pixel in
    a convolution; on some processors (AVX2) so do all rows where there is a single output, where one factor is a
    transposed view, and where rows begin at another fraction of 16 bytes.
    """
    if x.device.type != "cpu" or not (weight.dim() == 2 or x.shape[2:].numel() == 1):
        return operation(x, weight, bias)
    linear, rows = operation is F.linear, len(x)
    if linear and len(weight) == 1:
        return batch_invariant(operation, x, weight.expand(2, -1), None if bias is None else bias.expand(2))[..., :1]
    missing, rest = max(0, FEWEST - rows), -x.shape[-1] % ALIGNED if linear else 0
    if rest:
        weight = F.pad(weight, (0, rest))
    if missing or rest:
        x = F.pad(x, (0, rest, *[0, 0] * (x.dim() - 2), 0, missing))
    if linear:
        x, weight = x.contiguous(), weight.contiguous()
    return operation(x, weight, bias)[:rows]


def batch_invariant_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, see `batch_invariant`: where one of them is a matrix, it is the weight of the other's rows."""
    if b.dim() == 2 <= a.dim():
        return batch_invariant(F.linear, a, b.mT, None)
    if a.dim() == 2 < b.dim():
        return batch_invariant(F.linear, b.mT, a, None).mT
    return a @ b


TILE = 32  # in batches of a multiple of it no row depends on how many there are, whatever the network and the device


class BatchInvariantProducts(TorchFunctionMode):
    """Inside, matrix products of a model's own forward compute each row alike, see `batch_invariant`."""

    PRODUCTS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if not kwargs:
            if func is F.linear and len(args) == 3 and args[0].dim() > 1:
                return batch_invariant(F.linear, *args)
            if func in self.PRODUCTS:
                return batch_invariant_matmul(*args)
        return func(*args, **(kwargs or {}))


def pad(rows: Tensor, tile: int) -> Tensor:
    """Repeats the last row until the batch is a multiple of ``tile``; numbers and empty batches stay as they are.

    Kernels choose another order of summation for a few rows than for many. Padded, and with matrix products that are
    `batch_invariant`, a sample's margin does not depend on the others in its batch: measured on CPU, to the last
    bit.
    """
    if rows.dim() == 0 or len(rows) % tile == 0:
        return rows
    return torch.cat([rows, rows[-1:].expand(-len(rows) % tile, *rows.shape[1:])])
