"""What a report says about calibration: before and after scaling, on images that decided nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ...errors import DataError
from ..predictions import Predictions
from ..statistics import ENOUGH_IMAGES
from .artifact import Calibration
from .errors import ece_of_perfect_calibration, reliability_bins
from .halves import calibration_halves
from .stages import calibration_metrics


def calibration_section(
    scored: Predictions,
    calibration: Calibration | None,
    calibration_fold: Predictions | None = None,
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Calibration of one fold's answers, before and after scaling.

    Args:
        scored: Of the test fold, as the model gave them; images without label are left out.
        calibration: Fitted on the calibration fold (`fit_calibration`); None where there is no such fold. One read from
            a file knows the chosen method alone.
        calibration_fold: Its predictions, to say how it was halved.
        draws, seed, level: Of the bootstrap.

    Returns:
        `images`, `groups`, `calibration` (content of `calibration.json` or None), `method` (the chosen one), `reason`,
        `tried` (what was fitted: method -> `is_chosen`, `temperature`, `cross_validated_nll`, `changed_answers`),
        `vector_needs` (why vector scaling was not fitted), `halves`, `metrics` and `per_class` (see
        `calibration_metrics`), `perfect` (see `ece_of_perfect_calibration`), `reliability` (`before`, `after`),
        `changed_answers`. What is `after` is of the chosen method, None where nothing is scaled. `metrics` is empty
        where no image has a label.

    Raises:
        DataError: The calibration belongs to another model, or logits are not finite.
    """
    known = scored.select(np.flatnonzero(scored.labels >= 0))
    _check(known)
    method = calibration.scaling.method if calibration else None
    scaled = _scaled(known, calibration)
    after = scaled.get(method or "")
    section: dict[str, Any] = {
        "images": len(known),
        "groups": len({g for g in known.groups if g is not None}) or None,
        "group_kind": known.group_kind,
        "level": level,
        "draws": draws,
        "calibration": calibration.to_dict() if calibration else None,
        "method": method,
        "reason": calibration.reason
        if calibration
        else "There is no calibration fold with labelled images, so nothing was scaled.",
        "tried": _tried(known, scaled, calibration),
        "vector_needs": f"fewer than two classes have the {ENOUGH_IMAGES} images it needs"
        if calibration and calibration.tried and "vector" not in scaled
        else None,
        "halves": _halves(calibration, calibration_fold),
        "metrics": {},
        "perfect": {},
        "per_class": [],
        "reliability": {"before": [], "after": None},
        "changed_answers": None,
    }
    if not len(known):
        return section
    metrics, per_class = calibration_metrics(known, scaled, method, draws=draws, seed=seed, level=level)
    stages = {"before": known, "after": after}
    return section | {
        "metrics": metrics,
        "per_class": per_class,
        "perfect": {name: _perfect(p, seed) for name, p in stages.items()},
        "reliability": {
            name: [asdict(b) for b in reliability_bins(p.logits, p.labels, p.groups, level)] if p else None
            for name, p in stages.items()
        },
        "changed_answers": int((after.predicted != known.predicted).sum()) if after else None,
    }


def _scaled(known: Predictions, calibration: Calibration | None) -> dict[str, Predictions]:
    """Method -> the answers after it, of all that were fitted; a file holds the chosen one alone."""
    if calibration is None:
        return {}
    calibrated = calibration.of(known)
    fits = dict(calibration.tried) or {calibration.scaling.method: calibration.scaling}
    fits.pop("none", None)
    return {method: replace(calibrated, logits=fit.apply(known.logits)) for method, fit in fits.items()}


def _tried(
    known: Predictions, scaled: Mapping[str, Predictions], calibration: Calibration | None
) -> dict[str, dict[str, Any]]:
    if calibration is None:
        return {}
    fits = {calibration.scaling.method: calibration.scaling, **calibration.tried}
    return {
        method: {
            "is_chosen": method == calibration.scaling.method,
            "temperature": fits[method].temperature,
            "cross_validated_nll": calibration.cross_validated.get(method),
            "changed_answers": int((answers.predicted != known.predicted).sum()),
        }
        for method, answers in scaled.items()
    }


def _check(known: Predictions) -> None:
    broken = np.flatnonzero(~np.isfinite(known.logits).all(axis=1))
    if len(broken):
        raise DataError(
            f"{len(broken)} images have logits that are not finite, such as {known.ids[broken[0]]}; training diverged: "
            "lower training.learning_rate and train again"
        )


def _halves(calibration: Calibration | None, fold: Predictions | None) -> dict[str, Any] | None:
    if calibration is None or fold is None:
        return None
    scaling, conformal = calibration_halves(fold, calibration.seed)
    return {"seed": calibration.seed, "scaling": len(scaling), "conformal": len(conformal)}


def _perfect(predictions: Predictions | None, seed: int) -> dict[str, float] | None:
    if predictions is None:
        return None
    mean, high = ece_of_perfect_calibration(predictions.logits, seed=seed)
    return {"mean": mean, "high": high}
