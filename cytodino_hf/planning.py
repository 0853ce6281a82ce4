"""`--dry-run`: what a recipe would do, without doing it."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn

from .data.samples import FOLDS
from .data.splits import Split
from .model_builder import ParameterCounts, build_config, build_on_meta, count_parameters
from .recipe import Recipe

# Bytes of a float32 weight, its gradient, and Adam's two moments.
_WEIGHT, _GRADIENT, _MOMENTS = 4, 4, 8
# Share of activation memory that stays under bf16 autocast: 92 of 133 MiB a picture, ViT-S with LoRA 64 at 256 px.
_AUTOCAST_SHARE = 0.7


@dataclass(frozen=True)
class Memory:
    """Estimated memory of one training process, bytes.

    Args:
        weights: All parameters, float32.
        gradients_and_moments: Of the parameters that train.
        activations: Saved for the backward pass of one micro-batch.
    """

    weights: int
    gradients_and_moments: int
    activations: int

    @property
    def total(self) -> int:
        """The sum; what the runtime itself takes (about 1 GiB on a GPU) comes on top."""
        return self.weights + self.gradients_and_moments + self.activations


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    recipe: Recipe
    split: Split
    parameters: ParameterCounts
    images_per_epoch: int
    steps: int
    memory: Memory

    def to_text(self) -> str:
        """The plan for a terminal."""
        p, m = self.parameters, self.memory
        rejected = self.split.images.rejected
        return "\n".join(
            [
                "recipe",
                json.dumps(self.recipe.to_dict(), indent=2, ensure_ascii=False),
                "",
                f"images  {len(self.split.images.labels):,} from {self.split.images.source}; {self.split.promise}",
                *_count_table(self.split),
                *(f"  note: {note}" for note in self.split.notes),
                *([f"  left out: {len(rejected)} images"] if rejected else []),
                *(f"    {image.path}: {image.reason}" for image in rejected[:20]),
                "",
                "parameters",
                f"  backbone  {p.backbone:>13,}",
                f"  LoRA      {p.lora:>13,}",
                f"  head      {p.head:>13,}",
                f"  total     {p.total:>13,}",
                f"  trainable {p.trainable:>13,}  ({p.trainable / p.total:.1%})",
                "",
                f"steps   {self.steps:,} optimizer steps, {self.images_per_epoch:,} images an epoch",
                f"memory  {_gib(m.total)} = weights {_gib(m.weights)}, gradients and moments "
                f"{_gib(m.gradients_and_moments)}, activations {_gib(m.activations)} (estimated, one process)",
                "nothing was trained (dry run)",
            ]
        )


def make_plan(recipe: Recipe, split: Split) -> Plan:
    """Count and estimate; of the backbone only the configuration is read.

    Raises:
        BackboneUnavailableError: That configuration cannot be had.
    """
    config = build_config(recipe, split.images.taxonomy)
    model = build_on_meta(recipe, config)
    training = recipe.training
    train_images = sum(fold == "train" for fold in split.images.folds)
    images_per_epoch = round(train_images * recipe.data.oversampling.multiplier)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    batches = math.ceil(images_per_epoch / (training.per_device_train_batch_size * world_size))
    steps_per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return Plan(
        recipe=recipe,
        split=split,
        parameters=count_parameters(model),
        images_per_epoch=images_per_epoch,
        steps=training.max_steps
        if training.max_steps > 0
        else math.ceil(steps_per_epoch * training.num_train_epochs),
        memory=estimate_memory(
            model,
            image_size_px=recipe.data.image_size_px,
            batch_size=training.per_device_train_batch_size,
            autocast=os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no",
            checkpointing=bool((training.model_extra or {}).get("activation_checkpointing")),
        ),
    )


def estimate_memory(
    model: nn.Module, *, image_size_px: int, batch_size: int, autocast: bool, checkpointing: bool = False
) -> Memory:
    """Estimate the memory of a training step from a model on the meta device.

    Activations are counted exactly as autograd would hold them (`saved_tensors_hooks`), for two batch sizes, so that
    what does not grow with the batch is told apart.

    Args:
        model: On the meta device, in training mode.
        image_size_px: Side of the pictures.
        batch_size: Pictures of one micro-batch.
        autocast: Computation in bf16.
        checkpointing: Activations of the backbone are computed again instead of kept.
    """
    if checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
        model.train()
    one, three = (_saved_bytes(model, image_size_px, count) for count in (1, 3))
    each = (three - one) / 2
    activations = (one - each) + each * batch_size
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Memory(
        weights=_WEIGHT * sum(p.numel() for p in model.parameters()),
        gradients_and_moments=(_GRADIENT + _MOMENTS) * trainable,
        activations=int(activations * (_AUTOCAST_SHARE if autocast else 1)),
    )


def _saved_bytes(model: nn.Module, image_size_px: int, batch_size: int) -> int:
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept.setdefault(storage, tensor)  # held, so that no storage is counted under a reused address
        return tensor

    pixels = torch.zeros(batch_size, 3, image_size_px, image_size_px, device="meta")
    # The device context covers tables the model makes on the way, such as its position coordinates.
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(pixel_values=pixels)
        total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del outputs
    return total


def _count_table(split: Split) -> list[str]:
    images = split.images
    counted = Counter(zip(images.labels, images.folds, strict=True))
    lines = [f"  {'class':<8}" + "".join(f"{fold:>13}" for fold in FOLDS)]
    for label, code in enumerate(images.taxonomy.codes):
        lines.append(f"  {code:<8}" + "".join(f"{counted.get((label, fold), 0):>13,}" for fold in FOLDS))
    totals = Counter(images.folds)
    lines.append(f"  {'sum':<8}" + "".join(f"{totals.get(fold, 0):>13,}" for fold in FOLDS))
    return lines


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
