"""Mistakes to look at: which, in which order, with which names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.evaluation import report
from cytodino_hf.evaluation.galleries import draw_gallery, galleries_section
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL

# BLA is critical; LYT and NGS are safe.
TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])
PARTS = Path(report.__file__).parent / "parts"
SURE = [2.0, 1.0, 4.0, 3.0, 9.0, 5.0, 8.0]
LABELS, CALLED = [0, 0, 1, 0, 2, 1, -1], [1, 2, 0, 0, 2, 2, 0]


@pytest.fixture
def predictions() -> Predictions:
    logits = np.zeros((7, 3), dtype=np.float32)
    logits[np.arange(7), CALLED] = SURE
    return Predictions(
        ids=[f"i{i}" for i in range(7)],
        paths=[f"p{i}.png" for i in range(7)],
        sources=["s"] * 7,
        groups=[None] * 7,
        folds=["test"] * 7,
        labels=np.array(LABELS),
        logits=logits,
        classes=TAXONOMY.codes,
        model_revision="m",
    )


def test_the_surest_mistakes_come_first(predictions: Predictions) -> None:
    section = galleries_section(predictions, TAXONOMY)
    confident, dangerous = section["confident_mistakes"], section["dangerous_mistakes"]
    assert [cell["id"] for cell in confident["cells"]] == ["i5", "i2", "i0", "i1"]
    assert (confident["total"], confident["n"]) == (4, 6)
    assert [cell["id"] for cell in dangerous["cells"]] == ["i0", "i1"]
    assert (dangerous["total"], dangerous["n"]) == (2, 3)
    first = confident["cells"][0]
    assert (first["true"], first["predicted_name"]) == ("LYT", "segmented neutrophil")
    assert first["confidence"] == pytest.approx(np.exp(5) / (np.exp(5) + 2))
    assert len(galleries_section(predictions, TAXONOMY, limit=1)["confident_mistakes"]["cells"]) == 1
    json.dumps(section, allow_nan=False)


def test_pictures_and_page(predictions: Predictions) -> None:
    section = galleries_section(predictions, TAXONOMY)
    cells = section["confident_mistakes"]["cells"]
    pictures = [np.full((20 + int(cell["id"][1]), 30, 3), 40, np.uint8) for cell in cells]
    figure = draw_gallery(cells, pictures)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert words[:3] == ["lymphocyte", "→ segmented neutrophil", "99 %"]
    again = draw_gallery(cells, pictures)
    assert figure_bytes(figure, "png") == figure_bytes(again, "png")
    page = render_template(
        PARTS / "galleries.html", {}, section=section, figures={"confident_mistakes": "data:x"}
    )
    assert "2 of 3 critical cells" in page
    assert page.count("<img") == 1
    assert "segmented neutrophil" in page


def test_no_mistake_and_no_image(predictions: Predictions) -> None:
    for rows in ([3, 4], []):
        section = galleries_section(predictions.select(rows), TAXONOMY)
        assert all(gallery["cells"] == [] and gallery["total"] == 0 for gallery in section.values())
        assert "<img" not in render_template(PARTS / "galleries.html", {}, section=section, figures={})
