"""Scalings find what made the answers, against scikit-learn and SciPy, and the simpler one wins ties."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from cytodino_hf.evaluation.calibration.scaling import (
    by_temperature,
    choose_scaling,
    temperature_scaling,
    vector_scaling,
)
from cytodino_hf.evaluation.calibration.temperature import image_nll


def drawn(n: int, scale: np.ndarray, bias: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose labels are drawn from softmax(logits * scale + bias)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, len(scale)))
    shares = softmax(logits * scale + bias, axis=1)
    labels = (rng.random((n, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(0, len(scale) - 1)
    return logits, labels


def choose(logits: np.ndarray, labels: np.ndarray, groups: list[str | None] | None = None):
    ids = [f"{i:05}" for i in range(len(labels))]
    return choose_scaling(logits, labels, groups or [None] * len(labels), ids)


def test_nll_of_each_image_is_that_of_scipy_even_far_out() -> None:
    logits, labels = drawn(50, np.ones(4), np.zeros(4))
    logits[0] = [2000.0, -2000.0, 0.0, 0.0]
    expected = -log_softmax(logits, axis=1)[np.arange(50), labels]
    np.testing.assert_allclose(image_nll(logits, labels), expected, rtol=1e-12)


def test_vector_scaling_finds_what_the_labels_were_drawn_with() -> None:
    scale, bias = np.array([0.5, 1.0, 1.5, 0.8]), np.array([0.6, -0.4, -0.5, 0.3])
    logits, labels = drawn(30_000, scale, bias)
    found = vector_scaling(logits, labels, temperature_scaling(logits, labels))
    assert found is not None
    np.testing.assert_allclose(found.scale, scale, atol=0.05)
    np.testing.assert_allclose(found.bias - found.bias.mean(), bias, atol=0.08)


def test_vector_scaling_is_the_bottom_of_the_valley_that_a_method_without_slopes_finds() -> None:
    logits, labels = drawn(400, np.array([0.5, 1.5, 1.0]), np.array([0.5, 0.0, -0.5]), seed=2)
    found = vector_scaling(logits, labels, temperature_scaling(logits, labels))
    assert found is not None

    def nll(x: np.ndarray) -> float:
        return float(-log_softmax(logits * x[:3] + x[3:], axis=1)[np.arange(400), labels].mean())

    other = minimize(nll, [1, 1, 1, 0, 0, 0], method="Powell", options={"xtol": 1e-8, "ftol": 1e-12})
    assert nll(np.concatenate([found.scale, found.bias])) == pytest.approx(other.fun, abs=1e-6)


def test_a_class_with_few_images_keeps_the_temperature() -> None:
    logits, labels = drawn(600, np.full(4, 0.5), np.array([0.0, 0.0, 0.0, -9.0]), seed=1)
    assert (labels == 3).sum() < 20
    start = temperature_scaling(logits, labels)
    found = vector_scaling(logits, labels, start)
    assert found is not None
    assert found.held == (3,)
    assert (found.scale[3], found.bias[3]) == (start.scale[3], 0.0)
    assert vector_scaling(logits[labels == 3], labels[labels == 3], start) is None, "no class has 20 images"


def test_vector_scaling_is_chosen_where_classes_differ() -> None:
    choice = choose(*drawn(4000, np.array([0.4, 1.6, 1.0]), np.array([0.8, 0.0, -0.8])))
    assert choice.scaling.method == "vector"
    assert choice.cross_validated["vector"] < choice.cross_validated["temperature"]
    assert "Vector scaling" in choice.reason


def test_temperature_wins_ties_with_15_images_a_class() -> None:
    """One temperature made the answers: vector scaling can only overfit."""
    wins = [choose(*drawn(21 * 15, np.full(21, 0.5), np.zeros(21), seed=s)).scaling.method for s in range(10)]
    assert set(wins) == {"temperature"}


def test_with_20_images_a_class_vector_scaling_is_tried_and_overfits() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 25)
    logits = rng.normal(0, 1, (250, 10))
    logits[np.arange(250), labels] += 1.5
    # Bayes: 1.5 x logits; twice too sure.
    choice = choose(3 * logits, labels)
    assert choice.scaling.method == "temperature"
    assert choice.scaling.temperature == pytest.approx(2.0, abs=0.35)
    assert choice.cross_validated["vector"] > choice.cross_validated["temperature"]


def test_what_is_calibrated_stays_near_it() -> None:
    logits, labels = drawn(3000, np.ones(4), np.zeros(4), seed=4)
    choice = choose(logits, labels)
    assert choice.scaling.method in ("none", "temperature")
    assert choice.scaling.temperature == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(
    ("labels", "word"),
    [([0] * 25, "right on all 25"), ([1] * 25, "wrong on all 25"), ([0, 1] * 5, "too few")],
    ids=["all right", "all wrong", "ten images"],
)
def test_what_cannot_be_told_is_left_alone(labels: list[int], word: str) -> None:
    logits = np.tile([5.0, -5.0], (len(labels), 1))
    choice = choose(logits, np.array(labels))
    assert choice.scaling.method == "none"
    assert word in choice.reason
    assert set(choice.cross_validated.values()) == {None}
    np.testing.assert_array_equal(choice.scaling.apply(logits), logits.astype(np.float32))


def test_one_group_alone_cannot_be_cross_validated() -> None:
    logits, labels = drawn(200, np.full(3, 0.5), np.zeros(3))
    choice = choose(logits, labels, ["patient"] * 200)
    assert choice.scaling.method == "temperature"
    assert "one group" in choice.reason


def test_temperature_changes_no_answer_and_divides() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    scaled = by_temperature(2.5, 4).apply(logits)
    np.testing.assert_allclose(scaled, logits / 2.5, rtol=1e-6)
    assert scaled.dtype == np.float32
    assert (scaled.argmax(1) == logits.argmax(1)).all()
