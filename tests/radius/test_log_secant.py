"""The secant in double logarithmic axes: brackets of rising functions, whatever their shape; and training radii."""

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from torch import Tensor

from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import clean_margin
from acertlab.bounds.rules.batch_invariance import TILE
from acertlab.radius.certified import certified_radius
from acertlab.radius.rootfind.log_secant import Trail, cross, widest
from acertlab.radius.search import CLOSE, POINTS, Growth, margin_function
from acertlab.training.methods.acert import BRACKET, HALVE_AFTER, HISTORY_BRACKET, HISTORY_HALVE_AFTER
from acertlab.training.methods.sample_radii import SLACK, Estimates, approximate_radius
from tests.helpers.networks import Trained

CAP, XTOL, RTOL = 2.0, 1e-7, 1e-5
F64 = torch.float64
SHAPES = {  # f(x) - f(0), rising, >= 0; scaled so that every one has its root inside
    "line": lambda x: x,
    "root": lambda x: x.sqrt(),
    "square": lambda x: x**2,
    "power 30": lambda x: x**30,
    "power 0.1": lambda x: x**0.1,
    "exponential": lambda x: x.expm1(),
    "steep exponential": lambda x: (20 * x).expm1(),
    "knee": lambda x: x + 100 * (x - 1).clamp(min=0),
    "knee that flattens": lambda x: torch.minimum(x + 100 * (x - 1).clamp(min=0), 30 + 0.01 * x),
    "plateau at first": lambda x: (x - 0.7).clamp(min=0),
    "plateau in between": lambda x: x.clamp(max=0.8) + (x - 1.2).clamp(min=0),
    "stairs": lambda x: (x * 7).floor() / 7,
    "a jump": lambda x: 0.1 * x + 50.0 * (x > 0.6),
    "logistic": lambda x: torch.sigmoid(40 * (x - 0.9)) - torch.sigmoid(torch.tensor(-36.0, dtype=x.dtype)),
    "kinks": lambda x: sum((x - k / 50).clamp(min=0) for k in range(50)),
    "huge": lambda x: 1e30 * x**3,
    "tiny": lambda x: 1e-30 * x,
    "to infinity": lambda x: (1 / (1.5 - x).clamp(min=0) - 1 / 1.5).clamp(max=1e30),
}


def solvers_view(f: Tensor) -> Tensor:
    """As `acertlab.radius.margin_function` shows margins: never 0."""
    return torch.where(f == 0, torch.finfo(f.dtype).tiny, f)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", SHAPES)
def test_brackets_of_every_shape_hold_the_root(name: str, dtype: torch.dtype) -> None:
    """f(x) = g(x) - m for 60 levels m between g(0) and g(cap); scipy's brentq tells where the sign changes."""
    g, n = SHAPES[name], 60
    top = g(torch.tensor(CAP, dtype=F64)).item()
    levels = (torch.rand(n, dtype=F64, generator=torch.Generator().manual_seed(0)).clamp(0.01, 0.99) * top).to(dtype)

    def f(x: Tensor, m: Tensor) -> Tensor:
        return solvers_view(g(x) - m)

    start = Trail.start(torch.zeros(n, dtype=dtype), -levels)
    before = [t.clone() for t in (*start, levels)]
    trail, calls = cross(f, start, -levels, CAP, (levels,), xtol=XTOL, rtol=RTOL, maxiter=100)
    assert trail.done(CAP, XTOL, RTOL).all()
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, (*start, levels), strict=True))
    assert (f(trail.lower, levels)[trail.lower > 0] < 0).all() and (f(trail.upper, levels) > 0).all()
    again = f(trail.upper, levels)  # vectorised otherwise, perhaps with another last bit
    assert torch.allclose(trail.f_upper, again, rtol=1e-4, atol=1e-6 * top) and (trail.lower < trail.upper).all()
    assert (trail.upper - trail.lower <= XTOL + RTOL * trail.lower).all()
    assert calls.max() <= 64 and calls.double().mean() < (
        35 if name in ("stairs", "a jump", "logistic", "to infinity") else 16
    )
    if dtype == F64:
        roots = [scipy.optimize.brentq(lambda x, m=m: f(torch.tensor(x, dtype=F64), m).item(), 0, CAP, xtol=1e-12)
                 for m in levels]  # fmt: skip
        roots = torch.tensor(roots, dtype=F64)
        assert ((trail.lower <= roots + 1e-11) & (roots - 1e-11 <= trail.upper)).all()


