"""What is fitted on the calibration fold and kept beside a model: the scaling of its logits, what calls images out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import DataError
from .calibration.artifact import CALIBRATION_FILE, Calibration, fit_calibration
from .ood.detector import OOD_FILE, OodDetector
from .ood.embedded import EmbeddedFold
from .predictions import Predictions, read_embeddings

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

    def save(self, folder: Path) -> None:
        """Write the files of `fit` beside a model; one that cannot be fitted is not left there from before."""
        if self.calibration is not None:
            self.calibration.save(folder)
        else:
            (folder / CALIBRATION_FILE).unlink(missing_ok=True)
        if self.detector is not None:
            self.detector.save(folder / OOD_FILE)
        else:
            (folder / OOD_FILE).unlink(missing_ok=True)


def fit(
    predictions: Mapping[str, Predictions], embeddings: Mapping[str, np.ndarray], seed: int = 0
) -> Fitted:
    """Fit on the calibration fold; what known cells look like is learnt from the validation fold where there is one.

    Args:
        predictions: Fold -> predictions as the model gave them.
        embeddings: Fold -> float32 (images, width), rows as the predictions; folds may be missing.
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
        detector = OodDetector.fit(EmbeddedFold(fold, embeddings.get("calibration")), known, seed=seed)
    except DataError as error:
        gaps[OOD_FILE] = str(error)
    return Fitted(calibration, detector, gaps)


def embeddings_by_fold(path: Path, predictions: Mapping[str, Predictions]) -> dict[str, np.ndarray]:
    """The embeddings of each fold, rows as its predictions.

    Args:
        path: As `write_embeddings` writes it; a missing file gives nothing.
        predictions: Fold -> predictions; folds whose images are not in the file are left out.
    """
    if not path.is_file():
        return {}
    ids, embeddings = read_embeddings(path)
    there = set(ids)
    return {
        fold: joined
        for fold, one in predictions.items()
        if there.issuperset(one.ids)
        and (joined := EmbeddedFold.joined(one, ids, embeddings).embeddings) is not None
    }
