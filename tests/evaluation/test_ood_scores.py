"""Scores of strangeness and how well they tell: SciPy and scikit-learn beside ours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.special import logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from cytodino_hf.evaluation.ood import scores as formulas
from cytodino_hf.evaluation.ood.separation import ImageSet, fpr95, roc_points, separations


@pytest.fixture(scope="module")
def cells() -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and labels of 300 cells; one direction is far from the origin, one has almost no spread."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 100)
    embeddings = rng.normal(0, 1, (300, 12)) @ rng.normal(0, 1, (12, 12)) + rng.normal(0, 4, (3, 12))[labels]
    embeddings[:, 0] += 50
    embeddings[:, 1] *= 1e-3
    return embeddings.astype(np.float32), labels


def test_scores_of_logits_are_those_of_scipy() -> None:
    logits = np.random.default_rng(1).normal(0, 3, (50, 6)).astype(np.float32)
    found = formulas.logit_scores(logits)
    wide = logits.astype(np.float64)
    np.testing.assert_allclose(found["max_softmax"], -np.log(softmax(wide, axis=1).max(axis=1)), rtol=1e-9)
    np.testing.assert_allclose(found["energy"], -logsumexp(wide, axis=1), rtol=1e-12)


def test_certain_answers_do_not_tie() -> None:
    found = formulas.logit_scores(np.array([[60.0, 0, 0], [50.0, 0, 0], [800.0, 0, 0]]))  # softmax: exactly 1
    assert found["max_softmax"][0] < found["max_softmax"][1]
    assert np.isfinite(found["max_softmax"]).all()
    assert formulas.logit_scores(np.array([[7.0]]))["max_softmax"][0] == 0  # one class alone


def test_knn_is_that_of_scikit_learn(cells: tuple[np.ndarray, np.ndarray]) -> None:
    known, new = cells[0][::2].astype(np.float64), cells[0][1::2].astype(np.float64)
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (known, new)]
    reference = NearestNeighbors(n_neighbors=5).fit(units[0]).kneighbors(units[1])[0][:, -1]
    found = formulas.knn_distance(formulas.unit_rows(known), new, 5)
    np.testing.assert_allclose(found, reference, atol=1e-3)
    farthest = cdist(units[1], units[0][:3]).max(axis=1)
    np.testing.assert_allclose(
        formulas.knn_distance(formulas.unit_rows(known[:3]), new, 5), farthest, atol=1e-3
    )
    assert np.isfinite(formulas.knn_distance(formulas.unit_rows(known), np.zeros((1, 12)), 5)).all()


def test_mahalanobis_is_that_of_scipy_with_ledoit_and_wolfs_covariance(
    cells: tuple[np.ndarray, np.ndarray],
) -> None:
    embeddings, labels = cells
    wide = embeddings.astype(np.float64)
    means = np.stack([wide[labels == k].mean(axis=0) for k in range(3)])
    covariance = LedoitWolf(assume_centered=True).fit(wide - means[labels]).covariance_
    reference = cdist(wide, means, "mahalanobis", VI=np.linalg.inv(covariance)).min(axis=1) ** 2
    present, found_means = formulas.class_means(embeddings, labels)
    assert present.tolist() == [0, 1, 2]
    whitening = formulas.fit_whitening(embeddings, labels, found_means)
    np.testing.assert_allclose(
        formulas.mahalanobis_distance(whitening, found_means, embeddings), reference, rtol=2e-3, atol=1e-3
    )


def test_a_direction_without_spread_and_equal_images_give_numbers() -> None:
    for embeddings in (np.zeros((20, 4)), np.tile(np.arange(4.0), (20, 1))):
        labels = np.arange(20) % 2
        _, means = formulas.class_means(embeddings, labels)
        whitening = formulas.fit_whitening(embeddings, labels, means)
        far = formulas.mahalanobis_distance(whitening, means, embeddings)
        assert np.isfinite(far).all()


def test_the_bank_is_bounded_and_spread_over_classes() -> None:
    labels = np.repeat([0, 1, 2], [1000, 10, 300])
    kept = formulas.choose_bank(labels, 100, seed=3)
    assert np.bincount(labels[kept]).tolist() == [45, 10, 45]
    assert len(set(kept.tolist())) == 100
    np.testing.assert_array_equal(kept, formulas.choose_bank(labels, 100, seed=3))
    assert formulas.choose_bank(labels, 5000).tolist() == list(range(1310))
    many = np.arange(60) // 2
    assert len(formulas.choose_bank(many, 20)) <= 20


def images(values: np.ndarray, groups: list[str | None] | None = None) -> ImageSet:
    return ImageSet({"energy": values}, np.zeros(len(values), int), groups or [None] * len(values))


def test_auroc_and_fpr95_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    known, strange = np.round(rng.normal(0, 1, 900), 1), np.round(rng.normal(1.2, 1, 200), 1)  # with ties
    both, truth = np.concatenate([known, strange]), np.repeat([0, 1], [900, 200])
    found = separations(images(known), {"other": images(strange)}, draws=200)["other"]["energy"]
    assert found.auroc.value == pytest.approx(roc_auc_score(truth, both))
    assert (found.auroc.n, found.fpr95.n) == (1100, 200)
    # Known images are the positives of FPR95: at the least false positives with 95 % of them passing.
    false, true, _ = roc_curve(1 - truth, -both, drop_intermediate=False)
    assert found.fpr95.value == pytest.approx(false[true >= 0.95].min())
    assert fpr95(known, strange) == found.fpr95.value
    false, true, _ = roc_curve(truth, both, drop_intermediate=False)
    curve = np.array(roc_points(known, strange, 50))
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]
    exact = {tuple(np.round(point, 9)) for point in zip(false, true, strict=True)}
    assert {tuple(np.round(point, 9)) for point in curve} <= exact


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    from scipy.stats import norm

    rng = np.random.default_rng(9)
    auroc, passing = norm.cdf(1.5 / np.sqrt(2)), norm.cdf(norm.ppf(0.95) - 1.5)
    hits = np.zeros(2)
    for repeat in range(120):
        sets = images(rng.normal(0, 1, 300)), {"other": images(rng.normal(1.5, 1, 60))}
        found = separations(*sets, draws=150, seed=repeat)["other"]["energy"]
        hits += [
            found.auroc.low <= auroc <= found.auroc.high,
            found.fpr95.low <= passing <= found.fpr95.high,
        ]
    assert (hits / 120 > 0.89).all()  # 95 % minus three standard errors


def test_groups_widen_intervals() -> None:
    rng = np.random.default_rng(2)
    known, strange = rng.normal(0, 1, 60), rng.normal(1, 1, 40)
    one = separations(images(known), {"o": images(strange)}, draws=300)["o"]["energy"]
    groups = [[f"g{i % n}" for i in range(8 * n)] for n in (60, 40)]
    copied = (
        images(np.tile(values, 8), group) for values, group in zip((known, strange), groups, strict=True)
    )
    first, second = copied
    ten = separations(first, {"o": second}, draws=300)["o"]["energy"]
    for name in ("auroc", "fpr95"):
        a, b = getattr(one, name), getattr(ten, name)
        assert b.value == pytest.approx(a.value, abs=0.03)
        assert b.high - b.low == pytest.approx(a.high - a.low, rel=0.25)


@pytest.mark.parametrize(("known", "strange"), [([1.0], [2.0]), ([1.0, 1.0], [1.0]), ([3.0] * 5, [1.0, 2.0])])
def test_one_image_ties_and_perfect_separation_give_defined_intervals(known: list, strange: list) -> None:
    found = separations(images(np.array(known)), {"o": images(np.array(strange))}, draws=20)["o"]["energy"]
    for interval in (found.auroc, found.fpr95):
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.high - interval.low > 0.3  # so few images say little
    with pytest.raises(ValueError, match="empty"):
        separations(images(np.array(known)), {"o": images(np.zeros(0))})
