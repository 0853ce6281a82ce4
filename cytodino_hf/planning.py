"""`--dry-run`: what a recipe would do, without doing it."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .data.samples import FOLDS
from .data.splits import Split
from .memory import Memory, estimate_memory, smaller_batch
from .model_builder import ParameterCounts, build_config, build_on_meta, count_parameters
from .recipe import Recipe

if TYPE_CHECKING:
    from .model.configuration_cytodino import CytoDinoConfig


@dataclass(frozen=True)
class Plan:
    """What a run would do."""

    recipe: Recipe
    split: Split
    parameters: ParameterCounts
    images_per_epoch: int
    steps: int
    memory: Memory
    remedies: tuple[str, ...] = ()

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
                *memory_lines(m, self.remedies),
                "nothing was trained (dry run)",
            ]
        )


def make_plan(recipe: Recipe, split: Split) -> Plan:
    """Count and estimate; of the backbone only the configuration is read.

    Raises:
        BackboneUnavailableError: That configuration cannot be had.
    """
    config = build_config(recipe, split.images.taxonomy)
    counts, memory = count_parameters(build_on_meta(recipe, config)), _estimate(recipe, config)
    training = recipe.training
    train_images = sum(fold == "train" for fold in split.images.folds)
    images_per_epoch = round(train_images * recipe.data.oversampling.multiplier)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    batches = math.ceil(images_per_epoch / (training.per_device_train_batch_size * world_size))
    steps_per_epoch = max(1, math.ceil(batches / training.gradient_accumulation_steps))
    return Plan(
        recipe=recipe,
        split=split,
        parameters=counts,
        images_per_epoch=images_per_epoch,
        steps=training.max_steps
        if training.max_steps > 0
        else math.ceil(steps_per_epoch * training.num_train_epochs),
        memory=memory,
        remedies=_remedies(recipe, config, memory),
    )


def memory_lines(memory: Memory, remedies: tuple[str, ...]) -> list[str]:
    """What a plan says of memory.

    Args:
        memory: The estimate.
        remedies: What to change where it does not fit.
    """
    verdict = "fits" if memory.fits_card else "does NOT fit"
    return [
        f"memory  {in_gib(memory.on_gpu)} on a GPU (estimated peak of one process, computing in "
        f"{precision()}): {verdict} a 16 GB card",
        f"        {in_gib(memory.on_cpu)} on a CPU, without the processes that read images",
        f"        of it weights {in_gib(memory.weights)}, gradients and moments "
        f"{in_gib(memory.gradients_and_moments)}, activations and temporaries {in_gib(memory.activations)} "
        f"(in an evaluation {in_gib(memory.evaluation)}); the rest is the runtime and what allocators leave unused",
        *(f"        change one: {remedy}" for remedy in remedies),
    ]


def _estimate(recipe: Recipe, config: CytoDinoConfig) -> Memory:
    training = recipe.training
    return estimate_memory(
        build_on_meta(recipe, config),
        image_size_px=recipe.data.image_size_px,
        batch_size=training.per_device_train_batch_size,
        eval_batch_size=training.per_device_eval_batch_size,
        accumulates=training.gradient_accumulation_steps > 1,
        autocast=precision() != "float32",
        checkpointing=bool((training.model_extra or {}).get("activation_checkpointing")),
        runtime=runtime(),
    )


def precision() -> str:
    """What this process computes in, in words."""
    named = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return "float32" if named == "no" else named


def runtime() -> int:
    """Bytes that this process holds with everything a training imports, before any model."""
    import psutil

    from . import trainer  # noqa: F401 - a training process holds what this brings

    held: int = psutil.Process().memory_info().rss
    return held


def _remedies(recipe: Recipe, config: CytoDinoConfig, memory: Memory) -> tuple[str, ...]:
    """What to change where a 16 GB card does not suffice; the first of each kind that does."""
    if memory.fits_card:
        return ()
    found = []
    size, steps = recipe.training.per_device_train_batch_size, recipe.training.gradient_accumulation_steps
    while size > 1:
        size, steps = smaller_batch(size, steps)
        smaller = _changed(recipe, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        if (tried := _estimate(smaller, config)).fits_card:
            keys = f"--training.per_device_train_batch_size {size} --training.gradient_accumulation_steps {steps}"
            found.append(f"{keys}  ({in_gib(tried.on_gpu)}, same effective batch)")
            break
    if not (recipe.training.model_extra or {}).get("activation_checkpointing"):
        tried = _estimate(_changed(recipe, activation_checkpointing=True), config)
        if tried.fits_card:
            found.append(f"--training.activation_checkpointing true  ({in_gib(tried.on_gpu)}, slower)")
    return tuple(found) or ("a smaller backbone, data.image_size_px or training.per_device_eval_batch_size",)


def _changed(recipe: Recipe, **training: Any) -> Recipe:
    return replace(recipe, training=recipe.training.model_copy(update=training))


def _count_table(split: Split) -> list[str]:
    images = split.images
    counted = Counter(zip(images.labels, images.folds, strict=True))
    lines = [f"  {'class':<8}" + "".join(f"{fold:>13}" for fold in FOLDS)]
    for label, code in enumerate(images.taxonomy.codes):
        lines.append(f"  {code:<8}" + "".join(f"{counted.get((label, fold), 0):>13,}" for fold in FOLDS))
    totals = Counter(images.folds)
    lines.append(f"  {'sum':<8}" + "".join(f"{totals.get(fold, 0):>13,}" for fold in FOLDS))
    return lines


def in_gib(size: int) -> str:
    """Bytes for a reader."""
    return f"{size / 2**30:.2f} GiB"
