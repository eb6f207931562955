"""Bisection decides as scipy's."""

import pytest
from scipy import optimize

from acertlab.radius.rootfind.bisection import bisect
from tests.helpers.problems import families
from tests.helpers.roots import assert_bracket, scipy_one_by_one, torch_exp


@pytest.mark.parametrize("xtol, rtol", [(2e-12, 8.881784197001252e-16), (1e-6, 1e-4)])
def test_bisect_decides_as_scipy(xtol, rtol) -> None:
    for family in families(300, seed=2):
        ours = bisect(family.torch(), family.a, family.b, args=family.columns, xtol=xtol, rtol=rtol)
        root, nit, nfev, converged = scipy_one_by_one(optimize.bisect, family, torch_exp, xtol=xtol, rtol=rtol)
        assert (ours.root.numpy() == root).all() and (ours.iterations.numpy() == nit).all()
        assert (ours.function_calls.numpy() == nfev).all() and converged.all() and ours.converged.all()
        assert_bracket(ours)
