"""Intervals as plain values of a report: of means, of what is drawn again, and of shares; groups may be few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..comparison import EXTENDED, SHIFTED
from ..delta_intervals import positive_interval, spread_of
from ..resampling import are_grouped, strata_of
from ..statistics import ENOUGH_IMAGES, wilson_of_share

GROUPED_WILSON = "Wilson, with the number of images that as many independent ones would equal"
BY_INFLUENCE = "influence of each image, Student's t"
OVER_GROUPS = "bootstrap over groups, Student's t"
OVER_GROUPS_EXTENDED = f"{OVER_GROUPS}, and longer by the largest bias of a sum of absolute values"

#: With fewer mistakes than this, draws hardly differ and promise too much (simulated: 1 to 6 wrong images cover 58 to
#: 92 %, from 9 on 91 to 96 %).
ENOUGH_MISTAKES = 10
#: Fewer groups than this hardly show how much groups differ: an interval would reach from nothing to anything.
ENOUGH_GROUPS = 3
#: Said in place of an interval where drawing so few images again would promise too much.
TOO_FEW = f"no interval: fewer than {ENOUGH_IMAGES} images"
TOO_FEW_GROUPS = "no interval: the groups are too few to tell how much they differ"
NOTHING_DIFFERS = "no interval: no image differs from another"

_ROUNDING = 1e-12


@dataclass(frozen=True)
class GroupCount:
    """How many groups a number rests on.

    Args:
        groups: Groups in all, an image without group as one of its own.
        freedom: Groups less strata that are drawn apart (see `resampling`): how well their spread is known.
    """

    groups: int
    freedom: int

    @classmethod
    def of(cls, labels: np.ndarray, groups: Sequence[str | None]) -> GroupCount | None:
        """Count them; None where no image has a group.

        Args:
            labels, groups: As of `resampling.draw_weights`.
        """
        if not are_grouped(groups) or not len(labels):
            return None
        counts = [
            len(rows) if unit is None else int(unit.max()) + 1 for rows, unit in strata_of(labels, groups)
        ]
        return cls(sum(counts), sum(counts) - len(counts))

    @property
    def are_few(self) -> bool:
        """Whether they are too few to give an interval."""
        return self.freedom < ENOUGH_GROUPS - 1


def mean_interval(
    value: float,
    influence: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str | None],
    *,
    level: float = 0.95,
    most: float = np.inf,
    is_difference: bool = False,
) -> dict[str, Any]:
    """The interval of a number of which the change by each image is known (see `delta_intervals`).

    Args:
        value: Of the images as they are, never negative unless it is a difference.
        influence: (images,) change of the value per image counted more, sums to 0.
        labels, groups: As of `resampling.draw_weights`.
        level: Nominal coverage.
        most: Largest possible value.
        is_difference: It may be negative: the interval is not on the scale of its logarithm.

    Returns:
        `value`, `low`, `high` (None below 20 images or 3 groups and where no image differs), `method`, `n`.
    """
    n = len(labels)
    cell: dict[str, Any] = {"value": value if is_difference else float(np.clip(value, 0.0, most)), "n": n}
    count = GroupCount.of(labels, groups)
    if n < ENOUGH_IMAGES:
        return cell | {"low": None, "high": None, "method": TOO_FEW}
    if count is not None and count.are_few:
        return cell | {"low": None, "high": None, "method": TOO_FEW_GROUPS}
    spread = spread_of(influence, labels, groups)
    interval = None if is_difference else positive_interval(cell["value"], spread, n, level=level)
    if interval is not None:
        return cell | {"low": interval.low, "high": min(interval.high, most), "method": interval.method}
    if not is_difference or not spread.error:
        return cell | {"low": None, "high": None, "method": NOTHING_DIFFERS}
    half = spread.half_width(level)
    return cell | {"low": value - half, "high": value + half, "method": BY_INFLUENCE}


def ends_of_draws(drawn: np.ndarray, level: float, count: GroupCount | None) -> np.ndarray:
    """How far an interval reaches below and above a value, (2, ...).

    Without groups these are the percentiles of the draws around their mean. Few groups drawn again differ less than
    groups do, and how much is not well known: then it is the deviation times Student's t, with a factor for the first.

    Args:
        drawn: (draws, ...) of the images drawn again.
        level: Nominal coverage.
        count: Of the groups; None where no image has one.

    Source:
        Rao and Wu, J. Am. Stat. Assoc. 83 (1988), 231 (a stratified bootstrap of n units is too narrow by (n-1)/n).
    """
    from scipy.stats import t

    if count is None:
        tail = (1 - level) / 2
        ends: np.ndarray = np.quantile(drawn, [tail, 1 - tail], axis=0) - drawn.mean(axis=0)
        return ends
    factor = float(t.ppf((1 + level) / 2, count.freedom)) * (count.groups / count.freedom) ** 0.5
    half = factor * drawn.std(axis=0)
    return np.stack([-half, half])


def drawn_interval(
    value: float,
    drawn: np.ndarray,
    n: int,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    biases: tuple[float, float] = (0.0, 0.0),
    count: GroupCount | None = None,
) -> dict[str, Any]:
    """The interval of a number from draws around it (`ends_of_draws`).

    Args:
        value: Of the images as they are.
        drawn: (draws,) of the images drawn again; what is not finite (a draw without a cell that counts) is left out.
        n: Images it rests on.
        level: Nominal coverage.
        bounds: Values it can take.
        biases: How much the value may be too high and too low on average; the interval is that much longer on the side
            where the truth then lies, so it is rather too long than too short.
        count: Of the groups; None where no image has one.

    Returns:
        `value`, `low`, `high` (None below 20 images or 3 groups and where no draw differs), `method`, `n`.
    """
    drawn = drawn[np.isfinite(drawn)]
    cell = {"value": float(np.clip(value, *bounds)), "low": None, "high": None, "n": n}
    if n < ENOUGH_IMAGES or not len(drawn):
        return cell | {"method": TOO_FEW}
    if count is not None and count.are_few:
        return cell | {"method": TOO_FEW_GROUPS}
    if np.ptp(drawn) < _ROUNDING:
        return cell | {"method": NOTHING_DIFFERS}
    low, high = value + ends_of_draws(drawn, level, count) + np.array([-biases[0], biases[1]])
    methods = (SHIFTED, EXTENDED) if count is None else (OVER_GROUPS, OVER_GROUPS_EXTENDED)
    ends = {"low": float(np.clip(low, *bounds)), "high": float(np.clip(high, *bounds))}
    return cell | ends | {"method": methods[any(biases)]}


def share_interval(
    hits: np.ndarray, groups: Sequence[str | None], *, level: float = 0.95
) -> dict[str, Any] | None:
    """The Wilson interval of a share; images of one group count as fewer than independent ones.

    They count as many independent ones as would give the share the variance it has between groups, and as fewer still
    where few groups tell it (simulated: with 3 to 20 groups 94 to 100 % are covered, without that 86 to 97 %). Where
    all images count or none, or there is one group, groups cannot be seen to differ and each counts as one image.

    Args:
        hits: (images,) bool.
        groups: Group of each image, None for an image on its own.
        level: Nominal coverage.

    Returns:
        `value`, `low`, `high`, `method`, `hits`, `n` (images as they are); None where there is no image.

    Source:
        Korn and Graubard, Survey Methodology 24 (1998), 193 (effective sample size).
    """
    n, right = len(hits), int(np.count_nonzero(hits))
    if not n:
        return None
    grouped = are_grouped(groups)
    units = _independent_images(np.asarray(hits, dtype=np.float64), groups, level) if grouped else float(n)
    cell = wilson_of_share(right / n, units, n, level=level).to_dict()
    return {**cell, "method": GROUPED_WILSON if grouped else cell["method"], "hits": right}


def _independent_images(hits: np.ndarray, groups: Sequence[str | None], level: float) -> float:
    from scipy.stats import norm, t

    seen: dict[object, int] = {}
    unit = [seen.setdefault(row if group is None else group, len(seen)) for row, group in enumerate(groups)]
    n, share, count = len(hits), hits.mean(), len(seen)
    if share in (0.0, 1.0) or count < 2:
        return float(count)
    variance = (np.bincount(unit, hits - share) ** 2).sum() * count / (count - 1) / n**2
    found = float(np.clip(share * (1 - share) / variance, 1.0, n)) if variance else float(n)
    # Few groups do not show well how much they differ: fewer images, so that the interval is that of Student's t.
    tail = (1 + level) / 2
    return found * float(norm.ppf(tail) / t.ppf(tail, count - 1)) ** 2
