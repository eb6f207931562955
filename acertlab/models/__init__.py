"""Networks: ours, and yours.

Example:
    >>> al.models.cnn7((3, 32, 32), 10)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
"""

from acertlab.models.architectures import (
    MODELS as MODELS,
    ResidualBlock as ResidualBlock,
    cnn7 as cnn7,
    mlp as mlp,
    residual_cnn as residual_cnn,
    small_cnn as small_cnn,
)
from acertlab.models.initialisation import ibp_init_ as ibp_init_
from acertlab.models.onnx import load_onnx as load_onnx
from acertlab.models.state_dict import load_weights as load_weights
from acertlab.models.torch_program import load_program as load_program
