"""Every operator of the table, over opsets and attributes, against onnxruntime: singly, as a batch and as a graph."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from acertlab.bounds.graph.capture import capture
from acertlab.models.onnx import WAYS, load_onnx
from acertlab.models.onnx_operators import OPERATORS
from acertlab.radius.certified import certified_radius

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)
Case = tuple[
    str, tuple[int, ...], list[Any], dict[str, Any], range
]  # operator, sample, further inputs, attributes, opsets
ALL, FROM_13 = range(9, 21), range(13, 21)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


IMAGE, ROW, TOKENS = (2, 6, 6), (6,), (3, 4)

CASES: list[Case] = [
    *[(name, ROW, [], {}, ALL) for name in ("Relu", "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf", "Exp", "Sin")],
    *[(name, ROW, [], {}, ALL) for name in ("Cos", "Abs", "Sign", "Neg", "Floor", "Ceil", "Identity", "Atan", "Sinh")],
    *[(name, ROW, [], {}, ALL) for name in ("Cosh", "Asinh", "Elu", "LeakyRelu", "Selu", "HardSigmoid")],
    ("ThresholdedRelu", ROW, [], {}, range(10, 21)),
    ("Celu", ROW, [], {"alpha": 0.7}, range(12, 21)),
    ("Round", ROW, [], {}, range(11, 21)),
    ("HardSwish", ROW, [], {}, range(14, 21)),
    ("Mish", ROW, [], {}, range(18, 21)),
    ("Gelu", ROW, [], {}, range(20, 21)),
    ("Gelu", ROW, [], {"approximate": "tanh"}, range(20, 21)),
    ("Elu", ROW, [], {"alpha": 0.5}, ALL),
    ("LeakyRelu", ROW, [], {"alpha": 0.3}, ALL),
    ("Selu", ROW, [], {"alpha": 1.2, "gamma": 0.9}, ALL),
    ("HardSigmoid", ROW, [], {"alpha": 0.3, "beta": 0.4}, ALL),
    ("ThresholdedRelu", ROW, [], {"alpha": 0.5}, range(10, 21)),
    ("Pow", ROW, [np.float32(2)], {}, ALL),
    ("Pow", ROW, [np.float32(3)], {}, ALL),
    *[(name, ROW, [normal(6)], {}, ALL) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")],
    *[(name, ROW, [normal(6), normal(1, 6)], {}, ALL) for name in ("Max", "Min", "Sum", "Mean")],
    ("Clip", ROW, [], {"min": -0.2, "max": 0.5}, range(9, 11)),
    ("Clip", ROW, [np.float32(-0.2), np.float32(0.5)], {}, range(11, 21)),
    ("Clip", ROW, [None, np.float32(0.5)], {}, range(11, 21)),
    ("Dropout", ROW, [], {"ratio": 0.4}, range(9, 12)),
    ("Dropout", ROW, [np.float32(0.4)], {}, range(12, 21)),
    ("Cast", ROW, [], {"to": 1}, ALL),
    *[(name, TOKENS, [], {"axis": axis}, ALL) for name in ("Softmax", "LogSoftmax") for axis in (1, 2, -1)],
    *[(name, TOKENS, [], {}, ALL) for name in ("Softmax", "LogSoftmax")],
    ("Reshape", IMAGE, [whole(1, -1)], {}, ALL),
    ("Reshape", IMAGE, [whole(0, 12, -1)], {}, ALL),
    ("Flatten", IMAGE, [], {}, ALL),
    ("Flatten", IMAGE, [], {"axis": 0}, ALL),
    ("Flatten", IMAGE, [], {"axis": 2}, ALL),
    ("Squeeze", (1, 6), [], {"axes": [1]}, range(9, 13)),
    ("Squeeze", (1, 6), [whole(1)], {}, FROM_13),
    ("Squeeze", (1, 6), [], {}, ALL),
    ("Unsqueeze", ROW, [], {"axes": [0, 2]}, range(9, 13)),
    ("Unsqueeze", ROW, [whole(0, 2)], {}, FROM_13),
    ("Expand", (1, 6), [whole(1, 3, 6)], {}, ALL),
    ("Expand", ROW, [whole(2, 1, 6)], {}, ALL),
    ("Transpose", IMAGE, [], {"perm": [0, 2, 3, 1]}, ALL),
    ("Transpose", IMAGE, [], {}, ALL),
    ("Slice", IMAGE, [], {"starts": [1, 0], "ends": [5, -1], "axes": [2, 3]}, range(9, 10)),
    ("Slice", IMAGE, [whole(1, 0), whole(5, 2**62), whole(2, 3), whole(2, 1)], {}, range(10, 21)),
    ("Slice", IMAGE, [whole(-1), whole(-(2**62)), whole(-1), whole(-2)], {}, range(10, 21)),
    ("Slice", IMAGE, [whole(0, 0, 1), whole(1, 2, 4)], {}, range(10, 21)),
    ("Gather", IMAGE, [whole(0, -1, 2)], {"axis": 2}, ALL),
    ("Gather", IMAGE, [np.array(-1)], {"axis": 1}, ALL),
    ("Gather", IMAGE, [np.array([[0, 1], [2, 3]])], {"axis": 3}, ALL),
    ("Gather", TOKENS, [np.array(0)], {}, ALL),
    ("Concat", TOKENS, [normal(1, 2, 4)], {"axis": 1}, ALL),
    ("Tile", TOKENS, [whole(1, 2, 1)], {}, ALL),
    ("Where", ROW, [normal(6)], {}, ALL),
    ("Pad", IMAGE, [], {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.5}, range(9, 11)),
    ("Pad", IMAGE, [whole(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.5)], {}, range(11, 21)),
    ("Pad", IMAGE, [whole(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}, range(11, 21)),
    ("Pad", IMAGE, [whole(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "edge"}, range(11, 21)),
    ("Pad", IMAGE, [whole(1, 1), np.float32(0), whole(-1)], {}, range(18, 21)),
    *[
        ("Conv", IMAGE, [normal(4, 2, 3, 3), normal(4)], attributes, ALL)
        for attributes in (
            *({}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 1]}, {"strides": [2, 2]}, {"dilations": [2, 1]}),
            *({"auto_pad": auto, "strides": [2, 2]} for auto in ("SAME_UPPER", "SAME_LOWER", "VALID")),
        )
    ],
    ("Conv", IMAGE, [normal(4, 1, 3, 3)], {"group": 2}, ALL),
    ("Conv", (2, 6), [normal(4, 2, 3)], {"pads": [1, 0]}, ALL),
    ("ConvTranspose", IMAGE, [normal(2, 3, 3, 3), normal(3)], {"strides": [2, 2], "output_padding": [1, 1]}, ALL),
    ("ConvTranspose", IMAGE, [normal(2, 3, 3, 3)], {"pads": [0, 1, 1, 1]}, ALL),
    *[
        (name, IMAGE, [], {"kernel_shape": [3, 3], **attributes}, range(11, 21))
        for name in ("MaxPool", "AveragePool")
        for attributes in (
            *({"strides": [2, 2]}, {"strides": [2, 2], "ceil_mode": 1}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 2, 1]}),
            *({"auto_pad": auto, "strides": [2, 2]} for auto in ("SAME_UPPER", "SAME_LOWER")),
        )
    ],
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}, ALL),
    ("AveragePool", IMAGE, [], {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1], "count_include_pad": 1}, ALL),
    ("GlobalAveragePool", IMAGE, [], {}, ALL),
    ("GlobalMaxPool", IMAGE, [], {}, ALL),
    ("Resize", IMAGE, [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}, range(13, 21)),
    ("Resize", IMAGE, [None, np.array([1, 1, 2, 2], np.float32)], {"mode": "linear"}, range(13, 21)),
    ("Upsample", IMAGE, [np.array([1, 1, 2, 2], np.float32)], {"mode": "nearest"}, range(9, 10)),
    ("MatMul", TOKENS, [normal(4, 5)], {}, ALL),
    ("Gemm", ROW, [normal(6, 5), normal(5)], {}, ALL),
    ("Gemm", ROW, [normal(5, 6), normal(1, 5)], {"transB": 1, "alpha": 0.5, "beta": 2.0}, ALL),
    ("Gemm", ROW, [normal(6, 5), normal(1)], {"beta": 2.0}, range(11, 21)),
    ("Einsum", TOKENS, [normal(4, 5)], {"equation": "bij,jk->bik"}, range(12, 21)),
    ("BatchNormalization", IMAGE, [normal(2), normal(2), normal(2), normal(2) ** 2 + 0.1], {"epsilon": 1e-3}, ALL),
    ("LayerNormalization", TOKENS, [normal(4), normal(4)], {}, range(17, 21)),
    ("LayerNormalization", TOKENS, [normal(3, 4), normal(3, 4)], {"axis": 1, "epsilon": 1e-3}, range(17, 21)),
    ("InstanceNormalization", IMAGE, [normal(2), normal(2)], {}, ALL),
    ("GroupNormalization", (4, 3, 3), [normal(2), normal(2)], {"num_groups": 2}, range(18, 21)),
    ("PRelu", IMAGE, [normal(2, 1, 1)], {}, ALL),
    *[(f"Reduce{kind}", IMAGE, [], {"axes": [2, 3]}, range(9, 18)) for kind in ("Mean", "Max", "Min", "L1", "L2")],
    *[(f"Reduce{kind}", IMAGE, [], {"axes": [-1], "keepdims": 0}, range(9, 18)) for kind in ("Mean", "SumSquare")],
    *[(f"Reduce{kind}", IMAGE, [whole(-1)], {}, range(18, 21)) for kind in ("Mean", "Max", "Min", "L1", "L2")],
    ("ReduceSum", IMAGE, [], {"axes": [1], "keepdims": 0}, range(9, 13)),
    ("ReduceSum", IMAGE, [whole(1)], {"keepdims": 0}, FROM_13),
    ("ReduceSum", IMAGE, [], {"noop_with_empty_axes": 1}, FROM_13),
]
POSITIVE = [("Log", ROW), ("Sqrt", ROW), ("Reciprocal", ROW)]


def write(path: Path, nodes: list[Any], weights: list[Any], shape: tuple[int, ...], opset: int) -> Path:
    value = onnx.helper.make_tensor_value_info
    entry, out = value("x", 1, [1, *shape]), value("y", 1, None)
    graph = onnx.helper.make_graph(nodes, "net", [entry], [out], weights)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def one_operator(path: Path, case: Case, opset: int) -> Path:
    """The operator between an exact doubling and a flattening, with a fully connected layer at the end."""
    name, shape, others, attributes, _ = case
    node, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    weights = [tensor(np.asarray(other), f"w{i}") for i, other in enumerate(others) if other is not None]
    given = ["h", *("" if other is None else f"w{i}" for i, other in enumerate(others))]
    if name == "Where":
        weights.append(tensor(np.arange(shape[-1]) % 2 == 0, "condition"))
        given = ["condition", *given]
    before = [node("Mul", ["x", "two"], ["d"]), node("Sub", ["d", "one"], ["h"])]
    if (name, shape) in POSITIVE:
        before[1] = node("Add", ["d", "one"], ["h"])
    outputs = ["z", "rest"] if name == "Split" else ["z"]
    nodes = [*before, node(name, given, outputs, **attributes), node("Reshape", ["z", "flat"], ["f"])]
    if name == "Split":
        nodes[-1:] = [node("Sub", ["z", "rest"], ["both"]), node("Reshape", ["both", "flat"], ["f"])]
    nodes.append(node("Concat", ["f", "f"], ["y"], axis=1))  # two classes at least
    constants = {"two": np.float32(2), "one": np.float32(1), "flat": whole(1, -1)}
    return write(path, nodes, weights + [tensor(np.asarray(v), k) for k, v in constants.items()], shape, opset)


EXTRA: list[Case] = [
    *[(name, shape, [], {}, ALL) for name, shape in POSITIVE],
    ("Split", ROW, [], {"axis": 1, "split": [3, 3]}, range(9, 13)),
    ("Split", ROW, [whole(3, 3)], {"axis": 1}, FROM_13),
    ("Split", ROW, [], {"axis": 1}, range(9, 18)),
    ("Split", ROW, [], {"axis": 1, "num_outputs": 2}, range(18, 21)),
]


@pytest.mark.parametrize("case", CASES + EXTRA, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[1]))}")
def test_an_operator_computes_what_onnxruntime_does(case: Case, tmp_path: Path) -> None:
    opsets = case[4]
    for opset in sorted({opsets[0], opsets[len(opsets) // 2], opsets[-1]}):
        path = one_operator(tmp_path / "net.onnx", case, opset)
        model, session = load_onnx(path), runtime.InferenceSession(path)
        x = torch.rand(5, *case[1], generator=torch.Generator().manual_seed(1))
        right = np.concatenate([session.run(None, {"x": sample[None].numpy()})[0] for sample in x])
        with torch.no_grad():
            assert np.allclose(model(x).numpy(), right, atol=1e-5), opset
            assert np.allclose(model(x[:1]).numpy(), right[:1], atol=1e-5), opset
    graph = capture(model, x[:1])  # of a batch of one, for any
    with torch.no_grad():
        assert torch.equal(graph.run(model, x), model(x))


IMAGES_ONLY = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Resize"}
IMAGES_ONLY |= {"Upsample", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "PRelu", "Einsum"}
APART = [case for case in CASES + EXTRA if case[0] not in IMAGES_ONLY and case[3].get("mode") is None]


@pytest.mark.parametrize("case", APART, ids=lambda case: f"{case[0]}-{'x'.join(map(str, case[1]))}")
def test_an_operator_computes_the_same_of_samples_apart(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for opset in {case[4][0], case[4][-1]}:
        path = one_operator(tmp_path / "net.onnx", case, opset)
        x = torch.rand(5, *case[1], generator=torch.Generator().manual_seed(1))
        right = load_onnx(path)(x)
        with monkeypatch.context() as patched:
            patched.setitem(WAYS, 1, (False,))
            apart = load_onnx(path)
        assert torch.allclose(apart(x), right, atol=1e-5)


def test_every_operator_of_the_table_is_tried() -> None:
    assert set(OPERATORS) - {case[0] for case in CASES + EXTRA} == {"Linear"}  # this package's own name


@pytest.mark.parametrize("operator", ["Relu", "Sin", "Erf", "Gelu", "Softsign", "Max", "MaxPool", "Slice"])
def test_a_radius_of_a_file_holds_at_points_of_its_box(operator: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case[0] == operator)
    node, tensor = onnx.helper.make_node, onnx.numpy_helper.from_array
    path = one_operator(tmp_path / "net.onnx", case, case[4][-1])
    proto = onnx.load(path)
    proto.graph.node.pop()
    size = load_onnx(path)(torch.rand(1, *case[1])).shape[1] // 2
    proto.graph.node.append(node("MatMul", ["f", "last"], ["y"]))
    proto.graph.initializer.append(tensor(normal(size, 3), "last"))
    onnx.save(proto, path)
    model, session = load_onnx(path), runtime.InferenceSession(path)
    x = torch.rand(4, *case[1], generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = model(x).argmax(1)
    radius = certified_radius(model, x, y, eps_max=0.3).radius
    assert (radius > 0).any()
    for i in range(len(x)):
        for _ in range(50):
            corner = (x[i] + radius[i] * 0.999 * torch.randint(-1, 2, case[1])).clamp(0, 1)[None]
            assert session.run(None, {"x": corner.numpy()})[0].argmax() == y[i]
