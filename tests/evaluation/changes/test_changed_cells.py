"""The comparison of two runs as a section: cells by hand, classes by SciPy, refusals, the page."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

import cytodino_hf.evaluation.report as report
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.changes.cells import COLUMNS, changed_cells, list_cells, write_changed_cells
from cytodino_hf.evaluation.changes.figures import draw_comparison
from cytodino_hf.evaluation.changes.section import comparison_section, seeds_section
from cytodino_hf.evaluation.changes.seed_intervals import image_cells
from cytodino_hf.evaluation.comparison import paired_differences
from cytodino_hf.evaluation.headlines import headlines
from cytodino_hf.evaluation.metrics import confusion_matrix
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.resampling import draw_weights
from cytodino_hf.evaluation.statistics import metric_intervals, wilson_interval
from cytodino_hf.evaluation.weighted_scorer import Scorer
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL

# BLA is critical; LYT and NGS are safe.
TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])
PARTS = Path(report.__file__).parent / "parts"


def say(labels: list[int], called: list[int], revision: str = "a", sure: float = 3.0) -> Predictions:
    n = len(labels)
    logits = np.zeros((n, 3), dtype=np.float32)
    logits[np.arange(n), called] = sure + 0.01 * np.arange(n)
    return Predictions(
        ids=[f"i{i}" for i in range(n)],
        paths=[f"BLA/{i}.png" for i in range(n)],
        sources=["s"] * n,
        groups=[None] * n,
        folds=["test"] * n,
        labels=np.array(labels),
        logits=logits,
        classes=TAXONOMY.codes,
        model_revision=revision,
    )


LABELS = [0, 0, 0, 1, 1, 2, 0, 2]
BEFORE = [0, 1, 0, 1, 0, 1, 2, 2]
AFTER = [1, 0, 0, 2, 1, 0, 1, 2]


def test_cells_stand_by_kind_the_dangerous_ones_first() -> None:
    ours, other = say(LABELS, AFTER, "b"), say(LABELS, BEFORE)
    changed = changed_cells(ours, other, TAXONOMY)
    # 0: blast now called lymphocyte; 3: lost; 5 and 6 (safe before and now): other mistakes; 1, 4: gained.
    assert changed.rows.tolist() == [0, 3, 6, 5, 4, 1]
    assert changed.kinds == ("newly dangerous", "lost", "other mistake", "other mistake", "gained", "gained")
    assert changed.counts()["gained"] == 2
    first = next(iter(list_cells(changed, ours, other)))
    assert (first["id"], first["true"], first["before"], first["after"]) == ("i0", "BLA", "BLA", "LYT")
    assert first["confidence_after"] == pytest.approx(np.exp(3) / (np.exp(3) + 2))


def test_a_blast_no_longer_called_safe_but_still_wrong_is_named() -> None:
    both = MLL.subset(["BLA", "LYT", "PEB"])  # PEB is neither critical nor safe
    ours, other = (
        replace(say([0], [called]), classes=both.codes)
        for called in (both.codes.index("PEB"), both.codes.index("LYT"))
    )
    assert changed_cells(ours, other, both).kinds == ("no longer dangerous",)


def test_the_csv_holds_all_and_no_formula(tmp_path: Path) -> None:
    ours, other = say(LABELS, AFTER), say(LABELS, BEFORE)
    ours = replace(ours, paths=["=cmd()", *ours.paths[1:]])
    turned = other.select(np.arange(8)[::-1])
    assert write_changed_cells(tmp_path / "deep" / "cells.csv", ours, turned, TAXONOMY) == 6
    with open(tmp_path / "deep" / "cells.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert rows[0]["path"] == "./=cmd()"
    assert [row["id"] for row in rows] == ["i0", "i3", "i6", "i5", "i4", "i1"]


def noisy(seed: int, skill: float, n: int = 150) -> Predictions:
    labels = np.arange(n) % 3
    logits = np.random.default_rng(seed).normal(0, 1, (n, 3))
    logits[np.arange(n), labels] += skill
    return replace(say(labels.tolist(), labels.tolist(), f"seed {seed}"), logits=logits.astype(np.float32))


def test_classes_are_tested_each_and_corrected_together() -> None:
    ours, other = noisy(1, 2.5), noisy(2, 0.7)
    section = comparison_section(ours, other, TAXONOMY, draws=200, limit=3)
    raw = []
    for label, row in enumerate(section["per_class"]):
        mine = ours.labels == label
        a, b = (p.predicted[mine] == label for p in (ours, other))
        gained, lost = int((a & ~b).sum()), int((b & ~a).sum())
        assert (row["change"]["gained"], row["change"]["lost"], row["n"]) == (gained, lost, 50)
        raw.append(binomtest(gained, gained + lost).pvalue)
        assert row["change"]["p"] == pytest.approx(raw[-1])
    corrected = sorted(row["change"]["p_holm"] for row in section["per_class"])
    expected = np.minimum(1, np.maximum.accumulate(np.sort(raw) * [3, 2, 1]))
    assert corrected == pytest.approx(expected.tolist())
    assert section["metrics"]["accuracy"]["verdict"] == "better"
    assert section["metrics"]["nll"]["verdict"] == "better"
    assert section["metrics"]["accuracy"]["value"] == pytest.approx(section["accuracy"]["value"])
    assert len(section["cells"]) == 3
    assert section["changed"]["cells"] == int((ours.predicted != other.predicted).sum())
    json.dumps(section, allow_nan=False)
    worse = comparison_section(other, ours, TAXONOMY, draws=200)
    assert worse["metrics"]["accuracy"]["verdict"] == "worse"
    same = comparison_section(ours, ours, TAXONOMY, draws=100)
    assert {entry["verdict"] for entry in same["metrics"].values()} == {"unclear"}
    assert same["cells"] == []


def test_groups_are_drawn_whole_and_rare_classes_are_marked() -> None:
    ours, other = noisy(1, 2.5), noisy(2, 0.7)
    groups = [f"p{i // 10}" for i in range(150)]
    whole = comparison_section(
        replace(ours, groups=groups), replace(other, groups=groups), TAXONOMY, draws=100
    )
    assert whole["groups"] == 15
    assert "groups" in whole["per_class"][0]["change"]["method"]
    few = [i for i in range(150) if i % 3 == 1 or i < 6]
    section = comparison_section(ours.select(few), other.select(few), TAXONOMY, draws=100)
    assert [row["is_few"] for row in section["per_class"]] == [True, False, True]
    gone = [i for i in range(150) if i % 3]
    section = comparison_section(ours.select(gone), other.select(gone), TAXONOMY, draws=100)
    assert section["per_class"][0]["change"] is None
    assert "critical_to_safe" not in section["metrics"]
    json.dumps(section, allow_nan=False)


def test_draws_of_groups_without_a_critical_cell_say_nothing_of_it() -> None:
    ours, other = noisy(1, 1.5), noisy(2, 0.7)
    # Of four patients who share the other classes two have the blasts: of a hundred draws six hold none.
    some = [row for row in range(150) if row < 60 or ours.labels[row]]
    groups = [
        f"p{row % 2 if label == 0 else row // 3 % 4}" for row, label in enumerate(ours.labels[some].tolist())
    ]
    pair = [replace(p.select(some), groups=groups) for p in (ours, other)]
    weights = np.concatenate(list(draw_weights(pair[0].labels, groups, 200, 0)))
    assert (weights[:, pair[0].labels == 0].sum(1) == 0).any()
    section = comparison_section(*pair, TAXONOMY, draws=200)
    found = section["metrics"]["critical_to_safe"]
    assert found["low"] <= found["value"] <= found["high"]
    json.dumps([section, seeds_section({"a": pair[:1]}, TAXONOMY, draws=200)], allow_nan=False)


def test_other_test_sets_are_refused() -> None:
    with pytest.raises(DataError, match="not of the same test images"):
        comparison_section(noisy(1, 2), noisy(2, 2, 120), TAXONOMY)
    nobody = replace(noisy(1, 2), labels=np.full(150, -1))
    with pytest.raises(DataError, match="no image has a label"):
        comparison_section(nobody, nobody, TAXONOMY)


def test_the_summary_over_seeds() -> None:
    ours, other = [noisy(seed, 2.0) for seed in (1, 2, 3)], [noisy(9, 1.0)]
    section = seeds_section({"ours": ours, "other": other}, TAXONOMY, draws=300)
    found = section["systems"]["ours"]["metrics"]["accuracy"]
    values = [float((p.predicted == p.labels).mean()) for p in ours]
    assert found["values"] == pytest.approx(values)
    assert (found["mean"], found["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert found["low"] < found["mean"] < found["high"] <= 1
    one = section["systems"]["other"]["metrics"]
    assert one["accuracy"]["sd"] is None
    # One seed: a normal interval of the draws, sqrt(p (1 - p) / n) wide but for the strata.
    p = one["accuracy"]["mean"]
    half = (one["accuracy"]["high"] - one["accuracy"]["low"]) / 2
    assert half == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 150), rel=0.2)
    both = paired_differences(ours, other, TAXONOMY, ["nll"], draws=100)["nll"]
    assert (section["systems"]["ours"]["metrics"]["nll"]["mean"], one["nll"]["mean"]) == pytest.approx(
        (both.ours, both.other)
    )
    json.dumps(section, allow_nan=False)
    with pytest.raises(DataError, match="no predictions"):
        seeds_section({"ours": []}, TAXONOMY)


def test_ten_critical_cells_read_right_by_all_seeds_are_no_certainty() -> None:
    """Wilson's interval of 0 of 10 ends at 27.8 %; seeds that all agree cannot make it surer."""
    labels = [0] * 10 + [1] * 15 + [2] * 15
    noise = [np.random.default_rng(seed).normal(0, 0.3, (40, 3)) for seed in range(3)]
    right = [replace(p, logits=p.logits + n.astype(np.float32)) for n in noise for p in [say(labels, labels)]]
    section = seeds_section({"run": right}, TAXONOMY, draws=100)
    found = section["systems"]["run"]["metrics"]
    rate = found["critical_to_safe"]
    assert (rate["mean"], rate["sd"], rate["low"], rate["n"]) == (0.0, 0.0, 0.0, 10)
    assert rate["high"] == pytest.approx(wilson_interval(0, 10).high)
    for name in ("accuracy", "macro_f1", "balanced_accuracy"):
        assert (found[name]["mean"], found[name]["high"], found[name]["n"]) == (1.0, 1.0, 40)
        assert 0.8 < found[name]["low"] < 0.99
    sure = [replace(p, logits=(p.logits > 2).astype(np.float32) * 1000) for p in right]
    section = seeds_section({"run": sure}, TAXONOMY, draws=100)
    cell = section["systems"]["run"]["metrics"]["nll"]
    assert (cell["mean"], cell["low"], cell["high"]) == (0.0, None, None)
    assert "no interval" in render_template(PARTS / "seeds.html", {}, section=section)
    json.dumps(section, allow_nan=False)


