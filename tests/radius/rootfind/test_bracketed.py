"""brentq, bisect and chandrupatla: known roots, brackets, hostile functions, the call and its errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import optimize
from scipy.optimize import elementwise

from acertlab.radius.rootfind.bisection import bisect
from acertlab.radius.rootfind.bracketed import RootStatus
from acertlab.radius.rootfind.brent import brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla
from tests.helpers.problems import PROBLEMS, Problem, families, piecewise_linear
from tests.helpers.roots import (
    F64,
    FIELDS,
    INF,
    NAN,
    SOLVERS,
    assert_bracket,
    both_paths,
    column,
    every_solver,
)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=("float32", "float64"))
@every_solver
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_known_roots(problem: Problem, solver, dtype, device) -> None:
    """Within xtol + rtol |x| of the exact root, plus what the rounding of f itself moves it."""
    a, b = (torch.tensor([end], dtype=dtype, device=device) for end in (problem.a, problem.b))
    r = solver(problem.f, a, b, maxiter=1000)
    eps = torch.finfo(dtype).eps
    rounding = eps * (problem.noise * max(1.0, abs(problem.root)) + abs(problem.root))
    assert r.status.item() == RootStatus.CONVERGED
    assert r.root.dtype == dtype and r.root.device == a.device
    assert abs(r.root.item() - problem.root) <= 2e-12 + 4 * eps * abs(problem.root) + rounding
    assert r.f_root.item() == problem.f(r.root).item()
    assert_bracket(r)


def test_the_table_is_large_enough_and_names_are_unique() -> None:
    assert len(PROBLEMS) >= 30 and len({p.name for p in PROBLEMS}) == len(PROBLEMS)


def test_a_width_equal_to_the_tolerance_is_not_yet_enough() -> None:
    """The inequalities are strict, as scipy's: brackets around 0 whose width is exactly xtol, a power of two."""
    f = lambda x: torch.where(x < 0, -1.0, 1.0).to(x)  # noqa: E731
    g = lambda x: -1.0 if x < 0 else 1.0  # noqa: E731
    _, theirs = optimize.brentq(g, -1.0, 0.0, xtol=1.0, full_output=True)
    assert theirs.iterations == 2 == brentq(f, -1.0, 0.0, xtol=1.0).iterations.item()
    _, theirs = optimize.bisect(g, -1.0, 1.0, xtol=1.0, full_output=True)
    assert theirs.iterations == 2 == bisect(f, -1.0, 1.0, xtol=1.0).iterations.item()
    tolerances = {"xatol": 1.0, "xrtol": 1e-15, "fatol": 0, "frtol": 0}
    theirs = elementwise.find_root(lambda x: np.where(x < 0, -1.0, 1.0), (-1.0, 0.0), tolerances=tolerances)
    assert theirs.nit == 1 == chandrupatla(f, -1.0, 0.0, xtol=1.0).iterations.item()


@every_solver
def test_a_zero_at_an_end(solver) -> None:
    """Found without an iteration; with zeros at both ends the root is a, as in scipy's brentq and bisect."""
    r = solver(lambda x, p, q: (x - p) * (x - q), column(1, 0, 1), 2.0, args=(column(1, 2, 1), column(-5, -5, 2)))
    assert r.root.tolist() == [1, 2, 1] and r.f_root.tolist() == [0, 0, 0] and r.converged.all()
    assert r.iterations.tolist() == [0, 0, 0] and r.function_calls.tolist() == [2, 2, 2]
    assert r.lower.tolist() == r.upper.tolist() == [1, 2, 1]


finite = st.floats(-1e3, 1e3, allow_nan=False)


@st.composite
def monotone(draw) -> tuple[torch.Tensor, ...]:
    """A batch of non-decreasing piecewise linear functions: columns, a, b; plateaus, kinks, jumps of slope."""
    size = draw(st.integers(1, 8))
    pieces = draw(st.integers(1, 4))

    def row(values):
        return torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=F64)

    left, columns = row(finite), []
    a = left - row(st.floats(0, 10))
    for _ in range(pieces):
        width = row(st.floats(1e-3, 10))
        columns += [left, width, row(st.sampled_from([0.0, 1e-6, 0.5, 1.0, 3.0, 1e6]))]
        left = left + width
    b = left + row(st.floats(0, 10))
    return (row(st.sampled_from([0.0, -1e-9, -0.5, -1.0, -10.0, -1e5])), *columns), a, b


