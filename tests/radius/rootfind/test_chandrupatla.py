"""Chandrupatla's method decides as scipy's."""

import numpy as np
import pytest
import torch
from scipy.optimize import elementwise

from acertlab.radius.rootfind.chandrupatla import chandrupatla
from tests.helpers.problems import families
from tests.helpers.roots import assert_bracket


@pytest.mark.parametrize("maxiter", (0, 3, 200))
@pytest.mark.parametrize("xtol, rtol", [(2e-12, 8.881784197001252e-16), (1e-6, 1e-4)])
def test_chandrupatla_decides_as_find_root(xtol, rtol, maxiter) -> None:
    """Root, bracket, nit, nfev and status of 10,000 functions, on the same arithmetic (exp by torch on both sides)."""
    tolerances = {"xatol": xtol, "xrtol": rtol, "fatol": 0, "frtol": 0}
    for family in families(2000, seed=3):

        def f(x, *columns, family=family):
            return family.torch()(torch.from_numpy(x), *map(torch.from_numpy, columns)).numpy()

        arrays = tuple(column.numpy() for column in family.columns)
        theirs = elementwise.find_root(
            f, (family.a.numpy(), family.b.numpy()), args=arrays, tolerances=tolerances, maxiter=maxiter
        )
        ours = chandrupatla(
            family.torch(), family.a, family.b, args=family.columns, xtol=xtol, rtol=rtol, maxiter=maxiter
        )
        assert_bracket(ours)
        # exp of torch may depend on the place in the vector, which both sides share only as long as they drop alike
        assert np.mean(ours.iterations.numpy() == theirs.nit) >= 0.995
        assert np.mean(ours.function_calls.numpy() == theirs.nfev) >= 0.995
        assert np.mean(ours.status.numpy() == theirs.status) >= 0.995
        both = ours.converged.numpy() & theirs.success
        assert (np.abs(ours.root.numpy() - theirs.x) <= xtol + rtol * np.abs(theirs.x))[both].all()
        if not family.exp:
            assert (ours.iterations.numpy() == theirs.nit).all() and (ours.root.numpy() == theirs.x).all()
            inner = ours.f_root.numpy() != 0
            assert (ours.lower.numpy() == theirs.bracket[0])[inner].all()
            assert (ours.f_upper.numpy() == theirs.f_bracket[1])[inner].all()
