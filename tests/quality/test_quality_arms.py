"""Arms follow the recipes; each is shown as many images and chooses as often."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.quality import arms
from benchmarks.quality.backbones import StudyBackbone, crop_for, study_backbone
from benchmarks.quality.images import load_images
from benchmarks.quality.settings import QualitySettings
from cytodino_hf.evaluation.frozen_backbones import load_frozen_backbone
from cytodino_hf.recipe import parse_recipe
from cytodino_hf.trainer import CytoTrainer, training_arguments

# Of the recipes: where and how fast, not what; or the same for both ways in a study.
SAME_FOR_ALL = {("data", "source"), ("training", "output_dir"), ("training", "dataloader_num_workers"),
                ("training", "per_device_eval_batch_size")}  # fmt: skip


def flat(document: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {
        (section, key): value for section, keys in document.items() for key, value in keys.items()
        if (section, key) not in SAME_FOR_ALL
    }  # fmt: skip


def test_what_the_arms_take_from_the_published_recipe_is_all_it_differs_in() -> None:
    takes = tuple(key for arm in arms.ARMS.values() for key in arm.takes)
    together = flat(arms.changed(arms.Arm("all", "", takes=takes)))
    published = flat(arms.changed(arms.ARMS["published"]))
    defaults = flat(
        parse_recipe({"model": {"backbone": "a/b"}, "training": {"output_dir": "x"}}, source="").to_dict()
    )
    different = {
        key for key in together.keys() | published.keys()
        if together.get(key, defaults.get(key)) != published.get(key, defaults.get(key))
    }  # fmt: skip
    assert different == set()
    assert arms.ARMS["published"].precision == arms.ARMS["float32"].precision == "no"


def test_every_arm_changes_something_and_the_unchanged_ones_are_the_recipes() -> None:
    unchanged = {
        name: [a.name for a in arms.ARMS.values() if a.recipe == name and arms.changed(a) == arms._read(name)]
        for name in (arms.OURS, arms.PUBLISHED, arms.TINY)
    }
    assert unchanged == {
        arms.OURS: ["ours", "float32", "with_more", "with_more_long"],
        arms.PUBLISHED: ["published", "published_with_more"],
        arms.TINY: ["tiny", "tiny_with_more"],
    }


@pytest.mark.parametrize("name", arms.ARMS)
def test_an_arm_is_a_recipe_that_shows_as_many_images(
    name: str, images: Path, more: Path, backbone: Path, tmp_path: Path
) -> None:
    arm = arms.ARMS[name]
    found = load_images(images, images / "split.csv", (more,) if arm.more != "none" else (), tmp_path)
    settings = QualitySettings(images=images, backbone=str(backbone), output=tmp_path, image_size_px=16)
    on = StudyBackbone(str(backbone), "", None)
    document = arms.recipe_of(arm, found, settings, on)
    document["training"] |= {"output_dir": "x", "seed": 0}
    recipe = parse_recipe(document, source=name)
    # 8 epochs with a multiplier of 2, as both recipes have it, over the 18 training images (6 of 12 pictures of 3
    # classes; 4 more of each with more): 36 draws an epoch are 3 steps of 16, with 12 more images 60 draws are 4.
    steps = 8 * (4 if arm.more == "all" else 3)
    batch = (
        4 if name in ("published", "published_with_more", "batch") else 32 if arm.recipe == arms.TINY else 16
    )
    training = recipe.training

    def whole(shown: float, choices: int) -> int:
        """Whole steps between two choices: never fewer images than asked for."""
        return choices * math.ceil(shown / batch / choices) * batch

    assert training.max_steps * batch == whole(steps * 16, 8)
    assert training.per_device_train_batch_size == batch
    assert training.gradient_accumulation_steps == 1
    # Eight choices of a checkpoint in every arm, after as many images each.
    assert training.eval_strategy == training.save_strategy == "steps"
    assert training.eval_steps == training.save_steps == training.max_steps / 8
    assert training.early_stopping_patience == (10 if arm.recipe == arms.TINY else 5)
    assert (recipe.data.image_size_px, recipe.model.backbone) == (16, str(backbone))

    def shown_and_chosen(**changes: Any) -> tuple[float, float]:
        training = arms.recipe_of(arm, found, settings.model_copy(update=changes), on)["training"]
        return training["max_steps"] * batch, training["max_steps"] / training["eval_steps"]

    assert shown_and_chosen(epochs=4) == (whole(steps / 2 * 16, 4), 4)
    assert shown_and_chosen(epochs=30) == (whole(steps / 8 * 30 * 16, 30), 30)
    assert shown_and_chosen(epochs=0.5) == (2 * 16, 1)
    assert shown_and_chosen(max_steps=10) == (
        whole(160, 5),
        5,
    )  # a trial: the most choices that divide it evenly


@pytest.mark.parametrize("name", ["schedule", "published_with_more"])
def test_a_schedule_that_moves_once_an_epoch_moves_with_each_choice(
    name: str, images: Path, more: Path, backbone: Path, tmp_path: Path
) -> None:
    """The rates of a whole run: cosine over eight levels from 3e-4 to (nearly) nothing, also with more images."""
    arm = arms.ARMS[name]
    found = load_images(images, images / "split.csv", (more,), tmp_path)
    settings = QualitySettings(images=images, backbone=str(backbone), output=tmp_path, image_size_px=16)
    document = arms.recipe_of(arm, found, settings, StudyBackbone(str(backbone), "", None))
    document["training"] |= {"output_dir": "x", "seed": 0}
    recipe = parse_recipe(document, source=name)
    steps = recipe.training.max_steps
    model = torch.nn.Linear(1, 1)
    trainer = CytoTrainer(
        model=model, loss=torch.nn.CrossEntropyLoss(), processor=None, training=recipe.training,
        oversampling=recipe.data.oversampling, args=training_arguments(recipe), train_dataset=[0], eval_dataset=[0],
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=3e-4)
    scheduler = trainer.create_scheduler(steps, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    levels = 1e-7 + (3e-4 - 1e-7) * (1 + np.cos(np.pi * np.arange(8) / 8)) / 2
    assert rates == pytest.approx(np.repeat(levels, steps // 8), rel=1e-6)


def test_arms_have_different_names_and_a_reference() -> None:
    assert next(iter(arms.ARMS)) == "ours"
    assert [arm.name for arm in arms.chosen(())][:2] == ["ours", "published"]
    assert [arm.name for arm in arms.chosen(("published", "ours"))] == ["ours", "published"]
    assert len({arm.title for arm in arms.ARMS.values()}) == len(arms.ARMS)


def test_pictures_are_cut_as_the_backbone_was_pretrained(
    settings: QualitySettings, backbone: Path, images: Path, tmp_path: Path
) -> None:
    def crop(asked: int | None = None) -> int | None:
        return crop_for(load_frozen_backbone(str(folder)), asked)

    folder = tmp_path / "backbone"
    shutil.copytree(backbone, folder)
    assert crop() is None
    (folder / "pretraining.json").write_text(json.dumps({"recipe": {"views": {"center_crop_px": 24}}}))
    assert (crop(), crop(0), crop(20)) == (24, None, 20)
    processor = {"do_center_crop": True, "crop_size": {"height": 28, "width": 28}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    assert crop() == 24  # of the resized picture: no size on the slide
    ours = processor | {"image_processor_type": "CytoDinoImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(ours))
    assert crop() == 28
    found = load_images(images, images / "split.csv", (), tmp_path)
    for arm in ("ours", "published"):
        document = arms.recipe_of(
            arms.ARMS[arm], found, settings, study_backbone(tmp_path, str(folder), None)
        )
        assert document["data"]["center_crop_px"] == 28
