"""The temperature is the one that made the answers."""

from __future__ import annotations

import numpy as np
import pytest

from cytodino_hf.evaluation.calibration.temperature import fit_temperature


@pytest.mark.parametrize("made_with", [0.5, 1.0, 3.0])
def test_the_temperature_the_labels_were_drawn_with_is_found(made_with: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    shares = np.exp(logits / made_with)
    shares /= shares.sum(axis=1, keepdims=True)
    labels = (rng.random((len(logits), 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(0, 4)
    assert fit_temperature(logits, labels) == pytest.approx(made_with, rel=0.04)


def test_it_is_the_bottom_of_the_curve() -> None:
    """Two classes, logit difference 2, three of four right: T = 2 / log 3 by hand."""
    logits = np.array([[1.0, -1.0]] * 4)
    assert fit_temperature(logits, np.array([0, 0, 0, 1])) == pytest.approx(2 / np.log(3), rel=1e-4)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="there are none"):
        fit_temperature(np.empty((0, 3)), np.empty(0, int))
