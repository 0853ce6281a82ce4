"""Labels that a model trained without them doubts: confident learning on out-of-fold probabilities.

Source: Northcutt, Jiang and Chuang, Journal of Artificial Intelligence Research 70 (2021), 1373 (by cleanlab).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...data.splits import safe_cell
from ...errors import CytoDinoError, DataError
from ...files import whole_file
from ..galleries import draw_gallery
from ..predictions import Predictions
from ..statistics import FEW_IMAGES, wilson_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Images a report lists, and shows.
LISTED, SHOWN = 200, 48
COLUMNS = ("rank", "id", "path", "given", "suggested", "given_probability", "suggested_probability")


def label_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Rows whose label is doubtful, the most doubtful first.

    A label is doubtful where another class is more probable than it usually is among images of that class, and the most
    probable of such. They are ranked by the probability of the given label.

    Args:
        labels: (images,) given labels, 0 to classes - 1.
        probabilities: (images, classes) by models that were not trained on the image.

    Returns:
        int64 row numbers; none where fewer than two classes are given.

    Raises:
        DataError: The probabilities are none, or a label has no column.
        CytoDinoError: cleanlab is not installed.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    _check(labels, probabilities)
    present = np.unique(labels)
    if len(present) < 2:
        return np.empty(0, dtype=np.int64)
    # A class without a given label cannot be judged: what is probable among its images is not known.
    kept = probabilities[:, present]
    total = kept.sum(axis=1, keepdims=True)
    kept = np.where(total > 0, kept / np.where(total > 0, total, 1.0), 1 / len(present))
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        raise CytoDinoError(
            "a label audit needs cleanlab, which is not installed: pip install 'cytodino-hf[audit]'"
        ) from error
    found = find_label_issues(
        np.searchsorted(present, labels),
        kept,
        filter_by="confident_learning",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    return np.asarray(found, dtype=np.int64)


def _check(labels: np.ndarray, probabilities: np.ndarray) -> None:
    if probabilities.ndim != 2 or len(probabilities) != len(labels):
        raise DataError(
            f"{len(labels)} labels and probabilities {probabilities.shape} do not belong together"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < probabilities.shape[1]:
        raise DataError(
            f"labels reach from {labels.min()} to {labels.max()}, probabilities have {probabilities.shape[1]} columns; "
            "leave out images without label"
        )
    if not np.isfinite(probabilities).all() or (probabilities < 0).any():
        raise DataError("some probabilities are negative or not finite; score these images again")


def audit_section(predictions: Predictions, *, limit: int = LISTED, level: float = 0.95) -> dict[str, Any]:
    """Rank the labels that out-of-fold predictions doubt.

    Args:
        predictions: Of every image by a model that was not trained on it; images without label are left out.
        limit: Images listed.
        level: Nominal coverage.

    Returns:
        `doubtful` (how many of how many, with the interval of the share), `per_class` (the same by given label),
        `pairs` (given and suggested class, most frequent first), `issues` (the first ones) and `why` where there is
        nothing to audit.

    Raises:
        DataError, CytoDinoError: See `label_issues`.
    """
    known = np.flatnonzero(predictions.labels >= 0)
    labels, probabilities = predictions.labels[known], predictions.probabilities[known]
    found = label_issues(labels, probabilities)
    suggested = _suggestions(labels, probabilities)
    codes = predictions.classes
    pairs = Counter((codes[labels[row]], codes[suggested[row]]) for row in found.tolist())
    doubted, counts = (np.bincount(values, minlength=len(codes)) for values in (labels[found], labels))
    return {
        "images": len(known),
        "unlabelled_images": len(predictions) - len(known),
        "level": level,
        "doubtful": wilson_interval(len(found), len(known), level=level).to_dict() | {"images": len(found)},
        "per_class": [
            {"code": code, "images": int(of), "doubtful": int(hits), "is_few": bool(of < FEW_IMAGES)}
            | (
                {"share": wilson_interval(int(hits), int(of), level=level).to_dict()}
                if of
                else {"share": None}
            )
            for code, hits, of in zip(codes, doubted, counts, strict=True)
        ],
        "pairs": [
            {"given": given, "suggested": other, "images": n} for (given, other), n in pairs.most_common()
        ],
        "issues": [
            {
                "rank": rank,
                "id": predictions.ids[known[row]],
                "path": predictions.paths[known[row]],
                "given": codes[labels[row]],
                "suggested": codes[suggested[row]],
                "given_probability": float(probabilities[row, labels[row]]),
                "suggested_probability": float(probabilities[row, suggested[row]]),
            }
            for rank, row in enumerate(found[:limit].tolist(), start=1)
        ],
        "why": None if len(np.unique(labels)) > 1 else "fewer than two classes have a label",
    }


def _suggestions(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The most probable other class among those given to some image; the image's own where there is no other."""
    open_to = np.zeros_like(probabilities, dtype=bool)
    open_to[:, np.unique(labels)] = True
    open_to[np.arange(len(labels)), labels] = False
    others = np.where(open_to, probabilities, -1.0)
    return np.where(open_to.any(axis=1), others.argmax(axis=1), labels)


def write_issues(path: str | Path, predictions: Predictions) -> int:
    """Write every doubtful label as a CSV with `COLUMNS`, the most doubtful first.

    Args:
        path: The file.
        predictions: See `audit_section`.

    Returns:
        How many there are.

    Raises:
        DataError, CytoDinoError: See `label_issues`.
    """
    issues: Sequence[Mapping[str, Any]] = audit_section(predictions, limit=len(predictions))["issues"]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for issue in issues:
        writer.writerow({**issue, "id": safe_cell(issue["id"]), "path": safe_cell(issue["path"])})
    with whole_file(Path(path)) as file:
        file.write(text.getvalue().encode("utf-8"))
    return len(issues)


def draw_issues(
    issues: Sequence[Mapping[str, Any]], images: Sequence[np.ndarray], names: Mapping[str, str]
) -> Figure:
    """Thumbnails of doubtful labels: the label each has, and what the models say.

    Args:
        issues: Of `audit_section`; at least one.
        images: Their pictures, uint8 (height, width, 3).
        names: Code of a class -> its name.
    """
    cells = [
        {
            "true_name": names[one["given"]],
            "predicted_name": names[one["suggested"]],
            "confidence": one["suggested_probability"],
        }
        for one in issues
    ]
    return draw_gallery(cells, images)
