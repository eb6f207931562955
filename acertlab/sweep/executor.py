"""Sweeps: a grid of papermill executions of a notebook, on this machine or on a Dask cluster.

    acertlab sweep SPEC.yaml               # one worker a core (a GPU, where there are some)
    acertlab sweep SPEC.yaml --scheduler tls://host:8786 --tls ca.pem cert.pem key.pem

`acertlab.spec` says what a specification holds; from a notebook the same is `al.sweep.run({...})`. The same command
again goes on: cells that are done are kept, the others resume from their checkpoints. On a cluster all machines must
see the output folder under the same path; `acertlab.clusters` has examples for Slurm, SSH and Kubernetes.
"""

import argparse
import json
import logging
import os
import queue
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask
import pandas as pd
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster, Security
from distributed.deploy import Cluster

from acertlab._lock import Held, locked
from acertlab._text import seconds_text
from acertlab.sweep.job import Cell, KernelDied, run_cell
from acertlab.sweep.progress import Board
from acertlab.sweep.spec import Sweep, describe, is_training, read_spec

RETRIES = 2  # of a cell whose kernel died
LOST_AFTER = 20.0  # seconds without the scheduler
NO_WORKER = 60.0  # seconds without a worker until that is said; again at twice as many, and so on
STOPPING = 10.0  # seconds that kernels are given to end once the sweep was interrupted
SCORES = ("acc", "acr", "art")
SHOWN = {"acc": "Acc", "acr": "ACR", "art": "ART"}
CONFIG = {
    "distributed.scheduler.allowed-failures": RETRIES,  # of the workers a cell runs on
    "distributed.scheduler.worker-saturation": 1.0,  # cells wait at the scheduler, not behind a long one
    "distributed.scheduler.work-stealing": False,  # nothing to steal then
    "distributed.worker.daemon": True,
    "distributed.worker.profile.enabled": False,  # a worker would keep a profile of every second, 65 kB each
}
log = logging.getLogger(__name__)


class SchedulerLost(ConnectionError):
    """The scheduler cannot be reached any more; nothing is lost, the same sweep goes on with another one."""


def run(
    spec: str | Path | Mapping[str, Any],
    *,
    out: str | Path = "",
    workers: int = 0,
    scheduler: str | Cluster | None = None,
    security: Security | None = None,
    show: bool = True,
) -> pd.DataFrame:
    """Runs what is not yet done of a sweep.

    Args:
        spec: a YAML file, or its content; see `acertlab.spec`.
        out: the sweep's folder, instead of the specification's.
        workers: cells side by side on this machine; 0: one a GPU where they may use such, else one a core.
        scheduler: the address of a running scheduler, or a Dask cluster object; None: this machine.
        security: certificates, for a scheduler that is reached by tls://.
        show: a live table on a terminal or in a notebook, else lines.

    Returns:
        A row a cell: the parameters that vary, acc, acr and art (fractions) where the result has them, state ("done",
        "failed"), reason, seconds (of this execution; None where the cell was done before), path.

    Raises:
        ValueError, FileNotFoundError: the specification; nothing was started or written.
        Held: another sweep is at work in the folder.
        SchedulerLost: the scheduler ended. This, as KeyboardInterrupt, leaves everything resumable.
    """
    sweep = read_spec(spec, out=out)
    if scheduler is None:
        _check_this_machine(sweep)
    with locked(sweep.out / ".sweep.lock", f"the sweep's folder {sweep.out}", wait=1.0):
        board = Board(sweep, show)
        for cell in sweep.cells:
            if cell.done:
                board.finished(cell.name, _scores(cell))
        waiting = [cell for cell in sweep.cells if not cell.done]
        if waiting:
            with _connected(waiting, scheduler, security, workers) as client:
                _execute(client, board, waiting)
        return _table(board)


# ---- workers
@contextmanager
def _connected(
    cells: Sequence[Cell], scheduler: str | Cluster | None, security: Security | None, workers: int
) -> Iterator[Client]:
    if scheduler is not None:
        if isinstance(scheduler, str) and not scheduler.startswith(("tls://", "tcp://127.", "tcp://localhost")):
            log.warning("%s: whoever reaches this scheduler can run code as you; tls:// keeps others out", scheduler)
        with Client(scheduler, security=security, timeout=LOST_AFTER) as client:
            yield client
        return
    gpus = _gpus() if any(cell.parameters.get("device") in ("auto", "cuda") for cell in cells) else []
    count = min(len(cells), workers or len(gpus) or CPU_COUNT)
    with dask.config.set(CONFIG), local_cluster(count, gpus) as cluster, Client(cluster) as client:
        yield client