def test_smooth_powers_take_few_evaluations() -> None:
    m = torch.linspace(0.05, 0.9, 40, dtype=F64)
    for p, most in ((1.0, 5.0), (2.0, 4.0), (3.0, 5.0), (5.0, 6.0)):
        trail, calls = cross(lambda x, m, p=p: solvers_view((x / CAP) ** p - m), Trail.start(0 * m, -m), -m, CAP, (m,),
                             xtol=XTOL, rtol=RTOL, maxiter=50)  # fmt: skip
        exact = CAP * m ** (1 / p)
        assert calls.double().mean() <= most and ((trail.lower <= exact + 1e-12) & (exact - 1e-12 <= trail.upper)).all()


def test_below_zero_at_the_cap() -> None:
    m = torch.tensor([1.0, 3.0, 5.0], dtype=F64)
    for guess in (None, torch.tensor([0.9, 0.5, 2.5], dtype=F64)):
        trail, calls = cross(lambda x, m: solvers_view(x - m), Trail.start(0 * m, -m, guess), -m, CAP, (m,),
                             xtol=XTOL, rtol=RTOL, maxiter=50)  # fmt: skip
        assert trail.lower[1:].tolist() == [CAP, CAP] and trail.upper[1:].isinf().all()
        assert abs(trail.lower[0] - 1) < 1e-4 and (calls[1:] <= 3).all()


def test_too_few_evaluations_still_see_the_cap() -> None:
    m = torch.tensor([0.3, 3.0], dtype=F64)
    trail, calls = cross(lambda x, m: solvers_view(x**9 - m), Trail.start(0 * m, -m, m / 100), -m, CAP, (m,),
                         xtol=1e-9, rtol=0.0, maxiter=1)  # fmt: skip
    assert calls.tolist() == [2, 2] and not trail.done(CAP, 1e-9, 0.0).any()
    assert trail.upper.tolist() == [CAP, CAP] and (trail.f_upper > 0).all() and (trail.lower < m ** (1 / 9)).all()


rows = st.lists(st.floats(1e-3, 10), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(rows, st.lists(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 30.0, 1e6]), min_size=6, max_size=6),
       st.floats(1e-6, 1e3), st.floats(1e-6, 1.5), st.sampled_from([torch.float32, F64]))  # fmt: skip
def test_piecewise_linear_functions(widths: list, slopes: list, level: float, guess: float, dtype: torch.dtype) -> None:
    """Plateaus, kinks, jumps of slope, from any guess: the invariants hold and the bracket is narrow."""
    left = [sum(widths[:k]) for k in range(len(widths))]

    def f(x: Tensor) -> Tensor:
        pieces = zip(left, widths, slopes, strict=False)
        return solvers_view(sum(s * (x - a).clamp(min=0.0).clamp(max=w) for a, w, s in pieces) - level)

    zero = torch.zeros(1, dtype=dtype)
    f_zero = f(zero)
    for first in (None, zero + guess):
        trail, calls = cross(f, Trail.start(zero, f_zero, first), f_zero, CAP, (), xtol=XTOL, rtol=RTOL, maxiter=200)
        assert trail.done(CAP, XTOL, RTOL).all() and calls.max() < 200
        assert trail.lower == 0 or f(trail.lower) < 0
        assert (f(torch.tensor([CAP], dtype=dtype)) < 0) == trail.upper.isinf()
        assert trail.upper.isinf() or f(trail.upper) > 0


# ---- training radii


@pytest.fixture(scope="module")
def batch(digits_net: Trained) -> tuple:
    x, y = digits_net.x[:200], digits_net.y[:200]
    with torch.no_grad():
        frozen, clean = freeze(digits_net.model), clean_margin(digits_net.model(x), y)
    exact = certified_radius(digits_net.model, x, y, 0.2)
    return (margin_function(frozen, True, (0.0, 1.0)), (x, y), clean, 0.2), exact.radius


