"""Rules for modules of the user's own, which stay whole where they are called."""

from functools import singledispatch
from typing import Any

from torch import nn

from acertlab.bounds.box import Box


@singledispatch
def rule(layer: nn.Module, box: Box) -> Box:
    """The box that holds ``layer(x)`` for every x in ``box``.

    Of any module: the bounds of the operators that its forward runs. Give a module of your own a rule with::

        @acertlab.rule.register(MyLayer)
        def my_rule(layer, box):
            return acertlab.Box(lower, upper)

    Further arguments of its forward are handed on, boxes where they depend on the input.
    """
    raise TypeError(f"layer: must be a torch.nn.Module, not {type(layer).__name__}")


def has_rule(layer: nn.Module) -> bool:
    """Whether a registered rule speaks of what ``layer`` computes: not where only its parent has one, and forward
    is another."""
    known = next((kind for kind in type(layer).__mro__ if kind in rule.registry), object)
    return known not in (object, nn.Module) and "forward" not in vars(layer) and type(layer).forward is known.forward


def refuse(why: str) -> Any:
    """A rule that refuses."""

    def refused(*args: Any, **kwargs: Any) -> Box:
        raise TypeError(f"model: {why}")

    refused.why = why

    return refused
