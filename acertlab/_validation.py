"""Numbers as arguments: checked with one wording; "8/255" is a number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Within:
    """A number between two ends, both accepted unless `open_low`; text such as "8/255" is a number here.

    Attributes:
        low, high: The ends.
        kind: float or int.
        open_low: Whether `low` itself is refused.
    """

    low: float = -math.inf
    high: float = math.inf
    kind: type = float
    open_low: bool = False

    def __call__(self, value: Any) -> float | int:
        found = number(value)
        if self.kind is int and found == int(found):
            found = int(found)
        fits = self.low < found if self.open_low else self.low <= found
        if not (fits and found <= self.high and (self.kind is float or isinstance(found, int))):
            raise ValueError(str(self))
        return found

    def __str__(self) -> str:
        what = "a whole number" if self.kind is int else 'a number (0.1 or "8/255")'
        ends = [f"{'>' if self.open_low else '>='} {self.low:g}"] if self.low > -math.inf else []
        ends += [f"<= {self.high:g}"] if self.high < math.inf else []
        return " ".join([what, " and ".join(ends)]).strip()


def number(value: Any) -> float:
    """A finite number, or one written as text such as "8/255"; else ValueError with what is accepted."""
    if isinstance(value, str):
        top, _, bottom = value.partition("/")
        divisor = float(bottom or 1)
        value = float(top) / divisor if divisor else math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("a finite number")
    return float(value)
