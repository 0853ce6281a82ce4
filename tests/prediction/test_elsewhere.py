"""A model on another source, from files to a page: values by scikit-learn, what is refused, what is said."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from companion_files import BIAS, SCALE, with_companions
from set_layouts import matek19
from sklearn.metrics import accuracy_score, f1_score, log_loss

from cytodino_hf.cli import main
from cytodino_hf.data.appearance import APPEARANCE_FILE
from cytodino_hf.errors import DataError, ModelUnavailableError, RecipeError
from cytodino_hf.evaluate import evaluate_predictions, evaluate_run
from cytodino_hf.evaluation.companions import bind_companions
from cytodino_hf.evaluation.predictions import Predictions, read_embeddings
from cytodino_hf.prediction.elsewhere import ElsewhereOptions, Transferred, evaluate_elsewhere

QUICK = ElsewhereOptions(draws=200)


@pytest.fixture(scope="module")
def fitted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_companions(run, tmp_path_factory.mktemp("fitted") / "run")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    """Classes of wbc_tecom; of two of them the model has a counterpart."""
    return make_images(
        tmp_path_factory.mktemp("other") / "smears", classes=("LYT", "NEU", "EOS"), per_class=6
    )


def named(root: Path, taxonomy: str = "wbc_tecom") -> list[str]:
    return ["--data.source", "image_folder", "--data.root", str(root), "--data.taxonomy", taxonomy]


@pytest.fixture(scope="module")
def done(fitted: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Transferred:
    out = tmp_path_factory.mktemp("transfer") / "out"
    return evaluate_elsewhere(str(fitted), named(other), out, ElsewhereOptions(draws=200, match_colour=True))


def test_it_writes_a_page_its_numbers_and_what_they_came_from(done: Transferred) -> None:
    folder = done.page.parent
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "report.json", "report.html", "predictions.parquet", "predictions_colours_matched.parquet",
        "predictions_calibrated.parquet", "embeddings.parquet", "their_labels.csv", "figures/transfer.svg",
        "figures/transfer_confusion.svg", "figures/ood_scores.svg", "figures/ood_roc.svg",
    }  # fmt: skip
    assert json.loads((folder / "report.json").read_text()) == done.report
    page = done.page.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page), "asks for nothing from elsewhere"
    for words in (
        "run on smears",
        "Left out of smears: EOS",
        "Left out of the model: BLA",
        "colours matched",
    ):
        assert words in page
    assert "NaN" not in page
    assert done.text.startswith(f"{done.page}: macro F1 ")
    assert "on 12 images of 2 common classes of smears" in done.text


def test_numbers_are_those_of_the_common_classes(done: Transferred) -> None:
    """The probabilities of LYT and NGS, divided by their sum, against scikit-learn."""
    folder = done.page.parent
    with open(folder / "their_labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    kept = [place for place, row in enumerate(rows) if row["label"] != "EOS"]
    true = [{"LYT": 0, "NEU": 1}[rows[place]["label"]] for place in kept]
    ways = done.report["parts"]["transfer"]["ways"]
    assert list(ways) == ["as it is", "colours matched", "calibrated"]
    plain = Predictions.from_parquet(folder / "predictions.parquet")
    assert [row["id"] for row in rows] == plain.ids
    by_hand = plain.logits.astype(np.float64) * np.array(SCALE) + np.array(BIAS)
    logits_of = {
        "as it is": plain.logits,
        "colours matched": Predictions.from_parquet(folder / "predictions_colours_matched.parquet").logits,
        "calibrated": by_hand,
    }
    for name, logits in logits_of.items():
        raised = np.exp(logits.astype(np.float64)[kept])[:, [1, 2]]
        probabilities = raised / raised.sum(axis=1, keepdims=True)
        predicted = probabilities.argmax(axis=1)
        metrics = ways[name]["scores"]["metrics"]
        assert metrics["accuracy"]["value"] == pytest.approx(accuracy_score(true, predicted))
        assert metrics["macro_f1"]["value"] == pytest.approx(f1_score(true, predicted, average="macro"))
        assert ways[name]["probabilities"]["nll"]["value"] == pytest.approx(
            log_loss(true, probabilities), rel=1e-4
        )
    assert not np.allclose(logits_of["colours matched"], plain.logits)
    assert "calibration of the model" in ways["calibrated"]["prepared"]


def test_strange_images_are_told_from_the_model_s_own(done: Transferred, fitted: Path) -> None:
    section = done.report["parts"]["ood"]
    test = Predictions.from_parquet(fitted / "predictions" / "test.parquet")
    assert section["known_images"] == len(test)
    assert section["sets"]["smears"]["images"] == 18
    ids, embeddings = read_embeddings(done.page.parent / "embeddings.parquet")
    assert (len(ids), embeddings.ndim) == (18, 2)


def test_embeddings_are_not_lent_to_answers_about_other_pictures(
    done: Transferred, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = done.page.parent
    asked = {name: f"predictions{name}.parquet" for name in ("", "_calibrated", "_colours_matched")}
    parts = {
        name: evaluate_predictions(folder / file, output=tmp_path / f"of{name}", draws=100).report["parts"]
        for name, file in asked.items()
    }
    has_map = {name: bool(part["embeddings"].get("points")) for name, part in parts.items()}
    assert has_map == {"": True, "_calibrated": True, "_colours_matched": False}
    assert "they are of pictures as they are, the answers of pictures mean and deviation" in caplog.text


def test_the_report_of_a_transfer_is_not_taken_for_that_of_a_run(
    done: Transferred, fitted: Path, other: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(fitted, tmp_path / "mixed")
    shutil.rmtree(folder / "report")
    shutil.copytree(done.page.parent, folder / "report")
    with pytest.raises(DataError, match="holds the report of a transfer to another set"):
        evaluate_run(folder, draws=100)
    report = evaluate_run(folder, output=tmp_path / "own", draws=100).report
    assert report["reported_fold"] == "test"
    found = evaluate_elsewhere(str(folder), named(other), tmp_path / "again", QUICK)
    assert str(found.report["parts"]["ood"]).startswith("Nothing to compare with")


def test_a_model_that_brings_nothing_is_scored_as_it_is(fitted: Path, tmp_path: Path, other: Path) -> None:
    bare = shutil.copytree(
        fitted, tmp_path / "bare", ignore=shutil.ignore_patterns("ood*", "cal*.json", "app*")
    )
    bind_companions(bare)
    found = evaluate_elsewhere(str(bare), named(other), tmp_path / "out", QUICK)
    assert list(found.report["parts"]["transfer"]["ways"]) == ["as it is"]
    assert found.report["parts"]["ood"] == "The model has nothing that calls out strange images."
    assert "nothing that calls out" in found.page.read_text()
    matched = ElsewhereOptions(draws=200, match_colour=True)
    with pytest.raises(DataError, match=f"no {re.escape(APPEARANCE_FILE)} beside it"):
        evaluate_elsewhere(str(bare), named(other), tmp_path / "matched", matched)
    assert not (tmp_path / "matched").exists()


def test_labels_are_the_source_s_own_where_nobody_names_a_taxonomy(fitted: Path, tmp_path: Path) -> None:
    root = matek19(tmp_path / "Matek19")
    found = evaluate_elsewhere(
        str(fitted), ["--data.source=matek19", f"--data.root={root}"], tmp_path / "out", QUICK
    )
    section = found.report["parts"]["transfer"]
    assert [(row["ours"], row["theirs"]) for row in section["classes"]] == [
        (["BLA"], ["MYO"]), (["LYT"], ["LYT"])
    ]  # fmt: skip
    assert section["left_out_theirs"][0]["code"] == "MYB"
    assert section["their_taxonomy"] == "matek19"


def test_what_cannot_be_is_refused(fitted: Path, other: Path, tmp_path: Path, run: Path) -> None:
    one_common = tmp_path / "one_common"
    for code in ("LYT", "EOS"):
        shutil.copytree(other / code, one_common / code)
    with pytest.raises(RecipeError, match=r"data\.image_size_px: changes nothing here"):
        evaluate_elsewhere(str(fitted), [*named(other), "--data.image_size_px", "64"], tmp_path / "out")
    with pytest.raises(RecipeError, match=r"only keys of `data`"):
        evaluate_elsewhere(str(fitted), [*named(other), "--training.seed", "1"], tmp_path / "out")
    with pytest.raises(RecipeError, match="unknown"):
        evaluate_elsewhere(str(fitted), ["--data.source", "matek", "--data.root", "x"], tmp_path / "out")
    with pytest.raises(RecipeError, match=r"data\.taxonomy = 'nosuch'"):
        evaluate_elsewhere(str(fitted), named(other, "nosuch"), tmp_path / "out")
    for file in (fitted / "predictions" / "test.parquet", Path("cells.parquet")):
        with pytest.raises(ModelUnavailableError, match="is a file, and other images are asked of a model"):
            evaluate_elsewhere(str(file), named(other), tmp_path / "out")
    before = (fitted / "report" / "report.json").read_bytes()
    with pytest.raises(DataError, match="holds the report of a RUN"):
        evaluate_elsewhere(str(fitted), named(other), fitted / "report")
    assert (fitted / "report" / "report.json").read_bytes() == before
    with pytest.raises(ModelUnavailableError, match="no such folder"):
        evaluate_elsewhere(str(tmp_path / "absent"), named(other), tmp_path / "out")
    with pytest.raises(DataError, match="common classes; two are needed"):
        evaluate_elsewhere(str(fitted), named(one_common), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_asks_a_model_about_another_set(
    fitted: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(fitted), "--output", str(tmp_path / "out"), "--draws", "200", *named(other)])
    assert not ended.value.code
    assert "common classes of smears" in capsys.readouterr().out
    assert (tmp_path / "out" / "report.html").is_file()
