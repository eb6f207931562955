"""The loop of the root finders: what is dropped, what is frozen, what is counted, and who waits for the device."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from acertlab.radius.rootfind.bracketed import RootStatus
from tests.helpers.problems import families
from tests.helpers.roots import (
    FIELDS,
    NAN,
    SOLVERS,
    assert_same,
    both_paths,
    column,
    every_solver,
)


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
