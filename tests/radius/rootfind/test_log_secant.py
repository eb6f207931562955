"""The secant in double logarithmic axes: brackets of rising functions, whatever their shape."""

import math
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from torch import Tensor

from acertlab.radius.rootfind.iterate import Bracket, RootProblem, StoppingRule
from acertlab.radius.rootfind.log_secant import LogSecant, SecantState, widest_brackets
from tests.helpers.problems import SHAPES, solvers_view

LOG_SECANT = LogSecant()
CAP, XTOL, RTOL = 2.0, 1e-7, 1e-5
STOP = StoppingRule(XTOL, RTOL, 50)
F64 = torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", SHAPES)
def test_brackets_of_every_shape_hold_the_root(name: str, dtype: torch.dtype) -> None:
    """f(x) = g(x) - m for 60 levels m between g(0) and g(cap); scipy's brentq tells where the sign changes."""
    g, n = SHAPES[name], 60
    top = g(torch.tensor(CAP, dtype=F64)).item()
    levels = (torch.rand(n, dtype=F64, generator=torch.Generator().manual_seed(0)).clamp(0.01, 0.99) * top).to(dtype)

    def f(x: Tensor, m: Tensor) -> Tensor:
        return solvers_view(g(x) - m)

    start = Bracket.above(torch.zeros(n, dtype=dtype), -levels)
    before = [t.clone() for t in (*start, levels)]
    found = LOG_SECANT.narrow(RootProblem(f, (levels,), -levels, CAP), start, StoppingRule(XTOL, RTOL, 100))
    calls = found.calls
    assert found.converged.all()
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, (*start, levels), strict=True))
    assert (f(found.lower, levels)[found.lower > 0] < 0).all() and (f(found.upper, levels) > 0).all()
    again = f(found.upper, levels)  # vectorised otherwise, perhaps with another last bit
    assert torch.allclose(found.f_upper, again, rtol=1e-4, atol=1e-6 * top) and (found.lower < found.upper).all()
    assert (found.upper - found.lower <= XTOL + RTOL * found.lower).all()
    assert calls.max() <= 64 and calls.double().mean() < (
        35 if name in ("stairs", "a jump", "logistic", "to infinity") else 16
    )
    if dtype == F64:
        roots = [
            scipy.optimize.brentq(lambda x, m=m: f(torch.tensor(x, dtype=F64), m).item(), 0, CAP, xtol=1e-12)
            for m in levels
        ]
        roots = torch.tensor(roots, dtype=F64)
        assert ((found.lower <= roots + 1e-11) & (roots - 1e-11 <= found.upper)).all()


def narrow(f: Callable, m: Tensor, guess: Tensor | None = None, stop: StoppingRule = STOP) -> Bracket:
    """Of functions that are -m at 0."""
    return LOG_SECANT.narrow(RootProblem(f, (m,), -m, CAP, guess), Bracket.above(0 * m, -m), stop)


def test_smooth_powers_take_few_evaluations() -> None:
    m = torch.linspace(0.05, 0.9, 40, dtype=F64)
    for p, most in ((1.0, 5.0), (2.0, 4.0), (3.0, 5.0), (5.0, 6.0)):
        found = narrow(lambda x, m, p=p: solvers_view((x / CAP) ** p - m), m)
        exact = CAP * m ** (1 / p)
        assert (
            found.calls.double().mean() <= most
            and ((found.lower <= exact + 1e-12) & (exact - 1e-12 <= found.upper)).all()
        )


def test_below_zero_at_the_cap() -> None:
    m = torch.tensor([1.0, 3.0, 5.0], dtype=F64)
    for guess in (None, torch.tensor([0.9, 0.5, 2.5], dtype=F64)):
        found = narrow(lambda x, m: solvers_view(x - m), m, guess)
        assert found.lower[1:].tolist() == [CAP, CAP] and found.upper[1:].isinf().all()
        assert abs(found.lower[0] - 1) < 1e-4 and (found.calls[1:] <= 3).all()


def test_too_few_evaluations_still_see_the_cap() -> None:
    m = torch.tensor([0.3, 3.0], dtype=F64)
    found = narrow(lambda x, m: solvers_view(x**9 - m), m, m / 100, StoppingRule(1e-9, 0.0, 1))
    assert found.calls.tolist() == [2, 2] and not found.converged.any()
    assert found.upper.tolist() == [CAP, CAP] and (found.f_upper > 0).all() and (found.lower < m ** (1 / 9)).all()


rows = st.lists(st.floats(1e-3, 10), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    rows,
    st.lists(st.sampled_from([0.0, 1e-6, 0.3, 1.0, 30.0, 1e6]), min_size=6, max_size=6),
    st.floats(1e-6, 1e3),
    st.floats(1e-6, 1.5),
    st.sampled_from([torch.float32, F64]),
)
def test_piecewise_linear_functions(widths: list, slopes: list, level: float, guess: float, dtype: torch.dtype) -> None:
    """Plateaus, kinks, jumps of slope, from any guess: the invariants hold and the bracket is narrow."""
    left = [sum(widths[:k]) for k in range(len(widths))]

    def f(x: Tensor) -> Tensor:
        pieces = zip(left, widths, slopes, strict=False)
        return solvers_view(sum(s * (x - a).clamp(min=0.0).clamp(max=w) for a, w, s in pieces) - level)

    zero = torch.zeros(1, dtype=dtype)
    f_zero = f(zero)
    for first in (None, zero + guess):
        problem = RootProblem(f, (), f_zero, CAP, first)
        found = LOG_SECANT.narrow(problem, Bracket.above(zero, f_zero), StoppingRule(XTOL, RTOL, 200))
        assert (found.converged | found.upper.isinf()).all() and found.calls.max() < 200
        assert found.lower == 0 or f(found.lower) < 0
        assert (f(torch.tensor([CAP], dtype=dtype)) < 0) == found.upper.isinf()
        assert found.upper.isinf() or f(found.upper) > 0


def test_the_widest_brackets_go_on() -> None:
    start = SecantState.start(torch.zeros(5), -torch.ones(5))
    state = start._replace(
        lower=torch.tensor([0.1, 0.2, 0.1, 0.3, 0.0]), upper=torch.tensor([0.4, 0.3, 0.2, math.inf, 1.0])
    )
    todo = torch.tensor([True, True, True, True, False])
    assert widest_brackets(state, todo, 3).tolist() == [3, 0, 1]
    assert sorted(widest_brackets(state, todo, 4).tolist()) == [0, 1, 2, 3]
    assert widest_brackets(state, todo, 5).tolist() == [0, 1, 2, 3, 4]
