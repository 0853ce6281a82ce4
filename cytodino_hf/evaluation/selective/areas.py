"""AURC of every score with intervals, and the curves of the report, for all mistakes and for the dangerous ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..calibration.intervals import ENOUGH_MISTAKES, GroupCount, ends_of_draws, mean_interval
from ..predictions import Predictions
from ..resampling import draw_weights
from .risk_coverage import RiskCoverage
from .scores import SCORES

_POINTS = np.arange(1, 101) / 100
FEW_MISTAKES = f"no interval: fewer than {ENOUGH_MISTAKES} mistakes"


def areas_and_curves(
    known: Predictions,
    scores: dict[str, np.ndarray],
    wrong: np.ndarray,
    is_critical: np.ndarray,
    called_safe: np.ndarray,
    in_use: str,
    draws: int,
    seed: int,
    level: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Areas and curves of every score.

    The dangerous mistakes are those of critical cells called safe, among critical cells alone: the share of them that
    is kept against the share of those kept that is called safe.

    Args:
        known: Labelled predictions, for classes and groups.
        scores: Name -> (images,) higher is surer.
        wrong, is_critical, called_safe: (images,) bool.
        in_use: The score whose curve gets a band.
        draws, seed, level: Of the bootstrap, which gives the band of the curve.

    Returns:
        `scores` and `curves` of the section.
    """
    critical = np.flatnonzero(is_critical)
    full = {name: RiskCoverage(s, wrong) for name, s in scores.items()}
    part = (
        {name: RiskCoverage(s[critical], called_safe[critical]) for name, s in scores.items()}
        if len(critical)
        else {}
    )
    kept = known.select(critical)
    found = {
        name: {
            "words": SCORES[name],
            **_areas(full[name], known, int(wrong.sum()), level),
            "critical": _areas(part[name], kept, int(called_safe.sum()), level) if part else None,
        }
        for name in scores
    }
    count = GroupCount.of(known.labels, known.groups)
    has_band = int(wrong.sum()) >= ENOUGH_MISTAKES and not (count is not None and count.are_few)
    risks = [
        full[in_use].risks(weights, _POINTS)
        for weights in draw_weights(known.labels, known.groups, draws if has_band else 0, seed)
    ]
    reach = ends_of_draws(np.concatenate(risks), level, count) if risks else None
    return found, _curves(full, part, reach, in_use, len(known), len(critical), int(wrong.sum()))


def _areas(curve: RiskCoverage, images: Predictions, mistakes: int, level: float) -> dict[str, Any]:
    found: dict[str, Any] = {"mistakes": mistakes}
    values = curve.areas(np.ones((1, len(images))))
    for key, value, influence in zip(("aurc", "excess_aurc"), values, curve.influences(), strict=True):
        cell = mean_interval(float(value[0]), influence, images.labels, images.groups, level=level, most=1.0)
        if mistakes < ENOUGH_MISTAKES:
            cell |= {"low": None, "high": None, "method": FEW_MISTAKES}
        found[key] = cell
    return found


def _curves(
    full: dict[str, RiskCoverage],
    part: dict[str, RiskCoverage],
    reach: np.ndarray | None,
    in_use: str,
    n: int,
    critical: int,
    mistakes: int,
) -> dict[str, Any]:
    def at(curve: RiskCoverage, images: int) -> list[float]:
        return curve.risks(np.ones((1, images)), _POINTS)[0].tolist()

    value = np.array(at(full[in_use], n))
    band = None
    if reach is not None:
        low, high = np.clip(value + reach, 0, 1)
        band = {"score": in_use, "low": low.tolist(), "high": high.tolist()}
    # The best order: no mistake before all right answers are used up.
    best = np.maximum(0, _POINTS * n - (n - mistakes)) / (_POINTS * n)
    return {
        "coverage": _POINTS.tolist(),
        "all": {name: at(curve, n) for name, curve in full.items()},
        "best": best.tolist(),
        "critical": {name: at(curve, critical) for name, curve in part.items()},
        "critical_images": critical,
        "band": band,
    }
