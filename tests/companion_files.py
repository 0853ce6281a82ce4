"""Calibration, detector and looks beside a copy of a RUN, with numbers that a test can work out by itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from cytodino_hf.data.appearance import APPEARANCE_FILE, Appearance
from cytodino_hf.evaluation.calibration.artifact import Calibration, ids_digest
from cytodino_hf.evaluation.calibration.scaling import Scaling
from cytodino_hf.evaluation.companions import bind_companions
from cytodino_hf.evaluation.ood.detector import OOD_FILE, OodDetector
from cytodino_hf.evaluation.predictions import Predictions, read_embeddings

SCALE, BIAS = (0.5, 1.5, 0.8), (0.3, -0.2, 0.1)
#: Thresholds of scores that do not decide.
OTHERS = {"max_softmax": 1.0, "energy": 0.0, "knn": 0.5}


def with_companions(run: Path, to: Path) -> Path:
    """A copy of a RUN of three classes with all three files; half of the known embeddings lie beyond the threshold."""
    shutil.copytree(run, to)
    scored = Predictions.from_parquet(to / "predictions" / "test.parquet")
    classes, revision = scored.classes, scored.model_revision
    scaling = Scaling("vector", np.array(SCALE), np.array(BIAS), None)
    Calibration(
        scaling, classes, revision, len(scored), ids_digest(scored.ids), 0, "fixed by a test", {}
    ).save(to)
    known = read_embeddings(to / "predictions" / "embeddings.parquet")[1]
    OodDetector(
        revision, classes, {"mahalanobis": threshold(known), **OTHERS}, 0.5, "the test fold", len(known), len(known),
        bank=known.astype(np.float16), means=known[:1], whitening=np.eye(known.shape[1], dtype=np.float32),
    ).save(to / OOD_FILE)  # fmt: skip
    Appearance((60.0, 10.0, -5.0), (12.0, 5.0, 4.0), 14.0, 32, 30).write(to / APPEARANCE_FILE)
    bind_companions(to)
    return to


def distances(known: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Squared distance to the first known row, float64, without any of the package's own code."""
    apart: np.ndarray = ((embeddings.astype(np.float64) - known[0].astype(np.float64)) ** 2).sum(axis=1)
    return apart


def threshold(known: np.ndarray) -> float:
    """Half-way in the widest gap among the middle distances, so that no rounding decides."""
    found = np.sort(distances(known, known))
    middle = found[len(found) // 4 : 3 * len(found) // 4]
    place = np.diff(middle).argmax()
    return float(middle[place : place + 2].mean())
