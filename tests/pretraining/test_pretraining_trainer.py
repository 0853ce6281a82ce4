"""Groups, paces, batches and the teacher's steps of a pretraining, against values worked out by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cytodino_hf.errors import BadNumbersError, CollapseError, DataError
from cytodino_hf.pretraining import pretrain as module
from cytodino_hf.pretraining.mixture import load_mixture
from cytodino_hf.pretraining.model import IBotModel
from cytodino_hf.pretraining.monitor import Monitor
from cytodino_hf.pretraining.paces import Paces
from cytodino_hf.pretraining.recipe import (
    ObjectiveSection,
    PretrainTrainingSection,
    parse_pretrain_recipe,
)
from cytodino_hf.pretraining.remedies import PRETRAINING
from cytodino_hf.pretraining.trainer import PretrainingTrainer, WholeBatches, as_batch, parameter_groups

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("trainer") / "images")


@pytest.fixture
def assembled(
    images: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[..., PretrainingTrainer]:
    def build(**changes: Any) -> PretrainingTrainer:
        document = tiny_pretraining(images, tmp_path / "run", probe={"source": None}, **changes)
        recipe = parse_pretrain_recipe(document, source="test")
        return module._assemble(recipe, load_mixture(recipe.data))

    return build


def paces(**training: Any) -> Paces:
    objective = ObjectiveSection(momentum=0.9, teacher_temperature_warmup=0.5, freeze_last_layer=0.25)
    section = PretrainTrainingSection(
        output_dir="x", **{"warmup_steps": 3, "min_learning_rate": 0.001} | training
    )
    return Paces(objective, section, steps=8, peak_rate=0.1)


def test_paces() -> None:
    made = paces()
    # iBOT: a line from 0 in as many points as warm-up steps, then half a cosine over the other five steps.
    wanted = [0.0, 0.05, 0.1, *(0.001 + 0.099 * (1 + math.cos(math.pi * i / 5)) / 2 for i in range(5))]
    assert [made.rate(step) for step in range(8)] == pytest.approx(wanted)
    assert [made.rate_share(step) for step in range(8)] == pytest.approx([10 * rate for rate in wanted])
    assert [made.last_layer_share(step) for step in range(4)] == [0.0, 0.0, *map(made.rate_share, (2, 3))]
    assert made.weight_decay(0) == pytest.approx(0.04)
    assert made.weight_decay(4) == pytest.approx((0.04 + 0.4) / 2)
    assert made.momentum(4) == pytest.approx(0.95)
    assert [made.teacher_temperature(step) for step in (0, 2, 4, 7)] == pytest.approx(
        [0.04, 0.055, 0.07, 0.07]
    )
    assert made.at(4) == {
        "weight_decay": made.weight_decay(4), "momentum": made.momentum(4), "teacher_temperature": 0.07,
    }  # fmt: skip


def test_a_warm_up_below_one_is_a_share_of_the_steps() -> None:
    assert paces(warmup_steps=0.25).warmup_steps == 2
    assert paces(warmup_steps=1).warmup_steps == 1


def test_groups(assembled: Callable[..., PretrainingTrainer]) -> None:
    model = assembled().ibot
    groups = {group["name"]: group for group in parameter_groups(model)}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    of = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert groups["student, no decay"]["weight_decay"] == 0.0
    assert of["last layer"] == {"student.cls_head.last_layer.weight"}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set().union(*of.values()) == trained
    assert sum(map(len, of.values())) == len(trained)
    for name in trained - of["last layer"]:
        is_matrix = name.endswith(".weight") and "norm" not in name
        assert (name in of["student"]) == is_matrix, name


def test_rate_weight_decay_and_teacher_in_every_step(
    assembled: Callable[..., PretrainingTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With accumulation: once a step, after the optimizer; teacher = its moving mean, to the last bit."""
    trainer = assembled(
        training={
            "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 5, "save_steps": 9,
            "base_learning_rate": 0.64, "warmup_steps": 0, "report_to": "none", "dataloader_num_workers": 0,
            "output_dir": "unused", "disable_tqdm": True, "collapse_grace": 1.0,
        },
        objective={"out_dim": 32, "hidden_dim": 32, "bottleneck_dim": 16, "momentum": 0.5, "freeze_last_layer": 0.3},
    )  # fmt: skip
    seen: list[dict[str, float]] = []
    update = IBotModel.update_teacher

    def checked(model: IBotModel, momentum: float) -> None:
        before = [parameter.clone() for parameter in model.teacher.parameters()]
        update(model, momentum)
        for old, new, student in zip(
            before, model.teacher.parameters(), model.student.parameters(), strict=True
        ):
            assert torch.equal(new, old.lerp(student, 1 - momentum))
        rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
        decays = {group["name"]: group["weight_decay"] for group in trainer.optimizer.param_groups}
        seen.append({"momentum": momentum, "last": rates["last layer"], "rate": rates["student"]})
        assert decays["student, no decay"] == 0.0
        assert decays["student"] == decays["last layer"] == trainer.paces.weight_decay(len(seen) - 1)

    monkeypatch.setattr(IBotModel, "update_teacher", checked)
    monkeypatch.setattr(PretrainingTrainer, "_save_checkpoint", lambda *args, **kwargs: None)
    trainer.train()
    made = trainer.paces
    assert made.peak_rate == pytest.approx(0.64 * 4 / 256)
    assert [row["momentum"] for row in seen] == [made.momentum(step) for step in range(5)]
    assert [row["rate"] for row in seen] == pytest.approx([made.rate(step) for step in range(5)])
    assert [row["last"] for row in seen] == pytest.approx([0, 0, *(made.rate(step) for step in (2, 3, 4))])


