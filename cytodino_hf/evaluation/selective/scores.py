"""How far each answer can be trusted: one number per image, higher is surer, from logits alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from ...taxonomy import Taxonomy, mistake_costs

#: Scores and how a report calls them.
SCORES: Mapping[str, str] = MappingProxyType(
    {
        "max_probability": "largest probability",
        "margin": "margin of the two largest probabilities",
        "entropy": "negative entropy",
        "energy": "negative energy",
        "expected_cost": "negative expected clinical cost",
    }
)


def confidence_scores(logits: np.ndarray, taxonomy: Taxonomy) -> dict[str, np.ndarray]:
    """All scores of `SCORES`, computed in float64.

    `max_probability`: max p. `margin`: largest minus second largest p. `entropy`: sum p log p. `energy`: log sum exp of
    the logits. `expected_cost`: minus the sum over true classes t of p_t times the cost of the answer given for t
    (`taxonomy.mistake_costs`); left out where the taxonomy names no pair of critical and safe classes, for it would be
    the same for every image.

    Args:
        logits: (images, classes), calibrated or as the model gives them.
        taxonomy: The classes, in the order of the logits.

    Returns:
        Name -> (images,) float64; higher is surer.

    Source:
        Energy: Liu et al. 2020, Energy-based out-of-distribution detection (arXiv 2010.03759), equation 4.
    """
    wide = np.asarray(logits, dtype=np.float64)
    top = wide.max(axis=1, keepdims=True)
    log_total = top + np.log(np.exp(wide - top).sum(axis=1, keepdims=True))
    log_p = wide - log_total
    p = np.exp(log_p)
    largest = -np.partition(-p, 1, axis=1)[:, :2] if p.shape[1] > 1 else np.column_stack([p, 0 * p])
    scores = {
        "max_probability": largest[:, 0],
        "margin": largest[:, 0] - largest[:, 1],
        # A share that underflows to 0 has a finite logarithm here, so 0 log 0 is 0.
        "entropy": (p * log_p).sum(axis=1),
        "energy": log_total[:, 0],
    }
    costs = np.array(mistake_costs(taxonomy))
    if costs.any():
        scores["expected_cost"] = -expected_costs(p, costs, wide.argmax(axis=1))
    return scores


def expected_costs(probabilities: np.ndarray, costs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Mean cost of each answer over the classes the cell may be of: sum over t of p_t C[t, answer].

    Args:
        probabilities: (images, classes).
        costs: (classes, classes), row = true class, column = answer.
        answers: (images,) labels.
    """
    cost: np.ndarray = np.einsum("nt,tn->n", probabilities, costs[:, answers])
    return cost
