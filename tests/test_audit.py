"""The audit of labels on small pictures: every image answered once by a model that never saw it, and resumed."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cytodino_hf.audit as module
from cytodino_hf.audit import audit, divide_evenly, joined
from cytodino_hf.data.loading import load_split
from cytodino_hf.errors import CytoDinoError, DataError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.recipe import Recipe, parse_recipe


@pytest.fixture(scope="module")
def recipe(
    tmp_path_factory: pytest.TempPathFactory,
    make_images: Callable[..., Path],
    tiny_recipe: Callable[..., dict],
) -> Recipe:
    root = make_images(tmp_path_factory.mktemp("cells"), per_class=12)
    # A copy under another label: the two must share a fold.
    (root / "LYT" / "LYT_00099.png").write_bytes((root / "BLA" / "BLA_00001.png").read_bytes())
    document = tiny_recipe(root, tmp_path_factory.mktemp("out") / "run", training={"max_steps": 2})
    return parse_recipe(document, source="test")


def test_folds_are_even_and_keep_copies_together(recipe: Recipe) -> None:
    images = load_split(recipe).images
    parts = divide_evenly(images, 3, seed=0)
    np.testing.assert_array_equal(parts, divide_evenly(images, 3, seed=0))
    counts = np.array([np.bincount(np.array(images.labels)[parts == k], minlength=3) for k in range(3)])
    assert counts.sum() == 37
    assert counts.min() >= 3
    where = dict(zip(images.column("path"), parts.tolist(), strict=True))
    assert where["BLA/BLA_00001.png"] == where["LYT/LYT_00099.png"]
    for folds in (1, 99):
        with pytest.raises(DataError, match=f"{folds} folds of 36"):
            divide_evenly(images, folds, seed=0)


def test_every_image_is_answered_by_a_model_that_never_saw_it(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cleanlab")
    found = audit(recipe, tmp_path / "audit", folds=2)
    kept = Predictions.from_parquet(tmp_path / "audit" / "out_of_fold.parquet")
    images = load_split(recipe).images
    assert sorted(kept.ids) == sorted(images.column("id"))
    for number in range(2):
        run = tmp_path / "audit" / "runs" / f"fold{number}"
        with open(run / "split.csv", newline="", encoding="utf-8") as file:
            fold_of = {row["path"]: row["fold"] for row in csv.DictReader(file)}
        answered = Predictions.from_parquet(run / "predictions" / "test.parquet")
        assert {fold_of[path] for path in answered.paths} == {"test"}
        assert len(answered) == sum(fold == "test" for fold in fold_of.values())
    assert found.section["audit"]["images"] == 37
    assert found.section["copies"]["under_two_labels"] == 1
    assert json.loads((tmp_path / "audit" / "audit.json").read_text()) == found.section
    with open(tmp_path / "audit" / "doubtful_labels.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == found.section["audit"]["doubtful"]["images"]
    page = found.page.read_text(encoding="utf-8")
    assert "divided into 2 folds" in page
    assert "<script" not in page
    # Again: the runs are finished, nothing is trained, the same is found.
    trained = []
    real = module.finetune
    monkeypatch.setattr(module, "finetune", lambda one: trained.append(one) or real(one))
    newest = max(path.stat().st_mtime_ns for path in (tmp_path / "audit" / "runs").rglob("*"))
    assert audit(recipe, tmp_path / "audit", folds=2).section == found.section
    assert len(trained) == 2
    weights = (tmp_path / "audit" / "runs").rglob("*.safetensors")
    assert max(path.stat().st_mtime_ns for path in weights) <= newest
    assert all(not one.evaluation.baselines and one.hub.repo_id is None for one in trained)


def test_a_launcher_and_other_classes_are_refused(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = Predictions(
        [], [], [], [], [], np.zeros(0, np.int64), np.zeros((0, 2), np.float32), ("a", "b"), "m"
    )
    with pytest.raises(DataError, match="name the classes a, b and a, c"):
        joined([empty, replace(empty, classes=("a", "c"))])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CytoDinoError, match="without a launcher"):
        audit(recipe, tmp_path)
