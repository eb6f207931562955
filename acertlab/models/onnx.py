"""Networks from ONNX files, such as VNN-COMP's, as modules that every bound of this package takes.

The only file that imports onnx and onnxruntime (an extra: ``pip install "acertlab[onnx]"``).
"""

import importlib
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from acertlab._optional import need
from acertlab.models.onnx_operators import ONE_TENSOR, OPERATORS, Node
from acertlab.models.state_dict import existing_file

OLDEST_OPSET = 9  # older files are upgraded first
OPSET = 17  # in which networks are written
SAMPLES = 3  # of each scale, random inputs on which the network must agree with the file's
SCALES = (1.0, 0.1, 4.0)
WAYS = {0: (True,), 1: (True, False), None: (False,)}  # by the file's batch: all at once, or each sample apart
RENAMES = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout", "Cast")


def load_onnx(path: str | Path, *, input_shape: Sequence[int] | None = None, output: str | None = None) -> nn.Module:
    """A classifier from an ONNX file, in evaluation mode, for batches of any size.

    A batch size of 1 that is fixed in the file is lifted, and a file without a batch dimension is run for each sample.
    MatMul and Add become linear layers, so that margins are merged into the last one; a final Softmax is dropped, since
    margins are differences of logits, and of one number a sample a final Sigmoid. The result is compared with the file
    on random inputs, singly and as a batch.

    Args:
        path: The file.
        input_shape: Shape of one sample, without the batch, where the file leaves it open.
        output: Name of the output that holds the logits, where the file has several.

    Returns:
        A module (B, ...) -> (B, classes), or (B, 1) of one logit, float32.

    Raises:
        ImportError: One of these packages is not installed; the message says how to install it.
        FileNotFoundError: There is no such file.
        ValueError: Not an ONNX network with one input, an operator that cannot be converted, or a network whose batch
            cannot be lifted or whose converted form computes something else; the message names operator and node.

    Example:
        >>> _ = al.export_vnnlib(al.models.mlp((4,), 2).eval(), torch.rand(1, 4), y, 0.1, "property")
        >>> al.load_onnx("property/model.onnx")(torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """
    path = existing_file(path)
    onnx, runtime = (_import(name) for name in ("onnx", "onnxruntime"))
    proto = _read(onnx, path)
    entry, shape, batch = _input(proto, path, input_shape)
    result = _output(proto, path, output)
    x = torch.rand(SAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    samples = torch.cat([scale * x for scale in SCALES])
    reference = _Reference(onnx, runtime, proto, entry, (*([] if batch is None else [1]), *shape), path)
    batched = batch is not None
    first = reference(x[:1].numpy())
    try:
        nodes, constants = _nodes(onnx, proto, entry, result, first)
    except ValueError as error:
        raise ValueError(f"path: the network of {path} cannot be converted to PyTorch: {error}") from error

    def theirs(part: np.ndarray) -> np.ndarray:
        out = reference(part)[result]
        return out.reshape(1, -1) if _is_row(out.shape) or out.size == 1 else out if batched else out[None]

    refusal: ValueError | None = None
    for whole in WAYS[batch]:
        try:
            made = nodes if whole else [node.per_sample() for node in nodes]
            model = Network(made, constants, entry, result, batched and not whole)
            model.compare(x[:1], first)
            check_same(model, theirs, samples, path)
            break
        except (ValueError, RuntimeError, TypeError, IndexError, KeyError) as error:
            said = f"path: the network of {path} cannot be converted to PyTorch: {error}"
            refusal = refusal or ValueError(str(error) if str(error).startswith("path:") else said)
    else:
        assert refusal is not None
        raise refusal
    model.drop_softmax()
    return model.eval()


def write_onnx(model: nn.Module, sample: Tensor, path: Path) -> Tensor:
    """Writes ``model`` as an ONNX network of one sample (1, ...), and returns its logits there, (1, classes).

    ImportError without onnx; ValueError where it cannot be written, or what was written computes something else.
    """
    _, runtime = (_import(name, "export_vnnlib") for name in ("onnx", "onnxruntime"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter that needs no further package calls itself the older one
            torch.onnx.export(model, (sample,), str(path), dynamo=False, opset_version=OPSET, input_names=["x"])
    except Exception as error:  # of many kinds, from operators that ONNX does not have
        raise ValueError(f"model: it cannot be written as ONNX: {type(error).__name__}: {error}") from error
    session = runtime.InferenceSession(str(path))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits = model(sample.clone())
        for at in (sample, *(torch.rand(sample.shape, generator=generator).to(sample) for _ in range(SAMPLES))):
            ours, theirs = model(at.clone()).cpu(), torch.as_tensor(session.run(None, {"x": at.cpu().numpy()})[0])
            if ours.shape != theirs.shape or not (ours - theirs).abs().max() <= 1e-4 * (1 + ours.abs().max()):
                raise ValueError("model: written as ONNX it computes something else, by onnxruntime")
    return logits


def _import(name: str, what: str = "load_onnx") -> Any:
    need("onnx", what, name.partition(".")[0])
    return importlib.import_module(name)


def _read(onnx: Any, path: Path) -> Any:
    try:
        proto = onnx.load(path)
    except Exception as error:  # protobuf's DecodeError is none of Python's own kinds
        raise ValueError(f"path: {path} is not an ONNX file: {error}") from error
    if not proto.graph.node:
        raise ValueError(f"path: {path} is not an ONNX file with a network in it")
    if _opset(proto) >= OLDEST_OPSET:
        return proto
    try:
        return _import("onnx.version_converter").convert_version(proto, 13)
    except Exception as error:  # its C++ raises RuntimeErrors and its own
        raise ValueError(f"path: {path}, of opset {_opset(proto)}, cannot be upgraded: {error}") from error


def _opset(proto: Any) -> int:
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _input(proto: Any, path: Path, given: Sequence[int] | None) -> tuple[str, tuple[int, ...], int | None]:
    """The input's name, the shape of a sample, and the batch before it: 1, 0 where it is open, None without one."""
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ValueError(f"path: the network of {path} has {len(inputs)} inputs; accepted is one")
    declared = tuple(dim.dim_value for dim in inputs[0].type.tensor_type.shape.dim)  # 0: open
    batched = declared[:1] in ((0,), (1,)) and (len(declared) > 1 or declared == (0,))
    if given is not None:
        batched = not declared or len(declared) == len(given) + 1
        if batched and declared[:1] > (1,):
            raise ValueError(f"path: the input of {path} has shape {declared}; accepted is (1 or open, *input_shape)")
    shape = tuple(given or declared[batched:])
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"input_shape: {path} leaves the shape of a sample open, {shape}; give it (without the batch)")
    return inputs[0].name, shape, next(iter(declared), 0) if batched else None


def _output(proto: Any, path: Path, given: str | None) -> str:
    names = [value.name for value in proto.graph.output]
    if given is None and len(names) != 1:
        sizes = ([d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim] for v in proto.graph.output)
        told = ", ".join(f"{name!r} {tuple(size)}" for name, size in zip(names, sizes, strict=True))
        line = f"load_onnx(path, output={names[0]!r})"
        raise ValueError(f"output: the network of {path} has several, {told}; give the name of one, such as {line}")
    if given is not None and given not in names:
        raise ValueError(f"output: the network of {path} has no '{given}'; accepted is one of {', '.join(names)}")
    return given or names[0]


class _Reference:
    """The file's own values, by onnxruntime, of one sample: all that its operators hand on, by name."""

    def __init__(self, onnx: Any, runtime: Any, proto: Any, entry: str, shape: tuple[int, ...], path: Path) -> None:
        whole = onnx.ModelProto()
        whole.CopyFrom(proto)
        shown = {value.name for value in whole.graph.output}
        made = {name for node in whole.graph.node for name in node.output}
        taken = {name for node in whole.graph.node for name in node.input}
        whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(made & taken - shown))
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, not printed as well
        try:
            self.session = runtime.InferenceSession(whole.SerializeToString(), options, ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has many kinds of its own
            raise ValueError(f"path: onnxruntime cannot run the network of {path}: {error}") from error
        self.entry, self.shape, self.path = entry, shape, path
        kind = self.session.get_inputs()[0].type
        self.dtype = {"tensor(double)": np.float64, "tensor(float16)": np.float16}.get(kind, np.float32)
        self.names = [value.name for value in self.session.get_outputs()]

    def __call__(self, sample: np.ndarray) -> dict[str, np.ndarray]:
        given = sample.reshape(self.shape).astype(self.dtype)
        try:
            values = self.session.run(None, {self.entry: given})
        except Exception as error:
            raise ValueError(f"path: onnxruntime cannot run the network of {self.path}: {error}") from error
        return dict(zip(self.names, values, strict=True)) | {self.entry: given}


def _nodes(
    onnx: Any, proto: Any, entry: str, result: str, values: dict[str, np.ndarray]
) -> tuple[list[Node], dict[str, np.ndarray]]:
    """The operators on whose values the result and the input have an effect, and the constants, by name."""
    graph, to_array = proto.graph, onnx.numpy_helper.to_array
    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    dependent, nodes, nothing = {entry}, [], np.zeros(())
    for i, made in enumerate(graph.node):
        if made.op_type in ("Shape", "Size") or dependent.isdisjoint(made.input):
            constants |= {name: values[name] for name in made.output if name in values}
            continue
        dependent.update(made.output)
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in made.attribute}
        attributes = {name: a.decode() if isinstance(a, bytes) else a for name, a in attributes.items()}
        known = [constants.get(name) for name in made.input]
        sizes = [constants.get(name, values.get(name, nothing)).shape for name in made.input]
        shape = values.get(made.output[0], nothing).shape
        name = made.name or f"number {i} in the file"
        inputs, outputs = list(made.input), list(made.output)
        nodes.append(Node(name, made.op_type, inputs, outputs, attributes, _opset(proto), known, sizes, shape))
    if result not in dependent:
        raise ValueError(f"its output '{result}' does not depend on its input")
    needed, kept = {result}, []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.outputs):
            needed.update(node.inputs)
            kept.insert(0, node)
    unknown = [str(node) for node in kept if node.operator not in OPERATORS]
    second = [
        f"{node}, second output"
        for node in kept
        if node.operator in ("MaxPool", "Dropout", "BatchNormalization") and needed & set(node.outputs[1:])
    ]
    if unknown or second:
        raise ValueError(f"there is no entry for {'; '.join(unknown + second)}")
    return _linear(kept, constants, result), constants


