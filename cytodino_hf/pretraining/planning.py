"""`--dry-run` of a pretraining: what a recipe would do, without doing it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..memory import Memory, estimate_step
from ..planning import in_gib, memory_lines, precision, runtime
from .masks import filled_up
from .mixture import Mixture
from .model import IBotModel
from .neighbour_probe import BATCH as PROBE_BATCH
from .pretrain import build_ibot, load_images, patch_of, steps_of
from .recipe import PretrainRecipe
from .trainer import images_per_step, learning_rate


@dataclass(frozen=True)
class PretrainPlan:
    """What a pretraining would do.

    Args:
        recipe: The recipe.
        mixture: Its images.
        parameters: Of the backbone, of the student's heads.
        draws: Images of an epoch.
        steps: Optimizer steps in all.
        probe: Images per fold of the labelled set; None without one.
        memory: Estimated peak.
        remedies: What to change where a 16 GB card does not suffice.
    """

    recipe: PretrainRecipe
    mixture: Mixture
    parameters: tuple[int, int]
    draws: int
    steps: int
    probe: dict[str, int] | None
    memory: Memory
    remedies: tuple[str, ...]

    def to_text(self) -> str:
        """The plan for a terminal."""
        record, training = self.mixture.record(), self.recipe.training
        backbone, heads = self.parameters
        processes = _processes()
        return "\n".join(
            [
                "recipe",
                json.dumps(self.recipe.to_dict(), indent=2, ensure_ascii=False),
                "",
                f"images  {self.mixture.images:,}; never drawn: {record['held_out']}",
                *(_source_line(source) for source in record["sources"]),
                *(f"  note: {note}" for note in record["notes"]),
                self._probe_line(),
                "",
                "parameters",
                f"  backbone  {backbone:>13,}",
                f"  heads     {heads:>13,}  (thrown away at the end, as is the student)",
                "",
                f"steps   {self.steps:,} optimizer steps of {images_per_step(training, processes):,} images, "
                f"{self.draws:,} images an epoch, learning rate up to {learning_rate(training, processes):.3g}",
                *memory_lines(self.memory, self.remedies),
                "nothing was trained (dry run)",
            ]
        )

    def _probe_line(self) -> str:
        if self.probe is None:
            return "probe   none (probe.source and probe.root name a labelled set)"
        return (
            f"probe   {self.probe['validation']:,} images of the validation fold, neighbours among "
            f"{self.probe['train']:,} of the training fold, every {self.recipe.probe.every_steps:,} steps"
        )


def make_pretrain_plan(recipe: PretrainRecipe) -> PretrainPlan:
    """Find the images, count and estimate; of the backbone only the configuration is read.

    Raises:
        CytoDinoError: The images or that configuration cannot be had.
    """
    mixture = load_images(recipe)
    draws, labelled = len(mixture.sampler(seed=recipe.training.seed)), mixture.labelled
    model = build_ibot(recipe, on_meta=True)
    memory = estimate_pretraining(recipe)
    return PretrainPlan(
        recipe=recipe,
        mixture=mixture,
        parameters=(
            _count(model.student.backbone),
            _count(model.student) - _count(model.student.backbone),
        ),
        draws=draws,
        steps=steps_of(recipe, draws, _processes()),
        probe={fold: labelled.images.folds.count(fold) for fold in ("train", "validation")}
        if labelled
        else None,
        memory=memory,
        remedies=() if memory.fits_card else _remedies(recipe),
    )


def estimate_pretraining(recipe: PretrainRecipe) -> Memory:
    """Peak of one process, found by running a step on tensors without content."""
    model = build_ibot(recipe, on_meta=True)
    views, batch = recipe.views, recipe.training.per_device_train_batch_size
    autocast = precision() != "float32"

    def train() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return _step(model, recipe, batch)

    def evaluate() -> None:
        if not recipe.probe.is_on:
            return
        side = recipe.probe.image_size_px or views.global_size_px
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            model.teacher.backbone(pixel_values=torch.zeros(PROBE_BATCH, 3, side, side))

    accumulates = recipe.training.gradient_accumulation_steps > 1
    return estimate_step(model, train, evaluate, accumulates=accumulates, runtime=runtime())


def _step(model: IBotModel, recipe: PretrainRecipe, batch: int) -> Tensor:
    """The loss of a micro-batch with as many masked patches as there are on average.

    Which patches are masked is content, and these tensors have none: the first one stands for all.
    """
    views, objective = recipe.views, recipe.objective
    side, small = views.global_size_px, views.local_size_px
    patches = (side // patch_of(model)) ** 2
    rows = filled_up(round(2 * batch * patches * objective.mask_probability * objective.mask_ratio))
    output = model(
        global_views=torch.zeros(batch, 2, 3, side, side),
        masks=torch.zeros(batch, 2, patches, dtype=torch.bool),
        places=torch.zeros(rows, dtype=torch.int64),
        weights=torch.zeros(rows),
        local_views=torch.zeros(batch, views.local_crops, 3, small, small) if views.local_crops else None,
        teacher_temperature=objective.teacher_temperature,
    )
    return output.loss  # type: ignore[no-any-return]


def _remedies(recipe: PretrainRecipe) -> tuple[str, ...]:
    """What to change where a 16 GB card does not suffice; the first of each kind that does."""
    found = []
    size, steps = (
        recipe.training.per_device_train_batch_size,
        recipe.training.gradient_accumulation_steps,
    )
    if not recipe.training.activation_checkpointing:
        tried = estimate_pretraining(_changed(recipe, activation_checkpointing=True))
        if tried.fits_card:
            found.append(f"--training.activation_checkpointing true  ({in_gib(tried.on_gpu)}, slower)")
    while size % 2 == 0:
        size, steps = size // 2, steps * 2
        tried = estimate_pretraining(
            _changed(recipe, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        )
        if tried.fits_card:
            keys = f"--training.per_device_train_batch_size {size} --training.gradient_accumulation_steps {steps}"
            found.append(
                f"{keys}  ({in_gib(tried.on_gpu)}; centres and Sinkhorn then see {size} images at once)"
            )
            break
    return tuple(found) or ("a smaller backbone, views.global_size_px or objective.out_dim",)


def _changed(recipe: PretrainRecipe, **training: Any) -> PretrainRecipe:
    return replace(recipe, training=recipe.training.model_copy(update=training))


def _source_line(source: dict[str, Any]) -> str:
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in source["left_out"].items())
    return (
        f"  {source['name']:<14}{source['images']:>9,}  {source['share_of_draws']:>6.1%} of the draws; "
        f"left out: {left_out or 'none'}"
    )


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
