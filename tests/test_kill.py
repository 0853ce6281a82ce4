"""A run stopped in every way goes on by the same command and ends with the very same weights.

Runs are real processes (see killed_runs.py). What is on the disk after a kill is checked before anything repairs it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_runs import Helper, log_of

from cytodino_hf.errors import RunFolderError
from cytodino_hf.run_folder import RunFolder
from cytodino_hf.training.seals import best_step, verify

HELPER = Path(__file__).parent / "killed_runs.py"
ADAPTER = "adapter/adapter_model.safetensors"
# 24 images in batches of 4: 6 steps an epoch. Steps of log, save and epoch do not meet; the best step is no late one.
STEPS: dict[str, Any] = {
    "max_steps": 10, "logging_steps": 3, "eval_steps": 4, "save_steps": 4, "learning_rate": 0.02, "warmup_steps": 0,
    "lr_scheduler_type": "constant", "metric_for_best_model": "loss", "report_to": "none",
}  # fmt: skip
EPOCHS = STEPS | {
    "max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch", "save_strategy": "epoch",
    "eval_steps": None, "save_steps": 500,
}  # fmt: skip
PATIENCE = STEPS | {"max_steps": 60, "early_stopping_patience": 2, "eval_steps": 2, "learning_rate": 0.3}
KINDS = {"steps": STEPS, "epochs": EPOCHS, "patience": PATIENCE}


class Runs:
    """Starts runs in the helper and keeps what the undisturbed ones came to."""

    def __init__(self, folder: Path, images: Path, tiny_recipe: Callable[..., dict[str, Any]]) -> None:
        self.folder, self.images, self.tiny_recipe = folder, images, tiny_recipe
        self.count = 0
        self.whole: dict[str, tuple[str, list[Any]]] = {}
        self.helper = Helper(HELPER)

    def new(self, **training: Any) -> Path:
        """A RUN folder that does not exist yet, with its recipe beside it."""
        self.count += 1
        run = self.folder / f"run{self.count}"
        changes = {"model": {"lora_dropout": 0.2}, "training": training, "data": {"augmentation": "default"}}
        run.with_suffix(".json").write_text(json.dumps(self.tiny_recipe(self.images, run, **changes)))
        return run

    def start(self, run: Path, **job: Any) -> list[int]:
        """Exit codes of the processes of a start (a second one of the same RUN continues it)."""
        job |= {"recipe": str(run.with_suffix(".json")), "log": str(run.with_suffix(".log"))}
        return self.helper.start(job)

    def undisturbed(self, processes: int = 1, **training: Any) -> tuple[str, list[Any]]:
        name = json.dumps([processes, training], sort_keys=True)
        if name not in self.whole:
            run = self.new(**training)
            assert self.start(run, processes=processes) == [0] * processes, self.log(run)
            self.whole[name] = outcome(run)
        return self.whole[name]

    def log(self, run: Path) -> str:
        return run.with_suffix(".log").read_text(errors="replace")


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    make_images: Callable[..., Path],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("kill")
    made = Runs(folder, make_images(folder / "images", per_class=12), tiny_recipe)
    yield made
    made.helper.close()


def outcome(run: Path) -> tuple[str, list[Any]]:
    """sha256 of the final weights, and the log."""
    return hashlib.sha256((run / ADAPTER).read_bytes()).hexdigest(), log_of(run)


def sealed(run: Path) -> dict[int, bool]:
    """Step -> whether it verifies together with its best one, of everything that bears a checkpoint's name."""
    folders = {p.name: p for p in run.glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit()}
    good = {}
    for name, folder in folders.items():
        assert verify(folder) is None, f"{folder}: a kill must leave no broken checkpoint under its name"
        best = best_step(folder)
        good[int(name.removeprefix("checkpoint-"))] = (
            best is None or verify(run / f"checkpoint-{best}") is None
        )
    return good


def leftovers(run: Path) -> list[str]:
    return [
        p.name for p in run.iterdir() if p.name.endswith((".partial", ".deleted")) or p.name == "set-aside"
    ]


