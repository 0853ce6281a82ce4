"""Starts recipes in forked processes and stops them: at a step, at a file operation of a save, by a signal.

Reads one job a line (JSON) and answers each with the exit codes of its processes. A job:
    recipe      path of a recipe
    log         file that takes what the processes print
    processes   how many train together (1)
    at          callback's method and step at which `signals` arrive, such as ["on_step_end", 3]
    signals     numbers of the signals the first process sends to itself there
    limit_bytes from there on no file of the process may grow larger
    operation   number of the file operation on checkpoints before which the process kills itself (SIGKILL)
    trace       file that takes one line for each file operation on checkpoints
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any

import forked_runs

# Audit events of Python's own file operations; each is raised before the operation.
_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


class Operations:
    """Counts the file operations on checkpoints, notes each, and kills the process before a chosen one."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.count = 0
        self.fatal = job.get("operation")
        self.trace = open(job["trace"], "a") if job.get("trace") else None  # noqa: SIM115

    def watch(self) -> None:
        import safetensors.torch
        import torch

        sys.addaudithook(self.hear)
        # These two write without Python, where no event is raised: also stop in the middle of their file.
        torch.save = self.in_halves(torch.save, 1)
        safetensors.torch.save_file = self.in_halves(safetensors.torch.save_file, 1)

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if not writes and event not in _EVENTS:
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and (
            "checkpoint-" in str(path) or event in ("os.remove", "os.rmdir")
        ):
            self.note(event, f"{path} -> {arguments[1]}" if event == "os.rename" else str(path))

    def in_halves(self, save: Callable[..., Any], place: int) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **kwargs: Any) -> Any:
            path = str(arguments[place])
            if "checkpoint-" not in path:
                return save(*arguments, **kwargs)
            self.note("create", path)
            done = save(*arguments, **kwargs)
            if self.count + 1 == self.fatal:
                os.truncate(path, os.path.getsize(path) // 2)
            self.note("half", path)
            return done

        return wrapped

    def note(self, event: str, path: str) -> None:
        self.count += 1
        if self.trace:
            self.trace.write(f"{event} {path}\n")
            self.trace.flush()
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def add_event(job: dict[str, Any], rank: int) -> None:
    from transformers import TrainerCallback

    from cytodino_hf import finetune as module

    event, step = job["at"]
    build = module.build_trainer
    done: list[bool] = []

    class Fate(TrainerCallback):
        pass

    def strike(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step != step or done or rank != 0:
            return
        done.append(True)
        if "limit_bytes" in job:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit_bytes"], resource.RLIM_INFINITY))
        for number in job.get("signals", []):
            os.kill(os.getpid(), number)

    setattr(Fate, event, strike)

    def build_and_add(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        trainer.add_callback(Fate())
        return trainer

    module.build_trainer = build_and_add


def stopped(job: dict[str, Any], rank: int) -> None:
    """A recipe with whatever the job lets happen to it."""
    if job.get("at"):
        add_event(job, rank)
    if job.get("operation") or job.get("trace"):
        Operations(job).watch()
    forked_runs.run_recipe(job["recipe"])


if __name__ == "__main__":
    forked_runs.serve(stopped)
