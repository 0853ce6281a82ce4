"""Pretraining recipes: every shipped one loads, every key is explained, every mistake is told at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cytodino_hf.errors import RecipeError, RunFolderError
from cytodino_hf.pretraining.recipe import (
    SECTIONS,
    PretrainRecipe,
    load_pretrain_recipe,
    parse_pretrain_recipe,
)
from cytodino_hf.run_folder import RunFolder

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes" / "pretrain").glob("*.json"))


@pytest.fixture
def document(tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "images").mkdir()
    return tiny_pretraining(tmp_path / "images", tmp_path / "run")


def parsed(document: dict[str, Any]) -> PretrainRecipe:
    return parse_pretrain_recipe(document, source="test")


def problems(document: dict[str, Any], tmp_path: Path, *overrides: str) -> list[str]:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(document))
    with pytest.raises(RecipeError) as caught:
        load_pretrain_recipe(path, overrides)
    return caught.value.problems


def test_there_are_recipes() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "cytodino_tiny", "vits_continue"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_loads_and_says_the_same_when_resolved(path: Path, tmp_path: Path) -> None:
    recipe = load_pretrain_recipe(path)
    resolved = tmp_path / "resolved.json"
    resolved.write_text(json.dumps(recipe.to_dict()))
    assert load_pretrain_recipe(resolved).to_dict() == recipe.to_dict()
    assert tuple(recipe.to_dict()) == SECTIONS
    assert recipe.training.output_dir == f"runs/pretrain_{path.stem}"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_the_guide_explains_every_key(path: Path) -> None:
    guide = (ROOT / "recipes" / "README.md").read_text()
    begin = guide.index("## Pretraining recipes")
    part = guide[begin : guide.index("\n## ", begin + 1)]
    assert f"`pretrain/{path.name}`" in part
    document = load_pretrain_recipe(path).to_dict()
    (source,) = list(document["data"]["sources"].values())[:1]
    hub = document.pop("hub")
    names = [key for section in document.values() for key in section] + list(source) + list(document)
    ours = [name for name in names if name not in ("mll", "image_folder", "synthetic")]
    assert [name for name in ours if f"`{name}`" not in part] == []
    assert [name for name in hub if f"`{name}`" not in guide] == []


def test_overrides_reach_a_source_by_its_name(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(document))
    recipe = load_pretrain_recipe(
        tmp_path / "recipe.json",
        ["--data.sources.cells.split_seed", "3", "--probe.k=7", "--objective.centering", "sinkhorn"],
    )
    assert recipe.data.entries[0].entry.split_seed == 3
    assert recipe.probe.k == 7
    assert recipe.objective.centering == "sinkhorn"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (("--objectiv.out_dim", "4"), ["objectiv", "unknown section", "'objective'"]),
        (("--objective.out_dims", "4"), ["objective.out_dims", "unknown key", "'out_dim'"]),
        (("--objective.centering", "center"), ["objective.centering = 'center'", "'centre'"]),
        (("--objective.mask_aspect", "[3, 1]"), ["objective.mask_aspect", "least, largest"]),
        (("--training.base_learning_rate", "0"), ["training.base_learning_rate = 0", "greater than 0"]),
        (("--training.learning_rate", "1e-3"), ["training.learning_rate", "unknown key", "base_learning_rate"]),
        (("--training.warmup_steps", "6"), ["training.warmup_steps = 6", "fewer than training.max_steps 6"]),
        (("--training.bf16", "true"), ["training.bf16", "accelerate"]),
        (("--training.gradient_checkpointing", "true"), ["gradient_checkpointing", "activation_"]),
        (("--views.global_size_px", "30"), ["views.global_size_px = 30", "multiple", "24 or 32"]),
        (("--probe.image_size_px", "30"), ["probe.image_size_px = 30", "multiple", "8"]),
        (("--probe.source", "image_foldr"), ["probe.source = 'image_foldr'", "unknown source", "'image_folder'"]),
        (("--probe.root", "nowhere"), ["probe.root = 'nowhere'", "no such folder"]),
        (("--probe.image_folder.tabel", "x"), ["probe.image_folder.tabel", "'table'"]),
        (("--model.backbone", "facebook/dinov2-small"), ["model.backbone", "exactly one"]),
        (("--model.image_std", "[1, 1, 0]"), ["model.image_std", "greater than 0"]),
        (("--data.sources.cells.rot", "x"), ["data.sources.cells.rot", "'root'"]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_a_mistake_is_told_with_its_remedy(
    document: dict[str, Any], tmp_path: Path, override: tuple[str, str], words: list[str]
) -> None:
    (problem,) = problems(document, tmp_path, *override)
    for word in words:
        assert word in problem


def test_all_mistakes_are_told_at_once(document: dict[str, Any], tmp_path: Path) -> None:
    found = problems(
        document,
        tmp_path,
        "--views.global_size_px",
        "30",
        "--objective.momentum",
        "2",
        "--training.seed",
        "-1",
    )
    assert len(found) == 3


def test_images_may_move_between_two_starts_and_nothing_else_may(
    document: dict[str, Any], tmp_path: Path
) -> None:
    class Data:
        def fingerprint(self) -> str:
            return "same"

        def write_lists(self, folder: Path) -> None:
            pass

    run = RunFolder(document["training"]["output_dir"])
    run.begin(parsed(document), Data())
    moved = json.loads(json.dumps(document))
    (tmp_path / "elsewhere").mkdir()
    moved["data"]["sources"]["cells"]["root"] = moved["probe"]["root"] = str(tmp_path / "elsewhere")
    moved["data"]["sources"]["cells"]["cache"] = "bytes"
    run.check(parsed(moved), "same")
    moved["data"]["sources"]["cells"]["split_seed"] = 1
    with pytest.raises(RunFolderError, match=r"data\.sources\.cells\.split_seed: 0 there, 1 now"):
        run.check(parsed(moved))
    with pytest.raises(RunFolderError, match="other data"):
        run.check(parsed(document), "other")
