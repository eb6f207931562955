"""Hostile calls, a row each: the right result, or one clear error that names the argument.

Nothing hangs, warns, changes the model or its arguments, or gives a positive radius that is not certified.
"""

import copy
import signal
import warnings
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, prune

from acertlab.bounds.box import Box
from acertlab.bounds.ibp import propagate
from acertlab.bounds.margin import certified_margin
from acertlab.radius.attack import attacked_radius, pgd
from acertlab.radius.bracket import radius_bracket
from acertlab.radius.certificate import certify
from acertlab.radius.certified import certified_radius
from acertlab.radius.rootfind.bisection import bisect
from acertlab.radius.rootfind.brent import brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla
from acertlab.radius.search import RadiusResult, RadiusStatus

INF, NAN, HUGE = float("inf"), float("nan"), 10**400
WRONG, INSIDE, CAPPED, LATE, NONFINITE, *_ = RadiusStatus
torch.manual_seed(0)


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """No call may hang."""

    def stop(*_: Any) -> None:
        raise TimeoutError("the call took more than 20 s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


class Model(nn.Module):
    """A function as a forward."""

    def __init__(self, forward: Callable, *layers: nn.Module) -> None:
        super().__init__()
        self.layers, self.function = nn.ModuleList(layers), forward

    def forward(self, x: Tensor) -> Any:
        return self.function(x, *self.layers)


class Counts(nn.Module):
    """Keeps state from call to call, which its logits show."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(64, 10), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x.flatten(1)) + self.calls


class TakesAnything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, *args: Tensor) -> Tensor:
        return self.linear(args[0].flatten(1))


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, scale: float) -> Tensor:
        return x.flatten(1) * scale


class Buffered(nn.Module):
    """No parameters: the weight is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(10, 64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.flatten(1), self.weight)


def written_to(x: Tensor, linear: nn.Module) -> Tensor:
    x = x.clone()
    x[:, 0, 0] = 0
    return linear(x.flatten(1))


def linear(forward: Callable | None = None) -> nn.Module:
    layer = nn.Linear(64, 10)
    return (nn.Sequential(nn.Flatten(), layer) if forward is None else Model(forward, layer)).eval()


def head(*layers: nn.Module, features: int = 64) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 10)).eval()


def mlp(*, classes: int = 10, **values: float) -> nn.Module:
    """Flatten, linear "first", ReLU, linear "last"; ``values`` fill parameters: first_weight=..., last_bias=..."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes)).eval()
    layers = {"first": net[1], "last": net[3]}
    with torch.no_grad():
        for name, value in values.items():
            layer, parameter = name.split("_")
            getattr(layers[layer], parameter).fill_(value)
    return net


def times(factor: float, net: nn.Module) -> nn.Module:
    with torch.no_grad():
        net[1].weight.mul_(factor)
    return net


def normed(**values: float) -> nn.Module:
    """A small CNN with BatchNorm; ``values`` fill what it holds: running_var=..., weight=..."""
    net = head(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), features=144)
    with torch.no_grad():
        for name, value in values.items():
            getattr(net[1], name).fill_(value)
    return net


def tied() -> nn.Module:
    net = mlp()
    with torch.no_grad():
        for parameter in (net[3].weight, net[3].bias):
            parameter[1] = parameter[0]
        net[3].bias[:2] += 10
    return net


def ordered() -> nn.Module:
    """Constant: its logits are 0, 1, ..., 9 for any input."""
    net = mlp(first_weight=0, first_bias=0, last_weight=0)
    with torch.no_grad():
        net[3].bias.copy_(torch.arange(10.0))
    return net


def hooked(hook: Callable, *, before: bool = False) -> nn.Module:
    net = mlp()
    (net[1].register_forward_pre_hook if before else net[1].register_forward_hook)(hook)
    return net


def partly_training(layer: nn.Module) -> nn.Module:
    net = head(layer)
    layer.train()
    return net


def quietly(make: Callable[[], Any]) -> Any:
    """For what torch itself warns of: things that it still has, and people still use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


