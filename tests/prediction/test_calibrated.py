"""Calibrated answers and strange pictures: values worked out in the test, refusals, rows that never mix."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from companion_files import BIAS, SCALE, distances, threshold, with_companions

from cytodino_hf import CellClassifier
from cytodino_hf.cli import main
from cytodino_hf.errors import DataError, ModelUnavailableError, WeightsFileError
from cytodino_hf.evaluation.calibration.artifact import CALIBRATION_FILE, Calibration
from cytodino_hf.evaluation.companions import bind_companions
from cytodino_hf.evaluation.ood.detector import OOD_FILE
from cytodino_hf.evaluation.predictions import Predictions, read_embeddings
from cytodino_hf.prediction.command import PredictOptions, predict_images
from cytodino_hf.prediction.output import PredictionOutput

RAW = PredictOptions(precision="float32", batch_size=4)
CALIBRATED = PredictOptions(precision="float32", batch_size=4, is_calibrated=True)


@pytest.fixture(scope="module")
def fitted(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_companions(run, tmp_path_factory.mktemp("fitted") / "run")


@pytest.fixture(scope="module")
def bare(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The RUN without any of the files."""
    copy = shutil.copytree(run, tmp_path_factory.mktemp("bare") / "run")
    for name in (CALIBRATION_FILE, OOD_FILE):
        (copy / name).unlink(missing_ok=True)
    bind_companions(copy)
    return copy


def calibrated_by_hand(logits: np.ndarray) -> np.ndarray:
    scaled = logits.astype(np.float64) * np.array(SCALE) + np.array(BIAS)
    raised = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def strange_by_hand(run: Path, ids: list[str]) -> list[bool]:
    names, embeddings = read_embeddings(run / "predictions" / "embeddings.parquet")
    found = distances(embeddings, embeddings) > threshold(embeddings)
    return [bool(found[names.index(name)]) for name in ids]


def edited(run: Path, to: Path, **values: Any) -> Path:
    """A copy with other values in its calibration, and no note of the file that was there."""
    shutil.copytree(run, to)
    document = json.loads((to / CALIBRATION_FILE).read_text())
    (to / CALIBRATION_FILE).write_text(json.dumps(document | values))
    return to


def test_answers_are_calibrated_on_request_only(fitted: Path, cells: Path) -> None:
    saved = Predictions.from_parquet(fitted / "predictions" / "test.parquet")
    classifier = CellClassifier.from_pretrained(fitted)
    pictures = [cells / path for path in saved.paths]
    plain, calibrated = classifier.predict(pictures), classifier.predict(pictures, calibrated=True)
    assert (plain.are_calibrated, calibrated.are_calibrated) == (False, True)
    np.testing.assert_allclose(plain.probabilities, saved.probabilities, atol=1e-6)
    wanted = calibrated_by_hand(saved.logits)
    assert np.abs(wanted - saved.probabilities).max() > 0.05, "else this shows nothing"
    np.testing.assert_allclose(calibrated.probabilities, wanted, atol=1e-5)
    assert [cell.label for cell in calibrated] == [saved.classes[i] for i in wanted.argmax(axis=1)]
    for cell, row in zip(calibrated, wanted, strict=True):
        assert cell.probability == pytest.approx(row.max(), abs=1e-5)


def test_strange_pictures_are_called_out(fitted: Path, cells: Path) -> None:
    """Against distances computed by hand; the detector looks at uncalibrated answers either way."""
    saved = Predictions.from_parquet(fitted / "predictions" / "test.parquet")
    wanted = strange_by_hand(fitted, saved.ids)
    classifier = CellClassifier.from_pretrained(fitted)
    pictures = [cells / path for path in saved.paths]
    for calibrated in (False, True):
        found = classifier.predict(pictures, calibrated=calibrated, batch_size=3)
        assert [cell.ood for cell in found] == wanted
    everything = classifier.predict(cells)
    assert {cell.ood for cell in everything} == {True, False}
    assert len(classifier.predict([])) == 0


def test_a_model_without_the_files_says_so(bare: Path, cells: Path, tmp_path: Path) -> None:
    classifier = CellClassifier.from_pretrained(bare)
    assert {cell.ood for cell in classifier.predict(cells / "BLA")} == {None}
    with pytest.raises(ModelUnavailableError, match=r"has no calibration\.json: ask .* uncalibrated"):
        classifier.predict(cells / "BLA", calibrated=True)
    with pytest.raises(ModelUnavailableError, match=r"has no calibration\.json"):
        predict_images(str(bare), [str(cells / "BLA")], tmp_path / "out.parquet", CALIBRATED)
    assert list(tmp_path.iterdir()) == []


