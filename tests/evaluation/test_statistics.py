"""Intervals: closed forms, what chooses a method, and how often they cover the truth."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cytodino_hf.evaluation.metrics import METRICS, confusion_metrics
from cytodino_hf.evaluation.statistics import (
    PERCENTILE,
    SMOOTHED,
    WILSON,
    class_intervals,
    metric_intervals,
    smoothed_rows,
    wilson_interval,
)
from cytodino_hf.taxonomy import MLL_IMAGE_COUNTS

# The published 20 % test list of the MLL set: int(0.2 n) images per class.
MLL_TEST_COUNTS = np.array([max(1, int(0.2 * n)) for n in MLL_IMAGE_COUNTS.values()])


def _truth(counts: np.ndarray, best: float, worst: float) -> np.ndarray:
    """Rows of a model that is better at frequent classes and whose errors go where the images are."""
    k = len(counts)
    size = np.log(counts + 1.0)
    recall = worst + (best - worst) * (size - size.min()) / max(np.ptp(size), 1e-9)
    rows = np.tile(counts / counts.sum(), (k, 1))
    np.fill_diagonal(rows, 0.0)
    rows *= ((1 - recall) / rows.sum(1))[:, None]
    rows[np.arange(k), np.arange(k)] = recall
    return rows


def _coverage(
    counts: np.ndarray, rows: np.ndarray, repeats: int, draws: int
) -> dict[str, tuple[float, float]]:
    """How often our interval, and the plain percentile interval made here, holds the metric of the true rows."""
    truth = confusion_metrics(counts[:, None] * rows)
    rng = np.random.default_rng(0)
    names = ("macro_f1", "balanced_accuracy", "accuracy", "weighted_f1")
    ours, plain = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for repeat in range(repeats):
        matrix = rng.multinomial(counts, rows)
        intervals = metric_intervals(matrix, seed=repeat, draws=draws)
        again = np.stack(
            [rng.multinomial(n, row / n, size=draws) for n, row in zip(counts, matrix, strict=True)], 1
        )
        drawn = confusion_metrics(again)
        for name in names:
            ours[name] += intervals[name].low <= truth[name] <= intervals[name].high
            low, high = np.quantile(drawn[name], [0.025, 0.975])
            plain[name] += low <= truth[name] <= high
    return {name: (ours[name] / repeats, plain[name] / repeats) for name in names}


def test_wilson_interval_solves_its_equation() -> None:
    # Wilson's ends p are the solutions of |hits/n - p| = z sqrt(p (1 - p) / n).
    for hits, n in ((3, 14), (1, 2), (268, 6215)):
        interval = wilson_interval(hits, n)
        for end in (interval.low, interval.high):
            assert abs(hits / n - end) == pytest.approx(1.959964 * (end * (1 - end) / n) ** 0.5, rel=1e-6)
        assert interval.method == WILSON
        assert interval.n == n


def test_wilson_interval_at_its_edges() -> None:
    none, every, empty = wilson_interval(0, 10), wilson_interval(10, 10), wilson_interval(0, 0)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.2775, abs=1e-4)  # z^2 / (n + z^2)
    assert (every.low, every.high) == (pytest.approx(1 - none.high), 1.0)
    assert (empty.value, empty.low, empty.high, empty.n) == (0.0, 0.0, 1.0, 0)
    with pytest.raises(ValueError, match="5 of 4"):
        wilson_interval(5, 4)


def test_smoothed_rows_by_hand() -> None:
    matrix = np.array([[1, 0, 0], [3, 9, 1], [0, 0, 4]])
    # pooled errors per column: 3, 0, 1. Row 0 cannot err into itself: all its pseudo-error goes to column 2.
    expected = np.array([[2, 0, 1], [3.75, 10, 1.25], [1, 0, 5]])
    np.testing.assert_allclose(smoothed_rows(matrix), expected)
    np.testing.assert_allclose(
        smoothed_rows(np.diag([2, 3, 4]))[0], [3, 0.5, 0.5]
    )  # no error anywhere: evenly
    np.testing.assert_allclose(smoothed_rows(np.array([[7]])), [[8]])


def test_every_metric_has_an_ordered_interval_and_the_seed_decides() -> None:
    matrix = np.random.default_rng(0).integers(0, 30, (6, 6))
    first, second = (metric_intervals(matrix, seed=4, draws=300) for _ in range(2))
    assert first == second
    assert metric_intervals(matrix, seed=5, draws=300) != first
    assert tuple(first) == METRICS
    for name, value in confusion_metrics(matrix).items():
        interval = first[name]
        assert interval.value == pytest.approx(float(value))
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.n == matrix.sum()


def test_percentile_ends_agree_with_draws_made_image_by_image() -> None:
    # 2 classes of 60 and 40 images; images drawn again one by one, the metric by its textbook formula
    matrix = np.array([[48, 12], [10, 30]])
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        a = (rng.random(60) < 48 / 60).sum()
        b = (rng.random(40) < 30 / 40).sum()
        drawn.append((2 * a / (60 + a + 40 - b) + 2 * b / (40 + b + 60 - a)) / 2)
    interval = metric_intervals(matrix, seed=0, draws=4000)["macro_f1"]
    assert interval.method == PERCENTILE
    assert (interval.low, interval.high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.012
    )


def test_what_chooses_the_method() -> None:
    large = np.array([[80, 20], [15, 85]])
    assert {i.method for i in metric_intervals(large, seed=0, draws=50).values()} == {PERCENTILE}
    # a class of 3 images: means over classes are smoothed, means over images are not
    rare = np.array([[800, 20, 0], [15, 850, 0], [1, 1, 1]])
    methods = {name: i.method for name, i in metric_intervals(rare, seed=0, draws=50).items()}
    over_images = {"accuracy", "weighted_f1", "weighted_precision", "weighted_recall"}
    assert {name for name, method in methods.items() if method == PERCENTILE} == over_images
    # ... unless the small class is not counted
    counted = np.array([True, True, False])
    assert metric_intervals(rare, counted, seed=0, draws=50)["macro_f1"].method == PERCENTILE
    # small classes hold most images
    small = np.array([[4, 3], [2, 5]])
    assert {i.method for i in metric_intervals(small, seed=0, draws=50).values()} == {SMOOTHED}


def test_a_perfect_fold_is_not_reported_as_certain() -> None:
    for name, interval in metric_intervals(np.diag([40] * 7), seed=0, draws=300).items():
        assert interval.value == interval.high == 1.0, name
        assert 0.95 < interval.low < 1.0, name


def test_one_class_of_one_image_gives_numbers() -> None:
    for matrix in (np.array([[1]]), np.array([[0, 1], [0, 0]]), np.eye(3, dtype=int)):
        for interval in metric_intervals(matrix, seed=0, draws=50).values():
            assert np.isfinite([interval.value, interval.low, interval.high]).all()
    with pytest.raises(ValueError, match="no image"):
        metric_intervals(np.zeros((2, 2), int), seed=0)


def test_class_intervals_name_what_is_not_known() -> None:
    matrix = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    rows = class_intervals(matrix, seed=0, draws=300)
    assert rows[0].recall == wilson_interval(8, 10)
    assert rows[0].precision == wilson_interval(8, 9)
    assert rows[0].f1 is not None
    assert rows[0].f1.value == pytest.approx(16 / 19)
    assert rows[0].f1.low < 16 / 19 < rows[0].f1.high
    assert rows[0].f1.method == SMOOTHED
    assert rows[2].recall is None
    assert rows[2].f1 is None
    assert rows[2].precision.n == 0


def test_intervals_of_21_classes_take_well_under_a_second() -> None:
    matrix = np.random.default_rng(0).multinomial(MLL_TEST_COUNTS, _truth(MLL_TEST_COUNTS, 0.9, 0.45))
    start = time.process_time()
    metric_intervals(matrix, seed=0)
    assert time.process_time() - start < 0.8  # measured 0.2 s


def test_coverage_on_rare_classes_in_short() -> None:
    # 60 repeats: a true coverage of 95 % falls below 52 of 60 once in 200 times
    counts = np.array([1, 3, 8, 13, 60, 200])
    found = _coverage(counts, _truth(counts, 0.9, 0.5), repeats=60, draws=200)
    for name in ("macro_f1", "balanced_accuracy"):
        ours, plain = found[name]
        assert ours >= 52 / 60
        assert plain < ours


@pytest.mark.slow
@pytest.mark.parametrize(("best", "worst"), [(0.9, 0.45), (0.95, 0.7)])
def test_coverage_on_the_mll_test_counts(best: float, worst: float) -> None:
    found = _coverage(MLL_TEST_COUNTS, _truth(MLL_TEST_COUNTS, best, worst), repeats=400, draws=500)
    for name in ("macro_f1", "balanced_accuracy"):
        ours, plain = found[name]
        assert 0.92 <= ours <= 0.99, found
        assert plain < 0.8, found
    for name in ("accuracy", "weighted_f1"):
        assert 0.92 <= found[name][0] <= 0.99, found
