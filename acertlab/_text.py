"""Numbers, eps, seconds and tables as text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd  # a sweep imports this file, and no pandas


def short(value: Any) -> str:
    """A setting's value: numbers that are not whole with four digits, a=1,b=2 for a mapping, all else as it is."""
    if isinstance(value, dict):
        return ",".join(f"{name}={short(one)}" for name, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def eps_text(eps: float) -> str:
    """An eps in pixel units, as a fraction of 255 too where it is one: 0.03137 (8/255), 0.3."""
    levels = 255 * eps
    whole = abs(levels - round(levels)) < 1e-6 and 0 < levels < 32
    return f"{eps:.4g} ({round(levels)}/255)" if whole else f"{eps:.4g}"


def printed_eps(eps: float) -> str:
    """An eps as the paper writes it: 8/255, 8.8/255, 0.3."""
    levels = 255 * eps
    tenths = 0 < eps < 0.1 and math.isclose(levels, round(levels, 1), rel_tol=1e-6)
    return f"{levels:.3g}/255" if tenths else f"{eps:.4g}"


def seconds_text(seconds: float) -> str:
    """A duration in words: 8.31 ms, 0.42 s, 12 s, 4.2 min, 7.5 h, 3.1 days."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    if 0 < seconds < 0.1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 10 else f"{seconds:.0f} s"


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown, without its index."""
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines)
