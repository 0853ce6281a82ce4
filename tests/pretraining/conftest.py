"""The smallest pretraining that does everything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def tiny_pretraining() -> Callable[..., dict[str, Any]]:
    """Sections of a pretraining recipe that trains in a second or two."""

    def recipe(root: Path, out: Path, **changes: Any) -> dict[str, Any]:
        document: dict[str, Any] = {
            "data": {
                "sources": {"cells": {"source": "image_folder", "root": str(root), "split": "stratified"}}
            },
            "views": {"global_size_px": 32},
            "model": {
                "backbone_config": {
                    "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32,
                    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
                    "num_register_tokens": 2,
                },
                "attention": "eager",
            },
            "objective": {"out_dim": 32, "hidden_dim": 32, "bottleneck_dim": 16},
            "training": {
                "output_dir": str(out), "max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 2,
                "save_steps": 3, "dataloader_num_workers": 0, "disable_tqdm": True, "report_to": "none",
                "base_learning_rate": 0.05,
            },
            "probe": {"source": "image_folder", "root": str(root), "k": 3, "every_steps": 3},
        }  # fmt: skip
        for name, keys in changes.items():
            document[name] = document.get(name, {}) | keys
        return document

    return recipe
