"""What is fitted on the calibration fold and kept beside a model: the scaling of its logits, what calls images out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError
from .calibration.artifact import CALIBRATION_FILE, Calibration, fit_calibration
from .ood.detector import OOD_FILE, OodDetector
from .ood.embedded import EmbeddedFold
from .predictions import Predictions, foreign_embeddings, read_embeddings
from .threads import one_thread

logger = logging.getLogger(__name__)

_NO_FOLD = "there is no calibration fold"


@dataclass(frozen=True)
class Fitted:
    """A scaling and a detector, or why there is none.

    Args:
        calibration: None where the calibration fold has no labelled image.
        detector: None where it is too small to set a threshold.
        gaps: File that is not there -> why, a sentence without its full stop.
    """

    calibration: Calibration | None = None
    detector: OodDetector | None = None
    gaps: Mapping[str, str] = field(default_factory=dict)

    def save(self, folder: Path, lost: Mapping[str, str] | None = None) -> None:
        """Write the files of `fit` beside a model; one that cannot be fitted is not left there from before.

        Args:
            folder: Of the model.
            lost: File -> what it was fitted on and is missing now; such a file, where it is there, stays as it is.
        """
        kept = {name: why for name, why in (lost or {}).items() if (folder / name).is_file()}
        for name, why in kept.items():
            logger.warning("%s stays as it is: %s is missing, which it was fitted on", folder / name, why)
        if CALIBRATION_FILE not in kept:
            if self.calibration is not None:
                self.calibration.save(folder)
            else:
                (folder / CALIBRATION_FILE).unlink(missing_ok=True)
        if OOD_FILE not in kept:
            if self.detector is not None:
                self.detector.save(folder / OOD_FILE)
            else:
                (folder / OOD_FILE).unlink(missing_ok=True)


@one_thread()
def fit(
    predictions: Mapping[str, Predictions],
    embeddings: Mapping[str, np.ndarray],
    train_classes: Sequence[str],
    seed: int = 0,
) -> Fitted:
    """Fit on the calibration fold; what known cells look like is learnt from the validation fold where there is one.

    To the detector, images of classes outside `train_classes` are strange, so it learns nothing from them. The scaling
    keeps them: what it makes of probabilities, as what conformal sets promise, holds for images drawn as those of the
    fold were, and such classes will be among them again. Without them, both would promise too much.

    Args:
        predictions: Fold -> predictions as the model gave them.
        embeddings: Fold -> float32 (images, width), rows as the predictions; folds may be missing.
        train_classes: Codes of the classes with an image in the training fold.
        seed: Of the halves of the calibration fold.

    Raises:
        DataError: Logits or embeddings are broken, or folds are of two models.
    """
    fold = predictions.get("calibration")
    if fold is None or not len(fold):
        return Fitted(gaps={CALIBRATION_FILE: _NO_FOLD, OOD_FILE: _NO_FOLD})
    if fold.calibration is not None:
        done = "these answers were calibrated before"
        return Fitted(gaps={CALIBRATION_FILE: done, OOD_FILE: done})
    gaps: dict[str, str] = {}
    calibration = detector = None
    if (fold.labels >= 0).any():
        calibration = fit_calibration(fold, seed)
    else:
        gaps[CALIBRATION_FILE] = "no image of the calibration fold has a label"
    validation = predictions.get("validation")
    known = None
    if validation is not None and "validation" in embeddings and (validation.labels >= 0).sum() > 1:
        known = EmbeddedFold(validation, embeddings["validation"])
    try:
        detector = OodDetector.fit(
            EmbeddedFold(fold, embeddings.get("calibration")), known, train_classes=train_classes, seed=seed
        )
    except DataError as error:
        gaps[OOD_FILE] = str(error)
    return Fitted(calibration, detector, gaps)


def embeddings_by_fold(path: Path, predictions: Mapping[str, Predictions]) -> dict[str, np.ndarray]:
    """The embeddings of each fold, rows as its predictions.

    Args:
        path: As `write_embeddings` writes it; a missing file gives nothing.
        predictions: Fold -> predictions; folds whose images are not in the file are left out, and with a warning those
            of other weights, or of pictures that were prepared in another way.
    """
    if not path.is_file():
        return {}
    why = {fold: foreign_embeddings(path, one) for fold, one in predictions.items()}
    for reason in sorted({reason for reason in why.values() if reason is not None}):
        logger.warning("%s is left aside: %s", path, reason)
    ids, embeddings = read_embeddings(path)
    there = set(ids)
    return {
        fold: joined
        for fold, one in predictions.items()
        if why[fold] is None
        and there.issuperset(one.ids)
        and (joined := EmbeddedFold.joined(one, ids, embeddings).embeddings) is not None
    }
