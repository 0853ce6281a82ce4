"""The trainer: gradients under accumulation, learning-rate groups, schedules, the sampler's epoch, early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cytodino_hf.data.dataset import CellDataset
from cytodino_hf.data.loading import load_split
from cytodino_hf.errors import DataError
from cytodino_hf.losses import LOSSES, build_loss
from cytodino_hf.model_builder import build_config, build_model, build_processor
from cytodino_hf.recipe import Recipe, parse_recipe
from cytodino_hf.trainer import CytoTrainer, build_trainer, parameter_groups
from cytodino_hf.training.arguments import _one_gpu_a_process


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=16)


@pytest.fixture
def trainer(images: Path, tmp_path: Path, tiny_recipe: Callable[..., dict]) -> Callable[..., CytoTrainer]:
    def make(**changes: Any) -> CytoTrainer:
        out = tmp_path / "out"
        return assemble(parse_recipe(tiny_recipe(images, out, **changes), source="test"))

    return make


def assemble(recipe: Recipe) -> CytoTrainer:
    split = load_split(recipe)
    taxonomy = split.images.taxonomy
    processor = build_processor(recipe.data)
    train = split.images.fold("train")
    return build_trainer(
        recipe,
        model=build_model(recipe, build_config(recipe, taxonomy), Path(recipe.training.output_dir) / "base"),
        loss=build_loss(recipe.loss.name, recipe.loss.options, taxonomy, list(train.counts().values())),
        processor=processor,
        train=CellDataset(train, processor),
        validation=CellDataset(split.images.fold("validation"), processor),
        taxonomy=taxonomy,
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_step_of_8_equals_4_accumulated_steps_of_2(
    trainer: Callable[..., CytoTrainer], loss: str, method: str
) -> None:
    """Plain SGD without clipping: the change of the weights is the gradient. No dropout, so that batches are alike."""
    changes = []
    for size, accumulation in ((8, 1), (2, 4)):
        run = trainer(
            loss={"name": loss},
            model={"method": method, "head_dropout": 0.0, "lora_dropout": 0.0},
            training={
                "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 1,
                "optim": "sgd", "max_grad_norm": 0, "weight_decay": 0.0, "warmup_steps": 0, "eval_strategy": "no",
                "save_strategy": "no", "lr_scheduler_type": "constant", "learning_rate": 0.1,
            },
        )  # fmt: skip
        before = {n: p.detach().clone() for n, p in run.model.named_parameters() if p.requires_grad}
        run.train()
        changes.append({n: p.detach() - before[n] for n, p in run.model.named_parameters() if n in before})
    moved = 0.0
    for name, change in changes[0].items():
        torch.testing.assert_close(changes[1][name], change, atol=2e-6, rtol=1e-3)
        moved = max(moved, change.abs().max().item())
    assert moved > 1e-4


def test_groups_by_part_and_decay(trainer: Callable[..., CytoTrainer]) -> None:
    run = trainer(
        model={"train_norms": True},
        training={"head_learning_rate": 2e-3, "backbone_learning_rate": 5e-5, "weight_decay": 0.1},
    )
    groups = {g["name"]: g for g in parameter_groups(run.model, run.training)}
    assert {n: (g["lr"], g["weight_decay"]) for n, g in groups.items()} == {
        "lora": (1e-3, 0.1),
        "head": (2e-3, 0.1),
        "head, no decay": (2e-3, 0.0),
        "backbone, no decay": (5e-5, 0.0),
    }
    grouped = [id(p) for g in groups.values() for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in run.model.parameters() if p.requires_grad)
    names = {id(p): n for n, p in run.model.named_parameters()}
    undecayed = [names[id(p)] for p in groups["head, no decay"]["params"]]
    assert any(n.endswith("query") for n in undecayed)
    assert all(n.endswith(("bias", "query", "weight")) and "up.weight" not in n for n in undecayed)


def test_without_rates_of_their_own_all_parts_share_the_learning_rate(
    trainer: Callable[..., CytoTrainer],
) -> None:
    run = trainer(model={"method": "full"})
    assert {g["lr"] for g in parameter_groups(run.model, run.training)} == {1e-3}


def test_the_schedule_is_cosine_with_warm_up_per_step_or_held_for_an_epoch(
    trainer: Callable[..., CytoTrainer],
) -> None:
    """Against the closed forms; 12 steps, 3 epochs of 4 steps."""
    step = trainer(training={"max_steps": 12, "warmup_steps": 3, "learning_rate": 1.0})
    step.create_optimizer_and_scheduler(12)
    rates = []
    for _ in range(12):
        rates.append(step.lr_scheduler.get_last_lr()[0])
        step.optimizer.step()
        step.lr_scheduler.step()
    wanted = [i / 3 for i in range(3)] + [0.5 * (1 + math.cos(math.pi * i / 9)) for i in range(9)]
    assert rates == pytest.approx(wanted)

    held = trainer(
        training={
            "max_steps": -1, "num_train_epochs": 3, "warmup_steps": 0, "learning_rate": 1.0,
            "lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 0.1},
            "learning_rate_update": "epoch",
        }
    )  # fmt: skip
    held.create_optimizer_and_scheduler(12)
    rates = []
    for _ in range(12):
        rates.append(held.lr_scheduler.get_last_lr()[0])
        held.optimizer.step()
        held.lr_scheduler.step()
    wanted = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * e / 3)) for e in range(3) for _ in range(4)]
    assert rates == pytest.approx(wanted)


def test_every_epoch_draws_anew_and_is_logged(trainer: Callable[..., CytoTrainer], tmp_path: Path) -> None:
    run = trainer(
        data={"oversampling": {"power": 0.7, "multiplier": 2.0}},
        training={"max_steps": -1, "num_train_epochs": 2, "report_to": ["tensorboard"]},
    )
    seen: list[tuple[int, int, int]] = []
    fetch = run.train_dataset.__class__.__getitems__

    def note(self: CellDataset, keys: Any) -> Any:
        seen.extend(key for key in keys if isinstance(key, tuple))
        return fetch(self, keys)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CellDataset, "__getitems__", note)
        run.train()
    count = len(run.train_dataset)
    epochs = {e: [k for k in seen if k[1] == e] for e in (0, 1)}
    assert len(seen) == 4 * count
    for keys in epochs.values():
        assert sorted(k[2] for k in keys) == list(range(2 * count))
        assert {k[0] for k in keys} == set(range(count))
    assert [k[0] for k in epochs[0]] != [k[0] for k in epochs[1]]
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_early_stopping_and_best_model(trainer: Callable[..., CytoTrainer]) -> None:
    run = trainer(
        training={
            "max_steps": 40, "eval_steps": 2, "save_steps": 2, "early_stopping_patience": 2, "learning_rate": 1e-9,
            "metric_for_best_model": "eval_balanced_accuracy", "warmup_steps": 0,
        }
    )  # fmt: skip
    run.train()
    assert run.state.global_step < 40
    assert run.state.best_global_step == 2
    assert run.args.metric_for_best_model == "balanced_accuracy"
    assert {"eval_macro_f1", "eval_accuracy", "eval_loss"} <= set(run.evaluate())


@pytest.mark.parametrize("method", ["lora", "head", "full"])
def test_the_best_checkpoint_is_what_is_left_in_memory(
    trainer: Callable[..., CytoTrainer], method: str
) -> None:
    """The model at the end gives the validation loss of the best step, not of the last."""
    run = trainer(
        model={"method": method},
        training={
            "max_steps": 8, "metric_for_best_model": "loss", "learning_rate": 0.3, "warmup_steps": 0,
            "lr_scheduler_type": "constant", "save_total_limit": 1,
        },
    )  # fmt: skip
    run.train()
    losses = [row["eval_loss"] for row in run.state.log_history if "eval_loss" in row]
    assert run.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)
    assert max(losses) > min(losses) * 1.001


@pytest.mark.parametrize(
    ("metric", "greater"), [("mcc", True), ("mean_distance", False), ("eval_nll", False)]
)
def test_any_metric_chooses_the_checkpoint_in_its_direction(
    trainer: Callable[..., CytoTrainer], metric: str, greater: bool
) -> None:
    run = trainer(
        training={"max_steps": 4, "eval_steps": 2, "save_steps": 2, "metric_for_best_model": metric}
    )
    run.train()
    name = metric.removeprefix("eval_")
    assert run.args.greater_is_better is greater
    values = [row[f"eval_{name}"] for row in run.state.log_history if f"eval_{name}" in row]
    assert len(values) == 2
    assert run.state.best_metric == pytest.approx((max if greater else min)(values))


def test_a_metric_the_validation_fold_cannot_have_is_refused_at_once(
    trainer: Callable[..., CytoTrainer],
) -> None:
    with pytest.raises(
        DataError, match="'auroc' has no value on the validation fold: it is of tasks of two classes"
    ):
        trainer(training={"metric_for_best_model": "auroc"})


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_torch_compile_trains_and_saves_clean_names(
    images: Path,
    tmp_path: Path,
    tiny_recipe: Callable[..., dict],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cytodino_hf.finetune import finetune
    from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification

    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    document = tiny_recipe(images, tmp_path / "run", training={"torch_compile": True, "max_steps": 2})
    run = finetune(parse_recipe(document, source="test"))
    CytoDinoForImageClassification.from_pretrained(run.path)


def test_one_process_uses_one_gpu(
    trainer: Callable[..., CytoTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    """Trainer would wrap the model in DataParallel and take the recipe's batch times the GPUs."""
    arguments = trainer().args
    size = arguments.train_batch_size
    arguments._n_gpu = 4
    assert _one_gpu_a_process(arguments).train_batch_size == size
    assert "torchrun --standalone --nproc-per-node 4" in caplog.text
