"""Four scores of how unlike the known cells an image is; all are higher the stranger it is.

- `max_softmax`: minus the log probability of the most probable class (Hendrycks and Gimpel 2017, arXiv 1610.02136).
- `energy`: minus the log of the summed exponentials of the logits (Liu et al. 2020, arXiv 2010.03759), temperature 1.
- `knn`: distance to the k-th nearest known embedding, all of length 1 (Sun et al. 2022, arXiv 2204.06507).
- `mahalanobis`: squared distance to the nearest class mean under one covariance for all classes (Lee et al. 2018,
  arXiv 1807.03888), shrunk as by Ledoit and Wolf 2004.

The first two need logits only; logits are those of the model, not calibrated ones.
"""

from __future__ import annotations

import numpy as np

LOGIT_SCORES = ("max_softmax", "energy")
EMBEDDING_SCORES = ("knn", "mahalanobis")
SCORES = (*LOGIT_SCORES, *EMBEDDING_SCORES)

#: Most known embeddings that are kept for `knn`: 4 MB at width 1024.
BANK_ROWS = 2048
#: Which nearest embedding counts. A class of fewer known images looks strange to `knn`, so k is small.
NEIGHBOURS = 5

_LEAST_VARIANCE = 1e-12  # of embeddings that are all alike: its inverse is still a float32
_DISTANCES_AT_ONCE = 8_000_000  # bounds the memory to some tens of megabytes


def logit_scores(logits: np.ndarray) -> dict[str, np.ndarray]:
    """`max_softmax` and `energy`, float64 (images,) each.

    Args:
        logits: (images, classes), as the model gave them.
    """
    logits = np.asarray(logits, dtype=np.float64)
    top = logits.argmax(axis=1)
    largest = logits[np.arange(len(logits)), top]
    others = np.exp(logits - largest[:, None])
    others[np.arange(len(logits)), top] = 0.0
    # log1p keeps apart images whose probability is 1 but for the last digits.
    doubt = np.log1p(others.sum(axis=1))
    return {"max_softmax": doubt, "energy": -(largest + doubt)}


def choose_bank(labels: np.ndarray, rows: int = BANK_ROWS, *, seed: int = 0) -> np.ndarray:
    """Which known images to keep: as many of each class as there is room for, all of the small ones.

    Args:
        labels: (images,) true classes.
        rows: Most images to keep.
        seed: Same seed, same images.

    Returns:
        Row numbers in rising order.
    """
    rng = np.random.default_rng(seed)
    classes, counts = np.unique(labels, return_counts=True)
    kept: list[np.ndarray] = []
    room = rows
    for place, at in enumerate(np.argsort(counts, kind="stable")):
        share = min(int(counts[at]), room // (len(classes) - place))
        kept.append(rng.choice(np.flatnonzero(labels == classes[at]), share, replace=False))
        room -= share
    return np.sort(np.concatenate(kept)) if kept else np.zeros(0, dtype=np.int64)


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays as it is."""
    embeddings = np.asarray(embeddings, dtype=np.float32)
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    scaled: np.ndarray = embeddings / np.where(length > 0, length, 1.0)
    return scaled


def knn_distance(bank: np.ndarray, embeddings: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Distance of each image to its k-th nearest known one, both of length 1; float64 (images,).

    Args:
        bank: (known, width), rows of length 1.
        embeddings: (images, width), of any length.
        k: Which neighbour; the farthest there is where the bank is smaller.
    """
    bank = np.asarray(bank, dtype=np.float32)
    k = min(k, len(bank))
    step = max(1, _DISTANCES_AT_ONCE // len(bank))
    found = [np.zeros(0)]
    for start in range(0, len(embeddings), step):
        similarity = unit_rows(embeddings[start : start + step]) @ bank.T
        kth = np.partition(similarity, len(bank) - k, axis=1)[:, len(bank) - k]
        # |a - b|^2 = 2 - 2 a.b; rounding can make it a little negative.
        found.append(np.sqrt(np.maximum(2 - 2 * kth.astype(np.float64), 0)))
    return np.concatenate(found)


def class_means(embeddings: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels that occur, and the mean embedding of each, float64 (classes, width)."""
    present = np.unique(labels)
    means = np.stack([embeddings[labels == label].mean(axis=0, dtype=np.float64) for label in present])
    return present, means


def fit_whitening(embeddings: np.ndarray, labels: np.ndarray, means: np.ndarray) -> np.ndarray:
    """A matrix W with W W^T = the inverse of the shared covariance, float64 (width, width).

    Args:
        embeddings: (images, width).
        labels: (images,) classes.
        means: Of `class_means`.
    """
    from scipy.linalg import solve_triangular
    from sklearn.covariance import ledoit_wolf

    _, place = np.unique(labels, return_inverse=True)
    centred = np.asarray(embeddings, dtype=np.float32) - means[place].astype(np.float32)
    covariance = ledoit_wolf(centred, assume_centered=True)[0].astype(np.float64)
    # A direction without any spread, as of a head that never uses it, would have no inverse.
    floor = max(1e-6 * float(np.trace(covariance)) / len(covariance), _LEAST_VARIANCE)
    lower = np.linalg.cholesky(covariance + floor * np.eye(len(covariance)))
    whitening: np.ndarray = solve_triangular(lower, np.eye(len(covariance)), lower=True).T
    return whitening


def mahalanobis_distance(whitening: np.ndarray, means: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Squared distance of each image to the nearest class mean, float64 (images,).

    Args:
        whitening: (width, width), of `fit_whitening`.
        means: (classes, width).
        embeddings: (images, width).
    """
    whitening, means = (np.asarray(a, dtype=np.float32) for a in (whitening, means))
    centre = means.mean(axis=0)  # distances of small numbers lose less to rounding
    targets = (means - centre) @ whitening
    squares = (targets**2).sum(axis=1)
    step = max(1, _DISTANCES_AT_ONCE // whitening.shape[0])
    found = [np.zeros(0)]
    for start in range(0, len(embeddings), step):
        moved = (np.asarray(embeddings[start : start + step], dtype=np.float32) - centre) @ whitening
        # |a - b|^2 = |a|^2 + |b|^2 - 2 a.b
        nearest = (squares - 2 * (moved @ targets.T)).min(axis=1)
        found.append(np.maximum((moved**2).sum(axis=1).astype(np.float64) + nearest, 0))
    return np.concatenate(found)
