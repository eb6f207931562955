"""Which tensor of a model's output is certified: one of several; and one logit as the two classes that it tells."""

import traceback
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab._validation import check
from acertlab.bounds.graph.capture import check_module

FAR = (1.0, 30.0, 1e3)  # sizes of the inputs at which a logit leaves [0, 1] and a probability does not


class OutputError(ValueError):
    """What was selected is not there."""


class SelectedOutput(nn.Module):
    """One of several outputs of a model."""

    def __init__(self, model: nn.Module, output: str | int) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, x: Tensor) -> Any:
        out = self.model(x)
        if isinstance(out, Tensor):
            raise OutputError("output: the model returns one tensor, of which nothing is to be selected")
        try:
            if isinstance(self.output, str) and not isinstance(out, Mapping):
                return getattr(out, self.output)
            return out[self.output]
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            told = ", ".join(map(repr, _named(out)))
            raise OutputError(f"output: the model has no {self.output!r}; its outputs are {told}") from error

    def extra_repr(self) -> str:
        return f"output={self.output!r}"


class TwoClasses(nn.Module):
    """A model with one logit z a sample as one with two, (0, z - threshold): class 1 where z is greater."""

    weight: Tensor
    bias: Tensor

    def __init__(self, model: nn.Module, threshold: float, like: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("weight", like.new_tensor([[0.0], [1.0]]))
        self.register_buffer("bias", like.new_tensor([0.0, -threshold]))

    def forward(self, x: Tensor) -> Tensor:
        z = self.model(x)
        if not isinstance(z, Tensor) or z.numel() != x.shape[0]:
            what = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
            raise OutputError(f"threshold: the output is {what}, not one number a sample")
        return F.linear(z.reshape(-1, 1), self.weight, self.bias)


def select_output(model: nn.Module, output: str | int | None = None, *, threshold: float | None = None) -> nn.Module:
    """A model whose logits are one of its outputs, or whose one output tells two classes apart at a threshold.

    Without it, whatever takes a model takes the only tensor that it returns, and one number a sample as a logit: class
    1 where it is > 0, class 0 where it is < 0.

    Args:
        model: (B, ...) -> a dict, tuple, named tuple, dataclass or other object with tensors; or one tensor.
        output: a key, the name of a field, or a place in a tuple.
        threshold: of an output of one number a sample, (B,) or (B, 1): class 1 is where it is greater.

    Returns:
        A module around the same ``model``, not a copy.

    Example:
        >>> class Pair(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x.sum(1), x
        >>> al.select_output(Pair().eval(), 1)(x)
        tensor([[0.2000, 0.7000]])
    """
    check_module(model)
    if isinstance(output, bool) or not isinstance(output, (str, int, type(None))):
        raise TypeError(f"output: must be a name or a place, not {type(output).__name__}")
    if output is None and threshold is None:
        raise ValueError("output: give the name or place of one of the model's outputs, or a threshold of the only one")
    selected = model if output is None else SelectedOutput(model, output)
    if threshold is not None:
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
        selected = TwoClasses(selected, check("threshold", threshold, float), like.detach())
    selected.training = model.training
    return selected


def innermost(model: nn.Module) -> nn.Module:
    """The model in front of which no output is selected."""
    while isinstance(model, (SelectedOutput, TwoClasses)):
        model = model.model
    return model


@torch.no_grad()
def as_classifier(model: nn.Module, x: Tensor) -> tuple[nn.Module, Tensor]:
    """The model as one with logits (B, classes), and these at x (B, ...), a sample or none: what all else relies on.

    Raises:
        ValueError: it does not take x; several outputs of which none is selected; no logits; or a probability, which
            no threshold at 0 tells apart.
    """
    training = model.training
    try:
        out = model(x.clone())  # a copy: the first layer may work in place
    except OutputError:
        raise
    except Exception as error:
        raise ValueError(
            f"x: the model does not take samples of shape {tuple(x.shape[1:])}: {_why(error, x)}"
        ) from error
    if not isinstance(out, Tensor) and (parts := _named(out)):
        tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        if len(parts) > 1 or len(tensors) != 1:
            likely = next((n for n, part in tensors.items() if part.dim() == 2), next(iter(parts)))
            raise ValueError(
                f"model: returns several outputs for x {tuple(x.shape)}: {outputs_told(out)}. Select the logits, "
                f"such as model = acertlab.select_output(model, {'logits' if 'logits' in parts else likely!r})"
            )
        ((name, out),) = tensors.items()
        check_module(model)
        model = SelectedOutput(model, name)
    if isinstance(out, Tensor) and out.is_floating_point() and _is_one_number(out, len(x)):
        check_module(model)
        _check_logit(model, x)
        model = TwoClasses(model, 0.0, out.detach())
        out = model(x.clone())
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != len(x) or out.shape[1] < 2:
        what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"model: its output for x {tuple(x.shape)} is {what}; it must be (B, classes) with classes >= 2, or one "
            "logit a sample, (B, 1) or (B,)"
        )
    if out.dtype != x.dtype:
        raise ValueError(f"model: its output for x of {x.dtype} is {out.dtype}; it must keep the dtype")
    model.training = training
    return model, out


