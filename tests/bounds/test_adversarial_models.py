"""Models whose forward hides something: each is bounded as it computes, or refused by one clear error.

The judge is the model itself, on a dense grid of the boxes that were certified.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import acertlab as al

EPS = 0.4
X = torch.tensor([[0.5], [0.35], [0.7]])


class Net(nn.Module):
    """hidden = first(x), changed by ``f``; logits = last(hidden). Class 0 on a middle stretch, others beyond."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.last, self.norm = nn.Linear(1, 6), nn.Linear(6, 3), nn.BatchNorm1d(6)
        self.norm.running_mean.uniform_(-0.2, 0.2)
        self.drop, self.drop2d, self.act = nn.Dropout(0.5), nn.Dropout2d(0.5), nn.ReLU()
        self.flag, self.table = True, {"scale": 1.5, "list": [1, 2]}
        self.constant, self.f = torch.rand(6), f
        self.register_buffer("shift", torch.rand(6))
        for p in self.parameters():
            p.data.mul_(2)
        self.eval()

    def forward(self, x: Tensor, features: bool = False) -> Tensor:
        hidden = self.f(self, self.first(x))
        return hidden if features else self.last(hidden)


def kink(h: Tensor) -> Tensor:
    """Idle on a part of the domain, steep beyond."""
    return h + 8 * F.relu(h - 0.9)


def in_slices(m: Net, h: Tensor) -> Tensor:
    h[:, :2] *= 3
    h[:, 3] = h[:, 0]
    return kink(h)


def through(view: Callable[[Tensor], Tensor], change: Callable[[Tensor], Any]) -> Callable[[Net, Tensor], Tensor]:
    """Changes a view in place, and uses what it views."""

    def f(m: Net, h: Tensor) -> Tensor:
        change(view(h))
        return h

    return f


def swallowing(m: Net, h: Tensor) -> Tensor:
    try:
        return kink(h) if type(h) is Tensor else h
    except Exception:
        return h


def counting(m: Net, h: Tensor) -> Tensor:
    m.calls = getattr(m, "calls", 0) + 1
    return kink(h) if m.calls > 3 else h


def asserting(m: Net, h: Tensor) -> Tensor:
    assert h.dim() == 2 and h.shape[1] == 6, "six features"
    return kink(h)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda h: h.view(-1, 2, 3),
    "reshape": lambda h: h.reshape(-1, 3, 2),
    "slice": lambda h: h[:, 1:4],
    "select": lambda h: h[:, 2],
    "transpose": lambda h: h.transpose(0, 1),
    "T": lambda h: h.T,
    "mT": lambda h: h.mT,
    "unsqueeze": lambda h: h.unsqueeze(1),
    "narrow": lambda h: h.narrow(1, 0, 2),
    "chunk": lambda h: h.chunk(2, 1)[1],
    "split": lambda h: h.split(2, 1)[0],
    "unbind": lambda h: h.unbind(1)[3],
    "detach": lambda h: h.detach(),
    "real": lambda h: h.real,
    "flatten": lambda h: h.flatten(1),
    "as_strided": lambda h: h.as_strided((len(h), 2), (6, 1)),
    "diagonal": lambda h: h.view(-1, 2, 3).diagonal(dim1=1, dim2=2),
    "unfold": lambda h: h.unfold(1, 2, 2),
    "contiguous": lambda h: h.contiguous(),
    "to": lambda h: h.to(h.dtype),
    "dropout": lambda h: F.dropout(h, 0.5, False),
    "dropout2d": lambda h: F.dropout2d(h[:, :, None, None], 0.5, False)[:, :, 0, 0],
    "alpha_dropout": lambda h: F.alpha_dropout(h, 0.5, False),
    "identity": lambda h: nn.Identity()(h),
    "expand_as": lambda h: h.expand_as(h),
    "squeeze": lambda h: h.unsqueeze(2).squeeze(2),
    "movedim": lambda h: h.movedim(0, 1),
    "swapaxes": lambda h: h.swapaxes(0, 1),
    "permute": lambda h: h.permute(1, 0),
    "view_as": lambda h: h.view_as(h),
    "atleast_3d": lambda h: torch.atleast_3d(h),
    "tensor_split": lambda h: h.tensor_split(3, 1)[1],
    "hsplit": lambda h: h.hsplit(2)[0],
    "ravel": lambda h: h.ravel(),
    "getitem": lambda h: h[..., None],
    "squeeze_": lambda h: h.squeeze(),
    "adjoint": lambda h: h.adjoint(),
    "conj": lambda h: h.conj(),
    "positive": lambda h: h.positive(),
}
CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "relu_": lambda v: v.relu_(),
    "mul_": lambda v: v.mul_(-3.0),
    "leaky_relu": lambda v: F.leaky_relu(v, 3.0, inplace=True),
    "clamp_": lambda v: v.clamp_(-0.2, 0.3),
}