@settings(max_examples=60, deadline=None)
@given(monotone(), st.sampled_from(SOLVERS), st.sampled_from([(2e-12, 0.0), (1e-6, 1e-4), (1e-3, 1e-1)]), st.booleans())
def test_monotone_functions(case, solver, tolerances, reverse) -> None:
    """The bracket holds a sign change, lies in [a, b], is narrow where converged, and its ends are true values of f."""
    columns, a, b = case
    xtol, rtol = tolerances[0], max(tolerances[1], 4 * torch.finfo(F64).eps)
    low, high = (b, a) if reverse else (a, b)
    r = solver(piecewise_linear, low, high, args=columns, xtol=xtol, rtol=rtol, maxiter=300)
    fa, fb = piecewise_linear(a, *columns), piecewise_linear(b, *columns)
    sign_change = (fa <= 0) & (fb >= 0) | (fa == 0) | (fb == 0)
    assert (sign_change == r.converged).all()
    assert (r.status[~sign_change] == RootStatus.SIGN_ERROR).all()
    assert_bracket(r)
    assert ((a <= r.lower) & (r.upper <= b)).all()
    assert (r.f_lower == piecewise_linear(r.lower, *columns)).all()
    assert (r.f_upper == piecewise_linear(r.upper, *columns)).all()
    rounding = 4 * torch.finfo(F64).eps * (a.abs() + b.abs())  # in the ends of bisect's bracket
    assert (r.upper - r.lower <= xtol + rtol * r.root.abs() + rounding)[r.converged].all()
    inside = r.converged & (r.f_root != 0)
    assert ((r.f_lower < 0) & (r.f_upper > 0))[inside].all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SOLVERS), st.booleans(), st.sets(st.integers(0, 11), max_size=6))
def test_broken_elements_do_not_disturb_the_others(seed, solver, compact, broken) -> None:
    for family in families(12, seed=seed):
        if family.exp:
            continue
        clean = solver(family.f, family.a, family.b, args=family.columns, compact=compact, maxiter=50)
        columns, a, b = [c.clone() for c in family.columns], family.a.clone(), family.b.clone()
        for k, i in enumerate(sorted(broken)):
            if k % 3 == 0:
                columns[0][i] = NAN
            elif k % 3 == 1:
                a[i] = INF
            else:
                b[i] = a[i]
        r = solver(family.f, a, b, args=tuple(columns), compact=compact, maxiter=50)
        rest = torch.tensor([i for i in range(12) if i not in broken])
        at = {i: RootStatus.SIGN_ERROR if k % 3 == 2 else RootStatus.NONFINITE for k, i in enumerate(sorted(broken))}
        assert all(r.status[i] == status for i, status in at.items())
        for name in FIELDS:
            assert torch.equal(getattr(r, name)[rest], getattr(clean, name)[rest]), name


@both_paths
@every_solver
def test_statuses_side_by_side(solver, compact) -> None:
    r = solver(
        lambda x, c: x * x - c,
        column(0, 0, 0, 0, -INF, NAN, 1, -1e308),
        column(4, 4, 4, 4, 4, 4, 1, 1.7e308),
        args=(column(2, -1, NAN, INF, 2, 2, 3, 2),),
        compact=compact,
        maxiter=200,
    )
    no, bad = RootStatus.SIGN_ERROR, RootStatus.NONFINITE
    assert r.status.tolist() == [0, no, bad, no, bad, bad, no, bad]
    assert r.status.dtype == torch.int8 and r.converged.tolist() == [True] + [False] * 7
    assert abs(r.root[0].item() - math.sqrt(2)) < 1e-11 and r.root[1:].isnan().all()
    assert r.lower[1].item() == 0 and r.upper[1].item() == 4 and r.f_upper[1].item() == 17
    assert r.function_calls[1:].tolist() == [2] * 7 and r.iterations[1:].tolist() == [0] * 7
    assert_bracket(r)


@both_paths
@every_solver
def test_nan_inside_keeps_the_bracket_before_it(solver, compact) -> None:
    def f(x, hole):
        return torch.where((x - 0.4).abs() < hole, NAN, torch.where(x < 0.4, -1.0, 1.0))

    r = solver(f, 0.0, 1.0, args=(column(0, 0.01, 0.2),), compact=compact)
    assert r.status.tolist() == [0, RootStatus.NONFINITE, RootStatus.NONFINITE]
    assert r.root[1:].isnan().all() and r.lower[0] <= 0.4 <= r.upper[0]
    assert (r.f_lower[1:] == -1).all() and (r.f_upper[1:] == 1).all() and (r.upper - r.lower)[1] < 0.5
    assert (r.function_calls[1:] == 2 + r.iterations[1:]).all()


