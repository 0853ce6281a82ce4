"""finetune(recipe): the whole project on one page. Read it first."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from .data.dataset import CellDataset
from .data.inspection.scan import scan_images
from .data.loading import load_split
from .data.samples import CellImages
from .data.splits import Split
from .data.transforms import Augmentation, build_augmentation
from .evaluation.predictions import Predictions, write_embeddings
from .evaluation.report import ReportContext
from .evaluation.scoring import predict
from .launch import refuse_independent_trainings
from .losses import build_loss
from .model_builder import (
    build_config,
    build_model,
    build_processor,
    merge,
    save_model,
)
from .pretraining.history import held_out_images_seen
from .publishing.publish import check_account, publish
from .recipe import Recipe
from .recovery import (
    batch_in_words,
    save_with_base,
    score_through_setbacks,
    setbacks,
    train_through_setbacks,
)
from .run_folder import RunFolder
from .run_records import augmentation_strip, class_panel, data_record, model_record, training_record
from .run_report import EMBEDDINGS_FILE, report_run
from .trainer import CytoTrainer, build_trainer, training_arguments
from .training.processes import (
    first_process_first,
    is_first_process,
    joined_processes,
    meet_again_after_restart,
    on_first_process,
)
from .training.remedies import FINE_TUNING

logger = logging.getLogger(__name__)

#: Folds scored at the end, by the chosen model, once.
SCORED_FOLDS = ("validation", "calibration", "test")


def finetune(recipe: Recipe) -> RunFolder:
    """Run a recipe from images to report.

    A run that was interrupted continues from its newest checkpoint; a finished one is left as it is.

    Args:
        recipe: From `load_recipe`.

    Returns:
        The RUN folder: model, predictions, report.

    Raises:
        CytoDinoError: Of any stage; says what is wrong, where, and the remedy.
    """
    meet_again_after_restart()
    refuse_independent_trainings(training_arguments(recipe).world_size)  # this also connects the processes
    with RunFolder(recipe.training.output_dir) as run:
        with joined_processes():
            split = first_process_first(lambda: _begin(recipe, run))
            if split is None:
                _publish(recipe, run)
                return run
            trainer, training = train_through_setbacks(
                recipe,
                run,
                assemble=lambda current: _assemble(current, split.images, run),
                train=lambda assembled: _train(assembled, run),
                save_weights=partial(save_with_base, recipe, run),
                in_words=batch_in_words,
                remedies=FINE_TUNING,
            )
        if not trainer.is_world_process_zero():
            return run
        model = trainer.plain_model
        save_model(model, trainer.processor, run.path, recipe.model.method)
        about_model = model_record(model, run, recipe)  # counted before LoRA is merged
        predictions = _score(recipe, trainer, split.images, run, about_model["revision"])
        context = _report_context(recipe, split, run, trainer, training, about_model)
        report_run(recipe, split, run, predictions, context)
        run.finish()
        _publish(recipe, run)
        return run


def _begin(recipe: Recipe, run: RunFolder) -> Split | None:
    """Claim the folder and find the images; None where the run is finished."""
    if recipe.hub.repo_id is not None and is_first_process():
        check_account(recipe.hub.repo_id)  # hours of training should not end at a missing token
    run.check(recipe)
    if run.is_finished_with(recipe, lambda: load_split(recipe)):
        if is_first_process():
            logger.warning("%s holds this run, finished; nothing to do", run.path)
        return None
    if is_first_process():
        run.hold()
    split = load_split(recipe)
    if is_first_process():
        run.begin(recipe, split)
    else:
        run.check(recipe, split.images.fingerprint())
    return split


def _publish(recipe: Recipe, run: RunFolder) -> None:
    """Put the finished model on the Hub where the recipe asks for it; again, where that failed the last time."""
    hub = recipe.hub
    if hub.repo_id is None or not is_first_process():
        return
    done = publish(
        run.path,
        hub.repo_id,
        merged=hub.merged,
        private=hub.private,
        revision=hub.publish_revision,
        storage=hub.storage,
    )
    logger.warning("%s", done.text)


def _assemble(recipe: Recipe, images: CellImages, run: RunFolder) -> CytoTrainer:
    """Model, loss and data of a recipe in a trainer that is ready to run."""
    processor = build_processor(recipe.data)
    train, validation = images.fold("train"), images.fold("validation")
    class_counts = list(train.counts().values())
    config = build_config(recipe, images.taxonomy, images.fingerprint())
    return build_trainer(
        recipe,
        model=first_process_first(lambda: build_model(recipe, config, run.base)),  # it may write the base
        loss=build_loss(recipe.loss.name, recipe.loss.options, images.taxonomy, class_counts),
        processor=processor,
        train=CellDataset(train, processor, _augmentation(recipe), seed=recipe.training.seed),
        validation=CellDataset(validation, processor) if validation.labels else None,
        taxonomy=images.taxonomy,
    )


def _train(trainer: CytoTrainer, run: RunFolder) -> dict[str, Any]:
    """Train, or go on from the newest checkpoint; what the report says of it."""
    checkpoint = on_first_process(run.newest_checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return training_record(trainer)


def _report_context(
    recipe: Recipe,
    split: Split,
    run: RunFolder,
    trainer: CytoTrainer,
    training: dict[str, Any],
    about_model: dict[str, Any],
) -> ReportContext:
    train = split.images.fold("train")
    about_data = data_record(split)
    if (seen := _seen_in_pretraining(recipe, split)) is not None:
        about_data["notes"].append(seen)
    return ReportContext(
        title=run.path.name,
        recipe=recipe.to_dict(),
        environment=run.environment(),
        data=about_data,
        training=training | {"setbacks": setbacks(run), "set_aside": run.set_aside()},
        taxonomy=split.images.taxonomy,
        train_classes=tuple(code for code, count in train.counts().items() if count),
        model=about_model,
        class_panel=class_panel(train, trainer.processor),
        augmentation_strip=augmentation_strip(trainer.train_dataset),
    )


def _seen_in_pretraining(recipe: Recipe, split: Split) -> str | None:
    """Which held-out images the backbone saw before; every file was looked at when the run began."""
    held_out = {name: split.images.fold(name) for name in SCORED_FOLDS}
    sums = {name: scan_images(fold).column("file_sha256") for name, fold in held_out.items() if fold.labels}
    return held_out_images_seen(recipe.model, recipe.hub, sums)


def _augmentation(recipe: Recipe) -> Augmentation:
    data = recipe.data
    return build_augmentation(
        data.augmentation, image_size_px=data.image_size_px, center_crop_px=data.center_crop_px
    )


def _score(
    recipe: Recipe,
    trainer: CytoTrainer,
    images: CellImages,
    run: RunFolder,
    revision: str,
) -> dict[str, Predictions]:
    """Score the folds once with the chosen model, in one pass, and save predictions and embeddings."""
    rows = {name: [i for i, fold in enumerate(images.folds) if fold == name] for name in SCORED_FOLDS}
    if not any(rows.values()):
        return {}
    score = partial(
        predict,
        merge(trainer.plain_model).float().to(trainer.args.device),
        trainer.processor,
        images.select([row for fold in rows.values() for row in fold]),
        model_revision=revision,
        workers=recipe.training.dataloader_num_workers,
        precision=recipe.evaluation.precision,
    )
    scored, embeddings = score_through_setbacks(recipe, run, score)
    write_embeddings(run.predictions / EMBEDDINGS_FILE, scored.ids, embeddings, model_revision=revision)
    predictions = {name: scored.fold(name) for name in SCORED_FOLDS if rows[name]}
    for name, fold in predictions.items():
        fold.to_parquet(run.predictions / f"{name}.parquet")
    return predictions
