"""Files in the layouts of VNN-COMP's benchmarks, against the same networks written in PyTorch."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.graph.capture import capture
from acertlab.bounds.rules.affine import Normalize
from acertlab.models.onnx import load_onnx
from acertlab.radius.certified import certified_radius

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class File:
    """An ONNX graph, written operator by operator."""

    def __init__(self, *shape: int | str, name: str = "x") -> None:
        self.nodes, self.weights, self.last = [], [], name
        self.inputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)]

    def constant(self, value: Any) -> str:
        array = value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
        self.weights.append(onnx.numpy_helper.from_array(array, name := f"weight{len(self.weights)}"))
        return name

    def add(self, operator: str, *others: Any, at: str | None = None, **attributes: Any) -> str:
        """Appends an operator on the last output (or on the one named), with constants or names as further inputs."""
        names = [other if isinstance(other, str) else self.constant(other) for other in others]
        out = f"{operator}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operator, [at or self.last, *names], [out], **attributes))
        self.last = out
        return out

    def gemm(self, layer: nn.Linear) -> str:
        return self.add("Gemm", layer.weight, layer.bias, transB=1)

    def matmul(self, layer: nn.Linear) -> str:
        self.add("MatMul", layer.weight.T.contiguous())
        return self.add("Add", layer.bias)

    def conv(self, layer: nn.Conv2d, at: str | None = None) -> str:
        pads = [layer.padding[0]] * 4
        return self.add("Conv", layer.weight, layer.bias, at=at, pads=pads, strides=list(layer.stride))

    def norm(self, layer: nn.BatchNorm2d) -> str:
        values = (layer.weight, layer.bias, layer.running_mean, layer.running_var)
        return self.add("BatchNormalization", *values, epsilon=layer.eps)

    def save(self, path: Path, opset: int = 13) -> Path:
        out = [onnx.helper.make_tensor_value_info(self.last, onnx.TensorProto.FLOAT, None)]
        graph = onnx.helper.make_graph(self.nodes, "net", self.inputs, out, self.weights)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)
        onnx.save(model, path)
        return path


class Block(nn.Module):
    """A residual block with a BatchNorm, as in cifar10_resnet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4)
        self.second, self.shortcut = nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(2, 4, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.norm(self.first(x)))) + self.shortcut(x))


class ChannelsFirst(nn.Module):
    def __init__(self, back: bool) -> None:
        super().__init__()
        self.order = (0, 2, 3, 1) if back else (0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


def mnist_fc(path: Path) -> tuple[Path, nn.Module]:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 5))
    file = File(1, 16, 1)
    file.add("Flatten", axis=1)
    file.gemm(net[1])
    file.add("Relu")
    file.gemm(net[3])
    return file.save(path, 9), net


