"""Accuracy, ACR, ART, certified accuracy and the Pareto front, against definitions written out another way."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from acertlab.radius.metrics import (
    accuracy,
    acr,
    art,
    certified_accuracy,
    hypervolume,
    mean_of_batches,
    pareto_front,
    summarise,
)
from acertlab.radius.search import RadiusStatus

EPS = st.floats(1e-3, 10.0)
RADII = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 10.0)), min_size=1, max_size=40)
SHARE = st.floats(0.0, 1.0)
# A coarse grid of values, so that ties and duplicates are frequent.
POINTS = st.lists(
    st.tuples(*[st.one_of(st.integers(0, 6).map(lambda k: k / 6), st.just(np.nan))] * 2), min_size=1, max_size=25
)


def frame(points):
    return pd.DataFrame(points, columns=["acc", "acr"], dtype=float)


# accuracy


def test_accuracy_counts_strict_winners():
    logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 1.0, 0.0], [float("nan"), 5.0, 0.0]])
    y = torch.tensor([0, 2, 0, 1])  # right, wrong, tied, NaN
    assert accuracy(logits, y) == 0.25
    assert accuracy(logits.numpy(), pd.Series(y.numpy())) == 0.25


@given(st.integers(1, 60), st.integers(2, 5), st.integers(0, 2**16))
def test_accuracy_is_argmax_accuracy_where_nothing_ties(n, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(n, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (n,), generator=generator)
    assert accuracy(logits, y) == pytest.approx((logits.argmax(1) == y).double().mean().item())


def test_accuracy_of_a_model_is_pooled_over_batches_of_any_size():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
    images = torch.randint(0, 256, (23, 3, 2, 2), dtype=torch.uint8)
    y = torch.randint(4, (23,))
    expected = accuracy(model(images.float() / 255), y)
    assert 0 < expected < 1
    for batch_size in (1, 4, 10, 22, 23, 512):  # 23 = 22 + 1: a mean of batch means would differ
        assert accuracy(model, images, y, batch_size=batch_size) == expected
        assert accuracy(model, images.float() / 255, y, batch_size=batch_size) == expected
    assert all(p.grad is None for p in model.parameters()) and not model.training


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)), ValueError, "N >= 1"),
        ((torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)), ValueError, r"\(2, 3\) and \(3,\)"),
        ((torch.zeros(2, 3), torch.tensor([0, 3])), ValueError, r"0\.\.2, got 0\.\.3"),
        ((torch.zeros(2, 3), torch.tensor([0.0, 1.0])), ValueError, "integer"),
        ((torch.zeros(2, 3),), TypeError, "accuracy\\(logits, y\\)"),
        ((nn.Linear(2, 2), torch.zeros(1, 2), torch.tensor([0])), ValueError, "training mode"),
        ((nn.Linear(2, 2).eval(), torch.zeros(0, 2), torch.zeros(0).long()), ValueError, "there must be samples"),
        ((nn.Linear(2, 2).eval(), torch.zeros(3, 2), torch.zeros(1).long()), ValueError, "got 3 and 1"),
    ],
)
def test_accuracy_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        accuracy(*arguments)


# ACR and ART


def test_acr_by_hand():
    radii = [0.0, 0.1, 0.4, 0.9]  # the last one was searched beyond eps_max
    assert acr(radii, 0.4) == pytest.approx((0 + 0.25 + 1 + 1) / 4)
    for values in (torch.tensor(radii, dtype=torch.float64), np.array(radii), pd.Series(radii)):
        assert acr(values, 0.4) == acr(radii, 0.4)
    assert acr(torch.tensor([0.5, 0.0], dtype=torch.bfloat16), 1.0) == 0.25


@given(RADII, EPS)
def test_acr_is_a_fraction_and_one_only_at_the_limit(radii, eps_max):
    value = acr(radii, eps_max)
    assert 0 <= value <= 1
    assert value == pytest.approx(sum(min(r, eps_max) for r in radii) / len(radii) / eps_max, rel=1e-12)
    assert acr([eps_max] * len(radii), eps_max) == 1


def test_accuracy_by_the_published_code_is_pooled_and_the_rest_averaged_over_batches():
    right, radii = [True] * 4 + [False], [0.5, 0.5, 1.0, 2.0, 0.0]  # batches of 4 and of 1
    status = [RadiusStatus.AT_EPS_MAX if one else RadiusStatus.MISCLASSIFIED for one in right]
    table = pd.DataFrame({"label": 1, "predicted": np.array(right, int), "radius": radii, "status": status})
    scores = mean_of_batches(table, 1.0, 4)
    assert scores["acc"] == 0.8  # the mean of 1 and 0 would be 0.5
    assert scores["acr"] == pytest.approx(0.75 / 2) and scores["art"] == pytest.approx(0.75**0.5 / 2)


def test_art_of_table_1():
    # The paper's own code averages square roots over batches, which lies a little below Eq. (13) (concave): its tables
    # agree with the equation to 4e-4, never above it by more than rounding.
    for acc, robustness, printed in (
        (0.9842, 0.9501, 0.9669),  # ACERT on MNIST
        (0.6463, 0.4120, 0.5158),  # ACERT on CIFAR-10, kappa 0.25
        (0.6221, 0.4180, 0.5096),  # ACERT on CIFAR-10
        (0.4894, 0.4123, 0.4491),  # FastIBP on CIFAR-10
    ):
        assert -1e-4 < art(acc, robustness) - printed < 4e-4


@given(SHARE, SHARE, SHARE)
def test_art_is_a_geometric_mean(acc, robustness, c):
    value = art(acc, robustness)
    assert value == art(robustness, acc)
    assert min(acc, robustness) - 1e-9 <= value <= max(acc, robustness) + 1e-9
    assert art(acc, c * robustness) == pytest.approx(np.sqrt(c) * value, rel=1e-9, abs=1e-150)  # its homogeneity


def test_art_of_columns_keeps_their_kind():
    table = frame([(0.25, 1.0), (np.nan, 0.5)])
    result = art(table.acc, table.acr)
    assert isinstance(result, pd.Series) and result[0] == 0.5 and np.isnan(result[1])
    assert torch.equal(art(torch.tensor([0.25]), torch.tensor([1.0])), torch.tensor([0.5]))
    assert art(np.array([[0.25, 1.0]]), np.array([[1.0], [0.0]])).shape == (2, 2)
    with pytest.raises(ValueError, match="acr must be >= 0"):
        art(0.5, -0.1)


# certified accuracy


@given(RADII, st.lists(st.floats(0.0, 12.0), min_size=1, max_size=20))
def test_certified_accuracy_by_counting(radii, grid):
    grid = grid + radii  # the jumps themselves
    shares = certified_accuracy(radii, grid)
    for eps, share in zip(grid, shares, strict=True):
        assert share == sum(r > 0 and r >= eps * (1 - 2.0**-24) for r in radii) / len(radii)
    ordered = shares[np.argsort(grid, kind="stable")]
    assert np.all(np.diff(ordered) <= 0)
    assert certified_accuracy(radii, [0.0])[0] == np.mean(np.array(radii) > 0)


@given(RADII, EPS)
def test_area_under_the_curve_is_acr(radii, eps_max):
    jumps = np.unique(np.minimum([0.0, *radii, eps_max], eps_max))
    middles = (jumps[1:] + jumps[:-1]) / 2  # the curve is constant between jumps
    area = np.sum(np.diff(jumps) * certified_accuracy(radii, middles)) if len(middles) else 0.0
    assert area == pytest.approx(acr(radii, eps_max) * eps_max, rel=1e-6, abs=1e-9)


@given(st.floats(1e-6, 1.0))
def test_a_radius_at_eps_max_found_in_float32_counts_at_eps_max(eps_max):
    radius = np.float32(eps_max)  # below eps_max for about half of all values, such as 0.7
    assert certified_accuracy(np.array([radius]), [eps_max])[0] == 1
    assert (
        certified_accuracy(np.array([np.nextafter(radius, np.float32(0))], np.float64), [eps_max * (1 + 1e-7)])[0] == 0
    )


# bad input


@pytest.mark.parametrize("radii", [[], [0.1, -0.1], [0.1, np.nan], [[0.1]]])
def test_bad_radii_are_refused(radii):
    for measure in (acr, certified_accuracy):
        with pytest.raises(ValueError, match="radii must be"):
            measure(radii, 0.1)


@pytest.mark.parametrize("eps_max", [0.0, -1.0, np.nan, np.inf])
def test_bad_eps_max_is_refused(eps_max):
    with pytest.raises(ValueError, match=r"eps_max = .*: accepted is a finite number > 0"):
        acr([0.1], eps_max)


@pytest.mark.parametrize("grid", [[], [-0.1], [np.nan]])
def test_bad_eps_grid_is_refused(grid):
    with pytest.raises(ValueError, match="eps_grid"):
        certified_accuracy([0.1], grid)


# summaries of a stored table of radii


def radii_table():
    status = [RadiusStatus.AT_EPS_MAX, RadiusStatus.CONVERGED, RadiusStatus.MISCLASSIFIED, RadiusStatus.MISCLASSIFIED]
    return pd.DataFrame(
        {
            "index": range(4),
            "label": [0, 1, 2, 3],
            "predicted": [0, 1, 0, 3],  # the last is a tie that argmax breaks in favour of the label
            "radius": np.array([0.7, 0.2, 0.0, 0.0], np.float32),
            "upper": [np.inf, 0.21, 0.0, 0.0],
            "status": np.array(status, np.int8),
        }
    )


def test_summarise_at_the_cap_and_below_it():
    at_cap = summarise(radii_table(), 0.7, [0.0, 0.2, 0.7], radius_cap=0.7)
    assert at_cap["acc"] == 0.5
    assert at_cap["acr"] == pytest.approx((1 + 0.2 / 0.7) / 4)
    assert at_cap["art"] == art(at_cap["acc"], at_cap["acr"])
    assert at_cap["cert_acc"] == {0.0: 0.5, 0.2: 0.5, 0.7: 0.25}
    below = summarise(radii_table(), 0.1, [], radius_cap=0.7)
    assert below == {"acc": 0.5, "acr": pytest.approx(0.5), "art": pytest.approx(0.5), "cert_acc": {}}


@given(RADII, EPS, st.floats(0.1, 1.0))
def test_summarise_equals_a_search_that_stopped_at_the_smaller_eps_max(radii, cap, share):
    eps_max, searched = share * cap, np.minimum(radii, cap)
    table = pd.DataFrame({"label": 0, "predicted": 0, "status": 1, "radius": searched})
    stopped = table.assign(radius=np.minimum(searched, eps_max))
    grid = [0.0, eps_max / 2, eps_max]
    assert summarise(table, eps_max, grid, cap) == summarise(stopped, eps_max, grid, eps_max)


def test_summarise_takes_no_nan_for_an_answer():
    """argmax of NaN logits is some class, which may be the label."""
    table = radii_table()
    table.loc[table.index[0], ["label", "predicted", "radius", "status"]] = 0, 0, 0.0, int(RadiusStatus.NONFINITE)
    others = (table.label == table.predicted) & (table.status != RadiusStatus.MISCLASSIFIED)
    assert summarise(table, 0.7, [], radius_cap=0.7)["acc"] == others[1:].sum() / len(table)


def test_summarise_knows_nothing_beyond_the_cap():
    for eps_max, grid in ((0.8, []), (0.5, [0.1, 0.8])):
        with pytest.raises(ValueError, match=r"radius_cap = 0\.7: nothing is known at eps \[0\.8\]"):
            summarise(radii_table(), eps_max, grid, radius_cap=0.7)


# the front


def dominates(p, q):
    return p[0] >= q[0] and p[1] >= q[1] and p != q


@given(POINTS)
def test_front_is_exactly_what_brute_force_finds(points):
    front = pareto_front(frame(points))
    finite = [p for p in points if not np.isnan(p).any()]
    assert set(front.itertuples(index=False, name=None)) == {
        p for p in finite if not any(dominates(q, p) for q in finite)
    }
    assert front.acc.is_monotonic_increasing and front.acc.is_unique and front.acr.is_monotonic_decreasing
    for label, row in front.iterrows():  # the first of equal rows, under its own index
        assert label == points.index((row.acc, row.acr))


def test_front_keeps_the_other_columns_and_the_table():
    table = pd.DataFrame({"method": list("abcd"), "x": [1, 2, 3, 3], "y": [3, 3, 1, 0]}, index=[10, 20, 30, 40])
    before = table.copy()
    front = pareto_front(table, maximize=("x", "y"))
    assert front.index.tolist() == [20, 30] and front.method.tolist() == ["b", "c"]
    assert pareto_front(table, maximize=("y", "x")).method.tolist() == ["c", "b"]
    pd.testing.assert_frame_equal(table, before)


@given(POINTS, st.tuples(st.sampled_from([0.0, -0.5, 0.4]), st.sampled_from([0.0, 0.25])))
def test_hypervolume_equals_the_area_of_covered_cells(points, reference):
    finite = np.array([p for p in points if not np.isnan(p).any()]).reshape(-1, 2)
    xs, ys = (np.unique(np.maximum([low, *column], low)) for low, column in zip(reference, finite.T, strict=True))
    area = sum(
        (xs[i + 1] - xs[i]) * (ys[j + 1] - ys[j])
        for i in range(len(xs) - 1)
        for j in range(len(ys) - 1)
        if any(p[0] >= xs[i + 1] and p[1] >= ys[j + 1] for p in finite)
    )
    assert hypervolume(frame(points), reference=reference) == pytest.approx(area, abs=1e-12)


@given(POINTS, st.tuples(SHARE, SHARE))
def test_another_point_never_lowers_the_hypervolume(points, extra):
    assert hypervolume(frame([*points, extra])) >= hypervolume(frame(points)) - 1e-12


@settings(max_examples=5, deadline=2000)
@given(st.integers(0, 2**16))
def test_front_of_many_points_is_quick(seed):
    points = np.random.default_rng(seed).random((200_000, 2))
    assert hypervolume(frame(points)) > 0.98


@pytest.mark.parametrize(
    ("table", "maximize", "message"),
    [
        (frame([]), ("acc", "acr"), "df must have rows"),
        (frame([(np.inf, 1.0)]), ("acc", "acr"), "no infinite value"),
        (frame([(1.0, 1.0)]), ("acc", "art"), "maximize must name two columns"),
        (frame([(1.0, 1.0)]), ("acc",), "maximize must name two columns"),
    ],
)
def test_front_and_hypervolume_refuse(table, maximize, message):
    for function in (pareto_front, hypervolume):
        with pytest.raises(ValueError, match=message):
            function(table, maximize)
    with pytest.raises(ValueError, match="reference"):
        hypervolume(frame([(1.0, 1.0)]), reference=(0.0, np.nan))
