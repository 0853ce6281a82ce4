"""Intervals of what comes from a confusion matrix: closed forms, draws by hand, groups, and coverage in short."""

from __future__ import annotations

import time

import numpy as np
import pytest

from cytodino_hf.evaluation.grouped import group_draws
from cytodino_hf.evaluation.matrix_influence import matrix_freedom
from cytodino_hf.evaluation.metrics import METRICS, confusion_matrix, confusion_metrics
from cytodino_hf.evaluation.row_draws import draw_matrices, expected_matrix, smoothed_rows
from cytodino_hf.evaluation.statistics import (
    GROUPED,
    SMOOTHED,
    WILSON,
    class_intervals,
    matrix_intervals,
    metric_intervals,
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
    matrix = np.array([[1, 0, 0], [3, 16, 1], [0, 0, 4]])
    # 4 of 25 images err; pooled errors per column: 3, 0, 1. Row 0 cannot err into itself: all goes to column 2.
    # Of the two images added, 1 + (8/25 - 1) min(1, n/20) err: 1 without images, 8/25 from 20 on.
    wrong = [1 - 17 / 25 / 20, 8 / 25, 1 - 17 / 25 * 4 / 20]
    expected = np.array([[3 - wrong[0], 0, wrong[0]], [3, 18, 1], [wrong[2], 0, 6 - wrong[2]]])
    expected[1] += [wrong[1] * 3 / 4, -wrong[1], wrong[1] / 4]
    np.testing.assert_allclose(smoothed_rows(matrix), expected)
    np.testing.assert_allclose(
        smoothed_rows(np.diag([2, 3, 4]))[0], [3, 0.5, 0.5]
    )  # no error anywhere: one of the two, evenly
    np.testing.assert_allclose(smoothed_rows(np.array([[7]])), [[8]])
    # A model that mostly errs: the two images are never more than one wrong.
    np.testing.assert_allclose(smoothed_rows(np.array([[5, 45], [45, 5]])), [[6, 46], [46, 6]])


def test_draws_have_the_mean_and_the_counts_they_should() -> None:
    matrix = np.array([[18, 2], [3, 0]])
    rows, counts = smoothed_rows(matrix), matrix.sum(1)
    drawn = np.concatenate(list(draw_matrices(rows, counts, 4000, 0)))
    assert (drawn.sum(2) == counts).all()
    expected = expected_matrix(rows, counts)
    np.testing.assert_allclose(expected.sum(1), counts)
    np.testing.assert_allclose(drawn.mean(0), expected, atol=0.1)


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


def test_ends_agree_with_draws_made_image_by_image() -> None:
    # 2 classes of 60 and 40 images; rows with their two images more drawn one by one, F1 by its textbook formula
    matrix = np.array([[48, 12], [10, 30]])
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(4000):
        a = (rng.random(60) < (48 + 2 - 0.44) / 62).sum()  # 22 of 100 err, so .44 of the two
        b = (rng.random(40) < (30 + 2 - 0.44) / 42).sum()
        drawn.append((2 * a / (60 + a + 40 - b) + 2 * b / (40 + b + 60 - a)) / 2)
    interval = metric_intervals(matrix, seed=0, draws=4000)["macro_f1"]
    units = np.mean(drawn) * (1 - np.mean(drawn)) / np.var(drawn)
    assert interval.method == SMOOTHED
    for end in (interval.low, interval.high):  # Wilson's equation; Student's t of 100 images adds 1 %
        z = abs(interval.value - end) / (end * (1 - end) / units) ** 0.5
        assert z == pytest.approx(1.96, abs=0.08)


def test_other_metrics_of_the_matrix_get_their_own_limits() -> None:
    def score(matrices: np.ndarray) -> dict[str, np.ndarray]:
        wrong = matrices[..., 0, 1] + matrices[..., 1, 0]
        n = matrices.sum((-2, -1))
        return {"mcc": 1 - 2 * wrong / n, "mean_distance": 6 * wrong / n, "other": 1 - wrong / n}

    limits = {"mcc": (-1.0, 1.0), "mean_distance": (0.0, 6.0)}
    found = matrix_intervals(np.array([[0, 9], [9, 1]]), score, seed=0, draws=500, limits=limits)
    assert -1 < found["mcc"].low < found["mcc"].value < found["mcc"].high < 0
    assert 0 < found["mean_distance"].low < found["mean_distance"].value < found["mean_distance"].high
    assert 0 < found["other"].low < found["other"].value < found["other"].high
    # A metric that is no more than another measured with other limits has the same interval, measured so.
    assert found["mcc"].low == pytest.approx(2 * found["other"].low - 1)
    assert found["mean_distance"].high == pytest.approx(6 * (1 - found["other"].low))
    worst = matrix_intervals(np.array([[0, 9], [9, 0]]), score, seed=0, draws=500, limits=limits)
    assert worst["mean_distance"].value == worst["mean_distance"].high == 6.0
    assert 4 < worst["mean_distance"].low < 6
    none = matrix_intervals(np.array([[9, 0], [0, 9]]), score, seed=0, draws=500, limits=limits)
    assert (none["mean_distance"].value, none["mean_distance"].low) == (0.0, 0.0)
    assert 0 < none["mean_distance"].high < 2
    assert none["mcc"].high == 1.0


def test_the_spread_of_one_share_follows_it_and_that_of_two_does_not() -> None:
    def score(matrices: np.ndarray) -> dict[str, np.ndarray]:
        n = np.maximum(matrices.sum(-1), 1)
        shares = np.diagonal(matrices, axis1=-2, axis2=-1) / n
        return {"both": shares.mean(-1), "first": shares[..., 0]}

    # One class of 1,000 images: its variance is p (1 - p) / n, so nothing of it is open but for normal influences
    for wrong in (3, 400):
        found = matrix_freedom(np.array([[1000 - wrong, wrong], [0, 0]]), score)
        assert found["first"] == pytest.approx(999)
    # Bernoulli influences: squares p q, cubes p q (q - p), fourth powers p q (1 - 3 p q), over n images of each class
    n, errs = np.array([40.0, 100.0]), np.array([0.05, 0.3])
    pq, skewed = errs * (1 - errs), errs * (1 - errs) * (1 - 2 * errs)
    part, third = pq / n, (skewed / n**2).sum()
    seen = ((pq * (1 - 3 * pq) - pq**2) / n**3).sum()
    expected = 2 * part.sum() ** 2 / (seen - third**2 / part.sum())
    found = matrix_freedom(np.array([[38, 2], [30, 70]]), score)
    assert found["both"] == pytest.approx(expected, rel=0.1)  # n - 1 in place of n
    assert matrix_freedom(np.array([[5, 0], [0, 5]]), score)["both"] == np.inf


def test_groups_of_copies_widen_an_interval_by_the_root_of_their_size() -> None:
    # 60 and 40 images, then each of them five times over in one group: the same interval, up to Student's t of 98
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [60, 40])
    called = np.where(rng.random(100) < 0.8, labels, 1 - labels)
    alone = confusion_matrix(labels, called, 2)
    once = metric_intervals(alone, seed=0, draws=3000)
    copies, groups = np.repeat(np.arange(100), 5), [f"g{i}" for i in np.repeat(np.arange(100), 5)]
    drawn = group_draws(labels[copies], called[copies], groups, 2, 3000, 0)
    assert drawn is not None
    assert drawn.freedom == 98
    many = metric_intervals(5 * alone, seed=0, draws=3000, grouped=drawn)
    plain = metric_intervals(5 * alone, seed=0, draws=3000)
    for name in METRICS:
        width, grouped, blind = (i[name].high - i[name].low for i in (once, many, plain))
        assert grouped == pytest.approx(width, rel=0.08), name
        assert blind < width / 2, name
        assert many[name].method == GROUPED
    alone_rows, many_rows = class_intervals(alone, seed=0), class_intervals(5 * alone, seed=0, grouped=drawn)
    for a, b in zip(alone_rows, many_rows, strict=True):
        assert a.recall is not None
        assert b.recall is not None
        assert (b.recall.low, b.recall.high) == pytest.approx((a.recall.low, a.recall.high), abs=0.01)
        assert (b.precision.low, b.precision.high) == pytest.approx(
            (a.precision.low, a.precision.high),
            abs=0.04,  # Wilson takes the images called so as given
        )
        assert b.recall.n == 5 * a.recall.n


