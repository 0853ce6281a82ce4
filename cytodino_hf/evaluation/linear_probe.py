"""Logistic regression on frozen features.

DinoBloom's protocol (Koch et al. 2024, following Oquab et al. 2023): multinomial, L2, L-BFGS, at most 1000 iterations,
features as they are (not standardised, not normalised), and a fixed strength: scikit-learn's C = width x classes / 100.
`choose_logistic` instead standardises and chooses C on a validation fold.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .probability_metrics import probability_metrics

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

#: Iterations at most; DinoBloom's.
MAX_ITERATIONS = 1000
#: Values of C to choose from (it weighs the sum over images).
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)
#: In place of the logarithm of zero: of a class that has no training image.
LOG_OF_NOTHING = -50.0
_WORTH_THREADS = 10_000_000


@dataclass(frozen=True)
class LogisticProbe:
    """A fitted logistic regression.

    Args:
        model: scikit-learn's.
        mean, scale: (width,) taken off and divided by first.
        num_classes: Classes of the taxonomy, with or without training images.
        c: Its strength C; large: little regularisation.
        converged: Whether it did within `MAX_ITERATIONS`.
    """

    model: LogisticRegression
    mean: np.ndarray
    scale: np.ndarray
    num_classes: int
    c: float
    converged: bool

    def log_probabilities(self, features: np.ndarray) -> np.ndarray:
        """float64 (images, classes); `LOG_OF_NOTHING` for classes without training image."""
        found = self.model.predict_log_proba(
            (np.asarray(features, dtype=np.float64) - self.mean) / self.scale
        )
        columns = np.full((len(features), self.num_classes), LOG_OF_NOTHING)
        columns[:, self.model.classes_] = np.maximum(found, LOG_OF_NOTHING)
        return columns


def log_shares(shares: np.ndarray) -> np.ndarray:
    """float32 logits of which the softmax gives the shares back; `LOG_OF_NOTHING` for a share of zero."""
    with np.errstate(divide="ignore"):
        return np.maximum(np.log(shares), LOG_OF_NOTHING).astype(np.float32)


def fit_logistic(
    train: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    *,
    c: float | None = None,
    is_standardised: bool = False,
) -> LogisticProbe:
    """Fit a logistic regression; without options by DinoBloom's protocol.

    Args:
        train: (images, width) features.
        labels: (images,) labels of at least two classes.
        num_classes: Columns of its answers.
        c: Strength C; None takes width x classes (with training images) / 100.
        is_standardised: Whether each feature is first brought to mean 0 and deviation 1 on `train`.

    Raises:
        ValueError: Fewer than two classes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    train = np.asarray(train, dtype=np.float64)
    width = train.shape[1]
    mean, scale = np.zeros(width), np.ones(width)
    if is_standardised:
        mean, scale = train.mean(axis=0), train.std(axis=0)
        scale[scale == 0] = 1.0
    strength = width * len(np.unique(labels)) / 100 if c is None else c
    model = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
    # Each iteration of a small problem takes less time than it takes two threads to meet.
    threads = 1 if train.size < _WORTH_THREADS else None
    with threadpool_limits(threads), warnings.catch_warnings():
        # Whether it converged is part of the result.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((train - mean) / scale, labels)
    converged = int(model.n_iter_.max()) < MAX_ITERATIONS
    return LogisticProbe(model, mean, scale, num_classes, float(strength), converged)


def choose_logistic(
    train: np.ndarray,
    labels: np.ndarray,
    validation: np.ndarray,
    validation_labels: np.ndarray,
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> LogisticProbe:
    """Fit on standardised features with the C whose answers to a validation fold are the most probable.

    The negative log-likelihood chooses: it is smooth where a few images decide an accuracy. It stays the model of the
    training fold; it is not fitted again with the validation fold.

    Args:
        train, labels, num_classes: As in `fit_logistic`.
        validation, validation_labels: What chooses.
        strengths: Values of C tried, weakest model first; of equally good ones the first is taken.
    """
    best: tuple[float, LogisticProbe] | None = None
    for c in strengths:
        probe = fit_logistic(train, labels, num_classes, c=c, is_standardised=True)
        nll = probability_metrics(probe.log_probabilities(validation), validation_labels)["nll"]
        if best is None or nll < best[0]:
            best = nll, probe
        elif nll > 2 * best[0]:
            break  # weaker regularisation only gets worse, and takes ever longer
    assert best is not None, "no strength to choose from"
    return best[1]
