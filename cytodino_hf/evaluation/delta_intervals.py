"""Intervals without draws, for numbers of which the change by each image is known (their influence).

The standard error comes from the influences within each stratum of `resampling` (images of a class, or whole groups).
Where few images make most of it, as of an AUROC near 1 or a log-likelihood with a few confident mistakes, it is itself
uncertain: how much, the fourth powers of the influences say, and Student's t takes the place of the normal
distribution. Shares are worked out on the scale of their log odds, positive numbers on that of their logarithm, so no
end leaves what is possible.

Source: Efron and Tibshirani 1993, 21.4 (infinitesimal jackknife; for AUROC it is DeLong's error); Satterthwaite,
Biometrics Bulletin 2 (1946), 110 (degrees of freedom).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .resampling import strata_of
from .statistics import Interval, wilson_of_share

ON_LOG_ODDS = "influence of each image, Student's t of the log odds"
ON_LOGARITHM = "influence of each image, Student's t of the logarithm"


@dataclass(frozen=True)
class Spread:
    """How sure a number is.

    Args:
        error: Its standard error; 0 where no unit differs from another.
        freedom: Degrees of freedom of that error; infinite where it is 0.
    """

    error: float
    freedom: float

    def half_width(self, level: float) -> float:
        """Half the width of an interval around the number."""
        from scipy.stats import t

        return float(t.ppf((1 + level) / 2, self.freedom)) * self.error if self.error else 0.0


def spread_of(
    influence: np.ndarray, labels: np.ndarray, groups: Sequence[str | None] | None = None
) -> Spread:
    """Standard error of a number over test images or whole groups, and what it rests on.

    Args:
        influence: (images,) change of the number per image counted more, sums to 0.
        labels, groups: As of `resampling.draw_weights`.
    """
    variance = uncertainty = 0.0
    for rows, unit in strata_of(np.asarray(labels), groups):
        sums = influence[rows] if unit is None else np.bincount(unit, weights=influence[rows])
        m = len(sums)
        # A unit alone shows no spread of its own: its whole influence counts.
        centred = sums - sums.mean() if m > 1 else sums
        squares = float((centred**2).sum())
        part = squares * m / (m - 1) if m > 1 else squares
        variance += part
        # Variance of the variance, at least that of normal influences
        seen = float((centred**4).sum()) - squares**2 / m
        uncertainty += max(seen, 2 * part**2 / max(m - 1, 1))
    if variance < 1e-24:  # rounding of 0
        return Spread(0.0, math.inf)
    return Spread(math.sqrt(variance), 2 * variance**2 / uncertainty)


def share_interval(value: float, spread: Spread, n: int, units: int, *, level: float = 0.95) -> Interval:
    """Interval of a number in [0, 1], on the scale of its log odds.

    Where nothing differs (a perfect ranking) that scale has no end to give: Wilson's interval of `units` then stands.

    Args:
        value: The number.
        spread: Of `spread_of`.
        n: Images it rests on.
        units: Images, or groups, of the smaller side.
        level: Nominal coverage.
    """
    if not 0 < value < 1 or not spread.error:
        return wilson_of_share(value, units, n, level=level)
    half = spread.half_width(level) / (value * (1 - value))
    middle = math.log(value / (1 - value))
    low, high = (_from_log_odds(middle + side * half) for side in (-1, 1))
    return Interval(value, low, high, ON_LOG_ODDS, n)


def positive_interval(value: float, spread: Spread, n: int, *, level: float = 0.95) -> Interval | None:
    """Interval of a number above 0, on the scale of its logarithm; None where nothing differs, as of one image."""
    if value <= 0 or not spread.error:
        return None
    half = min(spread.half_width(level) / value, 700.0)  # exp of more is no number
    return Interval(value, value * math.exp(-half), value * math.exp(half), ON_LOGARITHM, n)


def _from_log_odds(odds: float) -> float:
    return 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
