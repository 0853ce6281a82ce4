"""Recipes: every mistake is found at once, named with its place, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cytodino_hf.errors import RecipeError
from cytodino_hf.recipe import SECTIONS, Recipe, load_recipe, parse_recipe

ROOT = Path(__file__).parent.parent
BACKBONE = {"model_type": "dinov3_vit", "hidden_size": 32, "num_attention_heads": 2, "patch_size": 8}


def write(folder: Path, **sections: dict) -> Path:
    document = {
        "data": {"source": "synthetic", "image_size_px": 64},
        "model": {"backbone_config": BACKBONE},
        "training": {"output_dir": "out"},
    }
    for name, keys in sections.items():
        document[name] = document.get(name, {}) | keys
    path = folder / "recipe.json"
    path.write_text(json.dumps(document))
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


def only(path: Path, *overrides: str) -> str:
    (problem,) = problems(path, *overrides)
    return problem


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.json")), ids=lambda p: p.name)
def test_every_recipe_loads_and_says_the_same_when_resolved(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    resolved = tmp_path / "resolved.json"
    resolved.write_text(json.dumps(recipe.to_dict()))
    assert load_recipe(resolved).to_dict() == recipe.to_dict()
    assert tuple(recipe.to_dict()) == SECTIONS


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.json")), ids=lambda p: p.name)
def test_the_guide_explains_every_key(path: Path) -> None:
    guide = (ROOT / "recipes" / "README.md").read_text()
    for section, keys in load_recipe(path).to_dict().items():
        for key in keys:
            assert f"`{key}`" in guide or f"`{section}.{key}`" in guide, f"{section}.{key} is not explained"


def test_overrides_reach_nested_keys_and_keep_text_as_text(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path),
        [
            "--data.oversampling.power", "0.5", "--data.oversampling.multiplier=3",
            "--model.lora_targets", '["q_proj"]',
            "--training.output_dir", "7", "--training.metric_for_best_model=accuracy", "--data.center_crop_px", "null",
            "--training.adam_beta1", "0.8",
        ],
    )  # fmt: skip
    assert recipe.data.oversampling.power == 0.5
    assert recipe.data.oversampling.multiplier == 3
    assert recipe.model.lora_targets == ["q_proj"]
    assert recipe.training.output_dir == "7"
    assert recipe.data.center_crop_px is None
    assert recipe.training.model_extra == {"adam_beta1": 0.8}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (("--training.learning_rate", "-5"), ["training.learning_rate = -5", "greater than 0"]),
        (("--training.learning_rate", "NaN"), ["training.learning_rate = nan", "finite"]),
        (("--training.learning_rate", "Infinity"), ["training.learning_rate = inf", "finite"]),
        (("--training.learning_rate", "1e-4x"), ["training.learning_rate = '1e-4x'", "must be a number"]),
        (("--training.max_steps", "true"), ["training.max_steps = True", "whole number"]),
        (("--training.seed", "1.5"), ["training.seed = 1.5", "whole number"]),
        (("--loss.smoothing", "1.2"), ["loss.smoothing = 1.2", "must be less than"]),
        (("--loss.name", "focall"), ["loss.name = 'focall'", "'focal'"]),
        (("--model.lora_rnk", "3"), ["model.lora_rnk", "unknown", "'lora_rank'"]),
        (("--model.method", "lorra"), ["model.method = 'lorra'", "'lora', 'head' or 'full'", "did you mean 'lora'"]),
        (("--model.train_norms", "yes"), ["model.train_norms = 'yes'", "true or false"]),
        (("--modle.method", "lora"), ["modle", "unknown section", "'model'"]),
        (("--data.synthetic.cels", "9"), ["data.synthetic.cels", "unknown", "'cells'"]),
        (("--data.image_size_px", "60"), ["data.image_size_px = 60", "multiple", "8", "56 or 64"]),
        (("--data.source", "mlll"), ["data.source = 'mlll'", "unknown source", "'mll'"]),
        (("--data.split", "nowhere.csv"), ["data.split = 'nowhere.csv'", "existing file"]),
        (("--data.taxonomy", "nowhere.json"), ["data.taxonomy = 'nowhere.json'", "JSON file"]),
        (("--data.fractions.train", "0.9"), ["data.fractions", "sum to 1"]),
        (("--data.image_std", "[0.2, 0.2]"), ["data.image_std", "3"]),
        (("--data.image_std", "[0.2, 0.2, 0]"), ["data.image_std", "greater than 0"]),
        (("--model.decoder_heads", "5"), ["model.decoder_heads = 5", "width of 32"]),
        (("--model.backbone", "facebook/dinov3-vits16-pretrain-lvd1689m"), ["model.backbone", "exactly one"]),
        (("--model.backbone_config.hiden_size", "64"), ["model.backbone_config.hiden_size", "'hidden_size'"]),
        (("--model.backbone_config.hidden_size", '"64"'), ["model.backbone_config", "hidden_size"]),
        (("--model.backbone_config.model_type", "vit"), ["model_type = 'vit'", "dinov3_vit"]),
        (("--training.bf16", "true"), ["training.bf16", "accelerate"]),
        (("--training.push_to_hub", "true"), ["training.push_to_hub", "publish"]),
        (("--training.warmup_ratio", "0.1"), ["training.warmup_ratio", "warmup_steps"]),
        (("--training.label_smoothing_factor", "0.1"), ["label_smoothing_factor", "loss.smoothing"]),
        (("--training.optim", "adamw_trch"), ["training.optim = 'adamw_trch'", "'adamw_torch'"]),
        (("--training.lr_scheduler_type", "cosin"), ["lr_scheduler_type = 'cosin'", "'cosine'"]),
        (("--training.adam_beta1", "x"), ["training.adam_beta1 = 'x'", "must be a number"]),
        (("--training.per_device_train_batch", "3"), ["unknown", "'per_device_train_batch_size'"]),
        (("--training.metric_for_best_model", "macro_f2"), ["'macro_f2'", "'macro_f1'"]),
        (("--training.save_strategy", "steps"), ["training.save_strategy", "equal", "eval_strategy"]),
        (("--training.early_stopping_patience", "0"), ["early_stopping_patience = 0", "at least 1"]),
        (("--hub.token", "abc"), ["hub.token", "unknown"]),
        (("--lora_rank", "3"), ["--lora_rank", "--section.key VALUE"]),
        (("--data.root",), ["--data.root", "value is missing"]),
        (("stray",), ["stray", "--section.key VALUE"]),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)  # fmt: skip
def test_one_mistake_is_one_line_with_place_value_and_remedy(
    tmp_path: Path, override: tuple[str, ...], words: list[str]
) -> None:
    problem = only(write(tmp_path), *override)
    assert [w for w in words if w not in problem] == [], problem


def test_all_mistakes_come_at_once_also_contradictions(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        data={"image_size_px": 60, "center_crop_px": "180", "split": "nowhere"},
        loss={"name": "focal", "gamma": -1},
        training={"learning_rate": -5, "metric_for_best_model": "f", "fp16": True},
    )
    text = "\n".join(problems(path, "--model.lora_rank", "x", "--model.decoder_heads", "3"))
    for name in (
        "data.image_size_px", "data.center_crop_px", "data.split", "loss.gamma", "training.learning_rate",
        "training.metric_for_best_model", "training.fp16", "model.lora_rank", "model.decoder_heads",
    ):  # fmt: skip
        assert name in text
    assert len(text.splitlines()) == 9


def test_a_token_is_never_repeated(tmp_path: Path) -> None:
    problem = only(write(tmp_path, training={"hub_token": "hf_secret"}))
    assert "hf_secret" not in problem
    assert "HF_TOKEN" in problem


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "sections"),
        ('{"data": 3}', "must be an object"),
        ('{"data": {}, "data": {}}', "stands twice"),
        ('{"model": {"lora_rank": 3, "lora_rank": 4}}', "lora_rank: stands twice"),
        ("", "JSON"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    assert words in "\n".join(problems(path))


def test_a_missing_recipe_names_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path)
    assert "recipe.json" in only(tmp_path / "recip.json")


def test_a_local_backbone_gives_patch_and_width(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "dinov2", "patch_size": 14, "hidden_size": 48})
    )
    path = write(tmp_path, model={"backbone_config": None, "backbone": str(folder), "decoder_heads": 5})
    text = "\n".join(problems(path))
    assert "multiple of the backbone's patch of 14, such as 56 or 70" in text
    assert "width of 48" in text


def test_the_patch_of_a_known_hub_family_is_checked_without_the_hub(tmp_path: Path) -> None:
    path = write(tmp_path, model={"backbone_config": None, "backbone": "facebook/dinov2-large"})
    assert "patch of 14" in only(path)


def test_defaults_make_a_whole_recipe() -> None:
    recipe = parse_recipe(
        {"model": {"backbone_config": BACKBONE}, "training": {"output_dir": "out"}}, source="test"
    )
    assert isinstance(recipe, Recipe)
    assert recipe.loss.name == "hierarchical_focal"
    assert sum(recipe.data.fractions.model_dump().values()) == pytest.approx(1)


def test_a_fine_tuning_needs_labels(tmp_path: Path) -> None:
    path = write(tmp_path, data={"source": "image_folder", "image_folder": {"labels": "none"}})
    assert "data.image_folder.labels = 'none': a fine-tuning needs labels" in only(path)
    write(tmp_path, data={"source": "synthetic", "image_folder": {"labels": "none"}})
    assert load_recipe(path).data.source == "synthetic"  # options of another source have no effect
