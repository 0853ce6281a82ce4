"""The section on calibration: before and after on the test fold, plain values only, groups and gaps named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.calibration.artifact import fit_calibration
from cytodino_hf.evaluation.calibration.figures import draw_reliability
from cytodino_hf.evaluation.calibration.halves import calibration_halves
from cytodino_hf.evaluation.calibration.intervals import share_interval, shifted_interval
from cytodino_hf.evaluation.calibration.section import calibration_section
from cytodino_hf.evaluation.comparison import bootstrap_intervals
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.probability_metrics import probability_metrics
from cytodino_hf.evaluation.statistics import wilson_interval
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL, Taxonomy

CELLS: Taxonomy = MLL.subset(["BLA", "LYT", "NGS", "ABE"])
PART = Path(__file__).parents[3] / "cytodino_hf" / "evaluation" / "parts" / "calibration.html"


def fold(name: str, n: int = 500, seed: int = 0, groups: list[str | None] | None = None) -> Predictions:
    """Answers of a model that is twice as sure as it should be; ABE has two images."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 2, 3], n)
    labels[:2] = 0
    logits = rng.normal(0, 1, (n, 4))
    logits[np.arange(n), labels] += 1.5
    ids = [f"{name}{i:04}" for i in range(n)]
    logits = (3 * logits).astype(np.float32)
    return Predictions(
        ids, ids, ["s"] * n, groups or [None] * n, [name] * n, labels, logits, CELLS.codes, "w1", "patient"
    )


def page(section: dict, figures: dict[str, str]) -> str:
    return render_template(PART, {}, section=section, figures=figures)


def test_before_and_after_are_those_of_the_metrics_and_after_is_better() -> None:
    calibration_fold, test = fold("calibration", seed=1), fold("test")
    calibration = fit_calibration(calibration_fold)
    section = calibration_section(test, calibration, calibration_fold, draws=300)
    json.dumps(section, allow_nan=False)
    before = probability_metrics(test.logits, test.labels)
    after = probability_metrics(calibration.apply(test.logits), test.labels)
    for name in before:
        row = section["metrics"][name]
        assert row["before"]["value"] == pytest.approx(before[name], rel=1e-9)
        assert row["after"]["value"] == pytest.approx(after[name], rel=1e-9)
        assert row["difference"]["value"] == pytest.approx(after[name] - before[name], abs=1e-9)
        assert row["difference"]["high"] < 0, "twice too sure is clearly mended"
        assert (row["before"]["low"], row["before"]["n"]) != (None, 0)
    scaled = calibration.apply(test.logits).argmax(axis=1)
    assert section["changed_answers"] == (scaled != test.predicted).sum()
    scaling, conformal = calibration_halves(calibration_fold)
    assert section["halves"] == {"seed": 0, "scaling": len(scaling), "conformal": len(conformal)}
    assert [row["code"] for row in section["per_class"] if row["few_images"]] == ["ABE"]
    right = int((test.predicted == test.labels).sum())
    assert section["metrics"]["accuracy"]["before"]["low"] == wilson_interval(right, 500).low


