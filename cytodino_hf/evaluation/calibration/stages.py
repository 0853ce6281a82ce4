"""Calibration metrics of one fold's answers, as they are and after each scaling that was tried, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..predictions import Predictions
from ..resampling import draw_weights
from ..statistics import FEW_IMAGES
from .errors import BINNED, CALIBRATION_METRICS, CalibrationErrors
from .intervals import GroupCount, drawn_interval, mean_interval, share_interval

# Largest value of a mean over images; None of the three is below 0.
_MOST = {"nll": np.inf, "brier": 2.0, "accuracy": 1.0}

Cell = dict[str, Any]


@dataclass(frozen=True)
class _Binned:
    """A calibration error, a sum of absolute values over bins.

    Args:
        value: Of the images as they are.
        drawn: (draws,) of the images drawn again.
        bias: By how much the value may be too high on average.
    """

    value: float
    drawn: np.ndarray
    bias: float

    def interval(self, fold: _Fold) -> Cell:
        """Its interval, that much longer below."""
        return drawn_interval(
            self.value,
            self.drawn,
            len(fold.known),
            level=fold.level,
            bounds=(0.0, 1.0),
            biases=(self.bias, 0.0),
            count=fold.count,
        )

    def less(self, other: _Binned, fold: _Fold) -> Cell:
        """The interval of the difference to another; both may be too high."""
        return drawn_interval(
            self.value - other.value,
            self.drawn - other.drawn,
            len(fold.known),
            level=fold.level,
            biases=(self.bias, other.bias),
            count=fold.count,
        )


@dataclass(frozen=True)
class _Fold:
    """The labelled images, how many groups they come from, and the nominal coverage."""

    known: Predictions
    count: GroupCount | None
    level: float


class _Stage:
    """One way to scale the answers: metrics as they are and drawn again."""

    def __init__(self, answers: Predictions) -> None:
        self._scorer = CalibrationErrors(answers.logits, answers.labels)
        self._once = self._scorer.sums(np.ones((1, len(answers))))
        self._drawn: list[np.ndarray] = []
        self.of_images = self._scorer.of_images

    def draw(self, weights: np.ndarray) -> None:
        """Score some draws more."""
        self._drawn.append(self._scorer.sums(weights))

    def errors(self) -> tuple[dict[str, _Binned], list[_Binned]]:
        """The calibration errors by name, and the classwise one of each class."""
        again = np.concatenate(self._drawn)
        values, by_class = self._scorer.values_of(self._once)
        drawn, drawn_by_class = self._scorer.values_of(again)
        biases, biases_by_class = self._scorer.largest_biases(self._once, again)
        named = {name: _Binned(float(values[name][0]), drawn[name], biases[name]) for name in BINNED}
        return named, [
            _Binned(float(by_class[0, k]), drawn_by_class[:, k], float(bias))
            for k, bias in enumerate(biases_by_class)
        ]


def calibration_metrics(
    known: Predictions,
    scaled: Mapping[str, Predictions],
    chosen: str | None,
    *,
    draws: int,
    seed: int,
    level: float,
) -> tuple[dict[str, Cell], list[Cell]]:
    """Each metric and each class, before and after.

    Args:
        known: Labelled predictions as the model gave them.
        scaled: Method -> the same after scaling.
        chosen: The method in use; None, or one that is not in `scaled`, changes nothing.
        draws, seed, level: Of the bootstrap of the calibration errors; all stages are scored on the same draws.

    Returns:
        Name of `CALIBRATION_METRICS` -> `before`, `after` and `difference` of the chosen method (None where nothing is
        scaled), `tried` (method -> `after`, `difference`). For each class, in label order: `code`, `images`,
        `few_images`, `before`, `after`, `difference`.
    """
    fold = _Fold(known, GroupCount.of(known.labels, known.groups), level)
    before, after = _Stage(known), {name: _Stage(answers) for name, answers in scaled.items()}
    for weights in draw_weights(known.labels, known.groups, draws, seed):
        for stage in (before, *after.values()):
            stage.draw(weights)
    errors, errors_by_class = before.errors()
    errors_after = {name: stage.errors() for name, stage in after.items()}
    metrics: dict[str, Cell] = {}
    for name in CALIBRATION_METRICS:
        if name in BINNED:
            first = errors[name].interval(fold)
            tried = {
                method: _compared(named[name], errors[name], fold)
                for method, (named, _) in errors_after.items()
            }
        else:
            values = before.of_images[name]
            first = _of_mean(name, values, fold)
            tried = {
                method: {
                    "after": _of_mean(name, stage.of_images[name], fold),
                    "difference": _of_difference(stage.of_images[name] - values, fold),
                }
                for method, stage in after.items()
            }
        metrics[name] = {"before": first, **_of_chosen(tried, chosen), "tried": tried}
    images = np.bincount(known.labels, minlength=len(known.classes))
    per_class = []
    for k, code in enumerate(known.classes):
        of_class = errors_by_class[k]
        tried = {
            method: _compared(each[k], of_class, fold)
            for method, (_, each) in errors_after.items()
            if method == chosen
        }
        row = {"code": code, "images": int(images[k]), "few_images": bool(images[k] < FEW_IMAGES)}
        per_class.append(row | {"before": of_class.interval(fold), **_of_chosen(tried, chosen)})
    return metrics, per_class


def _compared(after: _Binned, before: _Binned, fold: _Fold) -> dict[str, Cell]:
    return {"after": after.interval(fold), "difference": after.less(before, fold)}


def _of_chosen(tried: Mapping[str, Mapping[str, Cell]], chosen: str | None) -> dict[str, Cell | None]:
    found = tried.get(chosen or "", {})
    return {"after": found.get("after"), "difference": found.get("difference")}


def _of_mean(name: str, values: np.ndarray, fold: _Fold) -> Cell:
    known = fold.known
    if name == "accuracy":
        # A fold without a mistake shows no spread: only Wilson's interval does not collapse there.
        share = share_interval(values > 0, known.groups, level=fold.level)
        assert share is not None, "there is an image"
        return share
    mean = float(values.mean())
    influence = (values - mean) / len(values)
    return mean_interval(mean, influence, known.labels, known.groups, level=fold.level, most=_MOST[name])


def _of_difference(values: np.ndarray, fold: _Fold) -> Cell:
    mean, known = float(values.mean()), fold.known
    influence = (values - mean) / len(values)
    return mean_interval(mean, influence, known.labels, known.groups, level=fold.level, is_difference=True)
