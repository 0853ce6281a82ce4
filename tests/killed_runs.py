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

import gc
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
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


def join(rank: int, processes: int, port: int) -> None:
    """As torchrun would start it."""
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip


def train(job: dict[str, Any]) -> None:
    """The recipe to its end; what was logged instead of the report, which is not at issue."""
    from cytodino_hf import finetune as module
    from cytodino_hf.recipe import load_recipe

    def note(folder: Path, predictions: Any, context: Any, **kwargs: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "training.json").write_text(json.dumps(context.training))

    module.write_report = note
    module.finetune(load_recipe(job["recipe"]))


def child(job: dict[str, Any], rank: int, port: int) -> None:
    from cytodino_hf.errors import CytoDinoError

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Tests started in the background ignore Ctrl+C, and their children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 0
    try:
        join(rank, job.get("processes", 1), port)
        if job.get("at"):
            add_event(job, rank)
        if job.get("operation") or job.get("trace"):
            Operations(job).watch()
        train(job)
    except CytoDinoError as error:
        sys.stderr.write(f"error: {error}\n")
        code = error.exit_code
    except BaseException:  # noqa: BLE001 (a forked child must never return into the loop of its parent)
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main() -> None:
    forked_runs.preload()
    gc.freeze()  # a child's first collection need not copy all of these pages
    for line in sys.stdin:
        job = json.loads(line)
        port = forked_runs.free_port()
        children = []
        for rank in range(job.get("processes", 1)):
            process = os.fork()
            if process == 0:
                child(job, rank, port)
            children.append(process)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
