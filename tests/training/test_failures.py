"""What torch, numpy, OpenCV and the system say when the machine fails, and what the user is told."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cytodino_hf.errors import CytoDinoError, DataError, NotEnoughMemoryError, WorkerKilledError
from cytodino_hf.training.failures import deaths_noted, drop_frames, halving, is_out_of_memory, named_failure
from cytodino_hf.training.remedies import FINE_TUNING

TOO_MUCH = 1 << 50  # bytes; more than any address space of today grants


def raised(work: Any) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whatever the library raises is the question
        work()
    return caught.value


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.empty(TOO_MUCH, dtype=torch.uint8),
        lambda: np.ones(TOO_MUCH, dtype=np.uint8),
        lambda: bytearray(TOO_MUCH),
    ],
    ids=["torch", "numpy", "python"],
)
def test_memory_that_does_not_suffice_gets_its_name(work: Any) -> None:
    error = raised(work)
    assert is_out_of_memory(error)
    named = named_failure(error, FINE_TUNING, "A step takes 16 pictures of 256 px at once")
    assert isinstance(named, NotEnoughMemoryError)
    text = str(named)
    assert "not enough memory on the machine" in text
    assert "16 pictures of 256 px" in text
    assert "GiB free of" in text or "MiB free of" in text
    assert "per_device_train_batch_size" in text
    if "torch" in str(type(error)) or isinstance(error, RuntimeError):
        assert "1048576.0 GiB more were asked for" in text


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("std::bad_alloc"),
        OSError(12, "Cannot allocate memory"),
        cv2.error("OpenCV(5.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_other_allocators_are_understood_too(error: BaseException) -> None:
    assert isinstance(named_failure(error, FINE_TUNING), NotEnoughMemoryError)
    outer = RuntimeError("while training")
    outer.__cause__ = error
    assert is_out_of_memory(outer)


def test_the_amount_asked_for_and_the_device_are_named() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")
    assert "2.5 GiB more were asked for" in str(named_failure(error, FINE_TUNING))
    assert "on the GPU" in str(named_failure(error, FINE_TUNING))


@pytest.mark.parametrize(
    "error", [ValueError("out of memory lane"), RuntimeError("shapes differ"), KeyError("x")]
)
def test_other_errors_keep_their_own_face(error: Exception) -> None:
    assert named_failure(error, FINE_TUNING) is None
    assert not is_out_of_memory(error)


class Worker(Dataset[int]):
    """Item 3 does something bad."""

    def __init__(self, deed: Any) -> None:
        self.deed = deed

    def __len__(self) -> int:
        return 8

    def __getitem__(self, row: int) -> int:
        if row == 3:
            self.deed()
        return row


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse() -> None:
    try:
        Path("/nowhere/at/all").read_bytes()
    except OSError as error:
        raise DataError("cell-3.png: cannot be read\n  (as the system says)") from error


def exhaust() -> None:
    bytearray(TOO_MUCH)


def failure_in_worker(deed: Any) -> tuple[BaseException, CytoDinoError | None]:
    with deaths_noted() as deaths:
        error = raised(lambda: list(DataLoader(Worker(deed), num_workers=1)))
        named = named_failure(error, FINE_TUNING, deaths=deaths)
        drop_frames(error)  # else torch would tell the death again in another test
        return error, named


def test_a_killed_worker_is_named_with_pid_signal_and_remedy() -> None:
    _, named = failure_in_worker(kill)
    assert isinstance(named, WorkerKilledError)
    assert "SIGKILL (Killed)" in str(named)
    assert "pid " in str(named)
    assert "dataloader_num_workers" in str(named)
    _, left = failure_in_worker(lambda: os._exit(7))
    assert isinstance(left, WorkerKilledError)
    assert "ended without a word" in str(left)


def test_a_worker_that_dies_while_it_hands_a_picture_over_is_a_killed_worker_too() -> None:
    death = "DataLoader worker (pid 41) is killed by signal: Killed. "
    named = named_failure(ConnectionResetError(104, "Connection reset by peer"), FINE_TUNING, deaths=[death])
    assert isinstance(named, WorkerKilledError)
    assert "pid 41" in str(named)
    assert (
        named_failure(ConnectionResetError(104, "Connection reset by peer"), FINE_TUNING, deaths=[]) is None
    )
    assert named_failure(ValueError("of another kind"), FINE_TUNING, deaths=[death]) is None


def test_while_deaths_are_noted_none_is_raised_out_of_the_blue() -> None:
    with deaths_noted() as deaths:
        loader = iter(DataLoader(Worker(kill), num_workers=1, batch_size=4))
        end = time.monotonic() + 20
        while not deaths and time.monotonic() < end:
            time.sleep(0.01)  # torch's own handler would raise here
        error = raised(loader.__next__)
        del loader
        drop_frames(error)
    named = named_failure(error, FINE_TUNING, deaths=deaths)
    assert "SIGKILL" in str(named)


@pytest.mark.parametrize(
    "text",
    [
        "DataLoader worker (pid 41) is killed by signal: Bus error. It is possible that dataloader's workers are out "
        "of shared memory. Please try to raise your shared memory limit.",
        "unable to write to file </torch_41_1_0>: No space left on device (28)",
        "unable to open shared memory object </torch_41_1> in read-write mode: Too many open files (24)",
    ],
)
def test_full_shared_memory_is_told_from_full_memory(text: str) -> None:
    named = named_failure(RuntimeError(text), FINE_TUNING)
    assert isinstance(named, WorkerKilledError)
    assert "Shared memory is full" in str(named)
    assert "--shm-size" in str(named)
    assert not is_out_of_memory(RuntimeError(text))


def test_a_data_error_in_a_worker_keeps_its_message_and_type() -> None:
    error, named = failure_in_worker(refuse)
    assert "Traceback" in str(error)
    assert type(named) is DataError
    assert str(named) == "cell-3.png: cannot be read\n  (as the system says)"
    assert named_failure(DataError("of this process"), FINE_TUNING) is None


def test_lack_of_memory_in_a_worker_is_lack_of_memory() -> None:
    assert isinstance(failure_in_worker(exhaust)[1], NotEnoughMemoryError)


def test_halving_repeats_with_the_same_random_numbers_until_it_fits() -> None:
    told, seen = [], []

    def work(size: int) -> float:
        seen.append(torch.rand(()).item())
        if size > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return size

    torch.manual_seed(0)
    assert halving(work, 13, lambda old, new: told.append((old, new))) == 3
    assert told == [(13, 6), (6, 3)]
    assert seen[0] == seen[1] == seen[2]

    def never(size: int) -> int:
        raise MemoryError

    with pytest.raises(MemoryError):
        halving(never, 4, lambda old, new: None)
    with pytest.raises(ZeroDivisionError):
        halving(lambda size: 1 // 0, 4, lambda old, new: None)
