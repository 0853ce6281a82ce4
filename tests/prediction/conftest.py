"""A small finished RUN that every test of using a model shares."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    """A folder of class folders."""
    return make_images(tmp_path_factory.mktemp("cells"), per_class=10)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, cells: Path, tiny_recipe: Callable[..., dict]) -> Path:
    """A RUN trained on `cells`: LoRA, the backbone beside it."""
    from cytodino_hf.finetune import finetune
    from cytodino_hf.recipe import parse_recipe

    out = tmp_path_factory.mktemp("runs") / "run"
    document = tiny_recipe(cells, out, training={"max_steps": 30, "eval_steps": 30, "save_steps": 30})
    return finetune(parse_recipe(document, source="test")).path
