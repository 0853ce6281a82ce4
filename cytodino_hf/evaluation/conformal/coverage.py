"""What sets of classes do on test cells: how often they hold the true class and how large they are, with intervals.

Shares have Wilson intervals where images stand by themselves. Where they come in groups, what counts is how much whole
groups differ (`delta_intervals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calibration.intervals import GroupCount
from ..delta_intervals import share_interval, spread_of
from ..resampling import are_grouped
from ..statistics import ENOUGH_IMAGES, Interval, wilson_interval

MEAN = "mean and its standard error, Student's t"
NO_SPREAD = "no interval: all sets are of one size, or too few cells or groups to tell how much they differ"


@dataclass(frozen=True)
class SetScores:
    """One kind of sets on some test cells.

    Args:
        coverage: Share of cells whose set holds the true class.
        mean_size: Classes in a set: `value`, `low`, `high` (None below 20 cells, below 3 groups, and
            where all sets are of one size), `method`, `n`.
        empty, single: Share of sets of no class, of one class.
        size_counts: Cells with sets of 0, 1, ... classes.
    """

    coverage: Interval
    mean_size: dict[str, Any]
    empty: Interval
    single: Interval
    size_counts: list[int]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "coverage": self.coverage.to_dict(),
            "mean_size": self.mean_size,
            "empty": self.empty.to_dict(),
            "single": self.single.to_dict(),
            "size_counts": self.size_counts,
        }


def score_sets(
    inside: np.ndarray, labels: np.ndarray, groups: Sequence[str | None], *, level: float = 0.95
) -> SetScores:
    """Coverage and size of the sets of some cells.

    Args:
        inside: bool (cells, classes), which classes are in the set of each cell.
        labels: (cells,) true classes.
        groups: Group of each cell, or None.
        level: Of the intervals.

    Raises:
        ValueError: There is no cell.
    """
    if not len(labels):
        raise ValueError("no test cell to score sets on")
    size = inside.sum(axis=1)
    return SetScores(
        coverage=cell_share(inside[np.arange(len(labels)), labels], labels, groups, level=level),
        mean_size=_mean_size(size, inside.shape[1], labels, groups, level),
        empty=cell_share(size == 0, labels, groups, level=level),
        single=cell_share(size == 1, labels, groups, level=level),
        size_counts=np.bincount(size, minlength=inside.shape[1] + 1).tolist(),
    )


def cell_share(
    is_hit: np.ndarray, labels: np.ndarray, groups: Sequence[str | None], *, level: float = 0.95
) -> Interval:
    """A share of cells with its interval; see the module text.

    Args:
        is_hit: (cells,) bool.
        labels: (cells,) true classes.
        groups: Group of each cell, or None.
        level: Of the interval.
    """
    n, hits = len(is_hit), int(is_hit.sum())
    if not n or not are_grouped(groups):
        return wilson_interval(hits, n, level=level)
    spread = spread_of((is_hit - hits / n) / n, labels, groups)
    return share_interval(hits / n, spread, n, count_units(groups), level=level)


def count_units(groups: Sequence[str | None]) -> int:
    """How many groups there are; a cell without group is one of its own."""
    return len({group for group in groups if group is not None}) + sum(group is None for group in groups)


def _mean_size(
    sizes: np.ndarray, classes: int, labels: np.ndarray, groups: Sequence[str | None], level: float
) -> dict[str, Any]:
    """The mean size of sets, with ends where enough cells show their own spread."""
    n, mean = len(sizes), float(sizes.mean())
    spread = spread_of((sizes - mean) / n, labels, groups)
    count = GroupCount.of(labels, groups)
    if n < ENOUGH_IMAGES or not spread.error or (count is not None and count.are_few):
        return {"value": mean, "low": None, "high": None, "method": NO_SPREAD, "n": n}
    half = spread.half_width(level)
    low, high = max(0.0, mean - half), min(float(classes), mean + half)
    return {"value": mean, "low": low, "high": high, "method": MEAN, "n": n}
