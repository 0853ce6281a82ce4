"""Sealed checkpoints: every kind of damage is seen, and what is chosen is the newest good one."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cytodino_hf import checkpoints as module
from cytodino_hf.checkpoints import Checkpoints
from cytodino_hf.errors import CheckpointError, FullDiskError, RunFolderError
from cytodino_hf.recipe import parse_recipe
from cytodino_hf.run_folder import RunFolder
from cytodino_hf.training.seals import FORMAT, MANIFEST, verify, write_manifest

FILES = (
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "progress_0.json",
    "trainer_state.json",
)


def write(run: Path, step: int, best: int | None = None) -> Path:
    """A checkpoint with the usual files, of bytes that differ from step to step."""
    checkpoints = Checkpoints(run)
    checkpoints.begin(step, 0)
    with checkpoints.guarded(step) as folder:
        for number, name in enumerate(FILES[:-1]):
            (folder / name).write_bytes(bytes((7 * i + number + step) % 256 for i in range(400)))
        (folder / "trainer_state.json").write_text(
            json.dumps({"global_step": step, "best_global_step": best})
        )
        return checkpoints.seal(step)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of three steps; the best one is the first."""
    folder = tmp_path / "run"
    for step in (2, 4, 6):
        write(folder, step, best=2)
    return folder


def edit_manifest(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(document | changes))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap_with_the_older(folder: Path) -> None:
    older = folder.with_name("checkpoint-4")
    mine, other = (folder / "optimizer.pt").read_bytes(), (older / "optimizer.pt").read_bytes()
    (folder / "optimizer.pt").write_bytes(other)
    assert len(mine) == len(other)


def become(folder: Path, kind: str) -> None:
    kept = folder.with_name("elsewhere")
    folder.rename(kept)
    if kind == "file":
        folder.write_text("checkpoint")
    elif kind == "link":
        folder.symlink_to(kept)
    else:  # the older one under the newer one's name
        shutil.copytree(folder.with_name("checkpoint-4"), folder)


def link_to_a_copy(folder: Path) -> None:
    copy = folder.parent / "copy"
    shutil.copy(folder / "rng_state.pth", copy)
    (folder / "rng_state.pth").unlink()
    (folder / "rng_state.pth").symlink_to(copy)


def flip_a_hash(folder: Path) -> None:
    files = json.loads((folder / MANIFEST).read_text())["files"]
    files["optimizer.pt"]["sha256"] = "0" * 64
    edit_manifest(folder, files=files)


