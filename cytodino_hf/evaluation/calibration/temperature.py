"""One number that makes a model as sure of itself as it is right: the temperature its logits are divided by."""

from __future__ import annotations

import numpy as np

#: Bounds of a temperature, far beyond what any useful model needs on both sides.
COLDEST, HOTTEST = 0.05, 20.0


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature with the least negative log-likelihood; below 1 where the model is too modest.

    Args:
        logits: (images, classes) of images that the model was neither trained nor chosen on.
        labels: (images,) true classes.

    Returns:
        Between 0.05 and 20.

    Raises:
        ValueError: There are no images, or a label is no column of the logits.

    Source:
        Guo et al. 2017, On calibration of modern neural networks (arXiv 1706.04599), section 4.2.
    """
    from scipy.optimize import minimize_scalar

    if not len(labels):
        raise ValueError("a temperature needs labelled images; there are none")
    logits = np.asarray(logits, dtype=np.float64)
    # One valley: the likelihood is concave in 1 / T. Its logarithm makes both sides about as steep.
    found = minimize_scalar(
        lambda log_t: image_nll(logits / np.exp(log_t), labels).mean(),
        bounds=(np.log(COLDEST), np.log(HOTTEST)),
        method="bounded",
    )
    return float(np.exp(found.x))


def image_nll(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log of the probability of the true class of each image, in nats, computed in float64.

    Args:
        logits: (images, classes).
        labels: (images,) true classes.

    Raises:
        ValueError: A label is no column of the logits.
    """
    logits, labels = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if labels.shape != logits.shape[:1] or (labels < 0).any() or (labels >= logits.shape[1]).any():
        raise ValueError(f"labels must be {len(logits)} whole numbers from 0 to {logits.shape[1] - 1}")
    shifted = logits - logits.max(axis=1, keepdims=True)
    nll: np.ndarray = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
    return nll
