"""The calibration fold in parts: one half fits the scaling, the other is left for what needs images of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..predictions import Predictions


def calibration_halves(predictions: Predictions, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split the labelled rows of the calibration fold into a half for scaling and a half for conformal prediction.

    Each class is halved; a group (patient, slide) is never divided. Of an odd number the scaling half has one more, so
    a class of one image that stands in no group is there.

    Args:
        predictions: Of the calibration fold. Rows without label are in neither half.
        seed: Same seed, same halves, whatever the order of the rows.

    Returns:
        Row numbers in rising order: int64 (scaling,), int64 (conformal,).
    """
    labelled = np.flatnonzero(predictions.labels >= 0)
    chosen = predictions.select(labelled)
    part = balanced_parts(chosen.labels, chosen.groups, chosen.ids, 2, seed)
    return labelled[part == 0], labelled[part == 1]


def balanced_parts(
    labels: np.ndarray, groups: Sequence[str | None], ids: Sequence[str], parts: int, seed: int
) -> np.ndarray:
    """A part for each row such that every class is spread evenly and no group is divided.

    The largest groups choose first, each the part that so far has least of its classes; of equal parts the first. What
    is of equal size comes in an order drawn by seed. A row without group is a group of its own.

    Args:
        labels: (rows,) classes, from 0.
        groups: One text or None per row.
        ids: One text per row; makes the result independent of the order of the rows.
        parts: How many.
        seed: Of the order.

    Returns:
        int64 (rows,), 0 to `parts` - 1.
    """
    rows_of: dict[tuple[bool, str], list[int]] = {}
    for row in sorted(range(len(ids)), key=ids.__getitem__):
        group = groups[row]
        rows_of.setdefault((True, group) if group is not None else (False, ids[row]), []).append(row)
    members = list(rows_of.values())
    drawn = [members[i] for i in np.random.default_rng(seed).permutation(len(members))]
    classes = labels.tolist()
    images = np.bincount(labels).tolist() if classes else []
    taken = [[0] * len(images) for _ in range(parts)]
    part_of = np.empty(len(ids), dtype=np.int64)
    for rows in sorted(drawn, key=len, reverse=True):
        # The sum over classes of taken^2 / images grows least where this is least.
        held = [sum(count[classes[row]] / images[classes[row]] for row in rows) for count in taken]
        part = held.index(min(held))
        for row in rows:
            taken[part][classes[row]] += 1
            part_of[row] = part
    return part_of