def acasxu(path: Path) -> tuple[Path, nn.Module]:
    """Opset 8: upgraded first."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 5))
    file = File(1, 1, 1, 5)
    file.add("Sub", torch.zeros(1, 1, 1, 5))
    file.add("Flatten")
    file.matmul(net[1])
    file.add("Relu")
    file.matmul(net[3])
    return file.save(path, 8), net


def eran(path: Path) -> tuple[Path, nn.Module]:
    """Normalised inside, and reshaped for one sample."""
    net = nn.Sequential(
        Normalize((0.2, 0.4), (0.5, 0.6)),
        nn.Conv2d(2, 3, 3, 1, 1),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(48, 7),
        nn.Sigmoid(),
        nn.Linear(7, 4),
    )
    file = File(1, 2, 4, 4)
    file.add("Sub", net[0].mean.view(1, -1, 1, 1))
    file.add("Div", net[0].std.view(1, -1, 1, 1))
    file.conv(net[1])
    file.add("Sigmoid")
    file.add("Reshape", np.array([1, -1]))
    file.matmul(net[4])
    file.add("Sigmoid")
    file.matmul(net[6])
    return file.save(path), net


def cifar10_resnet(path: Path) -> tuple[Path, nn.Module]:
    net = nn.Sequential(Block(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 3)).eval()
    nn.init.uniform_(net[0].norm.weight, 0.5, 2.0)
    nn.init.normal_(net[0].norm.running_mean)
    file = File(1, 2, 4, 4)
    file.conv(net[0].first)
    file.norm(net[0].norm)
    file.add("Relu")
    main = file.conv(net[0].second)
    file.conv(net[0].shortcut, at="x")
    file.add("Add", main)
    file.add("Relu")
    file.add("AveragePool", kernel_shape=[2, 2], strides=[2, 2])
    file.add("Flatten", axis=1)
    file.gemm(net[3])
    return file.save(path), net


def tensorflow(path: Path) -> tuple[Path, nn.Module]:
    """Channels last and an open batch, as in marabou-cifar10."""
    net = nn.Sequential(
        ChannelsFirst(False), nn.Conv2d(2, 3, 3), nn.ReLU(), ChannelsFirst(True), nn.Flatten(), nn.Linear(12, 4)
    )
    file = File("batch", 4, 4, 2)
    file.add("Transpose", perm=[0, 3, 1, 2])
    file.conv(net[1])
    file.add("Relu")
    file.add("Transpose", perm=[0, 2, 3, 1])
    file.add("Reshape", np.array([-1, 12]))
    file.matmul(net[5])
    return file.save(path), net


def exported_view(path: Path) -> tuple[Path, nn.Module]:
    """x.view(x.size(0), -1) as PyTorch exports it, and a Softmax that is dropped."""
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.LeakyReLU(0.1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, 4))
    file = File(1, 2, 4, 4)
    file.conv(net[0])
    file.add("LeakyRelu", alpha=0.1)
    pooled = file.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    file.add("Shape")
    file.add("Gather", np.array(0), axis=0)
    size = file.add("Unsqueeze", np.array([0]))
    shape = file.add("Concat", np.array([-1]), at=size, axis=0)
    file.add("Reshape", shape, at=pooled)
    file.gemm(net[4])
    file.add("Softmax", axis=1)
    return file.save(path), net


LAYOUTS = {
    mnist_fc: (16, 1),
    acasxu: (1, 1, 5),
    eran: (2, 4, 4),
    cifar10_resnet: (2, 4, 4),
    tensorflow: (4, 4, 2),
    exported_view: (2, 4, 4),
}


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_file_certifies_like_the_network_written_in_pytorch(layout: Callable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, net = layout(tmp_path / "net.onnx")
    model, net = load_onnx(path), net.eval()
    assert not model.training and all(p.dtype == torch.float32 for p in model.parameters())
    x = torch.rand(7, *LAYOUTS[layout])
    with torch.no_grad():
        assert torch.allclose(model(x), net(x), atol=1e-5)
        y = net(x).argmax(1)
    for merged in (True, False):
        ours, theirs = (certified_radius(m.double(), x.double(), y, 0.5, merged=merged) for m in (model, net))
        assert (ours.radius > 0).all() and torch.allclose(ours.radius, theirs.radius, rtol=1e-4)
        model.float(), net.float()


def test_an_open_shape_can_be_given(tmp_path: Path) -> None:
    file, layer = File("batch", "features"), nn.Linear(6, 3)
    file.gemm(layer)
    path = file.save(tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=r"input_shape: .*net\.onnx leaves the shape of a sample open, \(0,\)"):
        load_onnx(path)
    assert load_onnx(path, input_shape=(6,))(torch.rand(5, 6)).shape == (5, 3)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_a_missing_extra_says_how_to_install_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = mnist_fc(tmp_path / "net.onnx")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf'load_onnx needs {name}.*pip install "acertlab\[onnx\]"'):
        load_onnx(path)


def unknown_operator() -> File:
    file = File(1, 3, 3)
    file.add("Det")
    return file


def two_inputs() -> File:
    file = File(1, 3)
    file.inputs += File(1, 3, name="second").inputs
    file.add("Add", "second")
    return file


def batch_of_four() -> File:
    file = File(4, 3)
    file.add("Relu")
    return file


def no_classes() -> File:
    file = File(1, 3, 2)
    file.add("Relu")
    return file


def mixed_samples(batch: int | str = 1) -> File:
    """A mean over the batch: of a single sample, the sample itself."""
    file = File(batch, 3)
    mean = file.add("ReduceMean", axes=[0], keepdims=1)
    file.add("Add", mean, at="x")
    return file


def no_batch() -> File:
    file = File(3)
    file.matmul(nn.Linear(3, 4))
    file.add("Relu")
    file.matmul(nn.Linear(4, 3))
    return file


def batch_behind() -> File:
    """The batch is turned behind the features, and back."""
    file = File(1, 4)
    file.add("Transpose", perm=[1, 0])
    file.add("Unsqueeze", np.array([0]))
    file.add("Relu")
    file.add("Flatten", axis=1)
    file.gemm(nn.Linear(4, 3))
    return file


@pytest.mark.parametrize("make", [mixed_samples, no_batch, batch_behind], ids=lambda make: make.__name__)
def test_what_takes_one_sample_only_runs_for_each(make: Callable, tmp_path: Path) -> None:
    file = make()
    model = load_onnx(file.save(tmp_path / "net.onnx"))
    declared = [dim.dim_value for dim in file.inputs[0].type.tensor_type.shape.dim]
    x = torch.rand(6, declared[-1])
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    right = [session.run(None, {"x": sample.reshape(declared).numpy()})[0].reshape(-1) for sample in x]
    y = torch.as_tensor(np.stack(right)).argmax(1)
    assert np.allclose(model(x).detach().numpy(), np.stack(right), atol=1e-5)
    result = certified_radius(model, x, y, 0.5)
    assert (result.radius > 0).all()
    inside = x + 0.99 * result.radius[:, None] * (2 * torch.rand(200, 6, declared[-1]) - 1)
    assert (model(inside.flatten(0, 1)).argmax(1).view(200, 6) == y).all()


def test_one_number_in_and_one_out_as_in_vnn_comps_test_small(tmp_path: Path) -> None:
    """W x of a vector, without a batch; and with one logit the class is its sign."""
    layers, file = [nn.Linear(1, 2), nn.Linear(2, 2), nn.Linear(2, 1)], File(1)
    for layer in layers:
        file.last = file.add("MatMul", file.last, at=file.constant(layer.weight))
        file.add("Add", layer.bias)
        if layer is not layers[-1]:
            file.add("Relu")
    model = load_onnx(file.save(tmp_path / "net.onnx"))
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    x = torch.rand(9, 1)
    assert torch.allclose(model(x), net(x), atol=1e-6) and model(x).shape == (9, 1)
    y = (net(x)[:, 0] > 0).long()
    assert torch.allclose(certified_radius(model, x, y, 0.1).radius, certified_radius(net.eval(), x, y, 0.1).radius)


def test_one_of_several_outputs_is_chosen_by_name(tmp_path: Path) -> None:
    file, layer = File(1, 4), nn.Linear(4, 3).eval()
    hidden = file.gemm(layer)
    file.add("Softmax", axis=1)
    path = file.save(tmp_path / "net.onnx")
    proto = onnx.load(path)
    proto.graph.output.append(onnx.helper.make_tensor_value_info(hidden, onnx.TensorProto.FLOAT, None))
    onnx.save(proto, path)
    names = f"{proto.graph.output[0].name}, {hidden}"
    told = ", ".join(f"'{name}' .*" for name in names.split(", "))
    with pytest.raises(ValueError, match=f"output: the network of .* has several, {told}; give the name of one"):
        load_onnx(path)
    with pytest.raises(ValueError, match=f"output: the network of .* has no 'logits'; accepted is one of {names}"):
        load_onnx(path, output="logits")
    x = torch.rand(5, 4)
    for name in (hidden, proto.graph.output[0].name):  # the softmax is dropped
        assert torch.allclose(load_onnx(path, output=name)(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("opset", [9, 11, 12, 13, 17])
@pytest.mark.parametrize("softmax", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("after", [None, "Identity", "Flatten", "Reshape"])
def test_a_final_softmax_is_dropped(opset: int, softmax: str, after: str | None, tmp_path: Path) -> None:
    file, layer = File(1, 4), nn.Linear(4, 3).eval()
    file.matmul(layer)
    file.add(softmax, axis=1)
    if after:
        file.add(after, *([np.array([1, 3])] if after == "Reshape" else []))
    model = load_onnx(file.save(tmp_path / "net.onnx", opset))
    x = torch.rand(5, 4)
    with torch.no_grad():
        assert torch.allclose(model(x), layer(x), atol=1e-5)
        y = layer(x).argmax(1)
    assert torch.allclose(*(certified_radius(m, x, y, 0.5).radius for m in (model, layer)), rtol=1e-4)


def test_matmul_and_add_are_merged_with_margins(tmp_path: Path) -> None:
    file = File(1, 4)
    file.matmul(nn.Linear(4, 8))
    file.add("Relu")
    file.matmul(nn.Linear(8, 3))
    assert freeze_head(load_onnx(file.save(tmp_path / "net.onnx")))
    assert freeze_head(load_onnx(no_batch().save(tmp_path / "net.onnx")))


def freeze_head(model: nn.Module) -> bool:
    width = model.get_parameter(next(iter(dict(model.named_parameters())))).shape[1]
    return capture(model, torch.rand(1, width)).plan.head is not None


def refused_nodes() -> File:
    """Two unknown operators: both are named."""
    file = File(1, 3, 3)
    file.add("Det")
    file.add("Hardmax")
    return file


def whole_numbers() -> File:
    file = File(1, 3)
    file.add("Cast", to=onnx.TensorProto.INT64)
    file.add("Cast", to=onnx.TensorProto.FLOAT)
    return file


@pytest.mark.parametrize(
    "make, message",
    [
        (
            unknown_operator,
            "cannot be converted to PyTorch: there is no entry for operator Det .node 'number 0 in the file'.",
        ),
        (two_inputs, "has 2 inputs; accepted is one"),
        (batch_of_four, r"for one sample has shape \(1, 4, 3\); it must be \(1, classes\)"),
        (refused_nodes, "operator Det .node 'number 0 in the file'.; operator Hardmax .node 'number 1 in the file'."),
        (whole_numbers, "operator Cast .node 'number 0 in the file'.: a cast to other than floating-point numbers"),
        (lambda: mixed_samples("batch"), "computes something else: outputs differ by up to"),
        (no_classes, r"for one sample has shape \(1, 3, 2\); it must be \(1, classes\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(make: Callable, message: str, tmp_path: Path) -> None:
    path = make().save(tmp_path / "net.onnx")
    with pytest.raises(ValueError, match=message):
        load_onnx(path)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: there is no file .*gone"):
        load_onnx(tmp_path / "gone.onnx")
    for content in (b"", b"no network at all", b"\x08\x07" * 40):
        (tmp_path / "net.onnx").write_bytes(content)
        with pytest.raises(ValueError, match="is not an ONNX file"):
            load_onnx(tmp_path / "net.onnx")
