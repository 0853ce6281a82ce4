"""The order statistic behind every conformal promise, and sets with a threshold for each class.

A class is in the set of a cell where its score, minus the logarithm of its probability, is not above the threshold of
that class (LAC; the logarithm keeps apart what rounding would make equal). The threshold is the k-th smallest score of
n calibration cells, k = ceil((n + 1)(1 - alpha)). A new cell that is like them is then covered with probability
k / (n + 1) where no two scores tie, and with more where they do. Below ceil(1 / alpha) - 1 cells there is no such k.

Source: Vovk, Gammerman and Shafer 2005, Algorithmic learning in a random world, 2.2 and 4.5 (classes by themselves);
Sadinle, Lei and Wasserman 2019, Least ambiguous set-valued classifiers (arXiv 1609.00451).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...errors import DataError
from ...taxonomy import Taxonomy

#: What a threshold rests on: the cells of the class, of its lineage, or all.
Basis = Literal["class", "lineage", "all cells"]

# (n + 1)(1 - alpha) of 9 cells and alpha 0.1 is 9, whatever binary rounding makes of it.
_ROUNDING = 1e-9


def cells_needed(alpha: float) -> int:
    """The fewest calibration cells that can keep a promise of 1 - alpha: ceil(1 / alpha) - 1.

    Example:
        >>> cells_needed(0.1), cells_needed(0.05)
        (9, 19)

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    _check_alpha(alpha)
    return math.ceil(1 / alpha - _ROUNDING) - 1


def promised_coverage(n: int, alpha: float) -> float | None:
    """Probability that a new cell is covered, over calibration cells and cell: ceil((n + 1)(1 - alpha)) / (n + 1).

    None where n cells are too few.
    """
    rank = _rank(n, alpha)
    return rank / (n + 1) if rank <= n else None


def conformal_threshold(scores: np.ndarray, alpha: float) -> float | None:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; None where n is too small.

    Args:
        scores: (cells,) of calibration cells.
        alpha: Share of new cells that may lie above.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    rank = _rank(len(scores), alpha)
    return float(np.partition(scores, rank - 1)[rank - 1]) if rank <= len(scores) else None


@dataclass(frozen=True)
class ClassThreshold:
    """The threshold of one class.

    Args:
        code: The class.
        basis: Which cells it rests on.
        own_cells: Calibration cells of the class.
        cells: Calibration cells it rests on.
        value: Largest score that is in the set.
        promise: Coverage of the cells it rests on, in expectation (`promised_coverage`).
    """

    code: str
    basis: Basis
    own_cells: int
    cells: int
    value: float
    promise: float


def class_scores(logits: np.ndarray) -> np.ndarray:
    """Minus the log probability of each class, float64 (cells, classes)."""
    from scipy.special import log_softmax

    scores: np.ndarray = -log_softmax(np.asarray(logits, dtype=np.float64), axis=1)
    return scores


def class_thresholds(
    logits: np.ndarray, labels: np.ndarray, taxonomy: Taxonomy, alpha: float
) -> list[ClassThreshold]:
    """The threshold of each class, from its own cells where they suffice, else of its lineage, else of all.

    A threshold of a lineage rests on the cells of all classes of it: it promises coverage of the lineage, not of each
    class.

    Args:
        logits: (cells, classes) of calibration cells.
        labels: (cells,) true classes.
        taxonomy: Classes and lineages.
        alpha: Share of cells that may lie outside their set.

    Returns:
        One entry a class, in label order.

    Raises:
        DataError: All cells together are too few.
        ValueError: alpha is not between 0 and 1.
    """
    needed = cells_needed(alpha)
    if len(labels) < needed:
        raise DataError(
            f"{len(labels)} labelled calibration cells are too few for sets that hold the true class in "
            f"{100 * (1 - alpha):.0f} % of cells: at least {needed} are needed; ask for less, or set aside more images"
        )
    own = class_scores(logits)[np.arange(len(labels)), labels]
    lineages = np.array(taxonomy.lineages)
    of_lineage = lineages[labels]
    found = []
    for label, cell in enumerate(taxonomy.classes):
        pools: list[tuple[Basis, np.ndarray]] = [
            ("class", own[labels == label]),
            ("lineage", own[of_lineage == cell.lineage]),
            ("all cells", own),
        ]
        basis, scores = next((name, pool) for name, pool in pools if len(pool) >= needed)
        value, promise = conformal_threshold(scores, alpha), promised_coverage(len(scores), alpha)
        assert value is not None  # the pool is large enough
        assert promise is not None
        found.append(ClassThreshold(cell.code, basis, len(pools[0][1]), len(scores), value, promise))
    return found


def class_sets(logits: np.ndarray, thresholds: list[ClassThreshold]) -> np.ndarray:
    """Which classes are in the set of each cell, bool (cells, classes)."""
    inside: np.ndarray = class_scores(logits) <= np.array([t.value for t in thresholds])
    return inside


def _rank(n: int, alpha: float) -> int:
    _check_alpha(alpha)
    return math.ceil((n + 1) * (1 - alpha) - _ROUNDING)


def _check_alpha(alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} must lie between 0 and 1")
