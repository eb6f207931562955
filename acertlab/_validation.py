"""Arguments checked with one wording, `NAME = VALUE: accepted is ...`; "8/255" is a number."""

import difflib
import math
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NoReturn


class WrongTypeError(TypeError, ValueError):
    """An argument of the wrong type: a TypeError and, like every refused argument, a ValueError."""


@dataclass(frozen=True)
class Within:
    """A finite number between two ends, both accepted unless open."""

    low: float = -math.inf
    high: float = math.inf
    kind: type = float
    open_low: bool = False  # whether the end itself is refused
    open_high: bool = False
    says: str = ""  # what is accepted, in words, where the ends alone do not say it

    def holds(self, value: Any) -> bool:
        above = self.low < value if self.open_low else self.low <= value
        below = value < self.high if self.open_high else value <= self.high
        return above and below and -math.inf < value < math.inf

    def text(self, number: str = "a finite number") -> str:
        ends = [f"{'>' if self.open_low else '>='} {self.low:g}"] if self.low > -math.inf else []
        ends += [f"{'<' if self.open_high else '<='} {self.high:g}"] if self.high < math.inf else []
        what = "a whole number" if self.kind is int else number
        return self.says or " ".join([what, " and ".join(ends)]).strip()


Accepted = Within | type | Collection[str] | Callable[[Any], Any]


def check(name: str, value: Any, accepted: Accepted, *, parse: bool = False) -> Any:
    """The value of an argument, once it is known to be acceptable; numpy's numbers become Python's.

    Accepted is a `Within`; `int` or `float`, any finite number of that kind; `bool` or `str`; some words; or a function
    that returns the value to use or raises ValueError with what is accepted as its message. ``parse``: whether what a
    command line or a notebook hands over will do: "8/255" and "5" as numbers, 5.0 as a whole number, "true".

    Raises:
        ValueError, WrongTypeError: `NAME = VALUE: accepted is ...`.
    """
    if accepted is int or accepted is float:
        accepted = Within(kind=int if accepted is int else float)
    if isinstance(accepted, Within):
        return _number_within(name, value, accepted, parse)
    if accepted is bool:
        value = {"true": True, "false": False}.get(value.lower(), value) if parse and isinstance(value, str) else value
        return value if isinstance(value, bool) else refuse(name, value, "True or False", WrongTypeError)
    if accepted is str:
        return value if isinstance(value, str) else refuse(name, value, "text", WrongTypeError)
    if isinstance(accepted, Collection):
        if isinstance(value, str) and value in accepted:
            return value
        return refuse(name, value, ", ".join(accepted) + did_you_mean(value, accepted))
    try:
        return accepted(value)
    except ValueError as error:
        return refuse(name, value, str(error))


def refuse(name: str, value: Any, accepted: str, error: type[ValueError] = ValueError) -> NoReturn:
    """Raises the error that names the argument, its value and what is accepted."""
    raise error(f"{name} = {value!r}: accepted is {accepted}") from None


def did_you_mean(given: Any, known: Iterable[str]) -> str:
    """A hint at the known word that is most like what was given; empty if none is."""
    close = difflib.get_close_matches(str(given), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def number(value: Any) -> float:
    """A finite number, or one written as text such as "8/255"; else ValueError with what is accepted."""
    if isinstance(value, str):
        top, _, bottom = value.partition("/")
        divisor = float(bottom or 1)
        value = float(top) / divisor if divisor else math.nan
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError("a finite number")
    with suppress(OverflowError):  # of whole numbers that no float holds
        if math.isfinite(found := float(value)):
            return found
    raise ValueError("a finite number")


def _whole(value: Any) -> float | int:
    """As `number`, but a whole number as it is: a float holds 53 bits of it."""
    value = int(value) if isinstance(value, str) and value.strip().lstrip("+-").isdigit() else value
    return value if isinstance(value, int) and not isinstance(value, bool) else number(value)


def tidy(value: Any) -> Any:
    """A float that is a short decimal but for rounding, as .1 + .2 is .3; all else as it is."""
    if not isinstance(value, float) or not math.isfinite(value):
        return value
    decimal = float(f"{value:.12g}")
    return decimal if abs(decimal - value) <= 4 * math.ulp(value) else value


def _number_within(name: str, value: Any, accepted: Within, parse: bool) -> float | int:
    says = accepted.text('a number (0.1 or "8/255")' if parse else "a finite number")
    found = value
    if parse:
        try:
            found = _whole(value) if accepted.kind is int else number(value)
        except ValueError:
            refuse(name, value, says)
        found = int(found) if accepted.kind is int and found == int(found) else found
    kind = Integral if accepted.kind is int else Real
    if isinstance(found, bool) or not isinstance(found, kind):
        refuse(name, value, says, WrongTypeError)
    if not accepted.holds(found):
        refuse(name, value, says)
    return int(found) if isinstance(found, Integral) else float(found)
