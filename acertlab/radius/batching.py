"""Any number of samples in bounded memory."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from acertlab.bounds.checks import out_of_memory
from acertlab.bounds.ibp import Network
from acertlab.bounds.margin import margin_at
from acertlab.radius.search import SearchSettings

Part = TypeVar("Part")


class Chunks(NamedTuple):
    """How a call works through its samples."""

    size: int | None = None  # samples at once; None: as many as fit into the memory
    memory: int = 2**29  # bytes of activations, roughly
    progress: bool = False  # show a progress bar


ALL_THAT_FIT = Chunks()


def in_chunks(work: Callable[[slice], Part], n: int, size: int, *, desc: str, progress: bool) -> list[Part]:
    """``work`` on the slices of n samples, ``size`` each, on an empty one if n is 0; one that does not fit is halved.

    Raises:
        MemoryError, RuntimeError: memory ran out for a single sample; or whatever else ``work`` raises.
    """
    parts, start = [], 0
    with tqdm(total=n, desc=desc, unit="sample", disable=not progress) as bar:
        while start < n or not parts:
            try:
                parts.append(work(slice(start, start + size)))
            except (MemoryError, RuntimeError) as error:
                if size == 1 or not out_of_memory(error):
                    raise
                size = (min(size, n) + 1) // 2  # the next try is outside, where the failed work's tensors are free
            else:
                bar.update(min(size, n - start))
                start += size
    return parts


def largest_growth(work: Callable[[int], object], rows: int) -> int:
    """Bytes by which the largest tensor of ``work(rows)`` grows a row; what two batches share is no activation."""
    passes = []
    for batch in (rows, 2 * rows):
        with _TensorSizes() as seen:
            work(batch)
        passes.append(seen.sizes)
    return max((two - one for one, two in zip(*passes, strict=False)), default=0) // rows


class _TensorSizes(TorchDispatchMode):
    """Notes the size in bytes of every tensor that an operation inside returns."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes += [out.numel() * out.element_size()] if isinstance(out, Tensor) else []
        return out


def chunk_size(
    model: nn.Module, network: Network, x: Tensor, y: Tensor, eps_max: float, settings: SearchSettings, memory: int
) -> int:
    """How many samples keep activations, about eight tensors of the largest size, in ``memory``.

    Those of the clean pass count as well: a prepared network may take a batch in parts.
    """

    def passes(rows: int) -> None:
        first = torch.zeros(rows, dtype=torch.long, device=x.device)
        model(x[first])
        inputs = x[first].double() if settings.sound else x[first]
        margin_at(network, inputs, y[first], eps_max, domain=settings.domain)

    return max(1, memory // (8 * max(1, largest_growth(passes, network.tile)))) if len(x) else 1
