"""A small set of drawn cells and a tiny backbone, shared by the tests of the probe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import DINOv3ViTConfig, DINOv3ViTModel, set_seed

from cytodino_hf.data.sources.synthetic import draw_image_set


@pytest.fixture(scope="session")
def drawn_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    draw_image_set(root, cells=21 * 20, seed=3, imbalance_power=0.0, patients=12, workers=1)
    for folder in root.iterdir():
        if folder.is_dir() and folder.name not in ("BLA", "LYT", "NGS", "EOS"):
            shutil.rmtree(folder)
    return root


@pytest.fixture(scope="session")
def other_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 21 classes, 20 images each, none of them in `drawn_cells`."""
    root = tmp_path_factory.mktemp("others")
    draw_image_set(root, cells=21 * 20, seed=9, imbalance_power=0.0, patients=12, workers=1)
    return root


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    set_seed(1)
    DINOv3ViTModel(
        DINOv3ViTConfig(
            patch_size=16,
            image_size=64,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            num_register_tokens=1,
        )
    ).save_pretrained(folder)
    return folder
