"""Two systems on the same images: how much they differ, and how sure that is.

Images are drawn anew within each true class, whole groups of them where groups are known; both systems, and all their
seeds, are scored on the same draw, so what makes an image hard for all of them cancels out. Inside a draw each system
counts with the mean over its seeds.

The interval over images says how much the difference would change with other test images. The percentile interval is
shifted so that the mean of the draws lies on the value: the calibration error of a draw is too high on average (an
image drawn twice is wrong twice), and more so for the better calibrated system. The interval over both says how much
it would change with other images and other seeds (see `seeds`), and is the one to judge by where there are several.

Source: Efron and Tibshirani 1993, chapters 8, 10 and 13 (paired, stratified bootstrap; bias; percentile interval).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..taxonomy import Taxonomy
from .metrics import METRICS, confusion_metrics
from .predictions import Predictions
from .probability_metrics import largest_bias, probability_terms
from .resampling import are_grouped, draw_weights
from .scalar_metrics import LESS_IS_BETTER as LESS_IS_BETTER  # for those who read a difference
from .seeds import interval_of_both, over_seeds, seed_error
from .statistics import ENOUGH_IMAGES, Interval

#: Metrics compared by default. `critical_to_safe`: share of the critical cells that were called safe.
COMPARED = ("macro_f1", "balanced_accuracy", "accuracy", "nll", "ece", "critical_to_safe")
#: All metrics that can be compared.
COMPARABLE = (*METRICS, "nll", "brier", "ece", "critical_to_safe")

#: Where the critical cells come from fewer groups than this, no difference of their rate is clear: every draw of whole
#: groups shows the same few.
ENOUGH_CRITICAL_GROUPS = 5
#: Where fewer critical images than this are called safe by one system and not by the other, no difference of that
#: rate is clear: a handful of images has no distribution to draw from.
ENOUGH_DISCORDANT = 10

SHIFTED = "stratified bootstrap, percentile, shifted by its bias"
EXTENDED = f"{SHIFTED}, and longer by the largest bias of a sum of absolute values"


@dataclass(frozen=True)
class Difference:
    """Ours minus other in one metric.

    Args:
        value: The difference of the two means over seeds.
        low, high: Its interval over test images.
        deviation: Standard deviation of its draws.
        seed_error: Its standard error over seeds; None where a system has one seed.
        low_of_both, high_of_both: Its interval over images and seeds; over images alone where a system has one seed.
        ours, other: The means over seeds.
        ours_spread, other_spread: Standard deviation over seeds (n - 1); None with one seed.
        ours_seeds, other_seeds: How many seeds.
        n: Test images.
        small_classes: Classes of fewer than 20 images: drawn again they show too little of their own spread, so the
            interval of a mean over classes is narrower than the truth.
        critical_groups: Of `critical_to_safe`, groups with a critical image; None without groups and of other metrics.
        discordant: Of `critical_to_safe`: critical images that one system calls safe and the other does not; with
            several seeds the sum of the differences between their shares of seeds. None of other metrics.
    """

    value: float
    low: float
    high: float
    deviation: float
    seed_error: float | None
    low_of_both: float
    high_of_both: float
    ours: float
    other: float
    ours_spread: float | None
    other_spread: float | None
    ours_seeds: int
    other_seeds: int
    n: int
    small_classes: tuple[str, ...] = ()
    discordant: float | None = None
    critical_groups: int | None = None

    @property
    def is_clear(self) -> bool:
        """Whether neither other images nor other seeds would easily turn it round."""
        if self.discordant is not None and self.discordant < ENOUGH_DISCORDANT:
            return False
        if self.critical_groups is not None and self.critical_groups < ENOUGH_CRITICAL_GROUPS:
            return False
        return self.low_of_both > 0 or self.high_of_both < 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "small_classes": list(self.small_classes)}


def paired_differences(
    ours: Sequence[Predictions],
    other: Sequence[Predictions],
    taxonomy: Taxonomy,
    metrics: Sequence[str] = COMPARED,
    draws: int = 2000,
    seed: int = 0,
    *,
    classes_counted: np.ndarray | None = None,
    level: float = 0.95,
) -> dict[str, Difference]:
    """Difference of two systems in each metric, with its interval.

    Args:
        ours, other: One entry a seed; all of the same labelled images, in any order. Seeds need not pair.
        taxonomy: The classes; says which mistakes are dangerous.
        metrics: Some of `COMPARABLE`. `critical_to_safe` is left out where no image is of a critical class, or no
            class is safe.
        draws: Bootstrap draws.
        seed: Same seed, same intervals.
        classes_counted: (K,) bool, classes that enter means over classes; None takes all that have an image.
        level: Nominal coverage.

    Returns:
        Name of the metric -> difference, in the order asked for.

    Raises:
        DataError: The predictions are not of the same images, labels and classes, or there are none.
        ValueError: An unknown metric.
    """
    if unknown := [name for name in metrics if name not in COMPARABLE]:
        raise ValueError(f"unknown metrics {', '.join(unknown)}; comparable are {', '.join(COMPARABLE)}")
    systems = [aligned_rows(ours, ours, taxonomy), aligned_rows(other, ours, taxonomy)]
    labels, groups = systems[0][0].labels, systems[0][0].groups
    support = np.bincount(labels, minlength=len(taxonomy))
    if not support[list(taxonomy.critical)].sum() or not taxonomy.safe:
        metrics = [name for name in metrics if name != "critical_to_safe"]
    first, second = ([Scorer(p, taxonomy, classes_counted) for p in system] for system in systems)
    once = np.ones((1, len(labels)))
    values = [[scorer(once, metrics)[0] for scorer in system] for system in (first, second)]
    drawn = np.concatenate(  # (draws, metrics)
        [
            mean_over_seeds(first, w, metrics) - mean_over_seeds(second, w, metrics)
            for w in draw_weights(labels, groups, draws, seed)
        ]
    )
    low, high = _ends(drawn, np.mean(values[0], axis=0) - np.mean(values[1], axis=0), level)
    deviation = np.nanstd(drawn, axis=0, ddof=1)
    small = tuple(code for code, n in zip(taxonomy.codes, support, strict=True) if 0 < n < ENOUGH_IMAGES)
    found = {}
    for place, name in enumerate(metrics):
        (our, our_sd), (their, their_sd) = (over_seeds([v[place] for v in system]) for system in values)
        spreads = ((our_sd, len(ours)), (their_sd, len(other)))
        both = interval_of_both(our - their, float(deviation[place]), spreads, level)
        found[name] = Difference(
            value=our - their,
            low=float(low[place]),
            high=float(high[place]),
            deviation=float(deviation[place]),
            seed_error=seed_error(spreads),
            low_of_both=both[0],
            high_of_both=both[1],
            ours=our,
            other=their,
            ours_spread=our_sd,
            other_spread=their_sd,
            ours_seeds=len(ours),
            other_seeds=len(other),
            n=len(labels),
            small_classes=small,
            **(_critical_basis(first, second, groups) if name == "critical_to_safe" else {}),
        )
    return found


def bootstrap_intervals(
    system: Sequence[Predictions],
    taxonomy: Taxonomy,
    metrics: Sequence[str] = ("nll", "brier", "ece"),
    draws: int = 2000,
    seed: int = 0,
    *,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Metrics of one system, the mean over its seeds, with intervals over test images from the same draws.

    For metrics of a confusion matrix `statistics.metric_intervals` is the better choice: it knows small classes.
    The calibration error of the images as they are is too high on average; its interval reaches down as much further.

    Args:
        system, taxonomy, metrics, draws, seed, level: As in `paired_differences`.

    Raises:
        DataError: The seeds are not of the same images, or there are none.
    """
    aligned = aligned_rows(system, system, taxonomy)
    scorers = [Scorer(p, taxonomy, None) for p in aligned]
    labels, groups = aligned[0].labels, aligned[0].groups
    value = mean_over_seeds(scorers, np.ones((1, len(labels))), metrics)[0]
    chunks = [
        (mean_over_seeds(scorers, w, metrics), [scorer.gaps(w) for scorer in scorers])
        for w in draw_weights(labels, groups, draws, seed)
    ]
    low, high = _ends(np.concatenate([chunk for chunk, _ in chunks]), value, level)
    methods = dict.fromkeys(metrics, SHIFTED)
    if "ece" in metrics:
        once = [scorer.gaps(np.ones((1, len(labels))))[0] for scorer in scorers]
        again = [np.concatenate(gaps).std(axis=0) for gaps in zip(*(gaps for _, gaps in chunks), strict=True)]
        low[list(metrics).index("ece")] -= np.mean(
            [largest_bias(*pair).sum() for pair in zip(once, again, strict=True)]
        )
        methods["ece"] = EXTENDED
    return {
        name: Interval(float(value[i]), max(0.0, float(low[i])), float(high[i]), methods[name], len(labels))
        for i, name in enumerate(metrics)
    }


