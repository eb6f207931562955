"""The parameters of a notebook, checked before it runs."""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Mapping
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


def check_parameters(
    namespace: Mapping[str, Any], spec: Mapping[str, type | tuple[str, ...] | Callable[[Any], Any]]
) -> dict[str, Any]:
    """The parameters of a notebook, coerced and checked: called with `globals()` right after the parameters cell.

    Papermill only logs a name that the notebook does not know and hands "8/255" over as text; here the first is an
    error, and the second is a number.

        eps_max, method, seed = check_parameters(globals(), {
            "eps_max": Within(0, 1, open_low=True), "method": ("ibp", "acert"), "seed": int}).values()

    Args:
        namespace: The notebook's `globals()`.
        spec: From a parameter's name to what it may be: `str`, `bool`, `int` or `float`; a tuple of the words
            accepted; a `Within`; or any function that returns the coerced value or raises ValueError with what is
            accepted as its message.

    Returns:
        The values, by name, in the order of `spec`.

    Raises:
        ValueError: A parameter is missing, of the wrong kind or out of range, or papermill injected a name that is
            not in `spec`; the message names the parameter, the value and what is accepted.
    """
    for name in _injected_names(namespace):
        if name not in spec:
            close = difflib.get_close_matches(name, spec, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{name!r} is not a parameter of this notebook{hint}; accepted are {', '.join(spec)}")
    missing = [name for name in spec if name not in namespace]
    if missing:
        raise ValueError(f"the parameters cell does not set {', '.join(missing)}: run it first")
    return {name: _coerced(name, namespace[name], accepted) for name, accepted in spec.items()}


def _injected_names(namespace: Mapping[str, Any]) -> list[str]:
    """What papermill's own cell assigns. Other variables are the notebook's: its cells may be run in any order."""
    cells = [source for source in namespace.get("In", ()) if source.startswith("# Parameters")]
    targets = [target for source in cells for node in ast.parse(source).body if isinstance(node, ast.Assign)
               for target in node.targets]  # fmt: skip
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _coerced(name: str, value: Any, accepted: type | tuple[str, ...] | Callable[[Any], Any]) -> Any:
    if isinstance(accepted, tuple):
        if value in accepted:
            return value
        close = difflib.get_close_matches(str(value), accepted, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"parameter {name} = {value!r}: accepted are {', '.join(accepted)}{hint}")
    if accepted in (str, bool):
        if accepted is bool and str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        if not isinstance(value, accepted):
            wanted = "text" if accepted is str else "True or False"
            raise ValueError(f"parameter {name} = {value!r}: accepted is {wanted}")
        return value
    check = Within(kind=accepted) if accepted in (int, float) else accepted
    try:
        return check(value)
    except ValueError as error:
        wanted = str(check) if isinstance(check, Within) else str(error)
        raise ValueError(f"parameter {name} = {value!r}: accepted is {wanted}") from None
