"""Intervals as plain values of a report: of what is drawn again, and of shares where images come in groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..comparison import EXTENDED, SHIFTED
from ..resampling import are_grouped
from ..statistics import ENOUGH_IMAGES, wilson_of_share

GROUPED_WILSON = "Wilson, with the number of images that as many independent ones would equal"

#: With fewer mistakes than this, draws hardly differ and promise too much (simulated: 1 to 6 wrong images cover 58 to
#: 92 %, from 9 on 91 to 96 %).
ENOUGH_MISTAKES = 10
#: Said in place of an interval where drawing so few images again would promise too much.
TOO_FEW = f"no interval: fewer than {ENOUGH_IMAGES} images"


def shifted_interval(
    value: float,
    drawn: np.ndarray,
    n: int,
    *,
    level: float = 0.95,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    biases: tuple[float, float] = (0.0, 0.0),
) -> dict[str, Any]:
    """The percentile interval of draws, shifted so that their mean lies on the value (see `comparison`).

    Args:
        value: Of the images as they are.
        drawn: (draws,) of the images drawn again; what is not finite (a draw without a cell that counts) is left out.
        n: Images it rests on.
        level: Nominal coverage.
        bounds: Values it can take.
        biases: How much the value may be too high and too low on average; the interval is that much longer on the side
            where the truth then lies, so it is rather too long than too short.

    Returns:
        `value`, `low`, `high` (None below 20 images), `method`, `n`.
    """
    drawn = drawn[np.isfinite(drawn)]
    if n < ENOUGH_IMAGES or not len(drawn):
        return {"value": float(value), "low": None, "high": None, "method": TOO_FEW, "n": n}
    tail = (1 - level) / 2
    low, high = (
        np.quantile(drawn, [tail, 1 - tail]) - drawn.mean() + value + np.array([-biases[0], biases[1]])
    )
    return {
        "value": float(value),
        "low": float(np.clip(low, *bounds)),
        "high": float(np.clip(high, *bounds)),
        "method": EXTENDED if any(biases) else SHIFTED,
        "n": n,
    }


def share_interval(
    hits: np.ndarray, groups: Sequence[str | None], *, level: float = 0.95
) -> dict[str, Any] | None:
    """The Wilson interval of a share; images of one group count as fewer than independent ones.

    They count as many independent ones as would give the share the variance it has between groups. Where all or no
    image counts, or there is one group, groups cannot be seen to differ and each counts as one image.

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
    units = _independent_images(np.asarray(hits, dtype=np.float64), groups) if grouped else float(n)
    cell = wilson_of_share(right / n, units, n, level=level).to_dict()
    return {**cell, "method": GROUPED_WILSON if grouped else cell["method"], "hits": right}


def _independent_images(hits: np.ndarray, groups: Sequence[str | None]) -> float:
    seen: dict[object, int] = {}
    unit = [seen.setdefault(row if group is None else group, len(seen)) for row, group in enumerate(groups)]
    n, share, count = len(hits), hits.mean(), len(seen)
    if share in (0.0, 1.0) or count < 2:
        return float(count)
    variance = (np.bincount(unit, hits - share) ** 2).sum() * count / (count - 1) / n**2
    return float(np.clip(share * (1 - share) / variance, 1.0, n)) if variance else float(n)
