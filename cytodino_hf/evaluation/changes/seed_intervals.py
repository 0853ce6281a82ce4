"""The mean over seeds of one system: its interval over test images, and over images and seeds.

Over images it is what one model has: of smoothed rows for metrics of a confusion matrix, Wilson's for critical cells
called safe, so that nothing is certain because no image of this fold was misread. Seeds that misread other images make
their mean surer than each; by how much, the draws of images say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from ..calibration.intervals import GroupCount, drawn_interval, mean_interval
from ..grouped import group_draws
from ..metrics import confusion_matrix
from ..predictions import Predictions
from ..probability_metrics import largest_bias
from ..resampling import draw_weights
from ..seeds import interval_of_both
from ..statistics import Interval, called_interval, metric_intervals
from ..weighted_scorer import Scorer

#: Largest possible value of those that have another than 1.
MOST = {"nll": float("inf"), "brier": 2.0}


def image_cells(
    aligned: Sequence[Predictions],
    scorers: Sequence[Scorer],
    metrics: Sequence[str],
    *,
    draws: int,
    seed: int,
    level: float,
) -> dict[str, dict[str, Any]]:
    """The interval over test images of each metric's mean over seeds.

    Args:
        aligned: Predictions of each seed, of the same labelled images in one order.
        scorers: Of these.
        metrics: Some of `comparison.COMPARABLE`.
        draws, seed, level: Of the bootstrap.

    Returns:
        Name -> `below` and `above` (how far the interval reaches; None where `method` says why), `method`, `n`.
    """
    labels, groups = aligned[0].labels, aligned[0].groups
    of_matrix = [
        _matrix_intervals(one, scorer, draws, seed, level)
        for one, scorer in zip(aligned, scorers, strict=True)
    ]
    drawn = np.concatenate(  # (draws, seeds, metrics)
        [
            np.stack([scorer(weights, metrics) for scorer in scorers], axis=1)
            for weights in draw_weights(labels, groups, draws, seed)
        ]
    )
    found = {}
    for place, name in enumerate(metrics):
        if name in of_matrix[0]:
            found[name] = _mean_of([one[name] for one in of_matrix], _agreement(drawn[:, :, place]))
        elif name == "ece":
            gaps = [_gap_deviations(scorer, groups, draws, seed) for scorer in scorers]
            found[name] = _of_ece(scorers, drawn[:, :, place].mean(axis=1), gaps, groups, level)
        else:
            terms = np.mean([getattr(scorer.terms, name) for scorer in scorers], axis=0)
            mean = float(terms.mean())
            influence = (terms - mean) / len(terms)
            found[name] = _reach(mean_interval(mean, influence, labels, groups, level=level, most=MOST[name]))
    return found


def ends_of_both(
    mean: float, cell: Mapping[str, Any], spread: float | None, seeds: int, *, level: float, most: float
) -> tuple[float, float] | tuple[None, None]:
    """The interval over images and seeds, each side by itself; no ends where there are none over images.

    Args:
        mean: Over seeds.
        cell: Of `image_cells`.
        spread: Standard deviation over seeds; None of one seed.
        seeds: How many.
        level: Nominal coverage.
        most: Largest possible value.

    Source:
        Zou and Donner, Statistics in Medicine 27 (2008), 1693: a variance from each end of an interval.
    """
    if cell["below"] is None:
        return None, None
    z = NormalDist().inv_cdf((1 + level) / 2)
    low, high = (
        interval_of_both(mean, cell[side] / z, [(spread, seeds)], level)[place]
        for place, side in enumerate(("below", "above"))
    )
    return max(0.0, low), min(most, high)


def _matrix_intervals(
    one: Predictions, scorer: Scorer, draws: int, seed: int, level: float
) -> dict[str, Interval]:
    taxonomy = scorer.taxonomy
    matrix = confusion_matrix(one.labels, one.predicted, len(taxonomy))
    grouped = group_draws(one.labels, one.predicted, one.groups, len(taxonomy), draws, seed)
    found = metric_intervals(matrix, scorer.counted, draws=draws, seed=seed, level=level, grouped=grouped)
    dangerous, _ = called_interval(matrix, taxonomy.critical, taxonomy.safe, grouped, level=level)
    return {**found, "critical_to_safe": dangerous}


def _mean_of(intervals: Sequence[Interval], agreement: float) -> dict[str, Any]:
    below = agreement * float(np.mean([one.value - one.low for one in intervals]))
    above = agreement * float(np.mean([one.high - one.value for one in intervals]))
    return {"below": below, "above": above, "method": intervals[0].method, "n": intervals[0].n}


def _agreement(drawn: np.ndarray) -> float:
    """Deviation of the mean of (draws, seeds) by the mean deviation; 1 where no draw differs."""
    each = float(np.nanstd(drawn, axis=0).mean())
    return min(1.0, float(np.nanstd(drawn.mean(axis=1))) / each) if each > 0 else 1.0


def _of_ece(
    scorers: Sequence[Scorer],
    drawn: np.ndarray,
    deviations: Sequence[np.ndarray],
    groups: Sequence[str | None],
    level: float,
) -> dict[str, Any]:
    """Of the (draws,) of the mean over seeds; it reaches further down, as each is too high on average."""
    labels = scorers[0].labels
    once = [scorer.gaps(np.ones((1, len(labels))))[0] for scorer in scorers]
    bias = np.mean(
        [
            largest_bias(gaps, np.maximum(deviation, scorer.terms.noise)).sum()
            for gaps, deviation, scorer in zip(once, deviations, scorers, strict=True)
        ]
    )
    return _reach(
        drawn_interval(
            float(np.mean([np.abs(gaps).sum() for gaps in once])),
            drawn,
            len(labels),
            level=level,
            bounds=(0.0, 1.0),
            biases=(float(bias), 0.0),
            count=GroupCount.of(labels, groups),
        )
    )


def _reach(cell: Mapping[str, Any]) -> dict[str, Any]:
    below = above = None
    if cell["low"] is not None:
        below, above = cell["value"] - cell["low"], cell["high"] - cell["value"]
    return {"below": below, "above": above, "method": cell["method"], "n": cell["n"]}


def _gap_deviations(scorer: Scorer, groups: Sequence[str | None], draws: int, seed: int) -> np.ndarray:
    drawn = [scorer.gaps(weights) for weights in draw_weights(scorer.labels, groups, draws, seed)]
    deviations: np.ndarray = np.concatenate(drawn).std(axis=0)
    return deviations
