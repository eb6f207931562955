"""auto_LiRPA 0.3 in today's numpy and torch: what it misses, and its errors explained."""

import importlib
import inspect
import io
import logging
import re
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage]  # its public name all the same

from acertlab._memory import out_of_memory
from acertlab.bounds.crown.relaxations import UnprovedError
from acertlab.bounds.graph.output import innermost


def bounded_module(model: nn.Module, blank: Tensor, mode: str = "patches") -> Any:
    """auto_LiRPA's own ``BoundedModule`` of a model, in whichever mode it is, traced on ``blank``; nothing checked."""
    settings = _onnx_settings()
    version = settings.export_onnx_opset_version
    # 0.3 confuses the shapes of sparse slopes
    options = {"conv_mode": mode, "sparse_features_alpha": False, "sparse_spec_alpha": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            converted = import_auto_lirpa().BoundedModule(model, blank, options, blank.device)
        finally:
            settings.export_onnx_opset_version = version
    theirs = tuple(path for name in ("torch", "auto_LiRPA") for path in sys.modules[name].__path__)
    for warning in caught:
        if issubclass(warning.category, TracerWarning) and not warning.filename.startswith(theirs):
            where = f"{Path(warning.filename).name}, line {warning.lineno}"
            raise TypeError(f"forward makes a Python value of a tensor ({where}), so its trace may not hold elsewhere")
    return converted


def _onnx_settings() -> Any:
    """Where torch keeps the ONNX version to trace for: a global, which 0.3 sets."""
    return importlib.import_module("torch.onnx.utils")._optimize_graph.__globals__["GLOBALS"]


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """auto_LiRPA makes some matrices in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _explained(model: nn.Module) -> Iterator[None]:
    """Keeps auto_LiRPA's prints, logs and warnings inside; makes its failures, but of memory, one TypeError."""
    said = io.StringIO()
    handler, logger = logging.StreamHandler(said), logging.getLogger("auto_LiRPA")
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings(), redirect_stdout(said):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        if out_of_memory(error) or isinstance(error, UnprovedError):
            raise
        operations = sorted(set(re.findall(r"(?:onnx|aten|prim)::\w+", said.getvalue() + str(error))))
        last_line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        what = f"the operation {', '.join(operations)} is unsupported" if operations else last_line
        raise TypeError(
            f"model: auto_LiRPA cannot bound {type(innermost(model)).__name__}: {what}. Write that layer in other "
            "terms, or give its module an interval rule (acertlab.rule.register) and use bound='ibp'"
        ) from error
    finally:
        logger.removeHandler(handler)


def import_auto_lirpa() -> Any:
    """The module auto_LiRPA, with what its version 0.3 misses in today's numpy and torch."""
    if (known := sys.modules.get("auto_LiRPA")) is not None:
        return known
    if not hasattr(np.lib, "arraysetops"):
        arraysetops = types.ModuleType("numpy.lib.arraysetops")
        arraysetops.isin = np.isin  # pyright: ignore[reportAttributeAccessIssue]  # gone today
        sys.modules["numpy.lib.arraysetops"] = arraysetops
        np.lib.arraysetops = arraysetops  # pyright: ignore[reportAttributeAccessIssue]  # gone today
    handlers, disabled = logging.root.handlers[:], logging.root.manager.disable
    recursion = sys.getrecursionlimit()
    with warnings.catch_warnings(record=True):  # recorded: it sets filters of its own
        warnings.simplefilter("ignore")
        symbolic_helper = importlib.import_module("torch.onnx.symbolic_helper")  # torch.onnx has another by that name
        if not hasattr(symbolic_helper, "_set_opset_version"):
            settings = _onnx_settings()
            set_version = partial(setattr, settings, "export_onnx_opset_version")
            symbolic_helper._set_opset_version = set_version  # pyright: ignore[reportAttributeAccessIssue]  # gone
        if not hasattr(torch._C.Node, "__getitem__"):
            torch._C.Node.__getitem__ = symbolic_helper._node_get
        logging.disable(logging.WARNING)
        try:
            import auto_LiRPA
        except ModuleNotFoundError as error:
            raise ImportError(
                "auto_LiRPA is not installed; `pip install --no-deps auto_LiRPA==0.3` (it declares torch < 1.13, but "
                "runs on today's), or version 0.7.1 from its repository"
            ) from error
        finally:
            logging.disable(disabled)
            logging.root.handlers[:] = handlers  # it configures the root logger,
            sys.setrecursionlimit(recursion)  # and raises this to a million
    logging.getLogger("auto_LiRPA").propagate = False
    named = auto_LiRPA.BoundedModule._named_members
    if "remove_duplicate" not in inspect.signature(named).parameters:

        def named_members(self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, **_: bool) -> Any:
            return named(self, get_members_fn, prefix, recurse)

        auto_LiRPA.BoundedModule._named_members = named_members
    tanh: Any = getattr(importlib.import_module("auto_LiRPA.operators"), "BoundTanh", None)
    if hasattr(tanh, "precompute_relaxation"):  # sigmoid's, too
        tanh.precompute_relaxation = _remembered(tanh.precompute_relaxation)
    return auto_LiRPA


def _remembered(precompute: Callable[..., None]) -> Callable[..., None]:
    """Tables of tangents, made once: they depend on the function alone, and take a second for each tanh."""
    tables: dict[Any, dict[str, Any]] = {}

    def once(self: Any, function: Any, *args: Any) -> None:
        key = (function, self.device, torch.get_default_dtype())
        if key not in tables:
            before = set(vars(self))
            precompute(self, function, *args)
            tables[key] = {name: value for name, value in vars(self).items() if name not in before}
        vars(self).update(tables[key])

    return once