def test_intervals_are_those_of_the_comparison_module() -> None:
    """Same draws, same shift, same bias: another code path gives the same ends."""
    test = fold("test")
    section = calibration_section(test, None, draws=200, seed=4)
    expected = bootstrap_intervals([test], CELLS, draws=200, seed=4)
    for name, interval in expected.items():
        cell = section["metrics"][name]["before"]
        assert cell["high"] == pytest.approx(interval.high, abs=1e-9)
        assert cell["low"] == pytest.approx(interval.low, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("heat", [0.6, 1.0, 1.6])
def test_intervals_hold_the_truth(heat: float) -> None:
    """1,000 folds of 600 images of a model that is too modest, right, too sure; the truth is that of a million images.

    With logits 2.2 z + log prior for z ~ N(2.2 e_label, 1) the probabilities are exactly right at heat 1.
    """
    prior, repeats = np.array([0.4, 0.25, 0.2, 0.15]), 1000
    rng = np.random.default_rng(int(10 * heat))

    def world(n: int) -> Predictions:
        labels = np.repeat(np.arange(4), np.rint(prior * n).astype(int))
        logits = rng.normal(0, 1, (n, 4))
        logits[np.arange(n), labels] += 2.2
        logits = heat * (2.2 * logits + np.log(prior))
        ids = [str(i) for i in range(n)]
        return Predictions(
            ids, ids, ids, [None] * n, ["test"] * n, labels, logits.astype(np.float32), CELLS.codes, "w"
        )

    large = [calibration_section(world(250_000), None, draws=2)["metrics"] for _ in range(4)]
    truth = {name: np.mean([m[name]["before"]["value"] for m in large]) for name in large[0]}
    held = dict.fromkeys(truth, 0)
    for _ in range(repeats):
        found = calibration_section(world(600), None, draws=300)["metrics"]
        for name, value in truth.items():
            held[name] += found[name]["before"]["low"] <= value <= found[name]["before"]["high"]
    for name in ("nll", "brier", "accuracy"):
        assert 0.93 <= held[name] / repeats <= 0.97, (name, held)
    for name in ("ece", "ece_adaptive", "ece_classwise"):  # rather too long than too short
        assert held[name] / repeats >= 0.93, (name, held)


def test_without_a_calibration_fold_there_is_a_before_and_a_reason() -> None:
    section = calibration_section(fold("test"), None, draws=20)
    assert section["calibration"] is section["method"] is section["halves"] is None
    assert "no calibration fold" in section["reason"]
    assert section["metrics"]["ece"]["after"] is section["metrics"]["ece"]["difference"] is None
    assert section["reliability"]["after"] is None
    assert "no calibration fold" in page(section, {})


@pytest.mark.parametrize("rows", [[], [5]], ids=["no image", "one image"])
def test_almost_nothing_gives_no_invented_interval(rows: list[int]) -> None:
    section = calibration_section(
        fold("test").select(rows), fit_calibration(fold("calibration", seed=1)), draws=20
    )
    json.dumps(section, allow_nan=False)
    assert section["images"] == len(rows)
    if rows:
        assert section["metrics"]["nll"]["before"]["low"] is None
        assert "fewer than 20" in section["metrics"]["nll"]["before"]["method"]
        assert (
            section["metrics"]["accuracy"]["before"]["high"] > section["metrics"]["accuracy"]["before"]["low"]
        )
    else:
        assert section["metrics"] == {}
        assert draw_reliability(section) is None
        assert "No scored image has a label" in page(section, {})


def test_images_without_label_are_left_out_and_infinite_logits_refused() -> None:
    test = fold("test")
    labels = test.labels.copy()
    labels[::2] = -1
    assert calibration_section(replace(test, labels=labels), None, draws=5)["images"] == 250
    logits = test.logits.copy()
    logits[3, 1] = np.inf
    with pytest.raises(DataError, match="not finite"):
        calibration_section(replace(test, logits=logits), None, draws=5)


def test_copies_in_groups_do_not_narrow_the_intervals() -> None:
    """Ten copies of each image in a group of its own: intervals as of the images once."""
    once = fold("test", 120)
    copies = once.select(np.repeat(np.arange(120), 10))
    ids = [f"{name}-{i}" for i, name in enumerate(copies.ids)]
    grouped = replace(copies, ids=ids, groups=list(copies.ids))
    alone, together = (calibration_section(p, None, draws=400)["metrics"] for p in (once, grouped))
    for name in ("nll", "brier", "accuracy"):
        wide = [m[name]["before"]["high"] - m[name]["before"]["low"] for m in (alone, together)]
        assert wide[1] == pytest.approx(wide[0], rel=0.12), name


def test_shares_of_groups() -> None:
    hits = np.array([True, False, True, True])
    assert share_interval(hits[:0], []) is None
    plain = share_interval(hits, [None] * 4)
    assert plain is not None
    assert plain["low"] == wilson_interval(3, 4).low
    # All alike in each group: the two groups count as about two images; all right in two groups: as two.
    together = share_interval(np.repeat([True, True], 50), ["a"] * 50 + ["b"] * 50)
    assert together is not None
    assert (together["low"], together["high"]) == (wilson_interval(2, 2).low, 1.0)
    assert (together["n"], together["hits"]) == (100, 100)


def test_draws_without_a_value_are_left_out() -> None:
    cell = shifted_interval(1.0, np.array([0.5, np.nan, 1.5]), 50)
    assert cell["low"] == pytest.approx(0.525)
    assert shifted_interval(1.0, np.array([np.nan]), 50)["low"] is None


def test_the_page_part_shows_every_metric_and_escapes() -> None:
    calibration_fold = fold("calibration", seed=1)
    section = calibration_section(fold("test"), fit_calibration(calibration_fold), calibration_fold, draws=50)
    section["per_class"][0]["code"] = "<b>"
    text = page(section, {"reliability": "data:image/png;base64,AA"})
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    for words in (
        "Brier score",
        "equal mass",
        "Classwise",
        f"{section['halves']['scaling']} images for scaling",
        "data:image/png;base64,AA",
    ):
        assert words in text


def test_the_figure_is_drawn_with_and_without_scaling() -> None:
    calibration_fold, test = fold("calibration", seed=1), fold("test")
    for calibration in (fit_calibration(calibration_fold), None):
        figure = draw_reliability(calibration_section(test, calibration, draws=20))
        assert figure is not None
        assert len(figure.axes) == (4 if calibration else 2)
        assert figure_bytes(figure, "svg").startswith(b"<?xml")
