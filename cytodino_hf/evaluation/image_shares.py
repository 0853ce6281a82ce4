"""The mean over images of something between 0 and 1, with an interval that is not too narrow.

A 0 or 1 for each image gives a share, with Wilson's interval. Anything between varies less than a 0 or 1 of the same
mean, so the same interval holds for it, rather too wide. Images of one group count as fewer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .grouped import units_of_share
from .resampling import are_grouped, draw_weights
from .statistics import Interval, wilson_interval, wilson_of_share


def share_of_images(
    values: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str | None],
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Mean of the values and its interval.

    Args:
        values: (images,) each in [0, 1], or bool; at least one.
        labels: (images,) true classes, the strata of the draws.
        groups: Group of each image or None; where any has one, whole groups are drawn.
        draws, seed, level: Of the bootstrap over groups.
    """
    values = np.asarray(values, dtype=np.float64)
    n, mean = len(values), float(np.clip(values.mean(), 0.0, 1.0))
    if not are_grouped(groups):
        return wilson_interval(mean * n, n, level=level)
    drawn = [weights @ values / weights.sum(axis=1) for weights in draw_weights(labels, groups, draws, seed)]
    named = {group for group in groups if group is not None}
    units = len(named) + sum(group is None for group in groups)
    return wilson_of_share(mean, units_of_share(mean, np.concatenate(drawn), units, n), n, level=level)
