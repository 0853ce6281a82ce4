"""The comparison of two runs, and the summary over seeds, as sections of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ...taxonomy import Taxonomy
from ..comparison import (
    COMPARED,
    LESS_IS_BETTER,
    Difference,
    aligned_rows,
    paired_differences,
)
from ..predictions import Predictions
from ..resampling import group_count
from ..seeds import over_seeds
from ..statistics import FEW_IMAGES
from ..weighted_scorer import Scorer
from .cells import KINDS, changed_cells, list_cells
from .discordance import holm, share_change
from .seed_intervals import MOST, ends_of_both, image_cells

#: Cells a report lists; the CSV holds all.
LISTED_CELLS = 200


def comparison_section(
    ours: Predictions,
    other: Predictions,
    taxonomy: Taxonomy,
    *,
    names: tuple[str, str] = ("this run", "the other run"),
    classes_counted: np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    limit: int = LISTED_CELLS,
) -> dict[str, Any]:
    """Compare two runs on the same test images.

    Args:
        ours, other: Predictions of the same labelled images, in any order; images without label are left out.
        taxonomy: The classes.
        names: What to call the two.
        classes_counted: (K,) bool, classes that enter means over classes; None takes all that have an image.
        draws, seed, level: Of the bootstrap.
        limit: Changed cells listed.

    Returns:
        `metrics` (name -> difference), `accuracy` and `per_class` (changes of shares read right with p-values, those
        of classes corrected by Holm), `changed` (how many cells, of which kind) and `cells`.

    Raises:
        DataError: The predictions are not of the same images, labels and classes, or there are none.
    """
    (now,), (then,) = (aligned_rows([one], [ours], taxonomy) for one in (ours, other))
    found = paired_differences(
        [now], [then], taxonomy, COMPARED, draws, seed, classes_counted=classes_counted, level=level
    )
    changed = changed_cells(now, then, taxonomy)
    right = (now.predicted == now.labels, then.predicted == then.labels)
    accuracy = share_change(*right, now.groups, draws=draws, seed=seed, level=level)
    return {
        "ours": names[0],
        "other": names[1],
        "ours_revision": ours.model_revision,
        "other_revision": other.model_revision,
        "images": len(now),
        "unlabelled_images": len(ours) - len(now),
        "groups": group_count(now.groups),
        "level": level,
        "metrics": {name: _told(name, difference) for name, difference in found.items()},
        "small_classes": list(found["accuracy"].small_classes),
        "accuracy": asdict(accuracy),
        "per_class": _per_class(now, right, taxonomy, draws, seed, level),
        "changed": {"cells": len(changed.rows), "kinds": changed.counts(), "words": dict(KINDS)},
        "cells": list(list_cells(changed, now, then, limit)),
    }


def _told(name: str, difference: Difference) -> dict[str, Any]:
    """A difference and which way it points, `unclear` where other test images might turn it round."""
    is_better = (difference.value < 0) == (name in LESS_IS_BETTER)
    verdict = ("better" if is_better else "worse") if difference.is_clear else "unclear"
    return {**difference.to_dict(), "verdict": verdict}


def _per_class(
    now: Predictions,
    right: tuple[np.ndarray, np.ndarray],
    taxonomy: Taxonomy,
    draws: int,
    seed: int,
    level: float,
) -> list[dict[str, Any]]:
    """Change of each class's recall; a class without image stands there without numbers and is no test."""
    rows: list[dict[str, Any]] = []
    for label, cell in enumerate(taxonomy.classes):
        mine = np.flatnonzero(now.labels == label)
        entry: dict[str, Any] = {"code": cell.code, "name": cell.name, "n": len(mine), "change": None}
        if len(mine):
            groups = [now.groups[row] for row in mine.tolist()]
            change = share_change(right[0][mine], right[1][mine], groups, draws=draws, seed=seed, level=level)
            entry["change"] = asdict(change)
        rows.append({**entry, "is_critical": cell.is_critical, "is_few": len(mine) < FEW_IMAGES})
    tested = [row for row in rows if row["change"] is not None]
    corrected = holm([row["change"]["p"] for row in tested])
    for row, p in zip(tested, corrected, strict=True):
        row["change"]["p_holm"] = p
        row["is_clear"] = p < 1 - level
    return rows


def seeds_section(
    systems: Mapping[str, Sequence[Predictions]],
    taxonomy: Taxonomy,
    metrics: Sequence[str] = COMPARED,
    *,
    classes_counted: np.ndarray | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Mean, standard deviation and interval of systems that were trained with several seeds.

    The interval is that over images and seeds (see `seed_intervals`): where another laboratory would find the mean of
    as many seeds on as many other images.

    Args:
        systems: Name -> predictions of each seed, all of the same labelled images.
        taxonomy, classes_counted, draws, seed, level: As in `paired_differences`.
        metrics: Some of `comparison.COMPARABLE`.

    Returns:
        `systems`: name -> `{"seeds", "metrics": {name: {"mean", "sd", "low", "high", "method", "values", "n"}}}`; `sd`
        is None of one seed, and the interval then over images alone; ends are None where `method` says why.

    Raises:
        DataError: Predictions are not of the same images, labels and classes, or a system has none.
    """
    reference = next((system for system in systems.values() if system), ())
    told = {}
    for name, system in systems.items():
        aligned = aligned_rows(system, reference, taxonomy)
        told[name] = _summary(aligned, taxonomy, metrics, classes_counted, draws, seed, level)
    return {"level": level, "systems": told}


def _summary(
    aligned: Sequence[Predictions],
    taxonomy: Taxonomy,
    metrics: Sequence[str],
    counted: np.ndarray | None,
    draws: int,
    seed: int,
    level: float,
) -> dict[str, Any]:
    labels = aligned[0].labels
    if not np.isin(labels, taxonomy.critical).any() or not taxonomy.safe:
        metrics = [name for name in metrics if name != "critical_to_safe"]
    scorers = [Scorer(one, taxonomy, counted) for one in aligned]
    values = np.array(
        [scorer(np.ones((1, len(labels))), metrics)[0] for scorer in scorers]
    )  # (seeds, metrics)
    cells = image_cells(aligned, scorers, metrics, draws=draws, seed=seed, level=level)
    told = {}
    for place, name in enumerate(metrics):
        mean, spread = over_seeds(values[:, place].tolist())
        most = MOST.get(name, 1.0)
        low, high = ends_of_both(mean, cells[name], spread, len(aligned), level=level, most=most)
        told[name] = {
            "mean": mean,
            "sd": spread,
            "low": low,
            "high": high,
            "method": cells[name]["method"],
            "values": values[:, place].tolist(),
            "n": cells[name]["n"],
        }
    return {"seeds": len(aligned), "metrics": told}
