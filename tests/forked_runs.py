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

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any


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


def train(job: dict[str, Any], rank: int) -> None:
    from cytodino_hf import finetune as module
    from cytodino_hf.recipe import load_recipe

    build = module.build_trainer
    batches: list[Any] = []

    def build_and_cut(*args: Any, **kwargs: Any) -> Any:
        trainer = build(*args, **kwargs)
        if job.get("stop"):
            trainer.add_callback(dies_at(**job["stop"]))
        if job.get("batches"):
            noting(trainer, batches)
        return trainer

    def note(folder: Path, predictions: Any, context: Any, **kwargs: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "training.json").write_text(json.dumps(context.training))

    module.build_trainer = build_and_cut
    module.write_report = note
    module.finetune(load_recipe(job["recipe"]))
    if job.get("batches"):
        (Path(job["batches"]) / f"{rank}.json").write_text(json.dumps(batches))


def child(job: dict[str, Any], rank: int, port: int) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if job["processes"] > 1:
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(job["processes"]),
            "LOCAL_WORLD_SIZE": str(job["processes"]), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
    code = 0
    try:
        train(job, rank)
    except BaseException:  # noqa: BLE001 (the forked process must end here)
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    preload()
    for line in sys.stdin:
        job = json.loads(line)
        port = free_port()
        children = []
        for rank in range(job["processes"]):
            process = os.fork()
            if process == 0:
                child(job, rank, port)
            children.append(process)
        codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
