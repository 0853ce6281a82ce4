"""How well the probability of a class ranks its images before all others: AUROC and AUPRC, one class against the rest.

Beside each value stands its influence: what one more image like each image would change. Its spread is the standard
error of the value (for AUROC DeLong's), over strata and groups as for any mean, without a single draw.

Source: DeLong et al. 1988, Biometrics 44, 837 (AUROC); Efron and Tibshirani 1993, 21.4 (infinitesimal jackknife).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: The specificity at which binary tasks state their sensitivity.
SPECIFICITY = 0.95


@dataclass(frozen=True)
class Ranking:
    """How one class is ranked before the rest.

    Args:
        auroc: Chance that an image of the class scores above another image, ties by half.
        auprc: Average precision: mean over the images of the class of the precision at their score.
        auroc_influence, auprc_influence: (images,) change of the value when an image counts a little more, divided by
            that little; they sum to 0.
    """

    auroc: float
    auprc: float
    auroc_influence: np.ndarray
    auprc_influence: np.ndarray


def class_scores(logits: np.ndarray) -> np.ndarray:
    """Log odds of each class, float64 (images, classes).

    They rank as the probabilities do, and still differ where probabilities are rounded to 1.

    Args:
        logits: (images, classes).
    """
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    parts = np.exp(shifted)
    whole = parts.sum(axis=1, keepdims=True)
    top = (np.arange(len(logits)), shifted.argmax(axis=1))
    rest = whole - parts
    parts[top] = 0.0
    rest[top] = parts.sum(axis=1)  # whole - 1 would lose all digits of a small rest
    # Two logits 745 apart leave a rest of 0; the smallest number keeps the odds finite.
    return shifted - np.log(np.maximum(rest, np.finfo(np.float64).tiny))


def rank_class(scores: np.ndarray, is_positive: np.ndarray) -> Ranking:
    """AUROC and AUPRC of one class, with influences.

    Args:
        scores: (images,) higher for the class.
        is_positive: (images,) bool, images of the class.

    Raises:
        ValueError: No image is of the class, or every one is: there is nothing to rank.
    """
    is_positive = np.asarray(is_positive, dtype=bool)
    n, positives = len(is_positive), int(is_positive.sum())
    if not 0 < positives < n:
        raise ValueError(
            f"{positives} of {n} images are of the class; a ranking needs some that are and some not"
        )
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranked = np.asarray(scores)[order]
    hit = is_positive[order]
    # First and last place of the images with the same score
    is_new = np.concatenate([[True], ranked[1:] != ranked[:-1]])
    starts = np.flatnonzero(is_new)
    run = np.cumsum(is_new) - 1
    first, last = starts[run], np.append(starts[1:], n)[run] - 1
    hits_so_far = np.cumsum(hit)
    above_or_level, level_or_above_n = hits_so_far[last], last + 1
    above = hits_so_far[first] - hit[first]
    auroc, auroc_influence = _auroc(hit, first, last, above, above_or_level, positives)
    auprc, auprc_influence = _auprc(hit, first, above_or_level, level_or_above_n, positives)
    back = np.empty(n, dtype=np.int64)
    back[order] = np.arange(n)
    return Ranking(auroc, auprc, auroc_influence[back], auprc_influence[back])


def _auroc(
    hit: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    above: np.ndarray,
    above_or_level: np.ndarray,
    positives: int,
) -> tuple[float, np.ndarray]:
    negatives = len(hit) - positives
    # Of the other kind: the share this image is ranked right against, ties by half
    others_before = (first - above) + ((last + 1 - above_or_level) - (first - above)) / 2
    hits_before = (above + above_or_level) / 2
    placed = np.where(hit, 1 - others_before / negatives, hits_before / positives)
    value = float(placed[hit].mean())
    return value, (placed - value) / np.where(hit, positives, negatives)


def _auprc(
    hit: np.ndarray, first: np.ndarray, hits: np.ndarray, seen: np.ndarray, positives: int
) -> tuple[float, np.ndarray]:
    precision = hits / seen
    value = float(precision[hit].mean())

    def from_here_on(terms: np.ndarray) -> np.ndarray:
        sums: np.ndarray = np.cumsum(terms[::-1])[::-1][first]
        return sums

    # One more image at a score changes the precision of every positive at or below it.
    if_hit = precision - value + from_here_on(hit * (seen - hits) / seen**2)
    if_not = -from_here_on(hit * hits / seen**2)
    return value, np.where(hit, if_hit, if_not) / positives


def sensitivity_at_specificity(
    scores: np.ndarray, is_positive: np.ndarray, weights: np.ndarray, specificity: float = SPECIFICITY
) -> np.ndarray:
    """Share of the positives above the lowest threshold that leaves the asked share of the negatives below it.

    Args:
        scores: (images,) higher for positive.
        is_positive: (images,) bool.
        weights: (draws, images) how often each image counts.
        specificity: Share of the negatives at or below the threshold, at least.

    Returns:
        (draws,) float64; 0 of a draw without positives or without negatives.
    """
    order = np.argsort(scores, kind="stable")
    ranked, hit = np.asarray(scores)[order], np.asarray(is_positive, dtype=bool)[order]
    last = np.searchsorted(ranked, ranked, side="right") - 1
    weights = weights[:, order]
    below = np.cumsum(weights * ~hit, axis=1)
    hits = np.cumsum(weights * hit, axis=1)
    # Weights are whole numbers; the little makes 0.95 x 20 no more than 19.
    reached = below >= specificity * below[:, -1:] - 1e-9
    at = last[reached.argmax(axis=1)]
    positives = hits[:, -1]
    above = positives - np.take_along_axis(hits, at[:, None], axis=1)[:, 0]
    return np.divide(above, positives, out=np.zeros(len(weights)), where=(positives > 0) & (below[:, -1] > 0))
