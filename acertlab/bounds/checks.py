"""Checks before anything is computed: model, samples and labels fit each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from types import CodeType, FunctionType

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from acertlab.bounds.box import Domain, check_input

LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TF32, no reduced-precision matrix products and no autocast inside; the settings come back afterwards."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def check_samples(model: nn.Module, x: Tensor, y: Tensor, domain: Domain) -> None:
    """Refuses, before anything is computed, a model, inputs and labels that do not fit each other.

    Raises:
        TypeError: not a module, or tensors of the wrong kind.
        ValueError: training mode or lazy parameters; inputs outside the domain, NaN, or of another dtype or device than
            the model; labels out of range; an output that is not (B, classes), of the dtype of ``x``, and for each
            sample a function of this sample alone.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, not {type(model).__name__}")
    check_mode(model)
    if lazy := [name for name, value in (*model.named_parameters(), *model.named_buffers()) if is_lazy(value)]:
        raise ValueError(f"model: {lazy[0]} has no values yet; pass one batch through the lazy layers first")
    check_dense("x", x)
    check_dense("y", y)
    check_input(x, domain)
    if x.dim() < 2 or not x.shape[1:].numel():
        raise ValueError(f"x: shape {tuple(x.shape)} is not (B, ...), samples of at least one number each")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: bounds are computed in torch.float32 or torch.float64, not {x.dtype}; convert x and model")
    weight = weight_of(model, x)
    for what in ("dtype", "device"):
        if (ours := getattr(x, what)) != (theirs := getattr(weight, what)):
            raise ValueError(f"x: {what} {ours} differs from the model's {theirs}; convert one of them")
    if not isinstance(y, Tensor) or y.dtype not in LABELS:
        what = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y: must be an integer tensor of labels, not {what}; int64, int32, int16, int8, uint8 will do")
    if y.shape != x.shape[:1]:
        raise ValueError(f"y: shape {tuple(y.shape)} does not give one label to each sample of x {tuple(x.shape)}")
    if y.device != x.device:
        raise ValueError(f"y: is on {y.device}, x on {x.device}; move one of them")
    with torch.no_grad(), full_precision(x.device):
        logits = _check_output(model, x[:1], y)
        _check_independent(model, x[:1], logits)


def check_mode(model: nn.Module) -> None:
    """Refuses training mode, where some module of the model speaks of it; the others are the same in both modes."""
    if any(module.training and _asks_for_mode(type(module)) for module in model.modules()):
        raise ValueError("model: is in training mode, where a sample has no certificate of its own; call model.eval()")


@cache
def _asks_for_mode(kind: type[nn.Module]) -> bool:
    """Whether code of this class, or of one that it inherits from, names ``training``."""
    own = [c for c in kind.__mro__ if c not in (nn.Module, fx.GraphModule, object)]
    codes = [f.__code__ for c in own for f in vars(c).values() if isinstance(f, FunctionType)]
    while codes:
        code = codes.pop()
        if "training" in (*code.co_names, *code.co_freevars):
            return True
        codes += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
    return False


def check_dense(name: str, value: Tensor) -> None:
    """Refuses tensors whose elements cannot be read one by one: sparse ones, and those on the meta device."""
    if isinstance(value, Tensor) and (value.layout != torch.strided or value.is_meta):
        what = "on the meta device" if value.is_meta else value.layout
        raise TypeError(f"{name}: must be a dense tensor that holds its values, not {what}")


def weight_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's first floating-point parameter or buffer: its dtype and device. ``x`` where there is none."""
    return next((value for value in chain(model.parameters(), model.buffers()) if value.is_floating_point()), x)


def _check_output(model: nn.Module, sample: Tensor, y: Tensor) -> Tensor:
    try:
        logits = model(sample.clone())  # a copy: the first layer may work in place
    except Exception as error:
        raise ValueError(
            f"x: the model does not take samples of shape {tuple(sample.shape[1:])}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(sample) or logits.shape[1] < 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model: its output for x {tuple(sample.shape)} is {what}; it must be (B, classes) with classes >= 2"
        )
    if logits.dtype != sample.dtype:
        raise ValueError(f"model: its output for x of {sample.dtype} is {logits.dtype}; it must keep the dtype")
    if y.numel() and (y.min() < 0 or y.max() >= logits.shape[1]):
        raise ValueError(
            f"y: holds labels from {int(y.min())} to {int(y.max())}; the model has {logits.shape[1]} classes, so "
            f"0 to {logits.shape[1] - 1} are accepted"
        )
    return logits


def _check_independent(model: nn.Module, sample: Tensor, logits: Tensor) -> None:
    """Refuses a model whose logits of a sample change from call to call, or with the samples beside it."""
    if not len(sample):
        return
    other = torch.linspace(-1, 2, sample.numel(), dtype=sample.dtype, device=sample.device).view_as(sample)
    other = other * (1 + sample.abs().max())
    for beside, rows in (("", [sample]), ("a sample beside it", [sample, other]), ("one before it", [other, sample])):
        again = model(torch.cat(rows))
        if again.shape != (len(rows), logits.shape[1]):
            raise ValueError(f"model: its output for {len(rows)} samples is {tuple(again.shape)}, not (B, classes)")
        gap = (again[-1 if rows[0] is other else 0] - logits[0]).abs().max()
        if gap > allowed_gap(logits):
            why = f"with {beside}, so that it has no certificate of its own" if beside else "when asked again"
            raise ValueError(
                f"model: its logits for one sample differ by {gap:.3g} {why}; forward must be a function of each "
                "sample alone, without random numbers, state, or sums over the batch"
            )


def allowed_gap(logits: Tensor) -> Tensor:
    """By how much other roundings may change logits. NaN and infinity are left to the statuses: no gap exceeds NaN."""
    info = torch.finfo(logits.dtype)
    return info.eps**0.5 * logits.abs().max() + info.tiny**0.5