def inferred(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


class Subclass(Tensor):
    """A tensor of another name."""


def poisoned(value: float) -> Tensor:
    x = X.clone()
    x[1, 0, 0, 0] = value
    return x


NET, X = mlp(), torch.rand(4, 1, 8, 8)
LOGIT = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
Y = NET(X).argmax(1)
COLOURED, COLOURS = head(nn.Conv2d(3, 4, 3), nn.ReLU(), features=144), torch.rand(4, 3, 8, 8)
SHARED = nn.Linear(64, 64)
IN_PLACE = {
    "leaky_relu": lambda x, f: F.leaky_relu(h := f(x.flatten(1)), 0.1, True) + h,
    "relu6": lambda x, f: F.relu6(h := f(x.flatten(1)), True) + h,
    "a method": lambda x, f: (h := f(x.flatten(1))).clamp_(0, 1) + h,
    "a column": lambda x, f: torch.relu_((h := f(x.flatten(1))).narrow(1, 0, 1)) + h,
}
UNTOUCHED = {"model": NET, "x": X, "y": Y, "eps_max": 0.1}
BATCH = "model: its logits for one sample differ by .* beside it, so that it has no certificate"
AGAIN = "model: its logits for one sample differ by .* when asked again"
NO_BATCH = r"x: shape \(.*\) is not \(B, \.\.\.\), samples of at least one number each"


# ---- one clear error: what changes in a call of certified_radius, and of certified_margin if it has the argument -----


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    # x
    "x outside the domain": ({"x": X + 0.5}, ValueError, "x: values from .* outside the domain"),
    "x in grey levels": ({"x": X * 255}, ValueError, r"or another domain; here domain=\(0, 255\), where eps counts"),
    "x NaN": ({"x": poisoned(NAN)}, ValueError, "x: holds 1 NaN"),
    "x infinite": ({"x": poisoned(INF)}, ValueError, "x: holds 1 NaN or infinite"),
    "x None": ({"x": None}, TypeError, "x: must be a floating-point tensor .* not NoneType"),
    "x uint8": ({"x": (X * 255).byte()}, TypeError, "x: must be a floating-point tensor .* not torch.uint8"),
    "x bool": ({"x": X > 0.5}, TypeError, "x: must be a floating-point tensor .* not torch.bool"),
    "x complex": ({"x": X + 0j}, TypeError, "x: must be a floating-point tensor .* not torch.complex64"),
    "x half": (
        {"x": X.half()},
        TypeError,
        "x: bounds are computed in torch.float32 or torch.float64, not torch.float16",
    ),
    "x bfloat16": (
        {"x": X.bfloat16()},
        TypeError,
        "x: bounds are computed in .* not torch.bfloat16; convert x and mod",
    ),
    "x double": ({"x": X.double()}, ValueError, "x: dtype torch.float64 differs from the model's torch.float32"),
    "x colours": ({"x": COLOURS}, ValueError, r"x: the model does not take samples of shape \(3, 8, 8\): RuntimeError"),
    "x sparse": ({"x": X.to_sparse()}, TypeError, "x: must be a dense tensor .* not torch.sparse_coo"),
    "x meta": (
        {"x": X.to("meta")},
        TypeError,
        "x: must be a dense tensor that holds its values, not on the meta device",
    ),
    "x one number": ({"x": X[0, 0, 0, 0], "y": Y[0]}, ValueError, NO_BATCH),
    "x without samples' dimensions": ({"x": X[:, 0, 0, 0]}, ValueError, NO_BATCH),
    "x without pixels": ({"x": X[..., :0]}, ValueError, NO_BATCH),
    # y
    "y above": (
        {"y": torch.tensor([0, 1, 2, 10])},
        ValueError,
        "y: holds labels from 0 to 10; the model has 10 classes",
    ),
    "y negative": ({"y": torch.tensor([0, 1, 2, -1])}, ValueError, "y: holds labels from -1"),
    "y huge": ({"y": torch.full((4,), 2**62)}, ValueError, "y: holds labels from 4611686018427387904"),
    "y short": ({"y": Y[:3]}, ValueError, r"y: shape \(3,\) does not give one label"),
    "y column": ({"y": Y.unsqueeze(1)}, ValueError, r"y: shape \(4, 1\)"),
    "y one-hot": ({"y": F.one_hot(Y, 10)}, ValueError, r"y: shape \(4, 10\)"),
    "y a number": ({"y": Y[0]}, ValueError, r"y: shape \(\)"),
    "y float": ({"y": Y.float()}, TypeError, "y: must be an integer tensor of labels, not torch.float32"),
    "y bool": ({"y": Y > 3}, TypeError, "y: must be an integer tensor of labels, not torch.bool"),
    "y uint16": ({"y": Y.to(torch.uint16)}, TypeError, "y: .* not torch.uint16; int64, int32, int16, int8, uint8 will"),
    "y words": ({"y": ["a", "b", "c", "d"]}, TypeError, "y: must hold whole numbers from 0 on, not <U1"),
    "y meta": ({"y": Y.to("meta")}, TypeError, "y: must be a dense tensor"),
    "y sparse": ({"y": Y.to_sparse()}, TypeError, "y: must be a dense tensor"),
    # eps_max
    **{
        f"eps_max {str(value)[:12]}": ({"eps_max": value}, ValueError, "eps_max = .*: accepted is a finite number > 0")
        for value in (0, -0.1, INF, NAN, "8/0", "wide", None, True, 1e-320, 1e308, HUGE, 0.1j, [0.1], torch.tensor(0.1))
    },
    # the search
    "bound unknown": ({"bound": "deeppoly"}, ValueError, "bound: 'deeppoly' is unknown; choose from 'ibp'"),
    "bound None": ({"bound": None}, ValueError, "bound: None is unknown; choose from 'ibp'"),
    "sound unknown": ({"sound": "float16"}, ValueError, "sound: 'float16' is unknown; choose False, True or 'float32'"),
    "sound crown": (
        {"sound": True, "bound": "crown"},
        ValueError,
        "sound: rounding errors are bounded for bound='ibp'",
    ),
    "solver unknown": ({"solver": "newton"}, ValueError, "solver = 'newton': accepted is brentq, bisect, chan"),
    "solver list": ({"solver": ["brentq"]}, ValueError, r"solver = \['brentq'\]: accepted is brentq"),
    "solver function": ({"solver": brentq}, ValueError, "solver = <function brentq .*: accepted is brentq"),
    "xtol zero": ({"xtol": 0.0}, ValueError, "xtol = 0.0: accepted is a finite number > 0 and < 1"),
    "xtol NaN": ({"xtol": NAN}, ValueError, "xtol = nan: accepted is a finite number > 0 and < 1"),
    "xtol one": ({"xtol": 1}, ValueError, "xtol = 1: accepted is a finite number > 0 and < 1"),
    "xtol word": ({"xtol": "1e-5"}, ValueError, "xtol = '1e-5': accepted is a finite number > 0 and < 1"),
    "rtol negative": ({"rtol": -1e-3}, ValueError, "rtol = -0.001: accepted is a finite number >= 0 and < 1"),
    "rtol None": ({"rtol": None}, ValueError, "rtol = None: accepted is a finite number >= 0 and < 1"),
    "rtol tensor": ({"rtol": torch.tensor(1e-3)}, ValueError, "rtol = tensor.*: accepted is a finite number"),
    "maxiter zero": ({"maxiter": 0}, ValueError, "maxiter = 0: accepted is a whole number >= 1"),
    "maxiter float": ({"maxiter": 10.0}, ValueError, "maxiter = 10.0: accepted is a whole number >= 1"),
    "batch_size zero": ({"batch_size": 0}, ValueError, "batch_size = 0: accepted is a whole number >= 1"),
    "memory text": ({"memory": "1 GB"}, ValueError, "memory = .1 GB.: accepted is a whole number >= 1"),
    "warm_start short": (
        {"warm_start": torch.zeros(3)},
        ValueError,
        r"warm_start: must be a real tensor of shape \(4,\)",
    ),
    "warm_start number": ({"warm_start": 0.1}, ValueError, "warm_start: must be a real tensor .* not float"),
    "warm_start complex": ({"warm_start": 0j * Y}, ValueError, r"warm_start: .* not torch.complex64 \(4,\)"),
    "warm_start meta": ({"warm_start": Y.to("meta")}, TypeError, "warm_start: must be a dense tensor"),
    # domain
    **{
        f"domain {str(value)[:14]}": ({"domain": value}, ValueError, r"domain: .* is not \(low, high\) with low < high")
        for value in (
            (1.0, 0.0),
            (0, 0),
            (NAN, 1),
            (0, NAN),
            "01",
            (0,),
            0,
            {0, 1},
            np.array([0, 1]),
            (X * 0, X),
            ("0", "1"),
            (None, 1),
            (0, None),
            (0j, 1),
        )
    },
    "domain narrow": ({"domain": (0.4, 0.5)}, ValueError, r"x: values from .* outside the domain \(0.4, 0.5\)"),
    # what a model is
    "model function": ({"model": lambda x: x}, TypeError, "model: must be a torch.nn.Module, not function"),
    "model None": ({"model": None}, TypeError, "model: must be a torch.nn.Module, not NoneType"),
    "model class": ({"model": nn.Linear}, TypeError, "model: must be a torch.nn.Module, not type"),
    "in training": ({"model": normed().train()}, ValueError, r"model: is in training mode.*call model\.eval\(\)"),
    "BatchNorm in training": ({"model": partly_training(nn.BatchNorm2d(1))}, ValueError, "model: is in training mode"),
    "Dropout in training": ({"model": partly_training(nn.Dropout(0.5))}, ValueError, "model: is in training mode"),
    "BatchNorm without statistics": ({"model": head(nn.BatchNorm2d(1, track_running_stats=False))}, ValueError, BATCH),
    "half": ({"model": mlp().half()}, ValueError, "x: dtype torch.float32 differs from the model's torch.float16"),
    "half, x too": ({"model": mlp().half(), "x": X.half()}, TypeError, "x: .* not torch.float16; convert x and model"),
    "double buffers": (
        {"model": Buffered().double().eval()},
        ValueError,
        "x: dtype torch.float32 differs .* torch.float64",
    ),
    "meta": ({"model": mlp().to("meta")}, ValueError, "x: device cpu differs from the model's meta"),
    "lazy": (
        {"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval()},
        ValueError,
        "model: 1.weight has no val",
    ),
    # what it returns
    "tuple": (
        {"model": linear(lambda x, f: (f(x.flatten(1)), x))},
        ValueError,
        r"model: returns several outputs .*: 0 \(1, 10\), 1 \(1, 1, 8, 8\)\. .*acertlab.select_output\(model, 0\)",
    ),
    "None": ({"model": linear(lambda x, f: None)}, ValueError, "model: its output .* is NoneType"),
    "1-D": ({"model": linear(lambda x, f: f(x.flatten(1))[:, 0]), "y": Y + 2}, ValueError, "y: .* has one logit, so 0"),
    "4-D": ({"model": nn.Conv2d(1, 10, 3).eval()}, ValueError, "model: its output .* must be .B, classes"),
    "one logit": ({"model": LOGIT, "y": Y + 2}, ValueError, "y: .* the model has one logit, so 0"),
    "two rows a sample": (
        {"model": linear(lambda x, f: f(torch.cat([x, x]).flatten(1)))},
        ValueError,
        r"is \(2, 10\);",
    ),
    "double logits": (
        {"model": linear(lambda x, f: f(x.flatten(1)).double())},
        ValueError,
        "model: its output .*float64",
    ),
    "integer logits": ({"model": linear(lambda x, f: f(x.flatten(1)).long())}, ValueError, "model: its output .*int64"),
    # what it does
    "wrong width": (
        {"model": head(features=63)},
        ValueError,
        "x: the model does not take samples .*mat1 and mat2 shapes",
    ),
    "hard-coded batch": ({"model": linear(lambda x, f: f(x.reshape(4, 64)))}, ValueError, "x: the model does not take"),
    "raises": (
        {"model": linear(lambda x, f: x[:, 5])},
        ValueError,
        "x: the model does not take .*: IndexError: index 5",
    ),
    "two inputs": ({"model": TwoInputs().eval()}, ValueError, "x: the model does not take .* argument: 'scale'"),
    "embedding": ({"model": nn.Sequential(nn.Flatten(), nn.Embedding(3, 3)).eval()}, ValueError, "x: .*indices"),
    "branch on data": (
        {"model": linear(lambda x, f: f(x.flatten(1)) if x.sum() > 0 else f(-x.flatten(1)))},
        TypeError,
        "model: the forward of Model cannot be captured: its control flow depends on the values",
    ),
    "batch size": ({"model": linear(lambda x, f: f(x.flatten(1)) * x.shape[0])}, ValueError, BATCH),
    "batch mean": ({"model": linear(lambda x, f: f((x - x.mean(0, True)).flatten(1)))}, ValueError, BATCH),
    "batch sum": ({"model": linear(lambda x, f: f(x.flatten(1) + 0.01 * x.sum()))}, ValueError, BATCH),
    "batch maximum": ({"model": linear(lambda x, f: f(x.flatten(1) + x.amax()))}, ValueError, BATCH),
    "batch turned": ({"model": linear(lambda x, f: f(x.flip(0).flatten(1)))}, ValueError, BATCH),
    "batch rolled": ({"model": linear(lambda x, f: f(x.roll(1, 0).flatten(1)))}, ValueError, BATCH),
    "batch's last": ({"model": linear(lambda x, f: f((x + x[-1:]).flatten(1)))}, ValueError, BATCH),
    "batch's first": (
        {"model": linear(lambda x, f: f((x + x[:1]).flatten(1)))},
        ValueError,
        "model: .* with one before",
    ),
    "random": ({"model": linear(lambda x, f: f(x.flatten(1)) + torch.randn(10))}, ValueError, AGAIN),
    "dropout of old": ({"model": linear(lambda x, f: f(F.dropout(x.flatten(1))))}, ValueError, AGAIN),
    "state": ({"model": Counts().eval()}, ValueError, AGAIN),
    # layers
    "softmax": (
        {"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)).eval()},
        TypeError,
        r"model: a softmax has no interval rule\. If it is the last layer, drop it",
    ),
    "LSTM": (
        {"model": Model(lambda x, f: f(x.squeeze(1))[0][:, -1], nn.LSTM(8, 10, batch_first=True)).eval()},
        TypeError,
        "model: no interval rule for operator '.*' in 'layers.0' of type LSTM",
    ),
    "tangent": (
        {"model": linear(lambda x, f: torch.tan(f(x.flatten(1))))},
        TypeError,
        "no interval rule for operator 'tan'",
    ),
    "DataParallel": ({"model": nn.DataParallel(linear()).eval()}, TypeError, "model: .*DataParallel"),
    "compiled": ({"model": torch.compile(linear(), backend="eager")}, TypeError, "model: .*OptimizedModule"),
    "ScriptModule": ({"model": quietly(lambda: torch.jit.trace(linear(), X))}, TypeError, "model: .*TracedModule"),
}


@pytest.mark.parametrize("change, kind, message", REFUSED.values(), ids=REFUSED)
def test_one_clear_error(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    call = UNTOUCHED | change
    before = state(call)
    with pytest.raises(kind, match=f"(?s){message}"):
        certified_radius(**call)
    if set(change) <= {"model", "x", "y", "bound", "domain", "sound"}:
        with pytest.raises(kind, match=f"(?s){message}"):
            certified_margin(**{("eps" if name == "eps_max" else name): value for name, value in call.items()})
    assert state(call) == before


def state(call: dict[str, Any]) -> list[tuple]:
    """What must not change: the version, the gradient and the mode of everything in a call."""
    model, found = call["model"], []
    tensors = [value for value in call.values() if isinstance(value, Tensor)]
    if isinstance(model, nn.Module):
        tensors += [*model.parameters(), *model.buffers()]
        found = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    known = [t for t in tensors if not is_lazy(t) and not t.is_inference()]
    return found + [(id(t), t._version, t.requires_grad, t.grad is None) for t in known]


# ---- the right result: what changes in a call of certified_radius, and the statuses expected -------------------------


def own(model: nn.Module, x: Tensor = X, **more: Any) -> dict[str, Any]:
    """A call with the labels that the model itself gives."""
    with torch.no_grad():
        return {"model": model, "x": x, "y": model(x.clone()).argmax(1), **more}


def sharing(x: Tensor, first: nn.Module, last: nn.Module) -> Tensor:
    return last(first(x.flatten(1)).relu() + first(1 - x.flatten(1)).relu())


POSITIVE = {INSIDE, CAPPED}
NUMBERS: dict[str, tuple[dict[str, Any], set[RadiusStatus]]] = {
    "first weight NaN": ({"model": mlp(first_weight=NAN)}, {NONFINITE}),
    "last bias NaN": ({"model": mlp(last_bias=NAN)}, {NONFINITE}),
    "first weight infinite": ({"model": mlp(first_weight=INF)}, {NONFINITE}),
    "last weight -infinite": ({"model": mlp(last_weight=-INF)}, {NONFINITE}),
    "first bias -infinite": (own(mlp(first_bias=-INF)), {CAPPED}),  # every ReLU is closed for good
    "overflows": (own(mlp(first_weight=1e38)), {NONFINITE}),
    "overflows in the bound": (own(times(1e38, mlp())), POSITIVE),
    "bias of 1e38": (own(times(1e-3, mlp(first_bias=1e38))), {NONFINITE, CAPPED}),
    "denormal weights": (own(times(1e-40, mlp())), {CAPPED}),
    "denormal network": (own(mlp(first_weight=1e-40, first_bias=0, last_weight=1e-3, last_bias=0)), {WRONG}),
    "constant": (own(ordered()), {CAPPED}),
    "constant, all alike": (own(mlp(first_weight=0, first_bias=0, last_weight=0, last_bias=0)), {WRONG}),
    "tied": ({"model": tied(), "y": torch.tensor([0, 1, 0, 1])}, {WRONG}),
    "1,000 classes": (own(mlp(classes=1000)), POSITIVE),
    "two classes": (own(mlp(classes=2)), POSITIVE),
    "running_var negative": ({"model": normed(running_var=-1)}, {NONFINITE}),
    "running_var NaN": ({"model": normed(running_var=NAN)}, {NONFINITE}),
    "running_var infinite": (own(normed(running_var=INF)), {CAPPED, NONFINITE}),
    "running_var zero": (own(normed(running_var=0)), POSITIVE),
    "running_var just above -eps": (own(normed(running_var=-9.9e-6)), POSITIVE),
    "running_mean NaN": ({"model": normed(running_mean=NAN)}, {NONFINITE}),
    "running_mean 3e38": (own(normed(running_mean=3e38)), {CAPPED, NONFINITE}),
    "BatchNorm weight zero": (own(normed(weight=0)), {CAPPED}),
    "BatchNorm weight infinite": ({"model": normed(weight=INF)}, {NONFINITE}),
}
RIGHT: dict[str, tuple[dict[str, Any], set[RadiusStatus]]] = {
    **NUMBERS,
    "empty": ({"x": X[:0], "y": Y[:0]}, set()),
    "one sample": ({"x": X[:1], "y": Y[:1]}, POSITIVE),
    "no image twice": ({"x": X[:1].expand(70, -1, -1, -1), "y": Y[:1].expand(70)}, POSITIVE),  # more than a tile
    "misclassified": ({"y": (Y + 1) % 10}, {WRONG}),
    "features": (own(nn.Sequential(nn.Linear(64, 10)).eval(), X.flatten(1)), POSITIVE),
    "an image is a batch of rows": ({"x": X[0], "y": Y[:1]}, POSITIVE | {WRONG}),
    "no layers": (own(nn.Flatten().eval()), POSITIVE),
    "edges of the domain": (own(NET, X.round()), POSITIVE),
    "pixels to 255": (own(NET, X * 255, domain=(0, 255), eps_max=8.0), POSITIVE),
    "no domain": (own(NET, X - 0.5, domain=None), POSITIVE),
    "domain of one side": (own(NET, X + 3, domain=(0, INF)), POSITIVE),
    "domain of truth values": ({"domain": (False, True)}, POSITIVE),
    "eps_max 1e30, no domain": ({"eps_max": 1e30, "domain": None}, POSITIVE),
    "eps_max 3e38, no domain": ({"eps_max": 3e38, "domain": None}, POSITIVE),
    "eps_max 1e-37": ({"eps_max": 1e-37}, {CAPPED}),
    "tolerances of 1e-300": ({"xtol": 1e-300, "rtol": 0, "maxiter": 10**9}, POSITIVE),
    "tolerances of 1e-300, bisect": ({"xtol": 1e-300, "rtol": 0, "maxiter": HUGE, "solver": "bisect"}, POSITIVE),
    "tolerances of 1e-300, chandrupatla": ({"xtol": 1e-300, "rtol": 0, "solver": "chandrupatla"}, POSITIVE),
    "coarse": ({"xtol": 0.9, "rtol": 0.9}, POSITIVE),
    "one iteration": ({"maxiter": 1}, POSITIVE | {LATE}),
    "a byte of memory": ({"memory": 1}, POSITIVE),
    "memory as the device has": ({"memory": None}, POSITIVE),
    "memory without end": ({"memory": HUGE, "batch_size": HUGE}, POSITIVE),
    "gradient, empty": ({"x": X[:0], "y": Y[:0], "differentiable": True}, set()),
    "gradient, nothing correct": ({"y": (Y + 1) % 10, "differentiable": True}, {WRONG}),
    "gradient, NaN weights": ({"model": mlp(first_weight=NAN), "differentiable": True}, {NONFINITE}),
    "works in place on x": (own(linear(lambda x, f: f(F.relu(x.sub_(0.5), True).flatten(1)))), POSITIVE),
    "works in place on x by a layer": (own(head(nn.ReLU(True))), POSITIVE),
    "used after a change in place": (own(linear(lambda x, f: F.relu(h := f(x.flatten(1)), True) + h)), POSITIVE),
    **{f"used after a change in place by {name}": (own(linear(f)), POSITIVE) for name, f in IN_PLACE.items()},
    "item assignment": (own(linear(written_to)), POSITIVE),
    "any number of inputs": (own(TakesAnything().eval()), POSITIVE),
    "hook": (own(hooked(lambda layer, args, out: out + 1)), POSITIVE),
    "hook before": (own(hooked(lambda layer, args: (2 * args[0],), before=True)), POSITIVE),
    "LayerNorm": (own(nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 10)).eval()), POSITIVE),
    "sine": (own(linear(lambda x, f: torch.sin(f(x.flatten(1))))), POSITIVE),
    "a layer twice": (own(nn.Sequential(nn.Flatten(), SHARED, nn.ReLU(), SHARED, nn.Linear(64, 10)).eval()), POSITIVE),
    "a layer on two inputs": (own(Model(sharing, nn.Linear(64, 8), nn.Linear(8, 10)).eval()), POSITIVE),
    "BatchNorm on two inputs": (
        own(Model(sharing, nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8)), nn.Linear(8, 10)).eval()),
        POSITIVE,
    ),
    "a buffer for a weight": (own(Buffered().eval()), POSITIVE),
    "a class twice": (own(Model(lambda x, f: f(x.flatten(1)).repeat(1, 2), nn.Linear(64, 5)).eval()), {WRONG}),
    "weight_norm": (own(nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 10))).eval()), POSITIVE),
    "spectral_norm": (
        own(nn.Sequential(nn.Flatten(), parametrizations.spectral_norm(nn.Linear(64, 10))).eval()),
        POSITIVE,
    ),
    "weight_norm of old": (
        own(nn.Sequential(nn.Flatten(), quietly(lambda: nn.utils.weight_norm(nn.Linear(64, 10)))).eval()),
        POSITIVE,
    ),
    "pruned": (
        own(nn.Sequential(nn.Flatten(), prune.l1_unstructured(nn.Linear(64, 10), "weight", 0.5)).eval()),
        POSITIVE,
    ),
    "a traced module": (own(torch.fx.symbolic_trace(mlp()).eval()), POSITIVE),
    "PReLU of slope -2": (
        own(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.PReLU(init=-2.0), nn.Linear(16, 10)).eval()),
        POSITIVE,
    ),
    "Dropout": (own(head(nn.Dropout(0.5))), POSITIVE),
    "batch size by its shape": (own(linear(lambda x, f: f(x.view(x.shape[0], -1)))), POSITIVE),
}


