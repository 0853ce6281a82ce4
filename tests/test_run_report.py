"""The review list beside a report: of the test fold, labelled or not, and none from before."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.evaluate import evaluate_predictions
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.report import ReportContext
from cytodino_hf.run_report import write_whole_report
from cytodino_hf.taxonomy import MLL

CELLS = MLL.subset(["BLA", "LYT", "NGS", "PMO"])


def made(n: int = 240) -> Predictions:
    """Four classes in turn, three folds, most answers right."""
    labels = np.arange(n) % 4
    folds = [("test", "calibration", "validation")[(i // 4) % 3] for i in range(n)]
    logits = 2.5 * np.eye(4)[labels] + np.random.default_rng(7).normal(0, 1.3, (n, 4))
    names = [f"image{i}" for i in range(n)]
    return Predictions(
        names, names, ["made"] * n, [None] * n, folds, labels, logits.astype(np.float32), CELLS.codes, "w"
    )


def review_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "review.csv").open() as text:
        rows = list(csv.DictReader(text))
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    return rows


@pytest.mark.parametrize("known", ["calibration", "nothing"])
def test_unlabelled_answers_get_a_review_list(known: str, tmp_path: Path) -> None:
    """No label of the test fold: its cells are ranked all the same, and none of another fold."""
    answers = made()
    labels = answers.labels.copy()
    labels[[fold == "test" or known == "nothing" for fold in answers.folds]] = -1
    replace(answers, labels=labels).to_parquet(tmp_path / "a.parquet")
    evaluate_predictions(tmp_path / "a.parquet", draws=50)
    folder = tmp_path / "a_report"
    assert sorted(row["id"] for row in review_of(folder)) == sorted(answers.fold("test").ids)
    assert json.loads((folder / "report.json").read_text())["review_folds"] == ["test"]
    page = (folder / "report.html").read_text()
    assert "review.csv</code> beside this page lists the cells of the test fold" in page


def test_labelled_answers_below_the_threshold_are_reviewed(tmp_path: Path) -> None:
    made(960).to_parquet(tmp_path / "a.parquet")
    report = evaluate_predictions(tmp_path / "a.parquet", draws=20).report
    section = report["parts"]["selective"]
    assert section["per_class_point"] is not None
    rows = review_of(tmp_path / "a_report")
    assert len(rows) == section["review"]["cells"] < 320
    assert [row["id"] for row in rows[:5]] == [cell["id"] for cell in section["review"]["first"][:5]]


def test_without_a_test_fold_all_cells_are_reviewed(tmp_path: Path) -> None:
    answers = made()
    rest = answers.select([row for row, fold in enumerate(answers.folds) if fold != "test"])
    rest.to_parquet(tmp_path / "a.parquet")
    evaluate_predictions(tmp_path / "a.parquet", draws=50)
    assert {row["id"] for row in review_of(tmp_path / "a_report")} == set(rest.ids)


def test_a_review_list_of_an_earlier_report_does_not_stay(tmp_path: Path) -> None:
    (tmp_path / "review.csv").write_text("id")
    context = ReportContext(
        title="t",
        recipe={},
        environment={},
        data={"notes": []},
        training={},
        taxonomy=CELLS,
        train_classes=CELLS.codes,
    )
    write_whole_report(tmp_path, {"test": made().fold("test")}, context, draws=20, seed=0)
    assert not (tmp_path / "review.csv").exists()
    assert "review.csv" not in (tmp_path / "report.html").read_text()