class _LocalCluster(LocalCluster):
    """LocalCluster whose worker i sees the GPU i alone, from before it starts."""

    def __init__(self, gpus: Sequence[str], **options: Any) -> None:
        self._gpus_of_workers = list(gpus)
        super().__init__(n_workers=0, **options)

    def new_worker_spec(self) -> dict[Any, Any]:
        ((name, spec),) = super().new_worker_spec().items()
        env = {"CUDA_VISIBLE_DEVICES": self._gpus_of_workers[name % len(self._gpus_of_workers)]}
        return {name: spec | {"options": spec["options"] | {"env": env}}}


def local_cluster(workers: int, gpus: Sequence[str] = ()) -> LocalCluster:
    """Processes of one thread each on this machine, reached through the loopback device alone.

    Args:
        workers: how many.
        gpus: what CUDA_VISIBLE_DEVICES is for the first worker, the second, ...; more workers begin anew.
    """
    options = {"threads_per_worker": 1, "processes": True, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0",
               "memory_limit": None, "preload": ["acertlab.sweep.job"], "silence_logs": logging.CRITICAL}  # fmt: skip
    if not gpus:
        return LocalCluster(n_workers=workers, **options)
    cluster = _LocalCluster(gpus, **options)
    cluster.scale(workers)
    return cluster


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return visible.split(",")
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _check_this_machine(sweep: Sweep) -> None:
    """The datasets and devices are there: found out once, before anything starts. Downloads what is missing."""
    asked = [cell.parameters for cell in sweep.cells if not cell.done and is_training(cell.parameters)]
    if not asked:
        return
    from acertlab.data.datasets import load_dataset
    from acertlab.training.parameters import config_from_parameters

    for device in {parameters.get("device", "auto") for parameters in asked}:
        config_from_parameters(asked[0] | {"device": device}).torch_device()
    for dataset, root in {(parameters["dataset"], parameters.get("data_root", "")) for parameters in asked}:
        load_dataset(dataset, root=root or None)


# ---- execution
def _execute(client: Client, board: Board, cells: Sequence[Cell]) -> None:
    """Submits the cells and follows them to their end; an interruption stops what runs."""
    token, finished = uuid.uuid4().hex[:8], queue.SimpleQueue()
    topic = f"acertlab-{token}"
    client.subscribe_topic(topic, lambda event: board.begun(event[1]["cell"], event[1]["worker"]))
    futures: dict[str, Future] = {}
    for i, cell in enumerate(cells):
        futures[cell.name] = client.submit(run_cell, cell, topic, key=(topic, i), retries=RETRIES, pure=False)
        futures[cell.name].add_done_callback(lambda future, cell=cell: finished.put((cell, future)))
    seen, absence = time.monotonic(), _Absence(client)
    with board:
        try:
            while futures:
                if client.status == "running":
                    with suppress(OSError):  # it has just ended
                        workers = list(client.scheduler_info(n_workers=-1)["workers"])
                        board.refresh(workers)
                        absence.note(workers, len(futures))
                    seen = time.monotonic()
                elif time.monotonic() - seen > LOST_AFTER:
                    raise SchedulerLost("the scheduler is gone")
                try:
                    cell, future = finished.get(timeout=1.0)
                except queue.Empty:
                    continue
                _settle(board, cell, future)
                del futures[cell.name], future
        except BaseException:
            _stop(client, list(futures.values()))
            raise


