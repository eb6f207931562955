"""Sweeps: a grid of papermill executions of a notebook, on this machine or on a Dask cluster.

    acertlab sweep SPEC.yaml               # one worker a core; a GPU or MIG slice, where there are some
    acertlab sweep SPEC.yaml --scheduler tls://host:8786 --tls ca.pem cert.pem key.pem

`acertlab.sweep.spec` says what a specification holds; from a notebook the same is `al.sweep.run({...})`. The same
command again goes on: jobs that are done are kept, the others resume from their checkpoints. On a cluster all machines
must see the output folder under the same path; `acertlab.sweep.clusters` has examples for Slurm, SSH and Kubernetes.
"""

import logging
import queue
import signal
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dask.config
import pandas as pd
from dask.system import CPU_COUNT
from distributed import Client, Future, KilledWorker, LocalCluster, Security
from distributed.deploy.cluster import Cluster

from acertlab._lock import locked
from acertlab._text import seconds_text
from acertlab._validation import Within, check
from acertlab.sweep.job import Job, KernelDiedError, run_job
from acertlab.sweep.plan import Plan
from acertlab.sweep.progress import ProgressTable
from acertlab.sweep.spec import Sweep, describe, read_spec
from acertlab.sweep.start import check_main_guard, check_this_machine, visible_gpus

RETRIES = 2  # of a job whose kernel died
LOST_AFTER = 20.0  # seconds without the scheduler
NO_WORKER = 60.0  # seconds without a worker until that is said; again at twice as many, and so on
STOPPING = 10.0  # seconds that kernels are given to end once the sweep was interrupted
SCORES = {"acc": "Acc", "acr": "ACR", "art": "ART"}  # and what people call them
CONFIG = {
    "distributed.scheduler.allowed-failures": RETRIES,  # of the workers a job runs on
    "distributed.scheduler.worker-saturation": 1.0,  # jobs wait at the scheduler, not behind a long one
    "distributed.scheduler.work-stealing": False,  # nothing to steal then
    "distributed.worker.daemon": True,
    "distributed.worker.profile.enabled": False,  # a worker would keep a profile of every second, 65 kB each
}
log = logging.getLogger(__name__)


class SchedulerLostError(ConnectionError):
    """The scheduler cannot be reached any more; nothing is lost, the same sweep goes on with another one."""


def run(
    spec: str | Path | Mapping[str, Any] | Plan,
    *,
    out: str | Path = "",
    workers: int = 0,
    scheduler: str | Cluster | None = None,
    security: Security | None = None,
    show: bool = True,
) -> pd.DataFrame:
    """Runs what is not yet done of a sweep.

    Args:
        spec: a YAML file, or its content; see `acertlab.sweep.spec`.
        out: the sweep's folder, instead of the specification's.
        workers: jobs side by side on this machine; 0: one a GPU (or MIG slice) where they may use such, else one a
            core. More than there are GPUs share these in turn. CUDA_VISIBLE_DEVICES says which may be used.
        scheduler: the address of a running scheduler, or a Dask cluster object; None: this machine.
        security: certificates, for a scheduler that is reached by tls://.
        show: a live table on a terminal or in a notebook, else lines.

    Returns:
        A row a job: the parameters that vary, acc, acr and art (fractions) where the result has them, state ("done",
        "failed"), reason, seconds (of this execution; None where the job was done before), path. A front is a job
        of many networks, whose scores `load_runs(path)` has.

    Raises:
        ValueError, FileNotFoundError: the specification; nothing was started or written.
        LockHeldError: another sweep is at work in the folder.
        SchedulerLostError: the scheduler ended. This, as KeyboardInterrupt, leaves everything resumable.
    """
    if scheduler is None:
        check_main_guard()
    sweep = read_spec(spec, out=out, show=show)
    if scheduler is None:
        check_this_machine(sweep)
    with locked(sweep.out / ".sweep.lock", f"the sweep's folder {sweep.out}", wait=1.0):
        progress = ProgressTable(sweep, show)
        for job in sweep.jobs:
            if job.done:
                progress.finished(job.name, _scores(job))
        waiting = [job for job in sweep.jobs if not job.done]
        if waiting:
            with _connected(waiting, scheduler, security, workers) as client:
                _execute(client, progress, waiting)
        return _table(progress)


