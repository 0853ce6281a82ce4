"""95 % intervals for every number of a report, honest where a class has few images.

Source: Wilson, J. Am. Stat. Assoc. 22 (1927), 209, for shares; stratified bootstrap (Davison and Hinkley,
1997, 3.2) for metrics over classes, with smoothed rows where a class is too small to be resampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from .metrics import METRICS, class_metrics, confusion_metrics

#: Below this many images a class shows too little of its own spread to be resampled plainly (simulated: with
#: classes of 1 to 19 images a nominal 95 % percentile interval of macro F1 covers 41 to 87 %).
ENOUGH_IMAGES = 20
#: Largest part of a fold that may lie in smaller classes while plain resampling serves means over images.
SMALL_CLASS_SHARE = 0.05
#: With fewer right or fewer wrong images than this, draws hardly differ and plain resampling promises too
#: much (simulated: 1 to 6 wrong images cover 58 to 92 %, from 9 on 91 to 96 %).
ENOUGH_OF_EACH = 10

PERCENTILE = "stratified bootstrap, percentile"
SMOOTHED = "row-smoothed bootstrap, normal"
WILSON = "Wilson"

_CELLS_AT_ONCE = 4_000_000  # bounds the memory of the draws to some tens of megabytes, whatever K


@dataclass(frozen=True)
class Interval:
    """A number and the interval it lies in.

    Args:
        value: The point estimate, in [0, 1].
        low, high: The interval's ends, in [0, 1].
        method: How the interval was made (`PERCENTILE`, `SMOOTHED`, `WILSON`).
        n: Images the number rests on.
    """

    value: float
    low: float
    high: float
    method: str
    n: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def wilson_interval(hits: int, n: int, *, level: float = 0.95) -> Interval:
    """The Wilson interval of a share.

    It does not collapse at 0 or 1, as the normal one does. With n = 0 nothing is known: value 0, [0, 1].

    Args:
        hits: Cases that count, 0 to n.
        n: All cases.
        level: Nominal coverage.

    Raises:
        ValueError: hits is not in 0 to n.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is no share")
    if n == 0:
        return Interval(0.0, 0.0, 1.0, WILSON, 0)
    z = _z(level)
    share = hits / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == n else centre + half
    return Interval(share, low, high, WILSON, n)


def metric_intervals(
    matrix: np.ndarray,
    counted: np.ndarray | None = None,
    *,
    draws: int = 2000,
    seed: int,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Each metric of `METRICS` with its interval.

    Images are drawn again within each true class (multinomial rows). The percentile form serves means over
    classes where every counted class has at least 20 images, and metrics over images where smaller classes
    hold at most 5 % of them, if at least 10 images are wrong and 10 right. Elsewhere the draws come from
    smoothed rows (`smoothed_rows`) and the interval is value +- z standard deviations, cut to [0, 1].

    Args:
        matrix: (K, K) counts, rows true.
        counted: (K,) bool, the classes of the training fold; None counts all.
        draws: Bootstrap draws.
        seed: Same seed, same intervals.
        level: Nominal coverage.

    Raises:
        ValueError: No image of a counted class.
    """
    matrix = np.asarray(matrix)
    values = confusion_metrics(matrix, counted)
    support = matrix.sum(1)
    n = int(support.sum())
    small = (support > 0) & (support < ENOUGH_IMAGES)
    small_counted = small if counted is None else small & np.asarray(counted, dtype=bool)
    right = int(np.trace(matrix))
    draws_differ = min(right, n - right) >= ENOUGH_OF_EACH
    plain_over_images = draws_differ and support[small].sum() <= SMALL_CLASS_SHARE * n
    plain_over_classes = draws_differ and not small_counted.any()
    tail = (1 - level) / 2
    over_images = {name for name in METRICS if name == "accuracy" or name.startswith("weighted_")}
    is_plain = {name: plain_over_images if name in over_images else plain_over_classes for name in METRICS}
    # Drawing is what takes the time: only what some metric uses.
    plain = _draw_metrics(matrix, matrix, counted, draws, seed) if any(is_plain.values()) else {}
    rows = smoothed_rows(matrix)
    smoothed = {} if all(is_plain.values()) else _draw_metrics(matrix, rows, counted, draws, seed)
    intervals = {}
    for name in METRICS:
        if is_plain[name]:
            low, high = (float(np.quantile(plain[name], q)) for q in (tail, 1 - tail))
            intervals[name] = Interval(float(values[name]), low, high, PERCENTILE, n)
        else:
            intervals[name] = _normal(float(values[name]), smoothed[name].std(), n, level)
    return intervals


@dataclass(frozen=True)
class ClassIntervals:
    """Precision, recall and F1 of one class; recall and F1 are None where the fold has no image of it."""

    precision: Interval
    recall: Interval | None
    f1: Interval | None


def class_intervals(
    matrix: np.ndarray, *, draws: int = 2000, seed: int, level: float = 0.95
) -> list[ClassIntervals]:
    """Precision and recall (Wilson) and F1 (row-smoothed bootstrap) of each class, in label order.

    Args:
        matrix: (K, K) counts, rows true.
        draws, seed, level: As in `metric_intervals`.
    """
    matrix = np.asarray(matrix)
    each = class_metrics(matrix)
    chunks = _draw(smoothed_rows(matrix), matrix.sum(1), draws, seed)
    spread = np.concatenate([class_metrics(chunk).f1 for chunk in chunks]).std(0)
    rows = []
    for label in range(len(matrix)):
        hits, n = int(matrix[label, label]), int(each.support[label])
        rows.append(
            ClassIntervals(
                precision=wilson_interval(hits, int(each.predicted[label]), level=level),
                recall=wilson_interval(hits, n, level=level) if n else None,
                f1=_normal(float(each.f1[label]), spread[label], n, level) if n else None,
            )
        )
    return rows


def smoothed_rows(matrix: np.ndarray) -> np.ndarray:
    """Rows to draw from when a class is small: its counts, one more on the diagonal, one more for its errors.

    The second pseudo-count is spread over the other columns as the errors of all classes are, evenly where
    there is no error. So a class of one image keeps some spread; an even prior over all columns fails.

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
    return matrix + np.eye(k) + spread


def _draw(rows: np.ndarray, counts: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield (chunk, K, K) matrices with `counts` images per true class, drawn from the rows' shares."""
    rng = np.random.default_rng(seed)
    k = len(rows)
    total = rows.sum(1, keepdims=True)
    shares = np.divide(rows, total, out=np.eye(k), where=total > 0)
    step = max(1, _CELLS_AT_ONCE // k**2)
    for start in range(0, draws, step):
        yield rng.multinomial(counts, shares, size=(min(step, draws - start), k))


def _draw_metrics(
    matrix: np.ndarray, rows: np.ndarray, counted: np.ndarray | None, draws: int, seed: int
) -> dict[str, np.ndarray]:
    parts = [confusion_metrics(chunk, counted) for chunk in _draw(rows, matrix.sum(1), draws, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def _normal(value: float, deviation: float, n: int, level: float) -> Interval:
    half = _z(level) * float(deviation)
    return Interval(value, max(0.0, value - half), min(1.0, value + half), SMOOTHED, n)


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
