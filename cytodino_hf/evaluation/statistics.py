"""95 % intervals for every number of a report, honest where a class has few images.

Source: Wilson, J. Am. Stat. Assoc. 22 (1927), 209, for shares; stratified bootstrap (Davison and Hinkley, 1997, 3.2)
of smoothed rows for metrics of a confusion matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from .grouped import GroupDraws, units_of_share
from .matrix_influence import matrix_freedom
from .metrics import class_metrics, confusion_metrics

#: Below this many images a class shows too little of its own spread to be resampled plainly (simulated: with
#: classes of 1 to 19 images a nominal 95 % percentile interval of macro F1 covers 41 to 87 %).
ENOUGH_IMAGES = 20
#: A class of fewer test images is marked: its numbers say next to nothing.
FEW_IMAGES = 5

SMOOTHED = "row-smoothed bootstrap"
GROUPED = "bootstrap over groups, or row-smoothed where that is wider"
WILSON = "Wilson"

#: What a metric can be, where that is not 0 to 1; None: no bound known here.
LIMITS: dict[str, tuple[float, float | None]] = {
    "cohen_kappa": (-1.0, 1.0),
    "mcc": (-1.0, 1.0),
    "mean_distance": (0.0, None),
}

#: (..., K, K) confusion matrices -> name -> (...) values.
Score = Callable[[np.ndarray], dict[str, np.ndarray]]

# A mean of precisions divides by how often each class was called, which a few images of a frequent class decide; their
# fourth powers see half of it (simulated: 21 classes of 20 images and more cover 92.7 % with all degrees of freedom).
_HALF_AS_SURE = ("macro_precision", "weighted_precision")

_CELLS_AT_ONCE = 4_000_000  # bounds the memory of the draws to some tens of megabytes, whatever K


@dataclass(frozen=True)
class Interval:
    """A number and the interval it lies in.

    Args:
        value: The point estimate.
        low, high: The interval's ends, within what the number can be.
        method: How the interval was made, in words.
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


