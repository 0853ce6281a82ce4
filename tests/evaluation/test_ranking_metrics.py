"""AUROC, AUPRC and sensitivity at a specificity, against scikit-learn; influences against weights a little changed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from cytodino_hf.evaluation.ranking_metrics import class_scores, rank_class, sensitivity_at_specificity


def _scored(seed: int, n: int, decimals: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    return np.round(rng.normal(size=n) + truth, decimals), truth


@pytest.mark.parametrize("decimals", [0, 1, 8])  # many ties, some, none
def test_values_and_influences_agree_with_scikit_learn(decimals: int) -> None:
    scores, truth = _scored(decimals, 80, decimals)
    found = rank_class(scores, truth)
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
    assert found.auprc == pytest.approx(average_precision_score(truth, scores))
    little = 1e-5
    for row in range(0, 80, 7):
        weights = np.ones(80)
        weights[row] += little
        changed = roc_auc_score(truth, scores, sample_weight=weights)
        assert (changed - found.auroc) / little == pytest.approx(found.auroc_influence[row], abs=1e-6)
        changed = average_precision_score(truth, scores, sample_weight=weights)
        assert (changed - found.auprc) / little == pytest.approx(found.auprc_influence[row], abs=1e-6)
    assert found.auroc_influence.sum() == pytest.approx(0, abs=1e-12)
    assert found.auprc_influence.sum() == pytest.approx(0, abs=1e-12)


def test_the_error_from_influences_is_delongs() -> None:
    scores, truth = _scored(4, 60, 6)
    # DeLong et al. 1988, by plain comparison of every pair
    wins = (scores[truth][:, None] > scores[~truth]).astype(float)
    expected = wins.mean(1).var(ddof=1) / truth.sum() + wins.mean(0).var(ddof=1) / (~truth).sum()
    influence = rank_class(scores, truth).auroc_influence
    parts = [influence[side] for side in (truth, ~truth)]
    ours = sum(len(p) / (len(p) - 1) * ((p - p.mean()) ** 2).sum() for p in parts)
    assert ours == pytest.approx(expected)


def test_one_against_one_and_all_alike() -> None:
    best = rank_class(np.array([2.0, 1.0]), np.array([True, False]))
    assert (best.auroc, best.auprc) == (1.0, 1.0)
    worst = rank_class(np.array([1.0, 2.0]), np.array([True, False]))
    assert (worst.auroc, worst.auprc) == (0.0, 0.5)
    alike = rank_class(np.ones(10), np.arange(10) < 3)
    assert (alike.auroc, alike.auprc) == (0.5, pytest.approx(0.3))
    for truth in (np.ones(4, bool), np.zeros(4, bool)):
        with pytest.raises(ValueError, match="a ranking needs"):
            rank_class(np.arange(4.0), truth)


def test_scores_rank_as_probabilities_and_do_not_saturate() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (50, 4))
    parts = np.exp(logits)
    p = parts / parts.sum(1, keepdims=True)
    np.testing.assert_allclose(class_scores(logits), np.log(p / (1 - p)), rtol=1e-9)
    sure = class_scores(np.array([[50.0, 0.0], [60.0, 0.0], [2000.0, 0.0]]))
    assert sure[0, 0] == pytest.approx(50)
    assert sure[1, 0] == pytest.approx(60)
    assert np.isfinite(sure).all()
    assert class_scores(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_sensitivity_is_the_best_of_the_curve_at_that_specificity(decimals: int) -> None:
    scores, truth = _scored(9, 200, decimals)
    rate, found, _ = roc_curve(truth, scores, drop_intermediate=False)
    once = np.ones((1, 200))
    for specificity in (0.8, 0.95, 1.0):
        expected = found[rate <= 1 - specificity + 1e-12].max()
        assert sensitivity_at_specificity(scores, truth, once, specificity) == pytest.approx([expected])


def test_weights_count_an_image_so_often() -> None:
    scores, truth = _scored(2, 40, 1)
    weights = np.random.default_rng(1).integers(0, 4, (5, 40)).astype(float)
    found = sensitivity_at_specificity(scores, truth, weights)
    for row, w in enumerate(weights.astype(int)):
        again = sensitivity_at_specificity(np.repeat(scores, w), np.repeat(truth, w), np.ones((1, w.sum())))
        assert found[row] == pytest.approx(again[0])
    assert sensitivity_at_specificity(scores, truth, np.tile(truth * 1.0, (1, 1))).tolist() == [0.0]
