"""The map of embeddings: who is drawn, that neighbours stay neighbours, and what has no map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation import report
from cytodino_hf.evaluation.embedding_map import (
    MOST_POINTS,
    draw_embedding_map,
    embedding_section,
    stratified_rows,
)
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL

TAXONOMY = MLL.subset(["BLA", "LYT", "NGS", "PMO"])
PARTS = Path(report.__file__).parent / "parts"


@pytest.mark.parametrize(
    ("counts", "limit"), [((900, 90, 9, 1), 100), ((50, 50, 50, 50), 7), ((3, 2, 1, 1), 50)]
)
def test_rows_are_stratified(counts: tuple[int, ...], limit: int) -> None:
    labels = np.repeat([-1, 0, 1, 2, 3], [5, *counts])
    rows = stratified_rows(labels, limit, seed=1)
    drawn = np.bincount(labels[rows], minlength=4)
    assert len(rows) == min(limit, sum(counts))
    assert len(set(rows.tolist())) == len(rows)
    assert (np.diff(rows) > 0).all()
    assert (drawn >= np.minimum(counts, 1)).all()
    assert (drawn <= counts).all()
    assert (np.diff(drawn) <= 1).all()  # a more frequent class never has fewer, but for rounding
    np.testing.assert_array_equal(rows, stratified_rows(labels, limit, seed=1))


def test_rare_classes_are_drawn_whole() -> None:
    labels = np.repeat([0, 1, 2], [10_000, 100, 6])
    drawn = np.bincount(labels[stratified_rows(labels, 300)])
    assert drawn[2] == 6
    assert drawn[1] >= 20
    assert drawn.sum() == 300


@pytest.fixture(scope="module")
def cloud() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    centres = 8 * np.eye(4, 60)
    return (centres[labels] + rng.normal(0, 1, (120, 60))).astype(np.float32), labels


def test_neighbours_stay_neighbours(cloud: tuple) -> None:
    embeddings, labels = cloud
    section = embedding_section(embeddings, labels, TAXONOMY)
    points = np.array(section["points"])
    assert points.shape == (120, 3)
    assert points[:, 2].tolist() == labels.tolist()
    distance = ((points[:, None, :2] - points[None, :, :2]) ** 2).sum(2) + 1e9 * np.eye(120)
    assert (labels[distance.argmin(1)] == labels).mean() > 0.95
    kept = PCA(50).fit(embeddings.astype(np.float64)).explained_variance_ratio_.sum()
    assert section["explained"] == pytest.approx(kept, rel=1e-6)
    assert section == embedding_section(embeddings, labels, TAXONOMY)
    json.dumps(section, allow_nan=False)


def test_a_limit_and_unknown_labels(cloud: tuple) -> None:
    embeddings, labels = cloud
    labels = np.where(np.arange(120) < 20, -1, labels)
    section = embedding_section(embeddings, labels, TAXONOMY, limit=40)
    assert (section["images"], len(section["points"])) == (100, 40)
    assert MOST_POINTS == 5000


def test_what_has_no_map_says_why(cloud: tuple) -> None:
    embeddings, labels = cloud
    few = embedding_section(embeddings[:9], labels[:9], TAXONOMY)
    assert few["points"] == []
    assert "9 images" in few["why"]
    assert "all embeddings are the same" in embedding_section(np.ones((20, 5)), labels[:20], TAXONOMY)["why"]
    page = render_template(PARTS / "embeddings.html", {}, section=few, figures={})
    assert "No map: 9 images" in page
    one_class = embedding_section(embeddings[:12], np.zeros(12, dtype=int), TAXONOMY)
    assert np.isfinite(one_class["points"]).all()
    one_column = embedding_section(embeddings[:30, :1], labels[:30], TAXONOMY)
    assert np.isfinite(one_column["points"]).all()
    with pytest.raises(DataError, match="do not belong together"):
        embedding_section(embeddings, labels[:5], TAXONOMY)
    broken = embeddings.copy()
    broken[3, 3] = np.nan
    with pytest.raises(DataError, match="not finite"):
        embedding_section(broken, labels, TAXONOMY)


def test_the_figure_and_the_page(cloud: tuple) -> None:
    section = embedding_section(*cloud, TAXONOMY)
    by_class, by_lineage = (draw_embedding_map(section, by) for by in ("class", "lineage"))
    lines = {line.get_label(): line for line in by_class.axes[0].get_lines()}
    assert set(lines) == {f"{code}  n=30" for code in TAXONOMY.codes}
    # BLA, NGS and PMO are of one lineage: one colour, three markers.
    family = [lines[f"{code}  n=30"] for code in ("BLA", "NGS", "PMO")]
    assert len({line.get_color() for line in family}) == 1
    assert len({line.get_marker() for line in family}) == 3
    assert [text.get_text() for text in by_class.axes[0].texts] == list(TAXONOMY.codes)
    names = [line.get_label() for line in by_lineage.axes[0].get_lines()]
    assert names == ["granulocytic  n=90", "lymphoid  n=30"]
    assert figure_bytes(by_class, "png") == figure_bytes(draw_embedding_map(section, "class"), "png")
    figures = {"embeddings_by_class": "data:a", "embeddings_by_lineage": "data:b"}
    page = render_template(PARTS / "embeddings.html", {}, section=section, figures=figures)
    assert "120 of 120 labelled images" in page
    assert page.count("<img") == 2
