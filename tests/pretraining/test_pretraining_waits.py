"""Between two logged steps of a pretraining nothing makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import LAST, Watch, Watched, train_unwaiting

from cytodino_hf.pretraining import pretrain as module
from cytodino_hf.pretraining.mixture import load_mixture
from cytodino_hf.pretraining.recipe import parse_pretrain_recipe
from cytodino_hf.pretraining.trainer import PretrainingTrainer

WAYS: dict[str, dict[str, Any]] = {
    "centre": {},
    "sinkhorn, local views": {
        "views": {"local_crops": 2, "local_size_px": 16},
        "objective": {"centering": "sinkhorn", "koleo_weight": 0.1, "separate_patch_head": True},
    },
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=12)


@pytest.fixture(params=WAYS)
def trainer(
    request: pytest.FixtureRequest,
    images: Path,
    tmp_path: Path,
    tiny_pretraining: Callable[..., dict[str, Any]],
) -> PretrainingTrainer:
    document = tiny_pretraining(images, tmp_path / "run", probe={"source": None}, **WAYS[request.param])
    document["training"] |= {
        # 24 images train: the steps that are watched are of one epoch, which begins with a seed drawn on the host.
        "max_steps": LAST + 1, "logging_steps": 100, "save_steps": 100, "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        # Making views and masks, and finding the masked patches, is the work of other processes.
        "dataloader_num_workers": 1,
    }  # fmt: skip
    recipe = parse_pretrain_recipe(document, source="test")
    return module._assemble(recipe, load_mixture(recipe.data))


def test_no_step_waits_for_a_value(trainer: PretrainingTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PretrainingTrainer, "_save_checkpoint", lambda *args, **kwargs: None)
    watch = Watch()
    trainer.add_callback(Watched(watch))
    trainer.train()
    assert watch.calls > 300
    assert watch.found == {}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_step_waits(trainer: PretrainingTrainer) -> None:
    train_unwaiting(trainer)
