"""The review list: who is on it, in which order, why, and that a spreadsheet can open it safely."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.selective.review import COLUMNS, review_list, write_review
from cytodino_hf.taxonomy import MLL

CELLS = MLL.subset(
    ["BLA", "LYT", "NGS", "ART"]
)  # critical, safe, safe, neither; in the order ART BLA LYT NGS


def answers(probabilities: list[list[float]], ids: list[str] | None = None) -> Predictions:
    n = len(probabilities)
    ids = ids or [f"c{i}" for i in range(n)]
    logits = np.log(np.array(probabilities).reshape(n, 4)).astype(np.float32)
    paths = [f"{name}.png" for name in ids]
    return Predictions(
        ids, paths, ["s"] * n, [None] * n, [None] * n, np.full(n, -1), logits, CELLS.codes, "w"
    )


SURE = [0.01, 0.01, 0.01, 0.97]
UNSURE = [0.48, 0.01, 0.02, 0.49]
DANGEROUS = [0.01, 0.18, 0.01, 0.80]  # NGS, but BLA is not improbable
CRITICAL = [0.01, 0.90, 0.05, 0.04]


def test_who_is_listed_and_in_which_order() -> None:
    cells = review_list(answers([SURE, UNSURE, DANGEROUS, CRITICAL]), CELLS, threshold=0.6)
    assert [cell.id for cell in cells] == ["c2", "c1"]
    # Expected cost: 0.2 wrong + 3 x 0.18 critical; 0.51 wrong + 3 x 0.01.
    assert [cell.score for cell in cells] == pytest.approx([0.74, 0.54], abs=1e-6)
    assert cells[0].reason == (
        "called NGS, a safe class, while critical classes have a probability of 0.18, BLA the most (0.18)"
    )
    assert cells[1].reason == "not sure: NGS 0.49, ART 0.48"
    assert (cells[1].path, cells[1].prediction) == ("c1.png", "NGS")


def test_without_threshold_every_cell_is_ranked_and_a_limit_cuts() -> None:
    predictions = answers([SURE, UNSURE, DANGEROUS, CRITICAL])
    ranked = review_list(predictions, CELLS)
    assert [cell.id for cell in ranked] == ["c2", "c1", "c3", "c0"]
    assert review_list(predictions, CELLS, limit=1) == ranked[:1]
    assert review_list(predictions.select([]), CELLS) == []


def test_other_classes_and_unknown_scores_are_refused() -> None:
    with pytest.raises(DataError, match="taxonomy of the model"):
        review_list(answers([SURE]), MLL)
    with pytest.raises(DataError, match="'magic'"):
        review_list(answers([SURE]), CELLS, score="magic")


def test_the_file_opens_in_a_spreadsheet_without_running_anything(tmp_path: Path) -> None:
    cells = review_list(answers([UNSURE, DANGEROUS], ids=["=cmd|' /C calc'!A0", "plain"]), CELLS)
    path = tmp_path / "review.csv"
    write_review(path, cells)
    rows = list(csv.reader(path.open(encoding="utf-8", newline="")))
    assert rows[0] == list(COLUMNS)
    assert [row[0] for row in rows[1:]] == ["plain", "./=cmd|' /C calc'!A0"]
    assert not any(cell[:1] in "=+-@\t\r" for row in rows for cell in row if cell)
    assert float(rows[1][3]) == pytest.approx(cells[0].score, abs=1e-4)
    write_review(path, [])
    assert path.read_text(encoding="utf-8").splitlines() == [",".join(COLUMNS)]