# ---- workers
@contextmanager
def _connected(
    jobs: Sequence[Job], scheduler: str | Cluster | None, security: Security | None, workers: int
) -> Iterator[Client]:
    if scheduler is not None:
        if isinstance(scheduler, str) and not scheduler.startswith(("tls://", "tcp://127.", "tcp://localhost")):
            log.warning("%s: whoever reaches this scheduler can run code as you; tls:// keeps others out", scheduler)
        with Client(scheduler, security=security, timeout=LOST_AFTER) as client:
            yield client
        return
    gpus = visible_gpus() if any(job.parameters.get("device") in ("auto", "cuda") for job in jobs) else []
    count = min(len(jobs), workers or len(gpus) or CPU_COUNT)
    with dask.config.set(CONFIG), local_cluster(count, gpus) as cluster, Client(cluster) as client:
        yield client


class _LocalCluster(LocalCluster):
    """LocalCluster whose worker i sees the GPU i alone, from before it starts."""

    def __init__(self, gpus: Sequence[str], **options: Any) -> None:
        self._gpus_of_workers = list(gpus)
        super().__init__(n_workers=0, **options)

    def new_worker_spec(self) -> dict[Any, Any]:
        specs: dict[Any, Any] = super().new_worker_spec()
        ((name, spec),) = specs.items()
        env = {"CUDA_VISIBLE_DEVICES": self._gpus_of_workers[name % len(self._gpus_of_workers)]}
        return {name: spec | {"options": spec["options"] | {"env": env}}}


def local_cluster(workers: int, gpus: Sequence[str] = ()) -> LocalCluster:
    """Processes of one thread each on this machine, reached through the loopback device alone.

    ``gpus`` is what CUDA_VISIBLE_DEVICES is for the first worker, the second, ...; more workers begin anew.
    """
    options = {
        "threads_per_worker": 1,
        "processes": True,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "memory_limit": None,
        "preload": ["acertlab.sweep.job"],
        "silence_logs": logging.CRITICAL,
    }
    if not gpus:
        return LocalCluster(n_workers=workers, **options)
    cluster = _LocalCluster(gpus, **options)
    cluster.scale(workers)
    return cluster


# ---- execution
def _execute(client: Client, progress: ProgressTable, jobs: Sequence[Job]) -> None:
    """Submits the jobs and follows them to their end; an interruption stops what runs."""
    token, finished = uuid.uuid4().hex[:8], queue.SimpleQueue()
    topic = f"acertlab-{token}"
    client.subscribe_topic(topic, lambda event: progress.begun(event[1]["job"], event[1]["worker"]))
    futures: dict[str, Future] = {}
    for i, job in enumerate(jobs):
        futures[job.name] = client.submit(run_job, job, topic, key=(topic, i), retries=RETRIES, pure=False)
        futures[job.name].add_done_callback(lambda future, job=job: finished.put((job, future)))
    seen, absence = time.monotonic(), _Absence(client)
    with progress:
        try:
            while futures:
                if client.status == "running":
                    with suppress(OSError):  # it has just ended
                        workers = list(client.scheduler_info(n_workers=-1)["workers"])
                        progress.refresh(workers)
                        absence.note(workers, len(futures))
                    seen = time.monotonic()
                elif time.monotonic() - seen > LOST_AFTER:
                    raise SchedulerLostError("the scheduler is gone")
                try:
                    job, future = finished.get(timeout=1.0)
                except queue.Empty:
                    continue
                _settle(progress, job, future)
                del futures[job.name], future
        except BaseException:
            _stop(client, list(futures.values()))
            raise


