"""The part of a report on sets of classes and on the bound of critical cells called safe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...errors import DataError
from ...taxonomy import Taxonomy
from ..calibration.halves import calibration_halves
from ..calibration.scaling import Scaling
from ..predictions import Predictions
from ..resampling import are_grouped
from ..statistics import FEW_IMAGES
from .coverage import cell_share, score_sets
from .marginal import MARGINAL, MarginalMethod, marginal_sets, probabilities, why_no_marginal_sets
from .risk_control import RiskBound, bound_risk, stays_safe
from .thresholds import (
    ClassThreshold,
    cells_needed,
    class_sets,
    class_thresholds,
    promised_coverage,
)

#: Share of cells whose set may miss the true class.
ALPHA = 0.1
#: Shares of critical cells that may stay safe, and how sure each bound is.
RISKS, CONFIDENCE = (0.1, 0.05, 0.02), 0.9
CLASS_SETS = "class"

_TITLES = {
    "lac": "LAC",
    "aps": "APS",
    "raps": "RAPS",
    CLASS_SETS: "by class",
}
_PROMISES = {
    "lac": "of all cells together; exact where no scores tie, more where they do",
    "aps": "of all cells together; exact, with one class left out at random",
    "raps": "of all cells together; nearly exact, with one class left out at random",
    CLASS_SETS: "of each class with enough calibration cells, of the lineage of the others",
}
_GROUPED = (
    "Promises and bounds take cells as interchangeable. Images of one {kind} resemble each other, so a new {kind} may "
    "be covered less often than promised, and its critical cells may stay safe more often."
)


def conformal_section(
    calibration: Predictions,
    test: Predictions,
    taxonomy: Taxonomy,
    *,
    scale: Scaling | None = None,
    alpha: float = ALPHA,
    risks: Sequence[float] = RISKS,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Make sets on the half of the calibration fold kept for them, and score them on the test fold.

    Args:
        calibration: The whole calibration fold, logits as the model gave them. It is halved by
            `calibration_halves(calibration, seed)`: fit the scaling on the first half of the same seed.
        test: The fold to score on.
        taxonomy: The classes, in label order.
        scale: What is done to the logits first; None, or one of method `none`, takes them as they are.
        alpha: Share of cells whose set may miss the true class.
        risks: Shares of critical cells that may stay safe.
        confidence: Of the bounds on them.
        seed: Of the halves, and of the random part of APS and RAPS.
        level: Of the intervals.

    Returns:
        Plain values. `possible` is False, with `why`, where the folds are too small for any set.

    Raises:
        DataError: Predictions name other classes than the taxonomy, hold logits that are not finite, or are of two
            models.
    """
    _check(calibration, test, taxonomy)
    scaling_rows, rows = calibration_halves(calibration, seed)
    kept = _scaled(calibration.select(rows), scale)
    scored = _scaled(test.select(np.flatnonzero(test.labels >= 0)), scale)
    kind = test.group_kind or "group"
    head: dict[str, Any] = {
        "alpha": alpha,
        "level": level,
        "cells_needed": cells_needed(alpha),
        "calibration": _halves(len(scaling_rows), len(rows), seed, scale),
        "test_images": len(scored),
        "notes": [_GROUPED.format(kind=kind)] if are_grouped([*kept.groups, *scored.groups]) else [],
    }
    why = _obstacle(len(kept), len(scored), alpha)
    if why:
        sets_part: dict[str, Any] = {"possible": False, "why": why, "methods": {}, "per_class": []}
        sets_part |= {"by_lineage": [], "by_all_cells": []}
    else:
        sets_part = {"possible": True, "why": None, **_sets_part(kept, scored, taxonomy, alpha, seed, level)}
    risk = _risk_part(kept, scored, taxonomy, risks, confidence, level)
    return {**head, **sets_part, "risk_control": risk}


