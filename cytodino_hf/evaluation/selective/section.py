"""What a report says about abstaining: which score ranks mistakes last, and what a threshold keeps and lets through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ...taxonomy import Taxonomy
from ..calibration.artifact import Calibration
from ..calibration.halves import calibration_halves
from ..calibration.intervals import ENOUGH_MISTAKES, share_interval
from ..predictions import Predictions
from ..statistics import FEW_IMAGES
from .areas import areas_and_curves
from .review import review_list
from .risk_coverage import RiskCoverage
from .scores import SCORES, confidence_scores
from .thresholds import (
    CONFIDENCE,
    Threshold,
    assured_threshold,
    first_step,
    images_needed,
    threshold_for_accuracy,
    threshold_for_coverage,
)

#: Shares of the images to keep; 67 % is what CytoDINO claims 99.5 % accuracy on (arXiv 2512.17930).
COVERAGES = (0.5, 0.67, 0.8, 0.9, 0.95, 1.0)
#: Accuracies to ask for among the answers kept.
ACCURACIES = (0.95, 0.99, 0.995)
#: The one whose threshold the class table and the review list use.
ASKED = 0.995
_SHOWN_FOR_REVIEW = 20

_DEFAULT_SCORE = "max_probability"
_NO_FOLD = "there is no calibration fold with labelled images"


@dataclass(frozen=True)
class _Scored:
    """One fold with its scores and mistakes."""

    predictions: Predictions
    scores: dict[str, np.ndarray]
    wrong: np.ndarray
    is_critical: np.ndarray
    called_safe: np.ndarray


def selective_section(
    scored: Predictions,
    taxonomy: Taxonomy,
    calibration_fold: Predictions | None = None,
    calibration: Calibration | None = None,
    *,
    no_fold: str | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Selective prediction on one fold, with thresholds from the calibration fold.

    Args:
        scored: Of the test fold, as the model gave them.
        taxonomy: The classes, in label order.
        calibration_fold: As the model gave them; None or without label: no accuracy can be promised.
        calibration: Scales both first; thresholds then come from the half it was not fitted on.
        no_fold: Why there is no calibration fold, a sentence without its full stop; None says that there is none with
            labels.
        draws, seed, level: Of the bootstrap.

    Returns:
        `images`, `groups`, `is_calibrated`, `threshold_images`, `needed` (accuracy -> images without a mistake that
        would show it), `scores` (name -> `words`, `aurc`, `excess_aurc`, `critical`), `score_in_use` and `why`,
        `curves`, `at_coverage`, `at_accuracy`, `per_class`, `per_class_point`, `review`. `scores` is empty where no
        image has a label.

    Raises:
        DataError: Other classes, another model's calibration, or logits that are not finite.
    """
    _check(scored, taxonomy)
    if calibration is not None:
        scored = calibration.of(scored)
    chosen_on, gap = _threshold_rows(calibration_fold, calibration, taxonomy, no_fold or _NO_FOLD)
    known = scored.select(np.flatnonzero(scored.labels >= 0))
    fold, chooser = _score(known, taxonomy), _score(chosen_on, taxonomy) if chosen_on is not None else None
    section: dict[str, Any] = {
        "images": len(known),
        "groups": len({g for g in known.groups if g is not None}) or None,
        "group_kind": known.group_kind,
        "level": level,
        "draws": draws,
        "is_calibrated": calibration is not None and calibration.scaling.method != "none",
        "threshold_images": len(chosen_on) if chosen_on is not None else 0,
        "needed": {str(accuracy): images_needed(accuracy) for accuracy in ACCURACIES},
        "confidence": CONFIDENCE,
        "scores": {},
        "score_in_use": _DEFAULT_SCORE,
        "why": "No image of the scored fold has a label.",
        "curves": None,
        "at_coverage": [],
        "at_accuracy": [],
        "per_class": [],
        "per_class_point": None,
        "review": None,
    }
    if not len(known):
        return section
    in_use, why = _score_in_use(chooser, gap)
    areas, curves = areas_and_curves(
        known, fold.scores, fold.wrong, fold.is_critical, fold.called_safe, in_use, draws, seed, level
    )
    at_accuracy = _at_accuracy(fold, chooser, gap, level)
    point = _point(at_accuracy, in_use)
    return section | {
        "scores": areas,
        "score_in_use": in_use,
        "why": why,
        "curves": curves,
        "at_coverage": _at_coverage(fold, chooser, level),
        "at_accuracy": at_accuracy,
        "per_class": _per_class(fold, taxonomy, in_use, point, level),
        "per_class_point": point,
        "review": _review(scored, taxonomy, in_use, point),
    }