def test_seeds_that_misread_other_images_make_the_mean_surer() -> None:
    """Independent mistakes of four seeds: the part of the images is half as wide as of one seed."""
    rng = np.random.default_rng(5)
    labels = np.arange(400) % 3

    def misread() -> Predictions:
        called = np.where(rng.random(400) < 0.8, labels, (labels + 1) % 3)
        return say(labels.tolist(), called.tolist())

    one = misread()
    matrix = confusion_matrix(labels, one.predicted, 3)
    alone = metric_intervals(matrix, draws=400, seed=0)["accuracy"]
    same = seeds_section({"a": [one] * 4}, TAXONOMY, ("accuracy",), draws=400)["systems"]["a"]["metrics"][
        "accuracy"
    ]
    assert (same["low"], same["high"]) == pytest.approx((alone.low, alone.high), abs=1e-9)
    four = [misread() for _ in range(4)]
    scorers = [Scorer(each, TAXONOMY, None) for each in four]
    cell = image_cells(four, scorers, ["accuracy"], draws=400, seed=0, level=0.95)["accuracy"]
    assert cell["below"] + cell["above"] == pytest.approx((alone.high - alone.low) / 2, rel=0.15)


def test_the_page_shows_the_interval_its_verdict_goes_by() -> None:
    ours, other = noisy(1, 2.5), noisy(2, 0.7)
    section = comparison_section(ours, other, TAXONOMY, draws=100)
    assert section["metrics"]["critical_to_safe"]["n"] == 50
    row = section["metrics"]["macro_f1"]
    row |= {"low": 0.0111, "high": 0.0222}  # as were there seeds
    page = render_template(PARTS / "comparison.html", {}, section=section, figures={})
    assert f"{row['low_of_both']:+.3f} to {row['high_of_both']:+.3f}" in page
    assert "+0.011" not in page
    assert f"({row['low_of_both']:+.3f} to" in headlines({"comparison": section})[0]
    same = comparison_section(ours, ours, TAXONOMY, draws=100)
    page = render_template(PARTS / "comparison.html", {}, section=same, figures={})
    assert "no interval" in page
    assert "not clear: they differ in 0 images, fewer than 10" in page
    assert figure_bytes(draw_comparison(same), "svg")


def test_the_figure_and_the_page() -> None:
    section = comparison_section(
        noisy(1, 2.5), noisy(2, 0.7), TAXONOMY, names=("<b>us</b>", "them"), draws=100
    )
    figure = draw_comparison(section)
    metrics, recalls = figure.axes
    assert [label.get_text() for label in recalls.get_yticklabels()] == [
        "BLA  n=50",
        "LYT  n=50",
        "NGS  n=50",
    ]
    assert len(metrics.get_yticklabels()) == len(section["metrics"]) - 1
    assert figure_bytes(figure, "svg") == figure_bytes(draw_comparison(section), "svg")
    page = render_template(PARTS / "comparison.html", {}, section=section, figures={"comparison": "data:x"})
    assert "&lt;b&gt;us&lt;/b&gt;" in page
    assert 'src="data:x"' in page
    assert "<b>us" not in page
