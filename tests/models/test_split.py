"""A network in two parts: together they are the network, and what cannot be split is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acertlab.models.architectures import MODELS
from acertlab.models.split import split


def relus(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.ReLU) for layer in module.modules())


@pytest.mark.parametrize("name", MODELS)
def test_the_parts_are_the_network(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]((1, 12, 12), 5, width=4, mean=(0.3,), std=(0.2,)).train(), torch.rand(8, 1, 12, 12)
    for _ in range(3):
        model(x)  # running statistics
    model.eval()
    total, found = relus(model), []
    for n in range(1, total):
        try:
            first, last = split(model, n)
        except ValueError:
            assert name == "residual_cnn"
            continue
        found.append(n)
        features = first(x)
        assert (relus(first), relus(last)) == (total - n, n)
        assert features.min() == 0 and torch.equal(last(features), model(x))
        names, both = dict(model.named_parameters()), (*first.named_parameters(), *last.named_parameters())
        assert len(both) == len(names) and all(names[key] is value for key, value in both)  # shared, by the same names
        assert split(model, n)[1] is last
    assert found == ([1, 3, 5] if name == "residual_cnn" else list(range(1, total)))


class Functional(nn.Module):
    """ReLUs that are no layers, a weight that both parts use, and x again before the last layer if asked."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.layers, self.again = nn.ModuleList(nn.Linear(6, 6) for _ in range(3)), again
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.layers[0](x) * self.scale)
        h = torch.relu(self.layers[1](h)) * self.scale
        return self.layers[2](h + x if self.again else h)


def test_a_forward_of_your_own_is_split() -> None:
    model, x = Functional(), torch.rand(4, 6)
    first, last = split(model, 1)
    assert torch.allclose(last(first(x)), model(x)) and {n for n, _ in last.named_children()} == {"layers"}


@pytest.mark.parametrize(
    ("model", "n", "accepted"),
    [
        (MODELS["cnn7"]((1, 8, 8), 3, width=2), 6, "6 ReLUs of this Sequential come after .* here 1, 2, 3, 4, 5"),
        (MODELS["residual_cnn"]((1, 8, 8), 3, width=2), 2, "here 1, 3, 5"),
        (MODELS["mlp"]((1, 8, 8), 3, depth=1), 1, "here none"),
        (Functional(again=True), 1, "2 ReLUs of this Functional .* here none"),
    ],
)
def test_what_cannot_be_split_is_told(model: nn.Module, n: int, accepted: str) -> None:
    with pytest.raises(ValueError, match=f"^classifier_relus = {n}: .*{accepted}"):
        split(model, n)


def test_what_cannot_be_traced_is_told() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TypeError, match=r"cannot trace Branches, and so not split it"):
        split(Branches(), 1)