def test_estimates_are_as_good_as_they_say(batch: tuple) -> None:
    call, exact = batch
    spent = []
    for tolerance, mean in ((4e-2, 1e-3), (1e-2, 1e-4), (1e-3, 5e-6), (1e-5, 5e-6)):
        found = approximate_radius(*call, xtol=tolerance * 0.2, rtol=0.0, maxiter=30)
        error = (found.radius - exact).abs() / 0.2
        assert error.max() < tolerance and error.mean() < mean  # the reference keeps some roundings from the root
        assert torch.equal(found.radius == 0, exact == 0) and torch.equal(found.radius == 0.2, exact == exact.max())
        spent.append(found.calls.double().mean().item())
    assert spent == sorted(spent) and spent[0] < 3


@pytest.fixture(scope="module")
def growth(batch: tuple, digits_net: Trained) -> Growth:
    with torch.no_grad():
        return Growth.of(freeze(digits_net.model), batch[0][1][0], 0.2, True, (0.0, 1.0))


@pytest.mark.parametrize("compact", [True, False])
def test_the_networks_own_growth_saves_passes(batch: tuple, digits_net: Trained, compact: bool) -> None:
    (margin, args, clean, _), cap = batch[0], 0.8  # all roots far below it
    exact = certified_radius(digits_net.model, *args, cap).radius
    with torch.no_grad():
        growth = Growth.of(freeze(digits_net.model), args[0], cap, True, (0.0, 1.0))
    settings = {"xtol": 1e-5, "compact": compact}
    found, plain = (approximate_radius(margin, args, clean, cap, **settings, growth=g) for g in (growth, None))
    inside = (exact > 0) & (exact < cap)
    spent = [f.calls[inside].double().mean() for f in (found, plain)]
    assert inside.sum() > 50 and spent[0] < spent[1] - 0.5, spent
    assert ((found.radius - exact).abs() / cap).max() < 1e-3


@pytest.mark.parametrize("compact", [True, False])
def test_a_history_saves_passes(batch: tuple, growth: Growth, compact: bool) -> None:
    (margin, args, clean, cap), exact = batch
    settings = {"xtol": 0.04 * cap, "compact": compact, "growth": growth}
    cold = approximate_radius(margin, args, clean, cap, **settings)
    drift = 1 + 0.05 * torch.randn(len(exact), generator=torch.Generator().manual_seed(0))
    warm = approximate_radius(margin, args, clean, cap, **settings, history=cold._replace(factor=cold.factor * drift))
    inside = (exact > 0) & (exact < cap)
    assert inside.sum() > 50
    assert warm.calls[inside].double().mean() < 0.8 * cold.calls[inside].double().mean()
    error = (warm.radius - exact).abs() / cap
    assert error.mean() < 1e-3 and error.max() < 2e-2


def test_the_factor_leads_back_to_the_radius(batch: tuple, growth: Growth) -> None:
    """Unless the network or the sample change, the next guess is the radius; at the cap as well."""
    (margin, args, clean, cap), exact = batch
    found = approximate_radius(margin, args, clean, cap, xtol=1e-4 * cap, growth=growth)
    guess, correct = growth.guess(clean * found.factor), exact > 0
    expected = torch.where(exact > CLOSE * cap, cap, exact)
    torch.testing.assert_close(guess[correct], expected[correct], rtol=0.02, atol=0.0)
    assert (found.factor[~correct] == 1).all()


def test_a_wrong_history_costs_passes_and_nothing_else(batch: tuple, growth: Growth) -> None:
    (margin, args, clean, cap), exact = batch
    none = Estimates.given(torch.zeros_like(exact))
    for factor in (1e-9, 1e-2, 1e2, 1e9, math.nan):
        history = none._replace(factor=torch.full_like(exact, factor))
        found = approximate_radius(margin, args, clean, cap, xtol=2e-3 * cap, growth=growth, history=history)
        assert (found.radius - exact).abs().max() < 2e-3 * cap, factor


