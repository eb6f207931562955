"""Networks from ONNX files, such as VNN-COMP's, as modules that every bound of this package takes.

The only file that imports onnx, onnx2torch and onnxruntime (an extra: ``pip install "acertlab[onnx]"``).
"""

import importlib
import warnings
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

OLDEST_OPSET = 9  # older files are upgraded first
SOFTMAX = (
    *(nn.Softmax, nn.LogSoftmax, F.softmax, F.log_softmax, torch.softmax, torch.log_softmax),
    *(torch.ops.aten.softmax, torch.ops.aten._softmax, torch.ops.aten.log_softmax, torch.ops.aten._log_softmax),
)
SAMPLES = 3  # random inputs on which the converted network must agree with the file's


def load_onnx(path: str | Path, *, input_shape: Sequence[int] | None = None) -> nn.Module:
    """A classifier from an ONNX file, in evaluation mode, for batches of any size.

    The operators become PyTorch layers and functions. A batch size that is fixed in the file (mostly 1) is lifted;
    MatMul and Add become linear layers, so that margins are merged into the last one; a final Softmax is dropped, since
    margins are differences of logits. The result is compared with the file on random inputs, singly and as a batch.

    Args:
        path: The file.
        input_shape: Shape of one sample, without the batch, where the file leaves it open.

    Returns:
        A module (B, ...) -> (B, classes), float32.

    Raises:
        ImportError: One of these packages is not installed; the message says how to install it.
        FileNotFoundError: There is no such file.
        ValueError: Not an ONNX network with one input and one output, an operator that cannot be converted, or a
            network whose batch cannot be lifted or whose converted form computes something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: there is no file {path}")
    onnx, converter, runtime = (_import(name) for name in ("onnx", "onnx2torch", "onnxruntime"))
    proto = _read(onnx, path)
    shape = _sample_shape(proto, path, input_shape)
    x = torch.rand(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = converter.convert(proto).eval()
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(f"path: an operator of {path} cannot be converted to PyTorch: {error}") from error
    try:
        with torch.no_grad():
            model = _flatten(converted, x[:1])
    except Exception as error:  # operators run any code
        raise ValueError(f"path: the network of {path} cannot be traced: {error}") from error
    check_same(model, _reference(runtime, proto, path), x, path)
    return drop_softmax(model)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f'load_onnx needs {name}, which is not installed: pip install "acertlab[onnx]"') from error


def _read(onnx: Any, path: Path) -> Any:
    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's DecodeError is none of Python's own kinds
        raise ValueError(f"path: {path} is not an ONNX file: {error}") from error
    if not proto.graph.node:
        raise ValueError(f"path: {path} is not an ONNX file with a network in it")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    return proto if opset >= OLDEST_OPSET else _import("onnx.version_converter").convert_version(proto, 13)


def _sample_shape(proto: Any, path: Path, given: Sequence[int] | None) -> tuple[int, ...]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    if len(inputs) != 1 or len(proto.graph.output) != 1:
        counts = f"{len(inputs)} inputs and {len(proto.graph.output)} outputs"
        raise ValueError(f"path: the network of {path} has {counts}; accepted is one of each")
    declared = tuple(dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim)  # 0: open
    if declared[:1] > (1,) or (len(declared) < 2 and given is None):
        raise ValueError(f"path: the input of {path} has shape {declared}; accepted is (1 or open, ...)")
    shape = tuple(declared[1:] if given is None else given)
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"input_shape: {path} leaves the shape of a sample open, {shape}; give it (without the batch)")
    return shape


class _Known(fx.Proxy):
    """A traced value of which the value for one sample is known, so that shapes are numbers."""

    value: Any = None

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.dim())
    dtype = property(lambda self: self.value.dtype)
    device = property(lambda self: self.value.device)

    def size(self, *args: int) -> Any:
        return self.value.size(*args)

    def dim(self) -> int:
        return self.value.dim()

    def is_floating_point(self) -> bool:
        return self.value.is_floating_point()


class _Tracer(fx.Tracer):
    """Traces through onnx2torch's modules, while it runs them on one sample."""

    def __init__(self, sample: Tensor) -> None:
        super().__init__()
        self.sample = sample

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val  # weights stay tensors: what is made of them alone is computed, not traced

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Known(node, self)

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *rest: Any, **more: Any) -> fx.Proxy:
        proxy: Any = super().create_proxy(kind, target, args, kwargs, *rest, **more)
        values, named = map_aggregate((args, kwargs), lambda a: a.value if isinstance(a, _Known) else a)
        if kind == "placeholder":
            proxy.value = self.sample
        elif kind != "output":
            owner = self.root.get_submodule(target).forward if kind == "call_module" else target
            call = getattr(values[0], target) if kind == "call_method" else owner
            proxy.value = call(*values[kind == "call_method" :], **named)
        proxy.node.meta["value"] = proxy.value
        return proxy