@pytest.mark.parametrize(
    ("kind", "at", "number"),
    [
        ("steps", ("on_step_end", 1), signal.SIGTERM),  # before the first regular save
        ("steps", ("on_step_begin", 4), signal.SIGTERM),  # between a regular save and the next step
        ("steps", ("on_step_end", 6), signal.SIGINT),  # the last step of an epoch
        ("steps", ("on_step_end", 10), signal.SIGTERM),  # the last step of all
        ("epochs", ("on_step_end", 3), signal.SIGTERM),
        ("epochs", ("on_step_end", 6), signal.SIGTERM),  # its epoch's evaluation is still to come
        ("epochs", ("on_prediction_step", 6), signal.SIGINT),  # within an evaluation
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_a_signal_saves_and_the_same_command_ends_with_the_same_weights(
    runs: Runs, kind: str, at: tuple[str, int], number: signal.Signals
) -> None:
    run = runs.new(**KINDS[kind])
    assert runs.start(run, at=at, signals=[number]) == [128 + number], runs.log(run)
    step = max(sealed(run))
    assert f"stopped by {number.name} after step {step}; checkpoint-{step}" in runs.log(run)
    assert step == (5 if at[0] == "on_step_begin" else at[1])
    assert not (run / "adapter").exists()
    assert runs.start(run) == [0], runs.log(run)
    assert outcome(run) == runs.undisturbed(**KINDS[kind])
    assert leftovers(run) == []


def test_early_stopping_remembers_how_long_it_has_waited(runs: Runs) -> None:
    last = runs.undisturbed(**PATIENCE)[1][-1]["step"]
    assert last < 60
    run = runs.new(**PATIENCE)
    stopped = runs.start(run, at=("on_step_end", last - 1), signals=[signal.SIGTERM])
    assert stopped == [143], runs.log(run)
    assert runs.start(run) == [0], runs.log(run)
    assert outcome(run) == runs.undisturbed(**PATIENCE)


def test_stopped_again_and_again_the_run_still_ends_the_same(runs: Runs) -> None:
    run = runs.new(**STEPS)
    for step in range(1, 10, 2):
        assert runs.start(run, at=("on_step_end", step), signals=[signal.SIGTERM]) == [143], runs.log(run)
        assert max(sealed(run)) == step
    assert runs.start(run) == [0], runs.log(run)
    assert outcome(run) == runs.undisturbed(**STEPS)


def test_repeated_sigterm_is_one_and_a_second_interrupt_is_at_once(runs: Runs) -> None:
    run = runs.new(**STEPS)
    assert runs.start(run, at=("on_step_begin", 2), signals=[signal.SIGTERM, signal.SIGTERM]) == [143]
    assert runs.start(run, at=("on_step_begin", 4), signals=[signal.SIGINT, signal.SIGINT]) == [1]
    assert "KeyboardInterrupt" in runs.log(run)
    assert runs.start(run) == [0], runs.log(run)
    assert outcome(run) == runs.undisturbed(**STEPS)


def test_one_of_two_processes_is_signalled_and_both_stop_at_the_same_step(runs: Runs) -> None:
    run = runs.new(**STEPS | {"per_device_train_batch_size": 2})
    stopped = runs.start(run, processes=2, at=("on_step_end", 2), signals=[signal.SIGTERM])
    assert stopped == [143, 143], runs.log(run)
    assert list(sealed(run)) == [3]  # the question travels while one more step is computed
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {p.name for p in (run / "checkpoint-3").iterdir()}
    alone = runs.start(run)
    assert alone == [1]
    assert "was written by 2 processes, and 1 were started" in runs.log(run)
    assert runs.start(run, processes=2) == [0, 0], runs.log(run)
    assert outcome(run) == runs.undisturbed(2, **STEPS | {"per_device_train_batch_size": 2})


@pytest.mark.parametrize("limit_bytes", [20_000, 100_000], ids=["weights", "optimizer"])
def test_a_write_that_fails_stops_with_its_reason_and_leaves_the_older_checkpoint(
    runs: Runs, limit_bytes: int
) -> None:
    """The limit on the size of files cuts the tensors of the second save (73 kB of weights, 172 kB of moments)."""
    run = runs.new(**STEPS)
    assert runs.start(run, at=("on_step_end", 7), limit_bytes=limit_bytes) == [1]
    log = runs.log(run)
    assert "checkpoint-8 could not be written" in log
    assert "The checkpoint after step 4 is untouched." in log
    assert "Traceback" not in log
    assert sealed(run) == {4: True}
    assert leftovers(run) == []
    assert runs.start(run) == [0], runs.log(run)
    assert outcome(run) == runs.undisturbed(**STEPS)


def test_killed_after_its_last_save_a_run_trains_no_further_step(runs: Runs) -> None:
    for kind in ("steps", "patience"):
        run = runs.new(**KINDS[kind])
        end = runs.undisturbed(**KINDS[kind])[1][-1]["step"]
        assert runs.start(run, at=("on_train_end", end), signals=[signal.SIGKILL]) == [-9], runs.log(run)
        assert runs.start(run) == [0], runs.log(run)
        assert outcome(run) == runs.undisturbed(**KINDS[kind])


@pytest.mark.parametrize("step", [2, 7])
def test_killed_at_a_step(runs: Runs, step: int) -> None:
    check_kill_at_a_step(runs, step, STEPS)


@pytest.mark.slow
def test_killed_at_twenty_random_steps(runs: Runs) -> None:
    draw = random.Random(0)
    for number in range(20):
        kind = STEPS | {"dataloader_num_workers": 2 * (number % 2), "save_total_limit": 1 + number % 3}
        check_kill_at_a_step(runs, draw.randint(1, 10), kind)


def check_kill_at_a_step(runs: Runs, step: int, kind: dict[str, Any]) -> None:
    run = runs.new(**kind)
    assert runs.start(run, at=("on_step_end", step), signals=[signal.SIGKILL]) == [-9], runs.log(run)
    good = sealed(run)
    assert max(good, default=0) == max((saved for saved in (4, 8) if saved < step), default=0)
    assert not good or good[max(good)], "the newest checkpoint's best one must be on the disk"
    assert runs.start(run) == [0], runs.log(run)
    assert outcome(run) == runs.undisturbed(**kind)


def traced(runs: Runs, limit: int) -> list[str]:
    run = runs.new(**every_other_step(limit))
    trace = run.with_suffix(".trace")
    assert runs.start(run, trace=str(trace)) == [0], runs.log(run)
    return trace.read_text().splitlines()


def every_other_step(limit: int) -> dict[str, Any]:
    return STEPS | {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "save_total_limit": limit}


def check_kill_at_an_operation(runs: Runs, operations: list[str], number: int, limit: int) -> None:
    """Killed before the operation (or in the middle of a file): enough is on the disk, and the run ends the same."""
    run = runs.new(**every_other_step(limit))
    assert runs.start(run, operation=number) == [-9], runs.log(run)
    was_sealed = any(op.startswith("os.rename") and op.endswith(("-2", "-4", "-6")) for op in operations)
    good = sealed(run)
    if was_sealed:
        assert good
        assert good[max(good)], "the newest checkpoint's best one must be on the disk"
    assert runs.start(run) == [0], runs.log(run)
    assert leftovers(run) == []
    assert outcome(run) == runs.undisturbed(**every_other_step(limit))


def test_killed_while_sealing_and_while_rotating(runs: Runs) -> None:
    """A few points of the slow test below: the last of a save, the first of a deletion."""
    operations = traced(runs, 1)
    numbered = list(enumerate(operations, start=1))
    sealing = next(n for n, op in numbered if op.startswith("os.rename") and op.endswith("checkpoint-4"))
    deleting = next(n for n, op in numbered if op.startswith("os.rename") and op.endswith(".deleted"))
    for number in (sealing, deleting + 1, deleting + 4):
        check_kill_at_an_operation(runs, operations[: number - 1], number, 1)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 2])
