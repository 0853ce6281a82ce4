"""What other seeds would change: one number over several seeds, and a difference of such numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def interval_of_both(
    value: float,
    deviation: float,
    spreads: Sequence[tuple[float | None, int]],
    level: float = 0.95,
    *,
    freedom: float = math.inf,
) -> tuple[float, float]:
    """The interval of a difference over images and seeds: value +- t sqrt(d^2 + s^2).

    d, the part of the images, has the degrees of freedom given; s, that of the seeds, the few of its seeds. The values
    of seeds also scatter by how each reads the few test images, which d holds too, so the interval is rather too wide
    than too narrow: in simulations of equal systems with 2, 3 and 5 seeds it left out 0 in 0 to 6 of 100.

    Args:
        value: The difference.
        deviation: Its standard deviation over draws of the images.
        spreads: Standard deviation over seeds and number of seeds of each system.
        level: Nominal coverage.
        freedom: Degrees of freedom of the deviation; infinite where it counts as known.

    Returns:
        Low and high end.

    Source:
        Satterthwaite, Biometrics Bulletin 2 (1946), 110: degrees of freedom of a sum of variances.
    """
    from scipy.stats import t

    error = seed_error(spreads) or 0.0
    variance = deviation**2 + error**2
    # s^4 / (n - 1) of each system; a variance that is known adds nothing.
    uncertain = sum((spread**2 / n) ** 2 / (n - 1) for spread, n in spreads if spread and error)
    uncertain += deviation**4 / freedom
    certain = variance**2 / uncertain if uncertain else math.inf
    half = float(t.ppf((1 + level) / 2, certain)) * math.sqrt(variance)
    return value - half, value + half


def seed_error(spreads: Sequence[tuple[float | None, int]]) -> float | None:
    """Standard error over seeds of a difference of means.

    Args:
        spreads: Standard deviation over seeds (None of one seed) and number of seeds of each system.

    Returns:
        The error; None where a system has one seed.
    """
    variances = [spread**2 / n for spread, n in spreads if spread is not None]
    return math.sqrt(sum(variances)) if len(variances) == len(spreads) else None


def over_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation (n - 1) of one number over seeds; no deviation of one seed."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
