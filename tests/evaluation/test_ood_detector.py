"""The detector and its file: thresholds by hand, the same answers after loading, refusals; and the section."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

import cytodino_hf.evaluation
from cytodino_hf.errors import DataError, WeightsFileError
from cytodino_hf.evaluation.calibration.halves import calibration_halves
from cytodino_hf.evaluation.fitted import fit
from cytodino_hf.evaluation.ood import scores as formulas
from cytodino_hf.evaluation.ood.detector import OOD_FILE, OodDetector
from cytodino_hf.evaluation.ood.embedded import EmbeddedFold
from cytodino_hf.evaluation.ood.figures import draw_ood_roc, draw_ood_scores
from cytodino_hf.evaluation.ood.section import ALL_LEFT_OUT, ood_section
from cytodino_hf.evaluation.plots import figure_to_data_uri
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL

TAXONOMY = MLL.subset(["BLA", "NGS", "LYT", "HAC", "PLM"])
TRAINED = ("BLA", "NGS", "LYT")
WIDTH = 16
CENTRES = np.random.default_rng(99).normal(0, 1.5, (5, WIDTH))
PARTIAL = Path(cytodino_hf.evaluation.__file__).parent / "parts" / "ood.html"


def make(counts: dict[str, int], fold: str, seed: int, shift: float = 0.0) -> EmbeddedFold:
    labels = np.concatenate([[TAXONOMY.index(code)] * n for code, n in counts.items()] or [[]]).astype(
        np.int64
    )
    n = len(labels)
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (n, 5))
    logits[np.arange(n), labels % 3] += 4 - shift
    predictions = Predictions(
        ids=[f"{fold}{i}" for i in range(n)],
        paths=[""] * n,
        sources=["s"] * n,
        groups=[None] * n,
        folds=[fold] * n,
        labels=labels,
        logits=logits.astype(np.float32),
        classes=TAXONOMY.codes,
        model_revision="r1",
    )
    return EmbeddedFold(predictions, (CENTRES[labels] + rng.normal(shift, 1, (n, WIDTH))).astype(np.float32))


KNOWN = {"BLA": 150, "NGS": 150, "LYT": 150}


@pytest.fixture(scope="module")
def calibration() -> EmbeddedFold:
    return make(KNOWN, "calibration", 0)


@pytest.fixture(scope="module")
def detector(calibration: EmbeddedFold) -> OodDetector:
    return OodDetector.fit(calibration)


@pytest.fixture(scope="module")
def section(detector: OodDetector) -> dict[str, Any]:
    test = make({**KNOWN, "HAC": 40, "PLM": 4}, "test", 1)
    return ood_section(
        detector, test, TRAINED, outside={"other <source>": make(KNOWN, "x", 2, 1.0)}, draws=100
    )


def test_thresholds_are_the_order_statistic_of_the_half_that_was_not_fitted_on(
    calibration: EmbeddedFold, detector: OodDetector
) -> None:
    first, second = calibration_halves(calibration.predictions, 0)
    assert (detector.fitted_images, detector.threshold_images) == (len(first), len(second))
    assert detector.fitted_on == "a half of the calibration fold"
    assert set(detector.thresholds) == set(formulas.SCORES)
    rest = calibration.select(second)
    scores = detector.scores(rest.predictions.logits, rest.embeddings)
    rank = -(-(len(second) + 1) * 95 // 100)  # ceil((n + 1) x 0.95)
    for name, values in scores.items():
        assert detector.thresholds[name] == np.sort(values)[rank - 1]
        assert detector.flags(scores)[name].sum() == len(second) - rank
    assert detector.deciding == "mahalanobis"
    np.testing.assert_array_equal(detector.is_out(scores), detector.flags(scores)["mahalanobis"])


def test_new_images_of_the_known_kind_are_called_out_as_often_as_allowed() -> None:
    shares: dict[str, list[float]] = {name: [] for name in formulas.SCORES}
    for seed in range(30):
        found = OodDetector.fit(make(KNOWN, "calibration", 100 + seed))
        new = make(KNOWN, "test", 200 + seed)
        for name, flags in found.flags(found.scores(new.predictions.logits, new.embeddings)).items():
            shares[name].append(float(flags.mean()))
    promise = 1 - -(-226 * 95 // 100) / 226  # 225 images set each threshold
    for name, values in shares.items():
        assert abs(np.mean(values) - promise) < 3.5 * np.std(values, ddof=1) / np.sqrt(30), name


def test_another_fold_can_be_what_is_known(calibration: EmbeddedFold) -> None:
    found = OodDetector.fit(calibration, make(KNOWN, "validation", 5), called_out=0.1)
    assert found.fitted_on == "the validation fold"
    assert found.fitted_images == 450
    assert found.called_out == 0.1


def test_the_file_gives_the_same_answers_and_holds_no_code(detector: OodDetector, tmp_path: Path) -> None:
    path = tmp_path / OOD_FILE
    detector.save(path)
    loaded = OodDetector.load(path, model_revision="r1", classes=TAXONOMY.codes)
    new = make({"BLA": 20, "HAC": 20}, "test", 7)
    before = detector.scores(new.predictions.logits, new.embeddings)
    after = loaded.scores(new.predictions.logits, new.embeddings)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    assert loaded.thresholds == detector.thresholds
    assert (loaded.fitted_on, loaded.called_out) == (detector.fitted_on, 0.05)
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["cytodino_ood"])
        assert file.get_tensor("bank").dtype == np.float16
    assert (about["format"], about["model_revision"], about["classes"]) == (1, "r1", list(TAXONOMY.codes))
    assert set(about["thresholds"]) == set(formulas.SCORES)
    content = path.read_bytes()
    detector.save(path)
    assert path.read_bytes() == content


def test_the_kept_embeddings_are_bounded() -> None:
    many = make(dict.fromkeys(TRAINED, 2000), "calibration", 3)
    found = OodDetector.fit(many)
    assert found.bank is not None
    assert len(found.bank) <= formulas.BANK_ROWS


def test_another_model_or_a_damaged_file_is_refused(detector: OodDetector, tmp_path: Path) -> None:
    path = tmp_path / OOD_FILE
    with pytest.raises(WeightsFileError, match="no such file"):
        OodDetector.load(path, model_revision="r1", classes=TAXONOMY.codes)
    detector.save(path)
    with pytest.raises(WeightsFileError, match="fitted for model revision r1, not r2"):
        OodDetector.load(path, model_revision="r2", classes=TAXONOMY.codes)
    with pytest.raises(WeightsFileError, match="fitted for classes"):
        OodDetector.load(path, model_revision="r1", classes=TAXONOMY.codes[::-1])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsFileError, match="damaged"):
        OodDetector.load(path, model_revision="r1", classes=TAXONOMY.codes)
    path.write_bytes(whole.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    with pytest.raises(WeightsFileError, match="format 9"):
        OodDetector.load(path, model_revision="r1", classes=TAXONOMY.codes)
    from safetensors.numpy import save_file

    save_file({"bank": np.zeros(3, dtype=np.float16)}, path)
    with pytest.raises(WeightsFileError, match="format None"):
        OodDetector.load(path, model_revision="r1", classes=TAXONOMY.codes)


def test_without_embeddings_the_scores_of_logits_remain(calibration: EmbeddedFold, tmp_path: Path) -> None:
    found = OodDetector.fit(EmbeddedFold(calibration.predictions))
    assert list(found.thresholds) == list(formulas.LOGIT_SCORES)
    assert found.deciding == "energy"
    found.save(tmp_path / OOD_FILE)
    loaded = OodDetector.load(tmp_path / OOD_FILE, model_revision="r1", classes=TAXONOMY.codes)
    assert (loaded.bank, loaded.thresholds) == (None, found.thresholds)
    test = EmbeddedFold(make(KNOWN, "test", 1).predictions)
    section = ood_section(loaded, test, TRAINED)
    assert list(section["scores"]) == list(formulas.LOGIT_SCORES)
    assert "was not measured" in section["why"]
    assert "was not measured" in render_template(PARTIAL, {}, section=section, figures={})
    assert draw_ood_scores(section) is not None
    assert draw_ood_roc(section) is None


def test_what_cannot_be_fitted_or_scored_is_refused(calibration: EmbeddedFold, detector: OodDetector) -> None:
    with pytest.raises(DataError, match="18 calibration images are left"):
        OodDetector.fit(make({"BLA": 36}, "calibration", 0))
    with pytest.raises(DataError, match="0 calibration images are left"):
        OodDetector.fit(make({}, "calibration", 0))
    other = make(KNOWN, "validation", 4)
    other = EmbeddedFold(replace(other.predictions, model_revision="r2"), other.embeddings)
    with pytest.raises(DataError, match="folds of two models"):
        OodDetector.fit(calibration, other)
    with pytest.raises(DataError, match="was scored by r2"):
        ood_section(detector, other, TRAINED)
    with pytest.raises(DataError, match="do not fit a detector of width 16"):
        detector.scores(np.zeros((2, 5)), np.zeros((2, 8)))
    with pytest.raises(DataError, match="not finite"):
        detector.scores(np.full((2, 5), np.nan))
    with pytest.raises(DataError, match="2 embeddings for 450 images"):
        EmbeddedFold(calibration.predictions, np.zeros((2, 8)))


def test_a_class_that_was_never_trained_teaches_nothing() -> None:
    """Left out of the training alone, a class is in every other fold; it must stay strange to the detector."""
    folds = {
        name: make({**KNOWN, "HAC": 150}, name, seed)
        for seed, name in enumerate(("calibration", "validation"))
    }
    known_rows = np.flatnonzero(folds["validation"].predictions.labels != TAXONOMY.index("HAC"))
    only_known = folds["validation"].select(known_rows)
    test = make({**KNOWN, "HAC": 150}, "test", 5)
    fitted = fit(
        {name: fold.predictions for name, fold in folds.items()},
        {name: fold.embeddings for name, fold in folds.items() if fold.embeddings is not None},
        TRAINED,
    )
    detector = fitted.detector
    assert detector is not None
    np.testing.assert_array_equal(
        detector.bank, OodDetector.fit(folds["calibration"], only_known, train_classes=TRAINED).bank
    )
    _, second = calibration_halves(folds["calibration"].predictions, 0)
    labels = folds["calibration"].predictions.labels[second]
    assert detector.fitted_images == 450
    assert detector.threshold_images == int((labels < 3).sum())
    strange = ood_section(detector, test, TRAINED, draws=100)["sets"]["HAC"]["scores"]
    assert min(strange[name]["auroc"]["value"] for name in ("knn", "mahalanobis")) > 0.99
    taught = OodDetector.fit(folds["calibration"], folds["validation"])
    met = ood_section(taught, test, TRAINED, draws=100)["sets"]["HAC"]["scores"]
    assert max(met[name]["auroc"]["value"] for name in ("knn", "mahalanobis")) < 0.8
    # Probabilities are for images as the fold has them, of whatever class.
    assert fitted.calibration is not None
    assert fitted.calibration.images == len(folds["calibration"]) - len(second)


def test_embeddings_are_found_by_id() -> None:
    fold = make({"BLA": 4}, "test", 0)
    assert fold.embeddings is not None
    order = [3, 1, 0, 2]
    ids = [fold.predictions.ids[row] for row in order]
    joined = EmbeddedFold.joined(
        fold.predictions, [*ids, "more"], np.vstack([fold.embeddings[order], np.zeros(16)])
    )
    assert joined.embeddings is not None
    np.testing.assert_array_equal(joined.embeddings, fold.embeddings)
    with pytest.raises(DataError, match="1 images have no embedding, such as test3"):
        EmbeddedFold.joined(fold.predictions, ids[1:], fold.embeddings[order[1:]])


def test_left_out_classes_and_another_source_are_sets(section: dict[str, Any]) -> None:
    assert section["known_images"] == 450
    assert {name: (one["kind"], one["images"]) for name, one in section["sets"].items()} == {
        "PLM": ("class", 4),
        "HAC": ("class", 40),
        ALL_LEFT_OUT: ("classes", 44),
        "other <source>": ("given", 450),
    }
    assert section["sets"]["PLM"]["is_few"]
    # Left-out classes lie elsewhere in the embedding, and their logits look as usual.
    found = section["sets"][ALL_LEFT_OUT]["scores"]
    assert found["knn"]["auroc"]["low"] > 0.9
    assert found["energy"]["auroc"]["low"] < 0.6
    assert section["sets"]["HAC"]["called_out"]["knn"]["value"] > 0.5
    assert section["known_called_out"]["knn"]["value"] < 0.12


def test_the_page_and_the_figures_of_the_section(section: dict[str, Any]) -> None:
    json.dumps(section, allow_nan=False)
    text = render_template(PARTIAL, {}, section=section, figures={"ood_roc": "data:,x"})
    for word in ("HAC", "other &lt;source&gt;", "AUROC", "FPR95", "data:,x", "nearest neighbours"):
        assert word in text
    histograms, curves = draw_ood_scores(section), draw_ood_roc(section)
    assert histograms is not None
    assert curves is not None
    assert [axes.get_title(loc="left") for axes in histograms.axes] == [
        "max softmax", "energy", "nearest neighbours", "Mahalanobis  (decides)"
    ]  # fmt: skip
    assert figure_to_data_uri(histograms, "png").startswith("data:image/png")
    assert [axes.get_title(loc="left") for axes in curves.axes] == [
        f"{ALL_LEFT_OUT}  n=44", "other <source>  n=450"
    ]  # fmt: skip


def test_an_empty_test_fold_and_one_without_known_classes_are_said(detector: OodDetector) -> None:
    for counts in ({}, {"HAC": 3}):
        section = ood_section(detector, make(counts, "test", 1), TRAINED)
        assert "nothing can be told apart" in section["why"]
        json.dumps(section, allow_nan=False)
        assert draw_ood_scores(section) is None
        assert draw_ood_roc(section) is None
        assert "nothing can be told apart" in render_template(PARTIAL, {}, section=section, figures={})
