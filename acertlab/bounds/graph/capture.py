"""The graph of what a network computes: the ATen operators that its own forward runs, captured by ``torch.export``.

`capture` runs the real forward once, on tensors without values and with a batch of any size; hooks, in-place changes,
views, weights that are made on the way and Python's own control flow leave a functional graph of operators. A module
with a rule of the user's own (`acertlab.rule`) stays whole, as one operator.
"""

import contextlib
import functools
import gc
import inspect
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from acertlab.bounds.graph.functional import defined_by_others, made_functional, simplified
from acertlab.bounds.graph.structure import WHOLE_MODULE, Graph, WholeCall, whole_shapes
from acertlab.bounds.rules.dispatch import has_rule

WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}


def capture(model: nn.Module, x: Tensor) -> Graph:
    """The graph of what ``model`` computes of samples such as ``x``, in the mode (training or not) that it is in.

    Args:
        model: any module; left exactly as it was.
        x: (B, ...) one sample or more: their shape, dtype and device count, the values do not.

    Raises:
        TypeError: not a module, or its forward cannot be captured; the message says why and what to do.
        ValueError: outputs are random.
    """
    check_module(model)
    blank = x.detach()[:1].expand(3, *x.shape[1:]).clone() if len(x) else x.new_zeros(3, *x.shape[1:])
    device = x.device.type
    autocast = (
        torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext()
    )
    with (
        torch.no_grad(),
        _slow_attention(),
        _as_before(model),
        _modules_whole(model, blank) as whole,
        _quiet(),
        autocast,
    ):
        batch: Any = ({0: torch.export.Dim.DYNAMIC},)
        if any(p.kind is p.VAR_POSITIONAL for p in [*inspect.signature(model.forward).parameters.values()][:1]):
            batch = (batch,)
        program, why = None, ""
        try:
            program = torch.export.export(model, (blank,), dynamic_shapes=batch, strict=False)
            if (by_others := defined_by_others(program)) or not made_functional(program.graph):
                program = program.run_decompositions(by_others)  # three times as slow as what comes before
        except Exception as error:  # forward is anybody's code, and torch.export raises many kinds
            program, why = None, _why_not(model, error)
        if program is None:
            gc.collect()  # what is left of a broken capture complains as it goes: here, where it is quiet
            raise TypeError(why)
        return simplified(program, tuple(whole))


def check_module(model: nn.Module) -> None:
    """Refuses what is no module, or only wraps one."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: must be a torch.nn.Module, not {type(model).__name__}")
    if (kind := type(model).__name__) in WRAPPERS:
        raise TypeError(f"model: is wrapped in {kind}; give the model inside, model.{WRAPPERS[kind]}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            what = f"'{name}' is a" if name else "is a"
            raise TypeError(
                f"model: {what} {type(module).__name__}, whose operators are hidden; save it by torch.jit.save and "
                "read it by acertlab.load_program"
            )


@contextlib.contextmanager
def _as_before(model: nn.Module) -> Iterator[None]:
    """Puts back, afterwards, the attributes that hooks and forward set: they hold tensors without values."""
    tables = ("_parameters", "_buffers", "_modules")
    before = [(m, dict(vars(m)), [dict(vars(m)[name]) for name in tables]) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in zip(tables, contents, strict=True):
                table = vars(module)[name]
                if list(table.items()) != list(content.items()):
                    table.clear()
                    table.update(content)


@contextlib.contextmanager
def _modules_whole(model: nn.Module, x: Tensor) -> Iterator[list[WholeCall]]:
    """Inside, modules with a rule of their own call one operator; hooks on them are run and captured as always.

    Their forward may be anything, so it is not run without values: the shapes of its results are those of a run on x.
    """
    calls: list[WholeCall] = []
    shapes: list[tuple[int, ...]] = []
    layers = {path: module for path, module in model.named_modules() if has_rule(module)}

    def note(path: str, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        out = forward(*args, **kwargs)
        if not isinstance(out, Tensor) or len(out) != len(x):
            raise TypeError(f"model: '{path}', which has a rule of its own, must return one tensor, a row a sample")
        shapes.append(tuple(out.shape[1:]))
        return out

    def call(path: str, forward: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        leaves, structure = tree_flatten((args, kwargs))
        plain = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        calls.append(WholeCall(path, structure, plain))
        return WHOLE_MODULE([leaf for leaf in leaves if isinstance(leaf, Tensor)], len(calls) - 1)

    def replace(forward: Callable[..., Tensor]) -> None:
        for path, module in layers.items():
            vars(module).pop("forward", None)
            module.forward = functools.wraps(module.forward)(functools.partial(forward, path, module.forward))

    if layers:
        with torch.no_grad(), state_kept(model):
            replace(note)
            model(x.clone())
        replace(call)
    token = whole_shapes.set(shapes)
    try:
        yield calls
    finally:
        whole_shapes.reset(token)


@contextlib.contextmanager
def state_kept(model: nn.Module) -> Iterator[None]:
    """Puts buffers and attributes back: running statistics move in training mode, and hooks set attributes."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    with _as_before(model), _slow_attention():
        try:
            yield
        finally:
            for buffer, before in buffers:  # a batch_norm changes them without counting it as a change
                if not ((buffer == before) | ((buffer != buffer) & (before != before))).all():
                    buffer.copy_(before)


def changes(tensor: Tensor) -> int:
    """How often it was changed in place; -1 in inference mode, where nobody counts."""
    return -1 if tensor.is_inference() else tensor._version


@contextlib.contextmanager
def _slow_attention() -> Iterator[None]:
    """Without the kernel for a whole layer of attention, which has no rule and another arithmetic."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch.export tells of its failures on stderr as well, and writes a log of its steps."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.__trace")]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    try:
        sys.unraisablehook = lambda _: None
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _why_not(model: nn.Module, error: Exception) -> str:
    said = " ".join(line.strip() for line in str(error).strip().splitlines()[:3]) or type(error).__name__
    if "data-dependent" in said or "DataDependent" in type(error).__name__:
        why = f"its control flow depends on the values of tensors ({said}). Write it by torch.where, or move that part "
        why += "into a module of its own and give it a rule (acertlab.rule)"
    elif "Constraints violated" in said:
        why = "it fixes the size of the batch; write it for batches of any size (x.shape[0], not len(x))"
    else:
        why = f"{type(error).__name__}: {said}"
    return f"model: the forward of {type(model).__name__} cannot be captured: {why}"
