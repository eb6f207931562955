"""Checkpoints of others, .pt and .safetensors, read into an architecture of ours or yours."""

import re
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acertlab.bounds.rules.affine import Normalize
from acertlab.models.architectures import Stats

NESTED = ("state_dict", "model_state_dict", "model", "net")  # where scripts keep it, beside optimiser and epoch
COUNTER = "num_batches_tracked"  # of BatchNorm: absent from old files, and of no use in evaluation
SAFETENSORS = ".safetensors"  # keeps tensors in an order of its own
LISTED = 12  # names that an error lists of each kind
_scalar = np.float64(0).__reduce__()[0]
NUMPY = [  # numbers beside the weights (CROWN-IBP's errors) are numpy's; reading them runs no code of the file
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?"))),
]


def load_weights(
    model: nn.Module, path: str | Path, *, mean: Stats = None, std: Stats = None, ignore: Collection[str] = ()
) -> nn.Module:
    """Fill a network with the weights of a checkpoint: safetensors, or a file of `torch.save` that holds tensors only.

    Weights go where their name is the same, prefixes that all names share taken off. Only where no name agrees, as in
    another code's Sequential, they go by the order in which layers were made, and a warning says so: both must have as
    many, each of the same kind (weight, bias, ...) and shape. `Normalize` is passed over, but where the file
    normalises, too, the two must be equal. Safetensors keep no such order.

    Args:
        model: The architecture, such as ``al.models.cnn7(...)``; filled in place, or not touched at all.
        path: The file. What lies around the state dict (`NESTED`, "module.") is taken off. No pickled code is run.
        mean, std: One value a channel in pixel units, where the network was trained on inputs that were normalised
            outside of it: they are put in front as a `Normalize`, so that eps is in pixel units.
        ignore: Parts of dotted names that are no weights of the network, such as SABR's ("deepz_lambda",).

    Returns:
        The network in evaluation mode, (B, ...) -> (B, classes): ``model``, or it with `Normalize` in front.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, no checkpoint, or holds code; it normalises otherwise than the network; or
            another layout: with the missing and the unexpected names, and the shapes that differ.

    Example:
        >>> theirs = al.models.mlp((4,), 2)
        >>> torch.save(theirs.state_dict(), "theirs.pth")
        >>> ours = al.load_weights(al.models.mlp((4,), 2), "theirs.pth")
        >>> torch.equal(ours[1].weight, theirs[1].weight)
        True
    """
    path = existing_file(path)
    theirs = {name: t for name, t in _read_tensors(path).items() if not {*ignore, COUNTER} & {*name.split(".")}}
    whole = normalised(model, mean, std)
    model.load_state_dict(model.state_dict() | _matched(model, whole, theirs, path))
    return whole.eval()


def existing_file(path: str | Path) -> Path:
    """The path, if there is a file; else FileNotFoundError."""
    if not (path := Path(path)).is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    return path


def normalised(model: nn.Module, mean: Stats, std: Stats) -> nn.Module:
    """The model, with `Normalize` in front where mean and std are given."""
    if mean is None and std is None:
        return model
    if mean is None or std is None:
        raise ValueError("mean, std: give both, one value a channel, or neither")
    if any(isinstance(layer, Normalize) for layer in model.modules()):
        raise ValueError("mean, std: the model has a Normalize already; give them once")
    layers = model if type(model) is nn.Sequential else (model,)  # flat, as the networks of `acertlab.models` are
    return nn.Sequential(Normalize(mean, std), *layers)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without what lies around it."""
    try:
        if path.suffix == SAFETENSORS:
            from safetensors.torch import load_file

            held = load_file(path)
        else:
            with torch.serialization.safe_globals(NUMPY), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise any kind
        raise ValueError(f"path: {path} {_why_unread(error)}") from error
    held = _inside(held)
    while isinstance(held, Mapping) and (inner := [held[key] for key in NESTED if isinstance(held.get(key), Mapping)]):
        held = inner[0]
    if not isinstance(held, Mapping) or not held or not all(isinstance(t, Tensor) for t in held.values()):
        what = f"a table of {_some(map(str, held))}" if isinstance(held, Mapping) else f"a {type(held).__name__}"
        raise ValueError(f"path: {path} holds {what}, no state dict (names and tensors), nor under {', '.join(NESTED)}")
    for name, t in held.items():
        if not t.is_floating_point() and name.rpartition(".")[2] != COUNTER:
            kind = "quantised" if t.is_quantized else str(t.dtype)
            raise ValueError(
                f"path: {path} holds {name} as {kind}; accepted are floating-point weights. Turn it into them "
                "where it was made (dequantize(), or .float() with its scale), and save that"
            )
    return dict(held)


def _inside(held: Any) -> Any:
    """The one state dict of a list; of several, an error."""
    if not isinstance(held, (list, tuple)) or not held or not all(isinstance(part, Mapping) for part in held):
        return held
    if len(held) > 1:
        raise ValueError(
            f"path: holds {len(held)} state dicts, of a cascade of networks; save the one that you want by itself: "
            "torch.save(torch.load(path, weights_only=True)[0], new_path)"
        )
    return next(iter(held))


def _why_unread(error: Exception) -> str:
    if code := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"holds more than tensors ({code[1]}), and is not read: unpickling would run its code. Where you trust it, "
            "write the tensors alone, with the code that it belongs to: "
            "torch.save(torch.load(path, weights_only=False).state_dict(), new_path)"
        )
    if "TorchScript" in str(error):
        return "is TorchScript, a whole program: use load_program"
    kind = "safetensors file" if type(error).__name__ == "SafetensorError" else "checkpoint"
    return f"is no {kind}, or a damaged one (a program of torch.export goes to load_program): {type(error).__name__}"


def _matched(model: nn.Module, whole: nn.Module, theirs: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The file's tensors by the model's names; those that `load_weights` says may stay are left out."""
    ours = {name: t for name, t in model.state_dict().items() if not name.endswith(COUNTER)}
    theirs = _as_named_in(ours, theirs)
    if ours.keys() == theirs.keys():
        if all(t.shape == theirs[name].shape for name, t in ours.items()):
            return theirs
        raise _other_layout(ours, theirs, path)
    norms = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Normalize)]
    own = [name for name in ours if name.rpartition(".")[0] not in dict(norms)]
    statistics = {name: t for name, t in theirs.items() if name.rpartition(".")[2] in ("mean", "std", "sigma")}
    names = [name for name in theirs if name not in statistics]
    named = {name for name in own if name in names and not any(part.isdecimal() for part in name.split("."))}
    rest = [[name for name in of if name not in named] for of in (own, names)]  # a number is a place, no name
    both = zip(rest, (ours, theirs), strict=True)
    kinds = [[(name.rpartition(".")[2], tensors[name].shape) for name in of] for of, tensors in both]
    same = all(ours[name].shape == theirs[name].shape for name in named)
    if kinds[0] != kinds[1] or not same or path.suffix == SAFETENSORS:
        raise _other_layout(ours, theirs, path, *rest)
    if statistics:
        _check_statistics(statistics, whole, path)
    if renamed := [f"{b} -> {a}" for a, b in zip(*rest, strict=True) if re.sub(r"\d+", "", a) != re.sub(r"\d+", "", b)]:
        warnings.warn(f"path: weights of {path} whose names differ go by their order: {_some(renamed)}", stacklevel=3)
    return {name: theirs[other] for name, other in [*zip(named, named, strict=True), *zip(*rest, strict=True)]}


