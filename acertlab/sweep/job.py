"""One job of a sweep, as a worker executes it: a notebook in a kernel of its own, by papermill.

This module is loaded in every worker, so it stays clear of torch: only the kernel needs it.
"""

import gc
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
from distributed import Worker, get_worker
from distributed.core import Status
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from papermill.exceptions import PapermillExecutionError

START_TIMEOUT = 600  # seconds for a kernel to come up: a busy machine, Python on a slow network disk
DONE, RUNNING, FAILED = "notebook.ipynb", "notebook.running.ipynb", "notebook.failed.ipynb"
for name in ("papermill", "traitlets"):
    logging.getLogger(name).setLevel(logging.CRITICAL)  # what they report of a kernel's death, the outcome says


@dataclass(frozen=True)
class Job:
    """One execution of the notebook."""

    name: str  # its folder's: what it varies, and a hash of all parameters and the package's version
    parameters: dict[str, Any]  # of the notebook, checked; all of them but run_dir
    folder: Path  # becomes run_dir; also takes the executed notebook
    notebook: Path
    environment: dict[str, str]  # variables that the kernel gets, on top of its worker's
    cwd: Path  # the kernel's working folder

    @property
    def done(self) -> bool:
        """Whether there is a result, and no notebook beside it tells of an interruption since.

        The second: a notebook may check its result after it was written (02 does), and a check may fail.
        """
        unfinished = any((self.folder / name).exists() for name in (RUNNING, FAILED))
        return self.has_result and not unfinished

    @property
    def has_result(self) -> bool:
        """Whether `result.json` was renamed into place, or `front.json` tells of a front's networks: both come last."""
        return (self.folder / "result.json").is_file() or "networks" in self.result

    @property
    def result(self) -> dict[str, Any]:
        """What the notebook has written, `result.json` or of a front `front.json`; nothing where it cannot be read."""
        for name in ("result.json", "front.json"):
            with suppress(OSError, ValueError):
                return json.loads((self.folder / name).read_text(encoding="utf-8"))
        return {}


def dask_setup(worker: Worker) -> None:
    """Run by this machine's workers as they start: Ctrl-C reaches them, too, but is the sweep's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@dataclass(frozen=True)
class Outcome:
    """How an execution ended: `reason` is "" where it went well, else the notebook's own error in a line."""

    reason: str
    seconds: float


class KernelDiedError(RuntimeError):
    """The kernel ended without the notebook's doing (killed, out of memory, never up): worth another attempt."""


def run_job(job: Job, topic: str) -> Outcome:
    """Executes the job's notebook, in a worker; an event of this topic says so to the client.

    An error raised by the notebook is an outcome, and is not worth another attempt. KernelDiedError where the kernel
    died, or another process still trains in the folder.
    """
    worker, started = get_worker(), time.perf_counter()
    worker.log_event(topic, {"job": job.name, "worker": worker.address})
    job.folder.mkdir(parents=True, exist_ok=True)
    running, key = job.folder / RUNNING, worker.get_current_task()
    began = len(_log(job))

    def unwanted() -> bool:  # cancelled, or the worker has lost its scheduler
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled" or worker.status not in (Status.running, Status.paused)

    with _kernel(job, unwanted) as kernel_class:
        try:
            nbformat.write(without_lesson(job.notebook), running)
            papermill.execute_notebook(
                running,
                running,
                job.parameters | {"run_dir": str(job.folder)},
                progress_bar=False,
                kernel_name="python3",
                start_timeout=START_TIMEOUT,
                kernel_manager_class=kernel_class,
                resources={"metadata": {"path": str(job.cwd)}},
                store_widget_state=False,  # 5 MB a figure
            )
        except PapermillExecutionError as error:
            if error.ename == "LockHeldError":
                raise KernelDiedError(error.evalue) from None
            os.replace(running, job.folder / FAILED)
            return Outcome(f"{error.ename}: {error.evalue}", time.perf_counter() - started)
        except RuntimeError as error:  # nbclient's DeadKernelError, and what is raised while the kernel comes up
            raise KernelDiedError(f"the kernel died: {error}{_last_words(job, began)}") from None
    if not job.has_result:
        os.replace(running, job.folder / FAILED)
        return Outcome("the notebook ended without writing result.json into run_dir", time.perf_counter() - started)
    os.replace(running, job.folder / DONE)
    (job.folder / FAILED).unlink(missing_ok=True)  # of an earlier attempt; last, so that a kill here repeats the check
    return Outcome("", time.perf_counter() - started)


