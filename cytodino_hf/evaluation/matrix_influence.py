"""How well the spread of a metric of a confusion matrix is known: degrees of freedom from what each image changes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

_LITTLE = 1e-4  # of an image; the metrics are smooth, so the difference is the derivative to four digits


def matrix_freedom(
    matrix: np.ndarray, score: Callable[[np.ndarray], dict[str, np.ndarray]]
) -> dict[str, float]:
    """Degrees of freedom of the standard error of each metric; few where few images make most of it.

    As `delta_intervals.spread_of`, with the images of one cell of the matrix taken together; but the error here is one
    that follows the metric (as that of a share does), so only what the metric itself leaves open is uncertain.

    Args:
        matrix: (K, K) counts, rows true; of a class they need not be whole numbers.
        score: (..., K, K) matrices -> name -> (...) values.

    Returns:
        Name -> degrees of freedom, at least 1; infinite where no image changes the metric.
    """
    true, called = np.nonzero(matrix)
    counts = matrix[true, called].astype(np.float64)
    changed = np.repeat(matrix[None].astype(np.float64), len(counts), axis=0)
    changed[np.arange(len(counts)), true, called] += _LITTLE
    base, after = score(matrix), score(changed)
    n = matrix.sum(1).astype(np.float64)
    found = {}
    for name, value in base.items():
        influence = (after[name] - value) / _LITTLE

        def per_class(terms: np.ndarray) -> np.ndarray:
            return np.bincount(true, weights=counts * terms, minlength=len(matrix))

        mean = np.divide(per_class(influence), n, out=np.zeros_like(n), where=n > 0)
        centred = influence - mean[true]
        squares, third, fourth = (per_class(centred**power) for power in (2, 3, 4))
        several = n > 1
        part = squares[several] * n[several] / (n[several] - 1)
        variance = part.sum()
        if variance <= 1e-18:
            found[name] = math.inf
            continue
        # Variance of the variance, less what goes with the metric; at least that of normal influences
        seen = (fourth[several] - squares[several] ** 2 / n[several]).sum()
        left = seen - third[several].sum() ** 2 / variance
        uncertainty = max(left, (2 * part**2 / (n[several] - 1)).sum())
        found[name] = max(1.0, float(2 * variance**2 / uncertainty))
    return found