def _check(predictions: Predictions, taxonomy: Taxonomy) -> None:
    if predictions.classes != taxonomy.codes:
        raise DataError(
            f"predictions name the classes {', '.join(predictions.classes)}, the taxonomy "
            f"{', '.join(taxonomy.codes)}; give the taxonomy of the model"
        )
    broken = np.flatnonzero(~np.isfinite(predictions.logits).all(axis=1))
    if len(broken):
        raise DataError(
            f"{len(broken)} images have logits that are not finite, such as {predictions.ids[broken[0]]}; training "
            "diverged: lower training.learning_rate and train again"
        )


def _threshold_rows(
    fold: Predictions | None, calibration: Calibration | None, taxonomy: Taxonomy, no_fold: str
) -> tuple[Predictions | None, str]:
    """What thresholds are chosen on, labelled images that fitted no scaling; where there are none, why not."""
    if fold is None:
        return None, no_fold
    _check(fold, taxonomy)
    labelled = np.flatnonzero(fold.labels >= 0)
    if not len(labelled):
        return None, no_fold
    if calibration is None:
        return fold.select(labelled), ""
    scaling, rows = calibration_halves(fold, calibration.seed)
    if not len(rows):
        return None, (
            f"the calibration fold is too small: all {len(scaling)} labelled images of it are for scaling, and none is "
            "left for thresholds"
        )
    return calibration.of(fold.select(rows)), ""


def _score(predictions: Predictions, taxonomy: Taxonomy) -> _Scored:
    answers = predictions.predicted
    return _Scored(
        predictions,
        confidence_scores(predictions.logits, taxonomy),
        answers != predictions.labels,
        np.isin(predictions.labels, taxonomy.critical),
        np.isin(predictions.labels, taxonomy.critical) & np.isin(answers, taxonomy.safe),
    )


def _score_in_use(chooser: _Scored | None, gap: str) -> tuple[str, str]:
    words = SCORES[_DEFAULT_SCORE]
    if chooser is None:
        return _DEFAULT_SCORE, f"The {words} is used, for no score can be chosen: {gap}."
    if (wrong := int(chooser.wrong.sum())) < ENOUGH_MISTAKES:
        return (
            _DEFAULT_SCORE,
            f"The {words} is used: {wrong} mistakes on the calibration fold are too few to choose by.",
        )
    once = np.ones((1, len(chooser.wrong)))
    areas = {name: RiskCoverage(s, chooser.wrong).areas(once)[0][0] for name, s in chooser.scores.items()}
    best = min(areas, key=areas.__getitem__)
    return best, f"The {SCORES[best]} is used: it has the smallest AURC on the calibration fold."


def _outcome(fold: _Scored, score: str, value: float | None, level: float) -> dict[str, Any] | None:
    """What a threshold does on a fold; None where there is no threshold."""
    if value is None:
        return None
    groups = fold.predictions.groups

    def share(hits: np.ndarray, among: np.ndarray) -> dict[str, Any] | None:
        rows = np.flatnonzero(among)
        return share_interval(hits[rows], [groups[row] for row in rows], level=level)

    kept = fold.scores[score] >= value
    return {
        "coverage": share(kept, np.ones(len(kept), bool)),
        "accuracy": share(~fold.wrong, kept),
        "critical_coverage": share(kept, fold.is_critical),
        "critical_to_safe": share(fold.called_safe, kept & fold.is_critical),
    }


def _at_coverage(fold: _Scored, chooser: _Scored | None, level: float) -> list[dict[str, Any]]:
    # Without a calibration fold the fold's own scores serve: how many to keep is no question of labels.
    source = chooser or fold
    rows = []
    for score in fold.scores:
        for coverage in COVERAGES:
            value = threshold_for_coverage(source.scores[score], coverage).value
            if coverage == 1.0:
                value = min(
                    value or 0.0, float(fold.scores[score].min())
                )  # keeps every image, whatever the fold
            outcome = _outcome(fold, score, value, level)
            rows.append({"score": score, "asked": coverage, "threshold": value, "test": outcome})
    return rows


