"""Metrics against plain loops over the images and against scikit-learn, and what degenerate input gives."""

from __future__ import annotations

import numpy as np
import pytest

from cytodino_hf.evaluation.metrics import (
    METRICS,
    class_metrics,
    confusion_matrix,
    confusion_metrics,
    critical_mistakes,
    load_cell_metrics,
    top_confusions,
)


def _images(seed: int, n: int = 200, k: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    return labels, np.where(rng.random(n) < 0.6, labels, rng.integers(0, k, n))


def test_confusion_matrix_counts_every_image_once() -> None:
    labels, predicted = _images(0)
    by_hand = np.zeros((5, 5), dtype=int)
    for t, p in zip(labels, predicted, strict=True):
        by_hand[t, p] += 1
    matrix = confusion_matrix(labels, predicted, 5)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, by_hand)
    np.testing.assert_array_equal(confusion_matrix(np.array([]), np.array([]), 3), np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [([0, -1], [0, 0], "label -1"), ([0, 1], [0, 3], "prediction 3"), ([0, 1], [0], "equal columns")],
)
def test_confusion_matrix_refuses_what_is_no_label(labels: list, predicted: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(labels), np.array(predicted), 3)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, precision_recall_fscore_support

    labels, predicted = _images(seed)
    values = confusion_metrics(confusion_matrix(labels, predicted, 5))
    assert tuple(values) == METRICS
    assert values["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert values["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(
            labels, predicted, labels=range(5), average=average, zero_division=0
        )
        for name, value in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            assert values[f"{average}_{name}"] == pytest.approx(value)


def test_macro_f1_by_hand_with_an_absent_a_silent_and_an_untrained_class() -> None:
    # class 2 has no true image but attracts one; class 3 is never predicted; class 4 was not trained
    matrix = np.array([[3, 1, 0, 0, 0], [0, 2, 1, 0, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0], [1, 0, 0, 0, 0]])
    counted = np.array([True, True, True, True, False])
    values = confusion_metrics(matrix, counted)
    f1 = [2 * 3 / (4 + 6), 2 * 2 / (3 + 3), 0.0]  # classes 0, 1, 3
    assert values["macro_f1"] == pytest.approx(sum(f1) / 3)
    assert values["macro_precision"] == pytest.approx((3 / 6 + 2 / 3 + 0) / 3)
    assert values["balanced_accuracy"] == values["macro_recall"] == pytest.approx((3 / 4 + 2 / 3 + 0) / 3)
    assert values["accuracy"] == values["weighted_recall"] == pytest.approx(5 / 10)
    assert values["weighted_f1"] == pytest.approx((4 * f1[0] + 3 * f1[1]) / 10)


def test_a_leading_axis_gives_the_same_as_one_matrix_at_a_time() -> None:
    matrices = np.random.default_rng(1).integers(0, 9, (7, 2, 4, 4))
    together = confusion_metrics(matrices)
    for place in np.ndindex(7, 2):
        alone = confusion_metrics(matrices[place])
        for name in METRICS:
            assert together[name][place] == pytest.approx(alone[name])


def test_one_class_only_gives_defined_values() -> None:
    assert set(confusion_metrics(np.array([[5]])).values()) == {1.0}
    only_wrong = confusion_metrics(np.array([[0, 4], [0, 0]]))
    assert all(value == 0 for value in only_wrong.values())


@pytest.mark.parametrize(
    ("matrix", "counted", "message"),
    [
        (np.zeros((3, 3), int), None, "no image"),
        (np.zeros((0, 0), int), None, "no image"),
        (np.array([[0, 0], [1, 2]]), np.array([True, False]), "none of the training classes"),
        (np.zeros((2, 3), int), None, "rows as columns"),
        (np.array([[1, -1], [0, 1]]), None, "negative"),
    ],
)
def test_nothing_to_score_is_said(matrix: np.ndarray, counted: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_metrics(matrix, counted)


def test_a_class_never_predicted_has_precision_zero() -> None:
    each = class_metrics(np.array([[0, 2], [0, 3]]))
    assert each.precision.tolist() == [0.0, 3 / 5]
    assert each.recall.tolist() == [0.0, 1.0]
    assert each.support.tolist() == [2, 3]
    assert each.predicted.tolist() == [0, 5]


def test_critical_mistakes_by_hand() -> None:
    # 0 and 1 critical, 2 safe, 3 neither
    matrix = np.array([[5, 1, 3, 1], [0, 4, 0, 0], [2, 1, 7, 0], [1, 0, 1, 9]])
    found = critical_mistakes(matrix, (0, 1), (2,))
    assert (found.critical_to_safe.mistakes, found.critical_to_safe.of) == (3, 14)
    assert found.critical_to_safe.rate == pytest.approx(3 / 14)
    assert (found.safe_to_critical.mistakes, found.safe_to_critical.of) == (3, 10)
    assert {label: (s.mistakes, s.of) for label, s in found.per_class.items()} == {0: (3, 10), 1: (0, 4)}


def test_a_rate_without_cells_is_none() -> None:
    found = critical_mistakes(np.array([[0, 0], [1, 2]]), (0,), (1,))
    assert found.critical_to_safe.rate is None
    assert found.safe_to_critical.rate == pytest.approx(1 / 3)
    assert critical_mistakes(np.eye(2, dtype=int), (), ()).critical_to_safe.rate is None


def test_top_confusions_most_frequent_first_then_largest_share() -> None:
    matrix = np.array([[90, 4, 0], [4, 6, 0], [2, 9, 1]])
    found = [(c.true, c.predicted, c.count) for c in top_confusions(matrix, limit=3)]
    assert found == [(2, 1, 9), (1, 0, 4), (0, 1, 4)]
    assert top_confusions(matrix)[0].share == pytest.approx(9 / 12)
    assert top_confusions(np.eye(3, dtype=int)) == []


def test_the_metric_module_loads_by_path_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("network asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    module = load_cell_metrics()
    labels, predicted = _images(3)
    counted = [True, True, True, True, False]
    values = module.compute(predictions=predicted, references=labels, num_classes=5, classes_counted=counted)
    expected = confusion_metrics(confusion_matrix(labels, predicted, 5), np.array(counted))
    assert values == {name: pytest.approx(float(expected[name])) for name in METRICS}
    assert all(type(value) is float for value in values.values())
    assert module.compute(predictions=[0, 1], references=[0, 1], num_classes=2)["macro_f1"] == 1.0
