"""The state of a sweep's jobs, shown while it runs: a live table on a terminal or in a notebook, else plain lines."""

import io
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from acertlab._text import seconds_text
from acertlab.data.files import read_json, read_parquet
from acertlab.sweep.job import Job
from acertlab.sweep.spec import Sweep, describe

STATES = ("running", "failed", "done", "waiting")  # in the order of the table
STYLES = {"running": "bold", "failed": "red", "done": "green", "waiting": "dim"}
EVERY = 60.0  # seconds between two plain lines about jobs that run


@dataclass
class Row:
    """What is known of a job."""

    job: Job
    state: str = "waiting"  # one of `STATES`
    note: str = ""  # the scores, or why it failed
    seconds: float | None = None  # of its execution; None while it is not finished, or was before this sweep began
    worker: str = ""  # where it runs or ran last
    attempts: int = 0  # how often it was begun
    began: float = 0.0  # when, by `time.monotonic`
    epoch: int = 0  # so many are trained
    epochs: int = 0  # of so many
    epoch_seconds: float = 0.0  # mean over the epochs so far
    art: float | None = None  # of the last validation, a fraction

    def peek(self) -> None:
        """Reads how far the training is from its folder; leaves everything as it is where nothing is there yet."""
        try:
            self.epochs = int(read_json(self.job.folder / "config.json")["epochs"])
            history = read_parquet(self.job.folder / "history.parquet", ["seconds", "val_art"])
        except (ValueError, KeyError, TypeError):
            return
        arts = history.val_art.replace(math.nan, None).tolist()  # without validation images there is none
        self.epoch, self.art = len(history), arts[-1] if arts else None
        self.epoch_seconds = history.seconds.sum() / max(1, len(history))

    def progress(self) -> str:
        """What the table says beside the state."""
        if self.state != "running":
            return self.note
        art = "" if self.art is None else f", ART {100 * self.art:.1f}"
        again = f", attempt {self.attempts}" if self.attempts > 1 else ""
        return (f"epoch {self.epoch}/{self.epochs}{art}" if self.epochs else "starting") + again


@dataclass
class ProgressTable:
    """All rows, and how they are shown. Used as a context: the live table lasts as long."""

    sweep: Sweep
    show: bool = True  # False: say nothing
    slots: int = 1  # how many jobs run at a time
    stalled: bool = False  # there is no worker at all
    rows: dict[str, Row] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = {job.name: Row(job) for job in self.sweep.jobs}
        self._console, self._live, self._handle, self._said = Console(), None, None, time.monotonic()

    def __enter__(self) -> "ProgressTable":
        if self.show and "ipykernel" in sys.modules and (display := _notebook_display()):
            self._handle = display({"text/plain": ""}, raw=True, display_id=True)
        elif self.show and self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self.table, refresh_per_second=1)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live:
            self._live.__exit__(*error)
        self._live = self._handle = None

    def begun(self, name: str, worker: str) -> None:
        row = self.rows[name]
        row.state, row.worker, row.began, row.attempts = "running", worker, time.monotonic(), row.attempts + 1

    def finished(self, name: str, note: str, *, failed: bool = False, seconds: float | None = None) -> None:
        row = self.rows[name]
        row.state, row.note, row.seconds = "failed" if failed else "done", note, seconds
        if self.show and seconds is not None and not (self._live or self._handle):
            self._line(f"{self.described(row)}: {'FAILED: ' if failed else ''}{note} ({seconds:.0f} s)")

    def refresh(self, workers: Sequence[str]) -> None:
        """Looks at what runs; a job whose worker is gone waits for another one, or until its own is heard of again."""
        for row in self.rows.values():
            if row.state == "running" or (row.state == "waiting" and row.worker):
                row.state = "running" if row.worker in workers else "waiting"
                row.peek()
        self.slots, self.stalled = max(1, len(workers)), not workers
        if self._handle:
            text = io.StringIO()
            Console(file=text, width=110).print(self.table(height=40))
            self._handle.update({"text/plain": text.getvalue()}, raw=True)
        elif self.show and not self._live and time.monotonic() - self._said >= EVERY:
            running = [row for row in self.rows.values() if row.state == "running"]
            self._line("; ".join(f"{self.described(row)}: {row.progress()}" for row in running[:8]) or "waiting")

    def summary(self) -> str:
        """`12 jobs: 3 done, 2 running, 7 waiting; about 4 min left`, or `...; no worker`."""
        counts, order = Counter(row.state for row in self.rows.values()), ("done", "running", "waiting", "failed")
        states = ", ".join(f"{counts[state]} {state}" for state in order if counts[state])
        if self.stalled:
            return f"{len(self.rows)} jobs: {states}; no worker"
        left = time_left(list(self.rows.values()), self.slots)
        return f"{len(self.rows)} jobs: {states}" + (f"; about {seconds_text(left)} left" if left else "")

    def described(self, row: Row) -> str:
        return describe(row.job.parameters, self.sweep.varied) or row.job.name

    def table(self, height: int = 0) -> Table:
        """What fits on the screen: all that run, then failed, the last that are done, the next that wait."""
        room = max(4, (height or self._console.height) - 5)
        table = Table(title=self.summary(), title_justify="left", box=None, pad_edge=False)
        for column in ("job", "state", "", "time"):
            table.add_column(column, overflow="fold" if column == "" else "ellipsis", no_wrap=column != "")
        by_state = {state: [row for row in self.rows.values() if row.state == state] for state in STATES}
        for state, rows in by_state.items():
            shown, room = rows[-room:] if state == "done" else rows[:room], max(0, room - len(rows))
            for row in shown:
                clock = row.seconds if state != "running" else time.monotonic() - row.began
                took = "" if clock is None else seconds_text(clock)
                table.add_row(self.described(row), state, row.progress(), took, style=STYLES[state])
        return table

    def _line(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')}  {text}  [{self.summary()}]", flush=True)
        self._said = time.monotonic()


def time_left(rows: Sequence[Row], slots: int) -> float | None:
    """Seconds until all is done, or None while there is nothing to judge by.

    A job is expected to take as long as the finished ones of its dataset and method did, else as all finished ones,
    else as the epochs of those that run.
    """

    def kind(row: Row) -> tuple[Any, ...]:
        return tuple(row.job.parameters.get(name) for name in ("dataset", "method"))

    finished = [(kind(row), row.seconds) for row in rows if row.state == "done" and row.seconds is not None]
    training = [row.epoch_seconds * row.epochs for row in rows if row.state == "running" and row.epoch]

    def expected(row: Row) -> float | None:
        alike = [seconds for of, seconds in finished if of == kind(row)] or [seconds for _, seconds in finished]
        alike = alike or training
        return sum(alike) / len(alike) if alike else None

    left = []
    for row in rows:
        if row.state == "running" and row.epoch:
            left.append(row.epoch_seconds * max(0.5, row.epochs - row.epoch))
        elif row.state in ("running", "waiting"):
            whole = expected(row)
            if whole is None:
                return None
            left.append(max(0.1 * whole, whole - (time.monotonic() - row.began if row.state == "running" else 0)))
    return max(sum(left) / slots, max(left)) if left else 0.0


def _notebook_display() -> Any:
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    return display if get_ipython() is not None else None
