"""Transfer: common classes, renormalised probabilities, values by scikit-learn, pictures matched before the model."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

import cytodino_hf.evaluation
import cytodino_hf.evaluation.transfer.elsewhere
from cytodino_hf.data.appearance import Appearance, measure_appearance
from cytodino_hf.data.colour_matching import Matching
from cytodino_hf.data.images import read_rgb
from cytodino_hf.data.sources import image_folder
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.transfer.correspondence import correspondence
from cytodino_hf.evaluation.transfer.elsewhere import score_all_ways, score_elsewhere
from cytodino_hf.evaluation.transfer.figures import draw_transfer, draw_transfer_confusion
from cytodino_hf.evaluation.transfer.section import transfer_section
from cytodino_hf.model.configuration_cytodino import CytoDinoConfig
from cytodino_hf.model.image_processing_cytodino import CytoDinoImageProcessor
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.other_sets import OTHER_TAXONOMIES
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL, MLL_PUBLISHED, CellClass, Taxonomy

TECOM = OTHER_TAXONOMIES["wbc_tecom"]
SEVEN = MLL.subset(["BLA", "EOS", "LYT", "MON", "NGS", "NIF", "PMO"])
PART = Path(cytodino_hf.evaluation.__file__).parent / "parts" / "transfer.html"


def test_an_undivided_class_is_one_class_on_both_sides() -> None:
    common = correspondence(MLL, TECOM)
    assert [(c.name, c.ours, c.theirs) for c in common.classes] == [
        ("basophil", ("BAS",), ("BAS",)),
        ("eosinophil", ("EOS",), ("EOS",)),
        ("lymphocyte", ("LYT",), ("LYT",)),
        ("monocyte", ("MON",), ("MON",)),
        ("neutrophil", ("NGB", "NGS"), ("NEU",)),
    ]
    assert "probabilities are added" in common.classes[-1].note
    assert common.theirs_left_out == ()
    assert "BLA" in common.ours_left_out
    assert common.taxonomy.classes[-1] == CellClass("neutrophil", "neutrophil", "granulocytic", is_safe=True)


def test_a_model_of_fewer_classes_scores_fewer() -> None:
    common = correspondence(SEVEN, TECOM)
    assert [c.name for c in common.classes] == ["eosinophil", "lymphocyte", "monocyte", "neutrophil"]
    assert common.classes[-1].ours == ("NGS",)
    assert common.theirs_left_out == ("BAS",)
    assert common.ours_left_out == ("BLA", "NIF", "PMO")


@pytest.mark.parametrize(("other", "count"), [("matek19", 12), ("acevedo", 10), ("mll23", 14)])
def test_public_sets_have_the_published_classes_in_common(other: str, count: int) -> None:
    common = correspondence(MLL, OTHER_TAXONOMIES[other])
    assert len(common.classes) == count
    order = common.taxonomy.maturation["granulocytic"]
    assert order[-1] == "neutrophil_segmented"
    assert order == tuple(name for name in OTHER_TAXONOMIES["harmonised"].codes if name in order)
    blasts = [c.note for c in common.classes if c.name == "myeloblast"]
    assert all("wider than myeloblasts" in note for note in blasts)


def test_equal_codes_are_common_where_no_table_knows() -> None:
    cells = [("LYT", "lymphoid"), ("BLA", "granulocytic"), ("Q", "unknown")]
    own = Taxonomy("my laboratory", tuple(CellClass(code, code, lineage) for code, lineage in cells))
    common = correspondence(SEVEN, own)
    assert [(c.name, c.ours, c.theirs) for c in common.classes] == [
        ("BLA", ("BLA",), ("BLA",)),
        ("LYT", ("LYT",), ("LYT",)),
    ]
    assert "one code" in common.by
    # ART has no harmonised name, but two copies of the MLL set share it.
    assert len(correspondence(MLL, MLL_PUBLISHED).classes) == 21
    with pytest.raises(DataError, match="0 common classes"):
        correspondence(SEVEN, OTHER_TAXONOMIES["pcam"])


def make(n: int = 400, skill: float = 2.0, seed: int = 0) -> tuple[Predictions, list[str]]:
    """Answers of a 7-class model about wbc_tecom's classes."""
    theirs = [TECOM.codes[i] for i in np.random.default_rng(3).integers(0, 5, n)]
    right = {"EOS": "EOS", "LYT": "LYT", "MON": "MON", "NEU": "NGS", "BAS": "PMO"}
    logits = np.random.default_rng(seed).normal(0, 1.5, (n, 7))
    logits[np.arange(n), [SEVEN.index(right[code]) for code in theirs]] += skill
    predictions = Predictions(
        ids=[f"i{i}" for i in range(n)], paths=[f"{i}.png" for i in range(n)], sources=["s"] * n,
        groups=[None] * n, folds=[None] * n, labels=np.full(n, -1), logits=logits.astype(np.float32),
        classes=SEVEN.codes, model_revision="r",
    )  # fmt: skip
    return predictions, theirs