@every_solver
def test_infinite_values_count_by_their_sign(solver) -> None:
    """At an end, at both, and wherever the root is not: as scipy, which bisects on them."""

    def f(x, c):
        return torch.where(x > c, INF, torch.where(x < c - 0.25, -INF, x - c + 0.125))

    c = column(0.3, 0.6, 0.9)
    r = solver(f, 0.0, 1.0, args=(c,), maxiter=500)
    assert r.converged.all() and (r.root - c + 0.125).abs().max() < 1e-11
    step = solver(lambda x: torch.where(x > 0.3, INF, -1.0).to(x), 0.0, 1.0, maxiter=500)
    assert step.converged.all() and abs(step.root.item() - 0.3) < 1e-11
    if solver is not chandrupatla:
        theirs = getattr(optimize, solver.__name__)(lambda x: INF if x > 0.3 else -1.0, 0.0, 1.0, full_output=True)[1]
        assert (step.root.item(), step.function_calls.item()) == (theirs.root, theirs.function_calls)


@every_solver
@pytest.mark.parametrize("scale", (1e-320, 1e-300, 1e-160, 1e160, 1e300))
def test_signs_are_never_multiplied(scale, solver) -> None:
    """Products of values this small or large under- or overflow; the signs do not."""
    r = solver(lambda x: (x - 0.3) * scale, 0.0, 1.0, maxiter=300)
    assert r.converged.all() and abs(r.root.item() - 0.3) < (0.01 if scale == 1e-320 else 1e-11)
    same = solver(lambda x: (x + 0.3) * scale, 0.0, 1.0)
    assert same.status.item() == RootStatus.SIGN_ERROR


@every_solver
@pytest.mark.parametrize("scale", (1e-290, 1e-200, 1e-30, 1e30, 1e200, 1e300, 8e307))
def test_brackets_of_any_size(scale, solver) -> None:
    r = solver(lambda x: x / scale - 0.3, column(-1, 0, 1) * scale, column(1, 1, 0) * scale, xtol=5e-324, maxiter=300)
    assert r.converged.all() and ((r.root / scale - 0.3).abs() <= 2e-15).all()
    assert_bracket(r)


@every_solver
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_tolerances_below_the_dtype_are_raised_to_it(solver, dtype) -> None:
    """rtol = 0 and an absurd xtol still end, a few roundings wide."""
    c = torch.tensor([1e-3, 0.7, 1234.5], dtype=dtype)
    r = solver(lambda x, c: x * x * x - c, -1.0, 20.0, args=(c,), xtol=1e-300, rtol=0, maxiter=300)
    eps = torch.finfo(dtype).eps
    assert r.root.dtype == dtype and r.converged.all()
    assert (r.upper - r.lower <= 5 * eps * r.root).all()
    zero = solver(
        lambda x: torch.where(x < 0, -1.0, 1.0).to(x), torch.tensor([-1.0], dtype=dtype), 3.0, xtol=5e-324, maxiter=3000
    )
    assert zero.converged.all() and zero.root.abs().item() <= 2 * torch.finfo(dtype).tiny


@every_solver
def test_plateau_of_zeros_and_negative_zero(solver) -> None:
    """An evaluated point of the plateau is the root; -0.0 is a zero like any other."""
    f = lambda x: torch.where(x < 0.2, x - 0.2, torch.where(x > 0.8, x - 0.8, -0.0))  # noqa: E731
    r = solver(f, column(0.0, -1.0, 0.5), column(1.0, 5.0, 5.0))
    assert r.converged.all() and (r.f_root == 0).all() and ((r.root >= 0.2) & (r.root <= 0.8)).all()
    assert_bracket(r)


@every_solver
@pytest.mark.parametrize("end", (1, -1))
def test_step_functions_find_the_step(solver, end) -> None:
    c = torch.linspace(0.001, 0.999, 97, dtype=F64)
    r = solver(lambda x, c: torch.where(x < c, -1, 1) * end, 0.0, 1.0, args=(c,), maxiter=300)  # integer values
    assert r.converged.all() and ((r.lower <= c) & (c <= r.upper)).all() and (r.upper - r.lower < 3e-12).all()


