"""The radii of a training step: as good as they say, in few passes, whatever the margins' shape."""

import math
from collections.abc import Callable

import pytest
import scipy.optimize
import torch
from torch import Tensor

from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import clean_margin
from acertlab.bounds.rules.batch_invariance import TILE
from acertlab.radius.certified import certified_radius
from acertlab.radius.rootfind.log_secant import SLACK
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.radius.search import CLOSE, POINTS, MarginGrowth, margin_function
from acertlab.training.methods.acert import BRACKET, HALVE_AFTER, HISTORY_BRACKET, HISTORY_HALVE_AFTER
from acertlab.training.methods.sample_radii import RadiusEstimates, SampleSearch, approximate_radius
from tests.helpers.networks import Trained
from tests.helpers.problems import SHAPES, solvers_view

CAP = 2.0
F64 = torch.float64


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
        found = approximate_radius(*call, SampleSearch(xtol=tolerance * 0.2, rtol=0.0, maxiter=30))
        error = (found.radius - exact).abs() / 0.2
        assert error.max() < tolerance and error.mean() < mean  # the reference keeps some roundings from the root
        assert torch.equal(found.radius == 0, exact == 0) and torch.equal(found.radius == 0.2, exact == exact.max())
        spent.append(found.calls.double().mean().item())
    assert spent == sorted(spent) and spent[0] < 3


@pytest.fixture(scope="module")
def growth(batch: tuple, digits_net: Trained) -> MarginGrowth:
    with torch.no_grad():
        return MarginGrowth.of(freeze(digits_net.model), batch[0][1][0], 0.2, True, (0.0, 1.0))


@pytest.mark.parametrize("compact", [True, False])
def test_the_networks_own_growth_saves_passes(batch: tuple, digits_net: Trained, compact: bool) -> None:
    (margin, args, clean, _), cap = batch[0], 0.8  # all roots far below it
    exact = certified_radius(digits_net.model, *args, cap).radius
    with torch.no_grad():
        growth = MarginGrowth.of(freeze(digits_net.model), args[0], cap, True, (0.0, 1.0))
    settings = SampleSearch(xtol=1e-5, compact=compact)
    found, plain = (approximate_radius(margin, args, clean, cap, settings, growth=g) for g in (growth, None))
    inside = (exact > 0) & (exact < cap)
    spent = [f.calls[inside].double().mean() for f in (found, plain)]
    assert inside.sum() > 50 and spent[0] < spent[1] - 0.5, spent
    assert ((found.radius - exact).abs() / cap).max() < 1e-3


@pytest.mark.parametrize("compact", [True, False])
def test_a_history_saves_passes(batch: tuple, growth: MarginGrowth, compact: bool) -> None:
    (margin, args, clean, cap), exact = batch
    settings = SampleSearch(xtol=0.04 * cap, compact=compact)
    cold = approximate_radius(margin, args, clean, cap, settings, growth=growth)
    drift = 1 + 0.05 * torch.randn(len(exact), generator=torch.Generator().manual_seed(0))
    known = cold._replace(factor=cold.factor * drift)
    warm = approximate_radius(margin, args, clean, cap, settings, history=known, growth=growth)
    inside = (exact > 0) & (exact < cap)
    assert inside.sum() > 50
    assert warm.calls[inside].double().mean() < 0.8 * cold.calls[inside].double().mean()
    error = (warm.radius - exact).abs() / cap
    assert error.mean() < 1e-3 and error.max() < 2e-2


def test_the_factor_leads_back_to_the_radius(batch: tuple, growth: MarginGrowth) -> None:
    """Unless the network or the sample change, the next guess is the radius; at the cap as well."""
    (margin, args, clean, cap), exact = batch
    found = approximate_radius(margin, args, clean, cap, SampleSearch(xtol=1e-4 * cap), growth=growth)
    guess, correct = growth.guess(clean * found.factor), exact > 0
    expected = torch.where(exact > CLOSE * cap, cap, exact)
    torch.testing.assert_close(guess[correct], expected[correct], rtol=0.02, atol=0.0)
    assert (found.factor[~correct] == 1).all()


def test_a_wrong_history_costs_passes_and_nothing_else(batch: tuple, growth: MarginGrowth) -> None:
    (margin, args, clean, cap), exact = batch
    none = RadiusEstimates.fixed(torch.zeros_like(exact))
    for factor in (1e-9, 1e-2, 1e2, 1e9, math.nan):
        history = none._replace(factor=torch.full_like(exact, factor))
        settings = SampleSearch(xtol=2e-3 * cap)
        found = approximate_radius(margin, args, clean, cap, settings, growth=growth, history=history)
        assert (found.radius - exact).abs().max() < 2e-3 * cap, factor


