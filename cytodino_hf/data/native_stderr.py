"""Hear what a C library says on the process's stderr: the only place where OpenCV tells that a picture is damaged."""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")

_STDERR = 2
# How lines of libjpeg (jerror.h), libpng, libtiff and OpenCV begin. Whatever else another thread writes meanwhile is
# handed on to stderr.
_DECODER_LINE = re.compile(
    rb"Corrupt JPEG data|Premature end of|Inconsistent progression|Invalid SOS|Unsupported marker|Warning: unknown JFIF"
    rb"|Unknown Adobe|Application transferred|libpng (warning|error)|PNG (warning|error)|\[ ?(WARN|ERROR|INFO|FATAL)"
    rb"|OpenCV|imread_|Error: "
)


def decoder_lines(work: Callable[[], _Result]) -> tuple[_Result, tuple[str, ...]]:
    """Run `work` and catch what a decoder of pictures prints meanwhile.

    File descriptor 2 is pointed at a file in memory for the while (about 5 microseconds in all). One thread at a
    time: decode in several processes, not in several threads.

    Args:
        work: Calls one C function that decodes; starts no process.

    Returns:
        What `work` returns, and the decoder's lines.
    """
    return _listener().run(work)


@functools.cache
def _listener() -> _Listener:
    return _Listener()


class _Listener:
    """The file that stands in for stderr, one a process."""

    def __init__(self) -> None:
        self._renew()
        # A fork copies the lock as it is and shares the file's position: a child takes its own of both, and none is
        # born while stderr points elsewhere.
        os.register_at_fork(
            before=lambda: self._lock.acquire(),
            after_in_parent=lambda: self._lock.release(),
            after_in_child=self._renew,
        )

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._file: int | None = None

    def run(self, work: Callable[[], _Result]) -> tuple[_Result, tuple[str, ...]]:
        with self._lock:
            if self._file is None:
                self._file = _file_in_memory()
            kept = _stderr_copy()
            try:
                os.dup2(self._file, _STDERR)
                result = work()
            finally:
                _point_stderr_at(kept)
            lines = self._take()
        return result, lines

    def _take(self) -> tuple[str, ...]:
        """Empty the file; the decoder's lines are returned, others go where they were meant to."""
        assert self._file is not None
        size = os.lseek(self._file, 0, os.SEEK_CUR)
        if size == 0:
            return ()
        os.lseek(self._file, 0, os.SEEK_SET)
        written = os.read(self._file, size)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.ftruncate(self._file, 0)
        lines = written.splitlines(keepends=True)
        if others := b"".join(line for line in lines if not _DECODER_LINE.match(line)):
            os.write(_STDERR, others)
        return tuple(line.decode("utf-8", "replace").strip() for line in lines if _DECODER_LINE.match(line))


def _file_in_memory() -> int:
    if sys.platform == "linux":
        try:
            return os.memfd_create("decoder", os.MFD_CLOEXEC)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _stderr_copy() -> int | None:
    """A second descriptor of stderr; None where a service closed it."""
    try:
        return os.dup(_STDERR)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return None


def _point_stderr_at(kept: int | None) -> None:
    if kept is None:
        os.close(_STDERR)
    else:
        os.dup2(kept, _STDERR)
        os.close(kept)
