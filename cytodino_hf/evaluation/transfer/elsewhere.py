"""The prediction loop on another source: its own labels beside the model's answers, pictures matched if wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...data.appearance import APPEARANCE_FILE, Appearance, measure_appearance
from ...data.colour_matching import MatchedPictures, Matching, match
from ...data.dataset import CellDataset
from ...errors import DataError
from ...taxonomy import Taxonomy
from ...training.guards import refuse_bad_logits
from ...training.remedies import FINE_TUNING
from ..predictions import Predictions
from ..scoring import BATCH_SIZE, Answer, Precision, ScoredBatch, plain_answer, score
from .correspondence import correspondence

if TYPE_CHECKING:
    from ...data.samples import CellImages
    from ...model.image_processing_cytodino import CytoDinoImageProcessor
    from ...model.modeling_cytodino import CytoDinoForImageClassification


@dataclass(frozen=True)
class Elsewhere:
    """What a model said about the pictures of another source.

    Args:
        predictions: In the model's classes; the label is the model's class where exactly one corresponds, else -1.
        their_labels: Class code of each picture in the other source's own taxonomy.
        embeddings: Of the head, float32 (images, width).
        matching: How the pictures were changed beforehand; None: as they are.
    """

    predictions: Predictions
    their_labels: list[str]
    embeddings: np.ndarray
    matching: Matching | None = None


def score_elsewhere(
    model: CytoDinoForImageClassification,
    processor: CytoDinoImageProcessor,
    images: CellImages,
    *,
    model_taxonomy: Taxonomy,
    model_revision: str,
    matching: Matching | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    precision: Precision = "float32",
    answer: Answer = plain_answer,
) -> Elsewhere:
    """Score the pictures of another source, whose classes need not be the model's.

    Args:
        model, processor: See `scoring.score`.
        images: Of the other source, in its own taxonomy.
        model_taxonomy: The model's classes, in label order.
        model_revision: Written into every row.
        matching: Changes every picture before the processor sees it; None leaves them as they are.
        batch_size, workers, precision, answer: See `scoring.score`.

    Raises:
        DataError: There is no picture, one cannot be read, or the two have fewer than two common classes.
        BadNumbersError: The model's answer to a picture is not finite; names it.
    """
    if not images.labels:
        raise DataError(f"{images.root}: no images to score")
    common = correspondence(model_taxonomy, images.taxonomy)
    scored: list[ScoredBatch] = []
    score(
        model,
        processor,
        MatchedDataset(images, processor, matching),
        scored.append,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        answer=answer,
    )
    their_labels = [images.taxonomy.codes[label] for label in images.labels]
    single = {
        code: model_taxonomy.index(entry.ours[0])
        for entry in common.classes
        if len(entry.ours) == 1
        for code in entry.theirs
    }
    predictions = Predictions(
        ids=images.column("id"),
        paths=images.column("path"),
        sources=images.column("source"),
        groups=images.column("group"),
        folds=images.folds,
        labels=np.array([single.get(code, -1) for code in their_labels], dtype=np.int64),
        logits=np.concatenate([batch.logits for batch in scored]),
        classes=model_taxonomy.codes,
        model_revision=model_revision,
        group_kind=images.group_kind,
        prepared=None if matching is None else matching.in_words(),
    )
    if bad := [predictions.ids[row] for row in np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1))]:
        refuse_bad_logits("scoring", bad, FINE_TUNING.numbers)
    return Elsewhere(
        predictions, their_labels, np.concatenate([batch.embeddings for batch in scored]), matching
    )


def score_all_ways(
    model: CytoDinoForImageClassification,
    processor: CytoDinoImageProcessor,
    images: CellImages,
    ours: Appearance | None,
    *,
    model_taxonomy: Taxonomy,
    model_revision: str,
    colour: bool = False,
    scale: bool = False,
    batch_size: int = BATCH_SIZE,
    workers: int = 0,
    precision: Precision = "float32",
) -> dict[str, Elsewhere]:
    """`score_elsewhere` as the pictures are, and with what is to be matched: each alone, then together.

    Args:
        model, processor, images, model_taxonomy, model_revision, batch_size, workers, precision: Of `score_elsewhere`.
        ours: Of the images the model was trained on; needed for matching only.
        colour, scale: What to match.

    Returns:
        Name of the way -> what the model said; the first is "as it is".

    Raises:
        DataError: See `score_elsewhere`; or matching is asked for and the appearance of the training images is not
            known, or the scale cannot be told.
    """
    ways: dict[str, Matching | None] = {"as it is": None}
    if colour or scale:
        if ours is None:
            raise DataError(
                f"{images.root}: nothing is known of the colours and the scale of the images the model was trained on "
                f"(no {APPEARANCE_FILE} beside it): leave matching out, or train the model anew"
            )
        theirs = measure_appearance(images)
        if colour:
            ways["colours matched"] = match(theirs, ours, colour=True)
        if scale:
            ways["scale matched"] = match(theirs, ours, scale=True)
        if colour and scale:
            ways["colours and scale matched"] = match(theirs, ours, colour=True, scale=True)
    return {
        name: score_elsewhere(
            model,
            processor,
            images,
            model_taxonomy=model_taxonomy,
            model_revision=model_revision,
            matching=matching,
            batch_size=batch_size,
            workers=workers,
            precision=precision,
        )
        for name, matching in ways.items()
    }


class MatchedDataset(CellDataset):
    """A `CellDataset` whose pictures are changed when they are read.

    Args:
        images: The rows.
        processor: Gives the geometry.
        matching: The change; None leaves the pictures as they are.
    """

    def __init__(
        self, images: CellImages, processor: CytoDinoImageProcessor, matching: Matching | None
    ) -> None:
        super().__init__(images, processor)
        if matching is not None:
            self._pictures = MatchedPictures(self._pictures, matching)
