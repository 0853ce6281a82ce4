"""The further metrics of a fold: agreement, ranking, hierarchy, and what only a task of two classes has.

`fold_report` holds the base (F1, recall, precision, accuracy, the class table); this section stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import DataError
from ..taxonomy import Taxonomy
from .agreement import AGREEMENT, FREQUENT_IMAGES, agreement_metrics, frequent_classes
from .binary import binary_section
from .delta_intervals import share_interval, spread_of
from .grouped import GroupDraws, group_draws
from .hierarchy import HIERARCHY, across_lineages, distance_matrix, hierarchy_metrics
from .metrics import confusion_matrix
from .predictions import Predictions
from .ranking_metrics import Ranking, class_scores, rank_class
from .resampling import group_count
from .scalar_metrics import RANKING, positive_label, ranked_classes, why_undefined
from .statistics import FEW_IMAGES, LIMITS, Interval, called_interval, cells_interval, matrix_intervals

_DISTANCE = (
    "0 for the right class; inside a lineage the steps between the two classes along its maturation order, 1 where one "
    "of them has no place in an order; {across} across lineages, one more than the greatest distance inside any, at "
    "least 2"
)


def metrics_section(
    predictions: Predictions,
    taxonomy: Taxonomy,
    train_classes: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Further metrics of the labelled images of one fold, each with its interval and its number of images.

    Args:
        predictions: Of one fold; images without label are left out. Where images have a group, intervals are over
            groups.
        taxonomy: The classes, in label order.
        train_classes: Codes of the classes with an image in the training fold; means over classes are over these.
        draws, seed, level: Of the bootstrap (`statistics.matrix_intervals`).

    Returns:
        `images`, `level`, `groups` (how many; None), `group_kind`, `metrics` (name -> value, low, high, method, n),
        `undefined` (name -> why it has no value here), `classes` (AUROC and AUPRC of each), `critical` (each critical
        class called safe), `few_images`, `frequent_images`, `distance` (its formula) and `binary` (None unless two
        classes).

    Raises:
        DataError: The predictions name other classes than the taxonomy, or no image has a label.
    """
    if predictions.classes != taxonomy.codes:
        raise DataError(
            f"the predictions name the classes {', '.join(predictions.classes)}, the taxonomy "
            f"{', '.join(taxonomy.codes)}; score the images again with this model"
        )
    known = predictions.select(np.flatnonzero(predictions.labels >= 0))
    if not len(known):
        raise DataError("no image has a label, so there is nothing to score; give a fold with labels")
    counted = np.isin(np.array(taxonomy.codes), list(train_classes))
    scores = class_scores(known.logits)
    ranked = ranked_classes(known.labels, counted)
    rankings = {label: rank_class(scores[:, label], known.labels == label) for label in ranked}
    matrix = confusion_matrix(known.labels, known.predicted, len(taxonomy))
    grouped = group_draws(known.labels, known.predicted, known.groups, len(taxonomy), draws, seed)
    metrics = _matrix_metrics(matrix, taxonomy, counted, grouped, draws=draws, seed=seed, level=level)
    metrics |= _mean_rankings(rankings, known, level)
    names = (*AGREEMENT, *RANKING, *HIERARCHY)
    undefined = {name: why_undefined(name, known.labels, taxonomy, counted) for name in names}
    metrics = {name: metrics[name] for name in names if name in metrics and undefined[name] is None}
    positive = positive_label(taxonomy)
    return {
        "images": len(known),
        "level": level,
        "groups": group_count(known.groups),
        "group_kind": known.group_kind if grouped is not None else None,
        "metrics": {name: interval.to_dict() for name, interval in metrics.items()},
        "undefined": {
            name: undefined[name] or "no image was mistaken" for name in names if name not in metrics
        },
        "classes": _class_rows(rankings, known, taxonomy, level),
        "critical": _critical_rows(matrix, taxonomy, grouped, level),
        "few_images": FEW_IMAGES,
        "frequent_images": FREQUENT_IMAGES,
        "distance": _DISTANCE.format(across=across_lineages(taxonomy)),
        "binary": None
        if positive is None
        else binary_section(
            known, scores, rankings.get(positive), taxonomy, positive, draws=draws, seed=seed, level=level
        ),
    }


