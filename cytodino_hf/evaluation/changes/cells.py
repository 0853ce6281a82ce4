"""The cells two models call differently, the dangerous ones first."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.splits import safe_cell
from ...files import whole_file
from ...taxonomy import Taxonomy
from ..predictions import Predictions

#: What a change comes to -> how a reader is told, the most alarming first.
KINDS: Mapping[str, str] = {
    "newly dangerous": "a critical cell now called safe",
    "lost": "right before, wrong now",
    "no longer dangerous": "a critical cell no longer called safe, but still wrong",
    "other mistake": "wrong before and now",
    "gained": "wrong before, right now",
}
COLUMNS = ("id", "path", "true", "before", "after", "change", "confidence_before", "confidence_after")


@dataclass(frozen=True)
class ChangedCells:
    """Rows that two models call differently.

    Args:
        rows: int64 (cells,), rows of the predictions; by kind in the order of `KINDS`, then the surer the model that
            is compared, the earlier.
        kinds: (cells,) of `KINDS`.
        confidence_before, confidence_after: (cells,) probability of what each model says.
    """

    rows: np.ndarray
    kinds: tuple[str, ...]
    confidence_before: np.ndarray
    confidence_after: np.ndarray

    def counts(self) -> dict[str, int]:
        """Cells of each kind."""
        return {kind: self.kinds.count(kind) for kind in KINDS}


def changed_cells(ours: Predictions, other: Predictions, taxonomy: Taxonomy) -> ChangedCells:
    """Find the cells that two models call differently.

    Args:
        ours: What is said now.
        other: What was said before, of the same labelled images in the same order.
        taxonomy: Says which mistakes are dangerous.
    """
    after, before, labels = ours.predicted, other.predicted, ours.labels
    is_critical = np.isin(labels, taxonomy.critical)
    safe_after, safe_before = (is_critical & np.isin(called, taxonomy.safe) for called in (after, before))
    number = np.select(
        [safe_after & ~safe_before, before == labels, after == labels, safe_before & ~safe_after],
        [0, 1, 4, 2],
        default=3,
    )
    rows = np.flatnonzero(after != before)
    sure_after, sure_before = ours.probabilities.max(axis=1), other.probabilities.max(axis=1)
    rows = rows[np.lexsort((rows, -sure_after[rows], number[rows]))]
    names = tuple(KINDS)
    return ChangedCells(
        rows, tuple(names[k] for k in number[rows].tolist()), sure_before[rows], sure_after[rows]
    )


def list_cells(
    changed: ChangedCells, ours: Predictions, other: Predictions, limit: int | None = None
) -> Iterator[dict[str, Any]]:
    """One entry a cell with `COLUMNS`, the first `limit` of them.

    Args:
        changed: From `changed_cells`.
        ours, other: What it was made from.
        limit: None gives all.
    """
    codes = ours.classes
    after, before = ours.predicted, other.predicted
    for place, row in enumerate(changed.rows[:limit].tolist()):
        yield {
            "id": ours.ids[row],
            "path": ours.paths[row],
            "true": codes[ours.labels[row]],
            "before": codes[before[row]],
            "after": codes[after[row]],
            "change": changed.kinds[place],
            "confidence_before": float(changed.confidence_before[place]),
            "confidence_after": float(changed.confidence_after[place]),
        }


def write_changed_cells(path: str | Path, ours: Predictions, other: Predictions, taxonomy: Taxonomy) -> int:
    """Write all cells that two models call differently as a CSV with `COLUMNS`.

    Args:
        path: The file.
        ours, other, taxonomy: See `changed_cells`; rows are brought into one order first.

    Returns:
        How many there are.

    Raises:
        DataError: The predictions are not of the same images, labels and classes.
    """
    from ..comparison import aligned_rows

    (now,), (then,) = (aligned_rows([one], [ours], taxonomy) for one in (ours, other))
    changed = changed_cells(now, then, taxonomy)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for cell in list_cells(changed, now, then):
        writer.writerow({**cell, "id": safe_cell(cell["id"]), "path": safe_cell(cell["path"])})
    with whole_file(Path(path)) as file:
        file.write(text.getvalue().encode("utf-8"))
    return len(changed.rows)
