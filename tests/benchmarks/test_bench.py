"""The bench's figures on the digits: contenders that agree, ratios that are ratios, memory that stays bounded."""

import json
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import acertlab as al
from acertlab.bounds.crown.auto_lirpa_compat import bounded_module
from acertlab.bounds.ibp import freeze
from acertlab.bounds.margin import clean_margin, margin_at
from acertlab.models.architectures import small_cnn
from acertlab.models.initialisation import ibp_init_
from acertlab.training.loop.batch_statistics import clean_pass
from acertlab.training.methods.base import Step
from acertlab.training.methods.ibp import FastIBP
from tests.benchmarks import bench, rows as bench_rows, scaling as bench_scaling, waiting
from tests.benchmarks.peers import Batch, FastIBPThroughLirpa, LirpaIBP, brentq_one_by_one, find_root
from tests.benchmarks.rows import Case, Figure
from tests.benchmarks.scaling import Point, peak_memory

SOLVER = bench.DEFAULT_SOLVER
TINY = bench.Effort(
    seconds=0.0,
    width={"small_cnn": 4, "cnn7": 2},
    images={"small_cnn": 1024, "cnn7": 1024},
    steps={"small_cnn": 2, "cnn7": 1},
    test_images=100,
    streamed=400,
    scaling=bench_scaling.Sizes((16, 32, 64), (4, 8, 16), (10, 20, 40)),
)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The small network of the bench, trained on the digits."""
    return bench.trained("small_cnn", TINY, al.load_dataset("digits"), tmp_path_factory.mktemp("networks"), 96)


def batch_of(case: Case, eps_max: float, xtol: float = 1e-6) -> Batch:
    with torch.no_grad():
        clean = clean_margin(case.model(case.x), case.y)
    return Batch(freeze(case.model), case.x, case.y, clean, eps_max, xtol)


def by_row(figures: list[Figure]) -> dict[str, Figure]:
    assert len({(f.table, f.column) for f in figures}) == 1
    return {figure.row: figure for figure in figures}


# The peers


def test_every_search_finds_the_same_radii(case: Case) -> None:
    with torch.no_grad():
        batch = batch_of(case, 0.2)
        radius, evaluations = bench_rows.ours(batch, SOLVER)
        assert ((radius > 0) & (radius < 0.2)).float().mean() > 0.2
        assert 1 < evaluations < 30
        lirpa = replace(batch, network=LirpaIBP(case.model, case.x))
        for other, count in (find_root(batch), brentq_one_by_one(batch), bench_rows.ours(lirpa, "brentq")):
            torch.testing.assert_close(other, radius, rtol=0, atol=1e-5)
            assert 1 < count < 40


def test_auto_lirpas_bounds_are_ours(case: Case) -> None:
    box = al.Box.around(case.x, 0.05)
    lirpa = LirpaIBP(case.model, case.x)
    with torch.no_grad():
        torch.testing.assert_close(
            lirpa.margins(box, case.y), freeze(case.model).margins(box, case.y), rtol=1e-4, atol=1e-4
        )


def test_auto_lirpas_training_step_has_our_loss_and_gradient(case: Case) -> None:
    """In training mode, through the batch's own statistics: else the two steps would not be the same work."""
    x, y, settings = case.x[:32], case.y[:32], {"kappa": 0.3, "eps_max": 0.1}
    torch.manual_seed(0)
    model = ibp_init_(small_cnn(case.data.in_shape, 10, width=4, linear=20)).train()
    twin = small_cnn(case.data.in_shape, 10, width=4, linear=20).train()
    twin.load_state_dict(model.state_dict())
    logits, statistics = clean_pass(model, x)
    loss, _ = FastIBP(**settings)(Step(x, y, logits, freeze(model, statistics), 0.1))
    loss.backward()
    converted = bounded_module(twin, x[:2])
    converted.train()  # it is in evaluation mode at first
    theirs, _ = FastIBPThroughLirpa(**settings, converted=converted)(Step(x, y, converted(x), None, 0.1))
    theirs.backward()
    torch.testing.assert_close(theirs, loss, rtol=1e-4, atol=1e-5)
    scale = max(float(p.grad.abs().max()) for p in model.parameters())  # biases before a BatchNorm have roundings only
    for ours, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, ours.grad, rtol=1e-3, atol=1e-4 * scale)


