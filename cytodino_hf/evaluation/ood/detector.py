"""What calls an image unlike the known cells: fitted on labelled images, stored beside the model without pickle.

The thresholds come from images that were not fitted on: a new image of the known kind lies above with a probability of
at most the share that was asked for (`conformal.thresholds.conformal_threshold`).

`ood.safetensors` holds the kept embeddings of `knn` (float16, at most `scores.BANK_ROWS`, by class), the class means
and the whitening matrix of `mahalanobis` (float32), and in its metadata the thresholds and the model they belong to.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, WeightsFileError
from ...files import whole_file
from ..calibration.halves import calibration_halves
from ..conformal.thresholds import cells_needed, conformal_threshold
from ..predictions import Predictions
from . import scores as formulas
from .embedded import EmbeddedFold

OOD_FILE = "ood.safetensors"
FORMAT = 1
#: Share of images of the known kind that may be called out.
CALLED_OUT = 0.05
#: The score whose threshold decides, the first that the detector has. On real cells `mahalanobis` told left-out classes
#: and another source apart better than `knn` in seven of seven comparisons (RESULTS.md, Strange images).
DECIDING = ("mahalanobis", "knn", "energy", "max_softmax")

_KEY = "cytodino_ood"
_TENSORS = ("bank", "means", "whitening")


@dataclass(frozen=True)
class OodDetector:
    """Scores of strangeness with their thresholds, for one model.

    Args:
        model_revision: The weights whose answers are scored.
        classes: Their class codes in label order.
        thresholds: Score -> what lies above it is called out.
        called_out: Share of images of the known kind that may be.
        fitted_on: Name of the fold, or part of it, whose embeddings are known.
        fitted_images, threshold_images: How many images were fitted on, and how many set the thresholds.
        bank: float16 (known, width), rows of length 1; None without embeddings.
        means: float32 (classes present, width).
        whitening: float32 (width, width).
    """

    model_revision: str
    classes: tuple[str, ...]
    thresholds: Mapping[str, float]
    called_out: float
    fitted_on: str
    fitted_images: int
    threshold_images: int
    bank: np.ndarray | None = None
    means: np.ndarray | None = None
    whitening: np.ndarray | None = None

    @property
    def deciding(self) -> str:
        """The score that `is_out` goes by."""
        return next(name for name in DECIDING if name in self.thresholds)

    @classmethod
    def fit(
        cls,
        calibration: EmbeddedFold,
        known: EmbeddedFold | None = None,
        *,
        train_classes: Sequence[str] | None = None,
        called_out: float = CALLED_OUT,
        seed: int = 0,
    ) -> OodDetector:
        """Learn what the known cells look like, and where to call an image out.

        Args:
            calibration: The calibration fold; the half of it that is kept for conformal prediction sets the thresholds
                (`calibration_halves` of the same seed).
            known: Labelled images the model knows or was chosen on, with embeddings, such as the validation fold. None
                takes the other half of the calibration fold.
            train_classes: Codes of the classes with an image in the training fold; images of others teach nothing and
                set no threshold. None: all.
            called_out: Share of images of the known kind that may be called out.
            seed: Of the halves and of the embeddings that are kept.

        Raises:
            DataError: Too few images, or folds of two models.
        """
        first, second = calibration_halves(calibration.predictions, seed)
        if known is None:
            known, fitted_on = calibration.select(first), "a half of the calibration fold"
        else:
            fitted_on = f"the {_fold_name(known.predictions)} fold"
        classes = calibration.predictions.classes if train_classes is None else train_classes
        known, rest = _of_classes(known, classes), _of_classes(calibration.select(second), classes)
        _check_folds(known, rest, cells_needed(called_out))
        has_embeddings = known.embeddings is not None and rest.embeddings is not None
        parts = _fit_embeddings(known, seed) if has_embeddings else {}
        unset = cls(
            model_revision=rest.predictions.model_revision,
            classes=rest.predictions.classes,
            thresholds={},
            called_out=called_out,
            fitted_on=fitted_on,
            fitted_images=len(known),
            threshold_images=len(rest),
            **parts,
        )
        found = unset.scores(rest.predictions.logits, rest.embeddings)
        limits = {name: conformal_threshold(values, called_out) for name, values in found.items()}
        thresholds = {name: value for name, value in limits.items() if value is not None}
        return cls(**{**vars(unset), "thresholds": thresholds})

    def scores(self, logits: np.ndarray, embeddings: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Score -> float64 (images,), higher the stranger.

        Args:
            logits: (images, classes) of this model, not calibrated.
            embeddings: (images, width) of its head; without them only the scores of logits.

        Raises:
            DataError: Embeddings of another width, or values that are not finite.
        """
        found = formulas.logit_scores(logits)
        if embeddings is not None and self.bank is not None:
            if embeddings.shape != (len(logits), self.bank.shape[1]):
                raise DataError(
                    f"embeddings {embeddings.shape} of {len(logits)} images do not fit a detector of width "
                    f"{self.bank.shape[1]}; take those of the model it was fitted for"
                )
            assert self.means is not None
            assert self.whitening is not None
            found["knn"] = formulas.knn_distance(self.bank, embeddings)
            found["mahalanobis"] = formulas.mahalanobis_distance(self.whitening, self.means, embeddings)
        for name, values in found.items():
            if not np.isfinite(values).all():
                row = int(np.flatnonzero(~np.isfinite(values))[0])
                raise DataError(f"{name} of image {row} is not finite; its logits or embedding are broken")
        return found

    def flags(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Score -> bool (images,): which images lie above its threshold."""
        return {name: scores[name] > limit for name, limit in self.thresholds.items() if name in scores}

    def is_out(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which images are called out by the deciding score, bool (images,)."""
        return self.flags(scores)[
            next(name for name in DECIDING if name in scores and name in self.thresholds)
        ]

    def save(self, path: Path) -> None:
        """Write `ood.safetensors`; the same detector gives the same bytes."""
        from safetensors.numpy import save

        tensors = {name: value for name in _TENSORS if (value := getattr(self, name)) is not None}
        # A file of nothing but metadata is allowed, yet some readers refuse it.
        tensors = tensors or {"none": np.zeros(1, dtype=np.float32)}
        about = {
            "format": FORMAT,
            "model_revision": self.model_revision,
            "classes": list(self.classes),
            "thresholds": dict(self.thresholds),
            "called_out": self.called_out,
            "fitted_on": self.fitted_on,
            "fitted_images": self.fitted_images,
            "threshold_images": self.threshold_images,
        }
        with whole_file(path) as file:
            file.write(save(tensors, metadata={_KEY: json.dumps(about, sort_keys=True)}))

    @classmethod
    def load(cls, path: Path, *, model_revision: str, classes: tuple[str, ...]) -> OodDetector:
        """Read what `save` wrote, for the model it belongs to; nothing in it is executed.

        Args:
            path: The file.
            model_revision: The weights that will be scored.
            classes: Their class codes in label order.

        Raises:
            WeightsFileError: The file is missing, damaged, of another format, or belongs to another model.
        """
        about, tensors = _read(path)
        for what, found, wanted in (
            ("model revision", about.get("model_revision"), model_revision),
            ("classes", tuple(about.get("classes", ())), tuple(classes)),
        ):
            if found != wanted:
                raise WeightsFileError(
                    f"{path}: was fitted for {what} {found}, not {wanted}; fit it again with `cytodino evaluate` on "
                    "the RUN of this model"
                )
        return cls(
            model_revision=model_revision,
            classes=tuple(classes),
            thresholds=_thresholds(about),
            called_out=float(about["called_out"]),
            fitted_on=str(about["fitted_on"]),
            fitted_images=int(about["fitted_images"]),
            threshold_images=int(about["threshold_images"]),
            **{name: tensors.get(name) for name in _TENSORS},
        )


def _of_classes(fold: EmbeddedFold, classes: Sequence[str]) -> EmbeddedFold:
    """The labelled images of some classes."""
    predictions = fold.predictions
    wanted = [label for label, code in enumerate(predictions.classes) if code in classes]
    return fold.select(np.flatnonzero(np.isin(predictions.labels, wanted)))


def _fit_embeddings(known: EmbeddedFold, seed: int) -> dict[str, np.ndarray]:
    assert known.embeddings is not None
    labels = known.predictions.labels
    kept = formulas.choose_bank(labels, seed=seed)
    _, means = formulas.class_means(known.embeddings, labels)
    return {
        "bank": formulas.unit_rows(known.embeddings[kept]).astype(np.float16),
        "means": means.astype(np.float32),
        "whitening": formulas.fit_whitening(known.embeddings, labels, means).astype(np.float32),
    }


def _check_folds(known: EmbeddedFold, rest: EmbeddedFold, needed: int) -> None:
    if len(rest) < needed:
        raise DataError(
            f"{len(rest)} calibration images are left to set the thresholds of strange images; at least {needed} are "
            "needed: set aside more, or allow a larger share to be called out"
        )
    revisions = {fold.predictions.model_revision for fold in (known, rest) if len(fold)}
    if len(revisions) > 1:
        raise DataError(f"folds of two models, {' and '.join(sorted(revisions))}; score both with one model")
    if known.embeddings is not None and len(known) < 2:
        raise DataError(f"{len(known)} labelled images to learn from; at least 2 are needed")


def _thresholds(about: Mapping[str, Any]) -> dict[str, float]:
    found = about["thresholds"]
    return {name: float(found[name]) for name in formulas.SCORES if name in found}


def _fold_name(predictions: Predictions) -> str:
    return " and ".join(sorted({fold or "unnamed" for fold in predictions.folds})) or "empty"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    remedy = "take it from where the model was published, or fit it again with `cytodino evaluate`"
    if not path.is_file():
        raise WeightsFileError(f"{path}: no such file; {remedy}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsFileError(f"{path}: is damaged ({error}); {remedy}") from error
    try:
        about = json.loads(metadata.get(_KEY, "null"))
    except json.JSONDecodeError as error:
        raise WeightsFileError(f"{path}: its metadata is damaged ({error}); {remedy}") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        found = about.get("format") if isinstance(about, dict) else None
        raise WeightsFileError(f"{path}: has format {found}, and this version reads {FORMAT}; {remedy}")
    return about, tensors