@pytest.mark.parametrize("change, statuses", RIGHT.values(), ids=RIGHT)
def test_the_right_result(change: dict[str, Any], statuses: set[RadiusStatus]) -> None:
    assert_certified(UNTOUCHED | change, statuses)


SOUND = [{"sound": True}, {"sound": "float32"}, {"bound": "crown"}]


@pytest.mark.parametrize("kind", SOUND, ids=str)
@pytest.mark.parametrize("change, statuses", NUMBERS.values(), ids=NUMBERS)
def test_the_right_result_by_other_bounds(change: dict[str, Any], statuses: set[RadiusStatus], kind: dict) -> None:
    """Sound bounds may prove less: a tie or an overflow within the roundings; but never more."""
    plain = certified_radius(**UNTOUCHED | change)
    more = set() if "bound" in kind else {NONFINITE, WRONG, INSIDE}
    result = assert_certified(UNTOUCHED | change | kind, statuses | more)
    if "sound" in kind:
        assert (result.radius <= plain.radius * (1 + 1e-4)).all()


def assert_certified(call: dict[str, Any], statuses: set[RadiusStatus]) -> RadiusResult:
    """Statuses as expected; radii within limits, certified anew, and true of points inside; nothing else changed."""
    before, random = state(call), torch.get_rng_state()
    result = certified_radius(**call)
    assert state(call) == before and torch.equal(torch.get_rng_state(), random)
    model, x, y, radius = call["model"], call["x"].detach(), call["y"].long(), result.radius.detach()
    assert set(result.status.tolist()) <= {int(s) for s in statuses} and len(radius) == len(result.status) == len(x)
    assert call.get("differentiable") or not radius.requires_grad
    assert not any(getattr(result, name).requires_grad for name in ("margin", "upper", "status", "evaluations"))
    assert ((radius >= 0) & (radius <= torch.tensor(float(call["eps_max"]), dtype=radius.dtype))).all()
    positive = radius > 0
    assert not positive[result.status == WRONG].any() and not positive[result.status == NONFINITE].any()
    kind = {name: call[name] for name in ("bound", "sound", "domain") if name in call}
    assert (certified_margin(model, x, y, radius, **kind)[positive] < 0).all()
    low, high = call.get("domain", (0.0, 1.0)) or (-INF, INF)
    x, y, radius = x[positive], y[positive], radius[positive].to(x.dtype).view(-1, *[1] * (x.dim() - 1))
    for corner in (0.0, 0.5, 1.0):  # all of the corners' directions, half of them, none
        direction = 2 * torch.rand(50, *x.shape, dtype=x.dtype) - 1
        direction = torch.where(torch.rand(direction.shape) < corner, direction.sign(), direction)
        for points in (x + radius * direction).clamp(low, high):
            logits = model(points)
            slack = 1e-6 * logits.abs().amax(1)
            assert (logits.gather(1, y.unsqueeze(1)).squeeze(1) >= logits.amax(1) - slack).all()
    return result


