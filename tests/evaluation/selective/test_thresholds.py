"""Thresholds: what they keep on their own fold, and that the assured one keeps its word on new images."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from cytodino_hf.evaluation.selective.risk_coverage import RiskCoverage
from cytodino_hf.evaluation.selective.thresholds import (
    assured_threshold,
    images_needed,
    threshold_for_accuracy,
    threshold_for_coverage,
)


@pytest.mark.parametrize(("accuracy", "expected"), [(0.9, 29), (0.95, 59), (0.99, 299), (0.995, 598)])
def test_images_needed_is_where_the_exact_bound_reaches_the_accuracy(accuracy: float, expected: int) -> None:
    assert images_needed(accuracy) == expected
    for n, reaches in ((expected, True), (expected - 1, False)):
        low = binomtest(n, n, alternative="greater").proportion_ci(0.95, "exact").low
        assert (low >= accuracy) == reaches


def test_an_accuracy_that_nobody_can_ask_for_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        images_needed(1.0)


def test_threshold_for_coverage_keeps_that_share_and_ties_together() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.7, 0.1])
    assert threshold_for_coverage(score, 0.4).value == 0.8
    tied = threshold_for_coverage(score, 0.6)
    assert (tied.value, tied.kept) == (0.7, 4)
    assert threshold_for_coverage(score, 1.0).kept == 5
    assert threshold_for_coverage(np.array([0.3]), 0.01).kept == 1


def test_threshold_for_accuracy_keeps_most() -> None:
    """Right 0.9 and 0.8, wrong 0.7, right 0.6 and 0.5: 80 % of five are right, but only two are without mistake."""
    curve = RiskCoverage(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([False, False, True, False, False]))
    lenient, strict = threshold_for_accuracy(curve, 0.8), threshold_for_accuracy(curve, 0.9)
    assert (lenient.value, lenient.kept, lenient.wrong) == (0.5, 5, 1)
    assert (strict.value, strict.kept, strict.wrong, strict.of) == (0.8, 2, 0, 5)
    assert threshold_for_accuracy(RiskCoverage(np.ones(3), np.ones(3, bool)), 0.9).value is None


def test_an_assured_threshold_passes_the_exact_test() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(3000)
    wrong = rng.random(3000) < 0.2 * (1 - score)
    found = assured_threshold(RiskCoverage(score, wrong), 0.95)
    assert found.value is not None
    kept = score >= found.value
    assert (found.kept, found.wrong) == (kept.sum(), wrong[kept].sum())
    low = binomtest(found.kept - found.wrong, found.kept, alternative="greater").proportion_ci(0.95).low
    assert low >= 0.95


def test_too_few_images_and_too_many_mistakes_assure_nothing() -> None:
    right = RiskCoverage(np.arange(58.0), np.zeros(58, bool))
    assert assured_threshold(right, 0.95).value is None
    assert assured_threshold(RiskCoverage(np.arange(59.0), np.zeros(59, bool)), 0.95).value == 0.0
    surest_wrong = np.arange(400) == 399
    assert assured_threshold(RiskCoverage(np.arange(400.0), surest_wrong), 0.99).value is None
    assert assured_threshold(RiskCoverage(np.zeros(400), np.ones(400, bool)), 0.99).value is None


def test_the_assured_threshold_keeps_its_word_in_95_of_100_folds() -> None:
    """The chance to be wrong is (1 - s) / 5 at score s: above t it is (1 - t) / 10, exactly."""
    rng = np.random.default_rng(1)
    broken = found = 0
    for _ in range(600):
        score = rng.random(1000)
        wrong = rng.random(1000) < (1 - score) / 5
        threshold = assured_threshold(RiskCoverage(score, wrong), 0.95)
        if threshold.value is not None:
            found += 1
            broken += 1 - (1 - threshold.value) / 10 < 0.95
    assert found > 200
    assert broken <= 0.05 * 600 + 3 * np.sqrt(600 * 0.05 * 0.95)