def by_hand(predictions: Predictions, theirs: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and renormalised probabilities of the four common classes, in float64."""
    columns = [SEVEN.index(code) for code in ("EOS", "LYT", "MON", "NGS")]
    rows = [i for i, code in enumerate(theirs) if code != "BAS"]
    wide = torch.tensor(predictions.logits[rows]).double().softmax(1).numpy()[:, columns]
    labels = np.array([("EOS", "LYT", "MON", "NEU").index(theirs[i]) for i in rows])
    return labels, wide / wide.sum(1, keepdims=True)


def test_probabilities_of_divided_classes_are_added_and_renormalised() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (5, 21)).astype(np.float32)
    predictions = replace(make(5)[0], logits=logits, classes=MLL.codes)
    found = correspondence(MLL, TECOM).restricted(predictions, ["NEU", "BAS", "LYT", "EOS", "MON"])
    wide = np.exp(logits.astype(np.float64))
    sums = [wide[:, MLL.index(code)] for code in ("BAS", "EOS", "LYT", "MON")]
    sums.append(wide[:, MLL.index("NGB")] + wide[:, MLL.index("NGS")])
    wanted = np.stack(sums, 1) / np.sum(sums, axis=0)[:, None]
    np.testing.assert_allclose(found.probabilities, wanted, rtol=1e-5)
    assert found.labels.tolist() == [4, 0, 2, 1, 3]


def test_the_section_says_what_scikit_learn_says() -> None:
    (plain, theirs), (matched, _) = make(), make(skill=3.5, seed=1)
    common = correspondence(SEVEN, TECOM)
    section = transfer_section(
        {"as it is": plain, "colours matched": matched}, theirs, common, source="wbc_tecom", draws=200,
        matchings={"colours matched": "by Reinhard"},
    )  # fmt: skip
    labels, probabilities = by_hand(plain, theirs)
    called = probabilities.argmax(1)
    way = section["ways"]["as it is"]
    metrics = {name: cell["value"] for name, cell in way["scores"]["metrics"].items()}
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, called))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, called))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, called, average="macro"))
    assert way["probabilities"]["nll"]["value"] == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
    assert section["images"] == len(labels) == way["scores"]["images"]
    # Among all of the model's classes: its own first choice.
    rows = [i for i, code in enumerate(theirs) if code != "BAS"]
    codes = [SEVEN.codes[i] for i in plain.predicted[rows]]
    right = [c == {"NEU": "NGS"}.get(theirs[i], theirs[i]) for i, c in zip(rows, codes, strict=True)]
    assert way["over_all"]["value"] == pytest.approx(np.mean(right))
    outside = [c in ("BLA", "NIF", "PMO") for c in codes]
    assert way["first_choice_elsewhere"]["value"] == pytest.approx(np.mean(outside))
    mass = (
        torch.tensor(plain.logits[rows])
        .double()
        .softmax(1)
        .numpy()[:, [SEVEN.index(c) for c in common.ours_left_out]]
    )
    assert way["mass_elsewhere"]["value"] == pytest.approx(mass.sum(1).mean(), rel=1e-5)
    assert section["left_out_theirs"] == [{"code": "BAS", "name": "basophil", "images": theirs.count("BAS")}]
    other = section["ways"]["colours matched"]["scores"]["metrics"]["accuracy"]["value"]
    difference = section["differences"]["colours matched"]["accuracy"]
    assert difference["value"] == pytest.approx(other - metrics["accuracy"])
    assert difference["low"] < difference["value"] < difference["high"]
    assert section["ways"]["colours matched"]["prepared"] == "by Reinhard"
    json.dumps(section, allow_nan=False)
    page = render_template(
        PART, {}, section=section, figures={"transfer": "data:,", "transfer_confusion": "data:,"}
    )
    assert "BAS (basophil" in page
    assert "BLA, NIF, PMO" in page
    assert "by Reinhard" in page
    for figure in (draw_transfer(section), draw_transfer_confusion(section, "colours matched")):
        assert figure_bytes(figure, "png").startswith(b"\x89PNG")


def test_few_and_absent_classes_are_marked() -> None:
    predictions, theirs = make(40)
    chosen = [i for i, code in enumerate(theirs) if code != "MON"]
    chosen = [i for i in chosen if theirs[i] != "EOS" or i == theirs.index("EOS")]
    section = transfer_section(
        {"as it is": predictions.select(chosen)}, [theirs[i] for i in chosen], correspondence(SEVEN, TECOM),
        source="t", draws=100,
    )  # fmt: skip
    few = {row["name"]: (row["images"], row["is_few"]) for row in section["classes"]}
    assert few["eosinophil"] == (1, True)
    assert few["monocyte"] == (0, True)
    assert section["absent"] == ["monocyte"]
    assert section["differences"] == {}
    json.dumps(section, allow_nan=False)
    assert "Without an image" in render_template(PART, {}, section=section, figures={})


def test_degenerate_input_is_defined_or_named() -> None:
    predictions, theirs = make(30)
    common = correspondence(SEVEN, TECOM)
    sure = replace(predictions, logits=np.full((30, 7), -1000, np.float32))
    sure.logits[:, SEVEN.index("EOS")] = 1000
    one = theirs.index("LYT")
    section = transfer_section({"a": sure.select([one])}, ["LYT"], common, source="t", draws=20)
    assert section["ways"]["a"]["scores"]["metrics"]["accuracy"]["value"] == 0
    assert section["ways"]["a"]["probabilities"]["nll"]["value"] == pytest.approx(2000)
    assert section["ways"]["a"]["probabilities"]["nll"]["low"] is None, "one image has no interval"
    assert "no interval" in render_template(PART, {}, section=section, figures={})
    json.dumps(section, allow_nan=False)
    bas = [i for i, code in enumerate(theirs) if code == "BAS"]
    with pytest.raises(DataError, match=r"no image is of a class.*BAS"):
        transfer_section({"a": predictions.select(bas)}, ["BAS"] * len(bas), common, source="t")
    with pytest.raises(DataError, match="no answers"):
        transfer_section({}, theirs, common, source="t")
    with pytest.raises(DataError, match="b and a are not of the same images"):
        transfer_section(
            {"a": predictions, "b": predictions.select(range(29, -1, -1))}, theirs, common, source="t"
        )
    with pytest.raises(DataError, match="XYZ"):
        common.labels(["XYZ"])
    with pytest.raises(DataError, match="do not belong"):
        common.restricted(predictions, theirs[:3])


def test_pictures_are_matched_before_the_model_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the model called by hand on pictures changed by hand; labels in both sides' words."""
    for number, code in enumerate(("BAS", "LYT", "NEU", "MON", "EOS") * 2):
        path = tmp_path / "set" / code / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    images = image_folder.load(tmp_path / "set", TECOM, image_folder.Options())
    backbone = {
        "model_type": "dinov3_vit", "patch_size": 8, "image_size": 32, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    config = CytoDinoConfig(
        backbone_config=backbone, id2label=dict(enumerate(SEVEN.codes)), decoder_layers=1, decoder_heads=2
    )
    model = CytoDinoForImageClassification(config).eval()
    processor = CytoDinoImageProcessor(size={"height": 32, "width": 32})
    matching = Matching(gain=(0.8, 1.1, 1.2), offset=(9.0, 1.0, -2.0), scale=1.3, side_px=24)
    plain, matched = (
        score_elsewhere(
            model, processor, images, model_taxonomy=SEVEN, model_revision="r", matching=way, batch_size=3
        )
        for way in (None, matching)
    )
    pictures = [matching(read_rgb(images.root / path)) for path in images.column("path")]
    assert pictures[0].shape == (24, 24, 3)
    with torch.no_grad():
        wanted = model(processor(pictures, return_tensors="pt")["pixel_values"])
    np.testing.assert_allclose(matched.predictions.logits, wanted.logits, atol=1e-5)
    np.testing.assert_allclose(matched.embeddings, wanted.embedding, atol=1e-4)
    assert np.abs(plain.predictions.logits - matched.predictions.logits).max() > 1e-3
    assert plain.their_labels == [path.split("/")[0] for path in images.column("path")]
    mine = dict(zip(plain.their_labels, plain.predictions.labels.tolist(), strict=True))
    ours = {"BAS": None, "EOS": "EOS", "LYT": "LYT", "MON": "MON", "NEU": "NGS"}
    assert mine == {code: -1 if own is None else SEVEN.index(own) for code, own in ours.items()}
    assert plain.predictions.classes == SEVEN.codes
    trained_on = Appearance((60.0, 10.0, -20.0), (20.0, 12.0, 15.0), 13.0, side_px=24, images=3)
    theirs = replace(measure_appearance(images), nucleus_px=10.0)  # pictures this small show no nucleus
    monkeypatch.setattr(cytodino_hf.evaluation.transfer.elsewhere, "measure_appearance", lambda _: theirs)
    ways = score_all_ways(
        model,
        processor,
        images,
        trained_on,
        model_taxonomy=SEVEN,
        model_revision="r",
        colour=True,
        scale=True,
    )
    assert list(ways) == ["as it is", "colours matched", "scale matched", "colours and scale matched"]
    # In one batch, not in batches of three: equal but for rounding.
    np.testing.assert_allclose(ways["as it is"].predictions.logits, plain.predictions.logits, atol=1e-5)
    scaled = ways["scale matched"]
    assert scaled.matching is not None
    words = scaled.matching.in_words()
    assert words == "pictures resized by 1.300 (median diameter of nuclei 10.0 and 13.0 pixels)"
    assert [scaled.predictions.prepared, ways["as it is"].predictions.prepared] == [words, None]
    answers = [way.predictions.logits for way in ways.values()]
    assert all(np.abs(a - b).max() > 1e-4 for a, b in itertools.combinations(answers, 2))
    with pytest.raises(DataError, match=r"no appearance\.json beside it"):
        score_all_ways(model, processor, images, None, model_taxonomy=SEVEN, model_revision="r", scale=True)
    with pytest.raises(DataError, match="no images to score"):
        score_elsewhere(model, processor, images.select([]), model_taxonomy=SEVEN, model_revision="r")


@pytest.mark.real_data
def test_the_real_set_of_another_laboratory_is_read_in_its_own_words(real_data: Path) -> None:
    images = image_folder.load(real_data / "wbc_tecom", TECOM, image_folder.Options())
    assert images.counts() == {"BAS": 1, "EOS": 22, "LYT": 22, "MON": 22, "NEU": 22}
    assert len(correspondence(MLL, images.taxonomy).classes) == 5
