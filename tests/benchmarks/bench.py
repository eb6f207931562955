"""``make bench``: what the bounds, the search and the training step cost beside what else there is, in one run.

Trains its networks first, and keeps them: the same command again measures the same networks. Prints the table that
README shows, and writes it, all figures as JSON and the plots of the scaling into a folder.
"""

import argparse
import inspect
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file

from acertlab._memory import memory_kept
from acertlab._text import markdown
from acertlab.data.datasets import DEFAULT_ROOT, ImageData, load_dataset, to_float
from acertlab.data.files import write_json, written_aside
from acertlab.data.run import runs_folder
from acertlab.models.architectures import MODELS
from acertlab.radius.certified import certified_radius
from acertlab.radius.rootfind.solvers import SOLVERS
from acertlab.training.config import preset
from acertlab.training.loop.train import train
from acertlab.training.parameters import default_run_dir
from tests.benchmarks import scaling as bench_scaling
from tests.benchmarks.rows import Case, Figure, bound_pass, eps_at_cap, search, test_set, training_step
from tests.benchmarks.waiting import cold_start, fixed_cost

LABELS = {"small_cnn": "small CNN", "cnn7": "CNN7"}
EPS_INSIDE = {"small_cnn": 0.4, "cnn7": 0.2}  # there most roots lie inside (0, eps_max)
TRAINED_AT = {"small_cnn": 0.15, "cnn7": 0.05}  # FastIBP's eps_max; kappa 0.5, so that few steps suffice
DEFAULT_SOLVER: str = inspect.signature(certified_radius).parameters["solver"].default
MARKS = ("<!-- bench -->", "<!-- /bench -->")


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        seconds: of a comparison's rounds, about.
        width: of each network.
        images: that it is trained on, two epochs.
        steps: of training that are timed at once.
        test_images: of which one call finds all radii, with the small CNN.
        streamed: samples that go through one call in constant memory.
        scaling: the sizes of batches, widths and classes.
    """

    seconds: float
    width: dict[str, int]
    images: dict[str, int]
    steps: dict[str, int]
    test_images: int
    streamed: int
    scaling: bench_scaling.Sizes


FULL = Effort(
    seconds=30.0,
    width={"small_cnn": 16, "cnn7": 64},
    images={"small_cnn": 20_000, "cnn7": 4096},
    steps={"small_cnn": 8, "cnn7": 2},
    test_images=10_000,
    streamed=100_000,
    scaling=bench_scaling.FULL,
)
QUICK = Effort(
    seconds=1.5,
    width={"small_cnn": 16, "cnn7": 8},
    images={"small_cnn": 16_000, "cnn7": 6400},
    steps={"small_cnn": 4, "cnn7": 2},
    test_images=2000,
    streamed=10_000,
    scaling=bench_scaling.QUICK,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, prints, writes; returns the exit status."""
    given = _parser().parse_args(arguments)
    torch.set_num_threads(given.threads)
    effort = QUICK if given.quick else FULL
    readme = Path(given.readme) if given.readme else None
    if readme:
        replaced(readme, "")  # raises where it cannot be
    data = _images()
    out = Path(given.out or runs_folder() / f"bench-{'quick-' if given.quick else ''}{data.name}")
    head = _header(given, data)
    cases = [trained(name, effort, data, out / "networks") for name in EPS_INSIDE]
    figures, points = [], []
    with memory_kept():
        for found in _measure(cases, effort, given.solver):
            figures += found
            _say(f"{found[0].table}: {found[0].column}")
    for found in bench_scaling.measure(cases[0], effort.scaling, EPS_INSIDE["small_cnn"], given.solver):
        points += found
        _say(f"scaling: {found[0].axis} {found[0].size}")
    figures += bench_scaling.exponents(points)
    text = f"{head}\n\n{tables(figures)}"
    content = {"figures": [asdict(figure) for figure in figures], "scaling": [asdict(point) for point in points]}
    write_json(out / "bench.json", {"header": head} | content)
    write_text(out / "bench.md", text)
    write_text(out / "scaling.html", bench_scaling.plot(points).to_html(include_plotlyjs=True))
    if readme:
        write_text(readme, replaced(readme, text))
    print(f"\n{text}\nWritten to {out}: bench.md, bench.json, scaling.html")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller networks and fewer rounds: under 3 minutes")
    parser.add_argument("--threads", type=int, default=1, help="of torch; with more than 1, wall time is measured")
    parser.add_argument("--solver", choices=tuple(SOLVERS), default=DEFAULT_SOLVER, help="default: %(default)s")
    parser.add_argument("--out", help="folder for networks and results; default: below the folder of runs")
    parser.add_argument("--readme", help=f"a file in which the text between {' and '.join(MARKS)} is replaced")
    return parser