def _linear(nodes: list[Node], constants: dict[str, np.ndarray], result: str) -> list[Node]:
    """x W, and the bias added next, as one linear operator."""
    users: dict[str, list[Node]] = {}
    for node in nodes:
        for name in node.inputs:
            users.setdefault(name, []).append(node)
    gone: set[int] = set()
    for node in nodes:
        weight = node.constants[1] if len(node.inputs) > 1 else None
        plain = node.operator == "MatMul" or (node.operator == "Gemm" and not node.attributes.get("transA"))
        first = node.constants[0]
        if plain and weight is None and first is not None and first.ndim == 2 and len(node.sizes[1]) == 1:
            weight = first.T  # W x, of a vector
            node.inputs, node.constants, node.sizes = node.inputs[1::-1], [None, first], node.sizes[1::-1]
        if not plain or weight is None or weight.ndim != 2 or node.constants[0] is not None:
            continue
        weight = node.setting("alpha", default=1.0) * (weight if node.attributes.get("transB") else weight.T)
        added = node.inputs[2] if len(node.inputs) > 2 else ""
        after = users.get(node.outputs[0], [])
        if node.operator == "MatMul" and len(after) == 1 and after[0].operator == "Add" and node.outputs[0] != result:
            position = after[0].inputs.index(node.outputs[0]) ^ 1
            if _is_bias(after[0].constants[position], weight) and len(after[0].shape) == len(node.shape):
                added = after[0].inputs[position]
                node.outputs = after[0].outputs
                gone.add(id(after[0]))
        bias = constants.get(added)
        if added and not _is_bias(bias, weight):
            continue
        names = [node.inputs[0], _new(constants, node.inputs[1], np.ascontiguousarray(weight, np.float32))]
        if bias is not None:
            scaled = node.setting("beta", default=1.0) * bias.flatten()
            names.append(_new(constants, added, scaled.astype(np.float32)))
        node.operator, node.inputs = "Linear", names
        node.constants = [None, *(constants[name] for name in names[1:])]
        node.sizes = [node.sizes[0], *(constants[name].shape for name in names[1:])]
    return [node for node in nodes if id(node) not in gone]