def ranking_interval(
    ranking: Ranking, name: str, label: int, known: Predictions, level: float = 0.95
) -> Interval:
    """Interval of the `auroc` or `auprc` of one class.

    Args:
        ranking: Of the class.
        name: Which of the two.
        label: The class.
        known: The images, all labelled.
        level: Nominal coverage.
    """
    is_class = known.labels == label
    spread = spread_of(getattr(ranking, f"{name}_influence"), known.labels, known.groups)
    n = int(is_class.sum())
    return share_interval(
        getattr(ranking, name), spread, n, _least_units(is_class, known.groups), level=level
    )


def _least_units(is_class: np.ndarray, groups: Sequence[str | None]) -> int:
    """Images, or groups, of the class or of the rest, whichever are fewer."""
    sides = [[g for g, here in zip(groups, is_class, strict=True) if here == side] for side in (True, False)]
    return min(group_count(side) or len(side) for side in sides)


def _matrix_metrics(
    matrix: np.ndarray,
    taxonomy: Taxonomy,
    counted: np.ndarray,
    grouped: GroupDraws | None,
    *,
    draws: int,
    seed: int,
    level: float,
) -> dict[str, Interval]:
    frequent, distances = frequent_classes(matrix), distance_matrix(taxonomy)

    def score(drawn: np.ndarray) -> dict[str, np.ndarray]:
        far = hierarchy_metrics(drawn, taxonomy)
        of_all = {name: far[name] for name in ("lineage_accuracy", "mean_distance")}
        return {**agreement_metrics(drawn, counted, frequent), **of_all}

    farthest = float(max(1, distances.max()))
    limits = {**LIMITS, "mean_distance": (0.0, farthest)}
    found = matrix_intervals(
        matrix, score, draws=draws, seed=seed, level=level, grouped=grouped, limits=limits
    )
    if "macro_f1_frequent" in found:
        n = int(matrix[frequent & counted].sum())
        found["macro_f1_frequent"] = replace(found["macro_f1_frequent"], n=n)
    # Shares of few images: of the mistakes, and of the critical cells.
    if matrix[distances > 0].any():
        found["within_one_step"] = cells_interval(
            matrix, distances == 1, distances > 0, grouped, level=level
        )[0]
    if taxonomy.safe and matrix[list(taxonomy.critical)].any():
        found["critical_to_safe"] = called_interval(
            matrix, taxonomy.critical, taxonomy.safe, grouped, level=level
        )[0]
    return found


def _mean_rankings(rankings: Mapping[int, Ranking], known: Predictions, level: float) -> dict[str, Interval]:
    if not rankings:
        return {}
    found = {}
    for name in ("auroc", "auprc"):
        value = float(np.mean([getattr(r, name) for r in rankings.values()]))
        influence = np.mean([getattr(r, f"{name}_influence") for r in rankings.values()], axis=0)
        spread = spread_of(influence, known.labels, known.groups)
        units = min(_least_units(known.labels == label, known.groups) for label in rankings)
        found[f"macro_{name}"] = share_interval(value, spread, len(known), units, level=level)
    return found


def _class_rows(
    rankings: Mapping[int, Ranking], known: Predictions, taxonomy: Taxonomy, level: float
) -> list[dict[str, Any]]:
    support = np.bincount(known.labels, minlength=len(taxonomy))
    rows = []
    for label, cell in enumerate(taxonomy.classes):
        ranking = rankings.get(label)
        values = {
            name: None if ranking is None else ranking_interval(ranking, name, label, known, level).to_dict()
            for name in ("auroc", "auprc")
        }
        rows.append(
            {
                "code": cell.code,
                "name": cell.name,
                "lineage": cell.lineage,
                "images": int(support[label]),
                "is_few": bool(support[label] < FEW_IMAGES),
                "auprc_of_chance": float(support[label] / len(known)),
                **values,
            }
        )
    return rows


def _critical_rows(
    matrix: np.ndarray, taxonomy: Taxonomy, grouped: GroupDraws | None, level: float
) -> list[dict[str, Any]]:
    """Critical to safe of each critical class; no rows where no class is safe."""
    if not taxonomy.safe:
        return []
    rows = []
    for label in taxonomy.critical:
        interval, mistakes = called_interval(matrix, [label], taxonomy.safe, grouped, level=level)
        has = interval.n > 0
        rows.append(
            {
                "code": taxonomy.codes[label],
                "name": taxonomy.names[label],
                "mistakes": mistakes,
                "of": interval.n,
                "is_few": interval.n < FEW_IMAGES,
                "rate": interval.value if has else None,
                "low": interval.low if has else None,
                "high": interval.high if has else None,
                "method": interval.method,
            }
        )
    return rows