@both_paths
@every_solver
def test_inputs_are_left_alone_and_results_are_not_views_of_them(solver, compact) -> None:
    family = families(10, seed=9)[0]
    given = [family.a, family.b, family.f(family.a, *family.columns), family.f(family.b, *family.columns)]
    given += family.columns
    before = [t.clone() for t in given]
    a, b, fa, fb, *columns = given
    for maxiter in (0, 5, 100):
        r = solver(family.f, a, b, args=tuple(columns), fa=fa, fb=fb, maxiter=maxiter, compact=compact)
        for name in FIELDS:
            getattr(r, name).zero_()
    solver(lambda x, *columns: x.mul_(0), a, b, args=tuple(columns), compact=compact)  # f may overwrite its x
    assert all(torch.equal(t, was) for t, was in zip(given, before, strict=True))


@both_paths
@every_solver
@pytest.mark.parametrize("with_args", [True, False])
def test_a_function_that_overwrites_its_argument_gives_the_same_root(solver, with_args, compact) -> None:
    a, b = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    target = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    f = (lambda x, t: x.sub_(t)) if with_args else (lambda x: x.sub_(target))
    found = solver(f, a, b, args=(target,) if with_args else (), compact=compact)
    assert found.converged.all() and (found.root - target).abs().max() < 1e-9


@both_paths
@every_solver
def test_results_carry_no_gradient(solver, compact) -> None:
    c, b = column(2.0, 3.0).requires_grad_(), column(4.0, 4.0).requires_grad_()

    def f(x, c):
        assert not torch.is_grad_enabled()
        return x * x - c

    r = solver(f, 0.0, b, args=(c,), fb=16 - c, compact=compact)
    assert not any(getattr(r, name).requires_grad for name in FIELDS) and torch.is_grad_enabled()
    assert (r.root - c.detach().sqrt()).abs().max() < 1e-11


@both_paths
@every_solver
def test_empty_batch(solver, compact) -> None:
    empty = torch.zeros(0, 3, dtype=F64)
    r = solver(lambda x, c: (x[:, None] * c).amax(1), column(), 1.0, args=(empty,), compact=compact)
    assert all(getattr(r, name).shape == (0,) for name in FIELDS) and r.converged.shape == (0,)
    assert r.root.dtype == F64 and r.status.dtype == torch.int8


@every_solver
def test_numbers_and_dtypes(solver) -> None:
    """Numbers broadcast against whatever has a batch; tensors decide the dtype, a and b before args."""
    f32 = torch.tensor([2.0, 3.0])
    assert solver(lambda x: x * x - 2, 0, 2).root.dtype == F64
    assert solver(lambda x: x * x - 2, np.float32(0), np.int64(2)).root.shape == (1,)
    assert solver(lambda x, c: x * x - c, 0, 2, args=(f32,)).root.dtype == torch.float32
    assert solver(lambda x, c: x * x - c, column(0, 0), 2, args=(f32,)).root.dtype == F64
    assert solver(lambda x, c: x * x - c, f32 * 0, column(2, 2), args=(f32,)).root.dtype == F64
    assert solver(lambda x, i: x * x - i, 0.0, torch.tensor(2.0), args=(torch.tensor([2, 3]),)).root.shape == (2,)
    images = torch.rand(4, 3, 8, 8)
    r = solver(lambda x, z: (x[:, None, None, None] * z).flatten(1).sum(1) - 9, 0.0, 1.0, args=(images,))
    torch.testing.assert_close(r.root, 9 / images.flatten(1).sum(1))


def test_every_status_has_a_sentence() -> None:
    assert [(s.name, s.value) for s in RootStatus] == [
        ("CONVERGED", 0),
        ("SIGN_ERROR", -1),
        ("MAXITER", -2),
        ("NONFINITE", -3),
    ]
    assert all(s.sentence.endswith(".") for s in RootStatus)
    assert RootStatus(-3) is RootStatus.NONFINITE and RootStatus(-2).sentence.startswith("The maximum number")


def line(x, *args):
    return x - 0.5