def hooked(kind: str, where: str) -> nn.Module:
    """A hook on a layer or on the model, which changes what goes in or comes out beyond the clean samples."""
    model = Net(lambda m, h: m.act(h))
    module = {"first": model.first, "act": model.act, "last": model.last, "model": model}[where]
    if kind == "pre":
        module.register_forward_pre_hook(lambda mod, args: (args[0] + 6 * F.relu(args[0] - 0.75),))
    elif kind == "post":
        module.register_forward_hook(lambda mod, args, out: out + 10 * F.relu(out - 0.6).flip(1))
    elif kind == "kwargs":
        module.register_forward_pre_hook(lambda mod, args, kw: ((2 * args[0],), kw), with_kwargs=True)
    else:
        plain = module.forward
        module.forward = lambda x: kink(plain(x))
    return model


def with_made_weights(make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    model = Net(lambda m, h: F.relu(h))
    model.last = make(model.last)
    return model.eval()


def tied() -> nn.Module:
    model = Net(lambda m, h: m.square(F.relu(m.square(h))))
    model.square = nn.Linear(6, 6)
    return model.eval()


def replaced() -> nn.Module:
    model = Net(lambda m, h: F.relu(h))
    al.certified_radius(model, X, model(X).argmax(1), EPS)  # remembered, then another layer
    model.act = nn.Identity().eval()
    model.f = lambda m, h: kink(m.act(h))
    return model


def doubled() -> nn.Module:
    model = Net(lambda m, h: F.relu(h))
    model.last.weight = nn.Parameter(model.last.weight.detach() * 2)
    return model


FORWARDS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "is_tensor": lambda m, h: kink(h) if torch.is_tensor(h) else h,
    "isinstance": lambda m, h: kink(h) if isinstance(h, Tensor) else h,
    "type is": swallowing,
    "is_compiling": lambda m, h: h if torch.compiler.is_compiling() else kink(h),
    "gradients followed": lambda m, h: kink(h) if torch.is_grad_enabled() else h,
    "gradients wanted": lambda m, h: kink(h) if h.requires_grad else h,
    "is_exporting": lambda m, h: h if torch.compiler.is_exporting() else kink(h),
    "is_tracing": lambda m, h: h if torch.jit.is_tracing() else kink(h),
    "grad mode": lambda m, h: h if torch.is_grad_enabled() else kink(h),
    "value": lambda m, h: kink(h) if h.sum() > 0 else h,
    "item": lambda m, h: h * h.max().item(),
    "tolist": lambda m, h: h + sum(h.flatten().tolist()),
    "all": lambda m, h: kink(h) if bool((h > -50).all()) else h,
    "counter": counting,
    "random": lambda m, h: h + 0.1 * torch.rand_like(h),
    "active dropout": lambda m, h: F.dropout(h, 0.5, True),
    "batch mean": lambda m, h: h - h.mean(0),
    "batch max": lambda m, h: kink(h) - h.amax(0, keepdim=True),
    "other row": lambda m, h: h + h.flip(0),
    "cumulative": lambda m, h: h.cumsum(0),
    "length": lambda m, h: kink(h) if len(h) > 1 else h,
    "parity": lambda m, h: kink(h) if h.shape[0] % 2 else h,
    "flag": lambda m, h: kink(h) if m.flag else h,
    "table": lambda m, h: kink(h * m.table["scale"]),
    "training": lambda m, h: h if m.training else kink(h),
    "assert": asserting,
    "shape": lambda m, h: kink(h) if h.shape[1] == 6 else h,
    "loop": lambda m, h: torch.stack([kink(part) for part in h.unbind(1)], 1),
    "max with index": lambda m, h: h - torch.max(h, 1, keepdim=True)[0],
    "sort": lambda m, h: h.sort(1)[0],
    "argmax": lambda m, h: h * F.one_hot(h.argmax(1), 6),
    "where": lambda m, h: torch.where(h > 0.3, kink(h), h),
    "masked": lambda m, h: kink(h) * (h > 0.3),
    "mask index": lambda m, h: h.masked_fill(h > 0.3, 5.0),
    "numpy": lambda m, h: torch.from_numpy(h.detach().numpy()),
    "data": lambda m, h: kink(h.data),
    "keyword": lambda m, h: F.relu(input=kink(h)),
    "called by keyword": lambda m, h: m.norm(input=kink(h)),
    "norm": lambda m, h: m.norm(kink(h)),
    "idle dropout": lambda m, h: m.drop(kink(h)),
    "in slices": in_slices,
    "half": lambda m, h: kink(h).half().to(h.dtype),
    "bfloat16": lambda m, h: kink(h).bfloat16().to(h.dtype),
    "autocast": lambda m, h: torch.autocast("cpu", torch.bfloat16)(lambda v: m.norm(kink(v)))(h).to(h.dtype),
    "double": lambda m, h: kink(h).double().to(h.dtype),
    "integers": lambda m, h: (10 * h).long().to(h.dtype),
    "round": lambda m, h: (4 * h).round() / 4,
    "remainder": lambda m, h: h % 0.5,
    "constant": lambda m, h: kink(h) + m.constant,
    "buffer": lambda m, h: kink(h) * m.shift,
    "changed buffer": lambda m, h: kink(h) + m.shift.add_(0.0),
    "changed input": lambda m, h: h.add_(F.relu(h - 0.5)),
    "out": lambda m, h: torch.mul(h.detach(), 3.0, out=torch.empty_like(h)),
    "softmax": lambda m, h: torch.softmax(4 * h, 1),
    "product": lambda m, h: kink(h) * h.flip(1),
    "quotient": lambda m, h: h / (1.5 + h.abs()),
    "quotient through 0": lambda m, h: 0.01 / h,
    "sqrt": lambda m, h: (h.abs() + 0.1).sqrt(),
    "sqrt below 0": lambda m, h: h.sqrt(),
    "log": lambda m, h: (h.abs() + 0.1).log(),
    "power": lambda m, h: h.clamp(min=-2.0) ** 3,
    "exp": lambda m, h: h.exp(),
    "sin": lambda m, h: (9 * h).sin(),
    "cos": lambda m, h: (9 * h).cos(),
    "erf": lambda m, h: h.erf(),
    "layer_norm": lambda m, h: F.layer_norm(h, (6,)),
    "group_norm": lambda m, h: F.group_norm(h, 2),
    "rms_norm": lambda m, h: F.rms_norm(h, (6,)),
    "normalize": lambda m, h: F.normalize(h, dim=1),
    "attention": lambda m, h: F.scaled_dot_product_attention(*[h.view(-1, 3, 2)] * 3).flatten(1),
    "einsum": lambda m, h: torch.einsum("bi,bj->bij", h, h).flatten(1)[:, :6],
    "bmm": lambda m, h: (h.view(-1, 2, 3) @ h.view(-1, 3, 2)).flatten(1).repeat(1, 2)[:, :6],
    "gelu": lambda m, h: F.gelu(3 * h),
    "negative slope": lambda m, h: F.leaky_relu(h, -0.5),
    "elu": lambda m, h: F.elu(h, 2.0),
    "std": lambda m, h: h / (0.1 + h.std(1, keepdim=True)),
    "no_grad inside": lambda m, h: torch.no_grad()(kink)(h),
    "new layer": lambda m, h: nn.ReLU(inplace=True)(h) + h,
    "gather": lambda m, h: kink(h).gather(1, torch.zeros(len(h), 6, dtype=torch.int64)),
    "scatter": lambda m, h: torch.zeros_like(h).scatter(1, torch.arange(5, -1, -1).expand(len(h), 6), kink(h)),
    "index_put": lambda m, h: torch.index_put(h, (torch.arange(len(h)), torch.zeros(len(h)).long()), h[:, 1]),
    "tensor of shape": lambda m, h: kink(h) * torch.tensor(h.shape[1] / 6),
    "lerp": lambda m, h: torch.lerp(h, kink(h), 0.5),
    "addcmul": lambda m, h: torch.addcmul(h, h, h),
    "cumsum": lambda m, h: h.cumsum(1),
    "median": lambda m, h: h - h.median(1, keepdim=True)[0],
    "topk": lambda m, h: h.topk(6, 1)[0],
    "hypot": lambda m, h: torch.hypot(h, h + 1),
    "atan2": lambda m, h: torch.atan2(h, h + 2),
    "fmod": lambda m, h: torch.fmod(h, 0.7),
    "heaviside": lambda m, h: torch.heaviside(h, h),
    "nan_to_num": lambda m, h: torch.nan_to_num(h),
    "celu": lambda m, h: F.celu(h, 0.5),
    "glu": lambda m, h: F.glu(h.repeat(1, 2), 1),
    "logsumexp": lambda m, h: h - h.logsumexp(1, keepdim=True),
    "threshold": lambda m, h: F.threshold(h, 0.2, 0.9),
    "hardshrink": lambda m, h: F.hardshrink(h, 0.3),
    "softshrink": lambda m, h: F.softshrink(h, 0.3),
}
MODELS: dict[str, Callable[[], nn.Module]] = {
    **{f"forward: {name}": lambda f=f: Net(f) for name, f in FORWARDS.items()},
    **{
        f"in place: {change} of {name}": lambda v=v, c=CHANGES[change]: Net(through(v, c))
        for name, v in VIEWS.items()
        for change in CHANGES
    },
    **{
        f"hook: {kind} on {where}": lambda k=kind, w=where: hooked(k, w)
        for kind in ("pre", "post", "kwargs", "forward")
        for where in ("first", "act", "last", "model")
    },
    "weights: weight_norm": lambda: with_made_weights(nn.utils.weight_norm),
    "weights: spectral_norm": lambda: with_made_weights(nn.utils.spectral_norm),
    "weights: parametrised": lambda: with_made_weights(nn.utils.parametrizations.weight_norm),
    "weights: parametrised spectral": lambda: with_made_weights(nn.utils.parametrizations.spectral_norm),
    "weights: orthogonal": lambda: with_made_weights(nn.utils.parametrizations.orthogonal),
    "layers: tied": tied,
    "layers: replaced": replaced,
    "layers: doubled": doubled,
    "wrapper: DataParallel": lambda: nn.DataParallel(Net(lambda m, h: kink(h))),
    "wrapper: Sequential": lambda: nn.Sequential(nn.Identity(), Net(lambda m, h: kink(h))).eval(),
}
INVALID = {  # what has no certificate of a sample's own, or none that holds: refused
    *("forward: value", "forward: item", "forward: tolist", "forward: all", "forward: counter", "forward: random"),
    *("forward: active dropout", "forward: batch mean", "forward: batch max", "forward: other row"),
    *("forward: cumulative", "forward: length", "forward: parity", "forward: numpy", "wrapper: DataParallel"),
    *("forward: is_compiling", "forward: is_exporting", "forward: gradients followed", "forward: gradients wanted"),
}


