"""One interval rule for each layer and function."""

from acertlab.bounds.rules.affine import (
    BATCH_STATISTICS as BATCH_STATISTICS,
    Affine as Affine,
    IntervalAffine as IntervalAffine,
    Normalize as Normalize,
    Scale as Scale,
    batch_norm_scale as batch_norm_scale,
    convolve as convolve,
    evaluate as evaluate,
    normalisation as normalisation,
    scaled as scaled,
)
from acertlab.bounds.rules.batch_invariance import (
    batch_invariant as batch_invariant,
    batch_invariant_matmul as batch_invariant_matmul,
)
from acertlab.bounds.rules.dispatch import has_rule as has_rule, rule as rule
from acertlab.bounds.rules.functions import FUNCTIONS as FUNCTIONS, TENSOR_METHODS as TENSOR_METHODS
from acertlab.bounds.rules.layers import (
    at_both_ends as at_both_ends,
    interpolate as interpolate,
    piecewise_linear as piecewise_linear,
    refuse_active_dropout as refuse_active_dropout,
    refuse_softmax as refuse_softmax,
    relu as relu,
    unimodal as unimodal,
)
