"""The end of a training: fit what stays beside the model, ask the baselines, write the report and the review list."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data.appearance import APPEARANCE_FILE, measure_appearance
from .data.pictures import pictures_of
from .errors import DataError
from .evaluation.baselines import baseline_predictions, kept_notes
from .evaluation.changes.cells import write_changed_cells
from .evaluation.companions import bind_companions
from .evaluation.data_questions.copies import copies_section
from .evaluation.data_questions.stain import stain_section
from .evaluation.fitted import Fitted, embeddings_by_fold, fit
from .evaluation.predictions import Predictions
from .evaluation.report import ReportContext, write_report
from .evaluation.report_parts import Evidence
from .evaluation.selective.review import review_list, write_review

if TYPE_CHECKING:
    from .data.samples import CellImages
    from .data.splits import Split
    from .recipe import Recipe
    from .run_folder import RunFolder

logger = logging.getLogger(__name__)

EMBEDDINGS_FILE = "embeddings.parquet"
#: Of the predictions folder: answers averaged over the symmetries of the square, where they were asked for.
AVERAGED_FILE = "test_symmetries.parquet"
#: Of the report folder.
REVIEW_FILE, CHANGED_FILE = "review.csv", "changed_cells.csv"


def report_run(
    recipe: Recipe,
    split: Split,
    run: RunFolder,
    predictions: Mapping[str, Predictions],
    context: ReportContext,
) -> dict[str, Any]:
    """Write the report of a finished training and what is fitted beside its model.

    Args:
        recipe: What was trained.
        split: Its images.
        run: Holds the model, predictions and embeddings.
        predictions: Fold -> predictions.
        context: What the report says besides; gets its evidence here.

    Returns:
        The content of `report.json`.

    Raises:
        CytoDinoError: Predictions or pictures are broken, or a baseline's backbone cannot be had.
    """
    settings = recipe.evaluation
    embeddings = embeddings_by_fold(run.predictions / EMBEDDINGS_FILE, predictions)
    fitted = fit(predictions, embeddings, context.train_classes, settings.seed)
    fitted.save(run.path)
    _keep_appearance(split.images.fold("train"), run.path / APPEARANCE_FILE)
    bind_companions(run.path)
    evidence = _evidence(recipe, split, run, predictions, embeddings, fitted) if settings.parts else None
    return write_whole_report(
        run.report,
        predictions,
        replace(context, evidence=evidence),
        draws=settings.interval_draws,
        seed=settings.seed,
    )


def _evidence(
    recipe: Recipe,
    split: Split,
    run: RunFolder,
    predictions: Mapping[str, Predictions],
    embeddings: Mapping[str, np.ndarray],
    fitted: Fitted,
) -> Evidence:
    """What the parts rest on: also what images and the backbone before fine-tuning say."""
    settings, images = recipe.evaluation, split.images
    kept = run.predictions / "baselines"
    is_asked = settings.baselines and bool(predictions)
    baselines = baseline_predictions(recipe, split, kept, run.base) if is_asked else {}
    return Evidence(
        embeddings=embeddings,
        fitted=fitted,
        baselines=baselines,
        baseline_notes=kept_notes(kept) if is_asked else {},
        baselines_gap="evaluation.baselines is false" if not settings.baselines else "no fold is scored",
        is_pretrained=recipe.model.backbone is not None,
        copies=_copies(recipe, split),
        stain=stain_section(
            pictures_of(images).read, images.column("source"), images.folds, images.groups, seed=settings.seed
        ),
        picture=PicturesById(images).read,
    )


def write_whole_report(
    folder: Path,
    predictions: Mapping[str, Predictions],
    context: ReportContext,
    *,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """`write_report`, and beside it the cells a person should look at and, of a comparison, those that changed."""
    report = write_report(folder, predictions, context, draws=draws, seed=seed)
    _keep_review(folder / REVIEW_FILE, predictions, context, report)
    evidence, fold = context.evidence, report["reported_fold"]
    if evidence is not None and evidence.other is not None and fold is not None:
        write_changed_cells(folder / CHANGED_FILE, predictions[fold], evidence.other[1], context.taxonomy)
    else:
        (folder / CHANGED_FILE).unlink(missing_ok=True)
    return report


def _keep_review(
    path: Path, predictions: Mapping[str, Predictions], context: ReportContext, report: Mapping[str, Any]
) -> None:
    """Write the cells a person should look at, which needs no label; a list of an earlier report does not stay."""
    folds, evidence = report["review_folds"], context.evidence
    if evidence is None or not folds:
        path.unlink(missing_ok=True)
        return
    # A threshold is chosen where the test fold has labels to try it on; otherwise all cells are ranked.
    section = report["parts"].get("selective") if folds == [report["reported_fold"]] else None
    point = section["per_class_point"] if section else None
    asked = {"score": point["score"], "threshold": point["threshold"]} if point else {}
    calibration = evidence.fitted.calibration
    cells = [
        cell
        for fold in folds
        for cell in review_list(
            predictions[fold] if calibration is None else calibration.of(predictions[fold]),
            context.taxonomy,
            **asked,
        )
    ]
    write_review(path, sorted(cells, key=lambda cell: -cell.score))


class PicturesById:
    """The pictures of a set by the id of the image; nothing is opened before the first.

    Args:
        images: The set.
    """

    def __init__(self, images: CellImages) -> None:
        self._images = images

    def read(self, image: str) -> np.ndarray:
        """The picture of an id, uint8 (height, width, 3)."""
        # A row of a packed file is a view of it that cannot be written to.
        return np.array(self._pictures.read(self._row_of[image]))

    @cached_property
    def _pictures(self) -> Any:
        return pictures_of(self._images)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self._images.column("id"))}


def _keep_appearance(train: CellImages, path: Path) -> None:
    try:
        measure_appearance(train).write(path)
    except DataError as error:
        # What it serves, matching other sets to these colours, is then not to be had; the run is none the worse.
        path.unlink(missing_ok=True)
        logger.warning("%s is not written: %s", path.name, error)


def _copies(recipe: Recipe, split: Split) -> dict[str, Any] | None:
    """Of the split's own look for near-duplicates; None where the recipe wants none."""
    if recipe.data.near_duplicates == "ignore":
        return None
    images = split.images
    return copies_section(
        split.duplicates, images.folds, images.labels, images.column("path"), images.taxonomy.codes
    )