def _is_bias(value: np.ndarray | None, weight: np.ndarray) -> bool:
    return value is not None and value.shape[-1:] == weight.shape[:1] and value.size == len(weight)


def _new(constants: dict[str, np.ndarray], name: str, value: np.ndarray) -> str:
    """The name under which a constant's other form is held."""
    if value.shape != constants[name].shape or not np.array_equal(value, constants[name]):
        name += "_of_linear"
        while name in constants:
            name += "_"
        constants[name] = value
    return name


class Network(nn.Module):
    """The operators of an ONNX file, one after the other; its constants are parameters and buffers."""

    def __init__(
        self, nodes: list[Node], constants: dict[str, np.ndarray], entry: str, result: str, apart: bool
    ) -> None:
        super().__init__()
        self.nodes, self.entry, self.result = nodes, entry, result
        self.apart = apart  # whether each sample keeps the file's batch dimension, of 1, behind that of the batch
        self.held: dict[str, str] = {}  # from a constant's name in the file to the attribute's
        for node in nodes:
            for position, name in enumerate(node.inputs[: 1 if node.operator in ONE_TENSOR else None]):
                if name and node.constants[position] is not None and name not in self.held:
                    self._hold(name, constants[name], node.operator == "BatchNormalization" and position > 2)

    def _hold(self, name: str, value: np.ndarray, statistic: bool) -> None:
        self.held[name] = attribute = f"c_{len(self.held)}_" + re.sub(r"\W", "_", name)
        tensor = torch.from_numpy(np.array(value, np.float32 if value.dtype.kind == "f" else None))
        if statistic or not tensor.is_floating_point():
            self.register_buffer(attribute, tensor)
        else:
            self.register_parameter(attribute, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        out = self._run(x[:, None] if self.apart else x)
        if out.dim() == 1:
            return out[:, None]
        return out.flatten(1) if out.dim() > 2 and _is_row(out.shape[1:]) else out

    def _run(self, x: Tensor, record: Callable[[Node, Any], None] | None = None) -> Tensor:
        values: dict[str, Any] = {self.entry: x, "": None}
        for node in self.nodes:
            names = node.inputs[: 1 if node.operator in ONE_TENSOR else None]
            given = [getattr(self, self.held[name]) if name in self.held else values[name] for name in names]
            made = OPERATORS[node.operator](node, *given)
            values |= zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False)
            if record is not None:
                record(node, values[node.outputs[0]])
        return values[self.result]

    def compare(self, sample: Tensor, theirs: dict[str, np.ndarray]) -> None:
        """Refuses, by operator and node, the first of whose values on one sample differ from the file's."""

        def record(node: Node, value: Tensor) -> None:
            right = theirs.get(node.outputs[0])
            if right is None or right.dtype.kind != "f":
                return
            if not _close(value, torch.as_tensor(right).float().reshape(node.shape)):
                raise ValueError(f"{node} computes something else than onnxruntime")

        with torch.no_grad():
            self._run(sample[:, None] if self.apart else sample, record)

    def drop_softmax(self) -> None:
        """The network without its last operator, a softmax over all classes or one sigmoid, perhaps renamed since."""
        makers = {name: node for node in self.nodes for name in node.outputs}
        name = self.result
        while (node := makers.get(name)) and node.operator in RENAMES:
            name = node.inputs[0]
        if node is not None and node.operator == "Sigmoid" and np.prod(node.shape) == 1:
            node.operator = "Identity"  # of one logit, above 0 where the sigmoid is above 1/2
        if node is None or node.operator not in ("Softmax", "LogSoftmax"):
            return
        old = node.opset < 13
        axis = node.setting("axis", default=1 if old else -1)
        normalised = node.shape[axis:] if old else node.shape[axis : axis + 1 or None]
        if np.prod(normalised) == np.prod(node.shape):
            node.operator = "Identity"


