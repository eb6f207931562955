"""brentq, bisect and chandrupatla: known roots, scipy's decisions, brackets, both paths, hostile input, errors."""

import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import optimize
from scipy.optimize import elementwise
from torch.utils._python_dispatch import TorchDispatchMode

from acertlab.radius.rootfind.bisection import bisect
from acertlab.radius.rootfind.bracketed import RootResult, RootStatus
from acertlab.radius.rootfind.brent import brentq
from acertlab.radius.rootfind.chandrupatla import chandrupatla
from tests.helpers.problems import PROBLEMS, Problem, families, piecewise_linear

SOLVERS = (brentq, bisect, chandrupatla)
FIELDS = tuple(RootResult.__dataclass_fields__)
DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
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


# Known roots


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


# scipy's decisions


def scipy_one_by_one(solve, family, exp=math.exp, **options) -> tuple[np.ndarray, ...]:
    """Roots, iterations and function calls of scipy's scalar solver on each function of a family."""
    rows = []
    for i, (a, b) in enumerate(zip(family.a.tolist(), family.b.tolist(), strict=True)):
        _, found = solve(family.scalar(i, exp), a, b, full_output=True, disp=False, **options)
        rows.append((found.root, found.iterations, found.function_calls, found.converged))
    return tuple(np.array(rows).T)


def torch_exp(x: float) -> float:
    return torch.exp(torch.tensor([x], dtype=F64)).item()


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


@pytest.mark.parametrize("xtol, rtol", [(2e-12, 8.881784197001252e-16), (1e-6, 1e-4)])
def test_bisect_decides_as_scipy(xtol, rtol) -> None:
    for family in families(300, seed=2):
        ours = bisect(family.torch(), family.a, family.b, args=family.columns, xtol=xtol, rtol=rtol)
        root, nit, nfev, converged = scipy_one_by_one(optimize.bisect, family, torch_exp, xtol=xtol, rtol=rtol)
        assert (ours.root.numpy() == root).all() and (ours.iterations.numpy() == nit).all()
        assert (ours.function_calls.numpy() == nfev).all() and converged.all() and ours.converged.all()
        assert_bracket(ours)


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


# Counting, dropping, freezing


class Counted:
    """f(x, id, *columns) that counts the evaluations of each element and remembers batch sizes."""

    def __init__(self, f, size: int) -> None:
        self.f, self.calls, self.batches = f, torch.zeros(size, dtype=torch.int64), []

    def __call__(self, x, index, *columns):
        self.calls.index_add_(0, index, torch.ones_like(index))
        self.batches.append(len(x))
        return self.f(x, *columns)


@pytest.mark.parametrize("known", ("", "a", "b", "ab"))
@every_solver
def test_finished_elements_are_never_evaluated_again(solver, known) -> None:
    for family in families(60, seed=4):
        f = Counted(family.torch(), 60)
        values = {f"f{end}": family.torch()(getattr(family, end), *family.columns) for end in known}
        r = solver(f, family.a, family.b, args=(torch.arange(60), *family.columns), maxiter=60, **values)
        assert (f.calls == r.function_calls).all()
        assert f.batches == sorted(f.batches, reverse=True)
        plain = solver(family.torch(), family.a, family.b, args=family.columns, maxiter=60)
        assert (plain.function_calls - r.function_calls == len(known)).all()
        assert (plain.root - r.root).abs().max() < 1e-10 and (plain.status == r.status).all()


@every_solver
def test_nothing_is_evaluated_once_all_ends_are_known_and_useless(solver) -> None:
    def f(x):
        raise AssertionError("f was called")

    r = solver(f, column(0, 0), column(1, 1), fa=column(1, NAN), fb=1.0)
    assert r.status.tolist() == [RootStatus.SIGN_ERROR, RootStatus.NONFINITE] and r.function_calls.tolist() == [0, 0]


@every_solver
def test_without_args_f_sees_the_full_batch_and_frozen_elements_do_not_count(solver) -> None:
    seen = []

    def f(x):
        seen.append(x.clone())
        return torch.atan((x - column(0.5, 1 / 3, 0.9, 0.1)) * column(1, 1, 1e6, -2)) + column(0, 0, 0, -9)

    r = solver(f, column(0, 0, 0, 0), column(1, 1, 1, 1))
    assert all(len(x) == 4 for x in seen) and len(seen) == r.function_calls.max()
    assert r.status.tolist() == [0, 0, 0, RootStatus.SIGN_ERROR]
    first = r.function_calls[0]
    assert r.root[0] == 0.5 and first < r.function_calls[2] and all(x[0] == 0.5 for x in seen[first:])


@both_paths
@every_solver
def test_what_f_returns_for_finished_elements_is_ignored(solver, compact) -> None:
    """Element 0 has its root at an end, 1 at the first midpoint, 2 no sign change; later all three would be NaN."""
    calls = []

    def f(x):
        calls.append(x)
        value = x - column(0, 0.5, -9, 0.3)
        value[3] = torch.atan(50 * value[3])  # takes longer
        if len(calls) > 4:
            value[:3] = NAN
        return value

    r = solver(f, column(0, 0, 0, 0), column(1, 1, 1, 1), compact=compact)
    assert r.status.tolist() == [0, 0, RootStatus.SIGN_ERROR, 0] and r.root[:2].tolist() == [0, 0.5]
    assert r.lower[2].item() == 0 and r.upper[2].item() == 1 and r.f_upper[2].item() == 10
    assert len(calls) > 6 and abs(r.root[3].item() - 0.3) < 1e-11


