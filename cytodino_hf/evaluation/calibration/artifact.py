"""`calibration.json`: a fitted scaling, bound to the weights and classes it was fitted for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...files import write_json
from ..predictions import Predictions
from .halves import calibration_halves
from .scaling import Scaling, ScalingChoice, by_temperature, choose_scaling

#: Name of the file beside a model.
CALIBRATION_FILE = "calibration.json"
#: Number of the form of that file.
FORMAT = 1

_REMEDY = "fit it again with `cytodino evaluate` on the RUN of this model"


@dataclass(frozen=True)
class Calibration:
    """A scaling of logits and what it belongs to.

    Args:
        scaling: What is done to the logits.
        classes: Class codes in label order.
        model_revision: Of the weights whose logits it was fitted on.
        images: How many images it was fitted on.
        ids_sha256: Of their ids, see `ids_digest`.
        seed: Of the halves of the calibration fold; the images are those of the half for scaling.
        reason: Why this method, a sentence.
        cross_validated: Method -> negative log-likelihood of images its fit did not see; None where not tried.
        tried: Method -> its fit, for a report that shows what was not chosen as well; not stored.
    """

    scaling: Scaling
    classes: tuple[str, ...]
    model_revision: str
    images: int
    ids_sha256: str
    seed: int
    reason: str
    cross_validated: Mapping[str, float | None]
    tried: Mapping[str, Scaling] = field(default_factory=dict)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits, float32 (images, classes); call `check` once before."""
        return self.scaling.apply(logits)

    def check(self, model_revision: str, classes: Sequence[str]) -> None:
        """Refuse logits of another model.

        Raises:
            DataError: It was fitted for other weights or another label order; names both.
        """
        if model_revision != self.model_revision:
            raise DataError(
                f"{CALIBRATION_FILE} was fitted for the weights {self.model_revision}, the model is {model_revision}; "
                f"{_REMEDY}"
            )
        if tuple(classes) != self.classes:
            raise DataError(
                f"{CALIBRATION_FILE} was fitted for the classes {', '.join(self.classes)}, the model has "
                f"{', '.join(classes)}; {_REMEDY}"
            )

    def of(self, predictions: Predictions) -> Predictions:
        """The same predictions with calibrated logits.

        Raises:
            DataError: They are of another model (`check`), or calibrated already.
        """
        self.check(predictions.model_revision, predictions.classes)
        if predictions.calibration is not None:
            raise DataError(
                f"these predictions were calibrated already (by {predictions.calibration}): give those of the model "
                "itself, such as `cytodino predict` writes without --calibrated"
            )
        return replace(predictions, logits=self.apply(predictions.logits), calibration=self.fingerprint())

    def to_dict(self) -> dict[str, Any]:
        """The content of `calibration.json`."""
        scaling = self.scaling
        parameters: dict[str, Any] = {"temperature": scaling.temperature}
        if scaling.temperature is None:
            parameters = {
                "scale": dict(zip(self.classes, scaling.scale.tolist(), strict=True)),
                "bias": dict(zip(self.classes, scaling.bias.tolist(), strict=True)),
                "held_at_temperature": [self.classes[label] for label in scaling.held],
            }
        return {
            "format": FORMAT,
            "method": scaling.method,
            **parameters,
            "classes": list(self.classes),
            "model_revision": self.model_revision,
            "fitted_on": {
                "fold": "calibration",
                "half": "scaling",
                "seed": self.seed,
                "images": self.images,
                "ids_sha256": self.ids_sha256,
            },
            "reason": self.reason,
            "cross_validated_nll": dict(self.cross_validated),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Calibration:
        """Read what `to_dict` wrote.

        Raises:
            DataError: Another form, or an entry is missing or no number that can be used; names it.
        """
        if not isinstance(document, Mapping) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, Mapping) else type(document).__name__
            raise DataError(f"{CALIBRATION_FILE}: format {found!r}, this version reads {FORMAT}; {_REMEDY}")
        try:
            classes = tuple(str(code) for code in document["classes"])
            fitted_on = document["fitted_on"]
            return cls(
                scaling=_scaling(document, classes),
                classes=classes,
                model_revision=str(document["model_revision"]),
                images=int(fitted_on["images"]),
                ids_sha256=str(fitted_on["ids_sha256"]),
                seed=int(fitted_on["seed"]),
                reason=str(document["reason"]),
                cross_validated=dict(document["cross_validated_nll"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{CALIBRATION_FILE}: {what}; {_REMEDY}") from error

    def fingerprint(self) -> str:
        """sha256 of what it does and belongs to, for an output that must not mix calibrated and other answers."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write `calibration.json` into a folder."""
        write_json(folder / CALIBRATION_FILE, self.to_dict())

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a `calibration.json`.

        Raises:
            DataError: It is missing or cannot be used; names the file.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file, so the model has no calibration; {_REMEDY}") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not valid JSON ({error}); {_REMEDY}") from error
        return cls.from_dict(document)


def fit_calibration(predictions: Predictions, seed: int = 0) -> Calibration:
    """Fit on the half of the calibration fold that is for scaling, and choose the method (`choose_scaling`).

    Args:
        predictions: Of the calibration fold, as the model gave them.
        seed: Of the halves and of the cross-validation.

    Raises:
        DataError: No image of the fold has a label, or a logit is not finite.
    """
    rows, _ = calibration_halves(predictions, seed)
    if not len(rows):
        raise DataError(
            "the calibration fold has no labelled image, so nothing can be calibrated; give data.fractions.calibration "
            "a share and train again"
        )
    half = predictions.select(rows)
    broken = np.flatnonzero(~np.isfinite(half.logits).all(axis=1))
    if len(broken):
        raise DataError(
            f"{len(broken)} images of the calibration fold have logits that are not finite, such as "
            f"{half.ids[broken[0]]}; training diverged: lower training.learning_rate and train again"
        )
    choice: ScalingChoice = choose_scaling(half.logits, half.labels, half.groups, half.ids, seed)
    return Calibration(
        scaling=choice.scaling,
        classes=half.classes,
        model_revision=half.model_revision,
        images=len(half),
        ids_sha256=ids_digest(half.ids),
        seed=seed,
        reason=choice.reason,
        cross_validated=choice.cross_validated,
        tried=choice.tried,
    )


def ids_digest(ids: Sequence[str]) -> str:
    """sha256 of some ids in sorted order, one a line: tells sets of images apart without naming them."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


def _scaling(document: Mapping[str, Any], classes: tuple[str, ...]) -> Scaling:
    method = document["method"]
    if method in ("none", "temperature"):
        return by_temperature(_positive(document["temperature"], "temperature"), len(classes), method)
    if method != "vector":
        raise ValueError(f"method {method!r} is none of none, temperature, vector")
    for name in ("scale", "bias"):
        if set(document[name]) != set(classes):
            raise ValueError(
                f"{name} is of the classes {', '.join(document[name])}, not {', '.join(classes)}"
            )
    scale = [_positive(document["scale"][code], f"scale.{code}") for code in classes]
    bias = [_finite(document["bias"][code], f"bias.{code}") for code in classes]
    held = tuple(classes.index(code) for code in document["held_at_temperature"])
    return Scaling("vector", np.array(scale), np.array(bias), None, held)


def _finite(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")
    return float(value)


def _positive(value: Any, name: str) -> float:
    if _finite(value, name) <= 0:
        raise ValueError(f"{name} must be above 0, not {value!r}")
    return float(value)
