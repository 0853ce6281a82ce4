"""A run without a process of its own, and a backbone to train on."""

from __future__ import annotations

from pathlib import Path

from benchmarks.quality import runs
from cytodino_hf.recipe import load_recipe


class InThisProcess:
    """A run without a process of its own."""

    started: list[str] = []  # noqa: RUF012 (the tests share it and clear it)

    def __init__(self, run: runs.Run) -> None:
        from cytodino_hf.finetune import finetune

        self.started.append(run.name)
        finetune(load_recipe(run.recipe_file))

    def poll(self) -> runs.Cost | None:
        return runs.Cost(2.0, 3.0)

    def stop(self) -> runs.Cost | None:
        return None


def make_backbone(folder: Path, seed: int) -> Path:
    from transformers import AutoModel, DINOv3ViTConfig, set_seed

    set_seed(seed)
    config = DINOv3ViTConfig(
        patch_size=8, image_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=32, num_register_tokens=0,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(folder)
    return folder
