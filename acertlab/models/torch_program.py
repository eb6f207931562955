"""Networks from program files, of TorchScript or `torch.export`, as modules that every bound of this package takes."""

import operator
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate
from torch.nn.utils import skip_init

from acertlab.bounds.rules.affine import Stats
from acertlab.models.onnx import check_same, drop_softmax
from acertlab.models.state_dict import existing_file, normalised

SAMPLES = 4  # of either kind, at least, on which the converted network must agree with the file
# operators of aten that torch or torch.nn.functional has under the same name, with the same arguments in the same order
SAME = (
    *("relu", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "relu6", "hardtanh", "hardswish", "prelu"),
    *("hardsigmoid", "softplus", "sigmoid", "tanh", "clamp", "maximum", "minimum", "abs", "neg", "square", "pow"),
    *("add", "sub", "mul", "div", "mean", "sum", "amax", "amin", "softmax", "log_softmax", "dropout"),
    *("alpha_dropout", "matmul"),
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_avg_pool2d", "adaptive_avg_pool3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "flip", "roll", "narrow"),
    *("cat", "stack", "chunk", "split", "unbind", "index_select", "pad", "pixel_shuffle", "pixel_unshuffle"),
)
IN_FUNCTIONAL = ("selu", "celu", "dropout", "alpha_dropout", "max_pool1d", "max_pool2d", "max_pool3d")
CALLED: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name) if hasattr(torch, name) and name not in IN_FUNCTIONAL else getattr(F, name)
    for name in SAME
}
OTHERWISE: dict[str, Callable[..., tuple[Callable, tuple]]] = {  # the others: which function, and its arguments
    "log_sigmoid": lambda x: (F.logsigmoid, (x,)),
    "clamp_min": lambda x, low: (torch.clamp, (x, low)),
    "rsub": lambda x, other: (torch.sub, (other, x)),
    "constant_pad_nd": lambda x, pad, value=0: (F.pad, (x, pad, "constant", value)),
    "feature_dropout": lambda x, p, train: (F.dropout2d, (x, p, train)),
    "select": lambda x, dim, index: (operator.getitem, (x, _along(dim, index))),
    "slice": lambda x, dim=0, *ends: (operator.getitem, (x, _along(dim, slice(*(*ends, None, None)[:3])))),
}
UNCHANGED = ("contiguous", "clone", "detach", "alias", "lift_fresh_copy")
CONVOLUTIONS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def load_program(
    path: str | Path, *, input_shape: Sequence[int] | None = None, mean: Stats = None, std: Stats = None
) -> nn.Module:
    """A classifier from a file of `torch.jit.save` or `torch.export.save`, in evaluation mode, for batches of any size.

    The program is run once, and its operators become PyTorch layers and functions: BatchNorm is folded and margins are
    merged into the last linear layer, as in a network of one's own. A batch size that is fixed in the file is lifted; a
    final softmax is dropped. The result is compared with the file's own outputs on random inputs.

    A program runs what it holds: load none whose origin you do not trust. Pickled code in it is refused.

    Args:
        path: The file.
        input_shape: Shape of one sample, without the batch: TorchScript does not tell it.
        mean, std: As in `load_weights`.

    Returns:
        A module (B, ...) -> (B, classes), float32, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No such file's content; an operator without a rule (all of them are named); a network that depends
            on data or on the batch, or whose converted form computes something else.
    """
    path = existing_file(path)
    program, batch, declared = _read_program(path)
    shape = tuple(input_shape or declared)
    if not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise ValueError(f"input_shape: {path} leaves the shape of a sample open; give it (without the batch)")
    dtype = next((t.dtype for t in program.state_dict().values() if t.is_floating_point()), torch.float32)
    x = _samples(batch, shape).to(dtype)
    try:
        with torch.no_grad():
            traced = make_fx(program, pre_dispatch=True)(x[:batch])
    except Exception as error:  # a program raises any kind
        raise ValueError(
            f"path: the network of {path} cannot be traced with a batch of {batch} of shape {shape}: {error}. Another "
            "input_shape, or its state dict and architecture in load_weights, may help"
        ) from error
    if not isinstance(traced.graph.output_node().args[0], fx.Node):
        raise ValueError(f"path: the network of {path} has several outputs; accepted is one tensor")
    with torch.no_grad():
        model = _as_layers(traced, path)
        check_same(model, lambda part: program(torch.from_numpy(part)).numpy(), x, path, batch)
    return normalised(drop_softmax(model).float(), mean, std).eval()


