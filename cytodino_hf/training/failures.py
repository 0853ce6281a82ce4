"""Failures of the machine by their names: memory that does not suffice, reading processes that were killed.

torch tells them by the text of a RuntimeError; here they become errors that say what to do.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from ..errors import CytoDinoError, NotEnoughMemoryError, WorkerKilledError
from .remedies import Remedies

T = TypeVar("T")

# What allocators say: torch on CPU and GPU, cuBLAS, numpy, OpenCV, C++, the system.
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|not enough memory|insufficient memory|bad_alloc"
    r"|unable to allocate|ALLOC_FAILED|could not create a (primitive|memory)",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried to allocate|allocate) ([\d.]+) ?(bytes|[KMGT]i?B)", re.IGNORECASE)
_NO_SHARED_MEMORY = re.compile(
    r"bus error|out of shared memory|shared memory object|file </torch_|shared memory\(shm\)", re.IGNORECASE
)
_WORKER_SIGNAL = re.compile(r"DataLoader worker \(pid (\d+)\) is killed by signal: ([^.]+)\.")
_WORKER_EXIT = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) exited unexpectedly")
_IN_WORKER = re.compile(r"^Caught \w+ in DataLoader worker process")
_UNITS = {"b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory did not suffice, on a GPU or on the machine."""
    import torch

    return any(
        isinstance(one, (MemoryError, torch.OutOfMemoryError)) or _says_out_of_memory(one)
        for one in _chain(error)
    )


def _says_out_of_memory(error: BaseException) -> bool:
    if not isinstance(error, (RuntimeError, OSError)) and type(error).__module__ != "cv2":
        return False
    return bool(_NO_MEMORY.search(str(error))) and not _NO_SHARED_MEMORY.search(str(error))


@contextmanager
def deaths_noted() -> Iterator[list[str]]:
    """Note the deaths of reading processes instead of raising an error wherever this process happens to be.

    torch raises one from the signal that a child has ended: in the middle of a save, of the clean-up after the first
    such error, or of code that swallows it. Without that it finds the death when it waits for a picture, within 5 s.

    Yields:
        What torch would have said of each death, for `named_failure`.
    """
    from torch._C import _error_if_any_worker_fails
    from torch.utils.data._utils.signal_handling import _set_SIGCHLD_handler

    noted: list[str] = []
    if os.name != "posix" or threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        try:
            _error_if_any_worker_fails()
        except RuntimeError as error:
            noted.append(str(error))

    _set_SIGCHLD_handler()  # torch sets it once; now it will not be set again
    before = signal.signal(signal.SIGCHLD, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGCHLD, before)


def named_failure(
    error: BaseException, remedies: Remedies, sizes: str = "", deaths: Sequence[str] = ()
) -> CytoDinoError | None:
    """The error a user should read instead of torch's, or None where this is no known failure of the machine.

    Args:
        error: What was raised.
        remedies: What the user may change.
        sizes: What decides the memory that is needed, for the message.
        deaths: From `deaths_noted`.
    """
    if isinstance(error, CytoDinoError):
        return _as_raised_in_worker(error)
    if killed := killed_worker(error, remedies, deaths):
        return killed
    if is_out_of_memory(error):
        return NotEnoughMemoryError(_memory_message(error, remedies, sizes))
    return None


def killed_worker(
    error: BaseException, remedies: Remedies, deaths: Sequence[str] = ()
) -> WorkerKilledError | None:
    """The named error where a process that reads images was killed, or found no shared memory; else None."""
    texts = [str(one) for one in _chain(error) if isinstance(one, (RuntimeError, OSError))]
    if any(_WORKER_EXIT.search(text) for text in texts) or _lost_in_handing_over(error, deaths):
        texts += deaths  # they know the signal
    ended = next((m for text in texts if (m := _WORKER_SIGNAL.search(text))), None)
    exited = next((m for text in texts if (m := _WORKER_EXIT.search(text))), None)
    lacks_sharing = next((text for text in texts if _NO_SHARED_MEMORY.search(text)), None)
    if not (ended or exited or lacks_sharing):
        return None
    if ended:
        who = (
            f"a process that reads images (pid {ended[1]}) was killed by the system: {_signal_name(ended[2])}"
        )
    elif exited:
        who = f"a process that reads images (pid {exited[1]}) ended without a word"
    else:
        who = "a process that reads images could not hand its pictures over"
    if lacks_sharing:
        return WorkerKilledError(
            f"{who}. Shared memory is full: {_shared_memory()}. Give more (docker run --shm-size=8g, or --ipc=host), "
            "or fewer training.dataloader_num_workers; with 0 none is needed."
        )
    return WorkerKilledError(
        f"{who}. The usual cause is that the machine ran out of memory ({_host_memory()}); `dmesg` then names the "
        f"process. {remedies.workers} The same command goes on from the newest checkpoint."
    )


