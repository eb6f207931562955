"""Inputs and labels in the forms that people have them in: the one meaning, or an error with the line to write."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from acertlab.bounds.box import Domain
from acertlab.bounds.margin import certified_margin
from acertlab.radius.attack import attacked_radius, pgd
from acertlab.radius.bracket import exact_radius, radius_bracket
from acertlab.radius.certificate import certify
from acertlab.radius.certified import certified_radius
from acertlab.radius.metrics import accuracy

torch.manual_seed(0)
TABLE = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
IMAGES = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
GREY = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
X, COLOURS = torch.rand(12, 4), torch.rand(6, 3, 8, 8)
Y, Z = TABLE(X).argmax(1), IMAGES(COLOURS).argmax(1)
BYTES = (COLOURS * 255).round().byte()
FRAME = pd.DataFrame(X.double().numpy(), columns=pd.Index(list("abcd")))

FORMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "lists": lambda: (X.tolist(), Y.tolist()),
    "tuples": lambda: (tuple(map(tuple, X.tolist())), tuple(Y.tolist())),
    "arrays": lambda: (X.numpy(), Y.numpy()),
    "arrays of doubles": lambda: (X.double().numpy(), Y.numpy().astype(np.uint32)),
    "small labels": lambda: (X.numpy(), Y.numpy().astype(np.int8)),
    "pandas": lambda: (FRAME, pd.Series(Y.numpy())),
    "pandas' own numbers": lambda: (FRAME.astype("Float64"), pd.Series(Y.numpy())),
    "tensors one by one": lambda: (list(X), list(Y)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_with_one_meaning(form: Callable) -> None:
    x, y = form()
    expected = certified_radius(TABLE, X, Y, 0.2)
    assert torch.equal(certified_radius(TABLE, x, y, 0.2).radius, expected.radius) and expected.radius.any()
    assert torch.equal(certified_radius(TABLE, x, y, 0.2, differentiable=True).radius, expected.radius)
    assert torch.equal(certified_margin(TABLE, x, y, 0.1), certified_margin(TABLE, X, Y, 0.1))
    assert torch.equal(attacked_radius(TABLE, x, y, 0.2).radius, attacked_radius(TABLE, X, Y, 0.2).radius)
    assert torch.equal(pgd(TABLE, x, y, 0.2)[0], pgd(TABLE, X, Y, 0.2)[0])
    assert radius_bracket(TABLE, x, y, 0.2).raise_if_crossed().certified.shape == (12,)
    assert exact_radius(TABLE, x[:2], y[:2], 0.2).certified.shape == (2,)
    assert accuracy(TABLE, x, y) == 1
    if not isinstance(x, (list, tuple)):
        assert certify(TABLE, (x, y), 0.2, progress=False).radii["radius"].tolist() == expected.radius.tolist()


def test_a_double_network_gets_doubles() -> None:
    model = nn.Sequential(nn.Linear(4, 3)).double().eval()
    found = certified_radius(model, FRAME, model(X.double()).argmax(1), 0.2)
    assert found.radius.dtype == torch.float64 and (found.radius > 0).all()


class Items(Dataset):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.x[i], int(self.y[i])


@pytest.mark.parametrize("make", [TensorDataset, Items, lambda x, y: DataLoader(Items(x, y), 5)])
def test_datasets(make: Callable) -> None:
    report = certify(TABLE, make(X, Y), 0.2, progress=False)
    assert np.allclose(report.radii["radius"], certified_radius(TABLE, X, Y, 0.2).radius.numpy(), rtol=1e-4)


def test_bytes_are_images_where_that_is_said() -> None:
    expected = certified_radius(IMAGES, BYTES / 255, Z, 0.1).radius.tolist()
    for x in (BYTES, BYTES.numpy()):
        assert certify(IMAGES, (x, Z), 0.1, progress=False).radii["radius"].tolist() == expected
        assert accuracy(IMAGES, x, Z) == accuracy(IMAGES, BYTES / 255, Z)


def channels_last(x: Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).numpy()


MORE_THAN_ONE: dict[str, tuple[nn.Module, Any, Any, str]] = {
    "bytes": (IMAGES, BYTES, Z, "x: .* not torch.uint8; write x / 255"),
    "array of bytes": (IMAGES, BYTES.numpy(), Z, r"x: .*uint8 has no single meaning; write torch.as_tensor\(x\) / 255"),
    "NHWC bytes": (
        IMAGES,
        channels_last(BYTES),
        Z,
        r"x: .* write torch.as_tensor\(x\).permute\(0, 3, 1, 2\) / 255",
    ),
    "NHWC": (
        IMAGES,
        channels_last(COLOURS),
        Z,
        r"x: .* write torch.as_tensor\(x\).permute\(0, 3, 1, 2\), or torch.as_t",
    ),
    "NHWC to a net that takes all": (
        nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(),
        channels_last(COLOURS),
        Z,
        r"x: an array of shape \(6, 8, 8, 3\) may have its channels last",
    ),
    "NHWC tensor": (
        IMAGES,
        COLOURS.permute(0, 2, 3, 1),
        Z,
        r"x: the model does not take .*If its channels come last: x.permute\(0, 3, 1, 2\)",
    ),
    "grey bytes": (GREY, np.zeros((6, 8, 8), np.uint8), Z, r"x: .* write torch.as_tensor\(x\).unsqueeze\(1\) / 255"),
    "whole numbers": (
        TABLE,
        np.zeros((12, 4), int),
        Y,
        r"x: an array of int64 .* write torch.as_tensor\(x\).float\(\)",
    ),
    "whole tensor": (TABLE, torch.zeros(12, 4).long(), Y, r"x: .* not torch.int64; write x.float\(\)"),
    "ragged": (TABLE, [[1.0, 2.0], [1.0]], Y, "x: list is no array of numbers"),
    "words": (TABLE, [["a"] * 4] * 12, Y, "x: must hold numbers, not <U1"),
    "a column of words": (TABLE, FRAME.assign(c="red"), Y, "x: must hold numbers, not object; its columns c are none"),
    "a loader": (TABLE, DataLoader(TensorDataset(X, Y)), Y, r"x: .* not DataLoader; acertlab.certify\(model, loader"),
    "a dataset": (TABLE, TensorDataset(X, Y), Y, r"x: .* not TensorDataset; acertlab.certify\(model, loader"),
    "a gap": (TABLE, FRAME.mask(FRAME > 0.9), Y, r"x: holds \d+ NaN"),
    "float labels": (TABLE, X, Y.float(), r"y: .* not torch.float32; .*write y.long\(\), if it holds classes"),
    "float column": (TABLE, X, pd.Series(Y.double().numpy()), "y: .* not torch.float64"),
    "one-hot": (TABLE, X, nn.functional.one_hot(Y, 3), r"y: shape \(12, 3\) .*; write y.argmax\(1\), if it is one-hot"),
    "column": (TABLE, X, Y[:, None], r"y: shape \(12, 1\) .*; write y.flatten\(\)"),
    "from one": (TABLE, X, Y + 1, "y: holds labels from 1 to 3; .*write y - 1, if classes are counted from 1"),
    "words as labels": (TABLE, X, pd.Series(["a"] * 12), "y: must hold whole numbers from 0 on, not object"),
    "other length": (TABLE, X.tolist(), [0] * 11, r"y: shape \(11,\) does not give one label"),
    "a number": (TABLE, X, 3, "y: must be an integer tensor of labels, not int"),
}


@pytest.mark.parametrize("model, x, y, message", MORE_THAN_ONE.values(), ids=MORE_THAN_ONE)
def test_what_has_more_than_one_meaning_shows_the_line_to_write(model: nn.Module, x: Any, y: Any, message: str) -> None:
    if "from 1" in message:
        y = torch.arange(12) % 3 + 1
    for call in (certified_radius, certified_margin, attacked_radius, radius_bracket, exact_radius):
        with pytest.raises((TypeError, ValueError), match=f"(?s)^{message}"):
            call(model, x, y, 0.1)


class Asserts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError  # as a bare assert does


def test_an_exported_module_and_a_bare_assertion_say_what_is_wrong() -> None:
    fixed = torch.export.export(TABLE, (X[:4],)).module()
    with pytest.raises(
        ValueError, match=r"x: the model does not take .*exported for batches of this size.*load_program"
    ):
        certified_radius(fixed, X[:4], Y[:4], 0.1)
    free = torch.export.export(TABLE, (X[:4],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    assert torch.allclose(certified_radius(free, X, Y, 0.2).radius, certified_radius(TABLE, X, Y, 0.2).radius)
    with pytest.raises(ValueError, match=r"AssertionError: raise AssertionError .*\(line \d+ of test_checks.py\)"):
        certified_radius(Asserts().eval(), X, Y, 0.1)


def test_the_lines_that_are_shown_are_right() -> None:
    x = channels_last(BYTES)
    found = certified_radius(IMAGES, torch.as_tensor(x).permute(0, 3, 1, 2) / 255, Z, 0.1)
    assert torch.equal(found.radius, certified_radius(IMAGES, BYTES / 255, Z, 0.1).radius)


CALLS = (
    certified_radius,
    attacked_radius,
    radius_bracket,
    exact_radius,
    lambda *a, **k: certify(a[0], a[1:3], *a[3:], **k),
)


def test_a_limit_beyond_the_domain_is_warned_of_once() -> None:
    for call in CALLS:
        with pytest.warns(UserWarning, match="eps_max = 8: beyond 1 the box is the whole domain.*mostly means 8/255"):
            call(TABLE, X[:2], Y[:2], 8)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for call in CALLS:
            call(TABLE, X[:2], Y[:2], 7)
    assert len(seen) == 1
    fine = ((8, (0, 255)), (8, None), (1, (0, 1)), (8, Domain(0, 1, 0.1)), ("8/255", (0, 1)), ("8/255", None))
    for limit, domain in fine:
        certified_radius(TABLE, X, Y, limit, domain=domain)
    with pytest.warns(UserWarning, match="eps_max = 8/255: in units of the inputs, which span 255 here.*eps_max=8$"):
        certified_radius(TABLE, X, Y, "8/255", domain=(0, 255))
    with pytest.warns(UserWarning, match=r"beyond 0\.5 the box"):
        certified_radius(TABLE, X, Y, 0.6, domain=Domain(0, 1, [2.0, 3.0, 0.0, 4.0]))
