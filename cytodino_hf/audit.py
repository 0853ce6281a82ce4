"""audit(recipe): train on every part but one, ask about that one, and list the labels that the answers doubt.

Each fold is a normal RUN below the folder of the audit: one that was interrupted continues, a finished one is left as
it is. The images of a group, and those that show one picture, are never in two folds.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .data.inspection.scan import scan_images
from .data.kept_together import united_groups
from .data.loading import load_split
from .data.pictures import pictures_of
from .data.samples import CellImages
from .data.splits import Split
from .errors import CytoDinoError, DataError
from .evaluation.data_questions.copies import copies_section
from .evaluation.data_questions.label_audit import SHOWN, audit_section, draw_issues, write_issues
from .evaluation.data_questions.section import data_questions_section, draw_class_counts
from .evaluation.data_questions.stain import draw_stain, stain_section
from .evaluation.plots import figure_to_data_uri
from .evaluation.predictions import Predictions
from .files import whole_file, write_json
from .finetune import finetune
from .page import plain, render_template
from .recipe import Recipe, parse_recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Audit:
    """What an audit came to.

    Args:
        page: The page for people; beside it `audit.json`, `doubtful_labels.csv` and `out_of_fold.parquet`.
        section: The content of `audit.json`.
    """

    page: Path
    section: dict[str, Any]


def audit(recipe: Recipe, folder: Path, folds: int = 5) -> Audit:
    """Audit the labels of a recipe's images.

    Args:
        recipe: What is trained, on each fold anew. Its own split is only asked about: every image is answered.
        folder: Of the audit; its runs lie in `runs/`.
        folds: Parts the images are divided into, at least 2.

    Returns:
        Where the results are.

    Raises:
        CytoDinoError: Of any stage; says what is wrong, where, and the remedy.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise CytoDinoError(
            "an audit trains one fold after the other in one process; start it without a launcher"
        )
    split = load_split(recipe)
    # All images there are, also those the recipe's split leaves out.
    images = load_split(replace(recipe, data=recipe.data.model_copy(update={"split": "stratified"}))).images
    parts = divide_evenly(images, folds, recipe.data.split_seed)
    answers = [
        _answers_of(recipe, images, folder, number, np.flatnonzero(parts == number).tolist())
        for number in range(folds)
    ]
    predictions = joined(answers)
    if sorted(predictions.ids) != sorted(images.column("id")):
        raise DataError(
            f"{folder}: its runs are not of these images; delete {folder / 'runs'} and start again"
        )
    predictions.to_parquet(folder / "out_of_fold.parquet")
    write_issues(folder / "doubtful_labels.csv", predictions)
    section = _section(split, predictions)
    write_json(folder / "audit.json", section)
    page = folder / "audit.html"
    with whole_file(page) as file:
        file.write(_page(section, images, folds).encode("utf-8"))
    return Audit(page, section)


def divide_evenly(images: CellImages, folds: int, seed: int) -> np.ndarray:
    """The number of the fold of every image, int64: classes evenly, groups and copies together.

    Args:
        images: All images.
        folds: Parts, at least 2.
        seed: Of the draw.

    Raises:
        DataError: There are fewer images, or groups, than folds, or one fold.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    labels = np.asarray(images.labels)
    groups = united_groups(images, scan_images(images).duplicates)
    units = len(labels) if groups is None else len(set(groups))
    if not 2 <= folds <= units:
        raise DataError(f"{folds} folds of {units} images or groups: at least 2, and no more than there are")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    parts = np.full(len(labels), -1, dtype=np.int64)
    with warnings.catch_warnings():
        # A class of fewer images than folds is in fewer of them: known, and its images are asked about all the same.
        warnings.simplefilter("ignore", UserWarning)
        drawn = kind(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels, groups)
        for number, (_, rows) in enumerate(drawn):
            parts[rows] = number
    if empty := [number for number in range(folds) if not (parts == number).any()]:
        raise DataError(f"fold {empty[0]} of {folds} would be empty: too few groups; ask for fewer folds")
    return parts


def _answers_of(
    recipe: Recipe, images: CellImages, folder: Path, number: int, rows: Sequence[int]
) -> Predictions:
    """Train without the rows, or find that done, and give what the model says of them."""
    listed = folder / "folds" / f"fold{number}.csv"
    paths, labels, codes = images.column("path"), images.labels, images.taxonomy.codes
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["path", "label"], *([paths[row], codes[labels[row]]] for row in rows)])
    with whole_file(listed) as file:
        file.write(text.getvalue().encode("utf-8"))
    document = recipe.to_dict()
    document["data"]["split"] = str(listed)
    document["training"]["output_dir"] = str(folder / "runs" / f"fold{number}")
    document["evaluation"] |= {"baselines": False, "parts": False}
    document["hub"]["repo_id"] = None
    logger.info("fold %d: %d images are left out", number, len(rows))
    run = finetune(parse_recipe(document, source=f"fold {number} of the audit"))
    return Predictions.from_parquet(run.predictions / "test.parquet")


def joined(parts: Sequence[Predictions]) -> Predictions:
    """Predictions of several models of the same classes, each of other images, as one.

    Raises:
        DataError: The models name other classes.
    """
    first = parts[0]
    other = next((part for part in parts if part.classes != first.classes), None)
    if other is not None:
        raise DataError(
            f"folds name the classes {', '.join(first.classes)} and {', '.join(other.classes)}; train them again"
        )
    columns: dict[str, Any] = {
        name: [value for part in parts for value in getattr(part, name)]
        for name in ("ids", "paths", "sources", "groups", "folds")
    }
    return replace(
        first,
        **columns,
        labels=np.concatenate([part.labels for part in parts]),
        logits=np.concatenate([part.logits for part in parts]),
        model_revision=f"{len(parts)} folds, {first.model_revision[:12]} ...",
    )


def _section(split: Split, predictions: Predictions) -> dict[str, Any]:
    """What is asked of the recipe's own split, and the audit."""
    images, codes = split.images, split.images.taxonomy.codes
    pictures, folds = pictures_of(images), images.folds
    clusters = scan_images(images).duplicates.clusters()
    section: dict[str, Any] = plain(
        data_questions_section(
            split.counts(),
            images.taxonomy,
            copies=copies_section(clusters, folds, images.labels, images.column("path"), codes),
            stain=stain_section(pictures.read, images.column("source"), folds, images.groups),
            audit=audit_section(predictions),
        )
    )
    return section


def _page(section: dict[str, Any], images: CellImages, folds: int) -> str:
    figures = {
        "class_counts": figure_to_data_uri(draw_class_counts(section["counts"])),
        "stain": figure_to_data_uri(draw_stain(section["stain"])),
    }
    if issues := section["audit"]["issues"][:SHOWN]:
        row_of = {name: row for row, name in enumerate(images.column("id"))}
        pictures = pictures_of(images)
        shown = [pictures.read(row_of[issue["id"]]) for issue in issues]
        names = dict(zip(images.taxonomy.codes, images.taxonomy.names, strict=True))
        figures["audit"] = figure_to_data_uri(draw_issues(issues, shown, names), "png")
    return render_template(
        Path(__file__).with_name("audit_page.html"),
        {},
        section=section,
        figures=figures,
        source=images.source,
        folds=folds,
        is_drawn=images.is_drawn,
    )