class _Absence:
    """Says when a scheduler has no workers, and goes on saying it: jobs in a queue may come yet, dead ones do not."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._since, self._patience = time.monotonic(), NO_WORKER

    def note(self, workers: Sequence[str], waiting: int) -> None:
        """Takes the workers that there are now, and how many jobs are not finished."""
        if workers:
            self._since, self._patience = time.monotonic(), NO_WORKER
        elif (absent := time.monotonic() - self._since) >= self._patience:
            self._patience = 2 * absent
            log.warning(
                "no worker at %s for %s; jobs that wait for one: %d%s",
                self._client.scheduler.address,  # pyright: ignore[reportOptionalMemberAccess]
                seconds_text(absent),
                waiting,
                _asked_for(self._client.cluster),
            )


def _asked_for(cluster: Cluster | None) -> str:
    """What a cluster was told to start, with the numbers of its jobs where it has such."""
    if cluster is None:
        return "; start some there"
    jobs = [str(job) for worker in getattr(cluster, "workers", {}).values() if (job := getattr(worker, "job_id", None))]
    told = f"; {type(cluster).__name__} was asked for {len(cluster.plan)}"
    return told + (f", as jobs {', '.join(jobs)}: are they queued, and what do their logs say?" if jobs else "")


def _settle(progress: ProgressTable, job: Job, future: Future) -> None:
    row = progress.rows[job.name]
    seconds = time.monotonic() - row.began if row.began else 0.0
    if future.status == "finished":
        outcome = future.result()
        failed, seconds = bool(outcome.reason), outcome.seconds
        progress.finished(job.name, outcome.reason or _scores(job), failed=failed, seconds=seconds)
    elif future.status == "error":
        error = future.exception()
        if isinstance(error, KilledWorker):
            reason = f"its worker died, {RETRIES + 1} times (out of memory?)"
        else:
            reason = str(error) if isinstance(error, KernelDiedError) else f"{type(error).__name__}: {error}"
            reason += f" ({RETRIES + 1} attempts)"
        progress.finished(job.name, reason, failed=True, seconds=seconds)
    else:
        raise SchedulerLostError("the scheduler is gone, or has dropped the sweep's jobs")


def _stop(client: Client, futures: Sequence[Future]) -> None:
    """Cancels the jobs; their workers then kill the kernels, which is waited for."""
    if client.status != "running":
        return
    client.cancel(futures)
    end = time.monotonic() + STOPPING
    while time.monotonic() < end and any(client.processing().values()):  # pyright: ignore
        time.sleep(0.2)


# ---- results
def _scores(job: Job) -> str:
    result = job.result
    if networks := result.get("networks"):
        ends = {shown: [100 * of[name] for of in networks] for name, shown in SCORES.items()}
        ranges = (f"{shown} {min(values):.2f} to {max(values):.2f}" for shown, values in ends.items())
        return f"{len(networks)} networks, {', '.join(ranges)}"
    return ", ".join(f"{shown} {100 * result[name]:.2f}" for name, shown in SCORES.items() if name in result)


def _table(progress: ProgressTable) -> pd.DataFrame:
    rows = []
    for row in progress.rows.values():
        result = row.job.result if row.state == "done" else {}
        found = {name: row.job.parameters[name] for name in progress.sweep.varied}
        found |= {name: result.get(name) for name in SCORES}
        found |= {"state": row.state, "reason": row.note if row.state == "failed" else ""}
        rows.append(found | {"seconds": row.seconds, "path": str(row.job.folder)})
    table = pd.DataFrame(rows)
    return table.drop(columns=[name for name in SCORES if all(map(pd.isna, table[name]))])


def shown_table(table: pd.DataFrame) -> str:
    """The table of `run` for people: Acc, ACR and ART in per cent, without paths."""
    scores = {name: 100 * table[name].astype(float) for name in SCORES if name in table}
    shown = table.assign(**scores).drop(columns=["path", "seconds", "reason"], errors="ignore")
    shown = shown.rename(columns=SCORES)
    shown = shown.drop(columns="state") if (table.state == "done").all() else shown
    form = {name: "{:.2f}".format for name in SCORES.values()} | {"kappa": "{:g}".format}
    return shown.to_string(index=False, na_rep="-", formatters={k: f for k, f in form.items() if k in shown})


def run_command(
    plan: Plan, workers: int = 0, scheduler: str | None = None, tls: Sequence[str] | None = None, dry_run: bool = False
) -> int:
    """`acertlab sweep`, once its plan is read and said; returns 0 all done, 1 some jobs failed, 3 interrupted."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; Slurm sends it before the time is up
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it reports of lost workers, the table shows
    check("workers", workers, Within(0, kind=int))
    if dry_run:
        return _list_jobs(read_spec(plan))
    try:
        security = None
        if tls:
            ca, cert, key = tls
            security = Security(tls_ca_file=ca, tls_client_cert=cert, tls_client_key=key, require_encryption=True)
        table = run(plan, workers=workers, scheduler=scheduler, security=security)
    except KeyboardInterrupt:
        print("\nstopped; everything is kept, the same command goes on", file=sys.stderr)
        return 3
    except SchedulerLostError as error:
        print(f"{error}; everything is kept, the same command goes on with another scheduler", file=sys.stderr)
        return 3
    print(f"\n{shown_table(table)}\n")
    failed = table[table.state == "failed"]
    for _, row in failed.iterrows():
        print(f"failed: {row.reason}\n        {row.path}", file=sys.stderr)
    return 1 if len(failed) else 0


def _list_jobs(sweep: Sweep) -> int:
    for job in sweep.jobs:
        print(f"{'done   ' if job.done else 'waiting'}  {describe(job.parameters, sweep.varied)}  {job.name}")
    print(f"{len(sweep.jobs)} jobs, {sum(job.done for job in sweep.jobs)} done, in {sweep.out}")
    return 0
