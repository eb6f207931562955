"""A lock that dies with its process: one sweep a folder, one training a run.

It is the operating system's lock on an open file (`flock`), so a process that is killed cannot leave it behind; the
file itself stays. Linux carries it over NFS, too. Where there are no such locks (Windows, some network file systems),
nothing is locked, and the log says so.
"""

import errno
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
log = logging.getLogger(__name__)


class Held(RuntimeError):
    """Another process holds the lock; the message says which."""


@contextmanager
def locked(path: Path, what: str, *, wait: float = 0.0) -> Iterator[None]:
    """Holds the lock on a file while the block runs.

    Args:
        path: the file; made, with its folder, if it is not there. It tells who holds the lock.
        what: what the lock stands for, as the error's message begins.
        wait: seconds to wait for another process to end.

    Raises:
        Held: another process (or another block of this one) holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        if not _acquired(file, wait):
            raise Held(f"{what} is in use by {_holder(file)}")
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%F %T")}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # closing the file gives the lock up


def _acquired(file: IO[str], wait: float) -> bool:
    end = time.monotonic() + wait
    while fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                log.warning("%s cannot be locked (%s): nothing keeps two processes apart", file.name, error)
                return True
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
    log.warning("this system has no file locks: nothing keeps two processes apart")
    return True


def _holder(file: IO[str]) -> str:
    file.seek(0)
    try:
        return "process {pid} on {host} since {since}".format(**json.loads(file.read()))
    except (ValueError, KeyError):  # it has just begun to write
        return "another process"