def test_different_results_are_not_compared() -> None:
    with pytest.raises(AssertionError, match="other: differs from ours by 0.5"):
        bench_rows._agree("other", torch.tensor([1.0]), torch.tensor([1.5]), 0.1)
    with pytest.raises(AssertionError, match="nan"):
        bench_rows._agree("other", torch.tensor([1.0]), torch.tensor([math.nan]), 0.1)


# The figures


def test_the_rows_hold_ratios(case: Case) -> None:
    passes = by_row(bench_rows.bound_pass(case, 64, 0.0))
    eps = bench_rows.eps_at_cap(case, 0.4, SOLVER)
    searches = by_row(bench_rows.search(case, eps, SOLVER, 0.0))
    steps = by_row(bench_rows.training_step(replace(case, config=replace(case.config, batch_size=32)), 2, 0.2, 0.0))
    figures = [f for rows in (passes, searches, steps) for f in rows.values()]
    assert all(math.isfinite(f.value) and f.value >= 0 for f in figures)
    ratios = [f for f in figures if f.low is not None]
    assert len(ratios) >= 10
    assert all(0 < f.low <= f.value <= f.high < 1000 for f in ratios)
    assert 2 < passes["ours: arithmetic alone"].value < 3  # centre and radius; in a small net pairs of classes count
    kept = steps["ACERT, from the radii of an epoch ago: arithmetic alone"].value
    assert 1 < kept < 1 + 0.25 * (steps["ACERT, from the radii of an epoch ago: passes a sample"].value + 1)
    assert steps["GFLOP a second: FastIBP"].value > 0 and steps["GFLOP a second: 1024 x 1024 matrices"].value > 0
    assert "auto_LiRPA's IBP" in passes and "FastIBP through auto_LiRPA" in steps
    assert "FastIBP through auto_LiRPA, in a process of its own" in steps
    assert not multiprocessing.active_children()
    certified, cap = (
        (bench_rows.ours(batch_of(case, eps), SOLVER)[0] > 0).float().mean(),
        searches["certified at eps_max, %"],
    )
    assert 0.8 * float(certified) <= cap.value / 100 <= float(certified)  # eps_max is where nine in ten reach it
    assert 0 <= searches["widest bracket, 1e-6"].value <= 1 + 1e-2  # plus the spacing of float32


