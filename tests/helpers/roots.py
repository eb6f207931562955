"""What the tests of root finders share: results compared with each other, with what they promise, with scipy's."""

import math

import numpy as np
import pytest
import torch

from acertlab.radius.rootfind.bisection import bisect
from acertlab.radius.rootfind.bracketed import RootResult, RootStatus
from acertlab.radius.rootfind.brent import brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla

SOLVERS = (brentq, bisect, chandrupatla)
FIELDS = tuple(RootResult.__dataclass_fields__)
F64 = torch.float64
INF, NAN = math.inf, math.nan
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: s.__name__)
both_paths = pytest.mark.parametrize("compact", (True, False), ids=("compact", "fixed"))


def column(*values: float, dtype=F64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype)


def assert_bracket(r: RootResult) -> None:
    """The invariants that RootResult promises."""
    found = r.converged | (r.status == RootStatus.MAXITER)
    assert ((r.lower <= r.root) & (r.root <= r.upper))[found].all()
    zero = r.f_root == 0
    assert ((r.lower == r.root) & (r.upper == r.root))[zero].all()
    assert ((r.f_lower < 0) != (r.f_upper < 0))[found & ~zero].all()
    at_an_end = ((r.root == r.lower) & (r.f_root == r.f_lower)) | ((r.root == r.upper) & (r.f_root == r.f_upper))
    assert at_an_end[found].all()
    assert r.root[~found].isnan().all() and r.f_root[~found].isnan().all()


def assert_same(r: RootResult, s: RootResult, order=slice(None)) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(r, name)[order], getattr(s, name), rtol=0, atol=0, equal_nan=True, msg=name)


def scipy_one_by_one(solve, family, exp=math.exp, **options) -> tuple[np.ndarray, ...]:
    """Roots, iterations and function calls of scipy's scalar solver on each function of a family."""
    rows = []
    for i, (a, b) in enumerate(zip(family.a.tolist(), family.b.tolist(), strict=True)):
        _, found = solve(family.scalar(i, exp), a, b, full_output=True, disp=False, **options)
        rows.append((found.root, found.iterations, found.function_calls, found.converged))
    return tuple(np.array(rows).T)


def torch_exp(x: float) -> float:
    return torch.exp(torch.tensor([x], dtype=F64)).item()