# weight_norm by hooks is deprecated, and still in use
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


def wrong(model: nn.Module, x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    """Which samples are classified otherwise somewhere inside their certified boxes, on a grid."""
    grid = torch.linspace(-1, 1, 401).unsqueeze(1)
    with torch.no_grad():
        points = (x.unsqueeze(1) + 0.999 * radius.view(-1, 1, 1) * grid).clamp(0, 1)
        classes = model(points.flatten(0, 1)).argmax(1).view(len(x), -1)
    return (classes != y.unsqueeze(1)).any(1) & (radius > 0)


@cache
def certified(name: str) -> tuple[nn.Module, Tensor, Tensor] | None:
    """A model, labels and radii; None where it is refused."""
    model = MODELS[name]()
    try:
        with torch.no_grad():
            y = MODELS[name]()(X.clone()).argmax(1)
        return model, y, al.certified_radius(model, X, y, EPS).radius
    except (TypeError, ValueError) as error:
        assert str(error).split(":")[0] in ("model", "x"), error
        return None


@pytest.mark.parametrize("name", MODELS)
def test_no_certificate_is_wrong(name: str) -> None:
    if found := certified(name):
        model, y, radius = found
        assert name not in INVALID
        assert not wrong(model, X, y, radius).any()


@pytest.mark.parametrize(
    "in_vain",
    [lambda h: h.flip(1).exp(), lambda h: (h + 0).relu_(), lambda h: h.argmax(1), lambda h: (h + 0)[:, :2].mul_(3)],
)
def test_what_is_computed_in_vain_does_not_disturb(in_vain: Callable[[Tensor], Tensor]) -> None:
    """The graph holds what its output depends on; the model is compared in that."""

    def forward(m: Net, h: Tensor) -> Tensor:
        in_vain(h)
        return kink(h)

    model = Net(forward)
    y = model(X).argmax(1)
    plain = Net(lambda m, h: kink(h))
    assert torch.equal(*(al.certified_radius(net, X, y, EPS).radius for net in (model, plain)))


def test_most_valid_models_are_accepted() -> None:
    valid = [name for name in MODELS if name not in INVALID][::4]
    accepted = sum(certified(name) is not None for name in valid)
    assert accepted > 0.8 * len(valid), f"{accepted} of {len(valid)}"