def test_what_is_misclassified_now_keeps_its_history(batch: tuple, growth: Growth) -> None:
    (margin, args, clean, cap), _ = batch
    known = Estimates.given(torch.full_like(clean, 0.1))._replace(factor=torch.rand_like(clean) + 1)
    for compact in (True, False):
        found = approximate_radius(margin, args, clean, cap, xtol=0.01, compact=compact, growth=growth, history=known)
        wrong = clean >= 0
        assert wrong.any() and torch.equal(found.factor[wrong], known.factor[wrong])
        assert (found.radius[wrong] == 0).all() and (found.calls[wrong] == 0).all()


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("tolerance", [4e-2, 1e-2, 1e-4])
@pytest.mark.parametrize("name", SHAPES)
def test_no_shape_takes_many_more_passes_than_bisection(name: str, tolerance: float, compact: bool) -> None:
    """From wherever a search begins, each estimate has its bracket in time: what a step may cost is bounded."""
    g, n = SHAPES[name], 48
    top = g(torch.tensor(CAP, dtype=F64)).item()
    levels = torch.linspace(0.01, 1.1, n, dtype=F64) * top  # the last few have no root below the cap

    def f(x: Tensor, m: Tensor) -> Tensor:
        return solvers_view(g(x) - m)

    for exponent, factor in ((None, 1.0), (1.0, 1.0), (0.2, 30.0), (5.0, 0.03), (1.0, 1e-6)):
        growth = None if exponent is None else power(exponent, CAP, top)
        history = Estimates.given(levels)._replace(factor=torch.full_like(levels, factor))
        settings = {"xtol": tolerance * CAP, "rtol": 0.0, "maxiter": 100, "compact": compact}
        found = approximate_radius(f, (levels,), -levels, CAP, **settings, growth=growth, history=history)
        assert found.calls.max() <= math.ceil(math.log2(1 / tolerance) + SLACK) + 1
        r, away = found.radius, tolerance * CAP * (1 + 1e-9)
        assert (f((r - away).clamp(min=0.0), levels) < 0).all()
        assert ((f(r + away, levels) > 0) | (r >= CAP)).all() and (r[f(0 * r + CAP, levels) < 0] == CAP).all()


def power(exponent: float, cap: float, most: float) -> Growth:
    """Margins that grow like eps^exponent, to ``most`` at the cap."""
    eps = torch.linspace(math.log(0.03 * cap), math.log(cap), POINTS, dtype=F64)
    return Growth(eps, exponent * (eps - math.log(cap)), torch.tensor(most, dtype=F64))


def plateau(eps: Tensor, root: Tensor) -> Tensor:
    """Rises from -10 to 3.4 around the root and hardly at all beyond: two points there foretell a root near 0."""
    return solvers_view((100 * (eps - root)).clamp(-10.0, 3.4) + 0.3 * eps)


def step_below_zero(eps: Tensor, root: Tensor) -> Tensor:
    """Soon just below 0, where it stays until the root: a secant through the step foretells a root right behind it."""
    return solvers_view(-0.05 - 5 * (1 - 20 * eps).clamp(min=0.0) + (eps - root + 1e-3).clamp(min=0.0) * 50)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("f", [plateau, step_below_zero])
@pytest.mark.parametrize("exponent", [None, 0.2, 1.0, 5.0])
def test_no_estimate_is_believed_without_a_bracket(f: Callable, exponent: float | None, compact: bool) -> None:
    """Margins of MNIST networks: whole estimates were wrong (0 for 0.28) while their predicted errors were tiny."""
    root, cap = torch.linspace(0.05, 0.38, 34), 0.4
    clean = f(torch.zeros_like(root), root)
    growth, history = None, None
    if exponent is not None:  # the search begins a little off
        growth = Growth._make(t.float() for t in power(exponent, cap, 5.0))
        history = Estimates.given(root)._replace(factor=5.0 * (0.99 * root / cap) ** exponent / -clean)
    seen: list[Tensor] = []

    def margin(eps: Tensor, root: Tensor) -> Tensor:
        seen.append(torch.stack([root, eps, f(eps, root)]))
        return f(eps, root)

    found = approximate_radius(margin, (root,), clean, cap, xtol=0.03 * cap, rtol=0.0, compact=compact, growth=growth,
                               history=history)  # fmt: skip
    exact = torch.tensor(
        [scipy.optimize.brentq(lambda e, r=r: float(f(torch.tensor(e, dtype=F64), r)), 0, cap) for r in root.double()]
    )
    assert ((found.radius - exact).abs() < 0.03 * cap + 1e-6).all()
    at, eps, values = torch.cat(seen, 1)
    for r in root.tolist():
        mine = at == r
        assert eps[mine & (values > 0)].min() - eps[mine & (values < 0)].max() <= 0.03 * cap + 1e-6