def _images() -> ImageData:
    """MNIST where it is at hand, else the embedded digits; nothing is downloaded."""
    root = Path(os.environ.get("ACERTLAB_DATA") or DEFAULT_ROOT)
    return load_dataset("mnist", root=root) if (root / "MNIST" / "raw").is_dir() else load_dataset("digits")


def _header(given: argparse.Namespace, data: ImageData) -> str:
    command = "make bench-quick" if given.quick else "make bench"
    kernels = torch.backends.cpu.get_cpu_capability()  # ratios depend on how fast arithmetic is beside memory
    machine = f"{os.cpu_count()}-core {platform.machine()} machine ({kernels}), torch {torch.__version__}"
    threads = "one thread" if given.threads == 1 else f"{given.threads} threads"
    return f"`{command}`, {datetime.now(UTC):%Y-%m-%d}, {data.name}, {machine}, {threads}; medians (quartiles)."


def _say(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


def _measure(cases: Sequence[Case], effort: Effort, solver: str) -> Iterator[list[Figure]]:
    for case in cases:
        for size in (128, 256):
            yield bound_pass(case, size, effort.seconds / 2)
    for case in cases:
        inside = EPS_INSIDE[case.config.model]
        for eps_max in (inside, eps_at_cap(case, inside, solver)):
            yield search(case, eps_max, solver, effort.seconds)
    for case in cases:
        inside = EPS_INSIDE[case.config.model]
        yield training_step(case, effort.steps[case.config.model], inside, effort.seconds)
    yield fixed_cost(cases[0], EPS_INSIDE["small_cnn"], effort.seconds)
    yield cold_start(effort.seconds)
    data, n = cases[0].data, effort.test_images
    yield test_set(cases[0], to_float(data.test_x[:n]), data.test_y[:n], EPS_INSIDE["small_cnn"], solver)
    yield bench_scaling.stream(cases[0], (effort.streamed // 10, effort.streamed), EPS_INSIDE["small_cnn"], solver)


def trained(name: str, effort: Effort, data: ImageData, root: Path, samples: int = 256) -> Case:
    """A network trained by FastIBP for two epochs, or read from an earlier run of the bench."""
    n = min(effort.images[name], len(data.train_x))
    few = replace(data.first(100), train_x=data.train_x[:n], train_y=data.train_y[:n])
    few = replace(few, val_x=data.val_x[:0], val_y=data.val_y[:0])
    epochs = max(2, round(4096 / n))  # a small data set wants more
    config = replace(
        preset(data.name, "fast-ibp", budget="fast"),
        kappa=0.5,
        model=name,
        width=effort.width[name],
        epochs=epochs,
        clean_epochs=0,
        ramp_epochs=epochs // 2,
        eps_max=TRAINED_AT[name],
        batch_size=128,
        device="cpu",
    )
    run = train(config, few, default_run_dir(config, root / f"{n}-images"), progress=False)
    model, earlier = (MODELS[name](data.in_shape, data.num_classes, width=config.width).eval() for _ in range(2))
    model.load_state_dict(run.load_model().state_dict())
    before = load_file(run.path / "checkpoint" / f"epoch-{epochs - 1:04d}" / "state.safetensors")
    earlier.load_state_dict({k.removeprefix("model."): v for k, v in before.items() if k.startswith("model.")})
    return Case(LABELS[name], model, earlier, to_float(data.test_x[:samples]), data.test_y[:samples], config, data)


# ---- the table
def tables(figures: Sequence[Figure]) -> str:
    """Markdown: one table for each `Figure.table`, in the order in which rows and columns first appear."""
    parts = []
    for table in dict.fromkeys(figure.table for figure in figures):
        held = {(f.row, f.column): f for f in figures if f.table == table}
        columns = list(dict.fromkeys(column for _, column in held))
        rows = dict.fromkeys(row for row, _ in held)
        lines = [[row, *(_shown(held.get((row, column))) for column in columns)] for row in rows]
        parts.append(markdown(pd.DataFrame(lines, columns=[table, *columns])))
    return "\n\n".join(parts) + "\n"


def _shown(figure: Figure | None) -> str:
    if figure is None:
        return ""
    middle = f"{figure.value:.3g}" if figure.value < 100 else f"{figure.value:.0f}"
    return middle if figure.low is None else f"{middle} ({figure.low:.3g} to {figure.high:.3g})"


def replaced(readme: Path, table: str) -> str:
    """The file's text with what stands between the two marks replaced.

    Raises:
        ValueError: it does not hold both marks, in this order.
    """
    first, last = MARKS
    text = readme.read_text(encoding="utf-8")
    before, found, rest = text.partition(first)
    _, closed, after = rest.partition(last)
    if not (found and closed):
        raise ValueError(f"readme: {readme} holds no {first} with {last} below; put them where the table is to stand")
    return f"{before}{first}\n{table}{last}{after}"


def write_text(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
