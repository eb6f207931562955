"""Robustness properties for any verifier of VNN-COMP: an ONNX network, VNN-LIB 1.0 files and instances.csv."""

import csv
import filecmp
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from acertlab._validation import Within, check, refuse
from acertlab.bounds.box import Box, Domain, DomainLike, ball, check_eps
from acertlab.bounds.checks import check_samples
from acertlab.models.onnx import write_onnx


def export_vnnlib(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    radius: float | Tensor,
    folder: str | Path,
    *,
    domain: DomainLike = (0.0, 1.0),
    timeout: float = 100.0,
) -> Path:
    """The network and one property a sample, "some x' within the radius is not classified as y", as files.

    A verifier's ``unsat`` proves the sample robust at this radius; ``sat`` comes with a counterexample (or a tie).

    Args:
        model: in evaluation mode, (B, ...) -> (B, classes).
        x: (B, ...) inputs in pixel units; y: (B,) integer labels.
        radius: in pixel units, >= 0: a float, or (B,), such as the certified radii.
        folder: where ``model.onnx`` (of one sample, shape (1, ...)), ``sample_0000.vnnlib``, ... and ``instances.csv``
            (a row a property: network, property, timeout) are written: all of them at once, at the end. It is new or
            empty, or holds these very files.
        domain: (low, high) of valid pixels, to which the boxes are cut, or None.
        timeout: seconds that a verifier may take for each, > 0.

    Returns:
        The path of ``instances.csv``.

    Raises:
        ImportError: onnx or onnxruntime is not installed; the message says how to install it.
        ValueError: a folder with other files; or the network cannot be written as ONNX, or computes something else when
            read back.

    Source: https://www.vnnlib.org (VNN-LIB 1.0), https://github.com/VNN-COMP (instances.csv).

    Example:
        >>> path = al.export_vnnlib(al.models.mlp((4,), 2).eval(), torch.rand(1, 4), y, 0.1, "property")
        >>> path.read_text().split(",")[:2]
        ['model.onnx', 'sample_0000.vnnlib']
    """
    model, x, y = check_samples(model, x, y, domain)
    x, timeout = x.detach(), check("timeout", timeout, Within(0, open_low=True))
    check_eps(radius, x)
    radii = torch.as_tensor(radius, dtype=torch.float64, device=x.device).expand(len(x))
    boxes, rows = ball(x.double(), radii, Domain.of(domain).holding(x)), []
    with _whole(Path(folder).absolute()) as aside:
        sample = x[:1] if len(x) else x.new_zeros(1, *x.shape[1:])
        classes = write_onnx(model, sample, aside / "model.onnx").shape[1]
        for i, label in enumerate(y.tolist()):
            name = f"sample_{i:04d}.vnnlib"
            box = Box(boxes.lower[i], boxes.upper[i])
            head = f"; sample {i}, label {label}: an input within {radii[i].item():.9g} that another class reaches"
            (aside / name).write_text("\n".join([head, *_property(box, label, classes)]) + "\n", encoding="utf-8")
            rows.append(["model.onnx", name, f"{timeout:g}"])
        with (aside / "instances.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
    return Path(folder) / "instances.csv"


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to write into; on leaving it becomes that one, which is thus never half there."""
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if (there and "instances.csv" not in there) or (folder.exists() and not folder.is_dir()):
        refuse("folder", str(folder), "a new or an empty folder")
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    aside.mkdir(parents=True)
    try:
        yield aside
        names = sorted(path.name for path in aside.iterdir())
        if there and (names != there or filecmp.cmpfiles(aside, folder, names, shallow=False)[0] != names):
            refuse("folder", str(folder), "a new or an empty folder: this one holds another export")
        if not there:
            if folder.exists():
                folder.rmdir()
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _property(box: Box, label: int, classes: int) -> Iterator[str]:
    """What is declared and asserted: the input's box, and that another logit is at least the label's."""
    lower, upper = (end.flatten().cpu().numpy() for end in (box.lower, box.upper))
    yield from (f"(declare-const X_{i} Real)" for i in range(len(lower)))
    yield from (f"(declare-const Y_{i} Real)" for i in range(classes))
    for i, (low, high) in enumerate(zip(lower, upper, strict=True)):
        yield f"(assert (>= X_{i} {_number(low)}))"
        yield f"(assert (<= X_{i} {_number(high)}))"
    others = " ".join(f"(and (>= Y_{i} Y_{label}))" for i in range(classes) if i != label)
    yield f"(assert (or {others}))"


def _number(value: float) -> str:
    """All its digits, and no exponent, which some readers do not know."""
    return np.format_float_positional(value, unique=True, trim="0")