# ---- the same result as that of a plain call -------------------------------------------------------------------------


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "x with gradient": ({"x": X.clone().requires_grad_()}, {}),
    "x a parameter": ({"x": nn.Parameter(X.clone())}, {}),
    "x a subclass": ({"x": X.as_subclass(Subclass)}, {}),
    "x not contiguous": ({"x": X.transpose(2, 3).contiguous().transpose(2, 3)}, {}),
    "x one number apart": ({"x": torch.stack([X, X], -1)[..., 0]}, {}),
    "x channels last": (own(COLOURED, COLOURS.to(memory_format=torch.channels_last)), own(COLOURED, COLOURS)),
    "x expanded": (
        {"x": X[:1].expand(4, -1, -1, -1), "y": Y[:1].expand(4)},
        {"x": X[:1].repeat(4, 1, 1, 1), "y": Y[:1].repeat(4)},
    ),
    "x of inference": ({"x": inferred(X)}, {}),
    "y uint8": ({"y": Y.byte()}, {}),
    "y int8": ({"y": Y.char()}, {}),
    "y int32": ({"y": Y.int()}, {}),
    "eps_max numpy float32": ({"eps_max": np.float32(0.1)}, {"eps_max": float(np.float32(0.1))}),
    "eps_max numpy float64": ({"eps_max": np.float64(0.1)}, {}),
    "eps_max numpy integer": ({"eps_max": np.int64(1)}, {"eps_max": 1.0}),
    "eps_max fraction": ({"eps_max": Fraction(1, 10)}, {}),
    "other numbers numpy": (
        {"xtol": np.float32(1e-4), "maxiter": np.int64(50), "batch_size": np.int32(2)},
        {"xtol": float(np.float32(1e-4))},
    ),
    "domain a list": ({"domain": [0, 1]}, {}),
    "domain numpy": ({"domain": (np.float32(0), np.int64(1))}, {}),
    "hook that watches": ({"model": hooked(lambda layer, args, out: None)}, {}),
    "frozen": ({"model": mlp().requires_grad_(False)}, {}),
    "channels last model": (own(COLOURED.to(memory_format=torch.channels_last), COLOURS), own(COLOURED, COLOURS)),
}


