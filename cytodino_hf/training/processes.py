"""Several processes that train one model together: how they meet, who goes first, how they part.

torchrun and `accelerate launch` start the processes; each holds the whole model and sees its share of every batch.
The first process (rank 0) alone writes the RUN. With one process every function here does its work and nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from ..errors import CytoDinoError, OtherProcessError

T = TypeVar("T")
# Waiting for the first process is no fault while it downloads or draws images: only its end should end the wait.
_PATIENCE = timedelta(days=7)
_LOST_CONNECTION = re.compile(
    r"connection (was )?(closed|reset)|broken pipe|socket.*(closed|reset)", re.IGNORECASE
)

#: The group for messages between the processes while they are joined; over gloo, so that it waits on no GPU.
_host_group: Any = None


def meet_again_after_restart() -> None:
    """Connect the processes that torchrun started again after one was killed (`--max-restarts`).

    torchrun keeps one store of addresses for all its starts, and a process that is quick finds the addresses of those
    that are gone (pytorch issue 135712). So each start meets under a name of its own. The count of starts is the same
    for all processes of one machine only; on several, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun.
    """
    import torch
    import torch.distributed as dist

    has_shared_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if not has_shared_store or start == "0" or os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
        return
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if not on_cpu and not torch.cuda.is_available():
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=False)  # type: ignore[attr-defined]
    dist.init_process_group(
        "gloo" if on_cpu else "nccl",
        store=dist.PrefixStore(f"start {start}", store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=size,
    )


@contextmanager
def joined_processes() -> Iterator[None]:
    """Let the processes that the launcher started and accelerate connected work together; at the end they part.

    All reach the end of the block before any goes on, so that none is waited for that is gone. Where one stops
    early, the others stop too.

    Raises:
        OtherProcessError: Another process stopped.
    """
    import torch.distributed as dist

    global _host_group
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    _host_group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    try:
        yield
        dist.barrier(group=_host_group)
    except RuntimeError as error:
        if _LOST_CONNECTION.search(str(error)):
            raise OtherProcessError("another process stopped; its own message says why") from error
        raise
    finally:
        _host_group = None
    dist.destroy_process_group()


def is_first_process() -> bool:
    """Whether this process is the one that writes."""
    return _rank() == 0


def process_count() -> int:
    """Processes that train together."""
    import torch.distributed as dist

    return dist.get_world_size() if _host_group is not None else 1


def first_process_first(work: Callable[[], T]) -> T:
    """Do something on the first process, then on the others, which find what it left on the disk.

    Args:
        work: Run once on every process.

    Raises:
        OtherProcessError: The work failed on another process; where it failed its own error is raised.
    """
    if process_count() == 1:
        return work()
    first = _Outcome.of(work) if is_first_process() else None
    problem = _share_from_first(first.problem if first else None)
    if problem is None:
        outcome = first if first is not None else _Outcome.of(work)
    else:
        outcome = first if first is not None else _Outcome(error=OtherProcessError(problem))
    return _agreed(outcome)


def on_first_process(work: Callable[[], T]) -> T:
    """Do something on the first process only and hand its result to all.

    Args:
        work: Run on the first process; its result must be picklable.

    Raises:
        OtherProcessError: On the other processes, where the work failed; on the first its own error is raised.
    """
    if process_count() == 1:
        return work()
    outcome = _Outcome.of(work) if is_first_process() else _Outcome()
    problem, result = _share_from_first((outcome.problem, outcome.result if outcome.error is None else None))
    if outcome.error is not None:
        raise outcome.error
    if problem is not None:
        raise OtherProcessError(problem)
    return result  # type: ignore[no-any-return]


class _Outcome:
    """What a piece of work came to: a result or an error."""

    def __init__(self, result: Any = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error

    @classmethod
    def of(cls, work: Callable[[], Any]) -> _Outcome:
        try:
            return cls(result=work())
        except BaseException as error:  # noqa: BLE001 (raised again once the others know)
            return cls(error=error)

    @property
    def problem(self) -> str | None:
        if self.error is None or isinstance(self.error, OtherProcessError):
            return None
        told = "its own message says why" if isinstance(self.error, CytoDinoError) else repr(self.error)
        return f"process {_rank()} stopped; {told}"


def _agreed(outcome: _Outcome) -> Any:
    """The result, if all processes have one."""
    import torch.distributed as dist

    problems: list[str | None] = [None] * process_count()
    dist.all_gather_object(problems, outcome.problem, group=_host_group)
    if outcome.error is not None:
        raise outcome.error
    for problem in problems:
        if problem is not None:
            raise OtherProcessError(problem)
    return outcome.result


def _share_from_first(message: Any) -> Any:
    import torch.distributed as dist

    box = [message]
    dist.broadcast_object_list(box, src=0, group=_host_group)
    return box[0]


def _rank() -> int:
    import torch.distributed as dist

    return dist.get_rank() if _host_group is not None else 0