def test_another_revision_and_another_label_order_are_refused_naming_both(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    own = Predictions.from_parquet(fitted / "predictions" / "test.parquet").model_revision
    other = edited(fitted, tmp_path / "revision", model_revision="f" * 64)
    with pytest.raises(DataError, match=rf"fitted for the weights f{{64}}, the model is {own}"):
        CellClassifier.from_pretrained(other).predict(cells, calibrated=True)
    turned = edited(fitted, tmp_path / "labels", classes=["LYT", "BLA", "NGS"])
    with pytest.raises(DataError, match="for the classes LYT, BLA, NGS, the model has BLA, LYT, NGS"):
        CellClassifier.from_pretrained(turned).predict(cells, calibrated=True)
    with pytest.raises(DataError, match="LYT, BLA, NGS"):
        predict_images(str(turned), [str(cells)], tmp_path / "out.parquet", CALIBRATED)


def test_a_file_that_is_not_the_bound_one_is_refused(fitted: Path, cells: Path, tmp_path: Path) -> None:
    bias = {"BLA": 9.0, "LYT": 0.0, "NGS": 0.0}
    other = edited(fitted, tmp_path / "bias", bias=bias)
    with pytest.raises(
        ModelUnavailableError, match=r"calibration\.json has sha256 \w{64}, .* bound to \w{64}"
    ):
        CellClassifier.from_pretrained(other).predict(cells, calibrated=True)
    (other / CALIBRATION_FILE).unlink()
    with pytest.raises(ModelUnavailableError, match=r"calibration\.json, which belongs to it, is missing"):
        CellClassifier.from_pretrained(other).predict(cells, calibrated=True)
    flipped = shutil.copytree(fitted, tmp_path / "flipped")
    content = (flipped / OOD_FILE).read_bytes()
    (flipped / OOD_FILE).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelUnavailableError, match=r"ood\.safetensors has sha256"):
        CellClassifier.from_pretrained(flipped).predict(cells)


def test_files_of_another_run_are_refused_where_nothing_is_bound(
    bare: Path, fitted: Path, cells: Path, tmp_path: Path
) -> None:
    """As left by a person who copied them: they say themselves whose they are."""
    for name in (CALIBRATION_FILE, OOD_FILE):
        copy = shutil.copytree(bare, tmp_path / name)
        content = (fitted / name).read_bytes()
        own = Predictions.from_parquet(fitted / "predictions" / "test.parquet").model_revision.encode()
        assert content.count(own) == 1
        (copy / name).write_bytes(content.replace(own, b"0" * 64))
        with pytest.raises((DataError, WeightsFileError), match=f"(?s)0{{64}}.*{own.decode()}"):
            CellClassifier.from_pretrained(copy).predict(cells, calibrated=name == CALIBRATION_FILE)
        (copy / name).write_bytes(content)
    unbound = shutil.copytree(bare, tmp_path / "unbound")
    shutil.copy(fitted / CALIBRATION_FILE, unbound)
    assert CellClassifier.from_pretrained(unbound).predict(cells, calibrated=True).are_calibrated


