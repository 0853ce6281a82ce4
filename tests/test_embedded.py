"""The backbone that ships with the package: it is small, says what it saw, and is worth something."""

from __future__ import annotations

import configparser
import csv
import hashlib
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from cytodino_hf.pretraining.recipe import load_pretrain_recipe
from cytodino_hf.recipe_checks import EMBEDDED_FOLDER

ROOT = Path(__file__).parent.parent
#: What the field calls small, and what a package may carry.
_LARGEST_MB = 10


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """What the pretraining wrote about itself."""
    found: dict[str, Any] = json.loads((EMBEDDED_FOLDER / "pretraining.json").read_text(encoding="utf-8"))
    return found


def listed() -> set[str]:
    with open(EMBEDDED_FOLDER / "images.csv", encoding="utf-8", newline="") as file:
        return {row["sha256"] for row in csv.DictReader(file)}


def test_it_is_small_and_whole(record: dict[str, Any]) -> None:
    weights = EMBEDDED_FOLDER / "model.safetensors"
    assert weights.stat().st_size <= _LARGEST_MB * 1e6
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == record["weights_sha256"]


def test_transformers_alone_loads_it() -> None:
    import torch
    from transformers import AutoModel

    backbone, said = AutoModel.from_pretrained(EMBEDDED_FOLDER, output_loading_info=True)
    assert type(backbone).__name__ == "DINOv3ViTModel"
    assert not any(said.values()), said
    assert json.loads((EMBEDDED_FOLDER / "config.json").read_text())["dtype"] == "bfloat16"
    assert 1e6 < sum(p.numel() for p in backbone.parameters()) < 10e6
    side = backbone.config.image_size
    with torch.inference_mode():
        features = backbone(torch.zeros(1, 3, side, side, dtype=backbone.dtype)).last_hidden_state
    assert features.isfinite().all()


def test_it_is_what_our_recipe_makes(record: dict[str, Any]) -> None:
    """Where images lie and how many processes read them is the reader's business; all else is the recipe's."""
    document = json.loads((ROOT / "recipes" / "pretrain" / "cytodino_tiny.json").read_text(encoding="utf-8"))
    recipe = load_pretrain_recipe(ROOT / "recipes" / "pretrain" / "cytodino_tiny.json").to_dict()
    made = record["recipe"]
    for section in ("views", "model", "objective"):
        assert made[section] == recipe[section], section
    for key, value in document["training"].items():
        if key not in ("output_dir", "dataloader_num_workers"):
            assert made["training"][key] == value, key
    for name, source in document["data"]["sources"].items():
        assert made["data"]["sources"][name]["weight"] == source["weight"]
    assert record["training"]["steps"] == recipe["training"]["max_steps"]


def test_its_card_names_whose_images_they_are(record: dict[str, Any]) -> None:
    card = (EMBEDDED_FOLDER / "README.md").read_text(encoding="utf-8")
    for words in ("CC BY 4.0", "Matek", "10.7937/TCIA.AXH3-T579", "Research use", "iBOT", "synthetic"):
        assert words in card, words
    assert f"{record['training']['steps']:,} steps" in card


def test_the_demo_draws_other_cells(record: dict[str, Any]) -> None:
    drawn = [s for s in record["recipe"]["data"]["sources"].values() if s["source"] == "synthetic"]
    demo = json.loads((ROOT / "recipes" / "demo.json").read_text(encoding="utf-8"))
    assert demo["model"]["backbone"] == "embedded"
    assert (demo["model"]["method"], demo["model"]["head"]) == ("lora", "decoder")
    assert demo["data"]["synthetic"]["seed"] not in [s["synthetic"]["seed"] for s in drawn]


def test_an_installation_brings_every_file() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    patterns = [p.strip() for p in setup["options.package_data"]["cytodino_hf"].split(",")]
    for file in EMBEDDED_FOLDER.iterdir():
        name = file.relative_to(EMBEDDED_FOLDER.parent).as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name


def test_it_never_saw_an_image_outside_the_training_fold(real_data: Path) -> None:
    seen = listed()
    with open(real_data / "mll7" / "split.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        sha256 = hashlib.sha256((real_data / "mll7" / row["path"]).read_bytes()).hexdigest()
        assert (sha256 in seen) == (row["fold"] == "train"), row["path"]


@pytest.mark.slow
def test_pretraining_is_worth_five_points(tmp_path: Path, real_data: Path) -> None:
    """Against the same architecture untrained, three seeds: what the images of the test fold say, paired."""
    from cytodino_hf.cli import main

    with pytest.raises(SystemExit) as ended:
        main(
            [
                *("probe", "embedded", "random:embedded", "--output", str(tmp_path), "--few-shot-draws", "0"),
                *("--data.source", "mll", "--data.root", str(real_data / "mll7")),
                *("--data.split", str(real_data / "mll7" / "split.csv")),
                *("--data.center_crop_px", "168", "--data.hide_center_px", "7"),
            ]
        )
    assert not ended.value.code
    found = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    for row in found["comparisons"]:
        difference = row["differences"]["balanced_accuracy"]
        assert (difference["n"], difference["other_seeds"]) == (280, 3)
        if row["other_method"] == "logistic":
            assert difference["value"] >= 0.05, difference
            assert difference["low"] > 0, difference
            assert difference["low_of_both"] > 0, difference
    assert "logistic" in [row["other_method"] for row in found["comparisons"]]
