"""`rule`: the interval rule of a layer, by its type."""

from functools import singledispatch

from torch import nn

from acertlab.bounds.box import Box


@singledispatch
def rule(layer: nn.Module, box: Box) -> Box:
    """The box that holds ``layer(x)`` for every x in ``box``; dispatched on the type of ``layer``.

    Give your own layer a rule with::

        @acertlab.rule.register(MyLayer)
        def my_rule(layer, box):
            return acertlab.Box(lower, upper)
    """
    raise TypeError(f"no interval rule for a layer of type {type(layer).__name__}")


def has_rule(layer: nn.Module) -> bool:
    """Whether `rule` bounds what ``layer`` computes: not where it inherits a rule, but has a forward of its own."""
    known = next((kind for kind in type(layer).__mro__ if kind in rule.registry), object)
    return (
        known is not object and "forward" not in vars(layer) and type(layer).forward is getattr(known, "forward", None)
    )
