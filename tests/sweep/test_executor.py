"""Sweeps of real processes: what is killed at any moment goes on, to the same bits.

The parts are in test_spec, test_board, test_locks and test_clusters.
"""

import hashlib
import json
import logging
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest
import torch
import yaml
from distributed import LocalCluster

from acertlab.data.datasets import load_dataset
from acertlab.data.run_table import load_runs
from acertlab.sweep import executor as sweep
from acertlab.sweep.job import without_lesson
from acertlab.sweep.spec import read_spec
from acertlab.training.config import TrainConfig, preset
from acertlab.training.loop.front import train_front
from acertlab.training.loop.train import train
from tests.helpers.notebooks import ROOT, WAIT, wait_for, write_notebook

SEED = int(os.environ.get("ACERTLAB_KILL_SEED", "0")) or random.randrange(
    1, 10**6
)  # of the moments at which things die

# training as 02 does it, without the libraries that take longer to load than it takes; every epoch is logged, and slow
# enough to be hit
TRAINING = [
    """method = "acert"
kappa = 0.0
seed = 0
log = ""
images = ""
run_dir = "" """,
    """import os, pickle, sys, time
from pathlib import Path
from acertlab.training.config import TrainConfig
from acertlab.training.loop.train import train

module = sys.modules["acertlab.training.loop.train"]
real = module.train_epoch


def logged(state, config, data, x, y, epoch, bar):
    row = real(state, config, data, x, y, epoch, bar)
    time.sleep(0.3)
    with open(log, "a") as file:
        file.write(f"{Path(run_dir).name} {epoch} {os.getpid()}\\n")
    return row


module.train_epoch = logged
""",
    CONFIG
    := "config = TrainConfig(method=method, kappa=kappa, seed=seed, epochs=4, ramp_epochs=2, width=2, eps_max=0.2)",
    "train(config, pickle.loads(Path(images).read_bytes()), run_dir, progress=False)",
]


# ---- eight jobs, and everything dies


