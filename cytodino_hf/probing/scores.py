"""Answers on the test fold become numbers with intervals, and differences between systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..evaluation.comparison import COMPARED, bootstrap_intervals, paired_differences
from ..evaluation.metrics import confusion_matrix, critical_mistakes
from ..evaluation.predictions import Predictions
from ..evaluation.seeds import over_seeds
from ..evaluation.statistics import Interval, metric_intervals, wilson_interval
from ..taxonomy import Taxonomy
from .methods import HAVE_PROBABILITIES, HEADLINE

#: Metrics of probabilities.
OF_PROBABILITIES = ("nll", "ece")


@dataclass(frozen=True)
class Score:
    """One number of one method.

    Args:
        value: The mean over seeds.
        low, high: Its interval over test images; of several seeds, the means of their intervals' ends.
        method: How an interval was made.
        n: Test images it rests on.
        seeds: The value of each seed.
        spread: Standard deviation over seeds (n - 1); None with one seed.
    """

    value: float
    low: float
    high: float
    method: str
    n: int
    seeds: tuple[float, ...]
    spread: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "seeds": list(self.seeds)}


def score_method(
    predictions: Sequence[Predictions], taxonomy: Taxonomy, method: str, *, draws: int, seed: int
) -> dict[str, Score]:
    """Metrics of the test fold with their intervals.

    Args:
        predictions: One entry a seed.
        taxonomy: The classes.
        method: Of `METHODS`; decides whether probabilities are scored.
        draws, seed: Of the bootstrap.
    """
    each: list[dict[str, Interval]] = []
    for one in predictions:
        matrix = confusion_matrix(one.labels, one.predicted, len(taxonomy))
        intervals = metric_intervals(matrix, draws=draws, seed=seed)
        share = critical_mistakes(matrix, taxonomy.critical, taxonomy.safe).critical_to_safe
        if share.of and taxonomy.safe:
            intervals["critical_to_safe"] = wilson_interval(share.mistakes, share.of)
        if method in HAVE_PROBABILITIES:
            intervals |= bootstrap_intervals([one], taxonomy, OF_PROBABILITIES, draws, seed)
        each.append(intervals)
    return {name: _over_seeds([intervals[name] for intervals in each]) for name in each[0]}


def _over_seeds(intervals: Sequence[Interval]) -> Score:
    values = [interval.value for interval in intervals]
    mean, spread = over_seeds(values)
    return Score(
        value=mean,
        low=float(np.mean([interval.low for interval in intervals])),
        high=float(np.mean([interval.high for interval in intervals])),
        method=intervals[0].method,
        n=intervals[0].n,
        seeds=tuple(values),
        spread=spread,
    )


def compare_with_first(
    systems: Mapping[str, Mapping[str, Sequence[Predictions]]],
    taxonomy: Taxonomy,
    *,
    is_classical: Mapping[str, bool],
    draws: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The first system minus each other one, method by method, on the same test images.

    A method the first system lacks is compared with its headline method.

    Args:
        systems: System -> method -> one entry a seed; in the order they were asked for.
        taxonomy: The classes.
        is_classical: Of each system.
        draws, seed: Of the bootstrap.
    """
    first, *others = systems
    rows = []
    for other in others:
        for method, theirs in systems[other].items():
            own_method = method if method in systems[first] else HEADLINE[is_classical[first]]
            has_both = {own_method, method} <= set(HAVE_PROBABILITIES)
            metrics = [name for name in COMPARED if has_both or name not in OF_PROBABILITIES]
            found = paired_differences(systems[first][own_method], theirs, taxonomy, metrics, draws, seed)
            rows.append(
                {
                    "ours": first,
                    "ours_method": own_method,
                    "other": other,
                    "other_method": method,
                    "differences": {name: difference.to_dict() for name, difference in found.items()},
                }
            )
    return rows
