"""The label audit: planted mistakes are found, as confident learning written out in NumPy finds them."""

from __future__ import annotations

import builtins
import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytodino_hf.errors import CytoDinoError, DataError
from cytodino_hf.evaluation import report
from cytodino_hf.evaluation.data_questions.label_audit import (
    COLUMNS,
    audit_section,
    draw_issues,
    label_issues,
    write_issues,
)
from cytodino_hf.evaluation.data_questions.section import data_questions_section
from cytodino_hf.evaluation.predictions import Predictions, softmax
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL

TAXONOMY = MLL.subset(["BLA", "LYT", "NGS", "PMO"])
PARTS = Path(report.__file__).parent / "parts"


def out_of_fold(n: int = 200, wrong: int = 12, seed: int = 0) -> tuple[Predictions, set[int]]:
    """Good predictions of images of which the first few have been given the label of the next class."""
    truth = np.arange(n) % 3  # no image is a PMO
    logits = np.random.default_rng(seed).normal(0, 0.7, (n, 4))
    logits[np.arange(n), truth] += 3
    labels = truth.copy()
    labels[:wrong] = (truth[:wrong] + 1) % 3
    predictions = Predictions(
        ids=[f"i{i}" for i in range(n)],
        paths=[f"=p{i}.png" for i in range(n)],
        sources=["s"] * n,
        groups=[None] * n,
        folds=["test"] * n,
        labels=labels,
        logits=logits.astype(np.float32),
        classes=TAXONOMY.codes,
        model_revision="m",
    )
    return predictions, set(range(wrong))


def by_hand(labels: np.ndarray, probabilities: np.ndarray) -> set[int]:
    """Confident learning: a class is meant where it is above its usual probability, the most probable such one."""
    usual = np.array([probabilities[labels == k, k].mean() for k in range(probabilities.shape[1])])
    above = np.where(probabilities >= usual, probabilities, -1)
    return {i for i in range(len(labels)) if above[i].max() > 0 and above[i].argmax() != labels[i]}


def test_planted_mistakes_are_found_as_by_hand() -> None:
    predictions, planted = out_of_fold()
    probabilities = softmax(predictions.logits)[:, :3].astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    found = label_issues(predictions.labels, predictions.probabilities)
    assert set(found.tolist()) == by_hand(predictions.labels, probabilities)
    assert len(planted & set(found.tolist())) >= 9
    given = probabilities[found, predictions.labels[found]]
    assert (np.diff(given) >= -1e-9).all()


def test_the_section_and_the_csv(tmp_path: Path) -> None:
    predictions, _ = out_of_fold()
    section = audit_section(predictions, limit=5)
    found = label_issues(predictions.labels, predictions.probabilities)
    assert (section["doubtful"]["images"], section["doubtful"]["n"]) == (len(found), 200)
    assert section["doubtful"]["low"] < len(found) / 200 < section["doubtful"]["high"]
    assert [one["id"] for one in section["issues"]] == [f"i{row}" for row in found[:5]]
    assert all(one["given"] != one["suggested"] for one in section["issues"])
    assert sum(pair["images"] for pair in section["pairs"]) == len(found)
    assert sum(row["doubtful"] for row in section["per_class"]) == len(found)
    assert section["per_class"][3]["share"] is None
    json.dumps(section, allow_nan=False)
    assert write_issues(tmp_path / "issues.csv", predictions) == len(found)
    with open(tmp_path / "issues.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["path"].startswith("./=p")
    assert len(rows) == len(found)


def test_unlabelled_images_change_nothing() -> None:
    predictions, _ = out_of_fold()
    labels = predictions.labels.copy()
    labels[::2] = -1
    some = audit_section(replace(predictions, labels=labels))
    assert some["unlabelled_images"] == 100
    rows = np.flatnonzero(labels >= 0)
    assert some["issues"] == audit_section(predictions.select(rows))["issues"]


@pytest.mark.parametrize("rows", [[], [0], [0, 3, 6]])
def test_nothing_to_audit_says_why(rows: list[int]) -> None:
    predictions, _ = out_of_fold(wrong=0)
    section = audit_section(predictions.select(rows))
    assert section["issues"] == []
    assert section["why"] == "fewer than two classes have a label"
    json.dumps(section, allow_nan=False)


def test_one_image_of_a_class_and_certain_answers_are_no_error() -> None:
    probabilities = np.eye(4)[[0, 0, 1, 1, 2]]
    assert label_issues(np.array([0, 0, 1, 1, 2]), probabilities).tolist() == []
    # Sure of the class nobody gave: nothing is left to compare, so nothing is claimed of the others.
    certain = np.eye(4)[[0, 0, 1, 3, 1]]
    assert set(label_issues(np.array([0, 0, 1, 1, 0]), certain).tolist()) <= {3, 4}


def test_broken_input_is_refused() -> None:
    with pytest.raises(DataError, match="do not belong together"):
        label_issues(np.zeros(3, int), np.ones((2, 2)))
    with pytest.raises(DataError, match="2 columns"):
        label_issues(np.array([0, 2]), np.ones((2, 2)) / 2)
    with pytest.raises(DataError, match="not finite"):
        label_issues(np.array([0, 1]), np.full((2, 2), np.nan))


def test_without_cleanlab_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("cleanlab"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CytoDinoError, match=r"cytodino-hf\[audit\]"):
        label_issues(np.array([0, 1]), np.eye(2))


def test_the_thumbnails_and_the_page() -> None:
    predictions, _ = out_of_fold()
    audit = audit_section(predictions)
    issues = audit["issues"][:3]
    names = {code: f"cell {code}" for code in predictions.classes}
    figure = draw_issues(issues, [np.full((30, 30, 3), 99, np.uint8)] * 3, names)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said[:2] == [f"cell {issues[0]['given']}", f"→ cell {issues[0]['suggested']}"]
    assert said[2].endswith(" %")
    section = data_questions_section({"train": {"BLA": 3, "LYT": 1}}, TAXONOMY, audit=audit)
    page = render_template(PARTS / "data.html", {}, section=section, figures={"audit": "data:x"})
    assert "labels are doubted by models" in page
    assert page.count("<img") == 1