def test_what_is_misclassified_now_keeps_its_history(batch: tuple, growth: MarginGrowth) -> None:
    (margin, args, clean, cap), _ = batch
    known = RadiusEstimates.fixed(torch.full_like(clean, 0.1))._replace(factor=torch.rand_like(clean) + 1)
    for compact in (True, False):
        settings = SampleSearch(xtol=0.01, compact=compact)
        found = approximate_radius(margin, args, clean, cap, settings, growth=growth, history=known)
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
        history = RadiusEstimates.fixed(levels)._replace(factor=torch.full_like(levels, factor))
        settings = SampleSearch(xtol=tolerance * CAP, rtol=0.0, maxiter=100, compact=compact)
        found = approximate_radius(f, (levels,), -levels, CAP, settings, growth=growth, history=history)
        assert found.calls.max() <= math.ceil(math.log2(1 / tolerance) + SLACK) + 1
        r, away = found.radius, tolerance * CAP * (1 + 1e-9)
        assert (f((r - away).clamp(min=0.0), levels) < 0).all()
        assert ((f(r + away, levels) > 0) | (r >= CAP)).all() and (r[f(0 * r + CAP, levels) < 0] == CAP).all()


def power(exponent: float, cap: float, most: float) -> MarginGrowth:
    """Margins that grow like eps^exponent, to ``most`` at the cap."""
    eps = torch.linspace(math.log(0.03 * cap), math.log(cap), POINTS, dtype=F64)
    return MarginGrowth(eps, exponent * (eps - math.log(cap)), torch.tensor(most, dtype=F64))


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
        growth = MarginGrowth._make(t.float() for t in power(exponent, cap, 5.0))
        history = RadiusEstimates.fixed(root)._replace(factor=5.0 * (0.99 * root / cap) ** exponent / -clean)
    seen: list[Tensor] = []

    def margin(eps: Tensor, root: Tensor) -> Tensor:
        seen.append(torch.stack([root, eps, f(eps, root)]))
        return f(eps, root)

    settings = SampleSearch(xtol=0.03 * cap, rtol=0.0, compact=compact)
    found = approximate_radius(margin, (root,), clean, cap, settings, growth=growth, history=history)
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
        growth = MarginGrowth.of(frozen, x, cap, True, (0.0, 1.0))
    margin, which, n = margin_function(frozen, True, (0.0, 1.0)), torch.arange(len(x)), len(x)
    bracket, after = (HISTORY_BRACKET, HISTORY_HALVE_AFTER) if known else (BRACKET, HALVE_AFTER)
    settings = SampleSearch(xtol=bracket * cap, rtol=0.0, halve_after=after)
    history = approximate_radius(margin, (x, y), clean, cap, settings, growth=growth) if known else None
    recorded = Recorded(margin)
    asked = approximate_radius(margin, (x, y), clean, cap, settings, history=history, growth=growth)
    settings = settings._replace(compact=False)
    found = approximate_radius(recorded, (x, y, which), clean, cap, settings, history=history, growth=growth)
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
    settings = SampleSearch(xtol=1e-3 * cap, rtol=0.0, maxiter=30, compact=False, halve_after=2)
    found = approximate_radius(recorded, (root, torch.arange(n)), f(0 * root, root), cap, settings)
    lower, upper = recorded.brackets(n)
    left = upper - lower > 1e-3 * cap
    assert left.any() and (~left).any()
    assert ((found.radius >= lower) & (found.radius <= upper))[left].all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_with_enough_iterations_they_are_the_certified_ones(digits_net: Trained, solver: str) -> None:
    """With none they are ACERT-fast's."""
    model, x, y = digits_net.model, digits_net.x, digits_net.y
    exact = certified_radius(model, x, y, 0.2).radius
    with torch.no_grad():
        frozen, clean = freeze(model), clean_margin(model(x), y)
    call = (margin_function(frozen, True, (0.0, 1.0)), (x, y), clean, 0.2)
    for compact in (True, False):
        radius = approximate_radius(*call, SampleSearch(solver, maxiter=30, compact=compact)).radius
        assert (radius - exact).abs().max() < 2e-4 * 0.2
    fast = approximate_radius(*call, SampleSearch(solver, maxiter=0)).radius
    assert torch.equal(fast, torch.where(clean < 0, 0.2, 0.0))
    two = approximate_radius(*call, SampleSearch(solver, maxiter=2)).radius
    assert (two - exact).abs().mean() < (0.5 if solver == "bisect" else 0.25) * (fast - exact).abs().mean()


def test_the_history_keeps_to_its_samples() -> None:
    kept, index = RadiusEstimates.fixed(torch.zeros(6)), torch.tensor([4, 1])
    new = RadiusEstimates(torch.tensor([0.3, 0.1]), torch.tensor([0.5, 0.25]), torch.tensor([2, 3]))
    kept.update_(index, new)
    assert all(torch.equal(a, b) for a, b in zip(kept.of(index), new, strict=True))
    assert kept.radius.tolist() == pytest.approx([0, 0.1, 0, 0, 0.3, 0])
    assert kept.factor.tolist() == pytest.approx([1, 0.25, 1, 1, 0.5, 1])