def _is_row(shape: Sequence[int]) -> bool:
    return len(shape) > 0 and all(size == 1 for size in shape[:-1])


def _close(ours: Tensor, theirs: Tensor) -> bool:
    """Up to rounding; what is not finite must be alike."""
    if ours.shape != theirs.shape:
        return False
    finite = theirs[theirs.isfinite()]
    tolerance = 1e-4 * (1 + (finite.abs().max() if finite.numel() else 0.0))
    return torch.allclose(ours.to(theirs), theirs, rtol=0.0, atol=float(tolerance), equal_nan=True)


def check_same(
    model: nn.Module, reference: Callable[[np.ndarray], np.ndarray], x: Tensor, path: Path, batch: int = 1
) -> None:
    """Refuse a model that, on all of x at once, differs from the file on batches of the size that the file takes."""
    theirs = torch.cat([torch.as_tensor(np.asarray(reference(part.numpy()))).float() for part in x.split(batch)])
    theirs = theirs[:, None] if theirs.dim() == 1 else theirs
    if theirs.dim() != 2 or len(theirs) != len(x) or not theirs.shape[1]:
        shape = (len(theirs) // len(x), *theirs.shape[1:])
        raise ValueError(f"path: the output of {path} for one sample has shape {shape}; it must be (1, classes)")
    try:
        with torch.no_grad():
            ours = model(x)
            ours = ours[:, None] if ours.dim() == 1 else ours
    except RuntimeError as error:
        raise ValueError(f"path: the network of {path} is made for one batch size only: {error}") from error
    if not _close(ours, theirs):
        off = f"differ by up to {(ours - theirs).abs().max():.3g}" if ours.shape == theirs.shape else f"{ours.shape}"
        raise ValueError(f"path: converted to PyTorch, the network of {path} computes something else: outputs {off}")