def test_normalized(assembled: Callable[..., PretrainingTrainer]) -> None:
    trainer = assembled()
    views = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), dtype=np.uint8)
    model = trainer.recipe.model
    wanted = (views / 255 - np.array(model.image_mean)) / np.array(model.image_std)
    found = trainer.normalized(torch.from_numpy(views)).double().numpy()
    np.testing.assert_allclose(found, np.moveaxis(wanted, -1, 2), atol=1e-6)


def test_a_checkpoint_keeps_student_teacher_and_centres(
    assembled: Callable[..., PretrainingTrainer],
) -> None:
    trainer = assembled()
    kept = trainer.kept_tensors()
    assert kept.keys() == trainer.ibot.state_dict().keys()
    assert {name.split(".")[0] for name in kept} == {"student", "teacher", "cls_targets", "patch_targets"}


def test_every_step_has_a_whole_batch() -> None:
    class Draws:
        def __init__(self) -> None:
            self.epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __len__(self) -> int:
            return 10

        def __iter__(self) -> Any:
            return iter([(row, self.epoch, row) for row in range(10)])

    sampler = WholeBatches(Draws(), 4)
    sampler.set_epoch(3)
    assert len(sampler) == 8
    assert list(sampler) == [(row, 3, row) for row in range(8)]
    with pytest.raises(DataError, match="an epoch has 10 images and a step takes 16"):
        WholeBatches(Draws(), 16)


def test_a_batch_knows_its_masked_patches(assembled: Callable[..., PretrainingTrainer]) -> None:
    data = assembled(objective={"out_dim": 32, "mask_probability": 1.0}).train_dataset
    keys = [(0, 0, 0), (1, 0, 1)]
    made = as_batch(data.__getitems__(keys))
    masks = made["masks"].flatten()
    rows = int(masks.sum())
    assert made["places"][:rows].tolist() == masks.nonzero().flatten().tolist()
    assert made["weights"].sum().item() == pytest.approx(1.0)  # every view has a mask
    stacked = as_batch([data[key] for key in keys])
    assert all(torch.equal(stacked[name], made[name]) for name in made)


class Shown:
    """A monitor that has seen what a test says, line by line."""

    has_news = True

    def __init__(self, *lines: dict[str, float]) -> None:
        self.lines, self.monitor = list(lines), Monitor(out_dim=2, width=2, device=CPU, answers=["cls"])
        self.judge = self.monitor.judge

    def report(self, accelerator: Any) -> dict[str, float]:
        return self.lines.pop(0)


def test_two_bad_lines_stop_it_and_the_grace_is_kept(
    assembled: Callable[..., PretrainingTrainer], caplog: pytest.LogCaptureFixture
) -> None:
    trainer = assembled(training={"max_steps": 10, "collapse_grace": 0.5, "output_dir": "unused"})
    bad = {"teacher_entropy": 0.01, "information": 0.001, "feature_rank": 9.0}
    good = bad | {"information": 0.2}
    trainer._total_loss_scalar = 0.0
    trainer.monitor = Shown(bad, bad, bad, good, bad, bad)  # type: ignore[assignment]
    for step in (1, 4, 5, 6, 9):
        trainer.state.global_step = step
        trainer.log({"loss": 1.0})
        trainer.log({"knn": 1.0})  # no line of the training
    assert [record.message.split(" the")[0] for record in caplog.records if "may have" in record.message] == [
        "after step 5", "after step 9"
    ]  # fmt: skip
    trainer.state.global_step = 10
    with pytest.raises(CollapseError, match="after step 10"):
        trainer.log({"train_loss": 1.0})  # what Trainer logs at the end: of the steps after the last line
    assert trainer.state.log_history[-1]["information"] == 0.001


def test_a_run_that_ended_with_a_line_tells_nothing_twice(
    assembled: Callable[..., PretrainingTrainer],
) -> None:
    trainer = assembled()
    trainer.state.global_step, trainer._total_loss_scalar = 6, 0.0
    trainer.log({"train_loss": 1.0})
    assert "feature_rank" not in trainer.state.log_history[-1]


@pytest.mark.parametrize("where", ["teacher.backbone.embeddings.cls_token", "patch_targets.centre"])
def test_bad_numbers_of_teacher_and_centres_are_not_saved(
    assembled: Callable[..., PretrainingTrainer], where: str
) -> None:
    trainer = assembled()
    trainer.guard.check_weights("now")
    trainer.kept_tensors()[where].flatten()[0] = float("nan")
    with pytest.raises(BadNumbersError, match=where) as caught:
        trainer._save_checkpoint(trainer.model, None)
    assert "lower training.base_learning_rate" in str(caught.value)
    with pytest.raises(BadNumbersError, match="start of training"):
        trainer.train()


def test_remedies_name_keys_that_a_pretraining_recipe_has(
    assembled: Callable[..., PretrainingTrainer],
) -> None:
    recipe = assembled().recipe.to_dict()
    for text in vars(PRETRAINING).values():
        for section, key in re.findall(r"\b(data|views|model|objective|training)\.(\w+)", text):
            assert key in recipe[section], f"{section}.{key}"