# What is done to the newest checkpoint -> what the message must say.
DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    **{
        f"{name} truncated": (lambda f, n=name: os.truncate(f / n, 20), f"{name} has 20 bytes")
        for name in FILES
    },
    **{f"{name} emptied": (lambda f, n=name: os.truncate(f / n, 0), f"{name} has 0 bytes") for name in FILES},
    **{f"{name} deleted": (lambda f, n=name: (f / n).unlink(), f"{name} is missing") for name in FILES},
    **{f"{name} flipped": (lambda f, n=name: flip_a_bit(f / n), f"{name} was changed") for name in FILES},
    "manifest missing": (lambda f: (f / MANIFEST).unlink(), "never sealed"),
    "manifest truncated": (lambda f: os.truncate(f / MANIFEST, 100), "unreadable"),
    "manifest emptied": (lambda f: os.truncate(f / MANIFEST, 0), "unreadable"),
    "manifest no object": (lambda f: (f / MANIFEST).write_text("[1]"), "unreadable"),
    "manifest of another hash": (flip_a_hash, "manifest.json was changed"),
    "manifest of another step": (lambda f: edit_manifest(f, step=8), "manifest.json was changed"),
    "manifest foreign": (
        lambda f: edit_manifest(f, format="safetensors-index"),
        f"not of the format {FORMAT}",
    ),
    "file added": (lambda f: (f / "training_args.bin").write_bytes(b"x"), "training_args.bin was added"),
    "file in a new folder": (lambda f: write(f / "deep", 1), "was added"),
    "file of another checkpoint": (swap_with_the_older, "optimizer.pt was changed"),
    "file is a link": (link_to_a_copy, "rng_state.pth is no plain file"),
    "folder is a file": (lambda f: become(f, "file"), "is no folder"),
    "folder is a link": (lambda f: become(f, "link"), "is no folder"),
    "folder of another step": (lambda f: become(f, "copy"), "sealed as the checkpoint after step 4"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_checkpoint_is_used_and_the_reason_is_told(run: Path, damage: str) -> None:
    inflict, reason = DAMAGES[damage]
    inflict(run / "checkpoint-6")
    choice = Checkpoints(run).choose()
    assert choice.folder == run / "checkpoint-4"
    assert [(entry.name, entry.moved_to) for entry in choice.set_aside] == [
        ("checkpoint-6", "set-aside/checkpoint-6")
    ]
    assert reason in choice.set_aside[0].reason
    assert not os.path.lexists(run / "checkpoint-6")
    assert os.path.lexists(run / "set-aside" / "checkpoint-6")


def test_undamaged_the_newest_is_chosen_and_nothing_is_touched(run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    choice = Checkpoints(run).choose()
    assert (choice.folder, choice.set_aside) == (run / "checkpoint-6", ())
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    assert Checkpoints(run / "nothing here").choose().folder is None


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_checkpoint_without_its_best_one_is_not_gone_on_from(run: Path, how: str) -> None:
    """6 needs the best of step 2; 3 has its own. Going on from 6 would end without the best model."""
    write(run, 3, best=3)
    if how == "gone":
        shutil.rmtree(run / "checkpoint-2")
    else:
        flip_a_bit(run / "checkpoint-2" / "model.safetensors")
    choice = Checkpoints(run).choose()
    assert choice.folder == run / "checkpoint-3"
    reasons = {entry.name: entry.reason for entry in choice.set_aside}
    problem = "is missing" if how == "gone" else "model.safetensors was changed (sha256)"
    assert (
        reasons["checkpoint-6"] == reasons["checkpoint-4"] == f"its best checkpoint, checkpoint-2: {problem}"
    )
    assert set(reasons) == {"checkpoint-4", "checkpoint-6"} | (
        {"checkpoint-2"} if how == "damaged" else set()
    )


def test_when_none_can_be_trusted_the_run_starts_anew(run: Path) -> None:
    for step in (2, 4, 6):
        flip_a_bit(run / f"checkpoint-{step}" / "optimizer.pt")
    choice = Checkpoints(run).choose()
    assert choice.folder is None
    assert len(choice.set_aside) == 3
    assert Checkpoints(run).steps() == []


def test_set_aside_keeps_the_newest_few(run: Path) -> None:
    for _ in range(5):
        write(run, 8)
        flip_a_bit(run / "checkpoint-8" / "optimizer.pt")
        assert Checkpoints(run).choose().folder == run / "checkpoint-6"
    kept = sorted((run / "set-aside").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert len(kept) == module._KEPT_ASIDE
    assert all((folder / MANIFEST).is_file() for folder in kept)


def test_leftovers_of_a_kill_go_and_other_names_stay(run: Path) -> None:
    for name in (
        "checkpoint-8.partial",
        "checkpoint-1.deleted",
        "checkpoint-best",
        "checkpoint-08",
        "my.partial",
    ):
        (run / name).mkdir()
        (run / name / "file").write_text("")
    assert Checkpoints(run).choose().folder == run / "checkpoint-6"
    left = {p.name for p in run.iterdir()} - {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert left == {"checkpoint-best", "checkpoint-08", "my.partial"}


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [(1, 2, [2, 10]), (1, 10, [10]), (2, 4, [4, 8, 10]), (3, None, [6, 8, 10]), (9, 2, [2, 4, 6, 8, 10])],
)
def test_rotation_keeps_the_newest_and_the_best(
    tmp_path: Path, limit: int, best: int | None, kept: list[int]
) -> None:
    for step in (2, 4, 6, 8, 10):
        write(tmp_path, step)
    checkpoints = Checkpoints(tmp_path, limit)
    checkpoints.rotate(best)
    assert checkpoints.steps() == kept
    assert {p.name for p in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in kept}


def test_a_checkpoint_that_cannot_be_deleted_stops_nothing(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        Checkpoints(run, 1).rotate(2)
    assert "could not be deleted" in caplog.text
    assert Checkpoints(run).steps() == [2, 6]  # out of the way all the same


def test_a_seal_at_a_step_that_has_one_replaces_it(run: Path) -> None:
    (run / "checkpoint-6" / "stray").write_text("")
    write(run, 6, best=2)
    assert verify(run / "checkpoint-6") is None


def test_too_little_space_is_said_before_anything_is_written(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(run)._replace(free=100 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    Checkpoints(run).begin(8, 70 * 2**20)
    assert (run / "checkpoint-8.partial").is_dir()
    before = sorted(run.rglob("*"))
    with pytest.raises(
        FullDiskError,
        match=r"step 8 needs 121 MiB and the disk has 100 MiB left\. The checkpoint after step 6",
    ):
        Checkpoints(run).begin(8, 100 * 2**20)
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    ],
    ids=["full", "quota", "torch"],
)
def test_a_failed_write_leaves_no_part_and_says_so(run: Path, error: Exception) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.begin(8, 0)
    with pytest.raises(FullDiskError, match="checkpoint-8 could not be written") as caught:
        write_half(checkpoints, error)
    assert caught.value.__cause__ is error
    assert {p.name for p in run.iterdir()} == {"checkpoint-2", "checkpoint-4", "checkpoint-6"}
    assert checkpoints.choose().folder == run / "checkpoint-6"


def write_half(checkpoints: Checkpoints, error: Exception) -> None:
    with checkpoints.guarded(8) as folder:
        (folder / "model.safetensors").write_bytes(b"half")
        raise error


def test_an_error_that_is_not_the_disks_keeps_its_name(run: Path) -> None:
    checkpoints = Checkpoints(run)
    checkpoints.begin(8, 0)
    with pytest.raises(torch.OutOfMemoryError), checkpoints.guarded(8):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert not (run / "checkpoint-8.partial").exists()


def test_the_manifest_is_the_last_file_and_holds_sizes_and_sums(tmp_path: Path) -> None:
    """Sums worked out by the command of the system."""
    folder = write(tmp_path, 12)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["format"], manifest["step"], manifest["processes"]) == (FORMAT, 12, 1)
    assert sorted(manifest["files"]) == sorted(FILES)
    listed = subprocess.run(
        ["sha256sum", *FILES], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    sums = {line.split()[1]: line.split()[0] for line in listed.splitlines()}
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == sums
    assert manifest["files"]["optimizer.pt"]["bytes"] == 400


# --- the lock --------------------------------------------------------------------------------------------------------
HOLD = (
    "import sys, time; from cytodino_hf.run_folder import RunFolder; r = RunFolder(sys.argv[1]); r.hold(); "
)


def holding(run: Path, then: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD + then, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "held"
    return process


def test_a_second_start_is_refused_until_the_first_process_is_gone(tmp_path: Path) -> None:
    """A child that the first process forked, as data workers are, outlives it and holds nothing."""
    fork = "import os; c = os.fork(); c and print('held', flush=True); time.sleep(600 if c else 20)"
    first = holding(tmp_path, fork)
    try:
        with pytest.raises(RunFolderError, match=rf"is in use: process {first.pid} trains in it.*output_dir"):
            RunFolder(tmp_path).hold()
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    with RunFolder(tmp_path) as run:
        run.hold()
        assert (tmp_path / "run.lock").read_text().strip() == str(os.getpid())
        with pytest.raises(RunFolderError, match=f"process {os.getpid()} trains"):
            RunFolder(tmp_path).hold()
    RunFolder(tmp_path).hold()


def test_a_file_system_without_locks_only_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refuse(file: Any, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), RunFolder(tmp_path) as run:
        run.hold()
    assert "keeps no locks" in caplog.text


# --- real runs, in this process --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=10)


class Stopped(Exception):  # noqa: N818
    pass


@pytest.fixture
def half_run(images: Path, tmp_path: Path, tiny_recipe: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Train until the checkpoint of a step is sealed, or to the end; without the report."""
    from transformers import TrainerCallback

    from cytodino_hf import finetune as pipeline

    def start(
        stop_after: int | None = None, act: Callable[[Any], Any] | None = None, **training: Any
    ) -> RunFolder:
        class Stop(TrainerCallback):
            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == stop_after:
                    raise Stopped

            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if act is not None:
                    act(state)

        build = pipeline.build_trainer

        def build_and_stop(*args: Any, **kwargs: Any) -> Any:
            trainer = build(*args, **kwargs)
            trainer.add_callback(Stop())
            return trainer

        document = tiny_recipe(images, tmp_path / "run", training={"report_to": "none"} | training)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "build_trainer", build_and_stop)
            patch.setattr(pipeline, "report_run", lambda *args: None)
            return pipeline.finetune(parse_recipe(document, source="test"))

    return start


def test_a_checkpoint_holds_no_token_and_no_pickle_of_the_arguments(
    half_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canaryCanaryCanary")
    with pytest.raises(Stopped):
        half_run(stop_after=2)
    folder = tmp_path / "run" / "checkpoint-2"
    assert {p.name for p in folder.iterdir()} == {*FILES, MANIFEST}
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert b"hf_canary" not in content
    assert str(tmp_path).encode() not in b"".join(p.read_bytes() for p in folder.iterdir())


def test_a_run_that_was_moved_keeps_its_best_model(
    half_run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = {"learning_rate": 0.3, "metric_for_best_model": "loss", "warmup_steps": 0, "max_steps": 8}
    with pytest.raises(Stopped):
        half_run(stop_after=6, **options)
    (tmp_path / "run").rename(tmp_path / "moved")
    states: list[Any] = []
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        run = half_run(act=states.append, output_dir="moved", **options)
    best = states[0].best_global_step
    assert best in (2, 4)  # of an early step, so that it was read from the moved folder
    assert states[0].best_model_checkpoint == f"moved/checkpoint-{best}"
    assert "does not exist anymore" not in caplog.text
    assert run.is_finished()


def test_the_best_model_is_saved_also_where_evaluations_are_more_frequent(
    half_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cytodino_hf.trainer import CytoTrainer

    losses = dict(zip(range(1, 9), (5.0, 4.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0), strict=True))

    def evaluate(self: CytoTrainer, *args: Any, **kwargs: Any) -> dict[str, float]:
        return {"eval_loss": losses[self.state.global_step]}

    monkeypatch.setattr(CytoTrainer, "evaluate", evaluate)
    states: list[Any] = []
    half_run(
        act=states.append,
        eval_steps=1,
        save_steps=4,
        max_steps=8,
        metric_for_best_model="loss",
        save_total_limit=1,
    )
    assert states[0].best_global_step == 3
    assert states[0].best_model_checkpoint == str(tmp_path / "run" / "checkpoint-3")
    assert {p.name for p in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-8"}


def test_the_best_checkpoint_is_verified_right_before_it_is_read(
    half_run: Callable[..., Any], tmp_path: Path
) -> None:
    def damage(state: Any) -> None:
        flip_a_bit(tmp_path / "run" / "checkpoint-2" / "model.safetensors")

    options = {"learning_rate": 0.3, "metric_for_best_model": "loss", "warmup_steps": 0}
    with pytest.raises(Stopped):
        half_run(stop_after=2, **options)
    with pytest.raises(
        CheckpointError, match=r"checkpoint-2: model.safetensors was changed.*same command again"
    ):
        half_run(act=damage, **options | {"learning_rate": 0.3})
    run = half_run(**options)
    assert run.is_finished()
    assert "checkpoint-2" in {entry["name"] for entry in run.set_aside()}


class Evil:
    """A pickle that leaves a trace when it is read as Python would."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        ("unsealed", "optimizer.pt"),
        ("changed", "rng_state.pth"),
        ("sealed again", "rng_state.pth"),
        ("sealed again", "optimizer.pt"),
        ("sealed again", "scheduler.pt"),
    ],
)
def test_no_planted_pickle_is_run(
    half_run: Callable[..., Any], tmp_path: Path, planted: str, name: str
) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(Stopped):
        half_run(stop_after=2)
    folder = tmp_path / "run" / "checkpoint-2"
    if planted == "unsealed":
        folder = shutil.copytree(folder, folder.with_name("checkpoint-3"))
        (folder / MANIFEST).unlink()
    torch.save(Evil(canary), folder / name)
    if planted == "sealed again":  # a manifest is no signature: torch's own refusal is the second wall
        write_manifest(folder, 2)
        with pytest.raises(CheckpointError, match="Nothing of it was run; delete the folder"):
            half_run()
    else:
        run = half_run()
        assert run.is_finished()
        assert [entry["name"] for entry in run.set_aside()] == [folder.name]
    assert not canary.exists()
    torch.load(_saved(Evil(canary), tmp_path), weights_only=False)
    assert canary.exists(), "the pickle would have worked"


def _saved(value: Any, folder: Path) -> Path:
    torch.save(value, folder / "evil.pt")
    return folder / "evil.pt"


def test_what_was_set_aside_is_logged_and_noted_in_the_run(
    half_run: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Stopped):
        half_run(stop_after=4)
    flip_a_bit(tmp_path / "run" / "checkpoint-4" / "optimizer.pt")
    with caplog.at_level(logging.WARNING):
        run = half_run()
    assert "checkpoint-4 is not used: optimizer.pt was changed (sha256)" in caplog.text
    assert "going on from checkpoint-2" in caplog.text
    noted = json.loads((run.path / "run.json").read_text())["set_aside"]
    assert [(entry["name"], entry["reason"], entry["moved_to"]) for entry in noted] == [
        ("checkpoint-4", "optimizer.pt was changed (sha256)", "set-aside/checkpoint-4")
    ]
    assert verify(run.path / "checkpoint-4") is None  # written again


@pytest.mark.slow
def test_sealing_is_quick(tmp_path: Path) -> None:
    """Reads and hashes 100 MB in well under a second of CPU."""
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    (folder / "trainer_state.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(100_000_000))
    started = time.process_time()
    write_manifest(folder, 1)
    assert verify(folder) is None
    assert time.process_time() - started < 2
