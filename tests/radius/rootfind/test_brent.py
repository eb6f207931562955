"""Brent's method decides as scipy's, on ten thousand functions and on wild ones."""

import struct
import zlib

import numpy as np
import pytest
import torch
from scipy import optimize

from acertlab.radius.rootfind.bisection import bisect
from acertlab.radius.rootfind.brent import brentq
from tests.helpers.problems import families
from tests.helpers.roots import F64, INF, assert_bracket, column, scipy_one_by_one, torch_exp


@pytest.mark.parametrize("xtol, rtol", [(2e-12, 8.881784197001252e-16), (1e-6, 1e-4)])
def test_brentq_decides_as_scipy_on_ten_thousand_random_functions(xtol, rtol, record_property) -> None:
    """Roots within tolerance always; iterations and calls the same in >= 99.5 %, with libm's exp on scipy's side.

    The only functions that differ are exponentials: torch's exp and libm's differ in the last bit at times, so the
    two searches then see different functions. With torch's exp on both sides nothing differs, not a bit of a root.
    """
    tolerances = {"xtol": xtol, "rtol": rtol, "maxiter": 1000}
    same, total = 0, 0
    for family in families(2000):
        ours = brentq(family.torch(), family.a, family.b, args=family.columns, **tolerances)
        assert ours.converged.all()
        assert_bracket(ours)
        assert (ours.upper - ours.lower < xtol + rtol * ours.root.abs()).all()
        root, iterations, calls = ours.root.numpy(), ours.iterations.numpy(), ours.function_calls.numpy()

        expected, nit, nfev, converged = scipy_one_by_one(optimize.brentq, family, **tolerances)
        assert converged.all()
        assert (np.abs(root - expected) <= xtol + rtol * np.abs(expected)).all(), family.name
        agree = (iterations == nit) & (calls == nfev)
        same, total = same + agree.sum(), total + len(agree)
        if family.exp:
            expected, nit, nfev, _ = scipy_one_by_one(optimize.brentq, family, torch_exp, **tolerances)
        assert (root == expected).all() and (iterations == nit).all() and (calls == nfev).all(), family.name
    record_property("same_iterations_and_calls", f"{same} of {total}")
    print(f"same iterations and function calls: {same} of {total}")
    assert total == 10_000 and same >= 0.995 * total


def test_the_random_functions_are_as_varied_as_they_claim() -> None:
    """Zeros on plateaus, brackets in either order, very steep and very flat ones are all there."""
    made = {family.name: family for family in families(2000)}
    r = {name: brentq(f.torch(), f.a, f.b, args=f.columns, maxiter=1000) for name, f in made.items()}
    assert sorted(made) == ["exponential", "flat", "piecewise linear", "polynomial", "steep"]
    flat_zero = made["piecewise linear"].f(r["piecewise linear"].root + 1e-9, *made["piecewise linear"].columns) == 0
    assert (flat_zero & (r["piecewise linear"].f_root == 0)).sum() > 100
    assert all(200 < (f.a > f.b).sum() < 1800 for name, f in made.items() if name != "piecewise linear")
    assert made["steep"].columns[0].max() > 1e8
    assert r["flat"].iterations.max() > 80


@pytest.mark.parametrize("maxiter", (0, 1, 2, 5))
def test_brentq_stopped_early_is_where_scipy_is(maxiter) -> None:
    """The last iterate at MAXITER (what training with few iterations uses) is scipy's, and so is the flag."""
    for family in families(200, seed=1):
        for solve, theirs in ((brentq, optimize.brentq), (bisect, optimize.bisect)):
            ours = solve(family.torch(), family.a, family.b, args=family.columns, maxiter=maxiter)
            root, nit, nfev, converged = scipy_one_by_one(theirs, family, torch_exp, maxiter=maxiter)
            assert (ours.root.numpy() == root).all() and (ours.iterations.numpy() == nit).all()
            assert (ours.function_calls.numpy() == nfev).all() and (ours.converged.numpy() == converged).all()
            assert_bracket(ours)


WILD = (0.0, 5e-324, 1e-310, 1e-160, 1.0, 1.0, 2.0, 1e160, 1.7e308, INF)


def wild(x: float, step: float, salt: float) -> float:
    """Right in sign on either side of `step`; in size a hash of x: zero, subnormal, huge, infinite, equal."""
    size = WILD[zlib.crc32(struct.pack("dd", x, salt)) % len(WILD)]
    return -size if x < step else size


@pytest.mark.parametrize("solver", (brentq, bisect), ids=lambda s: s.__name__)
@pytest.mark.parametrize("xtol, rtol, maxiter", [(2e-12, 1e-15, 100), (1e-5, 1e-3, 2000), (1e-300, 1e-15, 3000)])
def test_wild_functions_and_brackets_go_as_in_scipy(solver, xtol, rtol, maxiter) -> None:
    g = torch.Generator().manual_seed(0)
    scale = column(1e-310, 1e-300, 1, 1e5, 1e300, 8e307).repeat(50)
    a, b, t = (2 * torch.rand(3, 300, generator=g, dtype=F64) - 1).unbind()
    a, b, step, salt = a * scale, b * scale, (a + (b - a) * t.abs()) * scale, torch.arange(300, dtype=F64)

    def f(x, step, salt):
        return column(*map(wild, x.tolist(), step.tolist(), salt.tolist()))

    options = {"xtol": xtol, "rtol": rtol, "maxiter": maxiter}
    r = solver(f, a, b, args=(step, salt), **options)
    assert_bracket(r)
    for i, (low, high, *args) in enumerate(zip(*(v.tolist() for v in (a, b, step, salt)), strict=True)):
        scipys = getattr(optimize, solver.__name__)
        _, theirs = scipys(wild, low, high, tuple(args), full_output=True, disp=False, **options)
        ours = r.root[i].item(), r.function_calls[i].item(), r.converged[i].item()
        assert ours == (theirs.root, theirs.function_calls, theirs.converged)
