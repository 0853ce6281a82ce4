"""The evaluation of a RUN: what it leaves beside the model, and what it makes of a RUN that is not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from made_predictions import CELLS, made, report_of, written

import cytodino_hf.evaluation.report
from cytodino_hf.errors import DataError
from cytodino_hf.evaluate import evaluate_predictions, evaluate_run
from cytodino_hf.evaluation.ood.detector import OodDetector
from cytodino_hf.evaluation.predictions import write_embeddings


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests look at figures, which take most of the time."""
    monkeypatch.setattr(cytodino_hf.evaluation.report, "_figures", lambda *_: {})


#: Beside a model, and fitted again by its evaluation.
FITTED = ("calibration.json", "ood.safetensors", "config.json")


def finished(folder: Path) -> Path:
    """A RUN as its evaluation reads it, whose training fold has no image of PMO; the other folds do."""
    answers = made()
    for fold in ("validation", "calibration", "test"):
        written(answers.fold(fold), folder / "predictions" / f"{fold}.parquet")
    centres = np.random.default_rng(1).normal(0, 3, (4, 6))
    seen = centres[answers.labels] + np.random.default_rng(2).normal(0, 0.5, (len(answers), 6))
    write_embeddings(folder / "predictions" / "embeddings.parquet", answers.ids, seen, model_revision="w0")
    config = {"taxonomy": CELLS.to_dict(), "binding": {"weights": {"model.safetensors": "w0"}}}
    recipe = {
        "model": {"backbone": "b"},
        "training": {"seed": 0},
        "evaluation": {"interval_draws": 100, "seed": 0},
    }
    for name, document in (("config.json", config), ("recipe.json", recipe)):
        (folder / name).write_text(json.dumps(document))
    rows = [f"train,{code}" for code in CELLS.codes if code != "PMO"]
    rows += [
        f"{fold},{CELLS.codes[label]}" for fold, label in zip(answers.folds, answers.labels, strict=True)
    ]
    (folder / "split.csv").write_text("\n".join(["fold,label", *rows, ""]))
    return folder


def beside(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FITTED}


def test_a_class_that_was_left_out_stays_strange(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    report = evaluate_run(run).report
    assert report["train_classes"] == ["BLA", "LYT", "NGS"]
    scores = report["parts"]["ood"]["sets"]["PMO"]["scores"]
    assert min(scores[name]["auroc"]["value"] for name in ("knn", "mahalanobis")) > 0.95
    detector = OodDetector.load(run / "ood.safetensors", model_revision="w0", classes=CELLS.codes)
    assert (detector.fitted_images, detector.threshold_images) == (60, 30)


@pytest.mark.parametrize("gone", ["calibration", "validation", "embeddings"])
def test_what_is_gone_takes_nothing_away_from_the_model(
    gone: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = finished(tmp_path / "run")
    evaluate_run(run)
    before = beside(run)
    (run / "predictions" / f"{gone}.parquet").unlink()
    report = evaluate_run(run).report
    assert beside(run) == before
    assert f"ood.safetensors stays as it is: predictions/{gone}.parquet is missing" in caplog.text
    if gone == "calibration":
        assert "predictions/calibration.parquet is missing" in report["parts"]["ood"]["missing"]
        assert "predictions/calibration.parquet is missing" in report["parts"]["calibration"]["reason"]
    for name in FITTED[:2]:
        (run / name).unlink()
    evaluate_run(run)  # what is not there is made as well as it can be
    made_again = [name for name in FITTED[:2] if (run / name).is_file()]
    assert made_again == ([] if gone == "calibration" else list(FITTED[:2]))


def test_files_beside_the_model_are_written_last_and_by_the_recipe_alone(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    fewer = written(made().select(np.arange(8, 240)), tmp_path / "fewer.parquet")
    for against in (tmp_path / "nowhere", fewer):
        with pytest.raises(DataError):
            evaluate_run(run, against=against)
        assert not (run / "calibration.json").exists()
    evaluate_run(run)
    before = beside(run)
    with pytest.raises(DataError, match="no such folder or file"):
        evaluate_run(run, against=tmp_path / "nowhere", seed=7)
    assert beside(run) == before
    assert evaluate_run(run, seed=7).report["intervals"]["seed"] == 7
    assert beside(run) == before


def test_a_report_of_another_kind_is_neither_read_nor_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = finished(tmp_path / "run")
    answers = written(made(), tmp_path / "answers.parquet")
    evaluate_run(run)
    with pytest.raises(DataError, match="holds the report of a RUN, which that of a PREDICTIONS file"):
        evaluate_predictions(answers, output=run / "report", draws=100)
    other = evaluate_predictions(answers, output=tmp_path / "other", draws=100).page.parent
    with pytest.raises(DataError, match="holds the report of a PREDICTIONS file"):
        evaluate_run(run, output=other)
    shutil.copy(other / "report.json", run / "report" / "report.json")
    assert evaluate_run(run, output=tmp_path / "own").report["train_classes"] == ["BLA", "LYT", "NGS"]
    assert "is the report of a PREDICTIONS file, not of a RUN; it is left aside" in caplog.text


def test_a_damaged_run_says_what_is_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = finished(tmp_path / "run")
    evaluate_run(run)
    report = run / "report" / "report.json"
    report.write_text(report.read_text()[:1000])
    evaluate_run(run)
    assert "report.json is damaged" in caplog.text
    assert report_of(run / "report")["reported_fold"] == "test"
    recipe = (run / "recipe.json").read_text()
    (run / "recipe.json").write_text("{")
    with pytest.raises(DataError, match=r"recipe\.json: is damaged"):
        evaluate_run(run)
    (run / "recipe.json").write_text(recipe)
    (run / "config.json").write_text("{}")
    with pytest.raises(DataError, match=r"config\.json: does not say what the labels mean"):
        evaluate_run(run)
    (run / "config.json").unlink()
    with pytest.raises(DataError, match=r"no finished RUN \(config\.json missing\)"):
        evaluate_run(run)
    bare = finished(tmp_path / "bare")
    (bare / "split.csv").unlink()
    with pytest.raises(DataError, match=r"report/report\.json and split\.csv are both missing"):
        evaluate_run(bare)
