"""Calibration errors against torchmetrics, scikit-learn and loops in the test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from cytodino_hf.evaluation.calibration.errors import (
    CALIBRATION_METRICS,
    CalibrationErrors,
    ece_of_perfect_calibration,
    equal_mass_bins,
    equal_width_bins,
    reliability_bins,
)
from cytodino_hf.evaluation.probability_metrics import probability_metrics
from cytodino_hf.evaluation.statistics import wilson_interval


def answers(n: int = 500, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(0, 1.5, (n, classes))
    logits[np.arange(n), labels] += 1.5
    return logits, labels


def once(logits: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    scorer = CalibrationErrors(logits, labels)
    values, by_class = scorer.values_of(scorer.sums(np.ones((1, len(labels)))))
    assert tuple(values) == CALIBRATION_METRICS
    return {name: float(value[0]) for name, value in values.items()}, by_class[0]


def test_equal_width_is_that_of_torchmetrics_and_of_the_metrics_of_training() -> None:
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics")
    logits, labels = answers()
    logits[:3, 0] = 900.0  # confidence of exactly 1
    values, _ = once(logits, labels)
    metric = torchmetrics.classification.MulticlassCalibrationError(num_classes=4, n_bins=15, norm="l1")
    found = float(metric(torch.tensor(softmax(logits, axis=1)), torch.tensor(labels)))
    assert values["ece"] == pytest.approx(found, abs=1e-6)
    for name, value in probability_metrics(logits, labels).items():
        assert values[name] == pytest.approx(value, rel=1e-12)


def test_equal_mass_is_that_of_quantile_bins_of_scikit_learn() -> None:
    logits, labels = answers(997)
    confidence = softmax(logits, axis=1).max(axis=1)
    correct = logits.argmax(axis=1) == labels
    right, sure = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    bins = equal_mass_bins(confidence)
    counts = np.bincount(bins)
    assert len(counts) == 15
    assert counts.max() - counts.min() <= 1
    expected = (np.abs(right - sure) * counts).sum() / len(labels)
    assert once(logits, labels)[0]["ece_adaptive"] == pytest.approx(expected, rel=1e-9)


def test_classwise_is_a_loop_over_classes_and_bins() -> None:
    logits, labels = answers(300)
    p = softmax(logits, axis=1)
    expected = []
    for k in range(4):
        off = 0.0
        for b in range(15):
            inside = (p[:, k] * 15 >= b) & (p[:, k] * 15 < b + 1)
            if inside.any():
                off += inside.mean() * abs(p[inside, k].mean() - (labels[inside] == k).mean())
        expected.append(off)
    values, by_class = once(logits, labels)
    np.testing.assert_allclose(by_class, expected, rtol=1e-9)
    assert values["ece_classwise"] == pytest.approx(np.mean(expected), rel=1e-9)


def test_weights_are_copies_of_images() -> None:
    logits, labels = answers(60)
    weights = np.random.default_rng(1).integers(0, 3, (2, 60)).astype(float)
    scorer = CalibrationErrors(logits, labels)
    values, by_class = scorer.values_of(scorer.sums(weights))
    for draw in range(2):
        rows = np.repeat(np.arange(60), weights[draw].astype(int))
        copied, of_class = once(logits[rows], labels[rows])
        for name in ("nll", "brier", "ece", "ece_classwise", "accuracy"):
            assert values[name][draw] == pytest.approx(copied[name], rel=1e-9), name
        np.testing.assert_allclose(by_class[draw], of_class, rtol=1e-9)


def test_certain_answers_stand_in_the_last_bin_and_count() -> None:
    """Two certain answers, one wrong: every error is one half; each of both classes is off by one image of two."""
    logits = np.array([[900.0, 0.0], [900.0, 0.0]])
    values, by_class = once(logits, np.array([0, 1]))
    assert values["ece"] == values["ece_adaptive"] == values["accuracy"] == 0.5
    assert by_class.tolist() == [0.5, 0.5]
    assert equal_width_bins(np.array([0.0, 1.0])).tolist() == [0, 14]
    assert np.isfinite(list(values.values())).all()


def test_one_image_one_class_and_no_image() -> None:
    values, _ = once(np.array([[3.0]]), np.array([0]))
    assert values == dict.fromkeys(CALIBRATION_METRICS, 0.0) | {"accuracy": 1.0}
    with pytest.raises(ValueError, match="no image"):
        CalibrationErrors(np.empty((0, 2)), np.empty(0, int))


def test_reliability_bins_hold_every_image_once_with_wilson_intervals() -> None:
    logits, labels = answers(400)
    bins = reliability_bins(logits, labels, [None] * 400)
    confidence = softmax(logits, axis=1).max(axis=1)
    right = logits.argmax(axis=1) == labels
    assert sum(b.images for b in bins) == 400
    last = confidence >= 14 / 15
    expected = wilson_interval(int(right[last].sum()), int(last.sum()))
    assert (bins[-1].accuracy, bins[-1].low, bins[-1].high) == (expected.value, expected.low, expected.high)
    assert bins[-1].confidence == pytest.approx(confidence[last].mean())
    grouped = reliability_bins(logits, labels, [f"g{i // 40}" for i in range(400)])
    assert all(g.high - g.low >= b.high - b.low - 1e-12 for g, b in zip(grouped, bins, strict=True)), (
        "images of a group never count for more"
    )


def test_perfect_calibration_is_what_fresh_labels_show() -> None:
    """Labels drawn from the probabilities themselves give an error of that size."""
    rng = np.random.default_rng(0)
    logits, _ = answers(800)
    p = softmax(logits, axis=1)
    found = []
    for _ in range(60):
        labels = (rng.random((800, 1)) > p.cumsum(axis=1)).sum(axis=1).clip(0, 3)
        found.append(probability_metrics(logits, labels)["ece"])
    mean, high = ece_of_perfect_calibration(logits)
    assert mean == pytest.approx(np.mean(found), abs=4 * np.std(found) / np.sqrt(60))
    assert mean < high
    assert high == pytest.approx(np.quantile(found, 0.95), rel=0.2)


def test_the_largest_bias_is_that_of_a_folded_normal_and_gone_where_a_bin_is_clearly_off() -> None:
    """Draws of the sums are made by hand; of certain answers nothing else is added."""
    logits, labels = answers(50, classes=2)
    scorer = CalibrationErrors(1e6 * logits, labels)
    rng = np.random.default_rng(0)
    sums, drawn = np.zeros((1, 3 + 4 * 15)), np.zeros((4000, 3 + 4 * 15))
    drawn[:, 3] = rng.normal(0, 0.01, 4000)  # around 0: the mean of |x| is 0.01 sqrt(2 / pi)
    sums[0, 3 + 15] = 0.5
    drawn[:, 3 + 15] = rng.normal(0.5, 0.01, 4000)  # clearly off
    biases, by_class = scorer.largest_biases(sums, drawn)
    assert biases["ece"] == pytest.approx(np.abs(drawn[:, 3]).mean(), rel=0.03)
    assert biases["ece_adaptive"] == pytest.approx(0.0, abs=1e-12)
    assert by_class.tolist() == [0.0, 0.0]


def test_a_bin_without_a_mistake_may_be_off_by_what_its_confidence_allows() -> None:
    """100 right answers of confidence 0.97: drawn again they never differ, though three were to be wrong."""
    odds = np.log(0.97 / 0.03)
    logits, labels = np.tile([odds, 0.0], (100, 1)), np.zeros(100, int)
    scorer = CalibrationErrors(logits, labels)
    sums = scorer.sums(np.ones((1, 100)))
    biases, by_class = scorer.largest_biases(sums, np.repeat(sums, 20, axis=0))
    error = np.sqrt(0.97 * 0.03 / 100)
    assert biases["ece"] == biases["ece_adaptive"]
    # The gap of 0.03 is below twice that error, so it may be none at all: then the mean of |x| is error sqrt(2 / pi).
    assert biases["ece"] == pytest.approx(error * np.sqrt(2 / np.pi), rel=1e-6)
    np.testing.assert_allclose(by_class, biases["ece"])