BAD_CALLS = {
    "f": ((3, 0.0, 1.0), {}, TypeError, r"f is 3 \(int\); accepted: a function"),
    "xtol zero": ((line, 0.0, 1.0), {"xtol": 0}, ValueError, "xtol = 0: accepted is a finite number > 0"),
    "xtol negative": ((line, 0.0, 1.0), {"xtol": -1e-3}, ValueError, "xtol = -0.001: accepted is a finite number > 0"),
    "xtol nan": ((line, 0.0, 1.0), {"xtol": NAN}, ValueError, "xtol = nan: accepted is a finite number > 0"),
    "xtol word": ((line, 0.0, 1.0), {"xtol": "1"}, TypeError, r"xtol = '1': accepted is a finite number > 0"),
    "rtol negative": ((line, 0.0, 1.0), {"rtol": -1}, ValueError, "rtol = -1: accepted is a finite number >= 0"),
    "rtol nan": ((line, 0.0, 1.0), {"rtol": NAN}, ValueError, "rtol = nan: accepted is a finite number >= 0"),
    "rtol inf": ((line, 0.0, 1.0), {"rtol": INF}, ValueError, "rtol = inf: accepted is a finite number >= 0"),
    "maxiter negative": ((line, 0.0, 1.0), {"maxiter": -1}, ValueError, "maxiter = -1: accepted is a whole number >="),
    "maxiter float": ((line, 0.0, 1.0), {"maxiter": 10.0}, TypeError, "maxiter = 10.0: accepted is a whole number >="),
    "maxiter bool": ((line, 0.0, 1.0), {"maxiter": True}, TypeError, "maxiter = True: accepted is a whole number >="),
    "a word": ((line, "0", 1.0), {}, TypeError, r"a is '0' \(str\); accepted: a tensor \(B,\) or a number"),
    "b none": ((line, 0.0, None), {}, TypeError, r"b is None \(NoneType\); accepted: a tensor"),
    "a integers": (
        (line, torch.zeros(2, dtype=torch.int64), 1.0),
        {},
        TypeError,
        "a has dtype torch.int64; accepted: torch.float32, torch.float64",
    ),
    "b half": ((line, 0.0, torch.ones(2).half()), {}, TypeError, "b has dtype torch.float16; accepted: torch.float32"),
    "fa bfloat16": ((line, column(0, 0), 1.0), {"fa": -torch.ones(2).bfloat16()}, TypeError, "fa has dtype torch.bf"),
    "a matrix": ((line, torch.zeros(2, 1), 1.0), {}, ValueError, r"a has shape \(2, 1\); accepted: \(B,\)"),
    "b shape": ((line, column(0, 0), column(1, 1, 1)), {}, ValueError, r"b has shape \(3,\).* leading dimension of a"),
    "b of one": ((line, column(0, 0), column(1)), {}, ValueError, r"b has shape \(1,\).* leading dimension of a"),
    "fb shape": ((line, column(0, 0), 1.0), {"fb": column(1, 1, 1)}, ValueError, r"fb has shape \(3,\)"),
    "fa word": ((line, 0.0, 1.0), {"fa": "x"}, TypeError, r"fa is 'x' \(str\); accepted: a tensor"),
    "args tensor": ((line, 0.0, 1.0), {"args": column(1)}, TypeError, "args is a tensor of torch.float64; accepted"),
    "args number": ((line, 0.0, 1.0), {"args": (1.0,)}, TypeError, r"args is \(1.0,\) \(tuple\); accepted: a tuple"),
    "args shape": (
        (line, column(0, 0), 1.0),
        {"args": (column(1, 2), torch.zeros(3, 2))},
        ValueError,
        r"args\[1\] has shape \(3, 2\).* leading dimension of a",
    ),
    "args scalar": ((line, 0.0, 1.0), {"args": (torch.tensor(1.0),)}, ValueError, r"args\[0\] has shape \(\)"),
    "device": ((line, column(0), torch.ones(1, dtype=F64, device="meta")), {}, ValueError, "b is on meta; accepted: c"),
    "f shape": (
        (lambda x: x[:, None], column(0, 0), 1.0),
        {},
        ValueError,
        r"f returned shape \(2, 1\) on cpu for x of shape \(2,\)",
    ),
    "f sum": ((lambda x: x.sum(), column(0, 0), 1.0), {}, ValueError, r"f returned shape \(\)"),
    "f number": ((lambda x: 1.0, column(0, 0), 1.0), {}, TypeError, r"f returned 1.0 \(float\); accepted: a real"),
    "f complex": ((lambda x: x + 1j, column(0, 0), 1.0), {}, TypeError, "f returned a tensor of torch.complex128"),
}


@every_solver
@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS)
def test_argument_errors(call, solver) -> None:
    positional, named, error, message = call
    with pytest.raises(error, match=message):
        solver(*positional, **named)
