"""Runs that go on by themselves: after a killed worker, with less memory than the recipe wants."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cytodino_hf.data.dataset import CellDataset
from cytodino_hf.errors import (
    DataError,
    InterruptedTrainingError,
    NotEnoughMemoryError,
    RecipeError,
    WorkerKilledError,
)
from cytodino_hf.finetune import finetune
from cytodino_hf.memory import smaller_batch
from cytodino_hf.model_builder import WEIGHTS_FILE
from cytodino_hf.recipe import Recipe, parse_recipe
from cytodino_hf.run_folder import RunFolder
from cytodino_hf.trainer import CytoTrainer

ROOT = Path(__file__).parent.parent
NO_DROPOUT = {"head_dropout": 0.0, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=14)


@pytest.fixture(autouse=True)
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr("cytodino_hf.evaluation.report._figures", lambda *args: {})


@pytest.fixture
def recipe_of(images: Path, tmp_path: Path, tiny_recipe: Callable[..., dict]) -> Callable[..., Recipe]:
    """27 training images, 3 and a part of 8 an epoch, 5 steps, sealed after 2 and 4."""

    def make(name: str, model: dict | None = None, **training: Any) -> Recipe:
        document = tiny_recipe(
            images,
            tmp_path / name,
            data={"augmentation": "default"},
            model=model or NO_DROPOUT,
            evaluation={"interval_draws": 100},
            training={"max_steps": 5, "per_device_train_batch_size": 8, "max_grad_norm": 0} | training,
        )
        return parse_recipe(document, source="test")

    return make


def adapter(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(Path(recipe.training.output_dir) / WEIGHTS_FILE["lora"])


def equal(a: Recipe, b: Recipe) -> bool:
    one, other = adapter(a), adapter(b)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def run_json(recipe: Recipe) -> dict[str, Any]:
    return json.loads((Path(recipe.training.output_dir) / "run.json").read_text())


def report(recipe: Recipe) -> dict[str, Any]:
    return json.loads((Path(recipe.training.output_dir) / "report" / "report.json").read_text())


@pytest.mark.parametrize(
    ("before", "after"),
    [((16, 1), (8, 2)), ((6, 4), (3, 8)), ((9, 2), (3, 6)), ((7, 1), (1, 7)), ((2, 3), (1, 6))],
)
def test_the_smaller_batch_keeps_the_effective_one(before: tuple[int, int], after: tuple[int, int]) -> None:
    assert smaller_batch(*before) == after
    assert before[0] * before[1] == after[0] * after[1]


@pytest.mark.parametrize(
    ("key", "reason"),
    [("auto_find_batch_size", "effective batch"), ("logging_nan_inf_filter", "set by the project")],
)
def test_keys_of_trainer_that_would_undo_this_are_refused(
    recipe_of: Callable[..., Recipe], key: str, reason: str
) -> None:
    with pytest.raises(RecipeError, match=f"training.{key} = True: .*{reason}"):
        recipe_of("refused", **{key: True})


class Memory:
    """Pretends that so many pictures fit, from a step on, and notes what each step trained on."""

    def __init__(self, patch: pytest.MonkeyPatch, fits: int, from_step: int = 0) -> None:
        self.fits, self.from_step = fits, from_step
        self.sizes: list[tuple[int, int]] = []
        self.rows: dict[int, list[int]] = {}
        self.step = -1
        compute = CytoTrainer.compute_loss

        def compute_loss(
            trainer: CytoTrainer, model: Any, inputs: Any, return_outputs: bool = False, **kw: Any
        ) -> Any:
            if not return_outputs:
                step, rows = trainer.state.global_step, inputs["rows"].tolist()
                self.sizes.append((step, trainer.args.per_device_train_batch_size))
                if trainer.args.per_device_train_batch_size > self.fits and step >= self.from_step:
                    self.step = -1
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
                if step != self.step:
                    self.rows[step] = []
                self.step = step
                self.rows[step] += rows
            return compute(trainer, model, inputs, return_outputs, **kw)

        patch.setattr(CytoTrainer, "compute_loss", compute_loss)


def test_the_micro_batch_halves_until_it_fits_and_the_result_stays(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory runs short at step 3, after the checkpoint of step 2; an epoch ends with a part of a batch."""
    undisturbed, short = recipe_of("undisturbed"), recipe_of("short")
    with monkeypatch.context() as patch:
        wanted = Memory(patch, fits=8)
        finetune(undisturbed)
    memory = Memory(monkeypatch, fits=2, from_step=3)
    with caplog.at_level(logging.WARNING):
        finetune(short)
    assert [size for step, size in memory.sizes if step == 3][:4] == [8, 4, 2, 2]
    assert (
        next(step for step, size in memory.sizes if size == 2) == 2
    )  # from the checkpoint, not from the start
    assert memory.rows == wanted.rows  # step by step the same images in the same order
    assert {len(rows) for rows in wanted.rows.values()} == {8, 3}
    for name, tensor in adapter(undisturbed).items():
        torch.testing.assert_close(adapter(short)[name], tensor, atol=2e-6, rtol=1e-4)
    assert run_json(short)["batch"] == {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    told = report(short)["training"]["setbacks"]
    assert ["8 pictures" in told[0], "4 pictures" in told[1], len(told)] == [True, True, 2]
    assert "2 x 4 from here on" in told[1]
    assert caplog.text.count("not enough memory") >= 2
    assert report(undisturbed)["training"]["setbacks"] == []


def test_halved_at_the_first_step_it_is_the_run_of_the_smaller_batch_bit_for_bit(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = {"head_dropout": 0.2, "lora_dropout": 0.1}
    plain = recipe_of("plain", dropout, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    finetune(plain)
    halved = recipe_of("halved", dropout)
    Memory(monkeypatch, fits=4)
    finetune(halved)
    assert equal(halved, plain)


def test_one_picture_that_does_not_fit_is_the_end_and_the_next_start_begins_small(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("none", per_device_train_batch_size=6)
    with monkeypatch.context() as patch:
        memory = Memory(patch, fits=0)
        with pytest.raises(NotEnoughMemoryError, match="A step takes 1 pictures of 32 px at once \\(x 6"):
            finetune(recipe)
        assert [size for _, size in memory.sizes] == [6, 3, 1]
    memory = Memory(monkeypatch, fits=6)
    finetune(recipe)
    assert {size for _, size in memory.sizes} == {1}


def test_a_recipe_may_forbid_it(recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of("strict", halve_batch_on_out_of_memory=False)
    memory = Memory(monkeypatch, fits=4)
    with pytest.raises(NotEnoughMemoryError, match="20 MiB more were asked for"):
        finetune(recipe)
    assert len(memory.sizes) == 1
    assert "batch" not in run_json(recipe)


def test_evaluation_and_scoring_halve_their_own_batch_and_training_does_not_notice(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    dropout = {"head_dropout": 0.2, "lora_dropout": 0.1}
    undisturbed, short = recipe_of("undisturbed", dropout), recipe_of("short", dropout)
    finetune(undisturbed)
    evaluate = CytoTrainer.prediction_step
    sizes = []

    def prediction_step(self: CytoTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.append(self.args.per_device_eval_batch_size)
        if sizes[-1] > 2:
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."
            )
        return evaluate(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(CytoTrainer, "prediction_step", prediction_step)
    finetune(short)
    assert sizes[:6] == [32, 16, 8, 4, 2, 2]
    assert set(sizes[6:]) == {2}
    assert equal(short, undisturbed)
    assert run_json(short)["batch"] == {"per_device_eval_batch_size": 2}
    assert len(report(short)["training"]["setbacks"]) == 4
    for fold in ("validation", "test"):
        assert report(short)[fold]["confusion_matrix"] == report(undisturbed)[fold]["confusion_matrix"]


def test_scoring_makes_do_with_less(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cytodino_hf import finetune as module

    predict, sizes = module.predict, []

    def limited(*args: Any, batch_size: int, **kwargs: Any) -> Any:
        sizes.append(batch_size)
        if batch_size > 8:
            raise MemoryError
        return predict(*args, batch_size=batch_size, **kwargs)

    monkeypatch.setattr(module, "predict", limited)
    recipe = recipe_of("scored", max_steps=2)
    finetune(recipe)
    assert sizes == [32, 16, 8]
    assert "evaluate 32 pictures" in report(recipe)["training"]["setbacks"][0]


def deadly(patch: pytest.MonkeyPatch, deaths: Path, times: int) -> None:
    """A worker that reads position 20 of the first epoch kills itself, so many times."""
    batch, owner = CellDataset.__getitems__, os.getpid()

    def read(self: CellDataset, keys: Any) -> Any:
        is_time = any(not isinstance(key, int) and key[1:] == (0, 20) for key in keys)
        if is_time and os.getpid() != owner:
            done = len(deaths.read_text()) if deaths.exists() else 0
            if done < times:
                deaths.write_text("x" * (done + 1))
                os.kill(os.getpid(), signal.SIGKILL)
        return batch(self, keys)

    patch.setattr(CellDataset, "__getitems__", read)


def test_after_a_killed_worker_the_run_goes_on_once_and_ends_the_same(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers: dict[str, Any] = {"dataloader_num_workers": 1, "save_steps": 1, "eval_steps": 1}
    undisturbed, killed, twice = (recipe_of(name, **workers) for name in ("undisturbed", "killed", "twice"))
    finetune(undisturbed)
    with monkeypatch.context() as patch:
        deadly(patch, tmp_path / "once", times=1)
        finetune(killed)
    assert equal(killed, undisturbed)
    assert "SIGKILL" in report(killed)["training"]["setbacks"][0]
    with monkeypatch.context() as patch:
        deadly(patch, tmp_path / "both", times=2)
        with pytest.raises(WorkerKilledError, match="The same command goes on from the newest checkpoint"):
            finetune(twice)
    finetune(twice)
    assert equal(twice, undisturbed)


def test_an_unreadable_picture_in_a_worker_is_told_as_in_the_main_process(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(self: CellDataset, keys: Any) -> Any:
        raise DataError("BLA_00003.png: cannot be read; remove it")

    monkeypatch.setattr(CellDataset, "__getitems__", read)
    with pytest.raises(DataError) as caught:
        finetune(recipe_of("unreadable", dataloader_num_workers=1))
    assert str(caught.value) == "BLA_00003.png: cannot be read; remove it"


LIMITED = """
import json, resource, sys
from pathlib import Path
from transformers import TrainerCallback
from cytodino_hf.finetune import finetune
from cytodino_hf.recipe import load_recipe
from cytodino_hf.trainer import CytoTrainer

class Limit(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20, resource.RLIM_INFINITY))

    def on_train_end(self, args, state, control, **kwargs):
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

make = CytoTrainer.__init__
def init(self, **kwargs):
    make(self, **kwargs)
    self.add_callback(Limit())
CytoTrainer.__init__ = init
finetune(load_recipe(sys.argv[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a limit on the address space")
def test_under_a_real_limit_of_memory_a_run_finds_the_batch_that_fits(
    images: Path, tmp_path: Path, tiny_recipe: Callable[..., dict]
) -> None:
    """24 pictures need 220 MB for a step here, 3 need 30; 130 are granted."""
    document = tiny_recipe(
        images, tmp_path / "run",
        data={"image_size_px": 128},
        model={"backbone_config": {"model_type": "dinov3_vit", "patch_size": 8, "image_size": 128, "hidden_size": 64,
                                   "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 1024}},
        training={"max_steps": 1, "per_device_train_batch_size": 24, "per_device_eval_batch_size": 4,
                  "eval_strategy": "no", "save_strategy": "no"},
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(json.dumps(document))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "recipe.json"), "130"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    batch = json.loads((tmp_path / "run" / "run.json").read_text())["batch"]
    assert batch["per_device_train_batch_size"] < 24
    assert batch["per_device_train_batch_size"] * batch["gradient_accumulation_steps"] == 24
    assert "not enough memory for 24 pictures at once x 1" in done.stderr


def test_a_run_that_was_told_to_stop_does_not_start_again_for_what_fails_after(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job scheduler signals all processes: the one that reads images is dead before the step is done."""
    compute, started = CytoTrainer.compute_loss, []

    def told_and_failing(trainer: CytoTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 3 and not started:
            started.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated.")
        return compute(trainer, *args, **kwargs)

    undisturbed, stopped = recipe_of("undisturbed"), recipe_of("stopped")
    finetune(undisturbed)
    with monkeypatch.context() as patch:
        patch.setattr(CytoTrainer, "compute_loss", told_and_failing)
        with pytest.raises(InterruptedTrainingError, match="stopped by SIGTERM; before the step") as stop:
            finetune(stopped)
    assert stop.value.exit_code == 143
    finetune(stopped)
    assert equal(undisturbed, stopped)


def _remember_often(folder: Path, name: str) -> None:
    run = RunFolder(folder)
    for number in range(20):
        run.remember(f"{name}{number}", number)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    """Equal processes run out of memory in the same step."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_remember_often, args=(tmp_path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept == {f"{name}{number}": number for name in "ab" for number in range(20)}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]
