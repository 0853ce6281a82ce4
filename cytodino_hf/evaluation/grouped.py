"""Confusion matrices of test images drawn anew by whole groups, and the intervals that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .resampling import are_grouped, draw_weights, strata_of


@dataclass(frozen=True)
class GroupDraws:
    """A fold whose groups were drawn anew.

    Args:
        matrices: (draws, K, K) counts, rows true.
        freedom: Groups less strata, at least 1: how well their spread is known.
        units: (K, K) groups with an image in each cell of the confusion matrix.
        units_of_true: (K,) groups with an image of each true class.
        units_of_called: (K,) groups with an image called each class.
    """

    matrices: np.ndarray
    freedom: int
    units: np.ndarray
    units_of_true: np.ndarray
    units_of_called: np.ndarray


def group_draws(
    labels: np.ndarray,
    predicted: np.ndarray,
    groups: Sequence[str | None] | None,
    num_classes: int,
    draws: int,
    seed: int,
) -> GroupDraws | None:
    """Draw whole groups; None where no image has a group, so that images are drawn by `statistics` itself.

    Args:
        labels, predicted: (images,) true and called classes.
        groups, draws, seed: As of `resampling.draw_weights`.
        num_classes: Classes K.
    """
    if groups is None or not are_grouped(groups) or not len(labels):
        return None
    cells = np.asarray(labels, dtype=np.int64) * num_classes + predicted
    order = np.argsort(cells, kind="stable")
    filled, starts = np.unique(cells[order], return_index=True)
    matrices = np.zeros((draws, num_classes**2))
    done = 0
    for weights in draw_weights(labels, groups, draws, seed):
        matrices[done : done + len(weights), filled] = np.add.reduceat(weights[:, order], starts, axis=1)
        done += len(weights)
    unit = np.unique(
        [g if g is not None else f"\0{row}" for row, g in enumerate(groups)], return_inverse=True
    )[1]
    strata = strata_of(labels, groups)
    return GroupDraws(
        matrices=matrices.reshape(draws, num_classes, num_classes),
        freedom=max(1, len(np.unique(unit)) - len(strata)),
        units=_units(unit, cells, num_classes**2).reshape(num_classes, num_classes),
        units_of_true=_units(unit, np.asarray(labels), num_classes),
        units_of_called=_units(unit, np.asarray(predicted), num_classes),
    )


def units_of_share(share: float, drawn: np.ndarray, units: int, n: int) -> float:
    """How many independent images a share counts as: at most its images, at least one.

    Args:
        share: In [0, 1].
        drawn: (draws,) the share of groups drawn anew.
        units: Groups it rests on; stands where the draws do not differ.
        n: Images it rests on.
    """
    variance = float(np.var(drawn)) if len(drawn) else 0.0
    found = share * (1 - share) / variance if variance > 0 and 0 < share < 1 else float(units)
    return min(max(found, 1.0), float(n)) if n else 0.0


def _units(unit: np.ndarray, of: np.ndarray, count: int) -> np.ndarray:
    """How many different units each of `count` things has an image in."""
    pairs = np.unique(np.stack([of, unit], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=count)
