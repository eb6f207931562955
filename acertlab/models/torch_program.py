"""Networks from program files, of TorchScript or `torch.export`, as modules that every bound of this package takes."""

import os
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from acertlab.bounds.graph.output import SelectedOutput, outputs_told
from acertlab.models.architectures import Stats
from acertlab.models.onnx import check_same
from acertlab.models.state_dict import existing_file, normalised

SOFTMAX = (
    *(nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax),
    *(torch.ops.aten.softmax, torch.ops.aten._softmax, torch.ops.aten.log_softmax, torch.ops.aten._log_softmax),
)
RESHAPING = tuple(getattr(torch.ops.aten, name) for name in ("view", "reshape", "squeeze", "flatten", "unsqueeze"))
SAMPLES = 4  # of either kind, at least, on which the converted network must agree with the file


def load_program(
    path: str | Path,
    *,
    input_shape: Sequence[int] | None = None,
    output: str | int | None = None,
    mean: Stats = None,
    std: Stats = None,
) -> nn.Module:
    """A classifier from a file of `torch.jit.save` or `torch.export.save`, in evaluation mode, for batches of any size.

    The program is run once, and becomes a module that runs the same operators, for batches of any size: one that is
    fixed in the file is lifted. A final softmax is dropped, and of one number a sample a final sigmoid. The result is
    compared with the file's own outputs on random inputs.

    A program runs what it holds: load none whose origin you do not trust. Pickled code in it is refused.

    Args:
        path: The file.
        input_shape: Shape of one sample, without the batch: TorchScript does not tell it.
        output: Name or place of the output that holds the logits, where the program has several.
        mean, std: As in `load_weights`.

    Returns:
        A module (B, ...) -> (B, classes), or (B, 1) of one logit, float32, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No such file's content; a network that depends on data or on the batch, or whose form for any batch
            computes something else.

    Example:
        >>> torch.export.save(torch.export.export(al.models.mlp((4,), 2).eval(), (torch.rand(1, 4),)), "net.pt2")
        >>> al.load_program("net.pt2")(torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """
    path = existing_file(path)
    program, batch, declared = _read_program(path)
    program = program if output is None else SelectedOutput(program, output)
    shape = tuple(input_shape or declared)
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"input_shape: {path} leaves the shape of a sample open; give it (without the batch)")
    dtype = next((t.dtype for t in program.state_dict().values() if t.is_floating_point()), torch.float32)
    # whole batches, of pixels and of numbers far beyond: what a change in place does to other names shows in those
    sizes, generator = (-(-SAMPLES // batch) * batch, *shape), torch.Generator().manual_seed(0)
    x = torch.cat([torch.rand(sizes, generator=generator), 3 * torch.randn(sizes, generator=generator)]).to(dtype)
    try:
        with torch.no_grad():
            traced = make_fx(program, pre_dispatch=True)(x[:batch])
    except Exception as error:  # a program raises any kind
        raise ValueError(
            f"path: the network of {path} cannot be traced with a batch of {batch} of shape {shape}: {error}. Another "
            "input_shape, or its state dict and architecture in load_weights, may help"
        ) from error
    if not isinstance(traced.graph.output_node().args[0], fx.Node):
        told = outputs_told(program(x[:batch]))
        raise ValueError(f"output: the network of {path} has several, {told}; give the name or place of one")
    with torch.no_grad():
        model = _for_any_batch(traced)
        check_same(model, lambda part: program(torch.from_numpy(part)).numpy(), x, path, batch)
    return normalised(drop_softmax(model).float(), mean, std).eval()


def _read_program(path: Path) -> tuple[nn.Module, int, Sequence[Any]]:
    """The program, which batch it may be run with, and the shape of a sample where the file tells it."""
    try:
        with zipfile.ZipFile(path) as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return torch.jit.load(path, map_location="cpu").eval(), 1, ()
            if not any("models/" in name or "exported_program" in name for name in names):
                raise ValueError("a state dict goes to load_weights")
            exported = _read_exported(path, archive)
    except Exception as error:  # torch raises any kind
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        why = f"it holds pickled code ({code[1]}), which is not run" if code else error
        raise ValueError(f"path: {path} is no TorchScript or torch.export file, or is damaged: {why}") from error
    inputs = list(exported.graph_signature.user_inputs)
    if len(inputs) != 1:
        raise ValueError(f"path: the network of {path} has {len(inputs)} inputs; accepted is one")
    entry = next(node for node in exported.graph.nodes if node.name == inputs[0])
    batch, *shape = entry.meta["val"].shape
    return exported.module().cpu(), batch if isinstance(batch, int) else 2, shape


def _read_exported(path: Path, archive: zipfile.ZipFile) -> torch.export.ExportedProgram:
    """`torch.export.load`, which would unpickle anything, with tensors only."""
    tables = (entry for entry in archive.infolist() if entry.filename.endswith("constants_config.json"))
    if any(b"_obj" in archive.read(entry) for entry in tables):
        raise ValueError("it holds pickled code, which is not run")
    with mock.patch.dict(os.environ, {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1"}), open(path, "rb") as file:
        return torch.export.load(file)


def _for_any_batch(traced: fx.GraphModule) -> fx.GraphModule:
    """Lifts the batch size that changes of shape name; in place."""
    for node in reversed(traced.graph.nodes):  # what asked for a size fixes it
        if node.op == "call_function" and not node.users and not node.is_impure():
            traced.graph.erase_node(node)
    for node in traced.graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if name in ("view", "reshape", "_unsafe_view"):
            node.target = torch.ops.aten.reshape.default  # another batch may lie otherwise in memory
            node.args = (node.args[0], [-1, *node.meta["val"].shape[1:]])
        elif name == "expand":
            node.args = (node.args[0], [-1, *node.args[1][1:]], *node.args[2:])
    traced.recompile()
    return traced.eval()


def drop_softmax(model: fx.GraphModule) -> fx.GraphModule:
    """The model without its last operation, a softmax, or a sigmoid of one number perhaps reshaped since; in place."""
    output = next(node for node in model.graph.nodes if node.op == "output")
    last = output.args[0]
    value = last.meta.get("val")
    one = isinstance(value, Tensor) and value.shape[1:].numel() == 1
    while one and getattr(last.target, "overloadpacket", None) in RESHAPING:
        last = last.args[0]
    called = type(model.get_submodule(last.target)) if last.op == "call_module" else last.target
    called = getattr(called, "overloadpacket", called)
    if called in SOFTMAX or (one and called is torch.ops.aten.sigmoid):
        last.replace_all_uses_with(last.args[0])
        model.graph.erase_node(last)
        model.recompile()
    return model