def test_killed_at_every_file_operation_of_every_save(runs: Runs, limit: int) -> None:
    operations = traced(runs, limit)
    assert sum("manifest.json" in op and op.startswith("os.rename") for op in operations) == 3
    assert any(".deleted" in op for op in operations)
    for number in range(1, len(operations) + 1):
        check_kill_at_an_operation(runs, operations[: number - 1], number, limit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "code"),
    [
        ((sys.executable,), 143),
        (("accelerate", "launch"), -signal.SIGTERM),  # dies at once; the training learns of it
        (("torchrun", "--standalone", "--nproc-per-node", "2"), 1),  # passes it on and waits
    ],
    ids=["python", "accelerate", "torchrun"],
)
def test_the_launcher_alone_gets_a_sigterm(runs: Runs, launcher: tuple[str, ...], code: int) -> None:
    """As a scheduler sends it: to the process it started. No training is left behind, and the last step is sealed."""
    run = runs.new(**STEPS | {"max_steps": 4000, "eval_steps": 50, "save_steps": 50})
    program = (
        str(Path(sys.executable).with_name(launcher[0])) if launcher[0] != sys.executable else launcher[0]
    )
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with open(run.with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            [program, *launcher[1:], "run_finetune.py", str(run.with_suffix(".json"))],
            cwd=HELPER.parent.parent, env=environment, stdout=log, stderr=log,
        )  # fmt: skip
    wait_until(lambda: (run / "checkpoint-50").is_dir() or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == code, runs.log(run)
    wait_until(lambda: is_free(run))
    newest = max(sealed(run))
    assert f"stopped by SIGTERM after step {newest}" in runs.log(run)
    assert leftovers(run) == []


def is_free(run: Path) -> bool:
    try:
        with RunFolder(run) as folder:
            folder.hold()
    except RunFolderError:
        return False
    return True


def wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
