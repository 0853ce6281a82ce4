"""Locks on a RUN folder: one process trains in it, and one at a time changes a file of it.

The locks are the system's own (flock): a process that is gone, however it ended, holds nothing.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import RunFolderError

logger = logging.getLogger(__name__)
#: In the folder; holds the pid of its process.
LOCK_FILE = "run.lock"
# A process that was just killed may have forked one that has not come to let the lock go.
_PATIENCE_SECONDS = 1.0


def locked(folder: Path) -> IO[str]:
    """Keep a folder for this process; closing what is returned lets it go.

    Raises:
        RunFolderError: Another process trains in it.
    """
    file = open(folder / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115 (closing it is what releases)
    try:
        _lock(file, folder)
    except RunFolderError:
        file.close()
        raise
    # Data workers are forked and may outlive this process for seconds: they must not hold the folder.
    os.register_at_fork(after_in_child=_closer(file))
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def _lock(file: IO[str], folder: Path) -> None:
    given_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < given_up:
                time.sleep(0.05)
                continue
            file.seek(0)
            holder = file.read().strip() or "of unknown number"
            raise RunFolderError(
                f"{folder} is in use: process {holder} trains in it. Wait for its end, stop it (kill {holder}: it "
                "saves and the same command goes on), or give another training.output_dir"
            ) from None
        except OSError as error:
            logger.warning(
                "%s: this file system keeps no locks (%s); start no second run in it", folder, error
            )
        return


def _closer(file: IO[str]) -> Callable[[], None]:
    reference = weakref.ref(file)

    def close() -> None:
        if (held := reference()) is not None:
            held.close()

    return close


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep the other processes of a training from changing a file of the folder in between."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: the last writer wins
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
