"""ROC curves: values by scikit-learn, intervals by DeLong's formula written out, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation import report
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.roc_curves import (
    CURVE_POINTS,
    draw_roc_curves,
    positive_labels,
    positive_scores,
    roc_section,
)
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL, CellClass, Taxonomy

# BLA is critical.
TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])
PARTS = Path(report.__file__).parent / "parts"


def say(skill: float, seed: int, n: int = 900) -> Predictions:
    labels = np.arange(n) % 3
    logits = np.random.default_rng(seed).normal(0, 1, (n, 3))
    logits[np.arange(n), labels] += skill
    return Predictions(
        ids=[f"i{i}" for i in range(n)],
        paths=[f"{i}.png" for i in range(n)],
        sources=["s"] * n,
        groups=[None] * n,
        folds=["test"] * n,
        labels=labels,
        logits=logits.astype(np.float32),
        classes=TAXONOMY.codes,
        model_revision=f"seed {seed}",
    )


def placements(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's structural components, by comparing every pair."""
    wins = np.sign(scores[positive][:, None] - scores[~positive][None, :]) / 2 + 0.5
    return wins.mean(1), wins.mean(0)


def test_areas_and_differences() -> None:
    runs = {"ours": say(1.6, 1), "theirs": say(0.8, 2).select(np.arange(900)[::-1])}
    section = roc_section(runs, TAXONOMY)
    assert (section["positive"], section["positives"], section["n"]) == (["BLA"], 300, 900)
    parts = []
    for curve, run in zip(section["curves"], (runs["ours"], say(0.8, 2)), strict=True):
        positive = run.labels == 0
        p = run.probabilities[:, 0]
        assert curve["auroc"]["value"] == pytest.approx(roc_auc_score(positive, p), abs=1e-6)
        parts.append(placements(positive_scores(run.logits, (0,)), positive))
        error = np.sqrt(parts[-1][0].var(ddof=1) / 300 + parts[-1][1].var(ddof=1) / 600)
        width = curve["auroc"]["high"] - curve["auroc"]["low"]
        assert width == pytest.approx(2 * 1.96 * error, rel=0.05)
        points = np.array(curve["points"])
        assert len(points) <= CURVE_POINTS
        assert points[0].tolist() == [0, 0]
        assert points[-1].tolist() == [1, 1]
        assert (np.diff(points, axis=0) >= 0).all()
        # Leaving out corners takes little from under the curve.
        assert np.trapezoid(points[:, 1], points[:, 0]) == pytest.approx(curve["auroc"]["value"], abs=0.005)
    difference = section["curves"][1]["difference"]
    ones, zeros = (parts[1][side] - parts[0][side] for side in (0, 1))
    error = np.sqrt(ones.var(ddof=1) / 300 + zeros.var(ddof=1) / 600)
    assert difference["value"] == pytest.approx(ones.mean(), abs=1e-6)
    assert difference["high"] - difference["low"] == pytest.approx(2 * norm.ppf(0.975) * error, rel=0.03)
    json.dumps(section, allow_nan=False)


def test_scores_differ_where_probabilities_are_one() -> None:
    scores = positive_scores(np.array([[80.0, 0, 0], [90.0, 0, 0], [0, 800.0, 0]]), (0,))
    assert scores.tolist() == pytest.approx([80 - np.log(2), 90 - np.log(2), -800.0])


def test_two_equal_rankings_have_no_interval_of_their_difference() -> None:
    section = roc_section({"a": say(1.0, 1), "b": say(1.0, 1)}, TAXONOMY)
    difference = section["curves"][1]["difference"]
    assert (difference["value"], difference["low"], difference["high"]) == (0.0, None, None)
    page = render_template(
        Path(report.__file__).parent / "parts" / "roc.html", {}, section=section, figures={}
    )
    assert '+0.000 <span class="range">no interval' in page
    json.dumps(section, allow_nan=False)


def test_what_counts_as_positive() -> None:
    assert positive_labels(TAXONOMY) == (0,)
    plain = Taxonomy("plain", (CellClass("no", "no", "a"), CellClass("yes", "yes", "a")))
    assert positive_labels(plain) == (1,)
    first = Taxonomy("first", (CellClass("yes", "yes", "a", is_critical=True), CellClass("no", "no", "a")))
    assert positive_labels(first) == (0,)
    harmless = Taxonomy("harmless", tuple(CellClass(code, code, "any") for code in TAXONOMY.codes))
    assert "no critical class" in roc_section({"a": say(1, 1)}, harmless)["why"]


def test_degenerate_input_and_other_sets() -> None:
    ours = say(1, 1)
    section = roc_section({"a": ours.select(np.flatnonzero(ours.labels > 0))}, TAXONOMY)
    assert "0 of 600 test images are positive" in section["why"]
    assert "No curve" in render_template(PARTS / "roc.html", {}, section=section, figures={})
    perfect = say(50, 1, 60)
    area = roc_section({"a": perfect}, TAXONOMY)["curves"][0]["auroc"]
    assert area["value"] == area["high"] == 1.0
    assert 0.5 < area["low"] < 1
    with pytest.raises(DataError, match="not of the same test images"):
        roc_section({"a": ours, "b": say(1, 2, 300)}, TAXONOMY)


def test_copies_in_groups_do_not_narrow_the_interval() -> None:
    once = say(1.0, 3, 150)
    many = once.select(np.repeat(np.arange(150), 6))
    many = replace(many, ids=[f"c{i}" for i in range(900)], groups=[f"g{i // 6}" for i in range(900)])
    single, grouped = (roc_section({"a": run}, TAXONOMY)["curves"][0]["auroc"] for run in (once, many))
    assert grouped["value"] == pytest.approx(single["value"])
    assert grouped["high"] - grouped["low"] == pytest.approx(single["high"] - single["low"], rel=0.1)


def test_the_figure_and_the_page() -> None:
    section = roc_section({"<ours>": say(1.6, 1), "$x$": say(0.8, 2)}, TAXONOMY)
    figure = draw_roc_curves(section)
    lines = figure.axes[0].get_lines()
    assert len(lines) == 3
    assert lines[0].get_linestyle() != lines[1].get_linestyle()
    assert figure_bytes(figure, "svg") == figure_bytes(draw_roc_curves(section), "svg")
    page = render_template(PARTS / "roc.html", {}, section=section, figures={"roc_curves": "data:x"})
    assert "&lt;ours&gt;" in page
    assert "300 of 900 test images" in page
