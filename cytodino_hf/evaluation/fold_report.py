"""All numbers of one fold, as a report holds them: plain values, intervals, named gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..errors import DataError
from ..taxonomy import Taxonomy
from .grouped import GroupDraws, group_draws
from .metrics import class_metrics, confusion_matrix, top_confusions
from .predictions import Predictions
from .scalar_metrics import why_undefined
from .statistics import FEW_IMAGES, called_interval, class_intervals, metric_intervals


def fold_section(
    fold: str,
    predictions: Predictions,
    taxonomy: Taxonomy,
    train_classes: Sequence[str],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Score one fold: metrics with intervals, the class table, dangerous mistakes, confusions.

    Args:
        fold: Name of the fold, for messages.
        predictions: Its predictions; images without label are counted and left out. Where images have a group,
            intervals are over groups.
        taxonomy: The classes, in label order.
        train_classes: Codes of the classes with an image in the training fold; macro metrics are over these.
        draws, seed, level: Of the bootstrap (`metric_intervals`).

    Returns:
        `metrics` is empty where the fold has no labelled image of a training class, or there is one class only;
        `undefined` names those that could not be otherwise and are left out, and why.

    Raises:
        DataError: Predictions are not finite, or name other classes than the taxonomy.
    """
    _check(fold, predictions, taxonomy)
    known = predictions.labels >= 0
    matrix = confusion_matrix(predictions.labels[known], predictions.predicted[known], len(taxonomy))
    support = matrix.sum(1)
    counted = np.array([code in train_classes for code in taxonomy.codes])
    codes = np.array(taxonomy.codes)
    grouped = group_draws(
        predictions.labels[known],
        predictions.predicted[known],
        [group for group, is_known in zip(predictions.groups, known, strict=True) if is_known],
        len(taxonomy),
        draws,
        seed,
    )
    metrics = (
        metric_intervals(matrix, counted, draws=draws, seed=seed, level=level, grouped=grouped)
        if support[counted].any() and len(taxonomy) > 1
        else {}
    )
    reasons = {name: why_undefined(name, predictions.labels[known], taxonomy, counted) for name in metrics}
    return {
        "images": int(known.sum()),
        "unlabelled_images": int((~known).sum()),
        "model_revision": predictions.model_revision,
        "metrics": {name: interval.to_dict() for name, interval in metrics.items() if reasons[name] is None},
        "undefined": {name: reason for name, reason in reasons.items() if reason is not None},
        "absent_classes": codes[counted & (support == 0)].tolist(),
        "untrained_classes": codes[~counted & (support > 0)].tolist(),
        "never_predicted": codes[(support > 0) & (matrix.sum(0) == 0)].tolist(),
        "per_class": _class_table(matrix, taxonomy, draws, seed, level, grouped),
        "critical": _critical_section(matrix, taxonomy, level, grouped),
        "top_confusions": _confusions(matrix, taxonomy, level, grouped),
        "classes": list(taxonomy.codes),
        "confusion_matrix": matrix.tolist(),
    }


def _check(fold: str, predictions: Predictions, taxonomy: Taxonomy) -> None:
    if predictions.classes != taxonomy.codes:
        raise DataError(
            f"predictions of fold {fold!r} name the classes {', '.join(predictions.classes)}, "
            f"the taxonomy {', '.join(taxonomy.codes)}; score the fold again with this model"
        )
    broken = np.flatnonzero(~np.isfinite(predictions.logits).all(1))
    if len(broken):
        raise DataError(
            f"fold {fold!r}: {len(broken)} images have logits that are not finite, such as "
            f"{predictions.ids[broken[0]]}; training diverged: lower training.learning_rate and train again"
        )


def _class_table(
    matrix: np.ndarray,
    taxonomy: Taxonomy,
    draws: int,
    seed: int,
    level: float,
    grouped: GroupDraws | None,
) -> list[dict[str, Any]]:
    each = class_metrics(matrix)
    intervals = class_intervals(matrix, draws=draws, seed=seed, level=level, grouped=grouped)
    return [
        {
            "code": cell.code,
            "name": cell.name,
            "lineage": cell.lineage,
            "is_critical": cell.is_critical,
            "is_safe": cell.is_safe,
            "images": int(each.support[label]),
            "is_few": bool(each.support[label] < FEW_IMAGES),
            "predicted": int(each.predicted[label]),
            **asdict(intervals[label]),  # None: no such image, or none called so
        }
        for label, cell in enumerate(taxonomy.classes)
    ]


def _confusions(
    matrix: np.ndarray, taxonomy: Taxonomy, level: float, grouped: GroupDraws | None
) -> list[dict[str, Any]]:
    """The most frequent confusions; shares are of the images of the true class."""
    rows = []
    for c in top_confusions(matrix):
        interval, _ = called_interval(matrix, [c.true], [c.predicted], grouped, level=level)
        rows.append(
            {
                "true": taxonomy.codes[c.true],
                "predicted": taxonomy.codes[c.predicted],
                "count": c.count,
                "share": c.share,
                "low": interval.low,
                "high": interval.high,
                "of": interval.n,
                "method": interval.method,
            }
        )
    return rows


def _critical_section(
    matrix: np.ndarray, taxonomy: Taxonomy, level: float, grouped: GroupDraws | None
) -> dict[str, Any]:
    critical, safe = taxonomy.critical, taxonomy.safe

    def row(true: Sequence[int], called: Sequence[int]) -> dict[str, Any]:
        interval, mistakes = called_interval(matrix, true, called, grouped, level=level)
        is_known = interval.n > 0
        rates = {"rate": interval.value, "low": interval.low, "high": interval.high}
        return {
            "mistakes": mistakes,
            "of": interval.n,
            **{name: value if is_known else None for name, value in rates.items()},
            "method": interval.method,
        }

    return {
        "critical_to_safe": row(critical, safe),
        "safe_to_critical": row(safe, critical),
        "per_class": {taxonomy.codes[label]: row([label], safe) for label in critical},
    }