def halving(work: Callable[[int], T], batch_size: int, on_halved: Callable[[int, int], None]) -> T:
    """Do some work with a batch half as large each time the memory does not suffice, down to one picture.

    Args:
        work: Batch size -> result; may be called again, so it must leave nothing half done.
        batch_size: To begin with.
        on_halved: Told the batch size that failed and the next.

    Raises:
        Exception: What the work raised, where it was not the memory or the batch was of one picture.
    """
    from torch import get_rng_state, set_rng_state

    drawn = get_rng_state()
    while True:
        try:
            return work(batch_size)
        except Exception as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
        # Outside the handler: the traceback held the tensors.
        release_memory()
        set_rng_state(drawn)
        on_halved(batch_size, batch_size // 2)
        batch_size //= 2


def drop_frames(error: BaseException) -> None:
    """Let go of everything an error's traceback holds: tensors, and the reading processes of a broken loop."""
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)
    gc.collect()


def release_memory() -> None:
    """Give back what is no longer used: cycles of Python objects, the GPU's cached blocks."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _lost_in_handing_over(error: BaseException, deaths: Sequence[str]) -> bool:
    """Whether a process died just when its picture was taken over: then there is only a broken connection."""
    if not isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        return False
    for _ in range(10):  # the news of its death may come a moment later than the broken connection
        if deaths:
            break
        time.sleep(0.05)
    return bool(deaths)


def _as_raised_in_worker(error: CytoDinoError) -> CytoDinoError | None:
    """The error without the traceback that torch puts into its message when it crosses from a worker; else None."""
    text = str(error)
    marker = f"{type(error).__module__}.{type(error).__qualname__}: "
    if not _IN_WORKER.match(text) or marker not in text:
        return None
    return type(error)(text.rpartition(marker)[2].rstrip("\n"))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _memory_message(error: BaseException, remedies: Remedies, sizes: str) -> str:
    import torch

    asked = next((m for one in _chain(error) if (m := _ASKED.search(str(one)))), None)
    wanted = f"; {_human(float(asked[1]) * _UNITS[asked[2][0].lower()])} more were asked for" if asked else ""
    on_gpu = any(isinstance(one, torch.OutOfMemoryError) or "CUDA" in str(one) for one in _chain(error))
    where = _gpu_memory() if on_gpu and torch.cuda.is_available() else _host_memory()
    needs = f" {sizes}." if sizes else ""
    place = "GPU" if on_gpu else "machine"
    return f"not enough memory on the {place} ({where}{wanted}).{needs} {remedies.memory}"


def _gpu_memory() -> str:
    import torch

    free, total = torch.cuda.mem_get_info()
    return f"{_human(free)} free of {_human(total)}, {_human(torch.cuda.memory_allocated())} in use by this process"


def _host_memory() -> str:
    parts = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        amounts = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        parts.append(f"{_human(amounts['MemAvailable'])} free of {_human(amounts['MemTotal'])}")
    except (OSError, KeyError):  # not Linux
        parts.append("free memory unknown")
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            parts.append(f"this process is limited to {_human(limit)}")
    except ImportError:  # Windows has no such limits
        pass
    return ", ".join(parts)


def _shared_memory() -> str:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return "this system has no /dev/shm"
    usage = shutil.disk_usage(folder)
    return f"{_human(usage.free)} free of {_human(usage.total)} in /dev/shm"


def _signal_name(description: str) -> str:
    """`Killed` as the system describes it -> `SIGKILL (Killed)`."""
    names = {signal.strsignal(s): s.name for s in signal.Signals} if os.name == "posix" else {}
    name = names.get(description.strip())
    return f"{name} ({description.strip()})" if name else description.strip()


def _human(amount: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"
