"""Likelihood, Brier score and calibration error, against plain loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import log_loss

from cytodino_hf.evaluation.probability_metrics import CALIBRATION_BINS, probability_metrics


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    logits = 3 * np.sin(np.arange(60 * 4).reshape(60, 4) ** 1.4)
    return logits, np.arange(60) * 3 % 4


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_likelihood_and_brier(answers: tuple) -> None:
    logits, labels = answers
    found, probabilities = probability_metrics(logits, labels), _softmax(logits)
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities), rel=1e-12)
    brier = sum(
        sum((p - (c == label)) ** 2 for c, p in enumerate(row))
        for row, label in zip(probabilities, labels, strict=True)
    )
    assert found["brier"] == pytest.approx(brier / 60, rel=1e-12)


def test_calibration_error_bin_by_bin(answers: tuple) -> None:
    logits, labels = answers
    probabilities = _softmax(logits)
    error = 0.0
    for low in range(CALIBRATION_BINS):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, labels, strict=True)
            if low / 15 <= row.max() < (low + 1) / 15
        ]
        if inside:
            confidence, right = np.mean(inside, axis=0)
            error += len(inside) / 60 * abs(confidence - right)
    assert probability_metrics(logits, labels)["ece"] == pytest.approx(error, rel=1e-12)


def test_a_confidence_of_exactly_one_counts() -> None:
    # Both are called class 0 with certainty, one of them wrongly.
    found = probability_metrics(np.array([[800.0, 0.0], [800.0, 0.0]]), np.array([0, 1]))
    assert found["ece"] == pytest.approx(0.5)
    assert found["brier"] == pytest.approx(1.0)
    assert found["nll"] == pytest.approx(400.0)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="labels"):
        probability_metrics(np.zeros((1, 2)), np.array([-1]))
    with pytest.raises(ValueError, match="no image"):
        probability_metrics(np.zeros((0, 2)), np.zeros(0, dtype=int))
