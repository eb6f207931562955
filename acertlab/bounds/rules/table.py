"""One interval rule for every operator: the table."""

from collections.abc import Callable
from typing import Any

from acertlab.bounds.rules import affine, elementwise, products, shapes

RULES: dict[Any, Callable[..., Any]] = {**affine.RULES, **elementwise.RULES, **shapes.RULES, **products.RULES}
