"""95 % intervals for every number of a report, honest where a class has few images.

Source: Wilson, J. Am. Stat. Assoc. 22 (1927), 209, for shares; stratified bootstrap (Davison and Hinkley, 1997, 3.2)
of smoothed rows for metrics of a confusion matrix, which then count as shares of so many images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np

from .grouped import GroupDraws, units_of_share
from .matrix_influence import matrix_freedom
from .metrics import class_metrics, confusion_metrics
from .row_draws import ENOUGH_IMAGES as ENOUGH_IMAGES  # for those who ask what is enough
from .row_draws import draw_matrices, expected_matrix, smoothed_rows

#: A class of fewer test images is marked: its numbers say next to nothing.
FEW_IMAGES = 5

SMOOTHED = "row-smoothed bootstrap"
GROUPED = "bootstrap over groups, or row-smoothed where that is wider"
WILSON = "Wilson"

#: What a metric can be, where that is not 0 to 1.
LIMITS: Mapping[str, tuple[float, float]] = {"cohen_kappa": (-1.0, 1.0), "mcc": (-1.0, 1.0)}

#: (..., K, K) confusion matrices -> name -> (...) values.
Score = Callable[[np.ndarray], dict[str, np.ndarray]]

# A plain mean of precisions rests on the few images wrongly called each rare class, and draws from those few see less
# than all of its spread (simulated: without this 21 classes of 20 images and more cover 91 %).
_WIDER = {"macro_precision": 1.12}


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
    return Interval(share, *_wilson_ends(share, units, _z(level)), WILSON, n)


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
    limits: Mapping[str, tuple[float, float]] = LIMITS,
) -> dict[str, Interval]:
    """Metrics of a confusion matrix with intervals from the standard deviation of draws.

    Images are drawn again within each true class, from smoothed rows (`smoothed_rows`). That holds for classes of few
    images, where a percentile interval fails. The deviation says how many independent images a share would rest on
    that spreads as much; the interval is Wilson's of so many, so it has width where no image errs and no end leaves
    the metric's limits. Student's t takes the place of the normal distribution, as sure as the influences of the
    images allow (`matrix_freedom`). Where images belong to groups, whole groups are drawn as well; the fewer images
    count, and t knows how few the groups are.

    Args:
        matrix: (K, K) counts, rows true.
        score: (..., K, K) matrices -> name -> (...) values.
        draws: Bootstrap draws.
        seed: Same seed, same intervals.
        level: Nominal coverage.
        grouped: The fold's groups drawn anew; None where images have no group.
        limits: What a metric can be, where that is not 0 to 1.
    """
    matrix = np.asarray(matrix)
    values, counts, n = score(matrix), matrix.sum(1), int(matrix.sum())
    rows = smoothed_rows(matrix)
    parts = [score(chunk) for chunk in draw_matrices(rows, counts, draws, seed)]
    over_groups = {} if grouped is None else score(grouped.matrices)
    freedom = matrix_freedom(expected_matrix(rows, counts), score)
    intervals = {}
    for name, value in values.items():
        least, most = limits.get(name, (0.0, 1.0))

        def share(metric: np.ndarray, least: float = least, most: float = most) -> np.ndarray:
            return (metric - least) / (most - least)

        drawn = share(np.concatenate([part[name] for part in parts]))
        units, certain, method = _units(drawn, float(n)), freedom[name], SMOOTHED
        if grouped is not None:
            again = share(over_groups[name]) if name in over_groups else np.zeros(1)
            units = min(units, _units(again, float(grouped.units_of_true.sum())))
            certain, method = min(certain, grouped.freedom), GROUPED
        units /= _WIDER.get(name, 1.0) ** 2
        ends = _wilson_ends(float(share(value)), units, _student(level, certain))
        low, high = (least + (most - least) * end for end in ends)
        intervals[name] = Interval(float(value), low, high, method, n)
    return intervals


def _units(drawn: np.ndarray, otherwise: float) -> float:
    """Independent images of a share that spreads as these draws of one do; `otherwise` where they do not differ."""
    mean, variance = float(drawn.mean()), float(drawn.var())
    return mean * (1 - mean) / variance if variance > 1e-18 and 0 < mean < 1 else otherwise


def _wilson_ends(share: float, units: float, z: float) -> tuple[float, float]:
    centre = (share + z**2 / (2 * units)) / (1 + z**2 / units)
    half = z / (1 + z**2 / units) * (max(share * (1 - share), 0.0) / units + z**2 / (4 * units**2)) ** 0.5
    # At a limit the end is the limit, without the rounding.
    return (0.0 if share <= 0 else centre - half), (1.0 if share >= 1 else centre + half)


@dataclass(frozen=True)
class ClassIntervals:
    """Precision, recall and F1 of one class.

    Recall and F1 are None where the fold has no image of it, precision where no image was called so.
    """

    precision: Interval | None
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
    """Precision, recall and F1 of each class by Wilson's interval, in label order.

    A recall rests on the images of the class. How many images are called a class is mostly fixed by the fold, so a
    precision is surer than a share of so many independent images (Wilson's interval of those covers 96 to 98 %): it
    counts as the images that vary like its draws, and so does F1 (`matrix_intervals`).

    Args:
        matrix: (K, K) counts, rows true.
        draws, seed, level, grouped: As of `matrix_intervals`; with groups, a Wilson interval is that of as many
            independent images as spread like the groups.
    """
    matrix = np.asarray(matrix)
    each = class_metrics(matrix)
    chunks = draw_matrices(smoothed_rows(matrix), matrix.sum(1), draws, seed)
    drawn = [class_metrics(chunk) for chunk in chunks]
    precisions, drawn_f1 = (np.concatenate([getattr(d, name) for d in drawn]) for name in ("precision", "f1"))
    again = None if grouped is None else class_metrics(grouped.matrices)

    def share(name: str, label: int, n: int) -> Interval:
        value, units = float(getattr(each, name)[label]), float(n)
        if grouped is None and name == "precision":
            units = _units(precisions[:, label], units)
        elif grouped is not None:
            groups = grouped.units_of_true if name == "recall" else grouped.units_of_called
            units = units_of_share(value, getattr(again, name)[:, label], int(groups[label]), n)
        return wilson_of_share(value, units, n, level=level)

    def f1(label: int, n: int) -> Interval:
        value, units, z, method = (
            float(each.f1[label]),
            _units(drawn_f1[:, label], float(n)),
            _z(level),
            SMOOTHED,
        )
        if grouped is not None and again is not None:
            groups = _units(again.f1[:, label], float(grouped.units_of_true[label]))
            units, z, method = min(units, groups), _student(level, grouped.freedom), GROUPED
        return Interval(value, *_wilson_ends(value, units, z), method, n)

    return [
        ClassIntervals(
            precision=share("precision", label, int(each.predicted[label]))
            if each.predicted[label]
            else None,
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

    rows, hits = (np.zeros(np.asarray(matrix).shape, dtype=bool) for _ in range(2))
    rows[list(true)] = True
    hits[np.ix_(list(true), list(called))] = True
    return cells_interval(matrix, hits, rows, grouped, level=level)


def cells_interval(
    matrix: np.ndarray,
    hits: np.ndarray,
    of: np.ndarray,
    grouped: GroupDraws | None = None,
    *,
    level: float = 0.95,
) -> tuple[Interval, int]:
    """Which share of the images in some cells of the confusion matrix lies in others of them, and how many.

    Args:
        matrix: (K, K) counts, rows true.
        hits, of: (K, K) bool, cells that count and cells they are counted among; n is the images in those.
        grouped, level: As of `called_interval`.
    """

    def counts(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (matrices * hits).sum((-2, -1)), (matrices * of).sum((-2, -1))

    found, n = (int(count) for count in counts(np.asarray(matrix)))
    share, units = found / n if n else 0.0, float(n)
    if grouped is not None and n:
        again, whole = counts(grouped.matrices)
        groups = np.minimum(grouped.units_of_true, (grouped.units * of).sum(1)).sum()
        units = units_of_share(share, again[whole > 0] / whole[whole > 0], int(groups), n)
    return wilson_of_share(share, units, n, level=level), found


def _student(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
