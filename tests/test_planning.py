"""The dry run: memory on a card, what to change, and that it fits what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cytodino_hf.data.loading import load_split
from cytodino_hf.planning import Plan, make_plan
from cytodino_hf.recipe import load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=16)


@pytest.fixture(scope="module")
def vit_l(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that says it is a ViT-L; the dry run reads no weights."""
    from transformers import DINOv3ViTConfig

    folder = tmp_path_factory.mktemp("vit_l")
    DINOv3ViTConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        num_register_tokens=4,
    ).save_pretrained(folder)
    return folder


def plan(name: str, images: Path, backbone: Path, *overrides: str) -> Plan:
    recipe = load_recipe(
        ROOT / "recipes" / f"{name}.json",
        [
            "--data.root",
            str(images),
            "--data.source",
            "image_folder",
            "--model.backbone",
            str(backbone),
            *overrides,
        ],
    )
    return make_plan(recipe, load_split(recipe))


@pytest.mark.parametrize("name", ["cytodino32", "cytodino64"])
def test_the_shipped_recipes_fit_a_16_gb_card(
    name: str, images: Path, vit_l: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    made = plan(name, images, vit_l)
    training = made.recipe.training
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 16
    assert made.memory.fits_card
    assert made.remedies == ()
    text = made.to_text()
    assert "computing in bf16): fits a 16 GB card" in text
    assert f"{made.memory.on_gpu / 2**30:.2f} GiB on a GPU" in text


@pytest.mark.slow
def test_what_does_not_fit_comes_with_what_to_change(images: Path, vit_l: Path) -> None:
    made = plan("cytodino32", images, vit_l, "--training.per_device_train_batch_size", "64")
    text = made.to_text()
    assert not made.memory.fits_card
    assert "computing in float32): does NOT fit a 16 GB card" in text
    smaller, checkpointing = made.remedies
    # The first half that fits, and the accumulation that keeps 64 images a step.
    assert "--training.per_device_train_batch_size 16 --training.gradient_accumulation_steps 4" in smaller
    assert "--training.activation_checkpointing true" in checkpointing
    assert all(f"change one: {remedy}" in text for remedy in made.remedies)
    halved = plan(
        "cytodino32", images, vit_l,
        "--training.per_device_train_batch_size", "16", "--training.gradient_accumulation_steps", "4",
    )  # fmt: skip
    assert halved.memory.fits_card
    assert f"({halved.memory.on_gpu / 2**30:.2f} GiB" in smaller


def test_steps_and_checkpointing_of_a_plan(
    images: Path, tmp_path: Path, tiny_recipe: Callable[..., dict]
) -> None:
    sizes = []
    for checkpointing in (False, True):
        training = {
            "max_steps": -1, "num_train_epochs": 3, "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 2, "activation_checkpointing": checkpointing,
        }  # fmt: skip
        recipe = parse_recipe(tiny_recipe(images, tmp_path / "out", training=training), source="test")
        split = load_split(recipe)
        made = make_plan(recipe, split)
        count = len(split.images.fold("train").labels)
        batches = -(-count // 8)
        assert made.steps == 3 * -(-batches // 2)
        sizes.append(made.memory.activations)
    assert sizes[1] < sizes[0]