def _why(error: Exception, x: Tensor) -> str:
    """What forward said, or the line that says it, and what may help."""
    said = str(error)
    if not said:
        place = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{place.line} (line {place.lineno} of {Path(place.filename).name})"
    hint = ". If its channels come last: x.permute(0, 3, 1, 2)" if channels_last(x.shape) else ""
    if said.startswith("Guard failed") and ".size()[0]" in said:
        hint = (
            ". It was exported for batches of this size: save it by torch.export.save and read it by "
            "acertlab.load_program, or export it with dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
        )
    return f"{type(error).__name__}: {said}{hint}"


def outputs_told(out: Any) -> str:
    """The names or places and the shapes of several outputs."""
    return ", ".join(
        f"{name!r} {tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__}"
        for name, part in _named(out).items()
    )


def channels_last(shape: torch.Size | tuple[int, ...]) -> bool:
    """Whether it looks like a batch of images with their channels last."""
    return len(shape) == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4)


def _named(out: Any) -> dict[str | int, Any]:
    """The parts of an output by name or place, None left out."""
    if isinstance(out, Mapping):
        parts = dict(out)
    elif hasattr(out, "_fields"):
        parts = out._asdict()
    elif isinstance(out, (tuple, list)):
        parts = dict(enumerate(out))
    elif is_dataclass(out):
        parts = {field.name: getattr(out, field.name) for field in fields(out)}
    else:
        parts = dict(getattr(out, "__dict__", {}))
    return {name: part for name, part in parts.items() if part is not None}


def _is_one_number(out: Tensor, rows: int) -> bool:
    """(B,), (B, 1), ...; and a number where forward squeezes the batch away."""
    return (out.dim() == 0 and rows == 1) or (out.dim() > 0 and len(out) == rows and out.shape[1:].numel() == 1)


def _check_logit(model: nn.Module, x: Tensor) -> None:
    """Refuses what stays within [0, 1] and comes close to an end, wherever asked: no logit does."""
    generator = torch.Generator().manual_seed(0)
    noise = 2 * torch.rand(len(FAR) * 8, *x.shape[1:], generator=generator) - 1
    far = torch.cat([size * part for size, part in zip(FAR, noise.chunk(len(FAR)), strict=True)]).to(x)
    try:
        found = model(torch.cat([x, far]))
    except Exception:  # a model may refuse inputs like these
        return
    low, high = found.min(), found.max()
    if low >= 0 and high <= 1 and high - low > 1e-3 and (low < 0.01 or high > 0.99):
        raise ValueError(
            "model: its one output stays within [0, 1] whatever the input, so it is a probability, not a logit. Leave "
            "the sigmoid away, or say where class 1 begins: model = acertlab.select_output(model, threshold=0.5)"
        )
