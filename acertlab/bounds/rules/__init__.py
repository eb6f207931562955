"""One interval rule for every operator, and those of users for modules of their own."""

from acertlab.bounds.rules.affine import Affine as Affine
from acertlab.bounds.rules.affine import IntervalAffine as IntervalAffine
from acertlab.bounds.rules.affine import Normalize as Normalize
from acertlab.bounds.rules.affine import Scale as Scale
from acertlab.bounds.rules.batch_invariance import batch_invariant as batch_invariant
from acertlab.bounds.rules.batch_invariance import batch_invariant_matmul as batch_invariant_matmul
from acertlab.bounds.rules.dispatch import has_rule as has_rule
from acertlab.bounds.rules.dispatch import rule as rule
from acertlab.bounds.rules.elementwise import at_both_ends as at_both_ends
from acertlab.bounds.rules.elementwise import falling as falling
from acertlab.bounds.rules.elementwise import unimodal as unimodal
from acertlab.bounds.rules.table import RULES as RULES
