"""`CellClassifier` against the predictions a run saved, on every form of picture, with bad ones among them."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cytodino_hf import CellClassifier
from cytodino_hf.errors import BadNumbersError, DataError, ModelUnavailableError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.prediction.classifier import UnreadableImage
from cytodino_hf.prediction.pictures import read_picture
from cytodino_hf.taxonomy import MLL


@pytest.fixture(scope="module")
def classifier(run: Path) -> CellClassifier:
    return CellClassifier.from_pretrained(run)


def test_it_gives_the_probabilities_the_run_saved(run: Path, cells: Path, classifier: CellClassifier) -> None:
    saved = Predictions.from_parquet(run / "predictions" / "test.parquet")
    found = classifier.predict([cells / path for path in saved.paths], batch_size=3)
    np.testing.assert_allclose(found.probabilities, saved.probabilities, atol=1e-6)
    assert found.classes == saved.classes
    assert [cell.label for cell in found] == [saved.classes[label] for label in saved.predicted]
    assert classifier.place.revision() == saved.model_revision


def test_a_prediction_says_what_the_label_means(cells: Path, classifier: CellClassifier) -> None:
    found = classifier.predict(cells, top_k=2)
    assert len(found) == 30
    assert {cell.label for cell in found} == {"BLA", "LYT", "NGS"}, (
        "the thirty squares are easy to tell apart"
    )
    for cell, probabilities in zip(found, found.probabilities, strict=True):
        meant = MLL.classes[MLL.index(cell.label)]
        assert (cell.name, cell.lineage, cell.is_critical) == (meant.name, meant.lineage, meant.is_critical)
        assert cell.probability == pytest.approx(probabilities.max())
        assert [c.label for c in cell.top] == [
            found.classes[i] for i in sorted(range(3), key=lambda i: -probabilities[i])[:2]
        ]
        assert cell.top[0].label == cell.label
        assert probabilities.sum() == pytest.approx(1)
    assert {cell.label for cell in found if cell.is_critical} == {"BLA"}
    assert found[0].image == str(cells / "BLA" / "BLA_00001.png")


def test_one_picture_is_one_prediction_in_whatever_form(cells: Path, classifier: CellClassifier) -> None:
    path = cells / "LYT" / "LYT_00003.png"
    pixels = np.asarray(Image.open(path))
    with_alpha = np.dstack([pixels, np.full(pixels.shape[:2], 7, np.uint8)])
    forms: list[Any] = [
        path,
        str(path),
        path.read_bytes(),
        Image.open(path),
        pixels,
        with_alpha,
        Image.fromarray(with_alpha),
        {"path": None, "bytes": path.read_bytes()},
    ]
    wanted = classifier.predict(path).probabilities
    for form in forms:
        found = classifier.predict(form)
        assert len(found) == 1
        np.testing.assert_array_equal(found.probabilities, wanted)
    together = classifier.predict(forms)
    assert [cell.image for cell in together][2:] == [f"images[{i}]" for i in range(2, len(forms))]
    np.testing.assert_allclose(together.probabilities, np.repeat(wanted, len(forms), 0), atol=1e-6)


def test_grey_is_grey_and_exif_turns(tmp_path: Path, cells: Path) -> None:
    """Against Pillow called by hand."""
    picture = Image.open(cells / "BLA" / "BLA_00001.png")
    grey = picture.convert("L")
    np.testing.assert_array_equal(read_picture(grey, "g"), np.asarray(grey.convert("RGB")))
    np.testing.assert_array_equal(read_picture(np.asarray(grey), "g"), np.asarray(grey.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    picture.save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(np.asarray(picture), -1)
    np.testing.assert_array_equal(read_picture(tmp_path / "turned.png", "t"), upright)
    np.testing.assert_array_equal(read_picture(Image.open(tmp_path / "turned.png"), "t"), upright)


def test_bad_pictures_are_named_and_the_others_go_on(
    tmp_path: Path, cells: Path, classifier: CellClassifier, caplog: pytest.LogCaptureFixture
) -> None:
    good = cells / "NGS" / "NGS_00002.png"
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:300])
    (tmp_path / "note.png").write_text("not a picture")
    given: list[Any] = [
        tmp_path / "half.png", good, tmp_path / "note.png", tmp_path / "absent.png", b"", good,
        np.zeros((32, 32), np.float32), Image.fromarray(np.full((32, 32), 3000, np.uint16)),
        np.zeros((40, 40, 3), np.uint8),
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        found = classifier.predict(given, batch_size=2)
    assert [cell.index for cell in found] == [1, 5]
    np.testing.assert_allclose(found.probabilities[0], classifier.predict(good).probabilities[0], atol=1e-6)
    reasons = {problem.index: problem.reason for problem in found.problems}
    assert sorted(reasons) == [0, 2, 3, 4, 6, 7, 8]
    for index, words in {
        2: "not an image", 3: "no such file", 4: "an empty file", 6: "must be uint8", 7: "deeper than 8 bits",
        8: "every pixel has the colour",
    }.items():  # fmt: skip
        assert words in reasons[index]
    assert found.problems[0].image == str(tmp_path / "half.png")
    for problem in found.problems:
        assert isinstance(problem, UnreadableImage)
        assert f"{problem.image}: {problem.reason}" in caplog.text
        assert not problem.reason.startswith(problem.image)


def test_nothing_readable_is_no_prediction(classifier: CellClassifier, tmp_path: Path) -> None:
    found = classifier.predict([tmp_path / "absent.png"])
    assert (len(found), len(found.problems), found.probabilities.shape) == (0, 1, (0, 3))
    assert len(classifier.predict([])) == 0


def test_files_of_a_folder_that_are_not_read_are_named(
    tmp_path: Path, cells: Path, classifier: CellClassifier
) -> None:
    shutil.copy(cells / "BLA" / "BLA_00001.png", tmp_path / "a.png")
    Image.open(tmp_path / "a.png").save(tmp_path / "b.gif")
    found = classifier.predict(tmp_path)
    assert [cell.image for cell in found] == [str(tmp_path / "a.png")]
    assert [(p.image, p.index) for p in found.problems] == [(str(tmp_path / "b.gif"), -1)]


def test_bfloat16_finds_the_same_class_and_casts_no_position(
    run: Path, cells: Path, classifier: CellClassifier
) -> None:
    import torch

    quick = CellClassifier.from_pretrained(run, precision="bfloat16")
    exact, rounded = classifier.predict(cells), quick.predict(cells)
    assert {p.dtype for p in quick.model.backbone.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in quick.model.head.parameters()} == {torch.float32}
    assert {b.dtype for b in quick.model.backbone.buffers()} <= {torch.float32}
    assert [cell.label for cell in rounded] == [cell.label for cell in exact]
    np.testing.assert_allclose(rounded.probabilities, exact.probabilities, atol=0.02)
    assert not np.array_equal(rounded.probabilities, exact.probabilities)


def test_a_model_of_another_kind_is_refused(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="no such folder"):
        CellClassifier.from_pretrained(tmp_path / "absent")
    (tmp_path / "unfinished").mkdir()
    with pytest.raises(ModelUnavailableError, match=r"has no config\.json; give a RUN that is finished"):
        CellClassifier.from_pretrained(tmp_path / "unfinished")
    with pytest.raises(ModelUnavailableError, match="is a 'dinov3_vit' model"):
        CellClassifier.from_pretrained(run / "base")
    with pytest.raises(ModelUnavailableError, match="hf download lab/absent"):
        CellClassifier.from_pretrained("lab/absent", local_files_only=True, cache_dir=tmp_path)


def test_labels_in_another_order_are_refused(tmp_path: Path, run: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    config["id2label"] = {"0": "LYT", "1": "BLA", "2": "NGS"}
    file.write_text(json.dumps(config))
    with pytest.raises(ModelUnavailableError, match="BLA"):
        CellClassifier.from_pretrained(tmp_path / "run")


def changed(run: Path, to: Path, file: str, **values: Any) -> Path:
    """A copy of a RUN with other values in one of its JSON files."""
    shutil.copytree(run, to)
    document = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps(document | values))
    return to


def test_another_preprocessing_and_other_weights_are_refused(tmp_path: Path, run: Path) -> None:
    other = changed(run, tmp_path / "other", "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    with pytest.raises(
        ModelUnavailableError, match=r"image_mean .* is \[0\.1, 0\.2, 0\.3\], .* trained with \[0\."
    ):
        CellClassifier.from_pretrained(other)
    swapped = shutil.copytree(run, tmp_path / "swapped")
    content = (swapped / "base" / "model.safetensors").read_bytes()
    (swapped / "base" / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        ModelUnavailableError, match=r"base/model\.safetensors has sha256 \w{64}, .* made with \w{64}"
    ):
        CellClassifier.from_pretrained(swapped)


def test_a_base_that_cannot_be_had_is_said_with_the_remedy(tmp_path: Path, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    base = {"id": "lab/absent", "revision": "a" * 40, "weights": {"model.safetensors": "b" * 64}}
    weights = {k: v for k, v in config["binding"]["weights"].items() if not k.startswith("base/")}
    adapter = changed(
        run, tmp_path / "adapter", "config.json", base_subfolder=None, base_model_name_or_path=base["id"],
        base_model_revision=base["revision"], binding=config["binding"] | {"base": base, "weights": weights},
    )  # fmt: skip
    with pytest.raises(
        ModelUnavailableError, match=r"the backbone lab/absent .*`hf download lab/absent --revision a"
    ):
        CellClassifier.from_pretrained(adapter, local_files_only=True, cache_dir=tmp_path)


def test_weights_that_answer_nan_are_refused(run: Path, cells: Path) -> None:
    broken = CellClassifier.from_pretrained(run)
    next(broken.model.head.parameters()).data.fill_(float("nan"))
    with pytest.raises(BadNumbersError, match=r"not finite for 30 of the pictures: .*BLA_00001\.png"):
        broken.predict(cells)


def test_arrays_of_another_kind_are_refused_with_the_form_they_must_have() -> None:
    with pytest.raises(DataError, match=r"must be uint8 \(height, width\)"):
        read_picture(np.zeros((2, 3, 40, 40), np.uint8), "a")


def test_the_package_names_it_without_loading_anything() -> None:
    program = """
import sys, cytodino_hf
assert "torch" not in sys.modules
assert "CellClassifier" in cytodino_hf.__all__
try:
    cytodino_hf.Absent
except AttributeError as error:
    assert "Absent" in str(error)
from cytodino_hf import CellClassifier
assert CellClassifier.__module__ == "cytodino_hf.prediction.classifier"
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_workers_read_the_same(
    cells: Path, classifier: CellClassifier, make_images: Callable[..., Path]
) -> None:
    np.testing.assert_array_equal(
        classifier.predict(cells, workers=1).probabilities, classifier.predict(cells).probabilities
    )
