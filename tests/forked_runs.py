"""Runs recipes in processes forked from one that has imported everything: real processes, without their slow start.

Reads one job a line (JSON) and answers each with a line: exit codes of its processes. A job:
    recipe     path of a recipe
    processes  how many train together
    stop       null, or {"event": a callback's method, "step": N}: every process kills itself there, as a machine
               that loses power would; with "rank": R only that one
    log        file that takes what the processes print
    batches    null, or a folder: each process writes `<rank>.json`, of every micro-batch [rows of the images, divisor
               of the loss, fingerprint of torch's random state before it]
A run that comes to its end writes `training.json` (steps and log) instead of the report, which is not at issue.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Of a row of the log: how long it took says nothing of what was computed.
_TIMES = ("runtime", "per_second", "flos")


class Helper:
    """The test's end: a process of a script like this one, which takes jobs.

    Args:
        script: The script; ends in `serve`.
    """

    def __init__(self, script: Path) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent.parent)}
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs, self._answers = self._process.stdin, self._process.stdout

    def start(self, job: dict[str, Any]) -> list[int]:
        """Do one job; exit codes of its processes."""
        self._jobs.write(json.dumps(job) + "\n")
        self._jobs.flush()
        return list(json.loads(self._answers.readline()))

    def close(self) -> None:
        self._jobs.close()
        assert self._process.wait(timeout=30) == 0


def log_of(run: Path) -> list[dict[str, float]]:
    """What a run logged, without what tells of time."""
    rows = json.loads((run / "report" / "training.json").read_text())["log_history"]
    return [{k: v for k, v in row.items() if not any(word in k for word in _TIMES)} for row in rows]


def preload() -> None:
    import albumentations  # noqa: F401
    import peft.tuners.lora  # noqa: F401
    import transformers.trainer  # noqa: F401

    import cytodino_hf.finetune  # noqa: F401
    from cytodino_hf.evaluation.metrics import load_cell_metrics

    load_cell_metrics()


def dies_at(event: str, step: int, rank: int | None = None) -> Any:
    from transformers import TrainerCallback

    class Power(TrainerCallback):
        pass

    def cut(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == step and rank in (None, args.process_index):
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(Power, event, cut)
    return Power()


def noting(trainer: Any, batches: list[Any]) -> None:
    """Let a trainer write down what it trains on."""
    import hashlib

    import torch

    step = trainer.training_step

    def training_step(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        state = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()
        batches.append([inputs["rows"].tolist(), inputs["loss_divisor"], state])
        return step(model, inputs, *args, **kwargs)

    trainer.training_step = training_step


def run_recipe(path: str) -> None:
    """A recipe to its end; what was logged instead of the report, which is not at issue."""
    from cytodino_hf import finetune as module
    from cytodino_hf.recipe import load_recipe

    def note(recipe: Any, split: Any, run: Any, predictions: Any, context: Any) -> None:
        run.report.mkdir(exist_ok=True)
        (run.report / "training.json").write_text(json.dumps(context.training))

    module.report_run = note
    module.finetune(load_recipe(path))


def train(job: dict[str, Any], rank: int) -> None:
    from cytodino_hf import finetune as module

    build = module.build_trainer
    batches: list[Any] = []

    def build_and_cut(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        if job.get("stop"):
            trainer.add_callback(dies_at(**job["stop"]))
        if job.get("batches"):
            noting(trainer, batches)
        return trainer

    module.build_trainer = build_and_cut
    run_recipe(job["recipe"])
    if job.get("batches"):
        (Path(job["batches"]) / f"{rank}.json").write_text(json.dumps(batches))


def join(rank: int, processes: int, port: int) -> None:
    """As torchrun would start it."""
    if processes > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def child(work: Callable[[dict[str, Any], int], None], job: dict[str, Any], rank: int, port: int) -> None:
    """One process of a job; never returns into the loop of its parent."""
    from cytodino_hf.errors import CytoDinoError

    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Tests started in the background ignore Ctrl+C, and their children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 0
    try:
        join(rank, job.get("processes", 1), port)
        os.environ.update(job.get("environment", {}))
        work(job, rank)
    except CytoDinoError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = error.exit_code
    except BaseException:  # noqa: BLE001 (the forked process must end here)
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(work: Callable[[dict[str, Any], int], None]) -> None:
    """Take jobs until there is no more; `work(job, rank)` is done by each process of a job."""
    preload()
    gc.freeze()  # a child's first collection need not copy all of these pages
    for line in sys.stdin:
        job = json.loads(line)
        port = free_port()
        children = []
        for rank in range(job.get("processes", 1)):
            process = os.fork()
            if process == 0:
                child(work, job, rank, port)
            children.append(process)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(train)