@pytest.mark.parametrize("change, plain", SAME.values(), ids=SAME)
def test_the_same_result(change: dict[str, Any], plain: dict[str, Any]) -> None:
    call = UNTOUCHED | change
    if "model" in change and not plain:
        plain = {"model": copy.deepcopy(call["model"])}
        for layer in plain["model"].modules():
            layer._forward_hooks.clear()
            layer.requires_grad_(True)
    result, expected = assert_certified(call, set(RadiusStatus)), certified_radius(**UNTOUCHED | plain)
    assert torch.equal(result.radius, expected.radius) and torch.equal(result.status, expected.status)


@pytest.mark.parametrize("value", [NAN, INF, -1.0, 0.0, 1e30, 1e-40], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_warm_starts_never_change_the_guarantee(value: float, dtype: torch.dtype) -> None:
    guess = torch.full((4,), value).to(dtype).requires_grad_()
    result, cold = assert_certified(UNTOUCHED | {"warm_start": guess}, POSITIVE), certified_radius(**UNTOUCHED)
    assert ((result.radius - cold.radius).abs() <= 1e-8 + 1e-5 * cold.radius).all()


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_the_same_result_in_any_context(context: Callable) -> None:
    expected = certified_radius(**UNTOUCHED), certified_margin(NET, X, Y, 0.01).detach()
    with context():
        result = certified_radius(**UNTOUCHED), certified_margin(NET, X, Y, 0.01).detach()
    assert torch.equal(result[0].radius, expected[0].radius) and torch.equal(result[1], expected[1])


def test_no_gradient_in_inference_mode() -> None:
    with (
        torch.inference_mode(),
        pytest.raises(ValueError, match="differentiable: torch.inference_mode.. admits no grad"),
    ):
        certified_radius(**UNTOUCHED, differentiable=True)


# ---- other rooms -----------------------------------------------------------------------------------------------------


def zeros(*shape: int, **kind: Any) -> Tensor:
    return torch.zeros(*shape, **kind)


OTHERS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    **{
        f"eps {str(eps)[:24]}": (lambda eps=eps: certified_margin(NET, X, Y, eps), ValueError, "eps: ")
        for eps in (-0.1, NAN, INF, 1e308, zeros(3), zeros(4, 1), zeros(1), torch.tensor([0.1, -1, 0.1, 0.1]))
    },
    **{
        f"eps {str(eps)[:24]} of no kind": (lambda eps=eps: certified_margin(NET, X, Y, eps), TypeError, "eps: must be")
        for eps in (
            None,
            "0.1",
            0.1j,
            True,
            [0.1] * 4,
            np.full(4, 0.1),
            zeros(4) > 0,
            1j * zeros(4),
            zeros(4, device="meta"),
        )
    },
    "Box of numbers": (lambda: Box(0.0, 1.0), TypeError, "lower: .* not float"),
    "Box of complex": (lambda: Box(X + 0j, X + 0j), TypeError, "lower: .* not torch.complex64"),
    "Box on two devices": (lambda: Box(X, X.to("meta")), ValueError, "upper: is on meta, lower on cpu"),
    "Box around words": (lambda: Box.around(X, "0.1"), TypeError, "eps: must be a real number"),
    "Box around, domain": (lambda: Box.around(X, 0.1, (None, 1)), ValueError, "domain: .* is not"),
    "propagate half": (lambda: propagate(NET, Box(X.half(), X.half())), ValueError, "box: dtype torch.float16 differs"),
    "propagate x": (lambda: propagate(NET, X), TypeError, "box: must be an acertlab.Box, not Tensor"),
    "propagate a function": (lambda: propagate(F.relu, Box(X, X)), TypeError, "model: must be a torch.nn.Module"),
    "propagate in training": (lambda: propagate(nn.BatchNorm2d(1), Box(X, X)), ValueError, r"call model\.eval\(\)"),
    "propagate compiled": (
        lambda: propagate(torch.compile(linear(), backend="eager"), Box(X, X)),
        TypeError,
        "model: is wrapped in OptimizedModule; give the model inside, model._orig_mod",
    ),
    "pgd eps": (lambda: pgd(NET, X, Y, -0.1), ValueError, "eps: must be finite and >= 0"),
    "pgd steps": (lambda: pgd(NET, X, Y, 0.1, steps=0), ValueError, "steps = 0: accepted is a whole number >= 1"),
    "pgd start": (lambda: pgd(NET, X, Y, 0.1, start=X[:2]), ValueError, "start: must be a tensor like x"),
    "pgd NaN": (lambda: pgd(NET, X * NAN, Y, 0.1), ValueError, "x: holds 256 NaN"),
    "attacked_radius eps_max": (lambda: attacked_radius(NET, X, Y, INF), ValueError, "eps_max = inf: accepted is a f"),
    "radius_bracket bound": (lambda: radius_bracket(NET, X, Y, 0.1, bound="x"), ValueError, "bound: 'x' is unknown"),
    "certify eps_max": (
        lambda: certify(NET, (X, Y), 0, progress=False),
        ValueError,
        "eps_max = .*: accepted is a finite number",
    ),
    "certify nothing": (lambda: certify(NET, [], 0.1, progress=False), ValueError, "loader: gave no samples"),
    "certify x": (lambda: certify(NET, X, 0.1, progress=False), TypeError, "loader: must .* not Tensor"),
    "certify triples": (lambda: certify(NET, [(X, Y, Y)], 0.1, progress=False), TypeError, "loader: its item 0 is"),
    "certify labels": (lambda: certify(NET, [(X, Y + 10)], 0.1, progress=False), ValueError, "y: holds labels from"),
}