def _at_accuracy(fold: _Scored, chooser: _Scored | None, gap: str, level: float) -> list[dict[str, Any]]:
    rows = []
    for score in fold.scores:
        curve = RiskCoverage(chooser.scores[score], chooser.wrong) if chooser else None
        for accuracy in ACCURACIES:
            observed = threshold_for_accuracy(curve, accuracy) if curve else None
            assured = assured_threshold(curve, accuracy) if curve else None
            rows.append(
                {
                    "score": score,
                    "asked": accuracy,
                    "observed": _chosen(fold, score, observed, level),
                    "assured": _chosen(fold, score, assured, level),
                    "note": _support(accuracy, observed, assured, gap),
                }
            )
    return rows


def _chosen(fold: _Scored, score: str, threshold: Threshold | None, level: float) -> dict[str, Any] | None:
    if threshold is None or threshold.value is None:
        return None
    return {"calibration": asdict(threshold), "test": _outcome(fold, score, threshold.value, level)}


def _support(accuracy: float, observed: Threshold | None, assured: Threshold | None, gap: str) -> str | None:
    """What the calibration fold cannot support, in words; None where it supports what is asked."""
    asked, needed = f"{100 * accuracy:g} %", images_needed(accuracy)
    if observed is None or assured is None:
        return f"No threshold for {asked} can be chosen: {gap}."
    if assured.value is not None:
        return None
    short = (
        f"the {observed.of:,} calibration images for thresholds cannot show {asked}: {needed:,} without a mistake are "
        "needed"
        if observed.of < needed
        else f"the {first_step(observed.of, accuracy):,} surest calibration images hold too many mistakes to show "
        f"{asked}"
    )
    if observed.value is None:
        return f"No threshold reaches {asked} on the calibration fold; {short}."
    kept = f"{observed.kept:,} calibration image{'s' * (observed.kept != 1)} it keeps"
    return f"The threshold reaches {asked} on the {kept}, but without assurance: {short}."


def _point(at_accuracy: Sequence[dict[str, Any]], score: str) -> dict[str, Any] | None:
    """The threshold for the accuracy asked, assured where it can be; None where there is none."""
    row = next(r for r in at_accuracy if r["score"] == score and r["asked"] == ASKED)
    kind = "assured" if row["assured"] else "observed"
    if row[kind] is None:
        return None
    return {"score": score, "asked": ASKED, "kind": kind, "threshold": row[kind]["calibration"]["value"]}


def _per_class(
    fold: _Scored, taxonomy: Taxonomy, score: str, point: dict[str, Any] | None, level: float
) -> list[dict[str, Any]]:
    """Coverage and accuracy of each true class at the threshold; empty where there is none."""
    if point is None:
        return []
    kept = fold.scores[score] >= point["threshold"]
    labels, groups = fold.predictions.labels, fold.predictions.groups
    rows = []
    for k, cell in enumerate(taxonomy.classes):
        of_class = np.flatnonzero(labels == k)
        trusted = of_class[kept[of_class]]
        names = [groups[row] for row in trusted]
        rows.append(
            {
                "code": cell.code,
                "is_critical": cell.is_critical,
                "images": len(of_class),
                "few_images": len(of_class) < FEW_IMAGES,
                "coverage": share_interval(kept[of_class], [groups[row] for row in of_class], level=level),
                "accuracy": share_interval(~fold.wrong[trusted], names, level=level),
                "called_safe": share_interval(fold.called_safe[trusted], names, level=level)
                if cell.is_critical
                else None,
            }
        )
    return rows


def _review(
    scored: Predictions, taxonomy: Taxonomy, score: str, point: dict[str, Any] | None
) -> dict[str, Any] | None:
    if point is None:
        return None
    cells = review_list(scored, taxonomy, score=score, threshold=point["threshold"])
    return {"cells": len(cells), "of": len(scored), "first": [asdict(c) for c in cells[:_SHOWN_FOR_REVIEW]]}
