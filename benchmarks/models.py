"""The two classifiers a benchmark compares: ours, built by the package, and the published one with the same weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cytodino_hf.losses import LOSSES, build_loss
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.model_builder import build_config, prepare_for_training
from cytodino_hf.recipe import Recipe, parse_recipe
from cytodino_hf.taxonomy import load_taxonomy

from .published_data import IMAGE_MEAN, IMAGE_SIZE_PX, IMAGE_STD
from .published_model import ACCUMULATION, LORA_ALPHA, LORA_DROPOUT, LORA_RANK, PublishedClassifier

if TYPE_CHECKING:
    from cytodino_hf.data.samples import CellImages

_COMMON = {
    "model_type": "dinov3_vit",
    "patch_size": 16,
    "image_size": IMAGE_SIZE_PX,
    "num_register_tokens": 4,
}


def _vit(width: int, layers: int, heads: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads}
    return {**_COMMON, **sizes, "intermediate_size": 4 * width}


#: Sizes of DINOv3, weights random; `tiny` shows that a benchmark runs.
BACKBONES = {
    "vits": _vit(384, 12, 6),
    "vitb": _vit(768, 12, 12),
    "vitl": _vit(1024, 24, 16),
    "tiny": _vit(32, 2, 2),
}
_LOSS = "hierarchical_focal_published"
_SEED = 0
# LoRA's second matrix starts at zero, which would hide it in every comparison of results.
_LORA_B_DEVIATION = 0.005
_PUBLISHED_NAMES = {
    "self_attention": "self_attn",
    "cross_attention": "multihead_attn",
    "up": "linear1",
    "down": "linear2",
    "norm_self": "norm1",
    "norm_cross": "norm2",
    "norm_feedforward": "norm3",
}


def benchmark_recipe(backbone: str, batch_size: int, output_dir: Path, attention: str = "sdpa") -> Recipe:
    """The recipe ours runs by: the published model and loss, our batch."""
    document = {
        "data": {
            "taxonomy": "mll_published",
            "image_size_px": IMAGE_SIZE_PX,
            "image_mean": list(IMAGE_MEAN),
            "image_std": list(IMAGE_STD),
            "augmentation": "published",
        },
        "model": {
            "backbone_config": BACKBONES[backbone],
            "lora_rank": LORA_RANK,
            "lora_alpha": float(LORA_ALPHA),
            "lora_dropout": LORA_DROPOUT,
            "attention": attention,
        },
        "loss": {"name": _LOSS},
        "training": {
            "output_dir": str(output_dir),
            "per_device_train_batch_size": batch_size,
            "eval_strategy": "no",
            "save_strategy": "no",
            "report_to": [],
        },
    }
    return parse_recipe(document, source="benchmark")


def published_loss() -> nn.Module:
    """The published loss over all classes of the set, balanced classes assumed; both ways use it."""
    taxonomy = load_taxonomy("mll_published")
    return build_loss(_LOSS, LOSSES[_LOSS].options(), taxonomy, [1000] * len(taxonomy))


def build_ours(recipe: Recipe) -> nn.Module:
    """Our classifier with LoRA (a peft model) in training mode, random weights, always the same."""
    torch.manual_seed(_SEED)
    config = build_config(recipe, load_taxonomy(recipe.data.taxonomy))
    plain = CytoDinoForImageClassification._from_config(config, attn_implementation=recipe.model.attention)
    model = prepare_for_training(plain, recipe.model).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=_LORA_B_DEVIATION)
    return model


def build_published(backbone: str, attention: str = "sdpa") -> PublishedClassifier:
    """The published classifier, random weights, always the same."""
    from transformers import CONFIG_MAPPING

    torch.manual_seed(_SEED)
    values = dict(BACKBONES[backbone])
    config = CONFIG_MAPPING[values.pop("model_type")](**values)
    config._attn_implementation = attention
    return PublishedClassifier(config, len(load_taxonomy("mll_published")))


@torch.no_grad()
def give_weights(ours: nn.Module, published: PublishedClassifier, only: str = "") -> None:
    """Copy every weight of ours (as peft model or merged) into the published classifier.

    Args:
        ours: Where the weights come from.
        published: Where they go.
        only: Beginning of the names to copy, such as `head.`.
    """
    theirs = dict(published.named_parameters())
    for name, parameter in ours.named_parameters():
        own = name.removeprefix("base_model.model.").replace("modules_to_save.default.", "")
        if "original_module" in name or not own.startswith(only):
            continue
        target = theirs[_published_name(own)]
        target.copy_(parameter.reshape(target.shape))


def _published_name(name: str) -> str:
    part, _, rest = name.partition(".")
    if part == "backbone":
        return f"backbone.base_model.model.{rest}"
    block = re.fullmatch(r"blocks\.(\d+)\.(\w+)\.(.*)", rest)
    return (
        f"head.decoder.layers.{block[1]}.{_PUBLISHED_NAMES[block[2]]}.{block[3]}" if block else f"head.{rest}"
    )


def flops_of(backbone: str, *, with_backward: bool, merged: bool = False) -> tuple[float, float]:
    """Operations of one picture: the published way, and ours (with LoRA merged where asked).

    Counted on tensors without values, with attention in plain matrix products, which the counter knows on every device.

    Args:
        backbone: A key of `BACKBONES`.
        with_backward: Count the backward pass too; nothing is computed again for it (no checkpointing).
        merged: Ours without the work of LoRA.
    """
    from cytodino_hf.memory import fake_tensors
    from cytodino_hf.model_builder import merge

    with torch.device("meta"):
        published = build_published(backbone, attention="eager")
        ours = build_ours(benchmark_recipe(backbone, 1, Path("unused"), attention="eager"))
        model = merge(ours) if merged else ours
    # A CPU in name: some operations ask for the device and do not know `meta`.
    with fake_tensors():
        pixels = torch.zeros(1, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX)
        published, model = published.to_empty(device="cpu"), model.to_empty(device="cpu")
        return (
            _count_flops(lambda: published(pixels), with_backward),
            _count_flops(lambda: model(pixel_values=pixels).logits, with_backward),
        )


def _count_flops(forward: Callable[[], torch.Tensor], with_backward: bool) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        output = forward()
        if with_backward:
            output.sum().backward()
    return float(counter.get_total_flops())


def load_batches(images: CellImages, batch_size: int, recipe: Recipe, device: str) -> list[dict[str, Any]]:
    """Every picture decoded and collated by the package, uint8, on the device; whole batches in their order."""
    from cytodino_hf.data.dataset import CellDataset, collate
    from cytodino_hf.model_builder import build_processor

    dataset = CellDataset(images, build_processor(recipe.data))
    rows = range(len(dataset))
    batches = [
        collate([dataset[row] for row in rows[begin : begin + batch_size]]) for begin in rows[::batch_size]
    ]
    return [{key: value.to(device) for key, value in batch.items()} for batch in batches]


def published_batch(images: CellImages, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pictures normalised to float32 beforehand: the published data path leaves them so."""
    from cytodino_hf.model_builder import build_processor

    recipe = benchmark_recipe("tiny", ACCUMULATION, Path("unused"))
    batch = load_batches(images, len(images.labels), recipe, device)[0]
    return build_processor(recipe.data).normalize_batch(batch["pixel_values"]), batch["labels"]
