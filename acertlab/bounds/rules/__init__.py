"""One interval rule for each layer and function."""

from acertlab.bounds.rules.affine import (
    BATCH_STATISTICS as BATCH_STATISTICS,
)
from acertlab.bounds.rules.affine import (
    Affine as Affine,
)
from acertlab.bounds.rules.affine import (
    IntervalAffine as IntervalAffine,
)
from acertlab.bounds.rules.affine import (
    Normalize as Normalize,
)
from acertlab.bounds.rules.affine import (
    Scale as Scale,
)
from acertlab.bounds.rules.affine import (
    batch_norm_scale as batch_norm_scale,
)
from acertlab.bounds.rules.affine import (
    convolve as convolve,
)
from acertlab.bounds.rules.affine import (
    evaluate as evaluate,
)
from acertlab.bounds.rules.affine import (
    normalisation as normalisation,
)
from acertlab.bounds.rules.affine import (
    scaled as scaled,
)
from acertlab.bounds.rules.batch_invariance import batch_invariant as batch_invariant
from acertlab.bounds.rules.batch_invariance import batch_invariant_matmul as batch_invariant_matmul
from acertlab.bounds.rules.dispatch import has_rule as has_rule
from acertlab.bounds.rules.dispatch import rule as rule
from acertlab.bounds.rules.functions import FUNCTIONS as FUNCTIONS
from acertlab.bounds.rules.functions import TENSOR_METHODS as TENSOR_METHODS
from acertlab.bounds.rules.layers import (
    at_both_ends as at_both_ends,
)
from acertlab.bounds.rules.layers import (
    interpolate as interpolate,
)
from acertlab.bounds.rules.layers import (
    piecewise_linear as piecewise_linear,
)
from acertlab.bounds.rules.layers import (
    refuse_active_dropout as refuse_active_dropout,
)
from acertlab.bounds.rules.layers import (
    refuse_softmax as refuse_softmax,
)
from acertlab.bounds.rules.layers import (
    relu as relu,
)
from acertlab.bounds.rules.layers import (
    unimodal as unimodal,
)
