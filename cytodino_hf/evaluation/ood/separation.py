"""How well a score tells strange images from known ones: AUROC and FPR95, with intervals.

AUROC is the chance that a strange image scores above a known one, ties by half. FPR95 is the share of strange images
that pass as known where the threshold lets 95 % of the known ones pass.

Source: Hendrycks and Gimpel 2017 (arXiv 1610.02136), section 3; Liang et al. 2018 (ODIN, arXiv 1706.02690), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..conformal.coverage import count_units
from ..delta_intervals import Spread, share_interval, spread_of
from ..ranking_metrics import rank_class
from ..resampling import draw_weights
from ..statistics import Interval

#: Share of the known images that pass.
PASSING = 0.95


@dataclass(frozen=True)
class ImageSet:
    """What intervals need to know of some images.

    Args:
        scores: Score -> (images,) float64, higher the stranger.
        labels: (images,) classes among which images are drawn; any one number where none is known.
        groups: Group of each image, or None.
    """

    scores: Mapping[str, np.ndarray]
    labels: np.ndarray
    groups: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Separation:
    """How one score tells one set of strange images from the known ones."""

    auroc: Interval
    fpr95: Interval


def separations(
    known: ImageSet,
    strange: Mapping[str, ImageSet],
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Separation]]:
    """AUROC and FPR95 of each score against each set of strange images.

    The interval of AUROC comes from the influence of each image (DeLong), that of FPR95 from the spread of draws of
    known and strange images; both are worked out on the scale of log odds.

    Args:
        known: Images of the kinds the model learned.
        strange: Name -> other images.
        draws, seed: Of the bootstrap.
        level: Of the intervals.

    Returns:
        Name of the set -> score -> separation.

    Raises:
        ValueError: A set has no image.
    """
    if not len(known) or not all(map(len, strange.values())):
        raise ValueError("a set of images to tell apart is empty")
    deviation = _fpr95_deviation(known, strange, draws, seed)
    found: dict[str, dict[str, Separation]] = {}
    for title, other in strange.items():
        units = count_units(other.groups)
        found[title] = {}
        for name in known.scores:
            passing = fpr95(known.scores[name], other.scores[name])
            spread = Spread(deviation[title, name], max(units - 1, 1))
            found[title][name] = Separation(
                auroc=_auroc(known, other, name, level),
                fpr95=share_interval(passing, spread, len(other), units, level=level),
            )
    return found


def fpr95(known: np.ndarray, strange: np.ndarray) -> float:
    """Share of strange images that score no higher than the lowest threshold at which 95 % of the known ones pass."""
    return float((strange <= np.sort(known)[_place(len(known))]).mean())


def roc_points(known: np.ndarray, strange: np.ndarray, points: int = 101) -> list[list[float]]:
    """The ROC curve as [share of known called out, share of strange called out], at most `points` of each."""
    limits = np.unique(np.quantile(np.concatenate([known, strange]), np.linspace(0, 1, points)))[::-1]
    curve = [[0.0, 0.0]]
    curve += [[float((known >= limit).mean()), float((strange >= limit).mean())] for limit in limits]
    return curve


def _place(n: int) -> int:
    """Which of n sorted known images is the last that must pass."""
    return int(np.ceil(PASSING * n - 1e-9)) - 1


def _auroc(known: ImageSet, other: ImageSet, name: str, level: float) -> Interval:
    scores = np.concatenate([known.scores[name], other.scores[name]])
    is_strange = np.arange(len(scores)) >= len(known)
    ranking = rank_class(scores, is_strange)
    # Groups and classes of the two sets are drawn apart, whatever they are called.
    labels = np.concatenate([known.labels, other.labels + 1 + known.labels.max() - other.labels.min()])
    groups = [None if g is None else f"known {g}" for g in known.groups]
    groups += [None if g is None else f"strange {g}" for g in other.groups]
    units = min(count_units(known.groups), count_units(other.groups))
    spread = spread_of(ranking.auroc_influence, labels, groups)
    return share_interval(ranking.auroc, spread, len(scores), units, level=level)


def _fpr95_deviation(
    known: ImageSet, strange: Mapping[str, ImageSet], draws: int, seed: int
) -> dict[tuple[str, str], float]:
    """Standard deviation over draws of FPR95, by set and score."""
    limits = _drawn_limits(known, draws, seed)
    found: dict[tuple[str, str], float] = {}
    for number, (title, other) in enumerate(strange.items()):
        order = {name: np.argsort(other.scores[name]) for name in limits}
        passing: dict[str, list[np.ndarray]] = {name: [] for name in limits}
        start = 0
        for weights in draw_weights(other.labels, other.groups, draws, seed + 1 + number):
            rows = slice(start, start + len(weights))
            start += len(weights)
            for name, limit in limits.items():
                ranked = other.scores[name][order[name]]
                below = np.cumsum(weights[:, order[name]], axis=1)
                at = np.searchsorted(ranked, limit[rows], side="right") - 1
                hits = np.take_along_axis(below, np.maximum(at, 0)[:, None], axis=1)[:, 0] * (at >= 0)
                passing[name].append(hits / below[:, -1])
        found |= {(title, name): float(np.concatenate(parts).std()) for name, parts in passing.items()}
    return found


def _drawn_limits(known: ImageSet, draws: int, seed: int) -> dict[str, np.ndarray]:
    """The threshold at which 95 % of the known images of each draw pass, by score: (draws,)."""
    order = {name: np.argsort(values) for name, values in known.scores.items()}
    found: dict[str, list[np.ndarray]] = {name: [] for name in order}
    for weights in draw_weights(known.labels, known.groups, draws, seed):
        for name, rows in order.items():
            below = np.cumsum(weights[:, rows], axis=1)
            last = (below >= PASSING * below[:, -1:] - 1e-9).argmax(axis=1)
            found[name].append(known.scores[name][rows][last])
    return {name: np.concatenate(parts) for name, parts in found.items()}
