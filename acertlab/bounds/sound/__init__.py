"""Bounds that hold in spite of rounding.

What ``sound=True`` and ``sound="float32"`` cover, by the operators that `torch.export` names:

| operators | why |
| --- | --- |
| relu, relu6, abs, neg, sign, maximum, minimum; changes of shape, selections, max pooling | no rounding |
| sort, topk, kthvalue, median, cummin, aminmax | each value is one of the inputs |
| linear layers and convolutions of stored weights, BatchNorm (folded or apart), Normalize | sums of products |
| add, sub, mul, div (by constants), mean, sum, avg_pool, adaptive_avg_pool, leaky_relu, prelu | relative error |
| hardtanh, clamp, clamp_min, clamp_max, pad, constant_pad_nd | their constants alone are rounded |

All else is refused by name: weights that forward makes (weight_norm, spectral_norm, parametrisations), transposed
convolutions, and functions of which no library states an error, such as tanh, sigmoid, gelu, exp, softmax, layer_norm.

Example:
    >>> al.certified_radius(model, x, y, eps_max=0.5, sound=True).radius <= 0.25
    tensor([True])
"""

from acertlab.bounds.sound.network import (
    SoundNetwork as SoundNetwork,
    prepare_sound as prepare_sound,
    rounding_example as rounding_example,
)
from acertlab.bounds.sound.rounding import ROUNDINGS as ROUNDINGS, Rounding as Rounding, sound_rule as sound_rule
