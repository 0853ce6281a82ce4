"""How sure the difference of two systems is: its standard error, what that rests on, and when it is no evidence.

Draws show only what differed among these images: where no answer, or a handful, differs between two systems, they
hardly move, and an interval of them is that of a certainty nobody has. So metrics of a confusion matrix get the spread
of images nobody saw as well: one answer in all that turns from right to wrong for metrics that weigh images alike, one
in every class of fewer than 20 images for those that weigh classes alike; a group's worth where images come in groups.
For accuracy that is the interval of Agresti and Min. Draws within classes and groups show too little of their spread
by (units - strata) / units, which is made good. Means over images need no draws: `delta_intervals`.

Source: Agresti and Min, Statistics in Medicine 24 (2005), 729; Davison and Hinkley 1997, 2.3 (draws of small strata).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .changes.discordance import right_by_one_p
from .delta_intervals import Spread, spread_of
from .metrics import METRICS, confusion_metrics
from .resampling import group_count, strata_of
from .statistics import ENOUGH_IMAGES
from .weighted_scorer import Scorer

#: Of which the difference is a mean over images, so its error needs no draws.
_MEANS = ("nll", "brier")
#: Shares of images read right, whose difference an exact test judges.
_SHARES_RIGHT = ("accuracy", "weighted_recall")
_SAME = 1e-9  # what rounding makes of two equal terms


@dataclass(frozen=True)
class Basis:
    """What a difference in one metric rests on.

    Args:
        spread: Its error over images; 0 where nothing tells how sure it is.
        n: Images.
        discordant: Images in which the systems differ: of which one is right (of `critical_to_safe`: calls a critical
            image safe) and the other not, with several seeds the sum of the differences between their shares of seeds;
            of probabilities, images with another term.
        groups: Groups the images come from; None without groups.
        p: Of the exact test on the share read right; None of other metrics and with several seeds.
    """

    spread: Spread
    n: int
    discordant: float
    groups: int | None
    p: float | None


def paired_bases(
    first: Sequence[Scorer],
    second: Sequence[Scorer],
    groups: Sequence[str | None],
    metrics: Sequence[str],
    drawn: np.ndarray,
) -> list[Basis]:
    """What the difference of two systems in each metric rests on.

    Args:
        first, second: A scorer a seed; all of the same images in one order.
        groups: Group of each image.
        metrics: Names.
        drawn: (draws, metrics) differences of the images drawn anew.
    """
    taxonomy, labels = first[0].taxonomy, first[0].labels
    rows_of = {"critical_to_safe": np.flatnonzero(np.isin(labels, taxonomy.critical))}
    everything = np.arange(len(labels))
    hits = [np.mean([scorer.right() for scorer in system], axis=0) for system in (first, second)]
    p = right_by_one_p(hits[0], hits[1], groups) if len(first) == len(second) == 1 else None
    unseen = _unseen_spread([*first, *second], groups)
    found = []
    for place, name in enumerate(metrics):
        rows = rows_of.get(name, everything)
        mine = [groups[row] for row in rows.tolist()]
        difference = _each_image(name, first) - _each_image(name, second)
        if name in _MEANS:
            spread = spread_of((difference - difference.mean()) / len(labels), labels, groups)
        else:
            spread = _of_draws(drawn[:, place], labels[rows], mine, unseen.get(name))
        matters = np.abs(difference) > _SAME
        found.append(
            Basis(
                spread=spread,
                n=len(rows),
                discordant=float(matters.sum() if name in (*_MEANS, "ece") else np.abs(difference).sum()),
                groups=group_count(mine),
                p=p if name in _SHARES_RIGHT else None,
            )
        )
    return found


def _of_draws(
    drawn: np.ndarray, labels: np.ndarray, groups: Sequence[str | None] | None, unseen: float | None
) -> Spread:
    """Error of a number from its draws (NaN: says nothing), with what draws within strata miss made good.

    With the variance of unseen images where there is one; then single images need no Student's t.
    """
    strata = strata_of(labels, groups)
    units = sum(len(rows) if unit is None else int(unit.max()) + 1 for rows, unit in strata)
    freedom = max(1, units - len(strata))
    known = drawn[~np.isnan(drawn)]
    variance = float(known.var(ddof=1)) * units / freedom if len(known) > 1 else 0.0
    if unseen is None:
        error = math.sqrt(variance) if variance > 1e-24 else 0.0  # rounding of 0
        return Spread(error, float(freedom) if error else math.inf)
    is_by_image = group_count(groups) is None
    return Spread(math.sqrt(variance + unseen), math.inf if is_by_image else float(freedom))


def _each_image(name: str, system: Sequence[Scorer]) -> np.ndarray:
    """What each image that counts adds to a metric, or whether it is right: (images,), the mean over seeds."""
    each = {
        "critical_to_safe": Scorer.called_safe,
        "nll": lambda scorer: scorer.terms.nll,
        "brier": lambda scorer: scorer.terms.brier,
        "ece": lambda scorer: scorer.terms.gap.sum(axis=1),
    }.get(name, Scorer.right)
    values: np.ndarray = np.mean([each(scorer) for scorer in system], axis=0)
    return values


def _unseen_spread(scorers: Sequence[Scorer], groups: Sequence[str | None]) -> dict[str, float]:
    """Variance that unseen images add to metrics of the confusion matrix and to `critical_to_safe`."""
    taxonomy, labels = scorers[0].taxonomy, scorers[0].labels
    support = np.bincount(labels, minlength=len(taxonomy))
    units = np.array([_units(labels == k, groups) for k in range(len(taxonomy))])
    change = np.mean([_one_turned(scorer, support) for scorer in scorers], axis=0)  # (classes, metrics)
    share = support / len(labels)
    everything, critical = np.ones(len(labels), dtype=bool), np.isin(labels, taxonomy.critical)
    of_image = share[:, None] * (change * len(labels) / _units(everything, groups)) ** 2
    by_class = (change * (support / np.maximum(units, 1))[:, None]) ** 2
    by_class *= np.where((units > 0) & (units < ENOUGH_IMAGES), 1.0, share)[:, None]
    is_macro = np.array([name.startswith(("macro", "balanced")) for name in METRICS])
    found = dict(zip(METRICS, np.where(is_macro, by_class, of_image).sum(axis=0).tolist(), strict=True))
    if critical.any():
        found["critical_to_safe"] = 1 / _units(critical, groups) ** 2
    return found


def _units(rows: np.ndarray, groups: Sequence[str | None]) -> int:
    """Groups of some images, or images where there are no groups."""
    here = np.flatnonzero(rows).tolist()
    return group_count([groups[row] for row in here]) or len(here)


def _one_turned(scorer: Scorer, support: np.ndarray) -> np.ndarray:
    """By how much one image of each class, wrong instead of right, changes each metric: (classes, metrics)."""
    k = len(support)
    matrix = scorer.matrix(np.ones((1, len(scorer.labels))))[0]
    right = np.eye(k)
    wrong = (1 - right) / max(k - 1, 1)
    found = np.zeros((k, len(METRICS)))
    here = np.flatnonzero(support)
    pair = []
    for row in (right, wrong):
        more = np.repeat(matrix[None], len(here), axis=0)
        more[np.arange(len(here)), here] += row[here]
        pair.append(np.stack(list(confusion_metrics(more, scorer.counted).values()), axis=1))
    # One of n images, not of the n + 1 that adding it made
    found[here] = (pair[0] - pair[1]) * ((support[here] + 1) / support[here])[:, None]
    return found
