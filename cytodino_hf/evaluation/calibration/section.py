"""What a report says about calibration: before and after scaling, on images that decided nothing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ...errors import DataError
from ..predictions import Predictions
from ..resampling import draw_weights
from ..statistics import FEW_IMAGES
from .artifact import Calibration
from .errors import CALIBRATION_METRICS, CalibrationErrors, ece_of_perfect_calibration, reliability_bins
from .halves import calibration_halves
from .intervals import share_interval, shifted_interval

#: Largest value of each metric.
_UPPER = {"nll": np.inf, "brier": 2.0, "ece": 1.0, "ece_adaptive": 1.0, "ece_classwise": 1.0, "accuracy": 1.0}


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
        calibration: Fitted on the calibration fold (`fit_calibration`); None where there is no such fold.
        calibration_fold: Its predictions, to say how it was halved.
        draws, seed, level: Of the bootstrap.

    Returns:
        `images`, `groups`, `calibration` (content of `calibration.json` or None), `method`, `reason`, `halves`,
        `metrics` (name -> `before`, `after`, `difference`), `perfect` (see `ece_of_perfect_calibration`), `per_class`,
        `reliability` (`before`, `after`), `changed_answers`. What is `after` is None where nothing is scaled. `metrics`
        is empty where no image has a label.

    Raises:
        DataError: The calibration belongs to another model, or logits are not finite.
    """
    known = scored.select(np.flatnonzero(scored.labels >= 0))
    after = _after(known, calibration)
    section: dict[str, Any] = {
        "images": len(known),
        "groups": len({g for g in known.groups if g is not None}) or None,
        "group_kind": known.group_kind,
        "level": level,
        "draws": draws,
        "calibration": calibration.to_dict() if calibration else None,
        "method": calibration.scaling.method if calibration else None,
        "reason": calibration.reason
        if calibration
        else "There is no calibration fold with labelled images, so nothing was scaled.",
        "halves": _halves(calibration, calibration_fold),
        "metrics": {},
        "perfect": {},
        "per_class": [],
        "reliability": {"before": [], "after": None},
        "changed_answers": None,
    }
    if not len(known):
        return section
    _check(known)
    metrics, per_class = _metrics(known, after, draws, seed, level)
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


def _after(known: Predictions, calibration: Calibration | None) -> Predictions | None:
    if calibration is None:
        return None
    calibrated = calibration.of(known)
    return None if calibration.scaling.method == "none" else calibrated


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


def _metrics(
    known: Predictions, after: Predictions | None, draws: int, seed: int, level: float
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    stages = [CalibrationErrors(p.logits, p.labels) for p in (known, after) if p is not None]
    once = [scorer.sums(np.ones((1, len(known)))) for scorer in stages]
    parts = [
        [s.sums(weights) for s in stages] for weights in draw_weights(known.labels, known.groups, draws, seed)
    ]
    again = [np.concatenate([part[i] for part in parts]) for i in range(len(stages))]
    values = [s.values_of(sums) for s, sums in zip(stages, once, strict=True)]
    drawn = [s.values_of(sums) for s, sums in zip(stages, again, strict=True)]
    biases = [s.largest_biases(*pair) for s, *pair in zip(stages, once, again, strict=True)]
    n = len(known)

    def entry(value: list[float], draw: list[np.ndarray], bias: list[float], upper: float) -> dict[str, Any]:
        ends = [
            shifted_interval(v, d, n, level=level, bounds=(0.0, upper), biases=(b, 0.0))
            for v, d, b in zip(value, draw, bias, strict=True)
        ]
        if len(ends) == 1:
            return {"before": ends[0], "after": None, "difference": None}
        difference = shifted_interval(
            value[1] - value[0], draw[1] - draw[0], n, level=level, biases=(bias[1], bias[0])
        )
        return {"before": ends[0], "after": ends[1], "difference": difference}

    metrics = {
        name: entry(
            [float(v[0][name][0]) for v in values],
            [d[0][name] for d in drawn],
            [b[0].get(name, 0.0) for b in biases],
            _UPPER[name],
        )
        for name in CALIBRATION_METRICS
    }
    # A fold without a mistake looks the same in every draw: only Wilson's interval does not collapse there.
    for stage, predictions in (("before", known), ("after", after)):
        if predictions is not None:
            right = predictions.predicted == predictions.labels
            metrics["accuracy"][stage] = share_interval(right, known.groups, level=level)
    images = np.bincount(known.labels, minlength=len(known.classes))
    per_class = [
        {
            "code": code,
            "images": int(images[k]),
            "few_images": bool(images[k] < FEW_IMAGES),
            **entry(
                [float(v[1][0, k]) for v in values],
                [d[1][:, k] for d in drawn],
                [float(b[1][k]) for b in biases],
                1.0,
            ),
        }
        for k, code in enumerate(known.classes)
    ]
    return metrics, per_class