def _samples(batch: int, shape: tuple[int, ...]) -> Tensor:
    """Whole batches, of pixels and of numbers far beyond: what a change in place does to other names shows in those."""
    sizes, generator = (-(-SAMPLES // batch) * batch, *shape), torch.Generator().manual_seed(0)
    return torch.cat([torch.rand(sizes, generator=generator), 3 * torch.randn(sizes, generator=generator)])


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
    inputs, outputs = list(exported.graph_signature.user_inputs), list(exported.graph_signature.user_outputs)
    if len(inputs) != 1 or len(outputs) != 1:
        counts = f"{len(inputs)} inputs and {len(outputs)} outputs"
        raise ValueError(f"path: the network of {path} has {counts}; accepted is one of each")
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


class _Layers(fx.Transformer):
    """A graph of aten's operators, as layers and as functions that have an interval rule."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.traced = traced
        self.unknown: dict[str, None] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.shape = getattr(n.meta.get("val"), "shape", ())
        return super().run_node(n)

    def get_attr(self, target: Any, args: tuple, kwargs: dict) -> Any:
        value = self.fetch_attr(target).detach()  # weights stay tensors: what is made of them alone is computed
        self.traced.register_buffer(target.lstrip("_"), value)  # a constant, not something computed (al.sound)
        return value

    def call_function(self, target: Any, args: tuple, kwargs: dict) -> Any:
        if not _on_input((args, kwargs)):
            return target(*args, **kwargs)
        if target is operator.getitem:
            return super().call_function(target, args, kwargs)
        name = getattr(target, "overloadpacket", target).__name__.removesuffix("_")
        if layer := _layer(name, len(self.shape), args, kwargs):
            self.traced.add_submodule(label := f"{name}_{len(self.new_graph.nodes)}", layer)
            return self.call_module(label, (args[1] if name == "addmm" else args[0],), {})
        if name in UNCHANGED:
            return args[0]
        if name in ("view", "reshape", "_unsafe_view"):
            return super().call_function(torch.reshape, (args[0], (-1, *self.shape[1:])), {})
        if name in OTHERWISE and not kwargs:
            return super().call_function(*OTHERWISE[name](*args), {})
        if name in CALLED:
            return super().call_function(CALLED[name], args, kwargs)
        self.unknown[f"{target}{' in training mode' * (name == 'batch_norm')}"] = None
        return super().call_function(target, args, kwargs)


def _as_layers(traced: fx.GraphModule, path: Path) -> fx.GraphModule:
    traced.graph.eliminate_dead_code()
    layers = _Layers(traced)
    model = layers.transform()
    if layers.unknown:
        raise ValueError(
            f"path: no rule for {', '.join(layers.unknown)} of {path}. Write the architecture with layers "
            "that have one (acertlab.rule gives it to your own), and fill it from the state dict: acertlab.load_weights"
        )
    model.graph.eliminate_dead_code()
    return fx.GraphModule(model, model.graph).eval()  # without what is no longer called


def _on_input(values: Any) -> bool:
    found: list[fx.Proxy] = []
    map_aggregate(values, lambda a: found.append(a) if isinstance(a, fx.Proxy) else None)
    return bool(found)


def _along(dim: int, index: Any) -> tuple:
    """The index of x[:, ..., index], at one dimension."""
    return (slice(None),) * dim + (index,) if dim >= 0 else (..., index) + (slice(None),) * (-1 - dim)


def _layer(name: str, dim: int, args: tuple, kwargs: dict) -> nn.Module | None:
    """The layer of an affine operator with constant weights and an output of ``dim`` dimensions; None for others."""
    match name, args:
        case ("linear", (_, Tensor() as weight, *bias)) if not kwargs:
            return _linear(weight, *bias)
        case ("addmm", (Tensor() as bias, _, Tensor() as weight)) if not kwargs and bias.dim() == 1:
            return _linear(weight.T, bias)
        case (("matmul" | "mm"), (_, Tensor() as weight)) if weight.dim() == 2:
            return _linear(weight.T)
        case (("conv1d" | "conv2d" | "conv3d" | "_convolution_mode"), (_, Tensor() as weight, *rest)) if not kwargs:
            return _convolution(dim, weight, *rest)
        case (
            ("convolution" | "_convolution"),
            (_, Tensor() as weight, bias, stride, padding, dilation, False, _, groups, *_),
        ):
            return _convolution(dim, weight, bias, stride, padding, dilation, groups)
        case ("batch_norm", (_, weight, bias, Tensor() as mean, var, False, _, eps, *_)):
            tensors = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
            tensors |= {"num_batches_tracked": torch.tensor(0)}
            return _filled(NORMS[dim], tensors, len(mean), eps=eps, affine=weight is not None)
    return None


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    sizes = weight.shape[::-1]
    return _filled(nn.Linear, {"weight": weight, "bias": bias}, *sizes, bias=bias is not None)


def _convolution(
    dim: int,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> nn.Module:
    sizes = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
    settings = {"stride": stride, "padding": padding, "dilation": dilation}
    settings = {name: tuple(s) if isinstance(s, list) else s for name, s in settings.items()}
    tensors = {"weight": weight, "bias": bias}
    return _filled(CONVOLUTIONS[dim], tensors, *sizes, **settings, groups=groups, bias=bias is not None)


def _filled(kind: type[nn.Module], tensors: dict[str, Tensor | None], *args: Any, **settings: Any) -> nn.Module:
    given = {name: t for name, t in tensors.items() if t is not None}
    dtype = next(iter(given.values())).dtype
    layer = skip_init(kind, *args, **settings, dtype=dtype)  # no random numbers are drawn
    layer.load_state_dict(given)
    return layer.eval()
