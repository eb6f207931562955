"""Tables, figures and pages as few plain numbers, and how two such digests differ."""

import re
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from typing import Any
from zlib import crc32

import numpy as np
import pandas as pd
import pytest

MOST = 3


class Page(HTMLParser):
    """What a page's lists and tables say."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.told: list[str] = []
        self.inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside in ("li", "td"):
            self.told.append(data)


def numbers_in(*texts: str) -> list[float]:
    """The numbers that texts name, one after the other."""
    return [float(number) for text in texts for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def heights(figure: Any) -> np.ndarray:
    """The y of all traces of a figure that are numbers."""
    return joined(np.asarray(trace.y, dtype=float) for trace in figure.data if trace.y is not None)


def ends(intervals: Iterator) -> np.ndarray:
    return joined((interval.low, interval.high) for interval in intervals)


def joined(arrays: Any) -> np.ndarray:
    """Arrays of any shape, one after the other."""
    return np.concatenate([np.empty(0), *(np.ravel(array) for array in arrays)])


def plain(value: Any) -> Any:
    """Tables, arrays and what holds them as JSON has them; of long ones a summary; numbers with 10 digits."""
    if isinstance(value, pd.DataFrame):
        value = {name: value[name].to_numpy() for name in value}
    if isinstance(value, Mapping):
        return {_key(name): plain(held) for name, held in value.items()}
    if isinstance(value, list | np.ndarray):
        values = np.asarray(value)
        if len(values) <= MOST:
            return [plain(held) for held in values.tolist()]
        if values.dtype.kind in "OU":
            return [len(values), crc32("\n".join(map(str, values)).encode())]
        finite = np.flatnonzero(np.isfinite(values))
        weights = 0.5 + (finite + 1) * (5**0.5 - 1) / 2 % 1
        return [len(finite), plain((values[finite] * weights).mean())]
    if isinstance(value, str | None):
        return value
    rounded = float(f"{value:.9e}")
    return int(rounded) if rounded.is_integer() else rounded if np.isfinite(rounded) else str(rounded)


def _key(name: Any) -> str:
    return (
        " ".join(map(_key, name))
        if isinstance(name, tuple)
        else f"{name:.6g}"
        if isinstance(name, float)
        else str(name)
    )


def differences(found: Any, kept: Any, tolerance: Mapping[str, float], where: str = "") -> Iterator[str]:
    """A line a value that is another one now."""
    if isinstance(found, dict) and isinstance(kept, dict):
        for key in sorted(found.keys() | kept.keys()):
            yield from differences(found.get(key, "absent"), kept.get(key, "absent"), tolerance, f"{where}/{key}")
    elif isinstance(found, list) and isinstance(kept, list) and len(found) == len(kept):
        for i, (one, other) in enumerate(zip(found, kept, strict=True)):
            yield from differences(one, other, tolerance, f"{where}/{i}")
    elif found != kept and not (_is_number(found) and _is_number(kept) and found == pytest.approx(kept, **tolerance)):
        yield f"{where}: {kept!r} before, {found!r} now"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
