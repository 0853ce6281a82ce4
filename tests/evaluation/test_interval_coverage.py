"""How often nominal 95 % intervals hold the truth: 1,000 simulated folds a truth, of every metric.

A truth is a model that is better at frequent classes and whose errors go where the images are; errors spread evenly
over classes would hide what rare classes do to an interval. With 1,000 repeats the standard error is 0.7 points.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import average_precision_score, roc_auc_score

from cytodino_hf.evaluation.agreement import agreement_metrics
from cytodino_hf.evaluation.binary import mean_interval, sensitivity_interval
from cytodino_hf.evaluation.delta_intervals import share_interval, spread_of
from cytodino_hf.evaluation.hierarchy import distance_matrix, hierarchy_metrics
from cytodino_hf.evaluation.metrics import confusion_metrics
from cytodino_hf.evaluation.probability_metrics import probability_terms
from cytodino_hf.evaluation.ranking_metrics import class_scores, rank_class, sensitivity_at_specificity
from cytodino_hf.evaluation.statistics import (
    LIMITS,
    cells_interval,
    class_intervals,
    matrix_intervals,
    wilson_interval,
)
from cytodino_hf.taxonomy import MLL, MLL_IMAGE_COUNTS

pytestmark = pytest.mark.slow

REPEATS = 1000
# The published 20 % test list of the MLL set, in label order, and the same with at least 20 images a class.
MLL_TEST = np.array([max(1, int(0.2 * MLL_IMAGE_COUNTS[code])) for code in MLL.codes])
MLL_AT_LEAST_20 = np.maximum(MLL_TEST, 20)
SEVEN = ["PEB", "BLA", "MYB", "NGS", "EBO", "LYT", "PMO"]
FIVE = ["BLA", "PMO", "NGS", "LYT", "EBO"]
# Images of each class, codes, recall of the most and of the least frequent class
ENOUGH_IMAGES = {
    "21 classes of 20 to 5,884 images": (MLL_AT_LEAST_20, MLL.codes, 0.9, 0.45),
    "7 classes of 20 to 700 images": (np.array([20, 25, 40, 80, 150, 300, 700]), SEVEN, 0.97, 0.7),
    "5 classes of 20 to 60 images": (np.array([20, 25, 30, 40, 60]), FIVE, 0.9, 0.6),
    "21 classes of 20 images, read well": (np.array([20] * 21), MLL.codes, 0.97, 0.97),
    "7 classes of 40 images, read well": (np.array([40] * 7), SEVEN, 0.97, 0.97),
    "5 classes of 20 to 60 images, read well": (np.array([20, 25, 30, 40, 60]), FIVE, 0.97, 0.93),
}
BY_CLASS = ("precision", "recall", "f1")


def _rows(counts: np.ndarray, best: float, worst: float) -> np.ndarray:
    k = len(counts)
    size = np.log(counts + 1.0)
    recall = worst + (best - worst) * (size - size.min()) / max(np.ptp(size), 1e-9)
    rows = np.tile(counts / counts.sum(), (k, 1))
    np.fill_diagonal(rows, 0.0)
    rows *= ((1 - recall) / rows.sum(1))[:, None]
    rows[np.arange(k), np.arange(k)] = recall
    return rows


@pytest.mark.parametrize("name", ENOUGH_IMAGES)
def test_metrics_of_a_matrix_where_every_class_has_20_images(name: str) -> None:
    counts, codes, best, worst = ENOUGH_IMAGES[name]
    taxonomy = MLL.subset(codes)
    counts = counts[[list(codes).index(code) for code in taxonomy.codes]]
    rows = _rows(counts, best, worst)
    frequent = counts >= 50
    distances = distance_matrix(taxonomy)
    limits = {**LIMITS, "mean_distance": (0.0, float(distances.max()))}

    def score(matrices: np.ndarray) -> dict[str, np.ndarray]:
        far = hierarchy_metrics(matrices, taxonomy)
        of_all = {metric: far[metric] for metric in ("lineage_accuracy", "mean_distance")}
        return {**confusion_metrics(matrices), **agreement_metrics(matrices, None, frequent), **of_all}

    expected = counts[:, None] * rows
    truth = score(expected)
    is_critical = np.isin(np.arange(len(taxonomy)), taxonomy.critical)
    is_safe = np.isin(np.arange(len(taxonomy)), taxonomy.safe)
    of_some = {
        "critical_to_safe": (np.outer(is_critical, is_safe), np.tile(is_critical[:, None], len(taxonomy))),
        "within_one_step": (distances == 1, distances > 0),
    }
    rng = np.random.default_rng(0)
    held: Counter[str] = Counter()
    by_class = np.zeros((len(BY_CLASS), len(counts)))
    called = np.zeros(len(counts))
    for repeat in range(REPEATS):
        matrix = rng.multinomial(counts, rows)
        for metric, interval in matrix_intervals(
            matrix, score, draws=200, seed=repeat, limits=limits
        ).items():
            held[metric] += bool(interval.low <= truth[metric] <= interval.high)
        for metric, (hits, of) in of_some.items():
            interval, _ = cells_interval(matrix, hits, of)
            held[metric] += bool(interval.low <= expected[hits].sum() / expected[of].sum() <= interval.high)
        by_class += _held_by_class(matrix, expected, repeat)
        called += matrix.sum(0) > 0
    shares = {metric: times / REPEATS for metric, times in held.items()}
    for metric, (hits, of) in of_some.items():
        # A share of few cases takes few values, so its coverage jumps; Wilson's then errs to the wide side.
        if min(expected[hits].sum(), expected[of].sum() - expected[hits].sum()) < 10:
            assert shares.pop(metric) >= 0.93, metric
    assert {m: share for m, share in shares.items() if not 0.93 <= share <= 0.97} == {}
    precision, recall, f1 = by_class / np.stack([called, *np.full((2, len(counts)), REPEATS)])
    # So do shares of the 20 images of one class: the mean over classes is what can lie at 95 %.
    for metric, of_classes in (("precision", precision), ("f1", f1)):
        assert 0.93 <= of_classes.mean() <= 0.97, (metric, of_classes)
        assert of_classes.min() >= 0.9, (metric, of_classes)
    # Which number of images is read right is binomial, so the coverage of each recall is known.
    exact = [_covered_by_wilson(n, p) for n, p in zip(counts.tolist(), np.diag(rows), strict=True)]
    assert recall == pytest.approx(exact, abs=0.03)
    assert recall.min() >= 0.9, recall


def _covered_by_wilson(n: int, truth: float) -> float:
    """How often Wilson's interval of a binomial share holds the truth, summed over all outcomes."""
    ends = [wilson_interval(hits, n) for hits in range(n + 1)]
    held = np.array([end.low <= truth <= end.high for end in ends])
    return float(binom.pmf(np.arange(n + 1), n, truth)[held].sum())


