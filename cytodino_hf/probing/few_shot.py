"""How far a few labelled images of each class carry."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..evaluation.linear_probe import fit_logistic
from .classical import EvenKinds
from .methods import Folds, balanced_accuracy, choose_svm, fit_svm

#: Labelled images of each class.
SHOTS = (1, 5, 10, 50)
_LEVEL = 0.95

#: (training features, labels) -> (test features -> predicted labels)
Fit = Callable[[np.ndarray, np.ndarray], Callable[[np.ndarray], np.ndarray]]


@dataclass(frozen=True)
class FewShot:
    """Balanced accuracy on the test fold after training on a few images a class, over draws of these.

    Args:
        shots: Images of each class (all of a class that has fewer).
        values: Balanced accuracy of each draw.
        short_classes: Codes of classes with fewer training images than `shots`.
    """

    shots: int
    values: tuple[float, ...]
    short_classes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Over draws."""
        return float(np.mean(self.values))

    @property
    def spread(self) -> float | None:
        """Standard deviation over draws (n - 1); None with one draw."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def interval(self) -> tuple[float, float] | None:
        """Where the mean over all draws lies (Student's t over draws); says nothing about other test images."""
        from scipy.stats import t

        if self.spread is None:
            return None
        n = len(self.values)
        half = float(t.ppf((1 + _LEVEL) / 2, n - 1)) * self.spread / n**0.5
        return self.mean - half, self.mean + half

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        low, high = self.interval() or (None, None)
        return {**asdict(self), "mean": self.mean, "sd": self.spread, "low": low, "high": high}


def pick_shots(labels: np.ndarray, shots: int, draw: int, seed: int = 0) -> np.ndarray:
    """Rows of a few images of each class; the same for every system.

    Args:
        labels: (images,) labels of the training fold.
        shots: Images of each class; all of a class that has fewer.
        draw: Number of the draw.
        seed: Another seed, other draws.

    Returns:
        int64 rows, class after class.
    """
    rng = np.random.default_rng([seed, shots, draw])
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    return np.concatenate([rng.permutation(of_class)[:shots] for of_class in rows])


def few_shot_values(
    folds: Folds, test_labels: np.ndarray, fit: Fit, shots: int, draws: Sequence[int]
) -> Iterator[float]:
    """Balanced accuracy of each draw on the whole test fold."""
    for draw in draws:
        rows = pick_shots(folds.train_labels, shots, draw)
        predicted = fit(folds.train[rows], folds.train_labels[rows])(folds.test)
        yield balanced_accuracy(test_labels, predicted, folds.num_classes)


def logistic_fit(num_classes: int) -> Fit:
    """Logistic regression by DinoBloom's protocol, of a backbone's features."""

    def fit(train: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        probe = fit_logistic(train, labels, num_classes)
        return lambda features: probe.log_probabilities(features).argmax(axis=1)

    return fit


def svm_fit(folds: Folds) -> Fit:
    """The SVM of classical features. What a feature's mean and deviation are, and C, is known from the whole fold: an
    advantage, as becomes a floor."""
    even = EvenKinds.fitted(folds.train)
    c = choose_svm(folds, even)

    def fit(train: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        decide = fit_svm(even(train), labels, folds.num_classes, c)
        return lambda features: decide(even(features)).argmax(axis=1)

    return fit
