"""What only a task of two classes has: one ranking, sensitivity at a specificity, and probabilities of one class."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from ..taxonomy import Taxonomy
from .delta_intervals import positive_interval, share_interval, spread_of
from .predictions import Predictions
from .probability_metrics import probability_terms
from .ranking_metrics import SPECIFICITY, Ranking, sensitivity_at_specificity
from .resampling import draw_weights, group_count
from .scalar_metrics import SENSITIVITY
from .statistics import Interval

AT_SPECIFICITY = "stratified bootstrap around a mean with pseudo-counts, normal"


def binary_section(
    known: Predictions,
    scores: np.ndarray,
    ranking: Ranking | None,
    taxonomy: Taxonomy,
    positive: int,
    *,
    draws: int,
    seed: int,
    level: float,
) -> dict[str, Any]:
    """Metrics of a task of two classes.

    Args:
        known: The images, all labelled.
        scores: (images, 2) of `ranking_metrics.class_scores`.
        ranking: Of the positive class; None where all images are of one class.
        taxonomy: The two classes.
        positive: Label of the class looked for.
        draws, seed, level: Of the bootstrap.

    Returns:
        `positive`, `positives`, `negatives`, `specificity`, and `metrics`: `auroc`, `auprc`, the sensitivity, `brier`
        (squared error of the positive's probability, in [0, 1], half the sum over both classes) and `nll` (in nats).
        A metric without value is None; one without interval has ends of None.
    """
    is_positive = known.labels == positive
    positives, n = int(is_positive.sum()), len(known)
    metrics: dict[str, dict[str, Any] | None] = {"auroc": None, "auprc": None, SENSITIVITY: None}
    if ranking is not None:
        units = min(_units(known.groups, is_positive), _units(known.groups, ~is_positive))
        for name in ("auroc", "auprc"):
            spread = spread_of(getattr(ranking, f"{name}_influence"), known.labels, known.groups)
            metrics[name] = share_interval(getattr(ranking, name), spread, n, units, level=level).to_dict()
        metrics[SENSITIVITY] = sensitivity_interval(
            scores[:, positive], is_positive, known.groups, draws=draws, seed=seed, level=level
        ).to_dict()
    terms = probability_terms(known.logits, known.labels)
    for name, values in (("brier", terms.brier / 2), ("nll", terms.nll)):
        metrics[name] = mean_interval(values, known.labels, known.groups, level=level)
    return {
        "positive": taxonomy.codes[positive],
        "positives": positives,
        "negatives": n - positives,
        "specificity": SPECIFICITY,
        "metrics": metrics,
    }


def mean_interval(
    values: np.ndarray, labels: np.ndarray, groups: Sequence[str | None] | None, *, level: float = 0.95
) -> dict[str, Any]:
    """Mean of a term per image that is never negative (NLL, Brier), with its interval in plain values.

    Args:
        values: (images,) terms.
        labels, groups: As of `resampling.draw_weights`.
        level: Nominal coverage.

    Returns:
        `value`, `low`, `high`, `method`, `n`; ends of None where no image differs from another.
    """
    mean, n = float(values.mean()), len(values)
    interval = positive_interval(mean, spread_of((values - mean) / n, labels, groups), n, level=level)
    if interval is None:
        return {"value": mean, "low": None, "high": None, "method": "no interval: no image differs", "n": n}
    return interval.to_dict()


def sensitivity_interval(
    scores: np.ndarray,
    is_positive: np.ndarray,
    groups: Sequence[str | None] | None,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    specificity: float = SPECIFICITY,
) -> Interval:
    """Sensitivity at a specificity, with an interval that knows that the threshold moves as well.

    The interval is the mean of the draws, moved as if z^2 / 2 of z^2 more positives were found, +- z deviations. (With
    the deviation of the moved draws, as published, 30 positives were covered in 91 of 100; with that of the draws
    themselves in 94.)

    Args:
        scores: (images,) higher for positive.
        is_positive: (images,) bool.
        groups, draws, seed: As of `resampling.draw_weights`.
        level: Nominal coverage.
        specificity: As of `ranking_metrics.sensitivity_at_specificity`.

    Source:
        Platt, Hanley, Yang, Biometrical J. 42 (2000), 1; Zhou and Qin, Stat. Med. 24 (2005), 465 (their BTII).
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    units = _units(groups, is_positive)
    value = float(sensitivity_at_specificity(scores, is_positive, np.ones((1, len(scores))), specificity)[0])
    drawn = np.concatenate(
        [
            sensitivity_at_specificity(scores, is_positive, weights, specificity)
            for weights in draw_weights(is_positive.astype(np.int64), groups, draws, seed)
        ]
    )
    centre = float((drawn.mean() * units + z**2 / 2) / (units + z**2))
    # Positives that all are found, or none, do not vary between draws; as many new ones would.
    deviation = float(drawn.std()) or (centre * (1 - centre) / (units + z**2)) ** 0.5
    low, high = max(0.0, centre - z * deviation), min(1.0, centre + z * deviation)
    n = int(is_positive.sum())
    return Interval(value, min(float(low), value), max(float(high), value), AT_SPECIFICITY, n)


def _units(groups: Sequence[str | None] | None, rows: np.ndarray) -> int:
    here = None if groups is None else [group for group, is_here in zip(groups, rows, strict=True) if is_here]
    return group_count(here) or int(rows.sum())
