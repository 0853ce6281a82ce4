"""Two systems on the same images: how much they differ, and how sure that is.

Images are drawn anew within each true class, whole groups of them where groups are known; both systems, and all their
seeds, are scored on the same draw, so what makes an image hard for all of them cancels out. Inside a draw each system
counts with the mean over its seeds.

The interval over images says how much the difference would change with other test images; it is as wide as
`paired_spread` says, so it has a width where no draw differs. The interval over both says how much it would change with
other images and other seeds (see `seeds`), and is the one to judge by; with one seed a system the two are the same.

Metrics of one system have a percentile interval, shifted so that the mean of the draws lies on the value: the
calibration error of a draw is too high on average (an image drawn twice is wrong twice).

Source: Efron and Tibshirani 1993, chapters 8, 10 and 13 (paired, stratified bootstrap; bias; percentile interval).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..taxonomy import Taxonomy
from .metrics import METRICS
from .paired_spread import Basis, paired_bases
from .predictions import Predictions
from .probability_metrics import largest_bias
from .resampling import draw_weights
from .scalar_metrics import LESS_IS_BETTER as LESS_IS_BETTER  # for those who read a difference
from .seeds import interval_of_both, over_seeds, seed_error
from .statistics import ENOUGH_IMAGES, Interval
from .weighted_scorer import Scorer, mean_over_seeds

#: Metrics compared by default. `critical_to_safe`: share of the critical cells that were called safe.
COMPARED = ("macro_f1", "balanced_accuracy", "accuracy", "nll", "ece", "critical_to_safe")
#: All metrics that can be compared.
COMPARABLE = (*METRICS, "nll", "brier", "ece", "critical_to_safe")

#: How far from 0 a difference can lie; of those not named, 1. The negative log-likelihood has no bound.
_FARTHEST = {"nll": float("inf"), "brier": 2.0}

#: Where the images come from fewer groups than this, no difference is clear: every draw of whole groups shows the same
#: few.
ENOUGH_GROUPS = 5
#: Where two systems differ in fewer images than this, no difference is clear: a handful of images has no distribution
#: to draw from. Of the share read right an exact test decides where there is one.
ENOUGH_DISCORDANT = 10
NO_SPREAD = "no interval: nothing differs that could tell its width"

SHIFTED = "stratified bootstrap, percentile, shifted by its bias"
EXTENDED = f"{SHIFTED}, and longer by the largest bias of a sum of absolute values"


@dataclass(frozen=True)
class Difference:
    """Ours minus other in one metric.

    Args:
        value: The difference of the two means over seeds.
        low, high: Its interval over test images; None where nothing tells how sure it is, as of the likelihoods of two
            systems that say the same.
        deviation: Standard error of the difference over test images; 0 where nothing tells it.
        seed_error: Its standard error over seeds; None where a system has one seed.
        low_of_both, high_of_both: Its interval over images and seeds; over images alone where a system has one seed.
            None as `low`.
        ours, other: The means over seeds.
        ours_spread, other_spread: Standard deviation over seeds (n - 1); None with one seed.
        ours_seeds, other_seeds: How many seeds.
        n: Test images it is about: of `critical_to_safe` those of critical classes.
        discordant: Images in which the systems differ (see `paired_spread.Basis`).
        groups: Groups these images come from; None without groups.
        doubt: Why it is not clear although 0 may lie outside of its interval; None where that alone decides.
        small_classes: Classes of fewer than 20 images: drawn again they show too little of their own spread, so the
            interval of a mean over classes is a rough one.
    """

    value: float
    low: float | None
    high: float | None
    deviation: float
    seed_error: float | None
    low_of_both: float | None
    high_of_both: float | None
    ours: float
    other: float
    ours_spread: float | None
    other_spread: float | None
    ours_seeds: int
    other_seeds: int
    n: int
    discordant: float
    groups: int | None = None
    doubt: str | None = None
    small_classes: tuple[str, ...] = ()

    @property
    def is_clear(self) -> bool:
        """Whether neither other images nor other seeds would easily turn it round."""
        if self.doubt is not None or self.low_of_both is None or self.high_of_both is None:
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
    first, second = ([Scorer(one, taxonomy, classes_counted) for one in system] for system in systems)
    once = np.ones((1, len(labels)))
    values = [[scorer(once, metrics)[0] for scorer in system] for system in (first, second)]
    drawn = np.concatenate(  # (draws, metrics)
        [
            mean_over_seeds(first, w, metrics) - mean_over_seeds(second, w, metrics)
            for w in draw_weights(labels, groups, draws, seed)
        ]
    )
    small = tuple(code for code, n in zip(taxonomy.codes, support, strict=True) if 0 < n < ENOUGH_IMAGES)
    found = {}
    bases = paired_bases(first, second, groups, metrics, drawn)
    for place, (name, basis) in enumerate(zip(metrics, bases, strict=True)):
        (our, our_sd), (their, their_sd) = (over_seeds([v[place] for v in system]) for system in values)
        spreads = ((our_sd, len(ours)), (their_sd, len(other)))
        low, high = _around(name, our - their, basis, (), level)
        both = _around(name, our - their, basis, spreads, level)
        found[name] = Difference(
            value=our - their,
            low=low,
            high=high,
            deviation=basis.spread.error,
            seed_error=seed_error(spreads),
            low_of_both=both[0],
            high_of_both=both[1],
            ours=our,
            other=their,
            ours_spread=our_sd,
            other_spread=their_sd,
            ours_seeds=len(ours),
            other_seeds=len(other),
            n=basis.n,
            discordant=basis.discordant,
            groups=basis.groups,
            doubt=_doubt(basis, level),
            small_classes=small,
        )
    return found


def _around(
    name: str, value: float, basis: Basis, spreads: Sequence[tuple[float | None, int]], level: float
) -> tuple[float, float] | tuple[None, None]:
    """The interval of a difference, within what it can be; no ends where nothing tells how sure it is."""
    if not basis.spread.error:
        return None, None
    ends = interval_of_both(value, basis.spread.error, spreads, level, freedom=basis.spread.freedom)
    farthest = _FARTHEST.get(name, 1.0)
    return max(-farthest, ends[0]), min(farthest, ends[1])


def _doubt(basis: Basis, level: float) -> str | None:
    """Why a difference is not clear whatever its interval; None where the interval decides."""
    if not basis.spread.error:
        return NO_SPREAD
    if basis.groups is not None and basis.groups < ENOUGH_GROUPS:
        return f"only {basis.groups} group{'s' * (basis.groups != 1)}, fewer than {ENOUGH_GROUPS}"
    if basis.p is not None:
        # The interval is that of many images: of few the exact test knows better.
        return f"the exact test gives p = {basis.p:.3f}" if basis.p >= 1 - level else None
    if basis.discordant < ENOUGH_DISCORDANT:
        plural = "" if basis.discordant == 1 else "s"
        return f"they differ in {basis.discordant:.3g} image{plural}, fewer than {ENOUGH_DISCORDANT}"
    return None


def ends_told(row: Mapping[str, Any], word: str = "") -> str:
    """The interval over images and seeds of a difference in plain values, in words.

    Args:
        row: Of `Difference.to_dict`.
        word: What stands before the ends.
    """
    if row["low_of_both"] is None:
        return "no interval"
    return f"{word}{row['low_of_both']:+.3f} to {row['high_of_both']:+.3f}"


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
            [
                largest_bias(gaps, np.maximum(deviations, scorer.terms.noise)).sum()
                for gaps, deviations, scorer in zip(once, again, scorers, strict=True)
            ]
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
