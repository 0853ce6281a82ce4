"""`calibration.json` says what it is for, survives a round, and refuses any other model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.calibration.artifact import Calibration, fit_calibration
from cytodino_hf.evaluation.calibration.halves import calibration_halves
from cytodino_hf.evaluation.predictions import Predictions


def fold(n: int = 400, biased: bool = False) -> Predictions:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(0, 1, (n, 3))
    logits[np.arange(n), labels] += 1.5
    logits = 3 * logits + (np.array([0.0, 4.0, -4.0]) if biased else 0.0)
    ids = [f"c{i:04}" for i in range(n)]
    return Predictions(
        ids,
        ids,
        ["s"] * n,
        [None] * n,
        ["calibration"] * n,
        labels,
        logits.astype(np.float32),
        ("A", "B", "C"),
        "w1",
    )


@pytest.fixture(params=[False, True], ids=["temperature", "vector"])
def calibration(request: pytest.FixtureRequest) -> Calibration:
    return fit_calibration(fold(biased=request.param))


def test_it_does_the_same_after_a_round_through_the_file(calibration: Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path)
    document = json.loads((tmp_path / "calibration.json").read_text())
    assert document["format"] == 1
    again = Calibration.load(tmp_path / "calibration.json")
    assert again.to_dict() == calibration.to_dict() == document
    assert again.fingerprint() == calibration.fingerprint()
    logits = fold().logits
    np.testing.assert_array_equal(again.apply(logits), calibration.apply(logits))


def test_what_is_written_is_the_formula(calibration: Calibration) -> None:
    document, logits = calibration.to_dict(), fold().logits.astype(np.float64)
    if document["method"] == "temperature":
        expected = logits / document["temperature"]
    else:
        expected = logits * [document["scale"][c] for c in "ABC"] + [document["bias"][c] for c in "ABC"]
    np.testing.assert_allclose(calibration.apply(logits), expected, rtol=1e-6, atol=1e-6)
    assert document["method"] == calibration.scaling.method


def test_it_says_which_images_it_was_fitted_on() -> None:
    predictions = fold()
    calibration = fit_calibration(predictions, seed=7)
    rows, _ = calibration_halves(predictions, 7)
    ids = sorted(predictions.ids[row] for row in rows)
    fitted_on = calibration.to_dict()["fitted_on"]
    assert fitted_on["images"] == len(ids) == 201
    assert fitted_on["ids_sha256"] == hashlib.sha256("\n".join(ids).encode()).hexdigest()
    assert (fitted_on["half"], fitted_on["seed"]) == ("scaling", 7)


def test_other_weights_and_another_label_order_are_refused(calibration: Calibration) -> None:
    with pytest.raises(DataError, match=r"weights w1, the model is w2"):
        calibration.of(replace(fold(), model_revision="w2"))
    with pytest.raises(DataError, match=r"classes A, B, C, the model has C, B, A"):
        calibration.check("w1", ("C", "B", "A"))


def test_the_other_half_changes_nothing_that_is_fitted() -> None:
    predictions = fold()
    _, other = calibration_halves(predictions)
    logits = predictions.logits.copy()
    logits[other] = 0.0
    assert (
        fit_calibration(replace(predictions, logits=logits)).to_dict()
        == fit_calibration(predictions).to_dict()
    )


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"format": 2}, "format 2"),
        ({"method": "magic"}, "magic"),
        ({"temperature": 0}, "temperature must be above 0"),
        ({"temperature": float("nan")}, "finite"),
        ({"temperature": None}, "finite"),
        ({"fitted_on": {}}, "'images' is missing"),
        ({"method": "vector", "scale": {"A": 1.0}, "bias": {}}, "scale is of the classes A"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_named(change: dict[str, object], word: str) -> None:
    with pytest.raises(DataError, match=word):
        Calibration.from_dict(fit_calibration(fold()).to_dict() | change)


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        Calibration.load(tmp_path / "calibration.json")
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(DataError, match="not valid JSON"):
        Calibration.load(tmp_path / "calibration.json")
    (tmp_path / "calibration.json").write_text("[]")
    with pytest.raises(DataError, match="format 'list'"):
        Calibration.load(tmp_path / "calibration.json")


def test_no_labelled_image_and_logits_that_are_not_finite_are_refused() -> None:
    predictions = fold(40)
    with pytest.raises(DataError, match="no labelled image"):
        fit_calibration(replace(predictions, labels=np.full(40, -1)))
    logits = predictions.logits.copy()
    logits[calibration_halves(predictions)[0][0], 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        fit_calibration(replace(predictions, logits=logits))