class Recorded:
    """A margin that remembers where it was asked for, by the last of its arguments."""

    def __init__(self, margin: Callable) -> None:
        self.margin, self.sizes, self.seen = margin, [], []

    def __call__(self, eps: Tensor, *args: Tensor) -> Tensor:
        *args, which = args
        values = self.margin(eps, *args)
        self.sizes.append(len(eps))
        self.seen.append(torch.stack([which.to(eps), eps, values]))
        return values

    def brackets(self, n: int) -> tuple[Tensor, Tensor]:
        """(n,) each: the largest eps seen with a negative margin, and the smallest without."""
        which, eps, values = torch.cat(self.seen, 1)
        at, below, above = which.long(), values < 0, values > 0
        lower = torch.zeros(n).scatter_reduce(0, at[below], eps[below], "amax")
        return lower, torch.full((n,), math.inf).scatter_reduce(0, at[above], eps[above], "amin")


@pytest.mark.parametrize("known", [False, True])
def test_ever_fewer_samples_take_part_where_the_host_does_not_ask(trained: Trained, known: bool) -> None:
    """And on a real network that is enough: nearly the same radii as where it does."""
    x, y, cap = trained.x[:360], trained.y[:360], trained.eps_max
    with torch.no_grad():
        frozen, clean = freeze(trained.model), clean_margin(trained.model(x), y)
        growth = Growth.of(frozen, x, cap, True, (0.0, 1.0))
    margin, which, n = margin_function(frozen, True, (0.0, 1.0)), torch.arange(len(x)), len(x)
    bracket, after = (HISTORY_BRACKET, HISTORY_HALVE_AFTER) if known else (BRACKET, HALVE_AFTER)
    settings = {"xtol": bracket * cap, "rtol": 0.0, "growth": growth, "halve_after": after}
    history = approximate_radius(margin, (x, y), clean, cap, **settings) if known else None
    recorded = Recorded(margin)
    asked = approximate_radius(margin, (x, y), clean, cap, **settings, history=history)
    found = approximate_radius(recorded, (x, y, which), clean, cap, **settings, history=history, compact=False)
    expected = [max(TILE, math.ceil(n / 2 ** (max(0, k + 2 - after) // 2))) for k in range(len(recorded.sizes))]
    assert n > 8 * TILE and recorded.sizes == expected and sum(expected) < 6 * n
    apart = (asked.radius - found.radius).abs() / cap
    assert apart.max() < bracket and apart.mean() < 1e-4 and (apart > 1e-3).double().mean() < 0.01
    assert ((asked.radius > 0) & (asked.radius < cap)).sum() > 50


@pytest.mark.parametrize("f", [plateau, step_below_zero])
def test_whose_turn_does_not_come_keeps_his_bracket(f: Callable) -> None:
    n, cap = 8 * TILE, 0.4
    root = torch.linspace(0.05, 0.38, n)
    recorded = Recorded(f)
    settings = {"xtol": 1e-3 * cap, "rtol": 0.0, "maxiter": 30, "compact": False, "halve_after": 2}
    found = approximate_radius(recorded, (root, torch.arange(n)), f(0 * root, root), cap, **settings)
    lower, upper = recorded.brackets(n)
    left = upper - lower > 1e-3 * cap
    assert left.any() and (~left).any()
    assert ((found.radius >= lower) & (found.radius <= upper))[left].all()


def test_the_widest_brackets_go_on() -> None:
    start = Trail.start(torch.zeros(5), -torch.ones(5))
    trail = start._replace(
        lower=torch.tensor([0.1, 0.2, 0.1, 0.3, 0.0]), upper=torch.tensor([0.4, 0.3, 0.2, math.inf, 1.0])
    )
    todo = torch.tensor([True, True, True, True, False])
    assert widest(trail, todo, 3).tolist() == [3, 0, 1]
    assert sorted(widest(trail, todo, 4).tolist()) == [0, 1, 2, 3]
    assert widest(trail, todo, 5).tolist() == [0, 1, 2, 3, 4]


def test_the_history_keeps_to_its_samples() -> None:
    kept, index = Estimates.given(torch.zeros(6)), torch.tensor([4, 1])
    new = Estimates(torch.tensor([0.3, 0.1]), torch.tensor([0.5, 0.25]), torch.tensor([2, 3]))
    kept.update_(index, new)
    assert all(torch.equal(a, b) for a, b in zip(kept.of(index), new, strict=True))
    assert kept.radius.tolist() == pytest.approx([0, 0.1, 0, 0, 0.3, 0])
    assert kept.factor.tolist() == pytest.approx([1, 0.25, 1, 1, 0.5, 1])
