"""Which rule is whose: one table for all operators, and those of users for modules of their own, which stay whole."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

from torch import nn

from acertlab.bounds.box import Box
from acertlab.bounds.rules import affine, elementwise, norms, products, shapes

RULES: dict[Any, Callable[..., Any]] = affine.RULES | elementwise.RULES | shapes.RULES | products.RULES | norms.RULES


@singledispatch
def rule(layer: nn.Module, box: Box) -> Box:
    """The box that holds ``layer(x)`` for every x in ``box``.

    Of any module: the bounds of the operators that its forward runs. Give a module of your own a rule with::

        @acertlab.rule.register(MyLayer)
        def my_rule(layer, box):
            return acertlab.Box(lower, upper)

    Further arguments of its forward are handed on, boxes where they depend on the input.

    Example:
        >>> al.rule(torch.nn.ReLU(), al.Box(torch.tensor([-2.0]), torch.tensor([3.0])))
        Box(lower=tensor([0.]), upper=tensor([3.]))
    """
    raise TypeError(f"layer: must be a torch.nn.Module, not {type(layer).__name__}")


def has_rule(layer: nn.Module) -> bool:
    """Whether a registered rule speaks of what ``layer`` computes: a parent's does where forward is the parent's."""
    known = next((kind for kind in type(layer).__mro__ if kind in rule.registry), object)
    if known in (object, nn.Module) or "forward" in vars(layer):
        return False
    return type(layer).forward is getattr(known, "forward", None)
