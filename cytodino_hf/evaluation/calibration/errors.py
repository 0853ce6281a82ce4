"""How far probabilities are off: expected calibration errors under any weights of the images, and reliability bins.

All are sums over images of columns that depend on nothing but the image, so one product with the weights of many
bootstrap draws gives them all.

Sources: Guo et al. 2017 (arXiv 1706.04599), equation 3 (equal width); Nguyen and O'Connor 2015 (arXiv 1508.05154), 4.1
(equal mass); Kull et al. 2019 (arXiv 1910.12656), section 2 (classwise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..probability_metrics import CALIBRATION_BINS, calibrated_noise, largest_bias, probability_terms
from .intervals import share_interval

#: Names of what `CalibrationErrors` gives, in the order reports show them.
CALIBRATION_METRICS = ("nll", "brier", "ece", "ece_adaptive", "ece_classwise", "accuracy")
#: Those that are sums of absolute values over bins.
BINNED = ("ece", "ece_adaptive", "ece_classwise")

_CELLS_AT_ONCE = 4_000_000  # bounds the memory of simulated answers


def equal_width_bins(probabilities: np.ndarray) -> np.ndarray:
    """Bin of each probability, 0 to 14; a probability of exactly 1 belongs to the last bin."""
    return np.minimum((probabilities * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)


def equal_mass_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin of each confidence, 0 to 14, such that all bins hold about as many images; equal values stay together."""
    edges = np.quantile(confidence, np.arange(1, CALIBRATION_BINS) / CALIBRATION_BINS)
    return np.searchsorted(edges, confidence)