def _held_by_class(matrix: np.ndarray, expected: np.ndarray, seed: int) -> np.ndarray:
    """(3, K): whether the interval of each class holds its precision, recall and F1; no precision holds nothing."""
    hits, true, called = np.diag(expected), expected.sum(1), expected.sum(0)
    truths = (hits / called, hits / true, 2 * hits / (true + called))
    intervals = class_intervals(matrix, draws=200, seed=seed)
    found = np.zeros((len(BY_CLASS), len(matrix)))
    for place, (metric, truth) in enumerate(zip(BY_CLASS, truths, strict=True)):
        for label, row in enumerate(intervals):
            interval = getattr(row, metric)
            found[place, label] = interval is not None and interval.low <= truth[label] <= interval.high
    return found


@pytest.mark.parametrize(("best", "worst"), [(0.9, 0.45), (0.95, 0.7), (0.85, 0.3)])
def test_means_over_classes_on_the_mll_test_counts(best: float, worst: float) -> None:
    """ABE has 1 image, KSC 8, FGC 9, LYI 13: the plain percentile bootstrap fails, ours does not."""
    rows = _rows(MLL_TEST, best, worst)
    truth = confusion_metrics(MLL_TEST[:, None] * rows)
    rng = np.random.default_rng(0)
    names = ("macro_f1", "balanced_accuracy", "accuracy", "weighted_f1")
    ours: Counter[str] = Counter()
    plain: Counter[str] = Counter()
    for repeat in range(REPEATS):
        matrix = rng.multinomial(MLL_TEST, rows)
        intervals = matrix_intervals(matrix, confusion_metrics, seed=repeat, draws=200)
        for name in names:
            ours[name] += bool(intervals[name].low <= truth[name] <= intervals[name].high)
        if repeat % 4 == 0:
            again = rng.multinomial(MLL_TEST, matrix / MLL_TEST[:, None], size=(200, len(MLL_TEST)))
            drawn = confusion_metrics(again)
            for name in names:
                low, high = np.quantile(drawn[name], [0.025, 0.975])
                plain[name] += 4 * bool(low <= truth[name] <= high)
    for name in ("macro_f1", "balanced_accuracy"):
        assert 0.92 <= ours[name] / REPEATS <= 0.99, ours
        assert plain[name] / REPEATS < 0.8, plain
    for name in ("accuracy", "weighted_f1"):
        assert 0.93 <= ours[name] / REPEATS <= 0.97, ours


