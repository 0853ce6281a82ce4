"""How far mistakes lie from the truth: by lineage, by steps of maturation, and from critical to safe classes.

The distance of two classes is 0 for a class and itself; inside a lineage the steps between them along its maturation
order, and 1 where one of the two has no place in an order; across lineages one more than the greatest distance inside
any lineage of the taxonomy, at least 2 (MLL: 6, for BLA and NGS lie 5 steps apart). So no mistake inside a lineage
counts as much as one across.
"""

from __future__ import annotations

import numpy as np

from ..taxonomy import Taxonomy

#: Names `hierarchy_metrics` returns; `within_one_step` and `critical_to_safe` only where defined.
HIERARCHY = ("lineage_accuracy", "mean_distance", "within_one_step", "critical_to_safe")


def across_lineages(taxonomy: Taxonomy) -> int:
    """Distance of two classes of different lineages."""
    inside = [len(order) - 1 for order in taxonomy.maturation.values()]
    return max([1, *inside]) + 1


def distance_matrix(taxonomy: Taxonomy) -> np.ndarray:
    """Distance of each pair of classes in steps, int64 (K, K); see the module text for the formula.

    Example:
        >>> from cytodino_hf.taxonomy import MLL
        >>> steps, at = distance_matrix(MLL), MLL.index
        >>> [int(steps[at("BLA"), at(code)]) for code in ("BLA", "PMO", "NGS", "LYT")]
        [0, 1, 5, 6]
    """
    k = len(taxonomy)
    distances = np.ones((k, k), dtype=np.int64)
    np.fill_diagonal(distances, 0)
    for order in taxonomy.maturation.values():
        labels = [taxonomy.index(code) for code in order]
        places = np.arange(len(labels))
        distances[np.ix_(labels, labels)] = np.abs(places[:, None] - places)
    distances[~same_lineage(taxonomy)] = across_lineages(taxonomy)
    return distances


def same_lineage(taxonomy: Taxonomy) -> np.ndarray:
    """Which pairs of classes share a lineage: bool (K, K)."""
    lineages = np.array(taxonomy.lineages)
    is_same: np.ndarray = lineages[:, None] == lineages
    return is_same


def hierarchy_metrics(matrix: np.ndarray, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
    """Lineage accuracy, mean distance, share of mistakes within one step, critical cells called safe.

    Args:
        matrix: (..., K, K) counts, rows true, in the order of the taxonomy.
        taxonomy: Lineages, maturation orders, critical and safe classes.

    Returns:
        Name -> (...) float64. `mean_distance` is over all images, right ones at 0. `within_one_step`, of the mistakes,
        is left out where there is none, and 1 for those of several matrices that have none (no mistake lies further);
        `critical_to_safe`, of the critical cells, is left out where there is none or no class is safe.

    Raises:
        ValueError: A matrix without image.
    """
    matrix = np.asarray(matrix)
    n = matrix.sum((-2, -1))
    if matrix.size == 0 or (n == 0).any():
        raise ValueError("no image to score: the confusion matrix is empty")
    distances = distance_matrix(taxonomy)
    values = {
        "lineage_accuracy": (matrix * same_lineage(taxonomy)).sum((-2, -1)) / n,
        "mean_distance": (matrix * distances).sum((-2, -1)) / n,
    }
    mistakes = (matrix * (distances > 0)).sum((-2, -1))
    if (mistakes > 0).any():
        near = (matrix * (distances == 1)).sum((-2, -1))
        values["within_one_step"] = np.where(mistakes > 0, near / np.maximum(mistakes, 1), 1.0)
    critical = matrix[..., list(taxonomy.critical), :]
    cells = critical.sum((-2, -1))
    if taxonomy.safe and (cells > 0).any():
        values["critical_to_safe"] = critical[..., list(taxonomy.safe)].sum((-2, -1)) / np.maximum(cells, 1)
    return values