def _check(calibration: Predictions, test: Predictions, taxonomy: Taxonomy) -> None:
    for fold, predictions in (("calibration", calibration), ("test", test)):
        if predictions.classes != taxonomy.codes:
            raise DataError(
                f"predictions of the {fold} fold name the classes {', '.join(predictions.classes)}, the taxonomy "
                f"{', '.join(taxonomy.codes)}; score the fold again with this model"
            )
        broken = np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1))
        if len(broken):
            raise DataError(
                f"{fold} fold: {len(broken)} images have logits that are not finite, such as "
                f"{predictions.ids[broken[0]]}; score the fold again with a sound model"
            )
    if len(calibration) and len(test) and calibration.model_revision != test.model_revision:
        raise DataError(
            f"the calibration fold was scored by {calibration.model_revision}, the test fold by "
            f"{test.model_revision}; score both with one model"
        )


def _scaled(predictions: Predictions, scale: Scaling | None) -> Predictions:
    return predictions if scale is None else replace(predictions, logits=scale.apply(predictions.logits))


def _halves(scaling: int, conformal: int, seed: int, scale: Scaling | None) -> dict[str, Any]:
    method = scale.method if scale is not None else "none"
    used = {
        "none": "are set aside for scaling the probabilities, which are left as they are,",
        "temperature": "fit the temperature of the probabilities",
        "vector": "fit the vector scaling of the probabilities",
    }[method]
    sentence = (
        f"Of the calibration fold, {scaling:,} images {used} and {conformal:,} others, split by seed {seed}, make the "
        "sets and bounds."
    )
    return {
        "scaling_images": scaling,
        "images": conformal,
        "seed": seed,
        "is_scaled": method != "none",
        "sentence": sentence,
    }


def _obstacle(calibration: int, test: int, alpha: float) -> str | None:
    if not test:
        return "No set can be scored: the test fold has no labelled image."
    if calibration < (needed := cells_needed(alpha)):
        return (
            f"No sets: {calibration} calibration images are left for them, and at least {needed} are needed to hold "
            f"the true class in {100 * (1 - alpha):.0f} % of cells."
        )
    return None


def _sets_part(
    kept: Predictions, scored: Predictions, taxonomy: Taxonomy, alpha: float, seed: int, level: float
) -> dict[str, Any]:
    reasons: dict[str, str | None] = {
        name: why_no_marginal_sets(name, kept.labels, alpha, seed) for name in MARGINAL
    }
    refused = {name: why for name, why in reasons.items() if why}
    thresholds = class_thresholds(kept.logits, kept.labels, taxonomy, alpha)
    sets: dict[str, np.ndarray] = {
        name: _marginal(name, kept, scored, alpha, seed) for name in MARGINAL if name not in refused
    }
    sets[CLASS_SETS] = class_sets(scored.logits, thresholds)
    scores = {
        name: score_sets(inside, scored.labels, scored.groups, level=level).to_dict()
        for name, inside in sets.items()
    }
    expected = {"lac": promised_coverage(len(kept), alpha), "aps": promised_coverage(len(kept), alpha)}
    return {
        "methods": {
            name: {
                "title": title,
                "promise": _PROMISES[name],
                "why_not": refused.get(name),
                "expected": expected.get(name) if name not in refused else None,
                "scores": scores.get(name),
            }
            for name, title in _TITLES.items()
        },
        "per_class": [
            _class_row(label, thresholds[label], taxonomy, scored, sets, level)
            for label in range(len(taxonomy))
        ],
        "by_lineage": _fallbacks(thresholds, taxonomy, "lineage"),
        "by_all_cells": _fallbacks(thresholds, taxonomy, "all cells"),
    }


def _marginal(
    name: MarginalMethod, kept: Predictions, scored: Predictions, alpha: float, seed: int
) -> np.ndarray:
    given = probabilities(kept.logits), kept.labels, probabilities(scored.logits)
    return marginal_sets(name, *given, alpha=alpha, seed=seed)


