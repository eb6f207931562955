"""auto_LiRPA as an independent computation of the same bounds; the only file that imports it.

Works with the published 0.3 and with 0.7.x. Version 0.3 was written for older numpy and torch and looks up three names
that are gone; they are put back only if the imported version lacks them.

Source: Xu et al. 2020, "Automatic perturbation analysis for scalable certified robustness and beyond".
"""

import copy
import importlib
import sys
import types
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acertlab.rules import Box

METHODS = {"ibp": "IBP"}


def import_auto_lirpa() -> Any:
    """The module auto_LiRPA, with what its version 0.3 misses in today's numpy and torch.

    Raises:
        ImportError: auto_LiRPA is not installed; the message says how to install it.
    """
    if not hasattr(np.lib, "arraysetops"):
        arraysetops = types.ModuleType("numpy.lib.arraysetops")
        arraysetops.isin = np.isin
        np.lib.arraysetops = sys.modules["numpy.lib.arraysetops"] = arraysetops
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        symbolic_helper = importlib.import_module("torch.onnx.symbolic_helper")  # torch.onnx has another by that name
        if not hasattr(symbolic_helper, "_set_opset_version"):
            symbolic_helper._set_opset_version = lambda version: None
        if not hasattr(torch._C.Node, "__getitem__"):
            torch._C.Node.__getitem__ = symbolic_helper._node_get
        try:
            import auto_LiRPA
        except ModuleNotFoundError as error:
            raise ImportError(
                "auto_LiRPA is not installed; `pip install --no-deps auto_LiRPA==0.3` (it declares torch < 1.13, but "
                "runs on today's), or version 0.7.1 from its repository"
            ) from error
    return auto_LiRPA


def margins(model: nn.Module, box: Box, y: Tensor, *, bound: str = "ibp", merged: bool = True) -> Tensor:
    """auto_LiRPA's upper bounds of logit_i - logit_y over ``box``; the counterpart of `Frozen.margins`.

    Args:
        model: in evaluation mode; it is copied, never changed.
        box: (B, ...) input box.
        y: (B,) int64 labels.
        bound: "ibp".
        merged: pass the difference as the specification (merged into the last layer), or take it of logit bounds.

    Returns:
        (B, classes), column y is 0.

    Raises:
        ValueError: ``bound`` is unknown.
        ImportError: auto_LiRPA is not installed.
    """
    if bound not in METHODS:
        raise ValueError(f"bound: {bound!r} is unknown; choose from {', '.join(map(repr, METHODS))}")
    lirpa = import_auto_lirpa()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        classes = model(box.lower[:1]).shape[1]
        bounded = lirpa.BoundedModule(copy.deepcopy(model), torch.empty_like(box.lower), device=box.lower.device)
        perturbation = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=box.lower, x_U=box.upper)
        x = lirpa.BoundedTensor(box.center, perturbation)
        specification = None
        if merged:
            eye = torch.eye(classes, dtype=box.lower.dtype, device=box.lower.device)
            specification = eye.unsqueeze(0) - eye[y].unsqueeze(1)  # (B, i, class): logit_i - logit_y
        lower, upper = bounded.compute_bounds(x=(x,), C=specification, method=METHODS[bound])
    own = y.unsqueeze(1)
    return upper if merged else (upper - lower.gather(1, own)).scatter(1, own, 0.0)
