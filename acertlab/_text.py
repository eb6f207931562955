"""Seconds, eps and tables as text."""

from __future__ import annotations

import math

import pandas as pd


def eps_text(eps: float) -> str:
    """An eps in pixel units, as a fraction of 255 too where it is one."""
    levels = 255 * eps
    whole = abs(levels - round(levels)) < 1e-6 and 0 < levels < 32
    return f"{eps:.4g} ({round(levels)}/255)" if whole else f"{eps:.4g}"


def printed_eps(eps: float) -> str:
    """A radius as the paper writes it: 8/255, 0.3."""
    over = 255 * eps
    return f"{over:.3g}/255" if 0 < eps < 0.1 and math.isclose(over, round(over, 1), rel_tol=1e-6) else f"{eps:.4g}"


def seconds_text(seconds: float) -> str:
    """Seconds in words: 0.4 s, 12 s, 4.2 min, 7.5 h, 3.1 days."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def markdown(table: pd.DataFrame) -> str:
    """The table as Markdown."""
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines)