def _class_row(
    label: int,
    threshold: ClassThreshold,
    taxonomy: Taxonomy,
    scored: Predictions,
    sets: dict[str, np.ndarray],
    level: float,
) -> dict[str, Any]:
    cell = taxonomy.classes[label]
    rows = np.flatnonzero(scored.labels == label)
    groups = [scored.groups[row] for row in rows]
    images = len(rows)
    measured: dict[str, Any] = {}
    for name, inside in sets.items():
        found = score_sets(inside[rows], scored.labels[rows], groups, level=level) if images else None
        measured[name] = {
            "coverage": found.coverage.to_dict() if found else None,
            "mean_size": found.mean_size if found else None,
        }
    return {
        "code": cell.code,
        "name": cell.name,
        "lineage": cell.lineage,
        "is_critical": cell.is_critical,
        "images": images,
        "is_few": images < FEW_IMAGES,
        "calibration_images": threshold.own_cells,
        "basis": threshold.basis,
        "basis_images": threshold.cells,
        # A threshold of other cells promises nothing for this class.
        "expected": threshold.promise if threshold.basis == "class" else None,
        "methods": measured,
    }


def _fallbacks(thresholds: list[ClassThreshold], taxonomy: Taxonomy, basis: str) -> list[dict[str, Any]]:
    return [
        {"code": t.code, "lineage": cell.lineage, "calibration_images": t.own_cells, "basis_images": t.cells}
        for t, cell in zip(thresholds, taxonomy.classes, strict=True)
        if t.basis == basis
    ]


def _risk_part(
    kept: Predictions,
    scored: Predictions,
    taxonomy: Taxonomy,
    risks: Sequence[float],
    confidence: float,
    level: float,
) -> dict[str, Any]:
    if not taxonomy.critical or not taxonomy.safe:
        why = f"The taxonomy {taxonomy.name!r} names no critical class or no safe one, so there is no risk to bound."
        return {"why": why, "confidence": confidence, "bounds": []}
    bounds = [bound_risk(kept.logits, kept.labels, taxonomy, risk, confidence) for risk in risks]
    return {
        "why": None,
        "confidence": confidence,
        "bounds": [_bound_row(bound, scored, taxonomy, level) for bound in bounds],
    }


def _bound_row(bound: RiskBound, scored: Predictions, taxonomy: Taxonomy, level: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "risk": bound.risk,
        "needed": bound.needed,
        "calibration_critical": bound.cells,
        "allowed": bound.allowed,
        # JSON knows no infinity.
        "bar": None if bound.bar is None or math.isinf(bound.bar) else bound.bar,
        "needs_no_review": bound.bar is not None and math.isinf(bound.bar),
        "refused": None,
        "test": None,
    }
    if bound.bar is None:
        row["refused"] = (
            f"Refused: {bound.cells} critical cells are left for it, and {bound.needed} are needed to bound the share "
            f"at {bound.risk:.3g} with {100 * bound.confidence:.0f} % confidence."
        )
    elif len(scored):
        row["test"] = _bound_on_test(bound.bar, scored, taxonomy, level)
    return row


def _bound_on_test(bar: float, scored: Predictions, taxonomy: Taxonomy, level: float) -> dict[str, Any]:
    kept_safe = stays_safe(scored.logits, taxonomy, bar)
    called_safe = np.isin(scored.predicted, taxonomy.safe)

    def share(hits: np.ndarray, of: np.ndarray) -> dict[str, Any] | None:
        rows = np.flatnonzero(of)
        if not len(rows):
            return None
        groups = [scored.groups[row] for row in rows]
        return cell_share(hits[rows], scored.labels[rows], groups, level=level).to_dict()

    critical = np.isin(scored.labels, taxonomy.critical)
    per_class = {
        taxonomy.codes[label]: {
            "images": int((scored.labels == label).sum()),
            "is_few": int((scored.labels == label).sum()) < FEW_IMAGES,
            "stay_safe": share(kept_safe, scored.labels == label),
        }
        for label in taxonomy.critical
    }
    return {
        "critical_images": int(critical.sum()),
        "stay_safe": share(kept_safe, critical),
        "called_safe": share(called_safe, critical),
        "to_review": share(called_safe & ~kept_safe, called_safe),
        "per_class": per_class,
    }