class Killing:
    """A sweep of eight trainings whose processes can be counted and killed."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self.log, self.random = folder, folder / "epochs.log", random.Random(SEED)
        self.log.touch()
        (folder / "tmp").mkdir()
        write_notebook(folder / "training.ipynb", TRAINING)
        self.spec = folder / "eight.yaml"
        self.content = {
            "notebook": "training.ipynb",
            "out": str(folder / "out"),
            "log": str(self.log),
            "images": str(images),
            "grid": {"method": ["acert", "fast-ibp"], "kappa": [0, 0.9], "seed": [0, 1]},
        }
        self.spec.write_text(yaml.safe_dump(self.content))
        self.environment = os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.started: list[subprocess.Popen] = []

    def start(self, *command: str) -> subprocess.Popen:
        with open(self.folder / f"said-{len(self.started)}.txt", "w") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=self.environment,
                cwd=self.folder,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def said(self, process: subprocess.Popen) -> str:
        return (self.folder / f"said-{self.started.index(process)}.txt").read_text()

    def trained(self) -> list[tuple[str, int, int]]:
        lines = self.log.read_text().split("\n")[:-1]
        return [(job, int(epoch), int(pid)) for job, epoch, pid in map(str.split, lines)]

    def moment(self) -> None:
        """Waits for two more epochs, and then for a moment."""
        before = len(self.trained())
        wait_for(lambda: len(self.trained()) >= before + 2, f"two more epochs (of {before})")
        time.sleep(self.random.uniform(0, 2))

    def kernels(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                # known by TMPDIR: their sockets lie elsewhere where that path is too long
                mine = process.environ().get("TMPDIR") == str(self.folder / "tmp")
                if mine and "acertlab.sweep.kernel" in process.cmdline():
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """The parents of the kernels that run."""
        return [process.parent() for process in self.kernels()]


@pytest.fixture
def killing(tmp_path: Path) -> Iterator[Killing]:
    (tmp_path / "digits.pickle").write_bytes(pickle.dumps(load_dataset("digits")))
    killing = Killing(tmp_path, tmp_path / "digits.pickle")
    yield killing
    for process in killing.started:
        if process.poll() is None:
            process.kill()
        process.wait()


def hashes(folder: Path) -> tuple[str, str]:
    radii = pd.read_parquet(folder / "radii.parquet").to_csv(index=False)
    weights = (folder / "model.safetensors").read_bytes()
    return hashlib.sha256(weights).hexdigest(), hashlib.sha256(radii.encode()).hexdigest()


def test_eight_jobs_survive_everything(killing: Killing, tmp_path_factory: pytest.TempPathFactory) -> None:
    print(f"ACERTLAB_KILL_SEED={SEED}")
    command = ("acertlab", "sweep", str(killing.spec))

    # on a cluster: a kernel dies, a worker dies, the scheduler dies
    scheduler = killing.start(
        "distributed.cli.dask_scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        "scheduler.json",
    )
    told = killing.folder / "scheduler.json"
    address = json.loads(wait_for(lambda: told.exists() and told.read_text(), "a scheduler"))["address"]
    workers = ("--nworkers", "2", "--nthreads", "1", "--no-dashboard")
    nannies = killing.start("distributed.cli.dask_worker", address, *workers)
    on_cluster = killing.start(*command, "--scheduler", address)
    killing.moment()
    killing.random.choice(wait_for(killing.kernels, "a kernel")).kill()
    killing.moment()
    killing.random.choice(wait_for(killing.workers, "a worker")).kill()
    killing.moment()
    assert on_cluster.poll() is None, killing.said(on_cluster)
    scheduler.kill()
    assert on_cluster.wait(WAIT) == 3 and "the scheduler is gone" in killing.said(on_cluster)
    wait_for(lambda: not killing.kernels(), "the kernels end with the scheduler")
    nannies.terminate()

    # on this machine: the whole sweep dies
    dying = killing.start(*command, "--workers", "2")
    killing.moment()
    dying.kill()
    dying.wait()

    # the same command again, at once: the old kernels may not have noticed yet
    table = sweep.run(killing.spec, workers=2, show=False)
    assert (table.state == "done").all() and len(table) == 8
    epochs = killing.trained()
    assert sweep.run(killing.spec, workers=2, show=False).seconds.isna().all()  # nothing was executed
    assert killing.trained() == epochs
    assert_nothing_trained_twice(epochs)
    images = load_dataset("digits")
    for job in read_spec(killing.spec).jobs:  # the same bits as without all that
        names = dict(job.parameters) | {"TrainConfig": TrainConfig}
        exec(CONFIG, names)
        run = train(names["config"], images, tmp_path_factory.mktemp("alone") / "run", progress=False)
        assert hashes(job.folder) == hashes(run.path), job.name


SLEEPING = ['what = 0\nrun_dir = ""', "import time\nprint('up', file=open(run_dir + '/up', 'w'))\ntime.sleep(600)"]


def test_ctrl_c_stops_the_kernels_and_keeps_everything(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "sleeping.ipynb", SLEEPING)
    spec = tmp_path / "two.yaml"
    spec.write_text(yaml.safe_dump({"notebook": str(notebook), "out": "out", "grid": {"what": [0, 1]}}))
    command = [sys.executable, "-m", "acertlab", "sweep", str(spec), "--workers", "2"]
    # a session of its own: Ctrl-C on a terminal reaches the whole group
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # where the tests themselves run in the background, SIGINT is ignored, and would be in this process
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, start_new_session=True, preexec_fn=heeds, **pipes
    ) as process:
        wait_for(lambda: len(list(tmp_path.glob("out/cells/*/up"))) == 2, "both jobs run")
        below = psutil.Process(process.pid).children(recursive=True)
        assert sum("acertlab.sweep.kernel" in child.cmdline() for child in below) == 2
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=WAIT)
    assert process.returncode == 3 and said == "\nstopped; everything is kept, the same command goes on\n"
    wait_for(lambda: not any(child.is_running() for child in below), "all processes end")
    assert [job.done for job in read_spec(spec, out=tmp_path / "out").jobs] == [False, False]


QUICK = [
    'what = 0\nrun_dir = ""',
    "from pathlib import Path\nPath(run_dir, 'result.json').write_text('{\"acc\": 0.5}')",
]


class Scaling(logging.Handler):
    """Starts a worker once a message tells that there is none."""

    def __init__(self, cluster: LocalCluster) -> None:
        super().__init__()
        self.cluster, self.told = cluster, []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record.getMessage())
        self.cluster.scale(1)


def test_a_killed_job_of_a_front_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """02 itself, killed after its first network; its front is what `train_front` gives."""
    spec = {"dataset": "digits", "budget": "smoke", "front": True, "kappas": "0 0.5 0.9", "out": str(tmp_path / "out")}
    (tmp_path / "front.yaml").write_text(yaml.safe_dump(spec))
    command = [sys.executable, "-m", "acertlab", "sweep", str(tmp_path / "front.yaml"), "--workers", "1"]
    (job,) = read_spec(tmp_path / "front.yaml").jobs
    dying = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    wait_for((job.folder / "knot-01" / "config.json").exists, "the second network")
    dying.kill()
    dying.wait()
    assert not job.done
    table = sweep.run(tmp_path / "front.yaml", workers=1, show=False)
    assert table.state.tolist() == ["done"] and job.done
    assert sweep.run(tmp_path / "front.yaml", workers=1, show=False).seconds.isna().all()  # nothing was executed
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as a job has
        config = preset("digits", "acert", budget="smoke")
        alone = train_front(config, load_dataset("digits"), tmp_path / "alone", (0.0, 0.5, 0.9), progress=False)
    finally:
        torch.set_num_threads(threads)
    for run in (alone.knots | alone.between).values():
        assert hashes(job.folder / run.path.name) == hashes(run.path)
    runs = load_runs(tmp_path / "out")
    assert sorted(runs.kappa) == [0, 0.25, 0.5, 0.7, 0.9] and runs.one_training.eq(str(job.folder)).all()


def test_a_cluster_without_workers_is_told_and_goes_on_once_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "NO_WORKER", 1.0)
    notebook = write_notebook(tmp_path / "quick.ipynb", QUICK)
    spec = {"notebook": str(notebook), "out": str(tmp_path / "out"), "grid": {"what": [0, 1]}}
    with sweep.local_cluster(0) as cluster:
        scaling = Scaling(cluster)
        sweep.log.addHandler(scaling)
        try:
            table = sweep.run(spec, scheduler=cluster, show=False)
        finally:
            sweep.log.removeHandler(scaling)
        address = cluster.scheduler_address
    assert (table.state == "done").all() and table.acc.tolist() == [0.5, 0.5]
    assert re.fullmatch(
        rf"no worker at {address} for [1-9] s; jobs that wait for one: 2; LocalCluster was asked for 0",
        scaling.told[0],
    )


def test_a_dashboard_that_runs_already_is_no_matter(tmp_path: Path) -> None:
    """Dask's own default is port 8787, with a warning where that is taken."""
    notebook = write_notebook(tmp_path / "quick.ipynb", QUICK)
    spec = tmp_path / "one.yaml"
    spec.write_text(yaml.safe_dump({"notebook": str(notebook), "out": "out", "grid": {"what": [0]}}))
    command = [sys.executable, "-W", "always", "-m", "acertlab", "sweep", str(spec), "--workers", "1"]
    with socket.socket() as other:
        with suppress(OSError):  # a real one is as good
            other.bind(("127.0.0.1", 8787))
            other.listen()
        ran = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
    assert ran.returncode == 0, ran.stderr
    assert "8787" not in ran.stdout + ran.stderr and "already in use" not in ran.stderr