def test_what_one_waits_for_beside_the_arithmetic(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = by_row(waiting.fixed_cost(case, 0.2, 0.0))
    assert 0 < fixed["radii of 1, beside the search"].value < fixed["radii of 1"].value
    assert fixed["auto_LiRPA's BoundedModule"].value > 0 and fixed["a first call captures"].value > 0
    monkeypatch.setattr(waiting, "STARTS", {"bare": ("pass", None), "busy": ("sum(range(10**7))", "bare")})
    started = {(f.row, f.column): f.value for f in waiting.cold_start(0.0)}
    assert 0.05 < started["busy", "above torch, pandas or both alone"] < started["busy", "in all"]


def test_arithmetic_is_counted_with_its_gradient() -> None:
    a, b = torch.ones(50, 20, requires_grad=True), torch.ones(20, 30)
    assert bench_rows.flops(lambda: (a @ b).relu()) == 2 * 50 * 20 * 30
    assert bench_rows.flops(lambda: (a @ b).sum().backward()) == 2 * 2 * 50 * 20 * 30


def test_contenders_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = bench_rows.interleaved(calls, 0.0, lambda name: order.append(f"before {name}"))
    assert all(len(t) == bench_rows.LEAST for t in times.values())
    assert order[::2] == [f"before {name}" for name in order[1::2]]
    assert order[1::2] == list("abcbcacab")
    figure = bench_rows.ratio("t", "r", "c", [2.0, 4.0, 9.0], [1.0, 1.0, 3.0])  # of each round: 2, 4, 3
    assert (figure.low, figure.value, figure.high) == (2.5, 3.0, 3.5)


def test_a_call_that_was_timed_elsewhere_says_so() -> None:
    times = bench_rows.interleaved({"here": lambda: None, "elsewhere": lambda: 2.5}, 0.0)
    assert set(times["elsewhere"]) == {2.5} and max(times["here"]) < 1


def test_auto_lirpas_steps_in_a_process_of_its_own(case: Case) -> None:
    process, call = bench_rows._lirpa_elsewhere(replace(case, config=replace(case.config, batch_size=32)), 1, 0.2)
    try:
        assert 0 < call() < 60 and 0 < call() < 60
    finally:
        process.kill()
    process.join()
    with pytest.raises((EOFError, OSError)):  # of a process that is gone, and no waiting for ever
        call()


def test_the_earlier_network_is_an_epoch_younger(case: Case) -> None:
    now, before = case.model.state_dict(), case.earlier.state_dict()
    assert now.keys() == before.keys()
    assert any((now[name] != before[name]).any() for name in now)
    correct = (case.earlier(case.x).argmax(1) == case.y).float().mean()
    assert correct > 0.15


# The scaling


def test_many_classes_need_no_table_of_pairs(case: Case) -> None:
    """For 1,000 classes and 100 features all pairs would be 1e8 numbers, 381 MiB."""
    model = ibp_init_(small_cnn(case.data.in_shape, 1000, width=4)).eval()
    with torch.no_grad():
        y = model(case.x).argmax(1)
        peak = peak_memory(lambda: margin_at(freeze(model), case.x, y, torch.full((len(y),), 0.01)))
    assert peak < 1000 * 1000 * 100 * 4 / 3


def test_samples_stream_in_constant_memory(case: Case) -> None:
    few, many = bench_scaling.stream(case, (1000, 4000), 0.2, SOLVER, memory=2**18)
    assert (few.column, many.column) == ("1000 samples", "4000 samples")
    returned = 2 * 4000 * 21 / 2**20  # the parts, and the whole that is made of them
    assert few.value <= many.value < 1.2 * few.value + returned


def test_exponents_are_those_of_the_upper_half() -> None:
    sizes = [1, 2, 4, 8, 16, 32]
    assert bench_scaling.exponent(sizes, [5, 5, 5, 8, 32, 128]) == pytest.approx(2)
    points = [Point("batch", s, what, 0.1 * s, s**2) for s in sizes for what in bench_scaling.WHAT]
    found = {f.column: f.value for f in bench_scaling.exponents(points) if f.row == "search"}
    assert found == {"batch: time": pytest.approx(1), "batch: memory": pytest.approx(2)}
    figure = bench_scaling.plot(points)
    assert len(figure.data) == 2 * len(bench_scaling.WHAT)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"


# The whole


def test_the_bench_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """All of it, on the digits, with networks of a few seconds; again, with the networks kept."""
    monkeypatch.setenv("ACERTLAB_DATA", str(tmp_path))
    monkeypatch.setattr(bench, "QUICK", TINY)
    monkeypatch.setattr(waiting, "STARTS", {"alone": ("pass", None), "more": ("import json", "alone")})
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- bench -->\nold\n<!-- /bench -->\nbelow\n")
    assert bench.main(["--quick", "--out", str(tmp_path / "out"), "--readme", str(readme)]) == 0
    text = (tmp_path / "out" / "bench.md").read_text()
    assert text in capsys.readouterr().out
    assert readme.read_text() == f"above\n<!-- bench -->\n{text}<!-- /bench -->\nbelow\n"
    for words in ("make bench-quick", "digits", "one thread", "auto_LiRPA", "find_root", "ACERT-fast", "batch: memory"):
        assert words in text, words
    held = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert all(figure["value"] is not None for figure in held["figures"])  # null: not finite
    assert {point["axis"] for point in held["scaling"]} == {"batch", "width", "classes"}
    assert "plotly" in (tmp_path / "out" / "scaling.html").read_text()


def test_a_readme_without_marks_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    with pytest.raises(ValueError, match="readme: .* holds no <!-- bench -->"):
        bench.main(["--quick", "--out", str(tmp_path / "out"), "--readme", str(readme)])
    assert not (tmp_path / "out").exists() and readme.read_text() == "no marks"


def test_missing_cells_stay_empty() -> None:
    text = bench.tables([Figure("t", "a", "x", 123.4), Figure("t", "b", "y", 1.2345, 1.0, 2.0)])
    assert text == "| t | x | y |\n| --- | --- | --- |\n| a | 123 |  |\n| b |  | 1.23 (1 to 2) |\n"
