"""The certified margin R_cert: negative where no input in the box can be classified otherwise (Eq. 3-4)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from acertlab.interval import Frozen, freeze
from acertlab.rules import Domain, ball, check_eps, check_input

BOUNDS = ("ibp",)
TILE = 32


def clean_margin(logits: Tensor, y: Tensor) -> Tensor:
    """R(x, 0) = max_{i != y} z_i - z_y of clean logits: (B, classes), (B,) -> (B,). NaN logits give NaN."""
    return worst_margin(logits - logits.gather(1, y.unsqueeze(1)), y)


def worst_margin(margins: Tensor, y: Tensor) -> Tensor:
    """max over i != y of a table of margins: (B, classes), (B,) -> (B,). NaN anywhere else gives NaN."""
    return margins.scatter(1, y.unsqueeze(1), -torch.inf).amax(1)


def margin_at(
    frozen: Frozen, x: Tensor, y: Tensor, eps: float | Tensor, *, merged: bool = True, domain: Domain = (0.0, 1.0)
) -> Tensor:
    """`certified_margin` on a frozen network, without checks: what the search evaluates."""
    n = len(x)
    x, y, eps = (pad(t) for t in (x, y, eps))
    return worst_margin(frozen.margins(ball(x, eps, domain), y, merged=merged), y)[:n]


def pad(rows: float | Tensor) -> float | Tensor:
    """Repeats the last row until the batch is a multiple of `TILE`; numbers and empty batches stay as they are.

    Matrix products choose another kernel, with another order of summation, for a few rows than for many. Padded, a
    sample's margin does not depend on how many others are evaluated with it: measured on CPU, to the last bit.
    """
    if not isinstance(rows, Tensor) or rows.dim() == 0 or len(rows) % TILE == 0:
        return rows
    return torch.cat([rows, rows[-1:].expand(-len(rows) % TILE, *rows.shape[1:])])


def certified_margin(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float | Tensor,
    *,
    bound: str = "ibp",
    merged: bool = True,
    domain: Domain = (0.0, 1.0),
) -> Tensor:
    """Eq. (3): an upper bound of max_{i != y} f_i(x') - f_y(x') over the l_inf ball of radius eps.

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes); any module that ``torch.fx`` traces.
        x: (B, ...) inputs in pixel units, inside ``domain``, of the model's dtype.
        y: (B,) integer labels.
        eps: radius in pixel units, >= 0: a float, or (B,).
        bound: "ibp".
        merged: fold the difference of logits into the last linear layer (never looser); False: Eq. (3) as written.
        domain: (low, high) of valid pixels, to which the ball is cut; None: not cut (Theorem A.2).

    Returns:
        (B,) margins; < 0: certified. Differentiable in x, eps and the parameters.

    Raises:
        TypeError, ValueError: naming the argument, what was wrong and what is accepted.
    """
    check_bound(bound)
    check_samples(model, x, y, domain)
    eps = check_eps(eps, x)
    with full_precision(x.device):
        return margin_at(freeze(model), x, y.long(), eps, merged=merged, domain=domain)


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


def check_bound(bound: str) -> None:
    if bound not in BOUNDS:
        raise ValueError(f"bound: {bound!r} is unknown; choose from {', '.join(map(repr, BOUNDS))}")


def check_samples(model: nn.Module, x: Tensor, y: Tensor, domain: Domain) -> None:
    """Refuses, before anything is computed, a model, inputs and labels that do not fit each other.

    Raises:
        TypeError: not a module, or tensors of the wrong kind.
        ValueError: training mode; inputs outside the domain, NaN, or of another dtype or device than the model; labels
            out of range; an output that is not (B, classes).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, not {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise ValueError("model: is in training mode, where a sample has no certificate of its own; call model.eval()")
    check_input(x, domain)
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x: bounds are computed in torch.float32 or torch.float64, not {x.dtype}; convert x and model")
    weight = next((p for p in model.parameters() if p.is_floating_point()), x)
    for what in ("dtype", "device"):
        if (ours := getattr(x, what)) != (theirs := getattr(weight, what)):
            raise ValueError(f"x: {what} {ours} differs from the model's {theirs}; convert one of them")
    if not isinstance(y, Tensor) or y.dtype not in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        what = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"y: must be an integer tensor of labels, not {what}")
    if x.dim() < 2 or y.shape != x.shape[:1]:
        raise ValueError(f"y: shape {tuple(y.shape)} does not give one label to each sample of x {tuple(x.shape)}")
    if y.device != x.device:
        raise ValueError(f"y: is on {y.device}, x on {x.device}; move one of them")
    _check_output(model, x[:1], y)


def _check_output(model: nn.Module, sample: Tensor, y: Tensor) -> None:
    try:
        with torch.no_grad():
            logits = model(sample)
    except RuntimeError as error:
        raise ValueError(f"x: the model does not take samples of shape {tuple(sample.shape[1:])}: {error}") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(sample) or logits.shape[1] < 2:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model: its output for x {tuple(sample.shape)} is {what}; it must be (B, classes) with classes >= 2"
        )
    if y.numel() and (y.min() < 0 or y.max() >= logits.shape[1]):
        raise ValueError(
            f"y: holds labels from {int(y.min())} to {int(y.max())}; the model has {logits.shape[1]} classes, so "
            f"0 to {logits.shape[1] - 1} are accepted"
        )