def assert_nothing_trained_twice(epochs: list[tuple[str, int, int]]) -> None:
    """One process at a time trained a job, each going on where the one before had its last checkpoint."""
    for name in {job for job, _, _ in epochs}:
        mine = [(epoch, pid) for job, epoch, pid in epochs if job == name]
        pids = [pid for _, pid in mine]
        assert len(set(pids)) == sum(a != b for a, b in zip([0, *pids], pids, strict=False)), "two at a time"
        counts = Counter(epoch for epoch, _ in mine)
        assert set(counts) == {0, 1, 2, 3}
        for (before, pid), (epoch, next_pid) in pairwise(mine):
            # an epoch is repeated only where its process died between its last step and its checkpoint
            assert epoch == before + 1 or (epoch == before and pid != next_pid)


def test_a_job_leaves_out_what_is_for_readers(tmp_path):
    path = write_notebook(tmp_path / "notebook.ipynb", ["run_dir = ''", "1 / 0", "done = True"])
    read = nbformat.read(path, as_version=4)
    read.cells[1].metadata["tags"] = ["lesson"]
    nbformat.write(read, path)
    assert [cell.source for cell in without_lesson(path).cells] == ["run_dir = ''", "done = True"]
    lesson = [
        cell
        for cell in nbformat.read(ROOT / "notebooks/02_training.ipynb", as_version=4).cells
        if {"lesson", "attempt", "check"} & set(cell.metadata.get("tags", ()))
    ]
    assert lesson and all("lesson" in cell.metadata.tags for cell in lesson)
