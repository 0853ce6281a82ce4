"""Conformal thresholds and MAPIE's sets: the order statistic by hand, and coverage by repeated calibration."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.conformal.marginal import (
    MARGINAL,
    MarginalMethod,
    marginal_cells_needed,
    marginal_sets,
    probabilities,
    why_no_marginal_sets,
)
from cytodino_hf.evaluation.conformal.thresholds import (
    cells_needed,
    class_scores,
    class_sets,
    class_thresholds,
    conformal_threshold,
    promised_coverage,
)
from cytodino_hf.taxonomy import MLL

TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])
ALPHA = 0.1
REPEATS = 200


def draw(rng: np.random.Generator, labels: np.ndarray, classes: int = 3) -> np.ndarray:
    """Logits that are right more often than not, and never tie."""
    logits = rng.normal(0, 1.2, (len(labels), classes))
    logits[np.arange(len(labels)), labels] += 1.5
    return logits


def assert_is_mean(coverages: list[float], expected: float) -> None:
    error = np.std(coverages, ddof=1) / np.sqrt(len(coverages))
    assert abs(np.mean(coverages) - expected) < 3 * error


@pytest.mark.parametrize("alpha", [0.01, 0.02, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5])
def test_the_number_of_cells_needed_is_where_a_threshold_begins(alpha: float) -> None:
    from fractions import Fraction

    needed = math.ceil(1 / Fraction(str(alpha))) - 1
    assert cells_needed(alpha) == needed
    scores = np.arange(500.0)
    assert conformal_threshold(scores[:needed], alpha) == needed - 1  # the largest of so few
    assert conformal_threshold(scores[: needed - 1], alpha) is None
    assert promised_coverage(needed - 1, alpha) is None
    for n in range(needed, 300):
        rank = math.ceil((n + 1) * (1 - Fraction(str(alpha))))  # exact, without binary rounding
        assert conformal_threshold(scores[:n][::-1], alpha) == rank - 1
        assert promised_coverage(n, alpha) == rank / (n + 1)


@pytest.mark.parametrize("n", [10, 20, 50, 100])
def test_marginal_coverage_is_the_promise_over_calibrations(n: int) -> None:
    rng = np.random.default_rng(n)
    coverages = []
    for _ in range(REPEATS):
        labels = rng.integers(0, 3, n + 400)
        scores = class_scores(draw(rng, labels))[np.arange(n + 400), labels]
        threshold = conformal_threshold(scores[:n], ALPHA)
        assert threshold is not None
        coverages.append(float((scores[n:] <= threshold).mean()))
    assert_is_mean(coverages, math.ceil((n + 1) * 0.9) / (n + 1))


@pytest.mark.parametrize("n", [10, 20, 50, 100])
def test_coverage_by_class_is_the_promise_over_calibrations(n: int) -> None:
    rng = np.random.default_rng(1000 + n)
    kept, new = np.repeat(np.arange(3), n), np.repeat(np.arange(3), 300)
    coverages: list[list[float]] = [[], [], []]
    for _ in range(REPEATS):
        thresholds = class_thresholds(draw(rng, kept), kept, TAXONOMY, ALPHA)
        inside = class_sets(draw(rng, new), thresholds)[np.arange(len(new)), new]
        for label in range(3):
            coverages[label].append(float(inside[new == label].mean()))
    for label in range(3):
        assert thresholds[label].basis == "class"
        assert_is_mean(coverages[label], math.ceil((n + 1) * 0.9) / (n + 1))
        assert thresholds[label].promise == math.ceil((n + 1) * 0.9) / (n + 1)


def mapies_coverages(method: MarginalMethod, n: int) -> list[float]:
    """Coverage of 200 test cells in each of 200 calibrations by n cells.

    Classes come in turn, so that none is missing (MAPIE then makes no sets); as they are alike, that changes nothing.
    """
    rng = np.random.default_rng(3000 + n)
    labels = np.arange(n + 200) % 3
    coverages = []
    for repeat in range(REPEATS):
        given = softmax(draw(rng, labels), axis=1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inside = marginal_sets(method, given[:n], labels[:n], given[n:], alpha=ALPHA, seed=repeat)
        coverages.append(float(inside[np.arange(200), labels[n:]].mean()))
    return coverages


@pytest.mark.parametrize("method", ["lac", "aps"])
@pytest.mark.parametrize("n", [10, 20, 50, 100])
def test_mapies_sets_keep_the_promise_over_calibrations(method: MarginalMethod, n: int) -> None:
    assert_is_mean(mapies_coverages(method, n), math.ceil((n + 1) * 0.9) / (n + 1))


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 100])
def test_mapies_raps_keeps_the_promise_of_the_cells_that_set_its_threshold(n: int) -> None:
    """A fifth chooses the penalty, so the promise is that of four fifths of the cells."""
    m = n - math.ceil(0.2 * n)
    assert_is_mean(mapies_coverages("raps", n), math.ceil((m + 1) * 0.9) / (m + 1))


@pytest.mark.parametrize("n", [10, 20])
def test_raps_is_refused_where_too_few_cells_are_left_for_its_penalty(n: int) -> None:
    why = why_no_marginal_sets("raps", np.arange(n) % 3, ALPHA, 0)
    assert why == f"MAPIE needs 46 calibration images for it; {n} are left."


def test_ties_and_a_kept_last_class_cover_more_than_promised() -> None:
    rng = np.random.default_rng(5)
    tied, kept = [], []
    for repeat in range(60):
        labels = rng.integers(0, 3, 250)
        logits = draw(rng, labels)
        rounded = 3 * np.round(logits / 3)  # few values: many ties
        scores = class_scores(rounded)[np.arange(250), labels]
        tied.append((scores[50:] <= conformal_threshold(scores[:50], ALPHA)).mean())
        given = softmax(logits, axis=1)
        sets = marginal_sets(
            "aps", given[:50], labels[:50], given[50:], alpha=ALPHA, seed=repeat, is_randomised=False
        )
        assert sets.any(axis=1).all()
        kept.append(sets[np.arange(200), labels[50:]].mean())
    promise = math.ceil(51 * 0.9) / 51
    assert np.mean(tied) > promise + 0.01
    assert np.mean(kept) > promise + 0.01


def test_mapies_lac_and_aps_are_the_plain_formulas() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 5, 400)
    given = softmax(draw(rng, labels, 5), axis=1)
    kept, new = given[:150], given[150:]
    rank = math.ceil(151 * 0.9)

    limit = np.sort(1 - kept[np.arange(150), labels[:150]])[rank - 1]
    lac = marginal_sets("lac", kept, labels[:150], new, alpha=ALPHA, seed=4)
    np.testing.assert_array_equal(lac, 1 - new <= limit + 1e-8)

    stream = np.random.RandomState(4)

    def so_far(rows: np.ndarray) -> np.ndarray:  # probability of the class and of all more probable ones
        return np.array([[row[row >= p].sum() for p in row] for row in rows])

    at = np.arange(150), labels[:150]
    scores = so_far(kept)[at] - stream.uniform(size=150) * kept[at]
    limit = np.sort(scores)[rank - 1]
    aps = marginal_sets("aps", kept, labels[:150], new, alpha=ALPHA, seed=4)
    np.testing.assert_array_equal(aps, so_far(new) - stream.uniform(size=(250, 1)) * new <= limit)


def test_lac_by_mapie_is_the_class_threshold_of_one_pool() -> None:
    rng = np.random.default_rng(8)
    labels = rng.integers(0, 3, 300)
    logits = draw(rng, labels)
    given = probabilities(logits)
    scores = -log_softmax(logits, axis=1)
    limit = conformal_threshold(scores[np.arange(100), labels[:100]], ALPHA)
    sets = marginal_sets("lac", given[:100], labels[:100], given[100:], alpha=ALPHA, seed=0)
    np.testing.assert_array_equal(sets, scores[100:] <= limit)


@pytest.mark.parametrize("method", MARGINAL)
def test_a_class_of_one_calibration_cell_and_certain_answers_are_no_obstacle(method: str) -> None:
    labels = np.array([0] * 60 + [1] * 59 + [2] * 59 + [3])
    given = np.eye(4)[labels]  # probability exactly 1
    sets = marginal_sets(method, given, labels, given[[0, 60, 120, 178]], alpha=ALPHA, seed=0)
    assert sets.shape == (4, 4)
    assert not (sets & ~np.eye(4, dtype=bool)).any()  # nothing but the certain class
    assert marginal_sets(method, given, labels, given[:0], alpha=ALPHA, seed=0).shape == (0, 4)


def test_too_few_cells_are_refused() -> None:
    given = np.full((9, 3), 1 / 3)
    assert [marginal_cells_needed(method, ALPHA) for method in MARGINAL] == [10, 10, 46]
    for method in MARGINAL:
        with pytest.raises(ValueError, match="MAPIE needs"):
            marginal_sets(method, given, np.arange(9) % 3, given, alpha=ALPHA, seed=0)
        n = marginal_cells_needed(method, ALPHA)  # and the number is right: MAPIE takes so many
        many = np.full((n, 3), 1 / 3)
        marginal_sets(method, many, np.arange(n) % 3, many, alpha=ALPHA, seed=0)
        if method != "lac":  # MAPIE refuses two classes
            with pytest.raises(ValueError, match="three classes or more"):
                marginal_sets(method, many, np.arange(n) % 2, many, alpha=ALPHA, seed=0)
    with pytest.raises(DataError, match="8 labelled calibration cells are too few"):
        class_thresholds(np.zeros((8, 3)), np.zeros(8, int), TAXONOMY, ALPHA)
    with pytest.raises(ValueError, match="between 0 and 1"):
        cells_needed(1.0)


def test_small_classes_take_the_threshold_of_the_lineage_then_of_all() -> None:
    taxonomy = MLL.subset(["BLA", "PMO", "LYI", "LYT", "BAS"])
    counts = {"BLA": 30, "PMO": 8, "LYI": 3, "LYT": 5, "BAS": 0}
    labels = np.concatenate([[taxonomy.index(code)] * n for code, n in counts.items()]).astype(int)
    logits = draw(np.random.default_rng(0), labels, 5)
    found = {t.code: t for t in class_thresholds(logits, labels, taxonomy, ALPHA)}
    assert {code: t.basis for code, t in found.items()} == {
        "BLA": "class", "PMO": "lineage", "LYI": "all cells", "LYT": "all cells", "BAS": "all cells",
    }  # fmt: skip
    assert (found["PMO"].own_cells, found["PMO"].cells) == (8, 38)
    assert (found["BAS"].own_cells, found["BAS"].cells) == (0, 46)
    own = -log_softmax(logits, axis=1)[np.arange(46), labels]
    granulocytic = own[np.isin(labels, [taxonomy.index("BLA"), taxonomy.index("PMO")])]
    assert found["PMO"].value == np.sort(granulocytic)[math.ceil(39 * 0.9) - 1]
    assert found["LYI"].value == np.sort(own)[math.ceil(47 * 0.9) - 1]
