"""One interval rule for every operator, and those of users for modules of their own.

Example:
    >>> al.rules.rule(torch.nn.ReLU(), al.Box.around(x, 0.1)).upper
    tensor([[0.3000, 0.8000]])
"""

from acertlab.bounds.rules.affine import (
    Affine as Affine,
    IntervalAffine as IntervalAffine,
    Normalize as Normalize,
    Scale as Scale,
)
from acertlab.bounds.rules.batch_invariance import (
    batch_invariant as batch_invariant,
    batch_invariant_matmul as batch_invariant_matmul,
)
from acertlab.bounds.rules.dispatch import RULES as RULES, has_rule as has_rule, rule as rule
from acertlab.bounds.rules.elementwise import at_both_ends as at_both_ends, falling as falling, unimodal as unimodal
