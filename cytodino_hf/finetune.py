"""finetune(recipe): the whole project on one page. Read it first."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

import torch

from .data.dataset import CellDataset, pick_examples
from .data.loading import load_split
from .data.samples import CellImages
from .data.splits import Split
from .data.transforms import Augmentation, build_augmentation
from .evaluation.predictions import Predictions, predict, write_embeddings
from .evaluation.report import ReportContext, write_report
from .launch import refuse_independent_trainings
from .losses import build_loss
from .model_builder import (
    WEIGHTS_FILE,
    build_config,
    build_model,
    build_processor,
    count_parameters,
    merge,
    save_model,
)
from .recipe import Recipe
from .run_folder import RunFolder, file_sha256
from .trainer import CytoTrainer, build_trainer

if TYPE_CHECKING:
    from .model.image_processing_cytodino import CytoDinoImageProcessor

logger = logging.getLogger(__name__)

#: Folds scored at the end, by the chosen model, once.
SCORED_FOLDS = ("validation", "calibration", "test")
_PANEL_IMAGES_PER_CLASS = 6
_STRIP_ROWS, _STRIP_COLUMNS = 4, 7


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
    run = RunFolder(recipe.training.output_dir)
    run.check(recipe)
    if run.is_finished():
        logger.warning("%s holds this run, finished; nothing to do", run.path)
        return run
    split = load_split(recipe)
    run.begin(recipe, split)
    trainer = _assemble(recipe, split.images, run)
    training = _train(trainer, run)
    if not trainer.is_world_process_zero():
        return run
    model = unwrap_compiled(trainer)
    save_model(model, trainer.processor, run.path, recipe.model.method)
    about_model = _model_record(model, run, recipe.model.method)  # counted before LoRA is merged
    predictions = _score(recipe, trainer, split.images, run, about_model["revision"])
    write_report(
        run.report,
        predictions,
        _report_context(recipe, split, run, trainer, training, about_model),
        draws=recipe.evaluation.interval_draws,
        seed=recipe.evaluation.seed,
    )
    run.finish()
    return run


def _assemble(recipe: Recipe, images: CellImages, run: RunFolder) -> CytoTrainer:
    """Model, loss and data of a recipe in a trainer that is ready to run."""
    processor = build_processor(recipe.data)
    train, validation = images.fold("train"), images.fold("validation")
    class_counts = list(train.counts().values())
    trainer = build_trainer(
        recipe,
        model=build_model(recipe, build_config(recipe, images.taxonomy), run.base),
        loss=build_loss(recipe.loss.name, recipe.loss.options, images.taxonomy, class_counts),
        processor=processor,
        train=CellDataset(train, processor, _augmentation(recipe), seed=recipe.training.seed),
        validation=CellDataset(validation, processor) if validation.labels else None,
        taxonomy=images.taxonomy,
    )
    refuse_independent_trainings(trainer.args.world_size)
    return trainer


def _train(trainer: CytoTrainer, run: RunFolder) -> dict[str, Any]:
    """Train, or go on from the newest checkpoint; what the report says of it."""
    started = time.monotonic()
    checkpoint = run.newest_checkpoint()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _training_record(trainer, seconds=time.monotonic() - started)


def _report_context(
    recipe: Recipe,
    split: Split,
    run: RunFolder,
    trainer: CytoTrainer,
    training: dict[str, Any],
    about_model: dict[str, Any],
) -> ReportContext:
    train = split.images.fold("train")
    return ReportContext(
        title=run.path.name,
        recipe=recipe.to_dict(),
        environment=run.environment(),
        data=_data_record(split),
        training=training,
        taxonomy=split.images.taxonomy,
        train_classes=tuple(code for code, count in train.counts().items() if count),
        model=about_model,
        class_panel=_class_panel(train, trainer.processor),
        augmentation_strip=_augmentation_strip(trainer.train_dataset),
    )


def _model_record(model: torch.nn.Module, run: RunFolder, method: str) -> dict[str, Any]:
    parameters = count_parameters(model)
    return {
        "revision": file_sha256(run.path / WEIGHTS_FILE[method]),
        "parameters": vars(parameters) | {"total": parameters.total},
    }


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
    """Score the folds once with the chosen model, in float32, and save predictions and embeddings."""
    model = merge(unwrap_compiled(trainer)).float().to(trainer.args.device)
    predictions: dict[str, Predictions] = {}
    ids: list[str] = []
    embeddings: list[Any] = []
    for name in SCORED_FOLDS:
        fold = images.fold(name)
        if not fold.labels:
            continue
        predictions[name], fold_embeddings = predict(
            model,
            trainer.processor,
            fold,
            model_revision=revision,
            batch_size=recipe.training.per_device_eval_batch_size,
            workers=recipe.training.dataloader_num_workers,
        )
        predictions[name].to_parquet(run.predictions / f"{name}.parquet")
        ids += predictions[name].ids
        embeddings.append(torch.from_numpy(fold_embeddings))
    if embeddings:
        write_embeddings(run.predictions / "embeddings.parquet", ids, torch.cat(embeddings).numpy())
    return predictions


def unwrap_compiled(trainer: CytoTrainer) -> torch.nn.Module:
    """The model a trainer holds, without the wrappers of torch.compile and of data-parallel training."""
    return trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)


def _training_record(trainer: CytoTrainer, seconds: float) -> dict[str, Any]:
    state = trainer.state
    best = None
    if state.best_metric is not None:
        best = {"name": trainer.args.metric_for_best_model, "value": state.best_metric}
    return {
        "steps": state.global_step,
        "epochs": state.epoch,
        "best_step": state.best_global_step,
        "best_metric": best,
        "seconds": seconds,
        "log_history": state.log_history,
    }


def _data_record(split: Split) -> dict[str, Any]:
    images = split.images
    return {
        "source": images.source,
        "attribution": images.attribution,
        "is_drawn": images.is_drawn,
        "counts": split.counts(),
        "promise": split.promise,
        "group_kind": images.group_kind,
        "rejected": [{"path": image.path, "reason": image.reason} for image in images.rejected],
        "notes": list(split.notes),
        "fingerprint": images.fingerprint(),
    }


def _class_panel(images: CellImages, processor: CytoDinoImageProcessor) -> dict[str, list[Any]]:
    # At the size of the file, not of the model: a person should see what is to be told apart.
    whole = CellDataset(images, processor)
    rows = pick_examples(images, _PANEL_IMAGES_PER_CLASS)
    return {code: [whole.original(row) for row in chosen] for code, chosen in rows.items()}


def _augmentation_strip(train: CellDataset) -> list[list[Any]]:
    step = max(1, len(train) // _STRIP_ROWS)
    rows = list(range(0, len(train), step))[:_STRIP_ROWS]
    return [
        [train.pixels(row), *(train.pixels((row, 0, position)) for position in range(_STRIP_COLUMNS))]
        for row in rows
    ]