def test_group_draws_count_groups_and_images() -> None:
    labels, called = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    drawn = group_draws(labels, called, ["a", "a", "b", "c", None], 2, 400, 0)
    assert drawn is not None
    assert drawn.units.tolist() == [[1, 1], [1, 1]]
    assert drawn.units_of_true.tolist() == [2, 2]
    assert drawn.units_of_called.tolist() == [2, 2]
    assert drawn.freedom == 2
    # Group a brings its two images together: the first cell holds 0, 2 or 4 of them.
    assert set(drawn.matrices[:, 0, 0]) == {0.0, 2.0, 4.0}
    assert drawn.matrices.mean(0) == pytest.approx(confusion_matrix(labels, called, 2), abs=0.2)
    assert group_draws(labels, called, [None] * 5, 2, 10, 0) is None
    # An untrained class may be all that a draw of few groups holds: that draw is left out.
    odd = group_draws(labels, called, ["a", "a", "a", "b", "b"], 2, 50, 0)
    mixed = group_draws(np.array([0, 1, 1]), np.array([0, 1, 0]), ["a", "a", "b"], 2, 50, 0)
    for draws, matrix in ((odd, confusion_matrix(labels, called, 2)), (mixed, np.array([[1, 0], [1, 1]]))):
        found = metric_intervals(matrix, np.array([True, False]), seed=0, draws=50, grouped=draws)
        assert np.isfinite([(i.low, i.high) for i in found.values()]).all()


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
    # Of the 9 images called so, most are so by the fold: a little surer than 9 independent ones.
    wilson = wilson_interval(8, 9)
    assert rows[0].precision is not None
    assert rows[0].precision.value == wilson.value
    assert wilson.low < rows[0].precision.low < 8 / 9 < rows[0].precision.high < wilson.high
    assert rows[0].f1 is not None
    assert rows[0].f1.value == pytest.approx(16 / 19)
    assert rows[0].f1.low < 16 / 19 < rows[0].f1.high
    assert rows[0].f1.method == SMOOTHED
    assert rows[2].recall is None
    assert rows[2].f1 is None
    # None was called so: no precision, as there is no recall without an image
    assert rows[2].precision is None
    assert class_intervals(np.array([[4, 0], [2, 0]]), seed=0, draws=50)[1].precision is None


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
