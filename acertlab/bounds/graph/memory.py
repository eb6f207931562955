"""Graphs remembered for a model until anything changes that its forward could ask for."""

import functools
import types
from collections import deque
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from acertlab.bounds.graph.capture import capture, check_module
from acertlab.bounds.graph.output import innermost
from acertlab.bounds.graph.structure import Graph
from acertlab.bounds.rules.dispatch import rule

_remembered: WeakKeyDictionary[nn.Module, tuple[Any, Graph]] = WeakKeyDictionary()
_shared: deque[tuple[Any, Graph]] = deque(maxlen=32)  # of any model: such as hold no tensor


def graph_of(model: nn.Module, x: Tensor) -> Graph:
    """`capture`, remembered for a model until anything in it changes that forward could ask for.

    A graph holds no parameter's and no buffer's value, so these may change. Everything else that is reachable from the
    model's attributes counts by value: numbers, texts, modes, hooks with what they enclose, shapes and dtypes, which
    tensors are one and the same, and the code of forward. A model that holds anything else is captured each time.
    Models that are alike in all this share one graph, where all their code is a library's: what a forward of one's own
    may reach, such as a class's attributes, is known well enough of one model, not of another.
    """
    check_module(model)
    (state, alone), inner = _fingerprint(model, x), innermost(model)
    if state is not None:
        known = [_remembered[inner]] if inner in _remembered else []
        for before, graph in known if alone else [*known, *_shared]:
            if before == state:
                _remembered[inner] = before, graph
                return graph
    graph = capture(model, x)
    if state is not None:
        _remembered[inner] = state, graph
        if not alone and all(isinstance(source, str) for source in graph.sources.values()):
            _shared.append((state, graph))
    return graph


def _fingerprint(model: nn.Module, x: Tensor) -> tuple[Any, bool]:
    """A value that is equal as long as capturing gives the same graph, or None where that cannot be told.

    And whether it holds for this model alone: it runs code of its own, or names tensors by their identity.
    """
    parts = _Parts()
    try:
        parts.add(model)
        for name, value in vars(nn.modules.module).items():
            if name.startswith("_global_"):  # hooks on all modules
                parts.add(value)
    except _UnknowableError:
        return None, True
    around = (tuple(x.shape[1:]), x.dtype, x.device, torch.get_default_dtype(), tuple(rule.registry))
    return (*parts.found, *around), parts.alone


class _UnknowableError(Exception):
    """Something whose state cannot be told."""


PLAIN = (
    *(int, complex, str, bytes, bool, type(None), type, range, type(Ellipsis), torch.dtype, torch.device),
    *(torch.layout, torch.memory_format, types.BuiltinFunctionType, types.ModuleType, types.MethodDescriptorType),
)
LIBRARIES = ("torch", "torchvision", "numpy", "acertlab", "builtins")  # whose functions do not change
IN_PYTHON = 1 << 9  # the flag of classes that are written in Python, of whose objects __dict__ is the state


def _in_dict(value: Any) -> bool:
    """Whether all of an object's attributes are in its __dict__: none in slots."""
    return hasattr(value, "__dict__") and not any(vars(kind).get("__slots__") for kind in type(value).__mro__)


def _of_a_library(code: Any) -> bool:
    return (code.__module__ or "").partition(".")[0] in LIBRARIES


class _Parts:
    """Collects what a value is made of, depth first; what was met before counts by its place."""

    def __init__(self) -> None:
        self.found: list[Any] = []
        self.seen: dict[Any, int] = {}
        self.alone = False  # whether other models' parts cannot be the same, though they look so

    def add(self, value: Any) -> None:
        if isinstance(value, PLAIN):
            self.found.append((type(value), value))
        elif isinstance(value, (float, slice)):
            self.found.append((type(value), repr(value)))  # NaN is not equal to itself
        elif id(value) in self.seen:
            self.found.append(("again", self.seen[id(value)]))
        else:
            self.seen[id(value)] = len(self.seen)
            self._add_new(value)

    def _add_new(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._add_tensor(value)
            if not isinstance(value, nn.Parameter):  # forward may branch on it, or hold another one's
                self.found.append((id(value), value._version))
                self.alone = True
        elif isinstance(value, nn.Module):
            self._add_module(value)
        elif isinstance(value, dict):
            self._add_items(value, (item for pair in value.items() for item in pair))
        elif isinstance(value, (list, tuple, set, frozenset)):
            self._add_items(value, value)
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.MethodType):
            self._add_items(value, (value.__func__, value.__self__))
        elif isinstance(value, functools.partial):
            self._add_items(value, (value.func, value.args, value.keywords))
        elif isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            self.found.append(value)
        elif type(value).__flags__ & IN_PYTHON and _in_dict(value):
            self._add_items(value, (type(value).__dict__.get("__call__"), vars(value)))
        else:
            raise _UnknowableError

    def _add_items(self, value: Any, items: Iterable[Any]) -> None:
        self.found.append(type(value))
        for item in items:
            self.add(item)
        self.found.append("end")

    def _add_tensor(self, tensor: Tensor) -> None:
        self.found += (type(tensor), tensor.shape, tensor.dtype, tensor.device, tensor.layout, tensor.requires_grad)
        if tensor.layout == torch.strided and not tensor.is_meta:
            storage = ("storage", tensor.untyped_storage().data_ptr())
            place = self.seen.setdefault(storage, len(self.seen))
            self.found += (place, tensor.storage_offset(), tensor.stride())

    def _add_module(self, module: nn.Module) -> None:
        self.found.append(type(module))
        self.alone |= not _of_a_library(type(module))
        self.add(type(module).forward)
        for name, value in vars(module).items():
            self.found.append(name)
            if name == "_buffers":
                for key, buffer in value.items():
                    self.found.append(key)
                    if isinstance(buffer, Tensor) and id(buffer) not in self.seen:
                        self.seen[id(buffer)] = len(self.seen)
                        self._add_tensor(buffer)  # by name in the graph, so that neither value nor identity counts
                    else:
                        self.add(buffer)
            else:
                self.add(value)

    def _add_function(self, function: types.FunctionType) -> None:
        self.found.append(function.__code__)
        if not _of_a_library(function):
            self.alone = True
            named = function.__globals__
            used = (named[name] for name in function.__code__.co_names if name in named)
            enclosed = (cell.cell_contents for cell in function.__closure__ or ())
            self._add_items(function, (*used, *enclosed, function.__defaults__, function.__kwdefaults__))
