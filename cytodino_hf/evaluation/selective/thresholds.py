"""From which score on an answer is kept: chosen on the calibration fold, never on the fold it is tried on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .risk_coverage import RiskCoverage

#: How sure an assured threshold is (one-sided).
CONFIDENCE = 0.95
#: The walk to an assured threshold: where it starts, as a share of the fold, and its steps. Among the very surest a
#: single wrong label would end it.
_START, _STEPS = 0.25, 50


@dataclass(frozen=True)
class Threshold:
    """Keep an answer whose score is at least `value`.

    Args:
        value: The score; None where no threshold does what was asked.
        kept, wrong, of: Images kept, mistakes among them, and all images of the fold it was chosen on.
    """

    value: float | None
    kept: int
    wrong: int
    of: int


def images_needed(accuracy: float, confidence: float = CONFIDENCE) -> int:
    """Fewest images, all of them right, that show an accuracy of at least so much: a^n <= 1 - confidence.

    Example:
        >>> images_needed(0.995)
        598
    """
    if not 0 < accuracy < 1:
        raise ValueError(f"an accuracy to ask for lies between 0 and 1, not at {accuracy}")
    return math.ceil(math.log(1 - confidence) / math.log(accuracy))


def first_step(images: int, accuracy: float, confidence: float = CONFIDENCE) -> int:
    """How many of the surest images the walk to an assured threshold starts with."""
    return max(images_needed(accuracy, confidence), math.floor(_START * images))


def threshold_for_coverage(score: np.ndarray, coverage: float) -> Threshold:
    """The highest threshold that keeps at least this share of some images; needs no labels.

    Args:
        score: (images,) higher is surer.
        coverage: Above 0 up to 1.
    """
    keep = max(1, math.ceil(coverage * len(score) - 1e-9))
    value = float(np.sort(score)[len(score) - keep])
    return Threshold(value, int((score >= value).sum()), 0, len(score))


def threshold_for_accuracy(curve: RiskCoverage, accuracy: float) -> Threshold:
    """The threshold that keeps most images while the share of them that is right is at least so much.

    It is what the fold shows, without a margin: on other images the accuracy falls short about every other time.
    """
    kept, wrong = curve.steps()
    good = np.flatnonzero(wrong <= (1 - accuracy) * kept + 1e-9)
    if not len(good):
        return Threshold(None, 0, 0, int(kept[-1]))
    last = good[-1]
    return Threshold(float(curve.values[last]), int(kept[last]), int(wrong[last]), int(kept[-1]))


def assured_threshold(curve: RiskCoverage, accuracy: float, confidence: float = CONFIDENCE) -> Threshold:
    """A threshold above which new images are right at least so often, with confidence 95 %.

    Walks from a quarter of the images, or as many as it takes (`images_needed`), to all, and stops before the
    first step at which the exact one-sided bound of the accuracy falls below what is asked. The order of the tests does
    not depend on the mistakes, so the confidence holds for the threshold that is found. It takes images as independent.

    Source:
        Clopper and Pearson, Biometrika 26 (1934), 404; Angelopoulos et al. 2021, Learn then test (arXiv 2110.01052),
        2.3 (fixed sequence testing).
    """
    from scipy.stats import beta

    kept, wrong = curve.steps()
    of = int(kept[-1])
    first = first_step(of, accuracy, confidence)
    if of < first:
        return Threshold(None, 0, 0, of)
    counts = np.unique(np.linspace(first, of, _STEPS).astype(np.int64))
    blocks = np.unique(np.searchsorted(kept, counts))
    k, e = kept[blocks], wrong[blocks]
    bound = beta.ppf(1 - confidence, k - e, e + 1)
    fails = np.flatnonzero(~(bound >= accuracy))  # NaN where nothing is right
    steps = int(fails[0]) if len(fails) else len(blocks)
    if not steps:
        return Threshold(None, 0, 0, of)
    return Threshold(float(curve.values[blocks[steps - 1]]), int(k[steps - 1]), int(e[steps - 1]), of)
