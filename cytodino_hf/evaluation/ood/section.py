"""The part of a report on images unlike those the model knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import DataError
from ..conformal.coverage import cell_share
from ..predictions import Predictions
from ..statistics import FEW_IMAGES
from .detector import OodDetector
from .embedded import EmbeddedFold
from .scores import SCORES
from .separation import ImageSet, roc_points, separations

#: As reports name the scores.
TITLES = {
    "max_softmax": "max softmax",
    "energy": "energy",
    "knn": "nearest neighbours",
    "mahalanobis": "Mahalanobis",
}
#: Key of the set that holds the images of all left-out classes.
ALL_LEFT_OUT = "all left-out classes"
_BINS = 40


def ood_section(
    detector: OodDetector,
    test: EmbeddedFold,
    train_classes: Sequence[str],
    *,
    outside: Mapping[str, EmbeddedFold] | None = None,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Score the test fold and other images, and say how well each score tells them apart.

    Args:
        detector: Fitted for this model.
        test: The test fold. Images of classes outside `train_classes` are strange, one set a class and all together.
        train_classes: Codes of the classes with an image in the training fold.
        outside: Name -> images of another source, or of classes that were left out, scored by the same model. They need
            no label, and may be of other classes.
        draws, seed, level: Of the intervals.

    Returns:
        Plain values. `sets` is empty where there is nothing strange to tell apart, and `why` says so.

    Raises:
        DataError: A set was scored by another model than the detector was fitted for.
    """
    outside = outside or {}
    for name, fold in {"the test fold": test, **outside}.items():
        if len(fold) and fold.predictions.model_revision != detector.model_revision:
            raise DataError(
                f"{name} was scored by {fold.predictions.model_revision}, the detector fitted for "
                f"{detector.model_revision}; score both with one model"
            )
    codes = test.predictions.classes
    trained = [label for label, code in enumerate(codes) if code in set(train_classes)]
    is_known = np.isin(test.predictions.labels, trained)
    whole = _scored(detector, test)
    mine = _rows(whole, is_known)
    scored = {name: _rows(whole, rows) for name, rows in _left_out(test.predictions, is_known).items()}
    scored |= {name: _scored(detector, fold) for name, fold in outside.items() if len(fold)}
    shared = [name for name in SCORES if all(name in part.scores for part in (mine, *scored.values()))]
    mine, scored = _only(mine, shared), {name: _only(part, shared) for name, part in scored.items()}
    why = _why_nothing(len(mine), len(scored))
    apart = {} if why else separations(mine, scored, draws=draws, seed=seed, level=level)
    return {
        "level": level,
        "deciding": next((name for name in (detector.deciding, *shared) if name in shared), None),
        "fitted_on": detector.fitted_on,
        "fitted_images": detector.fitted_images,
        "threshold_images": detector.threshold_images,
        "called_out": detector.called_out,
        "thresholds": {name: detector.thresholds[name] for name in shared},
        "scores": {name: TITLES[name] for name in shared},
        "known_images": len(mine),
        "known_called_out": _called_out(detector, mine, level) if len(mine) else None,
        "why": why,
        "sets": {
            name: {
                "kind": _kind(name, outside),
                "images": len(part),
                "is_few": len(part) < FEW_IMAGES,
                "called_out": _called_out(detector, part, level),
                "scores": {
                    score: {
                        "auroc": apart[name][score].auroc.to_dict(),
                        "fpr95": apart[name][score].fpr95.to_dict(),
                        "roc": roc_points(mine.scores[score], part.scores[score]),
                    }
                    for score in (shared if name in apart else ())
                },
            }
            for name, part in scored.items()
        },
        "histograms": {score: _histogram(score, mine, scored) for score in (shared if len(mine) else ())},
    }


def _left_out(test: Predictions, is_known: np.ndarray) -> dict[str, np.ndarray]:
    """Labelled images of classes the model never saw: by class, and together where there are several."""
    is_strange = ~is_known & (test.labels >= 0)
    present = np.unique(test.labels[is_strange])
    found = {test.classes[label]: test.labels == label for label in present}
    if len(present) > 1:
        found[ALL_LEFT_OUT] = is_strange
    return found


def _scored(detector: OodDetector, fold: EmbeddedFold) -> ImageSet:
    predictions = fold.predictions
    scores = detector.scores(predictions.logits, fold.embeddings)
    return ImageSet(scores, predictions.labels, predictions.groups)


def _kind(name: str, outside: Mapping[str, EmbeddedFold]) -> str:
    """`given`, `classes` (all that were left out) or `class` (one of them)."""
    if name in outside:
        return "given"
    return "classes" if name == ALL_LEFT_OUT else "class"


def _rows(part: ImageSet, chosen: np.ndarray) -> ImageSet:
    groups = [part.groups[row] for row in np.flatnonzero(chosen).tolist()]
    return ImageSet({name: one[chosen] for name, one in part.scores.items()}, part.labels[chosen], groups)


def _only(part: ImageSet, names: Sequence[str]) -> ImageSet:
    return ImageSet({name: part.scores[name] for name in names}, part.labels, part.groups)


def _why_nothing(known: int, strange: int) -> str | None:
    if not known:
        return "No image of a training class is in the test fold, so nothing can be told apart."
    if not strange:
        return (
            "No class was left out of the training and no other source was given, so how well strange images are told "
            "apart was not measured."
        )
    return None


def _called_out(detector: OodDetector, part: ImageSet, level: float) -> dict[str, Any]:
    """Score -> share of the images above its threshold."""
    flags = detector.flags(part.scores)
    return {
        name: cell_share(flag, part.labels, part.groups, level=level).to_dict()
        for name, flag in flags.items()
    }


def _histogram(score: str, known: ImageSet, strange: Mapping[str, ImageSet]) -> dict[str, Any]:
    """Shares of images by bin; the ends hold what lies beyond the middle 99 % of each set."""
    values = {"known": known.scores[score], **{name: part.scores[score] for name, part in strange.items()}}
    ends = np.array([np.quantile(one, [0.005, 0.995]) for one in values.values()])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    shares = {
        name: (np.histogram(np.clip(one, edges[0], edges[-1]), edges)[0] / len(one)).tolist()
        for name, one in values.items()
    }
    known_shares = shares.pop("known")
    return {"edges": edges.tolist(), "known": known_shares, "sets": shares}