@pytest.mark.parametrize("call, kind, message", OTHERS.values(), ids=OTHERS)
def test_one_clear_error_elsewhere(call: Callable, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=f"(?s){message}"):
        call()


@pytest.mark.parametrize(
    "eps", [0, 0.0, -0.0, 1e-320, np.float32(0), zeros(4).double(), zeros(4).half(), zeros(4).long()]
)
def test_eps_of_any_kind_of_number(eps: float | Tensor) -> None:
    logits = NET(X)
    own_margin = (logits - logits.gather(1, Y[:, None])).scatter(1, Y[:, None], -INF).amax(1)
    assert torch.allclose(certified_margin(NET, X, Y, eps), own_margin, atol=1e-6)
    assert (certified_margin(NET, X, Y, 1e30) > 0).all()  # cut to the domain
    assert certified_margin(NET, X[:0], Y[:0], zeros(0)).shape == (0,)


def sign(x: Tensor) -> Tensor:
    return torch.where(x < 0.3, -1.0, 1.0)


@pytest.mark.parametrize("solver", [brentq, bisect, chandrupatla])
def test_root_finders_end_and_are_right(solver: Callable) -> None:
    """What the tests of radius/rootfind do not ask: endless tolerances, jumps and noise."""
    for f in (lambda x: x - 0.3, sign):
        found = solver(f, 0.0, 1.0, xtol=1e-300, rtol=0, maxiter=10**9)
        assert abs(found.root.item() - 0.3) < 1e-12
    noise = torch.Generator().manual_seed(0)
    found = solver(
        lambda x: torch.randn(x.shape, generator=noise, dtype=x.dtype), 0.0, 1.0, fa=-1.0, fb=1.0, maxiter=1000
    )
    assert 0 <= found.lower.item() <= found.root.item() <= found.upper.item() <= 1


def test_the_tables_are_large_enough() -> None:
    assert len(REFUSED) + len(RIGHT) + len(SAME) + len(OTHERS) >= 60
