"""The vote of nearest neighbours, against a loop over images and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from cytodino_hf.evaluation import neighbours
from cytodino_hf.evaluation.neighbours import knn_predict, knn_probabilities


@pytest.fixture
def some() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """40 training images of 3 classes and 9 queries, by formula."""
    train = np.sin(np.arange(40 * 5).reshape(40, 5) ** 1.3).astype(np.float32)
    queries = np.cos(np.arange(9 * 5).reshape(9, 5) ** 1.7).astype(np.float32) * 3
    return train, np.arange(40) * 7 % 3, queries


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_votes_equal_a_loop_over_images(some: tuple, k: int) -> None:
    train, labels, queries = some
    found = knn_probabilities(train, labels, queries, k, 4, temperature=0.1)
    for query, row in zip(queries.astype(float), found, strict=True):
        similarity = [
            sum(a * b for a, b in zip(query, image, strict=True)) / (math.hypot(*query) * math.hypot(*image))
            for image in train.astype(float)
        ]
        nearest = sorted(range(40), key=lambda i: -similarity[i])[:k]
        votes = [sum(math.exp(similarity[i] / 0.1) for i in nearest if labels[i] == c) for c in range(4)]
        np.testing.assert_allclose(row, np.array(votes) / sum(votes), rtol=1e-5, atol=1e-9)


def test_one_neighbour_is_the_nearest_by_cosine_and_certain(some: tuple) -> None:
    train, labels, queries = some
    reference = KNeighborsClassifier(1, metric="cosine").fit(train, labels).predict(queries)
    found = knn_probabilities(train, labels, queries, 1, 3)
    assert (found == np.eye(3)[reference]).all()
    assert (knn_predict(train, labels, queries, 1, 3) == reference).all()
    assert (knn_predict(train, labels, train, 1, 3) == labels).all()


def test_chunks_change_nothing(some: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, queries = some
    whole = knn_probabilities(train, labels, queries, 5, 3)
    monkeypatch.setattr(neighbours, "_SIMILARITIES_AT_ONCE", 80)
    np.testing.assert_array_equal(whole, knn_probabilities(train, labels, queries, 5, 3))


def test_of_equal_images_the_first_vote() -> None:
    # Rows 1 to 3 have the same direction; two places are left for them after row 0.
    train = np.array([[1, 0.2], [0.3, 0.6], [0.1, 0.2], [0.7, 1.4]])
    found = knn_probabilities(train, np.array([0, 1, 2, 3]), np.array([[1.0, 0.0]]), 3, 4)[0]
    assert (found > 0).tolist() == [True, True, True, False]
    assert found[1] == found[2]


def test_a_small_temperature_does_not_overflow(some: tuple) -> None:
    train, labels, queries = some
    found = knn_probabilities(train, labels, queries, 20, 3, temperature=1e-4)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, knn_probabilities(train, labels, queries, 1, 3), atol=1e-6)


def test_more_neighbours_than_images_are_all_images(some: tuple) -> None:
    train, labels, queries = some
    np.testing.assert_array_equal(
        knn_probabilities(train, labels, queries, 100, 3), knn_probabilities(train, labels, queries, 40, 3)
    )


def test_features_of_zeros_are_as_near_to_all() -> None:
    found = knn_probabilities(np.eye(3), np.arange(3), np.zeros((1, 3)), 3, 3)
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("train", "labels", "k"),
    [(np.zeros((0, 2)), [], 1), (np.eye(2), [0, 1], 0), (np.eye(2), [0, 3], 1), (np.eye(2), [0], 1)],
)
def test_what_makes_no_sense_is_refused(train: np.ndarray, labels: list[int], k: int) -> None:
    with pytest.raises(ValueError, match=r"train|labels"):
        knn_probabilities(train, np.array(labels, dtype=int), np.eye(2), k, 3)


def test_no_query_gives_no_row() -> None:
    assert knn_probabilities(np.eye(2), np.arange(2), np.zeros((0, 2)), 1, 2).shape == (0, 2)