def _fold(
    counts: np.ndarray, skill: float, sharpness: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Logits that lean to the frequent classes, so that errors go where the images are."""
    labels = np.repeat(np.arange(len(counts)), counts)
    signal = rng.normal(0, 1, (len(labels), len(counts)))
    signal[np.arange(len(labels)), labels] += skill
    return labels, sharpness * (skill * signal + np.log(counts / counts.sum()))


RANKED = {
    "5 classes of 20 images": (np.array([20] * 5), 2.2, 0.7),
    "5 classes of 20 to 400 images": (np.array([20, 30, 60, 120, 400]), 2.3, 1.0),
    "7 classes of 30 to 300 images": (np.array([30, 40, 50, 80, 120, 200, 300]), 1.7, 0.8),
    "2 classes of 30 and 60 images": (np.array([60, 30]), 1.2, 1.0),
    "2 classes of 40 and 160 images": (np.array([160, 40]), 1.6, 0.8),
    "2 classes of 100 and 300 images": (np.array([300, 100]), 0.9, 1.3),
}


@pytest.mark.parametrize("name", RANKED)
def test_rankings_and_probabilities_where_every_class_has_20_images(name: str) -> None:
    counts, skill, sharpness = RANKED[name]
    k = len(counts)
    rng = np.random.default_rng(1)
    truth = _population(counts, skill, sharpness, rng)
    held: Counter[str] = Counter()

    def note(metric: str, low: float, high: float) -> None:
        held[metric] += bool(low <= truth.get(metric, np.nan) <= high)

    for repeat in range(REPEATS):
        labels, logits = _fold(counts, skill, sharpness, rng)
        scores = class_scores(logits)
        rankings = [rank_class(scores[:, c], labels == c) for c in range(k)]
        for metric in ("auroc", "auprc"):
            values = [getattr(r, metric) for r in rankings]
            influences = [getattr(r, f"{metric}_influence") for r in rankings]
            for c in range(k):
                i = share_interval(values[c], spread_of(influences[c], labels), 1, int(counts.min()))
                note(f"{metric} {c}", i.low, i.high)
            spread = spread_of(np.mean(influences, axis=0), labels)
            i = share_interval(float(np.mean(values)), spread, 1, int(counts.min()))
            note(f"macro_{metric}", i.low, i.high)
        terms = probability_terms(logits, labels)
        for metric, term in (("nll", terms.nll), ("brier", terms.brier)):
            mean = mean_interval(term, labels, None)
            note(metric, mean["low"], mean["high"])
        if k == 2:
            i = sensitivity_interval(scores[:, 1], labels == 1, None, draws=200, seed=repeat)
            note("sensitivity", i.low, i.high)
    shares = {metric: times / REPEATS for metric, times in held.items()}
    # One class of 20 images may lie beside 95 % alone; so may their mean, a little to the wide side, where every class
    # has no more than 20: few pairs in the wrong order then decide, and Student's t allows for that.
    for metric in ("auroc", "auprc"):
        of_classes = [shares.pop(f"{metric} {c}") for c in range(k)]
        assert min(of_classes) >= 0.9, (metric, of_classes)
        most = 0.97 if counts.max() > 20 else 0.98
        assert 0.93 <= np.mean(of_classes) <= most, (metric, of_classes)
    assert {m: share for m, share in shares.items() if not 0.93 <= share <= 0.97} == {}


def _population(
    counts: np.ndarray, skill: float, sharpness: float, rng: np.random.Generator
) -> dict[str, float]:
    """The same metrics of a population of 2,000 to 10,000 folds' worth of images, by scikit-learn."""
    many = np.full(len(counts), 60_000)
    labels = np.repeat(np.arange(len(counts)), many)
    signal = rng.normal(0, 1, (len(labels), len(counts)))
    signal[np.arange(len(labels)), labels] += skill
    logits = sharpness * (skill * signal + np.log(counts / counts.sum()))
    weights = (counts / counts.sum() / 60_000)[labels]
    scores = class_scores(logits)
    terms = probability_terms(logits, labels)
    truth = {"nll": float(weights @ terms.nll), "brier": float(weights @ terms.brier)}
    for metric, function in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        for c in range(len(counts)):
            truth[f"{metric} {c}"] = function(labels == c, scores[:, c], sample_weight=weights)
        truth[f"macro_{metric}"] = float(np.mean([truth[f"{metric} {c}"] for c in range(len(counts))]))
    if len(counts) == 2:
        once = np.ones((1, len(labels)))
        truth["sensitivity"] = float(sensitivity_at_specificity(scores[:, 1], labels == 1, once)[0])
    return truth
