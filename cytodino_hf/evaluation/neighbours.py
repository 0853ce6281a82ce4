"""Nearest neighbours among frozen features: the vote of DINO.

Source: Caron et al. 2021 (DINO), appendix: cosine similarity, each neighbour votes with exp(similarity / 0.07);
after Wu et al. 2018 (Instance Discrimination).
"""

from __future__ import annotations

import numpy as np

#: Neighbours of the two votes; those of DINO and DinoBloom.
NEIGHBOURS = (1, 20)
#: Of the vote; DINO's.
TEMPERATURE = 0.07
_SIMILARITIES_AT_ONCE = 8_000_000  # bounds the memory to some hundreds of megabytes
# Two equal pictures differ by rounding of the sum only, 1e-15; such similarities shall tie.
_DECIMALS = 12


def knn_probabilities(
    train: np.ndarray,
    labels: np.ndarray,
    queries: np.ndarray,
    k: int,
    num_classes: int,
    temperature: float = TEMPERATURE,
) -> np.ndarray:
    """The share of each class in the weighted vote of the k nearest training images.

    With k = 1 that is 1 for the class of the nearest image. Where images tie for the last place, those that come
    first in `train` vote.

    Args:
        train: (images, width) features.
        labels: (images,) their labels, 0 to `num_classes` - 1.
        queries: (queries, width) features to classify.
        k: Neighbours; all training images where there are fewer.
        num_classes: Columns of the result.
        temperature: Small: the nearest alone decides; large: all count alike.

    Returns:
        float32 (queries, classes), each row sums to 1.

    Raises:
        ValueError: No training image, k below 1, or a label out of range.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if not len(train) or k < 1:
        raise ValueError(f"{len(train)} training images and k = {k}: at least one of each is needed")
    if labels.shape != (len(train),) or labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be {len(train)} whole numbers from 0 to {num_classes - 1}")
    k = min(k, len(train))
    bank = _unit(train)
    of_class = np.eye(num_classes)[labels]  # (images, classes)
    step = max(1, _SIMILARITIES_AT_ONCE // len(train))
    votes = [
        _vote(_unit(queries[start : start + step]) @ bank.T, of_class, k, temperature)
        for start in range(0, len(queries), step)
    ]
    return np.concatenate(votes) if votes else np.zeros((0, num_classes), dtype=np.float32)


def knn_predict(
    train: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, num_classes: int
) -> np.ndarray:
    """The class that wins the vote of `knn_probabilities`, int64 (queries,); of equal ones the first."""
    return knn_probabilities(train, labels, queries, k, num_classes).argmax(axis=1)


def _vote(similarity: np.ndarray, of_class: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """(queries, images) cosine similarities -> float32 (queries, classes)."""
    similarity = similarity.round(_DECIMALS)
    last = similarity.shape[1] - k
    farthest = np.partition(similarity, last, axis=1)[:, last, None]  # of the k nearest
    is_nearer, ties = similarity > farthest, similarity == farthest
    places_left = k - is_nearer.sum(axis=1, keepdims=True)
    chosen = is_nearer | (ties & (ties.cumsum(axis=1) <= places_left))
    # Subtracting the largest changes no share and keeps exp within bounds for any temperature.
    weight = np.exp((similarity - similarity.max(axis=1, keepdims=True)) / temperature) * chosen
    votes = weight @ of_class
    return (votes / votes.sum(axis=1, keepdims=True)).astype(np.float32)


def _unit(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; a row of zeros stays as it is."""
    features = np.asarray(features, dtype=np.float64)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1.0)
