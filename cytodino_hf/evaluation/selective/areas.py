"""AURC of every score with intervals, and the curves of the report, for all mistakes and for the dangerous ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..calibration.intervals import ENOUGH_MISTAKES, shifted_interval
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
        draws, seed, level: Of the bootstrap.

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
    drawn: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    risks = []
    for weights in draw_weights(known.labels, known.groups, draws, seed):
        for name, curve in full.items():
            drawn.setdefault(("all", name), []).append(curve.areas(weights))
        for name, curve in part.items():
            drawn.setdefault(("critical", name), []).append(curve.areas(weights[:, critical]))
        risks.append(full[in_use].risks(weights, _POINTS))
    mistakes = {"all": int(wrong.sum()), "critical": int(called_safe.sum())}

    def areas(kind: str, name: str, curve: RiskCoverage, n: int) -> dict[str, Any]:
        values = curve.areas(np.ones((1, n)))
        found: dict[str, Any] = {"mistakes": mistakes[kind]}
        for place, key in enumerate(("aurc", "excess_aurc")):
            of_draws = np.concatenate([chunk[place] for chunk in drawn[kind, name]])
            cell = shifted_interval(values[place][0], of_draws, n, level=level, bounds=(0.0, 1.0))
            if mistakes[kind] < ENOUGH_MISTAKES:
                cell |= {"low": None, "high": None, "method": FEW_MISTAKES}
            found[key] = cell
        return found

    found = {
        name: {
            "words": SCORES[name],
            **areas("all", name, full[name], len(known)),
            "critical": areas("critical", name, part[name], len(critical)) if part else None,
        }
        for name in scores
    }
    return found, _curves(
        full, part, np.concatenate(risks), in_use, len(known), len(critical), mistakes["all"], level
    )


def _curves(
    full: dict[str, RiskCoverage],
    part: dict[str, RiskCoverage],
    risks: np.ndarray,
    in_use: str,
    n: int,
    critical: int,
    mistakes: int,
    level: float,
) -> dict[str, Any]:
    def at(curve: RiskCoverage, images: int) -> list[float]:
        return curve.risks(np.ones((1, images)), _POINTS)[0].tolist()

    value = np.array(at(full[in_use], n))
    tail = (1 - level) / 2
    low, high = np.clip(np.quantile(risks, [tail, 1 - tail], axis=0) - risks.mean(axis=0) + value, 0, 1)
    # The best order: no mistake before all right answers are used up.
    best = np.maximum(0, _POINTS * n - (n - mistakes)) / (_POINTS * n)
    return {
        "coverage": _POINTS.tolist(),
        "all": {name: at(curve, n) for name, curve in full.items()},
        "best": best.tolist(),
        "critical": {name: at(curve, critical) for name, curve in part.items()},
        "critical_images": critical,
        "band": {"score": in_use, "low": low.tolist(), "high": high.tolist()}
        if mistakes >= ENOUGH_MISTAKES
        else None,
    }
