"""How good the probabilities are: negative log-likelihood, Brier score, expected calibration error.

Each is a mean over images, so all start from a term per image; a bootstrap weighs the same terms anew.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Bins of the expected calibration error, equal in width (Guo et al. 2017).
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ProbabilityTerms:
    """What each image adds.

    Args:
        nll: (images,) -log of the probability of the true class, in nats.
        brier: (images,) squared distance between the probabilities and the truth, summed over classes, in [0, 2].
        gap: (images, bins) confidence minus "was right" (1 or 0) in the bin of the confidence, 0 elsewhere.
        noise: (bins,) standard deviation of the mean gap, were each answer right as often as its confidence says. Where
            a model is hardly ever wrong the images show less: a bin without a mistake does not vary when drawn again.
    """

    nll: np.ndarray
    brier: np.ndarray
    gap: np.ndarray
    noise: np.ndarray


def probability_terms(logits: np.ndarray, labels: np.ndarray) -> ProbabilityTerms:
    """The terms of each image, computed in float64.

    Args:
        logits: (images, classes); logarithms of probabilities are logits as well.
        labels: (images,) true labels.

    Raises:
        ValueError: A label is no column of the logits (leave out images without label first).
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if labels.shape != logits.shape[:1] or (labels < 0).any() or (labels >= logits.shape[1]).any():
        raise ValueError(f"labels must be {len(logits)} whole numbers from 0 to {logits.shape[1] - 1}")
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    probabilities = np.exp(log_probabilities)
    rows = np.arange(len(labels))
    truth = np.zeros_like(probabilities)
    truth[rows, labels] = 1.0
    confidence = probabilities.max(axis=1)
    # A confidence of exactly 1 belongs to the last bin.
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.zeros((len(labels), CALIBRATION_BINS))
    gap[rows, bins] = confidence - (logits.argmax(axis=1) == labels)
    return ProbabilityTerms(
        nll=-log_probabilities[rows, labels],
        brier=((probabilities - truth) ** 2).sum(axis=1),
        gap=gap,
        noise=calibrated_noise(confidence, bins, CALIBRATION_BINS),
    )


def calibrated_noise(probabilities: np.ndarray, bins: np.ndarray, count: int) -> np.ndarray:
    """Standard deviation of the mean gap of each bin, by its share of images, were the probabilities exactly right.

    Args:
        probabilities: (images, ...) of something that is true or not.
        bins: The same shape, number of the bin of each.
        count: Bins.

    Returns:
        (bins,) float64.
    """
    variance = np.bincount(bins.ravel(), (probabilities * (1 - probabilities)).ravel(), count)
    noise: np.ndarray = np.sqrt(variance) / max(len(probabilities), 1)
    return noise


def probability_metrics(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """`nll`, `brier` and `ece` of some images; arguments as of `probability_terms`.

    Raises:
        ValueError: No image, or a label out of range.
    """
    if not len(labels):
        raise ValueError("no image to score")
    terms = probability_terms(logits, labels)
    n = len(labels)
    return {
        "nll": float(terms.nll.mean()),
        "brier": float(terms.brier.mean()),
        "ece": float(np.abs(terms.gap.sum(axis=0)).sum() / n),
    }


def largest_bias(sums: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """By how much absolute values of sums may be too high on average, as of the bins of a calibration error.

    The mean of |x| for x around m >= 0 with deviation s is above m by s sqrt(2 / pi) exp(-m^2 / 2 s^2)
    - 2 m Phi(-m / s), most at m = 0. m is taken as small as the images allow: |x| - 2 s, at least 0.

    Args:
        sums: (...) x, of the images as they are.
        deviations: (...) s, of the images drawn again, at least `calibrated_noise`: a bin whose images all agree shows
            none.
    """
    from scipy.stats import norm

    least = np.maximum(0.0, np.abs(sums) - 2 * deviations)
    ratio = np.divide(least, deviations, out=np.zeros_like(least), where=deviations > 0)
    bias: np.ndarray = deviations * (
        np.sqrt(2 / np.pi) * np.exp(-(ratio**2) / 2) - 2 * ratio * norm.cdf(-ratio)
    )
    return bias
