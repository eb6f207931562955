"""One process a folder: a lock that dies with its process, so that a killed one cannot leave it behind.

It is the operating system's lock on an open file, taken by `filelock`; the file itself stays. Where a file system has
no such locks, nothing is locked, and the log says so.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


class LockHeldError(RuntimeError):
    """Another process holds the lock; the message says which."""


@contextmanager
def locked(path: Path, what: str, *, wait: float = 0.0) -> Iterator[Callable[[], bool]]:
    """Hold the lock on a file while the block runs; yields whether the file is still the one that was locked.

    It is not once its folder was deleted or moved: then the lock keeps nobody out. The file is made where it is not
    there, and tells who holds the lock. LockHeldError, which begins with ``what`` the lock stands for, if another
    process (or another block of this one) still holds it after ``wait`` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=wait, poll_interval=0.1, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise LockHeldError(f"{what} is in use by {_holder(path)}") from None
    except (OSError, NotImplementedError) as error:
        log.warning("%s cannot be locked (%s): nothing keeps two processes apart", path, error)
    file = _identity(path)

    def held() -> bool:
        return _identity(path) == file

    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with suppress(OSError):  # Windows lets nobody write to a locked file
        path.write_text(json.dumps(holder), encoding="utf-8")
    try:
        yield held
    finally:
        with suppress(OSError):
            if held():
                path.write_text("", encoding="utf-8")
        lock.release()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        return path.stat().st_dev, path.stat().st_ino  # of no other file while this one is open
    except OSError:
        return None


def _holder(path: Path) -> str:
    try:
        return "process {pid} on {host} since {since}".format(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):  # it has just begun to write
        return "another process"
