"""Focal loss against float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cytodino_hf.losses.focal import Focal, Options

LOGITS = 3 * np.cos(np.arange(24, dtype=np.float64).reshape(6, 4) * 0.9)
LABELS = np.array([0, 2, 1, 3, 0, 2])
COUNTS = [10, 4, 1, 5]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_value_is_one_minus_p_to_the_gamma_times_cross_entropy(gamma: float) -> None:
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(axis=1, keepdims=True)
    p_label = p[np.arange(6), LABELS]
    weight = 20 / (4 * np.array(COUNTS))
    expected = (weight[LABELS] * (1 - p_label) ** gamma * -np.log(p_label)).mean()
    loss = Focal(Options(gamma=gamma, class_weights="balanced"), COUNTS)
    assert float(loss(torch.tensor(LOGITS), torch.tensor(LABELS))) == pytest.approx(expected, rel=1e-5)


def test_an_easy_image_counts_little() -> None:
    """p = .9 at gamma 2 counts one hundredth of its cross-entropy (Lin et al. 2017, section 3.2)."""
    logits = torch.tensor([[np.log(9.0), 0.0]])
    labels = torch.tensor([0])
    focal = Focal(Options(), [1, 1])(logits, labels)
    assert float(focal) == pytest.approx(0.01 * -np.log(0.9), rel=1e-4)
