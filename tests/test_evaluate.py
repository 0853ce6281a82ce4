"""`cytodino evaluate`: a RUN's report again, predictions alone, comparison, seeds; no model but for the symmetries."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_predictions import made, report_of, written

from cytodino_hf.cli import main
from cytodino_hf.errors import DataError
from cytodino_hf.evaluate import compared_predictions, evaluate_predictions, evaluate_run, taxonomy_of
from cytodino_hf.evaluation.calibration.artifact import Calibration
from cytodino_hf.evaluation.predictions import Predictions, foreign_embeddings, write_embeddings
from cytodino_hf.evaluation.report_parts import PARTS
from cytodino_hf.seeds_summary import summarise_seeds
from cytodino_hf.taxonomy import MLL

#: Parts that nobody asked for in a training.
ON_REQUEST = {"comparison", "test_time"}


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run, tmp_path / "copied")


def test_a_training_writes_every_part(run: Path) -> None:
    report = report_of(run / "report")
    assert report["reported_fold"] == "test"
    assert set(report["parts"]) == set(PARTS) - ON_REQUEST
    assert [name for name, part in report["parts"].items() if "missing" in part] == ["ood"]
    assert "calibration images are left" in report["parts"]["ood"]["missing"]
    assert report["parts"]["data"]["gaps"] == [
        "Labels were not audited: that needs predictions of every image by a model not trained on it."
    ]
    assert (run / "calibration.json").is_file()
    assert (run / "appearance.json").is_file()
    bound = json.loads((run / "config.json").read_text())["binding"]["companions"]["files"]
    assert set(bound) == {"calibration.json", "appearance.json"}
    assert (run / "predictions" / "baselines" / "knn_1.parquet").is_file()
    page = (run / "report" / "report.html").read_text()
    targets = re.findall(r'<a href="#([\w-]+)">', page)
    assert [name for name in targets if f'<section id="{name}">' not in page] == []
    with (run / "report" / "review.csv").open() as file:
        assert {"id", "path", "prediction", "score", "reason"} == set(next(csv.DictReader(file)))


def test_evaluate_reproduces_the_report_of_a_training(run: Path, copied: Path) -> None:
    files = sorted(path.relative_to(run) for path in (run / "report").rglob("*") if path.is_file())
    beside = ["calibration.json", "config.json", "appearance.json"]
    evaluate_run(copied)
    again = sorted(path.relative_to(copied) for path in (copied / "report").rglob("*") if path.is_file())
    assert again == files
    for name in [*files, *map(Path, beside)]:
        assert (copied / name).read_bytes() == (run / name).read_bytes(), name


def test_a_report_that_is_gone_is_made_from_what_is_left(copied: Path) -> None:
    wanted = report_of(copied / "report")
    shutil.rmtree(copied / "report")
    main_without_exit(["evaluate", str(copied), "--draws", "100", "--seed", "3"])
    report = report_of(copied / "report")
    assert report["intervals"] == {"level": 0.95, "draws": 100, "seed": 3}
    assert report["test"]["confusion_matrix"] == wanted["test"]["confusion_matrix"]
    assert report["train_classes"] == wanted["train_classes"]
    assert "The stain was not measured." in report["parts"]["data"]["gaps"]


def main_without_exit(words: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code, words


def test_predictions_without_labels_say_that_labels_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(replace(made(40), labels=np.full(40, -1)), tmp_path / "cells.parquet")
    main_without_exit(["evaluate", str(file), "--draws", "100"])
    assert "no image has a label" in capsys.readouterr().out
    assert "numbers need labels" in (tmp_path / "cells_report" / "report.html").read_text()


def test_the_symmetries_are_asked_once_and_kept(copied: Path) -> None:
    before = (copied / "report" / "report.json").read_bytes()
    evaluate_run(copied, output=copied / "elsewhere", symmetries=True)
    assert (copied / "report" / "report.json").read_bytes() == before
    part = report_of(copied / "elsewhere")["parts"]["test_time"]
    assert part["views"] == 8
    (copied / "adapter" / "adapter_model.safetensors").unlink()  # the model is not needed a second time
    evaluate_run(copied, symmetries=True)
    assert report_of(copied / "report")["parts"]["test_time"] == part


def test_predictions_alone_are_enough(tmp_path: Path) -> None:
    predictions = made()
    file = written(predictions, tmp_path / "answers.parquet")
    seen = predictions.logits @ np.ones((4, 6))
    write_embeddings(tmp_path / "embeddings.parquet", predictions.ids, seen, model_revision="w0")
    done = evaluate_predictions(file, draws=200)
    assert done.page == tmp_path / "answers_report" / "report.html"
    report = report_of(done.page.parent)
    assert report["parts"]["calibration"]["method"] in ("temperature", "vector", "none")
    assert report["parts"]["ood"]["fitted_on"] == "the validation fold"
    assert report["parts"]["embeddings"]["points"]
    assert "baselines" in [name for name, part in report["parts"].items() if "missing" in part]
    known = predictions.fold("test")
    right = float((known.predicted == known.labels).mean())
    assert report["test"]["metrics"]["accuracy"]["value"] == pytest.approx(right)
    page = done.page.read_text()
    assert "What cannot be said" in page
    assert "taken for those of mll" in page
    assert "<h2>Model</h2>" in page
    assert "<h2>Training</h2>" not in page
    assert "Recipe and environment" not in page


def test_embeddings_of_another_model_are_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictions = made()
    file = written(predictions, tmp_path / "answers.parquet")
    seen = predictions.logits @ np.ones((4, 6))
    write_embeddings(tmp_path / "embeddings.parquet", predictions.ids, seen, model_revision="w1")
    parts = evaluate_predictions(file, draws=100).report["parts"]
    assert "no embeddings were kept" in parts["embeddings"]["missing"]
    assert list(parts["ood"]["scores"]) == ["max_softmax", "energy"]
    assert "left aside: they are of the weights w1, the answers of w0" in caplog.text


def test_images_without_a_fold_are_the_test_fold(tmp_path: Path) -> None:
    answers = replace(made(40), folds=[None] * 40)
    report = evaluate_predictions(written(answers, tmp_path / "a.parquet"), draws=100).report
    assert report["folds"] == ["test"]
    assert report["parts"]["conformal"] == {
        "missing": "No set of classes can be promised: there is no calibration fold."
    }
    assert (
        report["parts"]["ood"]["missing"] == "Nothing calls out strange images: there is no calibration fold."
    )
    assert report["parts"]["calibration"]["reason"] == "Nothing was scaled: there is no calibration fold."
    assert len(compared_predictions(tmp_path / "a.parquet")) == 40


@pytest.mark.parametrize(
    "kind", ["no label", "one class", "one image", "sure", "calibration alone", "calibrated"]
)
def test_degenerate_predictions_give_a_page_without_invented_numbers(kind: str, tmp_path: Path) -> None:
    answers = made(60)
    if kind == "no label":
        answers = replace(answers, labels=np.full(60, -1))
    elif kind == "one class":
        answers = replace(answers, labels=np.zeros(60, dtype=np.int64))
    elif kind == "one image":
        answers = answers.fold("test").select([0])
    elif kind == "sure":
        answers = replace(answers, logits=np.float32(1e4) * np.eye(4, dtype=np.float32)[answers.labels])
    elif kind == "calibration alone":
        answers = answers.fold("calibration")
    else:
        answers = replace(answers, calibration="cafe")
    report = evaluate_predictions(written(answers, tmp_path / "a.parquet"), draws=100).report
    read = report_of(tmp_path / "a_report")  # refuses NaN
    if kind == "no label":
        assert read["parts"] == {}
        assert read["reported_fold"] is None
    if kind == "calibration alone":
        assert report["reported_fold"] == "calibration"
        assert "no test fold to try it on" in report["parts"]["calibration"]["reason"]
        assert "no test fold" in report["parts"]["conformal"]["missing"]
    if kind == "calibrated":
        assert "calibrated before" in report["parts"]["calibration"]["reason"]
    if kind == "sure":
        assert report["test"]["metrics"]["accuracy"]["value"] == 1.0


def test_a_comparison_is_of_the_same_images_only(tmp_path: Path) -> None:
    ours, other = made(seed=1, noise=0.2), made(seed=2, noise=3.0)
    files = written(ours, tmp_path / "ours.parquet"), written(other, tmp_path / "other.parquet")
    main_without_exit(["evaluate", str(files[0]), "--against", str(files[1]), "--draws", "200"])
    folder = tmp_path / "ours_report"
    part = report_of(folder)["parts"]["comparison"]
    test = [one.fold("test") for one in (ours, other)]
    right = [float((one.predicted == one.labels).mean()) for one in test]
    assert part["metrics"]["accuracy"]["value"] == pytest.approx(right[0] - right[1])
    assert part["metrics"]["accuracy"]["verdict"] == "better"
    with (folder / "changed_cells.csv").open() as file:
        assert len(list(csv.DictReader(file))) == int((test[0].predicted != test[1].predicted).sum())
    assert "Comparison with other" in (folder / "report.html").read_text()
    fewer = written(other.select(np.arange(8, 240)), tmp_path / "fewer.parquet")
    with pytest.raises(DataError, match="not of the same test images"):
        evaluate_predictions(files[0], against=fewer, draws=100)
    evaluate_predictions(files[0], draws=100)
    assert not (folder / "changed_cells.csv").exists()


def test_several_seeds_of_one_recipe_give_a_summary(run: Path, tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1, 2):
        folder = shutil.copytree(run, tmp_path / f"seed{seed}", ignore=shutil.ignore_patterns("checkpoint-*"))
        recipe = json.loads((folder / "recipe.json").read_text())
        recipe["training"]["seed"] = seed
        (folder / "recipe.json").write_text(json.dumps(recipe))
        test = Predictions.from_parquet(folder / "predictions" / "test.parquet")
        noise = np.random.default_rng(seed).normal(0, 0.5, test.logits.shape).astype(np.float32)
        replace(test, logits=test.logits + noise).to_parquet(folder / "predictions" / "test.parquet")
        runs.append(folder)
    done = summarise_seeds(runs, tmp_path / "summary", draws=100)
    (system,) = done.report["parts"]["seeds"]["systems"].values()
    values = [
        float((one.predicted == one.labels).mean())
        for one in (Predictions.from_parquet(folder / "predictions" / "test.parquet") for folder in runs)
    ]
    cell = system["metrics"]["accuracy"]
    assert cell["mean"] == pytest.approx(np.mean(values))
    assert cell["sd"] == pytest.approx(np.std(values, ddof=1))
    assert cell["low"] <= cell["mean"] <= cell["high"]
    assert "Over seeds" in done.page.read_text()
    recipe["training"]["learning_rate"] = 1.0
    (runs[2] / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(DataError, match=r"different recipes \(training.learning_rate\)"):
        summarise_seeds(runs, tmp_path / "summary", draws=100)
    with pytest.raises(DataError, match="holds the report of a RUN, which that of a summary over seeds"):
        summarise_seeds(runs[:2], runs[0] / "report", draws=100)
    with pytest.raises(DataError, match="give each seed once"):
        summarise_seeds([runs[0], runs[0]], tmp_path / "summary", draws=100)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: no such folder or file"),
        (["{folder}/cells.csv"], "rounded probabilities"),
        (["cells.parquet", "--data.root", "{folder}"], "is a file"),
        (["{folder}"], "no finished RUN"),
        (["{folder}/text.parquet"], "is no Parquet file"),
        (["{folder}", "{folder}"], "give --output"),
        (["a.parquet", "--symmetries"], "--symmetries cannot be used"),
        (["a.parquet", "--match-colour"], "--match-colour cannot be used"),
        (["a.parquet", "--smmetries"], "unknown option --smmetries"),
    ],
)
def test_mistakes_are_named(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.parquet").write_text("no table")
    (tmp_path / "cells.csv").write_text("id")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *(word.format(folder=tmp_path) for word in words)])
    assert stop.value.code
    assert message in capsys.readouterr().err


def test_the_taxonomy_is_known_by_its_codes() -> None:
    assert taxonomy_of(MLL.codes) == (MLL, None)
    part, note = taxonomy_of(("BLA", "LYT"))
    assert part.codes == ("BLA", "LYT")
    assert note is not None
    other, note = taxonomy_of(("cat", "dog"))
    assert other.critical == ()
    assert note is not None
    assert "nothing is known" in note


def test_the_calibration_beside_the_model_is_that_of_its_answers(run: Path) -> None:
    calibration = Calibration.load(run / "calibration.json")
    test = Predictions.from_parquet(run / "predictions" / "test.parquet")
    calibration.check(test.model_revision, test.classes)
    seen = run / "predictions" / "embeddings.parquet"
    assert foreign_embeddings(seen, test) is None
    assert foreign_embeddings(seen, replace(test, model_revision="another")) is not None