def _ends(drawn: np.ndarray, value: np.ndarray, level: float) -> np.ndarray:
    """Low and high ends (2, metrics) of (draws, metrics)."""
    tail = (1 - level) / 2
    ends: np.ndarray = np.nanquantile(drawn, [tail, 1 - tail], axis=0) - np.nanmean(drawn, axis=0) + value
    return ends


def aligned_rows(
    system: Sequence[Predictions], reference: Sequence[Predictions], taxonomy: Taxonomy
) -> list[Predictions]:
    """Labelled rows of every seed, all in the order of the first of `reference`.

    Raises:
        DataError: The predictions are not of the same images, labels and classes, or there are none.
    """
    if not system or not reference:
        raise DataError("nothing to compare: a system has no predictions")
    first = reference[0].select(np.flatnonzero(reference[0].labels >= 0))
    if not len(first):
        raise DataError("nothing to compare: no image has a label")
    aligned = []
    for predictions in system:
        if predictions.classes != taxonomy.codes:
            raise DataError(
                f"predictions of {predictions.model_revision} name the classes {', '.join(predictions.classes)}, "
                f"the taxonomy {', '.join(taxonomy.codes)}; compare models of the same classes"
            )
        labelled = predictions.select(np.flatnonzero(predictions.labels >= 0))
        row_of = {name: row for row, name in enumerate(labelled.ids)}
        if len(row_of) != len(labelled) or set(row_of) != set(first.ids):
            different = sorted(set(row_of) ^ set(first.ids)) or ["an id twice"]
            raise DataError(
                f"predictions of {predictions.model_revision} and of {first.model_revision} are not of the same test "
                f"images ({len(different)} differ, such as {different[0]}); score both on one split"
            )
        ordered = labelled.select([row_of[name] for name in first.ids])
        wrong = np.flatnonzero(ordered.labels != first.labels)
        if len(wrong):
            raise DataError(
                f"predictions of {predictions.model_revision} and of {first.model_revision} hold different labels "
                f"for {len(wrong)} images, such as {first.ids[wrong[0]]}; score both on one label table"
            )
        aligned.append(ordered)
    return aligned