def _as_named_in(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, where no name agrees, with the prefix that all share exchanged for that of the model's."""
    if ours.keys() & theirs.keys():
        return theirs
    front, theirs_front = _shared_prefix(ours), _shared_prefix(theirs)
    renamed = {front + name.removeprefix(theirs_front): t for name, t in theirs.items()}
    return renamed if ours.keys() & renamed.keys() else theirs


def _shared_prefix(names: Iterable[str]) -> str:
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{column[0]}." for column in takewhile(lambda column: len(set(column)) == 1, columns))


def _check_statistics(theirs: dict[str, Tensor], whole: nn.Module, path: Path) -> None:
    """Refuse a normalisation of the file that is not the model's; none is mean 0 and std 1."""
    norms = [layer for layer in whole.modules() if isinstance(layer, Normalize)]
    ours = [t for layer in norms for t in (layer.mean, layer.std)] or [torch.zeros(1), torch.ones(1)]
    in_order = sorted(theirs, key=lambda name: not name.endswith("mean"))
    if len(ours) != len(theirs) or not all(map(_equal, ours, (theirs[name] for name in in_order))):
        told = "; ".join(f"{name} = {[round(v, 6) for v in theirs[name].flatten().tolist()]}" for name in in_order)
        raise ValueError(
            f"path: {path} normalises otherwise than the model: {told}. Build the model with this mean= and std=, one "
            "value a channel, or give them here"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    a, b = a.flatten().double().cpu(), b.flatten().double().cpu()
    return (len(a) == len(b) or 1 in (len(a), len(b))) and torch.allclose(a, b, atol=1e-6)


def _other_layout(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], path: Path, own: Sequence[str] = (), names: Sequence[str] = ()
) -> ValueError:
    """The error; ``own`` and ``names`` are those of the model and the file that were to go by order."""
    shapes = [
        f"{name} {tuple(theirs[name].shape)} in the file, {tuple(t.shape)} in the model"
        for name, t in ours.items()
        if name in theirs and theirs[name].shape != t.shape
    ]
    how = "by name (safetensors keep no order)" if path.suffix == SAFETENSORS else "by name or by order"
    first = ""
    for i, (name, other) in enumerate(zip_longest(own, names)):
        told = [f"{n} {tuple(of[n].shape)}" if n else "nothing" for n, of in ((name, ours), (other, theirs))]
        if told[0].rpartition(".")[2] != told[1].rpartition(".")[2]:
            where = f"number {i + 1}: {told[0]} in the model, {told[1]} in the file"
            first = f". By order the first that differs is {where}"
            break
    return ValueError(
        f"path: the weights of {path} do not fit the model, {how}. Missing in the file: "
        f"{_some(n for n in ours if n not in theirs)}. Unexpected in it: {_some(n for n in theirs if n not in ours)}. "
        f"Other shapes: {_some(shapes)}{first}"
    )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return (", ".join(names[:LISTED]) or "none") + more