class _Absence:
    """Says when a scheduler has no workers, and goes on saying it: jobs in a queue may come yet, dead ones do not."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._since, self._patience = time.monotonic(), NO_WORKER

    def note(self, workers: Sequence[str], waiting: int) -> None:
        """Takes the workers that there are now, and how many cells are not finished."""
        if workers:
            self._since, self._patience = time.monotonic(), NO_WORKER
        elif (absent := time.monotonic() - self._since) >= self._patience:
            self._patience = 2 * absent
            log.warning("no worker at %s for %s; cells that wait for one: %d%s", self._client.scheduler.address,
                        seconds_text(absent), waiting, _asked_for(self._client.cluster))  # fmt: skip


def _asked_for(cluster: Cluster | None) -> str:
    """What a cluster was told to start, with the numbers of its jobs where it has such."""
    if cluster is None:
        return "; start some there"
    jobs = [str(job) for worker in getattr(cluster, "workers", {}).values() if (job := getattr(worker, "job_id", None))]
    told = f"; {type(cluster).__name__} was asked for {len(cluster.plan)}"
    return told + (f", as jobs {', '.join(jobs)}: are they queued, and what do their logs say?" if jobs else "")


def _settle(board: Board, cell: Cell, future: Future) -> None:
    row = board.rows[cell.name]
    seconds = time.monotonic() - row.began if row.began else 0.0
    if future.status == "finished":
        outcome = future.result()
        board.finished(cell.name, outcome.reason or _scores(cell), failed=bool(outcome.reason), seconds=outcome.seconds)
    elif future.status == "error":
        error = future.exception()
        if isinstance(error, KilledWorker):
            reason = f"its worker died, {RETRIES + 1} times (out of memory?)"
        else:
            reason = str(error) if isinstance(error, KernelDied) else f"{type(error).__name__}: {error}"
            reason += f" ({RETRIES + 1} attempts)"
        board.finished(cell.name, reason, failed=True, seconds=seconds)
    else:
        raise SchedulerLost("the scheduler is gone, or has dropped the sweep's cells")


def _stop(client: Client, futures: Sequence[Future]) -> None:
    """Cancels the cells; their workers then kill the kernels, which is waited for."""
    if client.status != "running":
        return
    client.cancel(futures)
    end = time.monotonic() + STOPPING
    while time.monotonic() < end and any(client.processing().values()):
        time.sleep(0.2)


# ---- results
def _result(cell: Cell) -> dict[str, Any]:
    try:
        return json.loads((cell.folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _scores(cell: Cell) -> str:
    result = _result(cell)
    return ", ".join(f"{SHOWN[name]} {100 * result[name]:.2f}" for name in SCORES if name in result)


def _table(board: Board) -> pd.DataFrame:
    rows = []
    for row in board.rows.values():
        result = _result(row.cell) if row.state == "done" else {}
        scores = {name: result.get(name) for name in SCORES if name in result}
        rows.append({name: row.cell.parameters[name] for name in board.sweep.varied} | scores | {
            "state": row.state, "reason": row.note if row.state == "failed" else "", "seconds": row.seconds,
            "path": str(row.cell.folder)})  # fmt: skip
    names = [*board.sweep.varied, *SCORES, "state", "reason", "seconds", "path"]
    table = pd.DataFrame(rows).reindex(columns=names)
    return table.drop(columns=[name for name in SCORES if table[name].isna().all()])


def shown_table(table: pd.DataFrame) -> str:
    """The table of `run` for people: Acc, ACR and ART in per cent, without paths."""
    scores = {name: 100 * table[name].astype(float) for name in SCORES if name in table}
    shown = table.assign(**scores).drop(columns=["path", "seconds", "reason"], errors="ignore")
    shown = shown.rename(columns=SHOWN)
    shown = shown.drop(columns="state") if (table.state == "done").all() else shown
    form = {name: "{:.2f}".format for name in SHOWN.values()} | {"kappa": "{:g}".format}
    return shown.to_string(index=False, na_rep="-", formatters={k: f for k, f in form.items() if k in shown})


# ---- the command
def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 all done, 1 some cells failed, 2 not to be started, 3 interrupted."""
    parser = argparse.ArgumentParser("acertlab sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("spec", help="a YAML file; see acertlab/spec.py")
    parser.add_argument("--out", default="", help="the sweep's folder (default: out in the file, else runs/SPEC)")
    parser.add_argument("--workers", type=int, default=0, help="cells side by side (default: GPUs, else cores)")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler, tcp://... or tls://...")
    parser.add_argument("--tls", nargs=3, metavar=("CA", "CERT", "KEY"), help="files, for a scheduler at tls://...")
    parser.add_argument("--dry-run", action="store_true", help="check the file and list the cells")
    args = parser.parse_args(arguments)
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it reports of lost workers, the table shows
    try:
        if args.workers < 0:
            raise ValueError(f"workers = {args.workers}: accepted is a whole number >= 0")
        if args.dry_run:
            return _list_cells(read_spec(args.spec, out=args.out))
        table = run(args.spec, out=args.out, workers=args.workers, scheduler=args.scheduler, security=_security(args))
    except KeyboardInterrupt:
        print("\nstopped; everything is kept, the same command goes on", file=sys.stderr)
        return 3
    except SchedulerLost as error:
        print(f"{error}; everything is kept, the same command goes on with another scheduler", file=sys.stderr)
        return 3
    except (ValueError, TypeError, OSError, Held) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\n{shown_table(table)}\n")
    failed = table[table.state == "failed"]
    for _, row in failed.iterrows():
        print(f"failed: {row.reason}\n        {row.path}", file=sys.stderr)
    return 1 if len(failed) else 0


def _security(args: argparse.Namespace) -> Security | None:
    if not args.tls:
        return None
    ca, cert, key = args.tls
    return Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)


def _list_cells(sweep: Sweep) -> int:
    for cell in sweep.cells:
        print(f"{'done   ' if cell.done else 'waiting'}  {describe(cell.parameters, sweep.varied)}  {cell.name}")
    print(f"{len(sweep.cells)} cells, {sum(cell.done for cell in sweep.cells)} done, in {sweep.out}")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; Slurm sends it before the time is up
    sys.exit(main())