def wilson_interval(hits: float, n: float, *, level: float = 0.95) -> Interval:
    """The Wilson interval of a share.

    It does not collapse at 0 or 1, as the normal one does. With n = 0 nothing is known: value 0, [0, 1].

    Args:
        hits: Cases that count, 0 to n.
        n: All cases; no whole number where cases that are alike count as fewer (`share_interval`).
        level: Nominal coverage.

    Raises:
        ValueError: hits is not in 0 to n.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} of {n} is no share")
    return wilson_of_share(hits / n if n else 0.0, n, int(n), level=level)


def wilson_of_share(share: float, units: float, n: int, *, level: float = 0.95) -> Interval:
    """The Wilson interval of a share that rests on so many independent units.

    Args:
        share: In [0, 1].
        units: Independent cases it counts as; 0 knows nothing.
        n: Images, for the record.
        level: Nominal coverage.
    """
    if not units:
        return Interval(0.0, 0.0, 1.0, WILSON, n)
    z = _z(level)
    centre = (share + z**2 / (2 * units)) / (1 + z**2 / units)
    half = z / (1 + z**2 / units) * (share * (1 - share) / units + z**2 / (4 * units**2)) ** 0.5
    low = 0.0 if share == 0 else centre - half
    high = 1.0 if share == 1 else centre + half
    return Interval(share, low, high, WILSON, n)


def metric_intervals(
    matrix: np.ndarray,
    counted: np.ndarray | None = None,
    *,
    draws: int = 2000,
    seed: int,
    level: float = 0.95,
    grouped: GroupDraws | None = None,
) -> dict[str, Interval]:
    """Each metric of `METRICS` with its interval (`matrix_intervals`).

    Args:
        matrix: (K, K) counts, rows true.
        counted: (K,) bool, the classes of the training fold; None counts all.
        draws, seed, level, grouped: As of `matrix_intervals`.

    Raises:
        ValueError: No image of a counted class.
    """
    if grouped is not None and counted is not None:
        # Few groups may leave a draw without an image of a counted class.
        grouped = replace(grouped, matrices=grouped.matrices[grouped.matrices[:, counted].sum((1, 2)) > 0])
    return matrix_intervals(
        matrix,
        lambda drawn: confusion_metrics(drawn, counted),
        draws=draws,
        seed=seed,
        level=level,
        grouped=grouped,
    )


def matrix_intervals(
    matrix: np.ndarray,
    score: Score,
    *,
    draws: int = 2000,
    seed: int,
    level: float = 0.95,
    grouped: GroupDraws | None = None,
) -> dict[str, Interval]:
    """Metrics of a confusion matrix with intervals from the standard deviation of draws.

    Images are drawn again within each true class, from smoothed rows (`smoothed_rows`). That holds for classes of few
    images, where a percentile interval fails, and in simulations is no worse for many. The interval is value +- t
    deviations on the scale of the log odds (between its `LIMITS`; of the logarithm where there is no upper one), with
    Student's t as sure as the influences of the images allow (`matrix_freedom`). Where images belong to groups, whole
    groups are drawn as well; the larger deviation counts, and t knows how few the groups are.

    Args:
        matrix: (K, K) counts, rows true.
        score: (..., K, K) matrices -> name -> (...) values.
        draws: Bootstrap draws.
        seed: Same seed, same intervals.
        level: Nominal coverage.
        grouped: The fold's groups drawn anew; None where images have no group.
    """
    matrix = np.asarray(matrix)
    values, n = score(matrix), int(matrix.sum())
    parts = [score(chunk) for chunk in _draw(smoothed_rows(matrix), matrix.sum(1), draws, seed)]
    over_groups = {} if grouped is None else score(grouped.matrices)
    freedom = matrix_freedom(matrix, score)
    intervals = {}
    for name, value in values.items():
        drawn = np.concatenate([part[name] for part in parts])
        deviation, method = float(drawn.std()), SMOOTHED
        certain = max(1.0, freedom[name] / 2) if name in _HALF_AS_SURE else freedom[name]
        if grouped is not None:
            deviation = max(deviation, float(np.std(over_groups.get(name, 0.0))))
            certain, method = min(certain, grouped.freedom), GROUPED
        half = _student(level, certain) * deviation
        intervals[name] = _scaled(
            float(value), half, float(drawn.mean()), LIMITS.get(name, (0.0, 1.0)), method, n
        )
    return intervals


def _scaled(
    value: float, half: float, mean: float, limits: tuple[float, float | None], method: str, n: int
) -> Interval:
    """The interval of a half width, bent so that it stays inside the limits; cut where the value is at one.

    The bend is that at the mean of the draws, which lies inside: near a limit that of the value has no bound.
    """
    least, most = limits
    at_limit = value <= least or (most is not None and value >= most)
    if at_limit or mean <= least or (most is not None and mean >= most):
        high = value + half if most is None else min(most, value + half)
        return Interval(value, max(least, value - half), high, method, n)
    if most is None:
        factor = math.exp(min(half / (mean - least), 700.0))
        return Interval(value, least + (value - least) / factor, least + (value - least) * factor, method, n)
    share, middle = (value - least) / (most - least), (mean - least) / (most - least)
    factor = math.exp(min(half / (most - least) / (middle * (1 - middle)), 700.0))
    odds = share / (1 - share)
    low, high = (least + (most - least) * o / (1 + o) for o in (odds / factor, odds * factor))
    return Interval(value, low, high, method, n)


@dataclass(frozen=True)
class ClassIntervals:
    """Precision, recall and F1 of one class; recall and F1 are None where the fold has no image of it."""

    precision: Interval
    recall: Interval | None
    f1: Interval | None


def class_intervals(
    matrix: np.ndarray,
    *,
    draws: int = 2000,
    seed: int,
    level: float = 0.95,
    grouped: GroupDraws | None = None,
) -> list[ClassIntervals]:
    """Precision and recall (Wilson) and F1 (row-smoothed bootstrap) of each class, in label order.

    How many images are called a class is mostly fixed by the fold, so a precision is surer than a share of so many
    independent images (Wilson's interval of those covers 96 to 98 %): it counts as the images that vary like its draws.

    Args:
        matrix: (K, K) counts, rows true.
        draws, seed, level, grouped: As of `matrix_intervals`; with groups, a Wilson interval is that of as many
            independent images as spread like the groups.
    """
    matrix = np.asarray(matrix)
    each = class_metrics(matrix)
    chunks = _draw(smoothed_rows(matrix), matrix.sum(1), draws, seed)
    drawn = [class_metrics(chunk) for chunk in chunks]
    precisions, drawn_f1 = (np.concatenate([getattr(d, name) for d in drawn]) for name in ("precision", "f1"))
    means, deviations, method = drawn_f1.mean(0), drawn_f1.std(0), SMOOTHED
    again = None
    if grouped is not None:
        again = class_metrics(grouped.matrices)
        deviations, method = np.maximum(deviations, again.f1.std(0)), GROUPED

    def share(name: str, label: int, n: int) -> Interval:
        value, units = float(getattr(each, name)[label]), float(n)
        if grouped is None and name == "precision" and n:
            mean, variance = float(precisions[:, label].mean()), float(precisions[:, label].var())
            units = mean * (1 - mean) / variance if variance > 0 else units
        elif grouped is not None:
            groups = grouped.units_of_true if name == "recall" else grouped.units_of_called
            units = units_of_share(value, getattr(again, name)[:, label], int(groups[label]), n)
        return wilson_of_share(value, units, n, level=level)

    def f1(label: int, n: int) -> Interval:
        # As sure as the images of the class and the two added to them
        freedom = n + 1 if grouped is None else min(n + 1, grouped.freedom)
        half = _student(level, freedom) * float(deviations[label])
        return _scaled(float(each.f1[label]), half, float(means[label]), (0.0, 1.0), method, n)

    return [
        ClassIntervals(
            precision=share("precision", label, int(each.predicted[label])),
            recall=share("recall", label, n) if n else None,
            f1=f1(label, n) if n else None,
        )
        for label, n in enumerate(each.support.tolist())
    ]


def called_interval(
    matrix: np.ndarray,
    true: Sequence[int],
    called: Sequence[int],
    grouped: GroupDraws | None = None,
    *,
    level: float = 0.95,
) -> tuple[Interval, int]:
    """Which share of the images of some classes was called some others, by Wilson's interval, and how many.

    Args:
        matrix: (K, K) counts, rows true.
        true, called: Labels.
        grouped: The fold's groups drawn anew; None where images have no group.
        level: Nominal coverage.
    """

    def counts(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.asarray(matrices)[..., list(true), :]
        return rows[..., list(called)].sum((-2, -1)), rows.sum((-2, -1))

    mistakes, n = (int(count) for count in counts(matrix))
    share, units = mistakes / n if n else 0.0, float(n)
    if grouped is not None and n:
        again, of = counts(grouped.matrices)
        groups = int(grouped.units_of_true[list(true)].sum())
        units = units_of_share(share, again[of > 0] / of[of > 0], groups, n)
    return wilson_of_share(share, units, n, level=level), mistakes


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


def _student(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
