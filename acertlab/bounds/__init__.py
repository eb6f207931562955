"""Bounds of a network's outputs over a box of inputs: rules, interval propagation, CROWN family, rounding."""

from acertlab.bounds.box import Box as Box
from acertlab.bounds.ibp import freeze as freeze, propagate as propagate
from acertlab.bounds.margin import certified_margin as certified_margin, clean_margin as clean_margin
from acertlab.bounds.rules.dispatch import rule as rule
