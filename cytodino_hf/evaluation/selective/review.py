"""The cells a person should look at, the most worthwhile first, each with a reason; no label is used."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.splits import safe_cell
from ...errors import DataError
from ...files import whole_file
from ...taxonomy import Taxonomy, mistake_costs
from ..predictions import Predictions
from .scores import confidence_scores, expected_costs

#: An answer that is a safe class is looked at where critical classes together are at least so probable.
CRITICAL_PROBABILITY = 0.05

COLUMNS = ("id", "path", "prediction", "score", "reason")


@dataclass(frozen=True)
class ReviewCell:
    """A cell to look at.

    Args:
        id, path: Of the image.
        prediction: Class code of the answer.
        score: Expected cost of the answer: 1 for any mistake, and the clinical cost on top; higher comes first.
        reason: Why, in words.
    """

    id: str
    path: str
    prediction: str
    score: float
    reason: str


def review_list(
    predictions: Predictions,
    taxonomy: Taxonomy,
    *,
    score: str = "max_probability",
    threshold: float | None = None,
    limit: int | None = None,
) -> list[ReviewCell]:
    """Rank the cells a person should look at.

    Listed are answers below the threshold, and safe answers where the critical classes are not improbable. The rank is
    the expected cost of the answer given, sum over t of p_t (1 where t is another class + its clinical cost).

    Args:
        predictions: Calibrated ones are better, as the cost is computed from probabilities.
        taxonomy: The classes.
        score: Which of `SCORES` the threshold is of.
        threshold: Answers with a lower score are listed; None lists all cells.
        limit: At most so many; None for all.

    Raises:
        DataError: The predictions name other classes, or the score is not one of this taxonomy.
    """
    if predictions.classes != taxonomy.codes:
        raise DataError(
            f"predictions of {predictions.model_revision} name the classes {', '.join(predictions.classes)}, the "
            f"taxonomy {', '.join(taxonomy.codes)}; give the taxonomy of the model"
        )
    if not len(predictions):
        return []
    scores = confidence_scores(predictions.logits, taxonomy)
    if score not in scores:
        raise DataError(f"score {score!r} cannot be had here; there are {', '.join(scores)}")
    p, answers = predictions.probabilities.astype(np.float64), predictions.predicted
    critical = p[:, list(taxonomy.critical)].sum(axis=1)
    is_dangerous = np.isin(answers, taxonomy.safe) & (critical >= CRITICAL_PROBABILITY)
    is_unsure = np.ones(len(p), bool) if threshold is None else scores[score] < threshold
    cost = expected_costs(p, np.array(mistake_costs(taxonomy)) + 1.0 - np.eye(len(taxonomy)), answers)
    rows = np.flatnonzero(is_dangerous | is_unsure)
    ranked = rows[np.argsort(-cost[rows], kind="stable")][:limit]
    return [
        ReviewCell(
            predictions.ids[row],
            predictions.paths[row],
            taxonomy.codes[answers[row]],
            float(cost[row]),
            _reason(p[row], int(answers[row]), taxonomy, bool(is_dangerous[row])),
        )
        for row in ranked
    ]


def review_folds(predictions: Mapping[str, Predictions]) -> list[str]:
    """Names of the folds whose cells are reviewed: the test fold, or all where it has no image; labelled or not."""
    folds = [fold for fold, one in predictions.items() if len(one)]
    return ["test"] if "test" in folds else folds


def write_review(path: Path, cells: Sequence[ReviewCell]) -> None:
    """Write the list as CSV (`COLUMNS`); no cell begins with a sign that a spreadsheet takes for a formula."""
    with whole_file(path) as file:
        lines = _Text(file)
        writer = csv.writer(lines)
        writer.writerow(COLUMNS)
        for cell in cells:
            texts = (safe_cell(cell.id), safe_cell(cell.path), safe_cell(cell.prediction))
            writer.writerow([*texts, f"{cell.score:.4f}", safe_cell(cell.reason)])


class _Text:
    """What a CSV writer writes to, as UTF-8 into a binary file."""

    def __init__(self, file: object) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write one line."""
        self._file.write(text.encode())  # type: ignore[attr-defined]
        return len(text)


def _reason(p: np.ndarray, answer: int, taxonomy: Taxonomy, is_dangerous: bool) -> str:
    codes = taxonomy.codes
    if is_dangerous:
        critical = list(taxonomy.critical)
        first = critical[int(p[critical].argmax())]
        return (
            f"called {codes[answer]}, a safe class, while critical classes have a probability of "
            f"{p[critical].sum():.2f}, {codes[first]} the most ({p[first]:.2f})"
        )
    others = np.argsort(-p, kind="stable")
    second = next((int(k) for k in others if k != answer), None)
    if second is None:
        return f"{codes[answer]} is the only class"
    return f"not sure: {codes[answer]} {p[answer]:.2f}, {codes[second]} {p[second]:.2f}"