class Scorer:
    """Metrics of one model for any weights of its images."""

    def __init__(self, predictions: Predictions, taxonomy: Taxonomy, counted: np.ndarray | None) -> None:
        self.labels = predictions.labels
        self.called = np.eye(len(taxonomy))[predictions.predicted]  # (images, K)
        self.terms = probability_terms(predictions.logits, predictions.labels)
        self.taxonomy = taxonomy
        self.counted = counted

    def called_safe(self) -> np.ndarray:
        """Whether each image of a critical class was called safe: (critical images,)."""
        is_critical = np.isin(self.labels, self.taxonomy.critical)
        safe: np.ndarray = self.called[is_critical][:, list(self.taxonomy.safe)].sum(axis=1)
        return safe

    def gaps(self, weights: np.ndarray) -> np.ndarray:
        """Mean confidence less share right of each bin, by its share of images: (draws, bins)."""
        gaps: np.ndarray = weights @ self.terms.gap / weights.sum(axis=1, keepdims=True)
        return gaps

    def __call__(self, weights: np.ndarray, metrics: Sequence[str]) -> np.ndarray:
        """(draws, images) whole weights -> (draws, metrics)."""
        n = weights.sum(axis=1)
        matrix = np.stack(  # (draws, K, K), rows true
            [
                weights[:, rows] @ self.called[rows]
                for rows in (self.labels == k for k in range(len(self.taxonomy)))
            ],
            axis=1,
        )
        values: dict[str, np.ndarray] = {
            **confusion_metrics(matrix, self.counted),
            "nll": weights @ self.terms.nll / n,
            "brier": weights @ self.terms.brier / n,
            "ece": np.abs(self.gaps(weights)).sum(axis=1),
        }
        if "critical_to_safe" in metrics:
            critical = matrix[:, list(self.taxonomy.critical)]
            mistakes, of = critical[:, :, list(self.taxonomy.safe)].sum((1, 2)), critical.sum((1, 2))
            # A draw of whole groups may hold no critical image: it says nothing of this rate.
            values["critical_to_safe"] = np.divide(mistakes, of, out=np.full(len(of), np.nan), where=of > 0)
        return np.stack([values[name] for name in metrics], axis=1)


def mean_over_seeds(system: Sequence[Scorer], weights: np.ndarray, metrics: Sequence[str]) -> np.ndarray:
    """Metrics of a system, the mean over its seeds: (draws, images) whole weights -> (draws, metrics)."""
    return np.mean([scorer(weights, metrics) for scorer in system], axis=0)


def _critical_basis(
    first: Sequence[Scorer], second: Sequence[Scorer], groups: Sequence[str | None]
) -> dict[str, Any]:
    """How much a difference of `critical_to_safe` rests on: images that differ, and groups they come from."""
    shares = [np.mean([scorer.called_safe() for scorer in system], axis=0) for system in (first, second)]
    found: dict[str, Any] = {"discordant": float(np.abs(shares[0] - shares[1]).sum())}
    if are_grouped(groups):
        rows = np.flatnonzero(np.isin(first[0].labels, first[0].taxonomy.critical)).tolist()
        # An image without a group is one by itself.
        found["critical_groups"] = len({row if groups[row] is None else groups[row] for row in rows})
    return found