def without_lesson(notebook: Path) -> nbformat.NotebookNode:
    """The notebook but for its cells tagged `lesson`, which are for its readers: a job has none."""
    read = nbformat.read(notebook, as_version=4)
    read.cells = [cell for cell in read.cells if "lesson" not in cell.metadata.get("tags", ())]
    return read


def _log(job: Job) -> bytes:
    """What the job's kernels said outside of the notebook's cells."""
    path = job.folder / "kernel.log"
    return path.read_bytes() if path.is_file() else b""


def _last_words(job: Job, began: int) -> str:
    lines = _log(job)[began:].decode(errors="replace").strip().splitlines()
    return f"; the last line of {job.folder / 'kernel.log'}: {lines[-1].strip()}" if lines else ""


def _socket_folder() -> str:
    """A new folder with a path short enough for sockets in it, which hold 107 bytes on Linux, 103 on others."""
    failure: OSError | None = None
    for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp", "/var/tmp", os.path.expanduser("~"))):
        try:
            folder = tempfile.mkdtemp(prefix="acertlab-", dir=parent)
        except OSError as error:  # it is full, or not there
            failure = error
            continue
        if sys.platform == "win32" or len(os.fsencode(os.path.join(folder, "kernel-ipc-99999"))) <= 103:
            return folder
        os.rmdir(folder)
    raise OSError(
        f"TMPDIR = {tempfile.gettempdir()}: too long a path for a kernel's sockets, and so are /tmp, /var/tmp and the "
        f"home folder, or they cannot be written ({failure})"
    )


@contextmanager
def _kernel(job: Job, unwanted: Callable[[], bool]) -> Iterator[type[AsyncKernelManager]]:
    """How the job's kernel is started; it is killed when the job is no longer wanted.

    jupyter_client looks for five free TCP ports, closes them, and the kernel opens them a second later: another kernel
    may have taken one by then. Sockets in a folder of the kernel's own have no such race.
    """
    sockets = _socket_folder()
    finished = threading.Event()

    class Kernel(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            if sys.platform != "win32":  # which has no such sockets
                self.transport, self.connection_file = "ipc", os.path.join(sockets, "kernel.json")

        def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
            # this very Python, whatever kernels the user has installed
            return [sys.executable, "-m", "acertlab.sweep.kernel", "-f", self.connection_file, *(extra_arguments or [])]

        async def _async_launch_kernel(self, kernel_cmd: list[str], **kwargs: Any) -> None:
            kwargs["env"] = {**kwargs.get("env", os.environ), **job.environment}
            with open(job.folder / "kernel.log", "ab") as said:  # what it says outside of the notebook's cells
                await super()._async_launch_kernel(kernel_cmd, **kwargs | {"stdout": said, "stderr": said})
            assert isinstance(self.provisioner, LocalProvisioner)
            threading.Thread(target=kill_when_unwanted, args=(self.provisioner.pid,), daemon=True).start()

    def kill_when_unwanted(pid: int) -> None:
        while not finished.wait(0.5):
            if unwanted():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return

    try:
        yield Kernel
    finally:
        finished.set()
        shutil.rmtree(sockets, ignore_errors=True)
        gc.collect()  # a kernel's manager is a cycle that holds a file and 0.6 MB, in a worker that allocates little
