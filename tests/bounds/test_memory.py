"""Which graph is remembered: the same one only as long as forward would run the same operators."""

import gc
import types
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.bounds.graph.memory import graph_of
from acertlab.bounds.rules.dispatch import rule

X = torch.rand(2, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.doubled, self.settings, self.offset = False, {"slope": 0.1}, torch.zeros(4)
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x), self.settings["slope"]) * self.scale + self.offset
        return self.last(2 * h if self.doubled else h)


def change(name: str) -> Callable[[Net], object]:
    return {
        "an attribute": lambda net: setattr(net, "doubled", True),
        "what an attribute holds": lambda net: net.settings.update(slope=0.2),
        "a tensor that is no buffer": lambda net: net.offset.add_(1),
        "a hook": lambda net: net.first.register_forward_hook(lambda layer, args, out: out + 1),
        "a hook before": lambda net: net.first.register_forward_pre_hook(lambda layer, args: (2 * args[0],)),
        "another layer": lambda net: setattr(net, "first", nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
        "a layer of another kind": lambda net: setattr(net, "first", nn.Linear(4, 4, bias=False)),
        "tied weights": lambda net: setattr(net.first, "bias", nn.Parameter(net.first.weight[0])),
        "mode": lambda net: net.train(),
        "dtype": lambda net: net.double(),
        "forward": lambda net: setattr(net, "forward", lambda x: net.last(x)),
        "forward of the class": lambda net: setattr(net, "__class__", type("Other", (Net,), {"forward": last_only})),
    }[name]


def last_only(net: Net, x: Tensor) -> Tensor:
    return net.last(x)


CHANGES = (
    *("an attribute", "what an attribute holds", "a tensor that is no buffer", "a hook", "a hook before"),
    *("another layer", "a layer of another kind", "tied weights", "mode", "dtype", "forward", "forward of the class"),
)


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_that_forward_could_see_is_another_graph(what: str) -> None:
    net = Net().eval()
    known = graph_of(net, X)
    assert graph_of(net, X[:1]) is known  # of any batch
    change(what)(net)
    x = X.to(next(net.parameters()).dtype)
    graph = graph_of(net, x)
    assert graph is not known
    assert torch.equal(graph.run(net, x), net(x))


def test_new_values_of_weights_and_buffers_are_the_same_graph() -> None:
    net = Net().eval()
    known = graph_of(net, X)
    with torch.no_grad():
        net.first.weight.mul_(2)
        net.scale.fill_(3.0)
    net.load_state_dict({name: value + 1 for name, value in net.state_dict().items()})
    assert graph_of(net, X) is known
    assert torch.equal(known.run(net, X), net(X))


def test_models_that_are_alike_share_a_graph_and_keep_their_values() -> None:
    one, other = (nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)).eval() for _ in "ab")
    graph = graph_of(one, X)
    assert graph_of(other, X) is graph
    assert torch.equal(graph.run(one, X), one(X)) and torch.equal(graph.run(other, X), other(X))
    assert graph_of(other.train(), X) is not graph and graph_of(one, X) is graph


def test_models_with_tensors_that_are_no_state_of_theirs_share_none() -> None:
    for build in (Net, foreign):
        one, other = build().eval(), build().eval()
        assert graph_of(one, X) is not graph_of(other, X)
        assert torch.equal(graph_of(other, X).run(other, X), other(X))


def test_what_a_forward_of_ones_own_reaches_is_looked_at_anew_in_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class's attribute and another module's value, which changed before the next model was made."""

    class Scaled(nn.Module):
        scale = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(x * self.scale).clamp(min=settings.lowest)

    settings = types.ModuleType("settings")
    settings.lowest = 0.0
    before = Scaled().eval()
    assert torch.equal(graph_of(before, X).run(before, X), before(X))
    for place, name, value in ((Scaled, "scale", 2.0), (settings, "lowest", 0.5)):
        monkeypatch.setattr(place, name, value)
        after = Scaled().eval()
        assert torch.equal(graph_of(after, X).run(after, X), after(X))


def foreign() -> Net:
    """A network that takes a parameter which is not registered."""
    net, weight = Net(), nn.Parameter(torch.rand(3))
    net.offset = 0.0
    net.last.register_forward_hook(lambda layer, args, out: out * weight)
    return net


def test_samples_of_another_shape_or_dtype_are_another_graph() -> None:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    known = graph_of(pool, torch.rand(1, 3, 8, 8))
    assert graph_of(pool, torch.rand(1, 3, 9, 8)) is not known
    assert graph_of(pool, torch.rand(1, 3, 8, 8).double()) is not known


def test_a_rule_that_is_registered_later_makes_another_graph() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    net = nn.Sequential(nn.Linear(4, 4), Twice(), nn.Linear(4, 3)).eval()
    known = graph_of(net, X)
    rule.register(Twice, lambda layer, box: box)
    graph = graph_of(net, X)
    assert graph is not known and len(graph.whole) == 1 and not known.whole


def test_what_cannot_be_known_is_captured_each_time() -> None:
    class Opaque:
        __slots__ = ("value",)

    net = Net().eval()
    net.opaque = Opaque()
    assert graph_of(net, X) is not graph_of(net, X)


def test_a_model_that_is_gone_is_forgotten() -> None:
    net = Net().eval()
    graph_of(net, X)
    seen = weakref.ref(net)
    del net
    gc.collect()
    assert seen() is None
