"""Checks before anything is computed: model, samples and labels fit each other."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import chain
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from acertlab.bounds.box import DomainLike, check_input
from acertlab.bounds.graph.output import TwoClasses, as_classifier, channels_last

LABELS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def full_precision(device: torch.device) -> AbstractContextManager[None]:
    """No TF32, no reduced-precision matrix products and no autocast inside; the settings come back afterwards."""
    return float32_products(device, tf32=False)


@contextmanager
def float32_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """No autocast inside, and products of float32 in TF32, where the device has it, or in full; settings come back."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        with torch.autocast(device.type, enabled=False) if device.type != "meta" else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def check_samples(model: nn.Module, x: Any, y: Any, domain: DomainLike) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, inputs and labels as all else takes them; refuses, before anything is computed, what does not fit.

    The model becomes a classifier (see `acertlab.bounds.graph.output`), x (B, ...) and y (B,) tensors. Refused are
    training mode and lazy parameters; inputs outside the domain, NaN, or of another dtype or device than the model;
    labels out of range; an output that is no logits, of the dtype of x, and for each sample a function of it alone.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, not {type(model).__name__}")
    check_mode(model)
    if lazy := [name for name, value in (*model.named_parameters(), *model.named_buffers()) if is_lazy(value)]:
        raise ValueError(f"model: {lazy[0]} has no values yet; pass one batch through the lazy layers first")
    weight = weight_of(model, x if isinstance(x, Tensor) else torch.zeros(()))
    x = inputs_of(x, weight)
    y = labels_of(y, x.device)
    check_dense("x", x)
    check_dense("y", y)
    check_input(x, domain)
    if x.dim() < 2 or not x.shape[1:].numel():
        raise ValueError(f"x: shape {tuple(x.shape)} is not (B, ...), samples of at least one number each")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: bounds are computed in torch.float32 or torch.float64, not {x.dtype}; convert x and model")
    for what in ("dtype", "device"):
        if (ours := getattr(x, what)) != (theirs := getattr(weight, what)):
            raise ValueError(f"x: {what} {ours} differs from the model's {theirs}; convert one of them")
    _check_labels(x, y)
    with torch.no_grad(), full_precision(x.device):
        classifier, logits = as_classifier(model, x[:1])
        _check_range(classifier, logits.shape[1], y)
        _check_independent(classifier, x[:1], logits)
    return classifier, x, y


def inputs_of(x: Any, like: Tensor, *, images: bool = False) -> Any:
    """Arrays, tables and lists of numbers as a tensor in the dtype and on the device of ``like``; a tensor as it is.

    ``images``: whether uint8 is accepted, and kept, as what images are made of. TypeError or ValueError where they have
    more than one meaning; the message shows what to write.
    """
    if images and isinstance(x, np.ndarray) and x.dtype == np.uint8 and not channels_last(x.shape):
        x = torch.as_tensor(x)
    if isinstance(x, Tensor):
        if images and x.dtype == torch.uint8:
            return x
        if not x.is_floating_point() and not x.is_complex() and x.dtype != torch.bool:
            line = _written(x.shape, x.dtype)
            raise TypeError(f"x: must be a floating-point tensor in units of its domain, not {x.dtype}; write {line}")
        return x
    if not (isinstance(x, (list, tuple)) or hasattr(x, "__array__")):
        many = hasattr(x, "__getitem__") or hasattr(x, "__iter__")
        more = "; acertlab.certify(model, loader, eps_max) takes batches of (x, y)" if many else ""
        raise TypeError(
            f"x: must be a floating-point tensor (an array or a list of numbers will do), not {type(x).__name__}{more}"
        )
    try:
        array = np.asarray(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"x: {type(x).__name__} is no array of numbers: {error}") from error
    table: Any = x if hasattr(x, "columns") else None
    columns = [] if table is None else [name for name, dtype in table.dtypes.items() if dtype.kind not in "fiu"]
    if array.dtype.kind == "O" and table is not None and not columns:  # pandas' numbers with gaps
        array = table.to_numpy(np.float64, na_value=np.nan)
    if array.dtype.kind not in "fiu":
        told = f"; its columns {', '.join(map(str, columns))} are none" if columns else ""
        raise TypeError(f"x: must hold numbers, not {array.dtype}{told}")
    line = _written(array.shape, array.dtype)
    if isinstance(x, np.ndarray) and array.dtype.kind != "f":
        raise TypeError(f"x: an array of {array.dtype} has no single meaning; write {line}")
    if isinstance(x, np.ndarray) and channels_last(array.shape):
        line += ", or torch.as_tensor(x) where they are not"
        raise ValueError(f"x: an array of shape {array.shape} may have its channels last; write {line}")
    return torch.as_tensor(array.astype(np.float64)).to(like)


def labels_of(y: Any, device: torch.device) -> Any:
    """Arrays, columns and lists of whole numbers as an int64 tensor; all else as it is."""
    if isinstance(y, Tensor) or not (isinstance(y, (list, tuple)) or hasattr(y, "__array__")):
        return y
    try:
        array = np.array(y)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"y: {type(y).__name__} is no array of labels: {error}") from error
    if array.dtype.kind not in "iufb":
        raise TypeError(f"y: must hold whole numbers from 0 on, not {array.dtype}; number the classes first")
    return torch.as_tensor(array.astype(np.int64) if array.dtype.kind in "iu" else array, device=device)


def _written(shape: Sequence[int], dtype: Any) -> str:
    """The line that makes inputs of what was given."""
    name = "x" if isinstance(dtype, torch.dtype) else "torch.as_tensor(x)"
    if channels_last(tuple(shape)):
        name += ".permute(0, 3, 1, 2)"
    elif len(shape) == 3 and "uint8" in str(dtype):
        name += ".unsqueeze(1)"
    if "float" in str(dtype):
        return name
    return f"{name} / 255" if "uint8" in str(dtype) else f"{name}.float()"


def _check_labels(x: Tensor, y: Any) -> None:
    if isinstance(y, Tensor) and y.shape != x.shape[:1]:
        line = ""
        if y.dim() == 2 and len(y) == len(x):
            line = f"; write {'y.flatten()' if y.shape[1] == 1 else 'y.argmax(1), if it is one-hot'}"
        shapes = f"{tuple(y.shape)} does not give one label to each sample of x {tuple(x.shape)}"
        raise ValueError(f"y: shape {shapes}{line}")
    if not isinstance(y, Tensor) or y.dtype not in LABELS:
        what = y.dtype if isinstance(y, Tensor) else type(y).__name__
        line = "; write y.long(), if it holds classes" if isinstance(y, Tensor) else ""
        kinds = "int64, int32, int16, int8, uint8 will do"
        raise TypeError(f"y: must be an integer tensor of labels, not {what}; {kinds}{line}")
    if y.device != x.device:
        raise ValueError(f"y: is on {y.device}, x on {x.device}; move one of them")


def _check_range(model: nn.Module, classes: int, y: Tensor) -> None:
    if not y.numel() or (y.min() >= 0 and y.max() < classes):
        return
    low, high = int(y.min()), int(y.max())
    told = f"the model has {classes} classes, so 0 to {classes - 1} are accepted"
    if isinstance(model, TwoClasses):
        told = "the model has one logit, so 0 (logit < 0) and 1 (logit > 0) are accepted"
    line = ""
    if low == -1 and high <= 1 and isinstance(model, TwoClasses):
        line = "; write (y > 0).long()"
    elif low >= 1 and high == classes:
        line = "; write y - 1, if classes are counted from 1"
    raise ValueError(f"y: holds labels from {low} to {high}; {told}{line}")


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
