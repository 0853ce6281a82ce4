"""Averaging over the symmetries of the square: the mean of 8 passes, whatever way up the picture is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, log_loss

from cytodino_hf.data.dataset import CellDataset
from cytodino_hf.data.sources import SOURCES
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation import symmetries
from cytodino_hf.evaluation.fold_report import fold_section
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.report_parts import PARTS, Asked, Evidence
from cytodino_hf.evaluation.scoring import predict
from cytodino_hf.evaluation.symmetries_figures import draw_symmetries
from cytodino_hf.model.configuration_cytodino import CytoDinoConfig
from cytodino_hf.model.image_processing_cytodino import CytoDinoImageProcessor
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL

TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])
PART = Path(symmetries.__file__).parent / "parts" / "test_time.html"


@pytest.fixture(scope="module")
def model() -> CytoDinoForImageClassification:
    backbone = {
        "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    config = CytoDinoConfig(
        backbone_config=backbone, id2label=dict(enumerate(TAXONOMY.codes)), decoder_layers=1, decoder_heads=2
    )
    return CytoDinoForImageClassification(config).eval()


def test_the_eight_symmetries_are_those_of_the_square() -> None:
    """By NumPy: all different, and every composition of two is one of them."""
    square = torch.arange(9).reshape(1, 3, 3)
    found = {tuple(symmetries.turned(square, s).flatten().tolist()): s for s in range(8)}
    assert len(found) == 8
    by_numpy = set()
    for quarters, mirrored in itertools.product(range(4), (False, True)):
        picture = np.rot90(square[0].numpy(), quarters)
        by_numpy.add(tuple((np.fliplr(picture) if mirrored else picture).flatten().tolist()))
    assert set(found) == by_numpy
    for first, second in itertools.product(range(8), repeat=2):
        both = symmetries.turned(symmetries.turned(square, first), second)
        assert tuple(both.flatten().tolist()) in found


def test_it_is_the_mean_of_eight_passes(
    model: CytoDinoForImageClassification, tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    """Against eight calls of the model on pictures turned by NumPy, averaged in float64."""
    source = SOURCES["image_folder"]
    images = source.load(make_images(tmp_path / "images", per_class=2), MLL, source.options())
    processor = CytoDinoImageProcessor(size={"height": 32, "width": 32})
    scored, embeddings = symmetries.score_with_symmetries(
        model, processor, images, model_revision="r", batch_size=4
    )
    plain, _ = predict(model, processor, images, model_revision="r", batch_size=4)
    pictures = [CellDataset(images, processor).pixels(row) for row in range(len(images.labels))]
    probabilities, vectors = [], []
    for quarters, mirrored in itertools.product(range(4), (False, True)):
        views = [np.rot90(p, quarters) for p in pictures]
        views = [np.ascontiguousarray(np.fliplr(v) if mirrored else v) for v in views]
        with torch.no_grad():
            output = model(processor(views, return_tensors="pt")["pixel_values"])
        probabilities.append(output.logits.double().softmax(1).numpy())
        vectors.append(output.embedding.double().numpy())
    np.testing.assert_allclose(scored.probabilities, np.mean(probabilities, axis=0), atol=1e-6)
    np.testing.assert_allclose(embeddings, np.mean(vectors, axis=0), atol=1e-5)
    assert np.abs(scored.probabilities - plain.probabilities).max() > 1e-4
    assert scored.ids == plain.ids == images.column("id")


def test_the_answer_does_not_depend_on_the_way_up(model: CytoDinoForImageClassification) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = symmetries.averaged_answer(model, pixels)
        for symmetry in range(1, 8):
            found = symmetries.averaged_answer(model, symmetries.turned(pixels, symmetry))
            for ours, theirs in zip(found, wanted, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_pictures_that_are_not_square_are_refused(model: CytoDinoForImageClassification) -> None:
    with pytest.raises(DataError, match=r"24 x 32 pixels.*image_size_px"):
        symmetries.averaged_answer(model, torch.zeros(1, 3, 24, 32))


def make(skill: float, n: int = 300, seed: int = 0) -> Predictions:
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(0, 1.5, (n, 3)) + np.random.default_rng(seed).normal(0, 0.7, (n, 3))
    logits[np.arange(n), labels] += skill
    return Predictions(
        ids=[f"i{i}" for i in range(n)], paths=[f"{i}.png" for i in range(n)], sources=["s"] * n,
        groups=[None] * n, folds=["test"] * n, labels=labels, logits=logits.astype(np.float32),
        classes=TAXONOMY.codes, model_revision="r",
    )  # fmt: skip


def test_the_section_says_what_scikit_learn_says() -> None:
    plain, averaged = make(1.0), make(1.8, seed=1)
    # The order of the rows does not matter.
    shuffled = averaged.select(np.random.default_rng(2).permutation(len(averaged)))
    section = symmetries.symmetries_section(plain, shuffled, TAXONOMY, draws=200)
    rows = {row["name"]: row for row in section["metrics"]}
    assert rows["accuracy"]["plain"] == pytest.approx(accuracy_score(plain.labels, plain.predicted))
    wanted = log_loss(averaged.labels, torch.tensor(averaged.logits).double().softmax(1).numpy())
    assert rows["nll"]["averaged"] == pytest.approx(wanted, rel=1e-6)
    for row in rows.values():
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["difference"] == pytest.approx(row["averaged"] - row["plain"])
        critical = int(np.isin(plain.labels, TAXONOMY.critical).sum())
        assert row["n"] == (critical if row["name"] == "critical_to_safe" else 300)
    right, was_right = averaged.predicted == plain.labels, plain.predicted == plain.labels
    gained, lost = int((right & ~was_right).sum()), int((~right & was_right).sum())
    changed = section["changed"]
    assert (changed["became_right"], changed["became_wrong"]) == (gained, lost)
    assert changed["count"] == int((plain.predicted != averaged.predicted).sum())
    assert changed["count"] == gained + lost + changed["between_mistakes"]
    assert changed["p_value"] == pytest.approx(binomtest(gained, gained + lost).pvalue)
    json.dumps(section, allow_nan=False)
    page = render_template(PART, {}, section=section, figures={"test_time": "data:image/png;base64,"})
    assert f"{gained} became right" in page
    assert figure_bytes(draw_symmetries(section), "png").startswith(b"\x89PNG")


def test_means_are_over_the_classes_of_the_report() -> None:
    """A class nobody was trained on is all misread: it stands in no mean, here as in the metrics of the fold."""
    plain = make(9.0, 300)
    logits = plain.logits.copy()
    logits[plain.labels == 2] = (9.0, 0.0, 0.0)
    plain = replace(plain, logits=logits)
    counted = np.array([True, True, False])
    section = symmetries.symmetries_section(plain, plain, TAXONOMY, classes_counted=counted, draws=50)
    fold = fold_section("test", plain, TAXONOMY, TAXONOMY.codes[:2], draws=50, seed=0, level=0.95)
    (row,) = [row for row in section["metrics"] if row["name"] == "macro_f1"]
    assert row["plain"] == pytest.approx(fold["metrics"]["macro_f1"]["value"])
    every = symmetries.symmetries_section(plain, plain, TAXONOMY, draws=50)["metrics"][0]["plain"]
    assert every < row["plain"] - 0.1
    drawn = {"draws": 50, "seed": 0, "level": 0.95}
    evidence = Evidence(averaged=plain)
    asked = Asked("r", "test", plain, {"test": plain}, TAXONOMY, TAXONOMY.codes[:2], {}, evidence, drawn)
    assert PARTS["test_time"].section(asked)["metrics"][0]["plain"] == row["plain"]


def test_degenerate_input_has_defined_answers() -> None:
    plain = make(1.0, 30)
    same = symmetries.symmetries_section(plain, plain, TAXONOMY, draws=50)
    assert same["changed"]["p_value"] is None
    assert {row["difference"] for row in same["metrics"]} == {0.0}
    assert not any(row["is_clear"] for row in same["metrics"])
    assert all(row["low"] is None or row["low"] < row["high"] for row in same["metrics"])
    page = render_template(PART, {}, section=same, figures={})
    assert "no interval" in page
    assert figure_bytes(draw_symmetries(same), "png").startswith(b"\x89PNG")
    unknown = replace(plain, labels=np.full(30, -1))
    none = symmetries.symmetries_section(unknown, unknown, TAXONOMY)
    assert none["metrics"] == []
    assert none["why"]
    assert "nothing can be compared" in render_template(PART, {}, section=none, figures={})
    certain = replace(plain, logits=np.eye(3, dtype=np.float32)[plain.labels] * 1000)
    one = symmetries.symmetries_section(plain.select([0]), certain.select([0]), TAXONOMY, draws=50)
    json.dumps(one, allow_nan=False)
    assert one["images"] == 1
    with pytest.raises(DataError, match="not of the same test images"):
        symmetries.symmetries_section(plain, plain.select(range(10)), TAXONOMY, draws=10)
