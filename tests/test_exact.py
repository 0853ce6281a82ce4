"""A run that was cut off and started again ends as one that was not, bit for bit; two processes end as one.

Every run is a process of its own (forked from one that has imported everything) and is cut off by SIGKILL.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked_runs import Helper, log_of
from safetensors.torch import load_file
from torch import nn

from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.model_builder import WEIGHTS_FILE

HELPER = Path(__file__).parent / "forked_runs.py"
METHODS = ("lora", "head", "full")
# Everything that draws at random, three epochs that end in a partial batch (27 draws in batches of 4), checkpoints in
# the middle of an epoch (of 7, 4 or 2 steps) and between two lines of the log.
CHANGES: dict[str, dict[str, Any]] = {
    "data": {"augmentation": "default", "oversampling": {"power": 0.7, "multiplier": 1.5}},
    "model": {"position_jitter": True, "lora_dropout": 0.2, "head_dropout": 0.2},
    "training": {
        "max_steps": -1, "num_train_epochs": 3, "logging_steps": 2, "eval_steps": 3, "save_steps": 3,
        "metric_for_best_model": "loss", "warmup_steps": 3,
    },
}  # fmt: skip


class Runs:
    """Starts runs and remembers what uninterrupted ones came to."""

    def __init__(self, folder: Path, images: Path, tiny_recipe: Callable[..., dict[str, Any]]) -> None:
        self.folder, self.images, self.tiny_recipe = folder, images, tiny_recipe
        self.finished: dict[str, Path] = {}
        self.helper = Helper(HELPER)

    def recipe(self, run: Path, **changes: dict[str, Any]) -> dict[str, Any]:
        merged = {name: CHANGES.get(name, {}) | changes.get(name, {}) for name in {*CHANGES, *changes}}
        return self.tiny_recipe(self.images, run, **merged)

    def start(
        self,
        run: Path,
        recipe: dict[str, Any],
        processes: int = 1,
        ends: list[int] | None = None,
        **options: Any,
    ) -> None:
        file = run.with_suffix(".json")
        file.write_text(json.dumps(recipe))
        log = run.with_suffix(".log")
        job = {"recipe": str(file), "processes": processes, "log": str(log), **options}
        codes = self.helper.start(job)
        assert codes == (ends or [-9 if options.get("stop") else 0] * processes), log.read_text()

    def uninterrupted(self, processes: int = 1, **changes: dict[str, Any]) -> Path:
        name = json.dumps([processes, changes], sort_keys=True)
        if name not in self.finished:
            run = self.folder / f"whole{len(self.finished)}"
            self.start(run, self.recipe(run, **changes), processes)
            self.finished[name] = run
        return self.finished[name]

    def interrupted(
        self,
        *stops: dict[str, Any],
        processes: int = 1,
        workers: tuple[int, ...] = (0,),
        **changes: dict[str, Any],
    ) -> Path:
        run = self.folder / f"cut{sum(1 for _ in self.folder.glob('cut*.json'))}"
        for number, stop in enumerate([*stops, None]):
            training = changes.get("training", {}) | {
                "dataloader_num_workers": workers[number % len(workers)]
            }
            self.start(run, self.recipe(run, **changes | {"training": training}), processes, stop=stop)
        return run


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
    make_images: Callable[..., Path],
    tiny_recipe: Callable[..., dict[str, Any]],
) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("exact")
    made = Runs(folder, make_images(folder / "images", per_class=10), tiny_recipe)
    yield made
    made.helper.close()


def assert_same(run: Path, other: Path, method: str = "lora") -> None:
    """The same trained weights, log and predictions, to the last bit."""
    weights, wanted = load_file(run / WEIGHTS_FILE[method]), load_file(other / WEIGHTS_FILE[method])
    assert weights.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(weights[name], wanted[name])]
    assert different == []
    assert log_of(run) == log_of(other)
    for fold in ("validation", "calibration", "test"):
        file = f"predictions/{fold}.parquet"
        scores, wanted_scores = Predictions.from_parquet(run / file), Predictions.from_parquet(other / file)
        assert scores.ids == wanted_scores.ids
        np.testing.assert_array_equal(scores.probabilities, wanted_scores.probabilities)


def compare(
    runs: Runs,
    method: str,
    accumulation: int,
    processes: int,
    workers: tuple[int, ...],
    *stops: dict[str, Any],
) -> None:
    changes = {"model": {"method": method}, "training": {"gradient_accumulation_steps": accumulation}}
    whole = runs.uninterrupted(processes, **changes)
    cut = runs.interrupted(*stops, processes=processes, workers=workers, **changes)
    assert_same(cut, whole, method)


def lost(step: int) -> dict[str, Any]:
    """Power is lost after an optimizer step; what was done since the last checkpoint is done again."""
    return {"event": "on_step_end", "step": step}


def saved(step: int) -> dict[str, Any]:
    """Power is lost right after a checkpoint."""
    return {"event": "on_save", "step": step}


# 27 draws an epoch make 7, 4 (accumulation or processes 2) or 2 (both) steps. Every pair of values of method,
# accumulation, processes and workers occurs; the uninterrupted runs have no workers.
@pytest.mark.parametrize(
    ("method", "accumulation", "processes", "workers", "stop"),
    [
        ("lora", 1, 1, 0, lost(9)),
        ("lora", 2, 2, 2, saved(3)),
        ("head", 1, 2, 2, lost(8)),
        ("head", 2, 1, 0, saved(9)),
        ("full", 2, 1, 2, lost(7)),
        ("full", 1, 2, 0, saved(3)),
    ],
)
def test_resumed_equals_uninterrupted(
    runs: Runs, method: str, accumulation: int, processes: int, workers: int, stop: dict[str, Any]
) -> None:
    compare(runs, method, accumulation, processes, (workers,), stop)


@pytest.mark.parametrize(
    ("stops", "workers"),
    [
        ([lost(2)], (0,)),  # before the first checkpoint
        ([lost(7), saved(15), lost(18)], (0, 2)),  # an epoch ends at 7, 14 and 21; workers come and go
    ],
    ids=["first_steps", "three_times"],
)
def test_interrupted_anywhere(runs: Runs, stops: list[dict[str, Any]], workers: tuple[int, ...]) -> None:
    compare(runs, "lora", 1, 1, workers, *stops)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_checkpoints_at_the_ends_of_epochs(runs: Runs, processes: int) -> None:
    by_epoch = {"training": {"eval_strategy": "epoch", "save_strategy": "epoch"}}
    second_epoch_begins_after = {1: 7, 2: 4}[processes]  # 27 draws in steps of 4 or 8
    cut = runs.interrupted(
        {"event": "on_epoch_begin", "step": second_epoch_begins_after}, processes=processes, **by_epoch
    )
    assert_same(cut, runs.uninterrupted(processes, **by_epoch))


@pytest.mark.parametrize("max_steps", [9, pytest.param(21, marks=pytest.mark.slow)])
def test_a_run_cut_off_while_it_is_scored_is_trained_no_further(runs: Runs, max_steps: int) -> None:
    """All steps are done, in the middle or at the end of an epoch."""
    whole = {"training": {"max_steps": max_steps}}
    cut = runs.interrupted({"event": "on_train_end", "step": max_steps}, **whole)
    assert_same(cut, runs.uninterrupted(**whole))


def test_a_run_that_stopped_early_is_not_trained_on(runs: Runs) -> None:
    """Patience of 1 and a rate near zero: it stops at the second evaluation, and is cut off while it is scored."""
    early = {
        "training": {
            "early_stopping_patience": 1, "learning_rate": 1e-12, "metric_for_best_model": "accuracy",
            "eval_steps": 2, "save_steps": 2,
        }
    }  # fmt: skip
    whole = runs.uninterrupted(**early)
    assert json.loads((whole / "report" / "training.json").read_text())["steps"] == 4
    assert_same(runs.interrupted({"event": "on_train_end", "step": 4}, **early), whole)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted_in_every_combination(
    runs: Runs, method: str, workers: int, accumulation: int, processes: int
) -> None:
    """Cut off twice: between two checkpoints, at another step in each case, and right after one."""
    steps_per_epoch = {1: 7, 2: 4, 4: 2}[accumulation * processes]
    last = 3 * steps_per_epoch
    first = 1 + (METHODS.index(method) * 2 + workers) % (last - 2)
    after = next(step for step in range(3, last + 1, 3) if step > first)
    compare(runs, method, accumulation, processes, (workers,), lost(first), saved(after))


# Plain SGD without dropout: the change of the weights is the sum of the gradients.
PLAIN: dict[str, dict[str, Any]] = {
    "model": {"position_jitter": False, "lora_dropout": 0.0, "head_dropout": 0.0},
    "training": {"optim": "sgd", "learning_rate": 0.05, "weight_decay": 0.0, "num_train_epochs": 2},
}


@pytest.fixture(scope="module")
def pair(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of two processes with batches of 4, and a folder with what each of them trained on."""
    batches = tmp_path_factory.mktemp("batches")
    run = runs.folder / "pair"
    runs.start(run, runs.recipe(run, **PLAIN), 2, batches=str(batches))
    return run, batches


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (2, 4)])
def test_two_processes_equal_one_with_the_same_batch(
    runs: Runs, pair: tuple[Path, Path], batch: int, accumulation: int
) -> None:
    """Also in the last step of an epoch, for whose 3 images the second process has none."""
    one = runs.folder / f"one{batch}"
    training = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    runs.start(one, runs.recipe(one, **PLAIN | {"training": PLAIN["training"] | training}))
    weights, wanted = load_file(pair[0] / WEIGHTS_FILE["lora"]), load_file(one / WEIGHTS_FILE["lora"])
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            weights[name], tensor, rtol=0, atol=2e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    rows, wanted_rows = log_of(pair[0]), log_of(one)
    assert [sorted(row) for row in rows] == [sorted(row) for row in wanted_rows]
    for row, wanted_row in zip(rows, wanted_rows, strict=True):
        # Trainer counts an epoch by its micro-batches, of which there are 14 of 2 images, but 2 x 4 of 4.
        assert row | {"epoch": 0} == pytest.approx(wanted_row | {"epoch": 0}, rel=1e-4)
    for fold in ("validation", "calibration", "test"):
        file = f"predictions/{fold}.parquet"
        scores, wanted_scores = Predictions.from_parquet(pair[0] / file), Predictions.from_parquet(one / file)
        assert scores.ids == wanted_scores.ids
        np.testing.assert_allclose(scores.probabilities, wanted_scores.probabilities, atol=1e-5)


