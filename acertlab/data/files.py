"""Files that are never half there: written aside, then renamed into place; and read with errors that name the file."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_CARRIED = _PACKAGE / "_shipped"  # in a wheel: setup.py puts there what a clone has beside the package
SHIPPED = _CARRIED if _CARRIED.is_dir() else _PACKAGE.parent  # holds notebooks/ and data/results/


def shipped(path: str) -> Path:
    """A file or folder that comes with the package, such as "notebooks/02_training.ipynb"; else FileNotFoundError."""
    if not (found := SHIPPED / path).exists():
        raise FileNotFoundError(f"{path} does not come with acertlab ({SHIPPED} has none); give a path of your own")
    return found


def shown(name: str) -> bool:
    """Whether a file or folder is the user's: neither hidden (.ipynb_checkpoints, ._x) nor left by an archive."""
    return not name.startswith((".", "__MACOSX"))


def walk(folder: str | Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk` in the order of the names, into links too; each folder once, none that is not `shown`."""
    seen = set()
    for path, below, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(filter(shown, below))
        yield path, below, sorted(filter(shown, files))


def read_json(path: Path) -> dict[str, Any]:
    """The table of names and values in a JSON file; ValueError, naming the file, if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a table of names and values")
    return content


def read_parquet(path: Path, columns: list[str] | None = None, filters: list[tuple] | None = None) -> pd.DataFrame:
    """The table in a parquet file, or columns or rows of it; ValueError, naming the file, if it cannot be read."""
    try:
        return pd.read_parquet(path, columns=columns, filters=filters)
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise ValueError(f"{path} cannot be read as a parquet table: {error}") from error


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; on leaving it is renamed to ``path``, or removed after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # same folder, hence same file system
    try:
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())  # the content is on the disk before the name is
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a table of names and values as JSON, atomically.

    Tensors, numpy arrays and scalars become lists and numbers, paths strings; a number that JSON does not know
    (NaN, infinite) becomes null. TypeError, and nothing is written, where a value has no plain form.
    """
    text = json.dumps(_plain(content), indent=2, allow_nan=False) + "\n"
    with written_aside(Path(path)) as aside:
        aside.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # torch and numpy, arrays and scalars
        return _plain(value.tolist())
    raise TypeError(f"{value!r} ({type(value).__name__}) cannot be written as JSON")


def write_parquet(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as parquet, atomically."""
    with written_aside(Path(path)) as aside:
        table.to_parquet(aside, index=False, compression="zstd")  # a sixth smaller than snappy


def write_weights(path: str | Path, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Write a network's tensors as safetensors, atomically; on whatever device they are, they are read on the CPU."""
    from safetensors.torch import save

    # copies: safetensors refuses tensors that share memory
    content = save({name: t.detach().to("cpu", copy=True).contiguous() for name, t in state_dict.items()})
    with written_aside(Path(path)) as aside:
        aside.write_bytes(content)