@every_solver
@pytest.mark.parametrize("maxiter", (0, 1, 7, 60))
def test_the_fixed_path_evaluates_the_full_batch_exactly_maxiter_times(solver, maxiter) -> None:
    family = families(32, seed=5)[3]
    f = Counted(family.torch(), 32)
    args = (torch.arange(32), *family.columns)
    solver(f, family.a, family.b, args=args, maxiter=maxiter, compact=False)
    assert f.batches == [32] * (maxiter + 2)
    f.batches.clear()
    ends = {"fa": f.f(family.a, *family.columns), "fb": f.f(family.b, *family.columns)}
    solver(f, family.a, family.b, args=args, maxiter=maxiter, compact=False, **ends)
    assert f.batches == [32] * maxiter


@every_solver
@pytest.mark.parametrize("maxiter", (0, 1, 2, 4, 10, 100))
def test_both_paths_and_both_calling_conventions_give_the_same(solver, maxiter) -> None:
    for family in families(50, seed=6):
        if family.exp:
            continue  # torch's exp may depend on the place in the batch
        f = family.torch()
        family.columns[0][7] = NAN
        options = {"maxiter": maxiter}
        r = solver(f, family.a, family.b, args=family.columns, **options)
        assert r.status[7] == RootStatus.NONFINITE
        assert_same(r, solver(f, family.a, family.b, args=family.columns, compact=False, **options))
        for compact in (True, False):
            full = solver(lambda x: f(x, *family.columns), family.a, family.b, compact=compact, **options)  # noqa: B023
            assert_same(r, full)


class NoSynchronisation(TorchDispatchMode):
    """Fails on every operation that makes the host wait for the device."""

    WAITS = ("_local_scalar_dense", "item", "nonzero", "nonzero_static", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        if name in self.WAITS or any(m is not None and m.dtype in (torch.bool, torch.uint8) for m in masks):
            raise AssertionError(f"{func} synchronises")
        return func(*args, **(kwargs or {}))


def test_the_guard_catches_what_it_should() -> None:
    x = torch.arange(4.0)
    waits = (
        lambda: x.sum().item(),
        lambda: bool(x.sum() > 1),
        lambda: x[x > 1],
        lambda: (x > 1).nonzero(),
        lambda: x.masked_select(x > 1),
        lambda: torch.where(x > 1),
        lambda: torch.equal(x, x),
        lambda: x.clone().index_put_((x > 1,), x[0]),
    )
    for wait in waits:
        with NoSynchronisation(), pytest.raises(AssertionError, match="synchronises"):
            wait()


@every_solver
@pytest.mark.parametrize("with_args", (True, False))
@pytest.mark.parametrize("known", (True, False))
def test_the_fixed_path_never_synchronises_and_the_compact_path_does(solver, with_args, known) -> None:
    family = families(20, seed=7)[0]
    f, args = (family.f, family.columns) if with_args else ((lambda x: family.f(x, *family.columns)), ())
    options = {"fa": family.f(family.a, *family.columns), "fb": family.f(family.b, *family.columns)} if known else {}
    with NoSynchronisation():
        r = solver(f, family.a, family.b, args=args, compact=False, maxiter=30, **options)
    assert_same(r, solver(f, family.a, family.b, args=args, maxiter=30, **options))
    with NoSynchronisation(), pytest.raises(AssertionError, match=r"nonzero.*synchronises"):
        solver(f, family.a, family.b, args=args, maxiter=30, **options)


@every_solver
def test_the_fixed_path_runs_on_tensors_without_values(solver) -> None:
    """The meta device has no values, so whatever asks for one fails, and the compact path does: a second proof."""
    a, b = torch.zeros(5, device="meta"), torch.ones(5, device="meta")
    r = solver(lambda x: x * x - 0.5, a, b, compact=False, maxiter=5)
    assert all(getattr(r, name).shape == (5,) and getattr(r, name).is_meta for name in FIELDS)
    with pytest.raises((RuntimeError, NotImplementedError)):
        solver(lambda x: x * x - 0.5, a, b, compact=True)
    with pytest.raises((RuntimeError, NotImplementedError)):  # which the dispatch mode above does not see
        a.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_solver
def test_the_fixed_path_on_a_gpu_raises_nothing_when_synchronising_is_an_error(solver) -> None:
    family = families(100, seed=8)[0]
    a, b, *columns = (t.cuda() for t in (family.a, family.b, *family.columns))
    torch.cuda.set_sync_debug_mode("error")
    try:
        r = solver(family.f, a, b, args=tuple(columns), compact=False, maxiter=60)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = solver(family.f, family.a, family.b, args=family.columns, compact=False, maxiter=60)
    assert (r.root.cpu() - on_cpu.root).abs().max() <= 4e-12 and r.converged.all()


# Properties

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
@given(st.integers(0, 10_000), st.sampled_from(SOLVERS), st.booleans(), st.randoms(use_true_random=False))
def test_order_and_batching_do_not_matter(seed, solver, compact, random) -> None:
    for family in families(12, seed=seed):
        if family.exp:
            continue
        options = {"compact": compact, "maxiter": 40}
        whole = solver(family.f, family.a, family.b, args=family.columns, **options)
        order = torch.tensor(random.sample(range(12), random.randint(1, 12)))
        columns = tuple(c[order] for c in family.columns)
        assert_same(whole, solver(family.f, family.a[order], family.b[order], args=columns, **options), order)
        assert_same(whole, whole)


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


# Numerical events


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


# The call


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
