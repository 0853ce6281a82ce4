"""The section of further metrics: what it holds, its intervals by groups, and degenerate folds."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf import evaluation
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.scalar_metrics import SENSITIVITY, scalar_metrics
from cytodino_hf.evaluation.statistics import wilson_interval
from cytodino_hf.evaluation.summary import metrics_section
from cytodino_hf.taxonomy import MLL, CellClass, Taxonomy

PAIR = MLL.subset(["BLA", "LYT"])


def make(
    taxonomy: Taxonomy, n: int, groups: list[str | None] | None = None, skill: float = 2.0
) -> Predictions:
    rng = np.random.default_rng(n)
    labels = np.arange(n) % len(taxonomy)
    logits = rng.normal(size=(n, len(taxonomy)))
    logits[np.arange(n), labels] += skill
    return Predictions(
        ids=[f"i{i}" for i in range(n)],
        paths=[""] * n,
        sources=["s"] * n,
        groups=groups or [None] * n,
        folds=["test"] * n,
        labels=labels,
        logits=logits.astype(np.float32),
        classes=taxonomy.codes,
        model_revision="r",
        group_kind="patient" if groups else None,
    )


def test_values_are_those_of_the_single_metrics_and_each_has_an_interval() -> None:
    p = make(MLL, 21 * 60)
    section = metrics_section(p, MLL, MLL.codes, draws=100)
    expected = scalar_metrics(p.logits, p.labels, MLL)
    assert section["undefined"] == {}
    for name, row in section["metrics"].items():
        assert row["value"] == pytest.approx(expected[name]), name
        assert row["low"] < row["value"] < row["high"], name
        few = {"critical_to_safe": 480, "within_one_step": int((p.predicted != p.labels).sum())}
        assert row["n"] == few.get(name, 1260)
    assert section["binary"] is None
    assert "6 across lineages" in section["distance"]
    row = section["critical"][0]
    assert row["code"] == "ABE"
    interval = wilson_interval(row["mistakes"], 60)
    assert (row["of"], row["rate"], row["low"]) == (60, row["mistakes"] / 60, pytest.approx(interval.low))
    assert json.loads(json.dumps(section, allow_nan=False)) == section


def test_images_without_label_are_left_out_and_small_classes_marked() -> None:
    p = make(MLL, 21 * 4)
    half = replace(p, labels=np.where(np.arange(84) % 2, p.labels, -1))
    section = metrics_section(half, MLL, MLL.codes, draws=50)
    assert section["images"] == 42
    assert all(row["is_few"] for row in section["classes"])
    assert section["undefined"] == {"macro_f1_frequent": "no class has 50 images"}


def test_copies_in_groups_change_no_interval_of_a_ranking() -> None:
    once = make(PAIR, 120, [f"g{i}" for i in range(120)], skill=1.0)
    copies = np.repeat(np.arange(120), 4)
    many = once.select(copies)
    alone = metrics_section(once, PAIR, PAIR.codes, draws=500)
    grouped = metrics_section(many, PAIR, PAIR.codes, draws=500)
    blind = metrics_section(replace(many, groups=[None] * 480), PAIR, PAIR.codes, draws=500)
    assert (grouped["groups"], grouped["group_kind"], blind["groups"]) == (120, "patient", None)
    for name in ("auroc", "brier", "nll"):
        a, b, c = (s["binary"]["metrics"][name] for s in (alone, grouped, blind))
        assert (b["low"], b["high"]) == pytest.approx((a["low"], a["high"]), rel=1e-6)
        assert c["high"] - c["low"] == pytest.approx((a["high"] - a["low"]) / 2, rel=0.1)
    for name in ("cohen_kappa", "mean_distance", "critical_to_safe"):
        a, b, c = (s["metrics"][name] for s in (alone, grouped, blind))
        assert b["high"] - b["low"] == pytest.approx(a["high"] - a["low"], rel=0.12), name
        assert c["high"] - c["low"] < 0.6 * (a["high"] - a["low"]), name
    a, b = (s["binary"]["metrics"][SENSITIVITY] for s in (alone, grouped))
    assert (b["low"], b["high"]) == pytest.approx((a["low"], a["high"]), abs=0.05)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_few_images_give_numbers_or_reasons(n: int) -> None:
    section = metrics_section(make(PAIR, n), PAIR, PAIR.codes, draws=50)
    text = json.dumps(section, allow_nan=False)
    assert "NaN" not in text
    if n == 1:
        assert "one class" in section["undefined"]["macro_auroc"]
        assert "one class" in section["undefined"]["cohen_kappa"]
        assert section["binary"]["metrics"]["auroc"] is None
        assert section["binary"]["metrics"]["nll"]["low"] is None


def test_a_perfect_model_is_not_certain() -> None:
    section = metrics_section(make(PAIR, 60, skill=50.0), PAIR, PAIR.codes, draws=100)
    assert section["undefined"]["within_one_step"] == "no two classes lie one step apart"
    near = MLL.subset(["BLA", "PMO", "MYB"])
    perfect = metrics_section(make(near, 60, skill=50.0), near, near.codes, draws=50)
    assert perfect["undefined"]["within_one_step"] == "no image was mistaken"
    assert perfect["undefined"]["lineage_accuracy"] == "all classes share one lineage"
    for name in ("macro_auroc", "macro_auprc", "cohen_kappa", "lineage_accuracy"):
        row = section["metrics"][name]
        assert (row["value"], row["high"]) == (1.0, 1.0)
        assert row["low"] < 0.99, name
    sensitivity = section["binary"]["metrics"][SENSITIVITY]
    assert (sensitivity["value"], sensitivity["high"]) == (1.0, 1.0)
    assert sensitivity["low"] < 0.97


def called(taxonomy: Taxonomy, matrix: np.ndarray, groups: list[str | None] | None = None) -> Predictions:
    """Predictions of this confusion matrix, image by image in the order of its cells."""
    true, called_so = np.nonzero(matrix)
    counts = matrix[true, called_so]
    p = make(taxonomy, int(counts.sum()), groups)
    logits = np.eye(len(taxonomy), dtype=np.float32)[np.repeat(called_so, counts)]
    return replace(p, labels=np.repeat(true, counts), logits=logits)


def test_the_share_of_near_mistakes_rests_on_the_mistakes() -> None:
    cells = MLL.subset(["BLA", "PMO", "LYT"])
    blast, pro, lymph = (cells.codes.index(code) for code in ("BLA", "PMO", "LYT"))
    matrix = np.diag([60, 60, 60])
    matrix[lymph, lymph], matrix[blast, lymph] = 40, 3
    section = metrics_section(called(cells, matrix), cells, cells.codes, draws=50)
    row = section["metrics"]["within_one_step"]
    assert (row["value"], row["low"], row["n"]) == (0.0, 0.0, 3)
    assert row["high"] == pytest.approx(wilson_interval(0, 3).high)
    # The two classes of at least 50 images have 63 and 60
    assert section["metrics"]["macro_f1_frequent"]["n"] == 123
    matrix[blast, pro] = 3
    # All six mistakes from two groups: as sure as two images
    true, to = np.nonzero(matrix)
    groups: list[str | None] = []
    for cell in zip(true, to, strict=True):
        groups += [f"{cell}"] * int(matrix[cell]) if cell[0] != cell[1] else [None] * int(matrix[cell])
    grouped = metrics_section(called(cells, matrix, groups), cells, cells.codes, draws=500)
    alone = metrics_section(called(cells, matrix), cells, cells.codes, draws=500)
    a, b = (s["metrics"]["within_one_step"] for s in (alone, grouped))
    assert a["value"] == b["value"] == 0.5
    assert (a["n"], b["n"]) == (6, 6)
    assert b["high"] - b["low"] > 1.3 * (a["high"] - a["low"])


def test_no_distance_leaves_the_largest_possible() -> None:
    matrix = np.zeros((2, 2), dtype=int)
    matrix[0, 1] = matrix[1, 0] = 3
    row = metrics_section(called(PAIR, matrix), PAIR, PAIR.codes, draws=50)["metrics"]["mean_distance"]
    assert row["value"] == row["high"] == 2.0
    assert 0.5 < row["low"] < 2.0


def test_what_could_not_be_otherwise_is_no_number() -> None:
    same = Taxonomy("same", (CellClass("a", "a", "unknown"), CellClass("b", "b", "unknown")))
    section = metrics_section(make(same, 80), same, same.codes, draws=50)
    assert not {"lineage_accuracy", "mean_distance", "within_one_step"} & set(section["metrics"])
    assert section["undefined"]["lineage_accuracy"] == "all classes share one lineage"
    for name in ("mean_distance", "within_one_step"):
        assert "one step apart" in section["undefined"][name]
    # One lineage with an order: distances still say something.
    series = MLL.subset(["BLA", "PMO", "MYB"])
    section = metrics_section(make(series, 300), series, series.codes, draws=50)
    assert {"mean_distance", "within_one_step"} <= set(section["metrics"])
    assert "lineage_accuracy" in section["undefined"]
    alone = MLL.subset(["BLA"])
    section = metrics_section(make(alone, 20), alone, alone.codes, draws=50)
    assert section["metrics"] == {}
    assert set(section["undefined"].values()) == {"there is one class, so no image can be mistaken"}


def test_what_cannot_be_scored_is_refused() -> None:
    p = make(PAIR, 6)
    with pytest.raises(DataError, match="the taxonomy"):
        metrics_section(p, MLL, MLL.codes)
    with pytest.raises(DataError, match="no image has a label"):
        metrics_section(replace(p, labels=np.full(6, -1)), PAIR, PAIR.codes)


def test_34000_images_of_21_classes_take_a_few_seconds() -> None:
    p = make(MLL, 34_000)
    start = time.process_time()
    metrics_section(p, MLL, MLL.codes, draws=100)
    assert time.process_time() - start < 15  # measured 4 to 6 s on a busy machine, with 1,000 draws as well


def test_the_part_of_the_page_shows_every_number_and_every_reason() -> None:
    from cytodino_hf.page import render_template

    template = Path(evaluation.__file__).parent / "parts" / "metrics.html"
    for taxonomy, n in ((PAIR, 200), (MLL, 84), (PAIR, 1)):
        section = metrics_section(make(taxonomy, n), taxonomy, taxonomy.codes, draws=50)
        page = render_template(template, {}, section=section, figures={})
        for row in section["metrics"].values():
            assert f'{row["value"]:.3f} <span class="range">{row["low"]:.3f}\u2013{row["high"]:.3f}' in page
        for reason in section["undefined"].values():
            assert f"none: {reason}" in page
        assert page.count("chip warn") == sum(
            r["is_few"] for r in (*section["classes"], *section["critical"])
        )
        assert ("Sensitivity at 95 %" in page) == (taxonomy is PAIR)
