"""AURC by counting, with ties by averaging over orders, and under weights by copying."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from cytodino_hf.evaluation.selective.risk_coverage import RiskCoverage


def counted(wrong_in_order: np.ndarray) -> float:
    return float(np.mean(np.cumsum(wrong_in_order) / np.arange(1, len(wrong_in_order) + 1)))


def area(score: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    aurc, excess = RiskCoverage(score, wrong).areas(np.ones((1, len(score))))
    return float(aurc[0]), float(excess[0])


def test_by_hand() -> None:
    """Right, wrong, right, wrong: risks 0, 1/2, 1/3, 1/2; best order: 0, 0, 1/3, 1/2."""
    aurc, excess = area(np.array([4.0, 3.0, 2.0, 1.0]), np.array([False, True, False, True]))
    assert aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert excess == pytest.approx(1 / 2 / 4)


def test_ties_count_with_the_mean_over_all_orders() -> None:
    score = np.array([2.0, 1.0, 1.0, 1.0, 0.0])
    wrong = np.array([False, True, False, True, True])
    orders = [[0, *order, 4] for order in permutations([1, 2, 3])]
    expected = np.mean([counted(wrong[order]) for order in orders])
    assert area(score, wrong)[0] == pytest.approx(expected)


def test_the_limit_of_the_best_order_is_that_of_the_paper() -> None:
    """E-AURC of Geifman et al. takes off r + (1 - r) log(1 - r)."""
    rng = np.random.default_rng(0)
    n = 20_000
    wrong, score = rng.random(n) < 0.12, rng.normal(size=n)
    aurc, excess = area(score, wrong)
    r = wrong.mean()
    assert aurc - excess == pytest.approx(r + (1 - r) * np.log(1 - r), abs=1e-5)


def test_weights_are_copies_of_images() -> None:
    rng = np.random.default_rng(1)
    score, wrong = rng.integers(0, 6, 30).astype(float), rng.random(30) < 0.4
    weights = rng.integers(0, 4, (5, 30)).astype(float)
    curve = RiskCoverage(score, wrong)
    aurc, excess = curve.areas(weights)
    coverage = np.array([0.25, 0.5, 1.0])
    risks = curve.risks(weights, coverage)
    for draw in range(5):
        rows = np.repeat(np.arange(30), weights[draw].astype(int))
        assert (aurc[draw], excess[draw]) == pytest.approx(area(score[rows], wrong[rows]))
        copied = RiskCoverage(score[rows], wrong[rows]).risks(np.ones((1, len(rows))), coverage)
        np.testing.assert_allclose(risks[draw], copied[0])


@pytest.mark.parametrize("values", [400, 7], ids=["no ties", "ties"])
def test_an_influence_is_what_a_little_more_of_an_image_changes(values: int) -> None:
    """500 copies of every image are near the limit; one image gets five more."""
    rng = np.random.default_rng(2)
    score = (
        rng.permutation(400).astype(float) if values == 400 else rng.integers(0, values, 400).astype(float)
    )
    curve = RiskCoverage(score, rng.random(400) < 0.2)
    copies = np.full((1, 400), 500.0)
    some = rng.choice(400, 60, replace=False)
    more = copies + 5.0 * np.eye(400)[some]
    for before, after, influence in zip(
        curve.areas(copies), curve.areas(more), curve.influences(), strict=True
    ):
        assert influence.sum() == pytest.approx(0, abs=1e-12)
        np.testing.assert_allclose(
            (after - before) / 0.01, influence[some], atol=0.02 * np.abs(influence).max()
        )


def test_where_all_are_wrong_or_right_no_image_changes_anything() -> None:
    for share in (False, True):
        for influence in RiskCoverage(np.arange(30.0), np.full(30, share)).influences():
            np.testing.assert_allclose(influence, 0, atol=1e-15)


def test_risks_and_steps_are_counted() -> None:
    score, wrong = np.array([3.0, 2.0, 2.0, 1.0]), np.array([False, True, False, True])
    curve = RiskCoverage(score, wrong)
    kept, mistakes = curve.steps()
    assert (kept.tolist(), mistakes.tolist(), curve.values.tolist()) == (
        [1, 3, 4],
        [0, 1, 2],
        [3.0, 2.0, 1.0],
    )
    # At two images one of the tied two is kept: half a mistake of two.
    found = curve.risks(np.ones((1, 4)), np.array([0.25, 0.5, 0.75, 1.0]))
    np.testing.assert_allclose(found[0], [0, 0.25, 1 / 3, 0.5])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_no_mistake_and_mistakes_only(share: float, expected: float) -> None:
    aurc, excess = area(np.array([0.3, 0.2, 0.9]), np.full(3, bool(share)))
    assert aurc == pytest.approx(expected)
    assert excess == pytest.approx(0.0)


def test_one_image_an_empty_draw_and_what_has_no_order() -> None:
    assert area(np.array([1.0]), np.array([True])) == (1.0, 0.0)
    assert np.isnan(RiskCoverage(np.ones(2), np.ones(2, bool)).areas(np.zeros((1, 2)))[0]).all()
    with pytest.raises(ValueError, match="no image"):
        RiskCoverage(np.empty(0), np.empty(0, bool))
    with pytest.raises(ValueError, match="not finite"):
        RiskCoverage(np.array([np.nan]), np.array([True]))
