"""Copies across folds, stain and class counts: by hand and with plain NumPy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t

from cytodino_hf.data.inspection.scan import scan_images
from cytodino_hf.data.sources import SOURCES
from cytodino_hf.data.stain import optical_density
from cytodino_hf.evaluation import report
from cytodino_hf.evaluation.data_questions.copies import copies_section
from cytodino_hf.evaluation.data_questions.section import (
    class_counts,
    data_questions_section,
    draw_class_counts,
)
from cytodino_hf.evaluation.data_questions.stain import draw_stain, stain_rows, stain_section
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL

TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])
PARTS = Path(report.__file__).parent / "parts"
FOLDS = ["train", "test", "test", "train", "validation", "test", "train", None]
LABELS = [0, 0, 1, 1, 1, 2, 2, 0]


def test_copies_across_folds_are_counted() -> None:
    clusters = [[3, 6], [0, 1, 2], [4, 5]]
    found = copies_section(clusters, FOLDS, LABELS, [f"{i}.png" for i in range(8)], TAXONOMY.codes)
    assert (found["clusters"], found["images_in_clusters"], found["images"]) == (3, 7, 8)
    assert (found["across_folds"], found["under_two_labels"]) == (2, 3)
    assert found["pairs_of_folds"] == {"test, train": 1, "test, validation": 1}
    # Of three test images two have a copy in the training fold; of one validation image none.
    assert (found["leaks"]["test"]["images"], found["leaks"]["test"]["n"]) == (2, 3)
    assert found["leaks"]["test"]["value"] == pytest.approx(2 / 3)
    assert (found["leaks"]["validation"]["images"], found["leaks"]["validation"]["n"]) == (0, 1)
    assert [entry["folds"] for entry in found["listed"]] == [
        ["test", "train"],
        ["test", "validation"],
        ["train"],
    ]
    nothing = copies_section([], FOLDS, LABELS, ["x"] * 8, TAXONOMY.codes)
    assert (nothing["clusters"], nothing["leaks"]["test"]["images"]) == (0, 0)
    assert copies_section([], [], [], [], TAXONOMY.codes)["leaks"] == {}


def test_copies_are_found_in_files(make_images: Callable[..., Path], tmp_path: Path) -> None:
    root = make_images(tmp_path / "cells", per_class=3)
    picture = Image.open(root / "BLA" / "BLA_00001.png")
    picture.save(root / "LYT" / "LYT_00009.png")
    images = SOURCES["image_folder"].load(root, MLL, SOURCES["image_folder"].options())
    (cluster,) = scan_images(images).duplicates.clusters()
    assert [images.column("path")[row] for row in cluster] == ["BLA/BLA_00001.png", "LYT/LYT_00009.png"]


def test_samples_are_even_and_the_same_twice() -> None:
    sources, folds = ["a"] * 50 + ["b"] * 5, ["train"] * 30 + ["test"] * 20 + [None] * 5
    rows = stain_rows(sources, folds, per_fold=7)
    assert rows == stain_rows(sources, folds, per_fold=7)
    assert [sum(low <= row < high for row in rows) for low, high in ((0, 30), (30, 50), (50, 55))] == [
        7,
        7,
        5,
    ]
    assert stain_rows([], []) == []


def test_stain_is_that_of_numpy() -> None:
    rng = np.random.default_rng(0)
    # Of one size, and alike within each block of 4 x 4: the sample of pixels is the picture.
    pictures = [
        rng.integers(90 + 10 * i, 200, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1) for i in range(6)
    ]
    folds = ["train"] * 4 + ["test"] * 2
    section = stain_section(pictures.__getitem__, ["s"] * 6, folds)
    train, test = section["rows"]
    assert (train["fold"], train["images"], test["images"]) == ("train", 4, 2)
    for measure, turn in (("rgb", np.asarray), ("od", optical_density)):
        values = np.stack([turn(picture) for picture in pictures]).astype(np.float64)
        means = values.mean(axis=(1, 2))
        for channel, name in enumerate(("red", "green", "blue")):
            found = train[measure][name]
            mine = means[:4, channel]
            assert found["mean"] == pytest.approx(mine.mean(), rel=1e-5)
            assert found["sd"] == pytest.approx(values[:4, ..., channel].std(), rel=1e-4)
            assert found["sd_of_images"] == pytest.approx(mine.std(ddof=1), rel=1e-4)
            half = t.ppf(0.975, 3) * mine.std(ddof=1) / 2
            assert found["high"] - found["mean"] == pytest.approx(half, rel=1e-4)
            assert found["shift"] is None
            shift = (means[4:, channel].mean() - mine.mean()) / mine.std(ddof=1)
            assert test[measure][name]["shift"] == pytest.approx(shift, rel=1e-4)
    json.dumps(section, allow_nan=False)


def test_copies_in_groups_do_not_narrow_the_mean() -> None:
    pictures = [np.full((4, 4, 3), 100 + 20 * i, np.uint8) for i in range(5)]
    once = stain_section(pictures.__getitem__, ["s"] * 5, ["train"] * 5)
    groups = [f"g{i // 4}" for i in range(20)]
    many = stain_section(lambda row: pictures[row // 4], ["s"] * 20, ["train"] * 20, groups)
    for key in ("mean", "low", "high"):
        assert many["rows"][0]["rgb"]["red"][key] == pytest.approx(once["rows"][0]["rgb"]["red"][key])


def test_one_image_has_no_interval_and_equal_images_no_shift() -> None:
    same = np.full((4, 4, 3), 128, np.uint8)
    section = stain_section(lambda _: same, ["s"] * 4, ["train", "train", "train", "test"])
    train, test = section["rows"]
    assert test["rgb"]["red"] == {
        "mean": 128.0, "low": None, "high": None, "sd": 0.0, "sd_of_images": None, "shift": None,
    }  # fmt: skip
    assert train["rgb"]["red"]["low"] == train["rgb"]["red"]["high"] == 128.0
    assert stain_section(lambda _: same, [], [])["rows"] == []
    figure = draw_stain(section)
    assert len(figure.axes) == 2
    assert figure_bytes(figure, "svg") == figure_bytes(draw_stain(section), "svg")


COUNTS = {
    "train": {"BLA": 4, "LYT": 100, "NGS": 0},
    "validation": {"BLA": 0, "LYT": 0, "NGS": 0},
    "test": {"BLA": 1, "LYT": 30, "NGS": 0},
}


def test_class_counts_mark_what_is_rare() -> None:
    counts = class_counts(COUNTS, TAXONOMY)
    assert counts["folds"] == ["train", "test"]
    assert (counts["images"], counts["most"], counts["least"], counts["imbalance"]) == (
        135,
        "LYT",
        "BLA",
        26.0,
    )
    assert [row["has_few_test_images"] for row in counts["classes"]] == [True, False, True]
    assert counts["classes"][1]["share"] == pytest.approx(130 / 135)
    figure = draw_class_counts(counts)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["LYT  130", "BLA  5"]
    nothing = class_counts({"train": {}}, TAXONOMY)
    assert (nothing["images"], nothing["imbalance"], nothing["classes"][0]["share"]) == (0, None, None)


def test_the_page_says_what_nobody_looked_at() -> None:
    bare = data_questions_section(COUNTS, TAXONOMY)
    assert len(bare["gaps"]) == 3
    page = render_template(PARTS / "data.html", {}, section=bare, figures={})
    assert "Labels were not audited" in page
    assert "Fewer than 5 test images: BLA, NGS" in page
    whole = data_questions_section(
        COUNTS,
        TAXONOMY,
        copies=copies_section([[0, 1]], FOLDS, LABELS, ["<b>.png"] * 8, TAXONOMY.codes),
        stain=stain_section(lambda row: np.full((4, 4, 3), 20 * row, np.uint8), ["s"] * 8, FOLDS),
    )
    page = render_template(PARTS / "data.html", {}, section=whole, figures={"stain": "data:x"})
    assert "&lt;b&gt;.png" in page
    assert "1 of 3" in page
    empty = data_questions_section({}, TAXONOMY)
    assert "There is no image" in render_template(PARTS / "data.html", {}, section=empty, figures={})
