"""Confusion matrices drawn anew within each true class, from rows that leave no class without doubt."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Below this many images a class shows too little of its own spread to be resampled plainly (simulated: with
#: classes of 1 to 19 images a nominal 95 % percentile interval of macro F1 covers 41 to 87 %).
ENOUGH_IMAGES = 20

_CELLS_AT_ONCE = 4_000_000  # bounds the memory of the draws to some tens of megabytes, whatever K


def smoothed_rows(matrix: np.ndarray) -> np.ndarray:
    """Rows to draw from: the counts of each class, and two images more.

    Of a class without image one of the two is right and one wrong, so that a class of one image keeps some spread; of
    a class of `ENOUGH_IMAGES` they err as often as the images of the fold do, so that classes read well do not seem to
    be read worse; in between, in proportion. Where no image errs, one of the two is wrong whatever the class. The
    error is spread over the other columns as the errors of all classes are, evenly where there is none.

    Args:
        matrix: (K, K) counts, rows true.

    Returns:
        (K, K) float64, each row positive.
    """
    k = len(matrix)
    errors = matrix.astype(np.float64)
    np.fill_diagonal(errors, 0.0)
    # (K, K): the pooled errors of each column, without the row's own column
    pooled = np.tile(errors.sum(0), (k, 1))
    np.fill_diagonal(pooled, 0.0)
    even = 1.0 - np.eye(k)
    pooled = np.where(pooled.sum(1, keepdims=True) > 0, pooled, even)
    total = pooled.sum(1, keepdims=True)
    # A single class has no other column: its row keeps the diagonal alone.
    spread = np.divide(pooled, total, out=np.zeros_like(pooled), where=total > 0)
    share = errors.sum() / matrix.sum() if errors.any() else 0.5
    alike = np.minimum(1.0, matrix.sum(1) / ENOUGH_IMAGES)
    wrong = np.minimum(1.0, 1.0 + (2.0 * share - 1.0) * alike)
    return matrix + np.diag(2.0 - wrong) + wrong[:, None] * spread


def expected_matrix(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The mean of the draws: (K, K) float64 with `counts` images per true class.

    Args:
        rows: (K, K), of `smoothed_rows`.
        counts: (K,) images of each true class.
    """
    return _shares(rows) * counts[:, None]


def draw_matrices(rows: np.ndarray, counts: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield (chunk, K, K) matrices with `counts` images per true class, drawn from the rows' shares.

    Args:
        rows, counts: As of `expected_matrix`.
        draws: Draws in all.
        seed: Same seed, same draws.
    """
    rng = np.random.default_rng(seed)
    k, shares = len(rows), _shares(rows)
    step = max(1, _CELLS_AT_ONCE // k**2)
    for start in range(0, draws, step):
        yield rng.multinomial(counts, shares, size=(min(step, draws - start), k))


def _shares(rows: np.ndarray) -> np.ndarray:
    total = rows.sum(1, keepdims=True)
    return np.divide(rows, total, out=np.eye(len(rows)), where=total > 0)