@pytest.mark.parametrize("name", ["out.parquet", "out.csv"])
def test_calibrated_rows_and_others_never_mix(fitted: Path, cells: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    predict_images(str(fitted), [str(cells / "BLA")], out, CALIBRATED)
    fingerprint = Calibration.load(fitted / CALIBRATION_FILE).fingerprint()
    with pytest.raises(DataError, match=f"with the calibration {fingerprint}, asked is for no calibration"):
        predict_images(str(fitted), [str(cells / "BLA")], out, RAW)
    assert predict_images(str(fitted), [str(cells / "BLA")], out, CALIBRATED).scored == 0
    predict_images(str(fitted), [str(cells / "BLA")], tmp_path / f"raw_{name}", RAW)
    with pytest.raises(DataError, match=f"with no calibration, asked is for the calibration {fingerprint}"):
        predict_images(str(fitted), [str(cells / "BLA")], tmp_path / f"raw_{name}", CALIBRATED)


def test_another_detector_does_not_mix_either(fitted: Path, bare: Path, cells: Path, tmp_path: Path) -> None:
    predict_images(str(fitted), [str(cells / "BLA")], tmp_path / "out.parquet", RAW)
    with pytest.raises(DataError, match=r"the detector of strange images \w{64}, asked is for no detector"):
        predict_images(str(bare), [str(cells / "BLA")], tmp_path / "out.parquet", RAW)


def test_the_output_holds_calibrated_answers_and_what_is_strange(
    fitted: Path, cells: Path, tmp_path: Path
) -> None:
    predict_images(str(fitted), [str(cells)], tmp_path / "raw.parquet", RAW)
    predict_images(str(fitted), [str(cells)], tmp_path / "cal.parquet", CALIBRATED)
    raw, found = (Predictions.from_parquet(tmp_path / f"{name}.parquet") for name in ("raw", "cal"))
    np.testing.assert_allclose(found.probabilities, calibrated_by_hand(raw.logits), atol=1e-5)
    assert raw.calibration is None
    calibration = Calibration.load(fitted / CALIBRATION_FILE)
    assert found.calibration == calibration.fingerprint() == calibration.of(raw).calibration
    np.testing.assert_allclose(calibration.of(raw).logits, found.logits, atol=1e-6)
    with pytest.raises(DataError, match="calibrated already"):
        calibration.of(found)
    classifier = CellClassifier.from_pretrained(fitted)
    assert found.ood == raw.ood == [cell.ood for cell in classifier.predict(cells)]
    assert pq.read_table(tmp_path / "cal.parquet").schema.field("ood").type == "bool"


def test_a_spreadsheet_has_the_same(fitted: Path, bare: Path, cells: Path, tmp_path: Path) -> None:
    predict_images(str(fitted), [str(cells)], tmp_path / "out.csv", CALIBRATED)
    predict_images(str(fitted), [str(cells)], tmp_path / "out.parquet", CALIBRATED)
    predict_images(str(bare), [str(cells)], tmp_path / "bare.csv", RAW)
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    whole = Predictions.from_parquet(tmp_path / "out.parquet")
    assert whole.ood is not None
    assert [row["ood"] for row in rows] == [str(value).lower() for value in whole.ood]
    assert {row["calibration"] for row in rows} == {whole.calibration}
    np.testing.assert_allclose([float(r["p(LYT)"]) for r in rows], whole.probabilities[:, 1], atol=1e-6)
    with open(tmp_path / "bare.csv", newline="") as file:
        assert {(row["ood"], row["calibration"], row["ood_detector"]) for row in csv.DictReader(file)} == {
            ("", "", "")
        }


def test_a_call_that_stopped_goes_on_calibrated(
    fitted: Path, cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.parquet"
    options = PredictOptions(precision="float32", batch_size=8, is_calibrated=True, seconds_a_part=0)
    add = PredictionOutput.add

    def stop(self: PredictionOutput, *args: Any) -> None:
        add(self, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionOutput, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_images(str(fitted), [str(cells)], out, options)
    with pytest.raises(DataError, match="asked is for no calibration"):
        predict_images(str(fitted), [str(cells)], out, RAW)
    assert predict_images(str(fitted), [str(cells)], out, options).scored == 22
    predict_images(str(fitted), [str(cells)], tmp_path / "at_once.parquet", CALIBRATED)
    one, other = (Predictions.from_parquet(tmp_path / n) for n in ("out.parquet", "at_once.parquet"))
    assert (one.ids, one.ood, one.calibration) == (other.ids, other.ood, other.calibration)
    np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)


def test_files_of_earlier_versions_are_read_and_continued(bare: Path, cells: Path, tmp_path: Path) -> None:
    """They have no column `ood` and name weights and precision only."""
    out = tmp_path / "out.parquet"
    predict_images(str(bare), [str(cells / "BLA")], out, RAW)
    table = pq.read_table(out).drop_columns(["ood"])
    metadata = dict(table.schema.metadata)
    for key, newer in (
        (b"cytodino_predict", ("calibration", "ood_detector")),
        (b"cytodino", ("calibration",)),
    ):
        document = json.loads(metadata[key])
        metadata[key] = json.dumps({k: v for k, v in document.items() if k not in newer}).encode()
    pq.write_table(table.replace_schema_metadata(metadata), out)
    old = Predictions.from_parquet(out)
    assert (old.ood, old.calibration, len(old)) == (None, None, 10)
    folder = shutil.copytree(cells / "BLA", tmp_path / "growing")
    shutil.copy(cells / "LYT" / "LYT_00001.png", folder)
    assert predict_images(str(bare), [str(folder)], out, RAW).scored == 1
    assert len(Predictions.from_parquet(out)) == 11


def test_the_command_takes_the_option(
    fitted: Path, bare: Path, cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(model: Path, name: str) -> int:
        arguments = ["predict", str(model), str(cells / "NGS"), "--output", str(tmp_path / name)]
        with pytest.raises(SystemExit) as ended:
            main([*arguments, "--calibrated", "--precision", "float32"])
        return int(ended.value.code or 0)

    assert call(fitted, "out.csv") == 0
    assert Path(tmp_path / "out.csv").is_file()
    assert call(bare, "none.csv") == 1
    assert "has no calibration.json" in capsys.readouterr().err
