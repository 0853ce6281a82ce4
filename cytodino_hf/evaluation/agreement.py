"""Agreement beyond chance, from a confusion matrix: micro F1, Cohen's kappa, Matthews' correlation.

As in `metrics`, rows are the true class and a leading axis (bootstrap draws) is carried through.
"""

from __future__ import annotations

import numpy as np

from .metrics import confusion_metrics

#: Names `agreement_metrics` returns.
AGREEMENT = ("micro_f1", "cohen_kappa", "mcc", "macro_f1_frequent")
#: A class of at least this many test images enters `macro_f1_frequent`.
FREQUENT_IMAGES = 50


def agreement_metrics(
    matrix: np.ndarray, classes_counted: np.ndarray | None = None, frequent: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """All metrics of `AGREEMENT`; `macro_f1_frequent` only where a counted class is frequent.

    Micro F1 equals the accuracy where each image has one true and one predicted class, as here. Kappa and MCC are 0
    where nothing but chance can be seen: all images are of one class, or all were called one.

    Args:
        matrix: (..., K, K) counts, rows true.
        classes_counted: (K,) bool, the classes of the training fold; None counts all.
        frequent: (K,) bool, classes of at least `FREQUENT_IMAGES` images; None finds them in a matrix without leading
            axis. Draws get those of the fold, so that all are over the same classes.

    Returns:
        Name -> (...) float64.

    Raises:
        ValueError: A matrix without image.

    Source:
        Cohen 1960 (kappa); Gorodkin 2004 (Matthews' correlation for K classes, R_K).
    """
    matrix = np.asarray(matrix)
    support, called = matrix.sum(-1).astype(np.float64), matrix.sum(-2).astype(np.float64)
    n = support.sum(-1)
    if matrix.size == 0 or (n == 0).any():
        raise ValueError("no image to score: the confusion matrix is empty")
    accuracy = np.trace(matrix, axis1=-2, axis2=-1) / n
    chance = (support * called).sum(-1) / n**2
    spread = np.sqrt((1 - (called**2).sum(-1) / n**2) * (1 - (support**2).sum(-1) / n**2))
    values = {
        "micro_f1": accuracy,
        "cohen_kappa": _ratio(accuracy - chance, 1 - chance),
        "mcc": _ratio(accuracy - chance, spread),
    }
    if frequent is None:
        frequent = frequent_classes(matrix)
    if classes_counted is not None:
        frequent = frequent & np.asarray(classes_counted, dtype=bool)
    if (matrix.sum(-1) * frequent).any(-1).all():
        values["macro_f1_frequent"] = confusion_metrics(matrix, frequent)["macro_f1"]
    return values


def frequent_classes(matrix: np.ndarray) -> np.ndarray:
    """Which classes have at least `FREQUENT_IMAGES` true images: (K,) bool of a (K, K) matrix."""
    is_frequent: np.ndarray = np.asarray(matrix).sum(-1) >= FREQUENT_IMAGES
    return is_frequent


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    # Below 1e-12 the whole is rounding of 0: all images are of one class and all were called it.
    is_whole = np.asarray(whole) > 1e-12
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=is_whole)
