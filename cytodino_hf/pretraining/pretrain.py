"""pretrain(recipe): unlabelled cells become a backbone, on one page, as `finetune` is."""

from __future__ import annotations

import copy
import logging
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import Dataset

from ..backbones import backbone_source, explained, hub_arguments, read_backbone_config
from ..launch import refuse_independent_trainings
from ..recovery import train_through_setbacks
from ..run_folder import RunFolder
from ..training.processes import (
    first_process_first,
    is_first_process,
    joined_processes,
    meet_again_after_restart,
    on_first_process,
)
from .backbone_folder import write_backbone, write_teacher
from .history import read_history
from .labelled import labelled_images
from .masks import BlockMasks
from .mixture import Mixture, load_mixture
from .model import IBotModel
from .monitor import Monitor
from .neighbour_probe import ProbeCallback, build_probe
from .paces import Paces
from .recipe import PretrainRecipe
from .remedies import PRETRAINING
from .trainer import PretrainingTrainer, images_per_step, learning_rate, pretraining_arguments

logger = logging.getLogger(__name__)


def pretrain(recipe: PretrainRecipe) -> RunFolder:
    """Run a pretraining recipe from images to backbone.

    A run that was interrupted continues from its newest checkpoint; a finished one is left as it is.

    Args:
        recipe: From `load_pretrain_recipe`.

    Returns:
        The RUN folder; `backbone/` in it is what recipes name.

    Raises:
        CytoDinoError: Of any stage; says what is wrong, where, and the remedy.
    """
    meet_again_after_restart()
    refuse_independent_trainings(pretraining_arguments(recipe.training).world_size)
    with RunFolder(recipe.training.output_dir) as run:
        with joined_processes():
            mixture = first_process_first(lambda: _begin(recipe, run))
            if mixture is None:
                return run
            trainer, training = train_through_setbacks(
                recipe,
                run,
                assemble=lambda current: _assemble(current, mixture),
                train=lambda assembled: _train(assembled, run),
                save_weights=lambda assembled, folder: write_teacher(assembled.ibot, recipe, folder),
                in_words=step_in_words,
                remedies=PRETRAINING,
            )
        if trainer.is_world_process_zero():
            write_backbone(trainer.ibot, recipe, mixture, run, training)
            run.finish()
        return run


def _begin(recipe: PretrainRecipe, run: RunFolder) -> Mixture | None:
    """Claim the folder and find the images; None where the run is finished."""
    run.check(recipe)
    if run.is_finished_with(recipe, lambda: load_images(recipe)):
        if is_first_process():
            logger.warning("%s holds this run, finished; nothing to do", run.path)
        return None
    if is_first_process():
        run.hold()
    mixture = load_images(recipe)
    if is_first_process():
        for note in mixture.notes:
            logger.info("%s", note)
        run.begin(recipe, mixture)
    else:
        run.check(recipe, mixture.fingerprint())
    return mixture


def load_images(recipe: PretrainRecipe) -> Mixture:
    """The images of a recipe, without what is held out, be it for its probe; none of that was pretrained on before.

    Raises:
        CytoDinoError: They cannot be used as asked; see `load_mixture`.
    """
    return load_mixture(recipe.data, labelled_images(recipe), read_history(recipe.model, recipe.hub))


def _assemble(recipe: PretrainRecipe, mixture: Mixture) -> PretrainingTrainer:
    """Model, data and schedules of a recipe in a trainer that is ready to run."""
    arguments = pretraining_arguments(recipe.training)
    model = first_process_first(lambda: build_ibot(recipe))
    sampler = mixture.sampler(seed=recipe.training.seed)
    steps = steps_of(recipe, len(sampler), arguments.world_size)
    probe = first_process_first(lambda: build_probe(recipe, mixture))
    trainer = PretrainingTrainer(
        recipe=recipe,
        paces=Paces(recipe.objective, recipe.training, steps, arguments.learning_rate),
        monitor=Monitor(
            out_dim=recipe.objective.out_dim,
            width=model.teacher.backbone.config.hidden_size,
            device=arguments.device,
            answers=model.watched,
        ),
        sampler=sampler,
        ids=mixture.ids,
        model=model,
        args=arguments,
        train_dataset=build_dataset(recipe, mixture, patch_of(model)),
    )
    if probe is not None:
        trainer.add_callback(ProbeCallback(trainer, probe, recipe.probe.every_steps))
    return trainer