def test_two_processes_share_the_order_of_the_sampler(pair: tuple[Path, Path]) -> None:
    """Batches of 4 go to the processes in turn; of the 27 draws the last step has 3, all for the first process."""
    first, second = (json.loads((pair[1] / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first) == len(second) == 8
    for epoch in (0, 1):
        drawn: list[int] = []
        for (own, own_divisor, _), (other, other_divisor, _) in zip(
            first[4 * epoch : 4 * epoch + 4], second[4 * epoch : 4 * epoch + 4], strict=True
        ):
            drawn += own + (other if other_divisor != float("inf") else [])
            assert own_divisor == (1.0 if other_divisor == 1.0 else 0.5)
        assert drawn == expected_order(pair[0], epoch)


def expected_order(run: Path, epoch: int) -> list[int]:
    """Rows in the order of the sampler, from the labels noted in split.csv."""
    import csv

    from cytodino_hf.data.samplers import OversamplingSampler
    from cytodino_hf.taxonomy import load_taxonomy

    codes = load_taxonomy("mll").codes
    rows = list(csv.DictReader((run / "split.csv").open()))
    labels = [codes.index(row["label"]) for row in rows if row["fold"] == "train"]
    sampler = OversamplingSampler(labels, power=0.7, multiplier=1.5, seed=0)
    sampler.set_epoch(epoch)
    return [row for row, _, _ in sampler]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_evaluations_do_not_disturb_training_in_bfloat16(runs: Runs, method: str) -> None:
    """Weights that are cast for an evaluation must come back with what data-parallel training hangs on them."""
    losses = {}
    for every in (2, 6):
        run = runs.folder / f"bf16 {method} {every}"
        sections = PLAIN | {
            "model": PLAIN["model"] | {"method": method},
            "training": PLAIN["training"]
            | {"max_steps": 6, "logging_steps": 1, "eval_steps": every, "save_steps": every},
        }
        recipe = runs.recipe(run, **sections)
        runs.start(run, recipe, 2, environment={"ACCELERATE_MIXED_PRECISION": "bf16"})
        losses[every] = [row["loss"] for row in log_of(run) if "loss" in row]
    assert len(losses[2]) == 6
    assert losses[2] == losses[6]


def test_processes_draw_different_random_numbers(pair: tuple[Path, Path]) -> None:
    first, second = (json.loads((pair[1] / f"{rank}.json").read_text()) for rank in (0, 1))
    assert not {state for *_, state in first} & {state for *_, state in second}


def test_where_one_process_is_killed_the_other_stops_and_says_so(runs: Runs) -> None:
    """And the same command goes on exactly."""
    run = runs.folder / "half"
    recipe = runs.recipe(run)
    runs.start(run, recipe, 2, ends=[1, -9], stop={"event": "on_step_end", "step": 6, "rank": 1})
    assert "OtherProcessError: another process stopped" in run.with_suffix(".log").read_text()
    runs.start(run, recipe, 2)
    assert_same(run, runs.uninterrupted(2))


def test_what_the_first_process_finds_wrong_stops_both_before_anything_is_written(runs: Runs) -> None:
    run = runs.folder / "wrong"
    empty = runs.folder / "empty"
    empty.mkdir()
    recipe = runs.recipe(run, data={"root": str(empty)})
    runs.start(run, recipe, 2, ends=[1, 1])
    log = run.with_suffix(".log").read_text()
    assert "DataError" in log
    assert "OtherProcessError: process 0 stopped; its own message says why" in log
    assert not [file for file in run.glob("*") if file.name != "run.lock"]


def test_a_finished_run_of_two_processes_is_left_alone(runs: Runs) -> None:
    run = runs.uninterrupted(2)
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    runs.start(run, runs.recipe(run), 2)
    assert run.with_suffix(".log").read_text().count("finished; nothing to do") == 1
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()} == before


def test_another_number_of_processes_is_refused(runs: Runs) -> None:
    run = runs.folder / "number"
    recipe = runs.recipe(run)
    runs.start(run, recipe, 2, stop=saved(3))
    runs.start(run, recipe, 1, ends=[1])
    assert "2 processes" in run.with_suffix(".log").read_text()
    assert (run / "checkpoint-3").is_dir()


DINOV2 = {
    "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "mlp_ratio": 2,
}  # fmt: skip


_SECTIONS: list[dict[str, Any]] = [
    {},
    {"train_norms": True, "train_biases": True},
    {"method": "full"},
    {"method": "head"},
    {"head": "linear"},
    {"lora_last_blocks": 1, "train_norms": True},
    {"lora_targets": ["q_proj"]},
    {"method": "head", "head": "linear", "train_norms": True, "train_biases": True},
    {"method": "full", "head": "linear"},
]


@pytest.mark.parametrize(
    ("backbone", "section"),
    [("dinov3_vit", section) for section in _SECTIONS]
    + [(backbone, section) for backbone in ("dinov2", "dinov2_with_registers") for section in _SECTIONS[1:3]],
    ids=str,
)
def test_everything_that_trains_has_a_gradient(
    backbone: str, section: dict[str, Any], tiny_recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Data-parallel training waits for the gradient of every parameter, and is told not to look for missing ones."""
    from cytodino_hf.model_builder import build_config, build_model
    from cytodino_hf.recipe import parse_recipe
    from cytodino_hf.taxonomy import load_taxonomy

    if backbone != "dinov3_vit":
        section = section | {"backbone_config": DINOV2 | {"model_type": backbone}}
    recipe = parse_recipe(tiny_recipe(tmp_path, tmp_path / "run", model=section), source="test")
    model = build_model(recipe, build_config(recipe, load_taxonomy("mll")), tmp_path / "base")
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)
    nn.functional.cross_entropy(model(pixel_values=images).logits, torch.tensor([0, 1])).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


@pytest.mark.slow
def test_torchrun_starts_again_after_a_kill_and_ends_alike(runs: Runs) -> None:
    """SIGKILL of one process under `--max-restarts 1`: all start again by themselves, from the newest checkpoint."""
    run = runs.folder / "restarted"
    recipe = run.with_suffix(".json")
    recipe.write_text(json.dumps(runs.recipe(run)))
    script = runs.folder / "killed_once.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(HELPER.parent)!r})\n"
        "import forked_runs\n"
        "start, rank = os.environ['TORCHELASTIC_RESTART_COUNT'], os.environ['RANK']\n"
        f"open({str(runs.folder)!r} + '/started' + start + '_' + rank, 'w').close()\n"
        "stop = {'event': 'on_step_end', 'step': 6, 'rank': 1} if start == '0' else None\n"
        f"forked_runs.train({{'recipe': {str(recipe)!r}, 'stop': stop}}, int(rank))\n"
    )
    command = [
        str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
        str(script),
    ]  # fmt: skip
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HELPER.parent.parent),
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    started = sorted(file.name for file in runs.folder.glob("started*"))
    assert started == ["started0_0", "started0_1", "started1_0", "started1_1"]
    assert_same(run, runs.uninterrupted(2))
