"""Tests on images that one model reads right and the other wrong, and what to do about many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ..resampling import are_grouped, draw_weights, group_count

# Two results with the same probability differ by rounding only.
_SAME = 1e-9


def mcnemar_p(gained: int, lost: int) -> float:
    """Two-sided exact p-value of McNemar's test: gained and lost are as likely where the models are equally good.

    The exact form needs no least number of images, so there is no other one for many.

    Args:
        gained: Images only the first model reads right.
        lost: Images only the second one reads right.

    Returns:
        1 where there is no such image.

    Source:
        McNemar, Psychometrika 12 (1947), 153; Dietterich, Neural Computation 10 (1998), 1895.
    """
    from scipy.stats import binom

    return min(1.0, 2 * float(binom.cdf(min(gained, lost), gained + lost, 0.5)))


def flip_p(differences: np.ndarray) -> float:
    """Two-sided exact p-value of group differences, any of which might as well have the other sign.

    McNemar's test for whole groups: where models are equally good, a group's difference (gained minus lost images) is
    as likely to be its opposite. Of groups with one such image each it is McNemar's test.

    Args:
        differences: (groups,) whole numbers.

    Source:
        Fisher's randomisation test of paired differences (The design of experiments, 1935, 21), for sums.
    """
    from scipy.stats import binom

    sizes, counts = np.unique(np.abs(differences[differences != 0]).astype(np.int64), return_counts=True)
    shares = np.ones(1)  # of each sum of the sizes of the groups that turn out positive
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        positive = np.zeros(count * size + 1)
        positive[::size] = binom.pmf(np.arange(count + 1), count, 0.5)
        shares = np.convolve(shares, positive)
    whole = len(shares) - 1
    # A sum T of positive sizes means a difference of 2 T - whole.
    reached = np.abs(2 * np.arange(whole + 1) - whole) >= abs(int(differences.sum())) - _SAME
    return min(1.0, float(shares[reached].sum()))


def right_by_one_p(
    ours_right: np.ndarray, other_right: np.ndarray, groups: Sequence[str | None] | None = None
) -> float:
    """Two-sided exact p-value of a difference between two shares of the same images: by image, or by whole groups.

    Args:
        ours_right, other_right: (images,) bool, or 0 and 1.
        groups: Group of each image; None, or None of all: images are independent.
    """
    difference = np.asarray(ours_right, dtype=np.int64) - np.asarray(other_right, dtype=np.int64)
    if groups is not None and are_grouped(groups):
        return flip_p(_by_group(difference, groups))
    return mcnemar_p(int((difference > 0).sum()), int((difference < 0).sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected so that one false alarm among all of them is as rare as asked of one.

    Args:
        p_values: Of each test.

    Returns:
        Corrected values in the same order.

    Source:
        Holm, Scandinavian Journal of Statistics 6 (1979), 65.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(raised, 1.0)
    return corrected.tolist()


@dataclass(frozen=True)
class ShareChange:
    """How many more images of some are read right by the first model than by the second.

    Args:
        ours, other: Shares read right.
        value: Their difference.
        low, high: Its interval.
        gained, lost: Images only the first, only the second model reads right.
        p: That chance alone makes such a difference.
        n: Images.
        method: Of interval and p-value.
    """

    ours: float
    other: float
    value: float
    low: float
    high: float
    gained: int
    lost: int
    p: float
    n: int
    method: str


IMAGES = "McNemar, exact; interval of Agresti and Min"
GROUPS = "sign flips of whole groups, exact; bootstrap over groups, one more than seen, Student's t"


def share_change(
    ours_right: np.ndarray,
    other_right: np.ndarray,
    groups: Sequence[str | None] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> ShareChange:
    """The difference between two shares of the same images.

    Args:
        ours_right, other_right: (images,) bool.
        groups: Group of each image; None, or None of all: images are independent.
        draws, seed: Of the bootstrap over groups.
        level: Nominal coverage.

    Raises:
        ValueError: There is no image.

    Source:
        Agresti and Min, Statistics in Medicine 24 (2005), 729: half an image more in each of the four cells.
    """
    ours_right, other_right = (np.asarray(right, dtype=bool) for right in (ours_right, other_right))
    n = len(ours_right)
    if not n:
        raise ValueError("no image to compare on")
    difference = ours_right.astype(np.int64) - other_right
    gained, lost = int((difference > 0).sum()), int((difference < 0).sum())
    if are_grouped(groups):
        low, high = _over_groups(difference, groups, draws, seed, level)
    else:
        low, high = _agresti_min(gained, lost, n, level)
    return ShareChange(
        ours=float(ours_right.mean()),
        other=float(other_right.mean()),
        value=float(difference.mean()),
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        p=right_by_one_p(ours_right, other_right, groups),
        n=n,
        method=GROUPS if are_grouped(groups) else IMAGES,
    )


def _agresti_min(gained: int, lost: int, n: int, level: float) -> tuple[float, float]:
    more, fewer, images = gained + 0.5, lost + 0.5, n + 2.0
    centre = (more - fewer) / images
    half = (
        NormalDist().inv_cdf((1 + level) / 2) * np.sqrt(more + fewer - (more - fewer) ** 2 / images) / images
    )
    return max(-1.0, float(centre - half)), min(1.0, float(centre + half))


def _by_group(difference: np.ndarray, groups: Sequence[str | None]) -> np.ndarray:
    """Sum of each group; an image without group is one of its own."""
    names = [f"image {row}" if group is None else f"group {group}" for row, group in enumerate(groups)]
    _, unit = np.unique(names, return_inverse=True)
    return np.bincount(unit, weights=difference).round().astype(np.int64)


def _over_groups(
    difference: np.ndarray, groups: Sequence[str | None] | None, draws: int, seed: int, level: float
) -> tuple[float, float]:
    """As that of Agresti and Min a group's worth wider than what was seen, for groups may all agree, or be one."""
    from scipy.stats import t

    one_class = np.zeros(len(difference), dtype=np.int64)
    shares = [
        weights @ difference / weights.sum(axis=1) for weights in draw_weights(one_class, groups, draws, seed)
    ]
    count = group_count(groups) or len(difference)
    freedom = max(1, count - 1)
    variance = float(np.concatenate(shares).var()) * count / freedom + 1 / count**2
    half = float(t.ppf((1 + level) / 2, freedom)) * variance**0.5
    return max(-1.0, float(difference.mean()) - half), min(1.0, float(difference.mean()) + half)
