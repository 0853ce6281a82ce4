"""The calibration, the detector of strange images and the looks of the training images that belong to a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..data.appearance import APPEARANCE_FILE, Appearance
from ..errors import ModelUnavailableError
from ..evaluation.calibration.artifact import CALIBRATION_FILE, Calibration
from ..evaluation.companions import BoundCompanions
from ..evaluation.ood.detector import OOD_FILE, OodDetector
from ..evaluation.scoring import ScoredBatch
from ..files import file_sha256
from .models import ModelPlace


def load_calibration(place: ModelPlace, classes: tuple[str, ...]) -> Calibration:
    """The calibration that was stored beside a model.

    Args:
        place: Of the model.
        classes: Its class codes in label order.

    Raises:
        ModelUnavailableError: It has none, or another file lies in its place.
        DataError: It cannot be read, or was fitted for other weights or another label order; names both.
    """
    calibration = load_stored_calibration(place, classes)
    if calibration is None:
        raise ModelUnavailableError(
            f"model {place.name} has no {CALIBRATION_FILE}: ask for its answers uncalibrated, or train it with a "
            "calibration fold (data.fractions.calibration)"
        )
    return calibration


def load_stored_calibration(place: ModelPlace, classes: tuple[str, ...]) -> Calibration | None:
    """`load_calibration`, or None where the model has none."""
    bound = BoundCompanions.of(place.config)
    file = _file(place, bound, CALIBRATION_FILE)
    if file is None:
        return None
    calibration = Calibration.load(file)
    calibration.check(_revision(place, bound, CALIBRATION_FILE), classes)
    bound.check(place.name, CALIBRATION_FILE, file)
    return calibration


def load_detector(place: ModelPlace, classes: tuple[str, ...]) -> OodDetector | None:
    """What tells images unlike those the model knows; None where the model has nothing that does.

    Args:
        place: Of the model.
        classes: Its class codes in label order.

    Raises:
        ModelUnavailableError: Another file lies in its place.
        WeightsFileError: It is damaged, or was fitted for other weights or another label order; names both.
    """
    bound = BoundCompanions.of(place.config)
    file = _file(place, bound, OOD_FILE)
    if file is None:
        return None
    detector = OodDetector.load(file, model_revision=_revision(place, bound, OOD_FILE), classes=classes)
    bound.check(place.name, OOD_FILE, file)
    return detector


def load_appearance(place: ModelPlace) -> Appearance | None:
    """What the images the model was trained on look like; None where nobody measured it.

    Raises:
        ModelUnavailableError: Another file lies in its place.
        DataError: It cannot be read.
    """
    bound = BoundCompanions.of(place.config)
    file = _file(place, bound, APPEARANCE_FILE)
    if file is None:
        return None
    bound.check(place.name, APPEARANCE_FILE, file)
    return Appearance.read(file)


def detector_digest(place: ModelPlace) -> str:
    """sha256 of the detector of a model; empty where it has none."""
    file = _file(place, BoundCompanions.of(place.config), OOD_FILE)
    return file_sha256(file) if file is not None else ""


def strange_pictures(detector: OodDetector | None, scored: Sequence[ScoredBatch]) -> list[bool | None]:
    """Which pictures of some batches are unlike those the model knows, by its own uncalibrated answers.

    Args:
        detector: Of `load_detector`; without one nothing is known of any picture.
        scored: With finite answers.
    """
    batches = [batch for batch in scored if len(batch.rows)]
    if detector is None or not batches:
        return [None for batch in batches for _ in batch.rows]
    logits = np.concatenate([batch.logits for batch in batches])
    embeddings = np.concatenate([batch.embeddings for batch in batches])
    found: list[bool | None] = detector.is_out(detector.scores(logits, embeddings)).tolist()
    return found


def _revision(place: ModelPlace, bound: BoundCompanions, name: str) -> str:
    """The weights a file must have been fitted for: those that were bound with it, else the model's own."""
    return str(bound.revision) if name in bound.sha256 else place.revision()


def _file(place: ModelPlace, bound: BoundCompanions, name: str) -> Path | None:
    if name not in bound.sha256:
        # Only what is bound is published, so the Hub need not be asked.
        own = Path(place.name) / name
        return own if place.commit is None and own.is_file() else None
    file = place.file(name)
    if file is None:
        raise ModelUnavailableError(
            f"model {place.name}: {name}, which belongs to it, is missing; fetch the model anew"
        )
    return file
