"""Mistakes to look at: those the model was surest of, and critical cells it called safe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..taxonomy import Taxonomy
from .panels import TILE_PX, paste_tile, photo_figure
from .plots import shortened
from .predictions import Predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Cells of one gallery.
GALLERY_CELLS = 24
#: Gallery -> what it shows.
GALLERIES = {
    "confident_mistakes": "The wrong answers the model was surest of.",
    "dangerous_mistakes": "Critical cells called safe, the surest first.",
}
# Cells side by side
_COLUMNS = 4
# Beside a cell there is room for the longest name of the MLL classes; longer ones are shortened.
_TEXT_PX, _GAP_PX, _LINE_PX, _LETTERS = 200, 12, 20, 22


def galleries_section(
    predictions: Predictions, taxonomy: Taxonomy, limit: int = GALLERY_CELLS
) -> dict[str, Any]:
    """Choose the mistakes to look at.

    Args:
        predictions: Of the fold that is reported; images without label are left out.
        taxonomy: The classes.
        limit: Cells of each gallery.

    Returns:
        Gallery of `GALLERIES` -> `{"total", "n", "words", "cells"}`: how many such mistakes there are among how many
        images, and of the first `limit` the row, id, path, true and predicted class and the confidence.
    """
    wrong = (predictions.predicted != predictions.labels) & (predictions.labels >= 0)
    is_critical = np.isin(predictions.labels, taxonomy.critical)
    dangerous = is_critical & np.isin(predictions.predicted, taxonomy.safe)
    known = predictions.labels >= 0
    sizes = {"confident_mistakes": int(known.sum()), "dangerous_mistakes": int(is_critical.sum())}
    confidence = predictions.probabilities.max(axis=1)
    section = {}
    for name, mask in (("confident_mistakes", wrong), ("dangerous_mistakes", dangerous)):
        rows = np.flatnonzero(mask)
        chosen = rows[np.argsort(-confidence[rows], kind="stable")][:limit]
        section[name] = {
            "total": len(rows),
            "n": sizes[name],
            "words": GALLERIES[name],
            "cells": [_cell(predictions, taxonomy, row, confidence[row]) for row in chosen.tolist()],
        }
    return section


def _cell(predictions: Predictions, taxonomy: Taxonomy, row: int, confidence: float) -> dict[str, Any]:
    true, called = taxonomy.classes[predictions.labels[row]], taxonomy.classes[predictions.predicted[row]]
    return {
        "row": row,
        "id": predictions.ids[row],
        "path": predictions.paths[row],
        "true": true.code,
        "true_name": true.name,
        "predicted": called.code,
        "predicted_name": called.name,
        "confidence": float(confidence),
    }


def draw_gallery(cells: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray]) -> Figure:
    """Cells, and beside each its true class, its predicted class and how sure the model was.

    Args:
        cells: Of one gallery of `galleries_section`; at least one.
        images: Their pictures, uint8 (height, width, 3), of any sizes.
    """
    columns = min(_COLUMNS, len(cells))
    wide, high = TILE_PX + _TEXT_PX + _GAP_PX, TILE_PX + _GAP_PX
    rows = -(-len(cells) // columns)
    canvas = np.full((rows * high - _GAP_PX, columns * wide - _GAP_PX, 3), 255, dtype=np.uint8)
    captions = []
    for number, (cell, image) in enumerate(zip(cells, images, strict=True)):
        top, left = number // columns * high, number % columns * wide
        lines = (cell["true_name"], f"→ {cell['predicted_name']}", f"{100 * cell['confidence']:.0f} %")
        captions += [
            (left + TILE_PX + 6, top + (line + 1) * _LINE_PX, shortened(text, _LETTERS))
            for line, text in enumerate(lines)
        ]
        paste_tile(canvas, image, top, left)
    return photo_figure(canvas, captions)