class CalibrationErrors:
    """Calibration metrics of one model's answers for any weights of its images.

    `ece`: sum over 15 bins of equal width of |mean confidence - share right|, weighed by images. `ece_adaptive`: the
    same with bins of equal mass, whose edges are those of the images as they are. `ece_classwise`: mean over all
    classes of the same sum for the probability of the class and how often it is true; a class without image counts
    with what it is wrongly given.

    Args:
        logits: (images, classes).
        labels: (images,) true labels.

    Raises:
        ValueError: There is no image, or a label is no column of the logits.
    """

    def __init__(self, logits: np.ndarray, labels: np.ndarray) -> None:
        from scipy.sparse import csr_matrix

        if not len(labels):
            raise ValueError("no image to score")
        terms = probability_terms(logits, labels)
        #: (images,) what each image adds to the mean of that name.
        self.of_images = {"nll": terms.nll, "brier": terms.brier}
        probabilities = _probabilities(logits)
        confidence = probabilities.max(axis=1)
        n, self.classes = probabilities.shape
        rows, width = np.arange(n), CALIBRATION_BINS
        correct = (np.asarray(logits).argmax(axis=1) == labels).astype(np.float64)
        self.of_images["accuracy"] = correct
        truth = np.eye(self.classes)[labels]
        adaptive = 3 + width + equal_mass_bins(confidence)
        classwise = 3 + 2 * width + np.arange(self.classes) * width + equal_width_bins(probabilities)
        bins = 3 + equal_width_bins(confidence)
        first = np.tile([0, 1, 2], (n, 1))
        columns = np.column_stack([first, bins, adaptive, classwise])
        values = np.column_stack(
            [
                terms.nll,
                terms.brier,
                correct,
                confidence - correct,
                confidence - correct,
                probabilities - truth,
            ]
        )
        shape = (3 + (2 + self.classes) * width, n)
        # Turned round: one row for each sum, so that the product runs along the draws.
        images = np.broadcast_to(rows[:, None], columns.shape)
        noise = calibrated_noise(
            np.column_stack([confidence, confidence, probabilities]), columns[:, 3:] - 3, shape[0] - 3
        )
        self._noise = noise[None]  # (1, columns)
        self._terms = csr_matrix((values.ravel(), (columns.ravel(), images.ravel())), shape=shape)

    def sums(self, weights: np.ndarray) -> np.ndarray:
        """Mean of each column in some draws: (draws, columns); `values_of` turns them into metrics.

        Args:
            weights: (draws, images) whole numbers.
        """
        means: np.ndarray = (self._terms @ np.ascontiguousarray(weights.T) / weights.sum(axis=1)).T
        return means

    def values_of(self, sums: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Name of `CALIBRATION_METRICS` -> (draws,), and the classwise error of each class (draws, classes)."""
        metrics, by_class = self._over_bins(np.abs(sums[:, 3:]))
        return {"nll": sums[:, 0], "brier": sums[:, 1], **metrics, "accuracy": sums[:, 2]}, by_class

    def largest_biases(self, sums: np.ndarray, drawn: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
        """By how much the calibration errors may be too high on average, for being sums of absolute values.

        Args:
            sums: (1, columns) of the images as they are.
            drawn: (draws, columns) of the images drawn again.

        Returns:
            Name of `ece`, `ece_adaptive`, `ece_classwise` -> bias, and that of each class (classes,).
        """
        metrics, by_class = self._over_bins(
            largest_bias(sums[:, 3:], np.maximum(drawn[:, 3:].std(axis=0, keepdims=True), self._noise))
        )
        return {name: float(value[0]) for name, value in metrics.items()}, by_class[0]

    def _over_bins(self, off: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        totals = off.reshape(len(off), 2 + self.classes, CALIBRATION_BINS).sum(axis=2)
        by_class = totals[:, 2:]
        return dict(zip(BINNED, (totals[:, 0], totals[:, 1], by_class.mean(axis=1)), strict=True)), by_class


@dataclass(frozen=True)
class ReliabilityBin:
    """Images of about one confidence.

    Args:
        images: How many.
        confidence: Their mean confidence.
        accuracy: Share of them that is right.
        low, high: Its Wilson interval (`share_interval`).
    """

    images: int
    confidence: float
    accuracy: float
    low: float
    high: float


def reliability_bins(
    logits: np.ndarray, labels: np.ndarray, groups: Sequence[str | None], level: float = 0.95
) -> list[ReliabilityBin]:
    """The reliability diagram: bins of equal width that hold an image, from unsure to sure.

    Args:
        logits, labels: Of the images.
        groups: Group of each image, None for an image on its own.
        level: Nominal coverage.
    """
    confidence = _probabilities(logits).max(axis=1)
    correct = np.asarray(logits).argmax(axis=1) == labels
    bins = equal_width_bins(confidence)
    found = []
    for number in np.unique(bins):
        inside = bins == number
        rows = np.flatnonzero(inside)
        share = share_interval(correct[rows], [groups[row] for row in rows.tolist()], level=level)
        if share is not None:
            sure = float(confidence[rows].mean())
            found.append(ReliabilityBin(len(rows), sure, share["value"], share["low"], share["high"]))
    return found


def ece_of_perfect_calibration(logits: np.ndarray, draws: int = 200, seed: int = 0) -> tuple[float, float]:
    """What the expected calibration error would be if every answer were right as often as its confidence says.

    It is not zero: of few images in a bin the share that is right scatters. A measured error below it is no error.

    Args:
        logits: (images, classes).
        draws: Simulated foldfuls of answers.
        seed: Of the draws.

    Returns:
        Mean, and the value that 95 of 100 perfectly calibrated models stay below.

    Source:
        Vaicenavicius et al. 2019, Evaluating model calibration in classification (arXiv 1902.06977), section 4.
    """
    confidence = _probabilities(logits).max(axis=1)
    n = len(confidence)
    rng = np.random.default_rng(seed)
    bin_of = np.eye(CALIBRATION_BINS)[equal_width_bins(confidence)]  # (images, bins)
    sure = confidence @ bin_of
    step = max(1, _CELLS_AT_ONCE // n)
    errors = [
        np.abs((rng.random((min(step, draws - start), n)) < confidence) @ bin_of - sure).sum(axis=1) / n
        for start in range(0, draws, step)
    ]
    drawn = np.concatenate(errors)
    return float(drawn.mean()), float(np.quantile(drawn, 0.95))


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64, so that a bin is the same wherever it is asked for."""
    wide = np.asarray(logits, dtype=np.float64)
    shares = np.exp(wide - wide.max(axis=1, keepdims=True))
    total: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return total
