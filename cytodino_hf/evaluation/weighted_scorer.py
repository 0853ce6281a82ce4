"""Metrics of one model for any weights of its images, so that a bootstrap scores all its draws at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..taxonomy import Taxonomy
from .metrics import confusion_metrics
from .predictions import Predictions
from .probability_metrics import probability_terms


class Scorer:
    """Metrics of one model for any weights of its images.

    Args:
        predictions: What it says, all labelled.
        taxonomy: The classes; says which mistakes are dangerous.
        counted: (K,) bool, classes that enter means over classes; None takes all that have an image.
    """

    def __init__(self, predictions: Predictions, taxonomy: Taxonomy, counted: np.ndarray | None) -> None:
        self.labels = predictions.labels
        self.called = np.eye(len(taxonomy))[predictions.predicted]  # (images, K)
        self.terms = probability_terms(predictions.logits, predictions.labels)
        self.taxonomy = taxonomy
        self.counted = counted

    def right(self) -> np.ndarray:
        """Whether each image is read right: (images,) of 0 and 1."""
        right: np.ndarray = self.called[np.arange(len(self.labels)), self.labels]
        return right

    def called_safe(self) -> np.ndarray:
        """Whether each image of a critical class was called safe: (critical images,)."""
        is_critical = np.isin(self.labels, self.taxonomy.critical)
        safe: np.ndarray = self.called[is_critical][:, list(self.taxonomy.safe)].sum(axis=1)
        return safe

    def gaps(self, weights: np.ndarray) -> np.ndarray:
        """Mean confidence less share right of each bin, by its share of images: (draws, bins)."""
        gaps: np.ndarray = weights @ self.terms.gap / weights.sum(axis=1, keepdims=True)
        return gaps

    def matrix(self, weights: np.ndarray) -> np.ndarray:
        """Confusion matrices (draws, K, K), rows true."""
        return np.stack(
            [
                weights[:, rows] @ self.called[rows]
                for rows in (self.labels == k for k in range(len(self.taxonomy)))
            ],
            axis=1,
        )

    def __call__(self, weights: np.ndarray, metrics: Sequence[str]) -> np.ndarray:
        """(draws, images) whole weights -> (draws, metrics)."""
        n = weights.sum(axis=1)
        matrix = self.matrix(weights)
        values: dict[str, np.ndarray] = {
            **confusion_metrics(matrix, self.counted),
            "nll": weights @ self.terms.nll / n,
            "brier": weights @ self.terms.brier / n,
            "ece": np.abs(self.gaps(weights)).sum(axis=1),
        }
        if "critical_to_safe" in metrics:
            critical = matrix[:, list(self.taxonomy.critical)]
            mistakes, of = critical[:, :, list(self.taxonomy.safe)].sum((1, 2)), critical.sum((1, 2))
            # A draw of whole groups may hold no critical image: it says nothing of this rate.
            values["critical_to_safe"] = np.divide(mistakes, of, out=np.full(len(of), np.nan), where=of > 0)
        return np.stack([values[name] for name in metrics], axis=1)


def mean_over_seeds(system: Sequence[Scorer], weights: np.ndarray, metrics: Sequence[str]) -> np.ndarray:
    """Metrics of a system, the mean over its seeds: (draws, images) whole weights -> (draws, metrics)."""
    return np.mean([scorer(weights, metrics) for scorer in system], axis=0)
