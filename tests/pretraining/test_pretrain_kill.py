"""A pretraining that was killed and started again ends as one that was not, bit for bit; two processes end as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_runs import Helper
from safetensors.torch import load_file

HELPER = Path(__file__).parent / "pretrain_runs.py"
# 24 of 36 images train: 6 steps of 4 an epoch. Epochs, logs, saves and probes do not meet.
TRAINING: dict[str, Any] = {"max_steps": 10, "logging_steps": 3, "save_steps": 4}
_TIMES = ("seconds", "runtime", "per_second", "flos")


class Runs:
    """Starts pretrainings in the helper."""

    def __init__(self, folder: Path, images: Path, tiny: Callable[..., dict[str, Any]]) -> None:
        self.folder, self.images, self.tiny = folder, images, tiny
        self.helper = Helper(HELPER)
        self.count = 0

    def new(self, training: dict[str, Any], **changes: Any) -> Path:
        self.count += 1
        run = self.folder / f"run{self.count}"
        document = self.tiny(self.images, run, training=TRAINING | training, **changes)
        run.with_suffix(".json").write_text(json.dumps(document))
        return run

    def start(self, run: Path, processes: int = 1, stop: dict[str, Any] | None = None) -> None:
        log = run.with_suffix(".log")
        job = {"recipe": str(run.with_suffix(".json")), "log": str(log), "processes": processes, "stop": stop}
        assert self.helper.start(job) == [-9 if stop else 0] * processes, log.read_text()


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    make_images: Callable[..., Path],
    tiny_pretraining: Callable[..., dict[str, Any]],
) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("pretrain_kill")
    made = Runs(folder, make_images(folder / "images", per_class=12), tiny_pretraining)
    yield made
    made.helper.close()


def log_of(run: Path) -> list[dict[str, float]]:
    rows = json.loads((run / "backbone" / "pretraining.json").read_text())["training"]["log_history"]
    return [{k: v for k, v in row.items() if not any(word in k for word in _TIMES)} for row in rows]


def assert_same(run: Path, other: Path) -> None:
    """Student, teacher and centres after the last step, what was written, and the log, to the last bit."""
    for file in ("checkpoint-8/model.safetensors", "backbone/model.safetensors"):
        found, wanted = load_file(run / file), load_file(other / file)
        assert found.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert log_of(run) == log_of(other)


@pytest.mark.parametrize(
    ("processes", "training", "stops"),
    [
        (1, {}, [{"event": "on_step_end", "step": 2}, {"event": "on_step_end", "step": 7}]),
        (
            2,
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
            [{"event": "on_save", "step": 4}],
        ),
    ],
    ids=["one", "two"],
)
def test_killed_equals_uninterrupted(
    runs: Runs, processes: int, training: dict[str, Any], stops: list[dict[str, Any]]
) -> None:
    whole, cut = runs.new(training), runs.new(training)
    runs.start(whole, processes)
    for stop in stops:
        runs.start(cut, processes, stop)
    runs.start(cut, processes)
    assert_same(cut, whole)


def test_two_processes_train_as_one(runs: Runs) -> None:
    """The same draws, views and masks. Sums go in another order, and Adam makes much of the rounding of a gradient near
    zero, so weights are compared by the length of their difference. What each process draws for itself is off."""
    still: dict[str, Any] = {
        "objective": {"drop_path": 0.0, "out_dim": 32},
        "model": {"position_jitter": False},
    }
    one = runs.new({"per_device_train_batch_size": 4}, **still)
    two = runs.new({"per_device_train_batch_size": 2}, **still)
    runs.start(one)
    runs.start(two, 2)
    found, wanted = (load_file(run / "checkpoint-8/model.safetensors") for run in (two, one))
    for part in ("student", "teacher", "cls_targets", "patch_targets"):
        names = [name for name in wanted if name.startswith(f"{part}.")]
        ours, theirs = (torch.cat([kept[name].flatten() for name in names]) for kept in (found, wanted))
        assert (ours - theirs).norm() <= 1e-4 * theirs.norm(), part
    keys = {"loss", "loss_cls", "loss_patch", "grad_norm", "teacher_entropy", "information"}
    for row, other in zip(log_of(two), log_of(one), strict=True):
        for key in keys & set(other):
            assert row[key] == pytest.approx(other[key], rel=1e-4), key
