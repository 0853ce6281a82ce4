"""Every classification number of the project, from one confusion matrix.

Rows are the true class, columns the predicted one. A leading axis (bootstrap draws) is carried through, so
the same few lines give the value and its interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Names `confusion_metrics` returns, in the order reports show them.
METRICS = (
    "macro_f1",
    "balanced_accuracy",
    "accuracy",
    "weighted_f1",
    "macro_precision",
    "macro_recall",
    "weighted_precision",
    "weighted_recall",
)


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count how often each true class was called each class.

    Args:
        labels: (images,) true labels, 0 to `num_classes` - 1.
        predicted: (images,) predicted labels, same range.
        num_classes: Classes K.

    Returns:
        int64 (K, K), rows true, columns predicted. No image gives zeros.

    Raises:
        ValueError: Lengths differ, or a label lies outside 0 to K - 1 (leave out images without label first).
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    if labels.shape != predicted.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and predictions {predicted.shape} must be two equal columns")
    for word, column in (("label", labels), ("prediction", predicted)):
        outside = (column < 0) | (column >= num_classes)
        if outside.any():
            raise ValueError(f"{word} {column[outside][0]} lies outside 0 to {num_classes - 1}")
    cells = labels.astype(np.int64) * num_classes + predicted.astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


@dataclass(frozen=True)
class ClassMetrics:
    """Precision, recall and F1 of each class; every array (..., classes).

    Args:
        precision: 0 for a class that was never predicted.
        recall: 0 for a class without a true image; such a class belongs in no mean.
        f1: 2 TP / (true + predicted); 0 for a class neither true nor predicted.
        support: True images.
        predicted: Images called this class.
    """

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    predicted: np.ndarray


def class_metrics(matrix: np.ndarray) -> ClassMetrics:
    """Precision, recall and F1 of each class from a confusion matrix (..., K, K)."""
    matrix = _checked(matrix)
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    support, predicted = matrix.sum(-1), matrix.sum(-2)
    return ClassMetrics(
        precision=_share(hits, predicted),
        recall=_share(hits, support),
        f1=_share(2 * hits, support + predicted),
        support=support,
        predicted=predicted,
    )


def confusion_metrics(matrix: np.ndarray, classes_counted: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """All metrics of `METRICS` from a confusion matrix.

    Macro metrics and balanced accuracy (the macro recall) are plain means over the counted classes that have
    a true image: a class absent from the scored fold has no recall, so it is left out of the mean instead of
    entering as 0 or 1. A counted class that is never predicted enters with precision 0. Weighted metrics and
    accuracy are over all images, whatever is counted.

    Args:
        matrix: (..., K, K) counts, rows true.
        classes_counted: (K,) bool, the classes of the training fold; None counts all.

    Returns:
        Name -> (...) float64.

    Raises:
        ValueError: A matrix without image, or without an image of a counted class.
    """
    matrix = _checked(matrix)
    each = class_metrics(matrix)
    images = each.support.sum(-1)
    if matrix.size == 0 or (images == 0).any():
        raise ValueError("no image to score: the confusion matrix is empty")
    counted = each.support > 0
    if classes_counted is not None:
        counted = counted & np.asarray(classes_counted, dtype=bool)
    if not counted.any(-1).all():
        raise ValueError("no image of a counted class to score: the fold holds none of the training classes")
    rows = {"precision": each.precision, "recall": each.recall, "f1": each.f1}
    macro = {f"macro_{n}": (v * counted).sum(-1) / counted.sum(-1) for n, v in rows.items()}
    weighted = {f"weighted_{n}": (v * each.support).sum(-1) / images for n, v in rows.items()}
    values = {
        **macro,
        **weighted,
        "accuracy": np.trace(matrix, axis1=-2, axis2=-1) / images,
        "balanced_accuracy": macro["macro_recall"],
    }
    return {name: values[name] for name in METRICS}


@dataclass(frozen=True)
class Share:
    """How many of how many; `rate` is None where there are none."""

    mistakes: int
    of: int

    @property
    def rate(self) -> float | None:
        """Mistakes divided by cells, or None without cells."""
        return self.mistakes / self.of if self.of else None


@dataclass(frozen=True)
class CriticalMistakes:
    """The dangerous mistakes of one fold.

    Args:
        critical_to_safe: Critical cells called safe, of all critical cells.
        safe_to_critical: Safe cells called critical, of all safe cells.
        per_class: Label of each critical class -> its cells called safe.
    """

    critical_to_safe: Share
    safe_to_critical: Share
    per_class: dict[int, Share]


def critical_mistakes(matrix: np.ndarray, critical: Sequence[int], safe: Sequence[int]) -> CriticalMistakes:
    """Count critical cells called safe, and safe cells called critical.

    Args:
        matrix: (K, K) counts, rows true.
        critical: Labels of the critical classes.
        safe: Labels of the safe classes.
    """
    matrix = _checked(matrix)
    rows, columns = list(critical), list(safe)

    def share(true: list[int], called: list[int]) -> Share:
        return Share(int(matrix[np.ix_(true, called)].sum()), int(matrix[true].sum()))

    return CriticalMistakes(
        critical_to_safe=share(rows, columns),
        safe_to_critical=share(columns, rows),
        per_class={label: share([label], columns) for label in rows},
    )


@dataclass(frozen=True)
class Confusion:
    """One true class called another: how often, and which share of the true class."""

    true: int
    predicted: int
    count: int
    share: float


def top_confusions(matrix: np.ndarray, limit: int = 10) -> list[Confusion]:
    """The most frequent mistakes, most frequent first; ties by share of the true class, then by label."""
    matrix = _checked(matrix)
    support = matrix.sum(-1)
    mistakes = [
        Confusion(int(t), int(p), int(matrix[t, p]), float(matrix[t, p] / support[t]))
        for t, p in np.argwhere(matrix)
        if t != p
    ]
    return sorted(mistakes, key=lambda c: (-c.count, -c.share, c.true, c.predicted))[:limit]


def load_cell_metrics() -> Any:
    """The `evaluate` metric module of the project, loaded from its file; needs no network.

    Returns:
        An `evaluate.Metric`; `compute(predictions=, references=, num_classes=)` gives `METRICS`.
    """
    import evaluate

    path = Path(__file__).with_name("cell_metrics.py")
    # Held in memory: two runs at once then share no cache file.
    return evaluate.load(str(path), keep_in_memory=True)


def _checked(matrix: np.ndarray) -> np.ndarray:
    matrix = np.asarray(matrix)
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"a confusion matrix has as many rows as columns, not shape {matrix.shape}")
    if (matrix < 0).any():
        raise ValueError("a confusion matrix holds counts; a negative number is none")
    return matrix


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    shape = np.broadcast_shapes(part.shape, whole.shape)
    return np.divide(part, whole, out=np.zeros(shape, dtype=np.float64), where=whole > 0)
