"""Between two logged steps nothing makes the host wait for the device, nor is a tensor made from Python lists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_waits import FIRST, LAST, Watch, Watched, train_unwaiting

from cytodino_hf import finetune as module
from cytodino_hf.data.loading import load_split
from cytodino_hf.losses import LOSSES
from cytodino_hf.recipe import parse_recipe
from cytodino_hf.run_folder import RunFolder
from cytodino_hf.trainer import CytoTrainer


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=20)


@pytest.fixture
def trainer_of(images: Path, tmp_path: Path, tiny_recipe: Callable[..., dict]) -> Callable[..., CytoTrainer]:
    def make(loss: str = "hierarchical_focal", method: str = "lora", **training: Any) -> CytoTrainer:
        settings = {
            "max_steps": LAST + 1, "logging_steps": 100, "eval_strategy": "no", "save_strategy": "no",
            # Reading and stacking pictures is the work of other processes.
            "dataloader_num_workers": 1, "gradient_accumulation_steps": 2,
        }  # fmt: skip
        document = tiny_recipe(
            images,
            tmp_path / "run",
            loss={"name": loss},
            model={"method": method},
            training=settings | training,
        )
        recipe = parse_recipe(document, source="test")
        return module._assemble(recipe, load_split(recipe).images, RunFolder(tmp_path / "run"))

    return make


@pytest.mark.parametrize(
    ("loss", "method"), [("hierarchical_focal", "lora"), *((name, "head") for name in LOSSES)]
)
def test_no_step_waits_for_a_value(trainer_of: Callable[..., CytoTrainer], loss: str, method: str) -> None:
    trainer, watch = trainer_of(loss, method), Watch()
    trainer.add_callback(Watched(watch))
    trainer.train()
    assert watch.calls > 300
    assert watch.found == {}


def test_nor_with_an_optimizer_that_is_not_fused_and_without_clipping(
    trainer_of: Callable[..., CytoTrainer],
) -> None:
    """adamw_torch keeps its step counts on the host; reading them there waits for nothing."""
    trainer, watch = trainer_of(optim="adamw_torch", max_grad_norm=0), Watch()
    trainer.add_callback(Watched(watch))
    trainer.train()
    assert all("aten::_local_scalar_dense in" in place for place in watch.found), watch.found
    assert not any("cytodino" in place or "trainer.py" in place for place in watch.found)


def test_the_watch_sees_what_it_is_for(trainer_of: Callable[..., CytoTrainer]) -> None:
    """A loss that reads a value, a mask as index, a tensor from a list: each is found and named by its line."""
    trainer, watch = trainer_of(), Watch()
    loss = trainer.loss

    def careless(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = loss(logits, labels)
        if value.item() > 1e9 or len(labels[labels >= 0]) > 99:
            value = value * torch.tensor([2.0])
        return value * torch.tensor([1.0])[0]

    trainer.loss = careless  # type: ignore[assignment]
    trainer.add_callback(Watched(watch))
    trainer.train()
    kinds = Counter(place.split(" in ")[0] for place in watch.found.elements())
    steps = 2 * (LAST - FIRST)
    assert kinds == {"aten::_local_scalar_dense": steps, "aten::index": steps, "aten::lift_fresh": steps}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("loss", LOSSES)
def test_on_a_gpu_no_step_waits(trainer_of: Callable[..., CytoTrainer], loss: str) -> None:
    train_unwaiting(trainer_of(loss))