def _flatten(converted: fx.GraphModule, sample: Tensor) -> fx.GraphModule:
    """onnx2torch's modules taken apart into layers and functions, for any batch, MatMul and Add as linear layers."""
    root = fx.GraphModule(converted, _Tracer(sample).trace(converted))
    for node in list(root.graph.nodes):
        if node.target in (torch.reshape, "reshape", "view"):
            node.args, node.kwargs = (node.args[0], (-1, *node.meta["value"].shape[1:])), {}
        elif node.target is torch.matmul:
            _linear(root, node)
    for node in root.graph.nodes:
        node.meta.clear()
    root.graph.eliminate_dead_code()
    root.recompile()
    return fx.GraphModule(root, root.graph).eval()  # without the modules that are no longer called


def _linear(root: fx.GraphModule, node: fx.Node) -> None:
    """x W, and the bias added next, as an nn.Linear."""
    x, weight = node.args[0], _constant(root, node.args[1])
    if weight is None or weight.dim() != 2 or _constant(root, x) is not None:
        return
    bias, last, after = None, node, next(iter(node.users))
    if len(node.users) == 1 and after.target is torch.add and not after.kwargs:
        other = _constant(root, next((a for a in after.args if a is not node), node))
        if other is not None and other.numel() == weight.shape[1] == other.shape[-1]:
            bias, last = other.flatten(), after
    layer = nn.Linear(*weight.shape, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.T.contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    root.add_submodule(name := f"linear_{node.name}", layer.eval())
    with root.graph.inserting_after(last):
        last.replace_all_uses_with(new := root.graph.call_module(name, (x,)))
        new.meta["value"] = last.meta["value"]


def _constant(root: fx.GraphModule, value: Any) -> Tensor | None:
    if isinstance(value, fx.Node) and value.op == "get_attr":
        return attrgetter(str(value.target))(root).detach()
    return None


def drop_softmax(model: fx.GraphModule) -> fx.GraphModule:
    """The model without its last operation, where that is a softmax; in place."""
    output = next(node for node in model.graph.nodes if node.op == "output")
    last = output.args[0]
    called = type(model.get_submodule(last.target)) if last.op == "call_module" else last.target
    called = getattr(called, "overloadpacket", called)
    if called in SOFTMAX:
        last.replace_all_uses_with(last.args[0])
        model.graph.erase_node(last)
        model.recompile()
    return model


def check_same(
    model: nn.Module, reference: Callable[[np.ndarray], np.ndarray], x: Tensor, path: Path, batch: int = 1
) -> None:
    """Refuse a model that, on all of x at once, differs from the file on batches of the size that the file takes."""
    theirs = torch.cat([torch.as_tensor(np.asarray(reference(part.numpy()))) for part in x.split(batch)])
    if theirs.dim() != 2 or len(theirs) != len(x) or theirs.shape[1] < 2:
        shape = (len(theirs) // len(x), *theirs.shape[1:])
        raise ValueError(f"path: the output of {path} for one sample has shape {shape}; it must be (1, classes)")
    try:
        with torch.no_grad():
            ours = model(x)
    except RuntimeError as error:
        raise ValueError(f"path: the network of {path} is made for one batch size only: {error}") from error
    tolerance = 1e-4 * (1 + theirs.abs().max())
    if ours.shape != theirs.shape or not (ours - theirs).abs().max() <= tolerance:
        off = f"differ by up to {(ours - theirs).abs().max():.3g}" if ours.shape == theirs.shape else f"{ours.shape}"
        raise ValueError(f"path: converted to PyTorch, the network of {path} computes something else: outputs {off}")


def _reference(runtime: Any, proto: Any, path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The file's own outputs, by onnxruntime; onnx's evaluator mixes batch statistics into BatchNorm of opset 9."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    name = next(value.name for value in proto.graph.input if value.name not in weights)
    try:
        session = runtime.InferenceSession(proto.SerializeToString())
    except Exception as error:  # onnxruntime has many kinds of its own
        raise ValueError(f"path: onnxruntime cannot run the network of {path}: {error}") from error
    return lambda x: session.run(None, {name: x})[0]
