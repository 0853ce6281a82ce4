"""Cross-entropy against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytodino_hf.losses.cross_entropy import CrossEntropy, Options

LOGITS = 2 * np.sin(np.arange(15, dtype=np.float64).reshape(5, 3) * 1.3)
LABELS = np.array([0, 2, 1, 1, 0])
COUNTS = [10, 4, 1]


def test_value_is_the_batch_mean_of_weighted_smoothed_terms() -> None:
    """Term by term: target 1 - e + e/K on the label, e/K elsewhere, times the weight of the label."""
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    weight = np.sqrt(15 / (3 * np.array(COUNTS)))
    total = 0.0
    for row, label in zip(log_p, LABELS, strict=True):
        target = np.full(3, 0.2 / 3)
        target[label] += 0.8
        total += weight[label] * -(target * row).sum()
    loss = CrossEntropy(Options(smoothing=0.2, class_weights="sqrt_balanced"), COUNTS)
    assert float(loss(torch.tensor(LOGITS), torch.tensor(LABELS))) == pytest.approx(total / 5, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_unweighted_value_is_that_of_torch(smoothing: float) -> None:
    logits, labels = torch.tensor(LOGITS, dtype=torch.float32), torch.tensor(LABELS)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(CrossEntropy(Options(smoothing=smoothing), COUNTS)(logits, labels), expected)


def test_the_mean_divides_by_images_not_by_weights() -> None:
    """Two images of one class: doubling the weight of that class doubles the loss."""
    logits, labels = torch.tensor([[1.0, 0.0], [0.5, 0.2]]), torch.tensor([1, 1])
    plain = CrossEntropy(Options(), [3, 1])(logits, labels)
    weighted = CrossEntropy(Options(class_weights="balanced"), [3, 1])(logits, labels)
    assert float(weighted / plain) == pytest.approx(4 / (2 * 1))