def build_ibot(recipe: PretrainRecipe, *, on_meta: bool = False) -> IBotModel:
    """Student and teacher, both from the backbone of the recipe; its seed decides every fresh weight.

    Args:
        recipe: The recipe.
        on_meta: Without any weights, to count and to estimate.

    Raises:
        BackboneUnavailableError: The backbone cannot be had.
    """
    from transformers import AutoModel, set_seed

    section = recipe.model
    config, commit = read_backbone_config(
        section, recipe.hub, recipe.views.global_size_px, "views.global_size_px"
    )
    set_seed(recipe.training.seed)
    with torch.device("meta") if on_meta else nullcontext():
        if section.backbone is None or on_meta:
            backbone = AutoModel.from_config(config, attn_implementation=section.attention)
        else:
            with explained(section):
                backbone = AutoModel.from_pretrained(
                    backbone_source(section.backbone),
                    dtype="float32",
                    attn_implementation=section.attention,
                    revision=commit if commit is not None else section.revision,
                    **hub_arguments(recipe.hub),
                )
        set_seed(recipe.training.seed)  # the heads, whatever was drawn before
        model = IBotModel(backbone, recipe.objective).train()
    if not section.position_jitter and hasattr(backbone, "rope_embeddings"):
        hold_positions_still(backbone)
    if recipe.training.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


def hold_positions_still(backbone: Any) -> None:
    """Keep a DINOv3 that is trained from rescaling its positions; its configuration stays as it is."""
    positions = backbone.rope_embeddings
    positions.config = copy.deepcopy(positions.config)
    for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):
        setattr(positions.config, name, None)


def build_dataset(recipe: PretrainRecipe, mixture: Mixture, patch: int) -> Dataset[Any]:
    """Views and masks of the mixture's images, keyed by epoch and position."""
    rows = recipe.views.global_size_px // patch
    return mixture.dataset_for(recipe.views, BlockMasks((rows, rows), recipe.objective), recipe.training.seed)


def patch_of(model: IBotModel) -> int:
    """Side of a patch in pixels."""
    side: int = model.student.backbone.config.patch_size
    return side


def steps_of(recipe: PretrainRecipe, draws: int, processes: int) -> int:
    """Optimizer steps of the whole run.

    Args:
        recipe: The recipe.
        draws: Images of an epoch.
        processes: That train together.
    """
    training = recipe.training
    if training.max_steps > 0:
        return training.max_steps
    step = images_per_step(training, processes)
    return math.ceil(training.num_train_epochs * max(draws // step, 1))


def _train(trainer: PretrainingTrainer, run: RunFolder) -> dict[str, Any]:
    """Train, or go on from the newest checkpoint; what the record says of it."""
    checkpoint = on_first_process(run.newest_checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state, processes = trainer.state, trainer.args.world_size
    return {
        "steps": state.global_step,
        "epochs": state.epoch,
        "images_seen": state.global_step * images_per_step(trainer.recipe.training, processes),
        "seconds": trainer.seconds,
        "processes": processes,
        "device": str(trainer.args.device),
        "learning_rate": learning_rate(trainer.recipe.training, processes),
        "log_history": state.log_history,
    }


def step_in_words(recipe: PretrainRecipe) -> str:
    """What decides the memory of a step, in words."""
    views, training = recipe.views, recipe.training
    local = f" and {views.local_crops} of {views.local_size_px} px" if views.local_crops else ""
    return (
        f"A step takes {training.per_device_train_batch_size} images at once, two views of {views.global_size_px} px"
        f"{local} each (x {training.gradient_accumulation_steps} accumulated), {recipe.objective.out_dim} prototypes"
    )
