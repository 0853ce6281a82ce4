"""Being asked to stop: SIGTERM of a scheduler, or Ctrl+C once.

The running optimizer step and evaluation are finished, a checkpoint is sealed, and the process exits with 143
(SIGTERM) or 130 (Ctrl+C), as a shell reports these signals. The same command goes on from there.

A launcher in between changes what is seen outside. `torchrun` passes the signal on, waits 30 s for its processes and
exits with 1; so a step, an evaluation and a save must fit into 30 s. `accelerate launch` with one process passes
nothing on and dies of the signal at once; on Linux the training learns of it, saves, and ends after its launcher.
Sent to the training itself, the signal makes `accelerate launch` exit with 1, and `torchrun --max-restarts` start the
training again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InterruptedTrainingError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Notes the signals of one training and lets all its processes agree on the step to stop after."""

    def __init__(self) -> None:
        self._received = 0
        self._listener = 0
        self._group: Any = None
        self._flag: Any = None
        self._pending: Any = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over for the time of a training; outside of Python's main thread none can be."""
        import torch.distributed as dist

        self._received = 0
        self._listener = os.getpid()
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            # On the host: agreeing must never wait for a GPU.
            self._group = dist.new_group(backend="gloo")
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # a job in the background ignores Ctrl+C on purpose
                signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._listener:
            return  # a reading process, forked with this handler: its parent ends it
        # A launcher repeats Ctrl+C to its processes, so only a lone process takes the second as "now".
        if number == signal.SIGINT and self._received and self._group is None:
            raise KeyboardInterrupt
        if not self._received:
            # Not by logging: it may be what the signal came in the middle of.
            os.write(2, f"{signal.Signals(number).name}: finishing this step, then saving\n".encode())
        self._received = max(self._received, number)

    def asked(self) -> int:
        """The signal to stop for, or 0; called once a step by all processes, which get the same answer.

        With several processes the answer is that of the step before: the question travels while a step is computed.
        """
        if self._group is None:
            return self._received
        answer = self._answer()
        self._ask()
        return answer

    def received_alone(self) -> int:
        """The signal a lone process was given, or 0: what it fails of afterwards may be the signal's doing."""
        return self._received if self._group is None else 0

    def asked_at_the_end(self) -> int:
        """As `asked`, when no step follows: waits for the answer."""
        if self._group is None:
            return self._received
        self._answer()
        self._ask()
        return self._answer()

    def _ask(self) -> None:
        import torch
        import torch.distributed as dist

        self._flag = torch.tensor([self._received])
        self._pending = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)

    def _answer(self) -> int:
        if self._pending is None:
            return 0
        self._pending.wait()
        self._pending = None
        return int(self._flag)


def stop_after_failure(number: int, error: Exception, run: Path) -> None:
    """Leave a training that failed after it was told to stop: the signal may have gone to its helpers as well.

    Args:
        number: The signal.
        error: What it failed of.
        run: The RUN folder, for the message.

    Raises:
        InterruptedTrainingError: Always.
    """
    raise InterruptedTrainingError(
        f"stopped by {signal.Signals(number).name}; before the step was done and saved it failed "
        f"({type(error).__name__}: {' '.join(str(error).split())[:200]}). The same command goes on from the newest "
        f"checkpoint of {run}",
        exit_code=128 + number,
    ) from error


def stop(number: int, step: int, run: Path) -> None:
    """Leave a training whose last step is sealed.

    Args:
        number: The signal.
        step: Optimizer steps done.
        run: The RUN folder, for the message.

    Raises:
        InterruptedTrainingError: Always; its `exit_code` is 128 and the signal's number.
    """
    raise InterruptedTrainingError(
        f"stopped by {signal.Signals(number).name} after step {step}; checkpoint-{step} of {run} is sealed and the "
        "same command goes on from it",
        exit_code=128 + number,
    )
