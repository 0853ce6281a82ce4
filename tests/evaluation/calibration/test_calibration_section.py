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
from cytodino_hf.evaluation.calibration.intervals import (
    GroupCount,
    drawn_interval,
    mean_interval,
    share_interval,
)
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


def test_the_interval_of_the_calibration_error_is_that_of_the_comparison_module() -> None:
    """Same draws, same shift, same bias: another code path gives the same ends."""
    test = fold("test")
    cell = calibration_section(test, None, draws=200, seed=4)["metrics"]["ece"]["before"]
    interval = bootstrap_intervals([test], CELLS, ("ece",), draws=200, seed=4)["ece"]
    assert (cell["low"], cell["high"]) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_the_interval_of_a_mean_is_by_hand_that_of_its_logarithm() -> None:
    """Within classes, as images are drawn: variance n s^2 of each class; t is near normal for 500 images."""
    test = fold("test")
    cell = calibration_section(test, None, draws=5)["metrics"]["nll"]["before"]
    p = test.probabilities.astype(float)[np.arange(500), test.labels]
    nll = -np.log(p)
    variance = sum(
        np.var(nll[test.labels == k], ddof=1) * (test.labels == k).sum() / 500**2 for k in range(4)
    )
    half = 1.96 * np.sqrt(variance) / nll.mean()
    assert cell["low"] == pytest.approx(nll.mean() * np.exp(-half), rel=0.01)
    assert cell["high"] == pytest.approx(nll.mean() * np.exp(half), rel=0.01)


def test_both_scalings_are_shown_and_the_chosen_one_is_marked() -> None:
    calibration_fold, test = fold("calibration", seed=1), fold("test")
    calibration = fit_calibration(calibration_fold)
    assert set(calibration.tried) == {"temperature", "vector"}
    section = calibration_section(test, calibration, calibration_fold, draws=50)
    chosen = section["method"]
    assert [name for name, about in section["tried"].items() if about["is_chosen"]] == [chosen]
    for name, scaling in calibration.tried.items():
        expected = probability_metrics(scaling.apply(test.logits), test.labels)
        for metric, value in expected.items():
            row = section["metrics"][metric]
            assert row["tried"][name]["after"]["value"] == pytest.approx(value, rel=1e-9)
            if name == chosen:
                assert row["tried"][name] == {"after": row["after"], "difference": row["difference"]}
    text = page(section, {})
    assert f"after {'temperature' if chosen == 'temperature' else 'vector scaling'} (chosen)" in text
    assert text.count("(chosen)") == 1
    assert section["reason"] in text.replace("&#39;", "'")


def test_what_was_tried_is_shown_where_nothing_was_chosen() -> None:
    """Logits of a Bayes model: neither a temperature nor vector scaling helps, but both are reported."""

    def right(name: str, seed: int) -> Predictions:
        labels = np.arange(600) % 4
        logits = np.random.default_rng(seed).normal(0, 1, (600, 4))
        logits[np.arange(600), labels] += 1.5
        return replace(fold(name, 600), labels=labels, logits=(1.5 * logits).astype(np.float32))

    found = [fit_calibration(right("calibration", seed)) for seed in range(12)]
    calibration = next(one for one in found if one.scaling.method == "none")
    section = calibration_section(right("test", 99), calibration, draws=20)
    row = section["metrics"]["nll"]
    assert (row["after"], section["reliability"]["after"]) == (None, None)
    assert set(row["tried"]) == {"temperature", "vector"}
    assert row["tried"]["temperature"]["after"]["low"] is not None
    text = page(section, {})
    assert "Neither was chosen" in text
    assert "after temperature" in text


def test_vector_scaling_that_could_not_be_fitted_is_said_and_a_file_knows_the_chosen_one_alone() -> None:
    small = fold("calibration", 70, seed=1)
    calibration = fit_calibration(small)
    section = calibration_section(fold("test"), calibration, draws=5)
    assert set(section["tried"]) == {"temperature"}
    assert "fewer than two classes have the 20 images" in page(section, {})
    read = type(calibration).from_dict(fit_calibration(fold("calibration", seed=1)).to_dict())
    again = calibration_section(fold("test"), read, draws=5)
    assert set(again["tried"]) == {read.scaling.method}
    assert read.scaling.method != "none"
    assert again["vector_needs"] is None


@pytest.mark.slow
@pytest.mark.parametrize(("heat", "skill"), [(0.6, 2.2), (1.0, 2.2), (1.6, 2.2), (1.0, 3.5), (1.5, 3.5)])
def test_intervals_hold_the_truth(heat: float, skill: float) -> None:
    """1,000 folds of 600 images of a model that is too modest, right, too sure; the truth is that of a million images.

    With logits s z + log prior for z ~ N(s e_label, 1) the probabilities are exactly right at heat 1. With a skill s of
    3.5, 1.8 % are wrong.
    """
    prior, repeats = np.array([0.4, 0.25, 0.2, 0.15]), 1000
    rng = np.random.default_rng(int(10 * heat))

    def world(n: int) -> Predictions:
        labels = np.repeat(np.arange(4), np.rint(prior * n).astype(int))
        logits = rng.normal(0, 1, (n, 4))
        logits[np.arange(n), labels] += skill
        logits = heat * (skill * logits + np.log(prior))
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
    # Rather too long than too short: near a truth of 0 every interval that begins at 0 holds it.
    for name in ("ece", "ece_adaptive", "ece_classwise"):
        assert held[name] / repeats >= 0.94, (name, held)
    if skill == 2.2 and heat != 1.0:
        assert max(held["ece"], held["ece_adaptive"]) / repeats <= 0.995, held


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
    cell = drawn_interval(1.0, np.array([0.5, np.nan, 1.5]), 50)
    assert cell["low"] == pytest.approx(0.525)
    assert drawn_interval(1.0, np.array([np.nan]), 50)["low"] is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_groups_give_no_interval(count: int) -> None:
    test = fold("test", 120, groups=[f"p{i % count}" for i in range(120)])
    calibration = fit_calibration(fold("calibration", seed=1))
    section = calibration_section(test, calibration, draws=50)
    json.dumps(section, allow_nan=False)
    for name in ("nll", "brier", "ece", "ece_adaptive", "ece_classwise"):
        for stage in ("before", "after", "difference"):
            cell = section["metrics"][name][stage]
            assert (cell["low"] is None) == (count < 3), (name, stage)
            assert ("groups are too few" in cell["method"]) == (count < 3)
    assert (section["per_class"][1]["before"]["low"] is None) == (count < 3)
    share = section["metrics"]["accuracy"]["before"]
    assert share["high"] - share["low"] > 0.1, "of one patient next to nothing is known"
    page(section, {})


def test_few_groups_widen_by_student_and_by_what_few_draws_miss() -> None:
    drawn = np.random.default_rng(0).normal(0, 1, 4000)
    cell = drawn_interval(5.0, drawn, 90, count=GroupCount(5, 4))
    assert cell["high"] - 5.0 == pytest.approx(2.776 * np.sqrt(5 / 4) * drawn.std(), rel=1e-3)
    assert "Student" in cell["method"]
    labels = np.repeat([0, 1], 50)
    assert GroupCount.of(labels, [None] * 100) is None
    assert GroupCount.of(labels, [f"g{i // 10}" for i in range(100)]) == GroupCount(10, 8)
    assert GroupCount.of(labels, [*"ab" * 40, *[None] * 20]) == GroupCount(22, 21)


@pytest.mark.parametrize(("right", "nll", "brier"), [(True, 0.0, 0.0), (False, 50.0, 2.0)])
def test_answers_that_are_all_alike_have_no_interval(right: bool, nll: float, brier: float) -> None:
    """100 images, each with confidence 1, all right or all wrong: nothing says how much others would differ."""
    labels = np.arange(100) % 4
    logits = 50 * np.eye(4, dtype=np.float32)[labels if right else (labels + 1) % 4]
    alike = replace(fold("test", 100), labels=labels, logits=logits)
    metrics = calibration_section(alike, None, draws=50)["metrics"]
    expected = {"nll": nll, "brier": brier, "ece": 0.0 if right else 1.0}
    for name, value in expected.items():
        cell = metrics[name]["before"]
        assert cell["value"] == pytest.approx(value, abs=1e-9)
        assert (cell["low"], cell["high"]) == (None, None)
        assert "no image differs" in cell["method"]
    assert 0.0 <= metrics["brier"]["before"]["value"] <= 2.0
    assert 0.0 <= metrics["ece"]["before"]["value"] <= 1.0
    share = metrics["accuracy"]["before"]
    assert share["high"] - share["low"] > 0.03


def test_a_number_stays_within_its_bounds() -> None:
    labels, alone = np.zeros(30, int), [None] * 30
    off = np.random.default_rng(0).normal(0, 0.4 / 30, 30)
    cell = mean_interval(1 + 3e-15, off - off.mean(), labels, alone, most=1.0)
    assert cell["value"] == cell["high"] == 1.0
    drawn = np.random.default_rng(0).normal(1, 0.1, 50)
    assert drawn_interval(1 + 3e-15, drawn, 30, bounds=(0.0, 1.0))["value"] == 1.0


@pytest.mark.parametrize("count", [3, 5, 10])
def test_shares_of_few_groups_hold_the_truth(count: int) -> None:
    """1,000 folds of so many patients of 40 images, each with a share of its own."""
    rng = np.random.default_rng(count)

    def of_patients(number: int) -> np.ndarray:
        return 1 / (1 + np.exp(-(1.5 + rng.normal(0, 0.8, (number, 1)))))

    truth, names = of_patients(400_000).mean(), [f"p{i // 40}" for i in range(40 * count)]
    held = 0
    for _ in range(1000):
        cell = share_interval((rng.random((count, 40)) < of_patients(count)).ravel(), names)
        assert cell is not None
        held += cell["low"] <= truth <= cell["high"]
    assert held / 1000 >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 5, 10])
def test_intervals_of_few_groups_hold_the_truth(count: int) -> None:
    """1,000 folds of so many patients of 40 images, harder or easier together; the truth is that of 6,000 patients."""
    rng = np.random.default_rng(count)

    def patients(number: int) -> Predictions:
        n = 40 * number
        labels = np.tile(np.arange(4), n // 4)
        logits = rng.normal(0, 1, (n, 4))
        logits[np.arange(n), labels] += 1.8 + np.repeat(rng.normal(0, 0.8, number), 40)
        ids = [str(i) for i in range(n)]
        groups = [f"p{i // 40}" for i in range(n)]
        logits = (1.5 * logits).astype(np.float32)
        return Predictions(ids, ids, ids, groups, ["test"] * n, labels, logits, CELLS.codes, "w", "patient")

    large = replace(patients(6000), groups=[None] * 240_000)
    truth = {
        n: row["before"]["value"] for n, row in calibration_section(large, None, draws=2)["metrics"].items()
    }
    held = dict.fromkeys(truth, 0)
    for _ in range(1000):
        found = calibration_section(patients(count), None, draws=200)["metrics"]
        for name, value in truth.items():
            held[name] += found[name]["before"]["low"] <= value <= found[name]["before"]["high"]
    for name in ("nll", "brier"):
        assert 0.92 <= held[name] / 1000 <= 0.97, (name, held)
    for name in ("ece", "ece_adaptive", "ece_classwise"):
        assert held[name] / 1000 >= 0.93, (name, held)


@pytest.mark.slow
@pytest.mark.parametrize("heat", [0.8, 2.2, 3.0])
def test_intervals_of_differences_hold_the_truth(heat: float) -> None:
    """1,000 folds of 600 images scored with and without a scaling that was fitted once on other images."""

    def world(n: int, seed: int) -> Predictions:
        labels = np.arange(n) % 4
        logits = np.random.default_rng(seed).normal(0, 1, (n, 4))
        logits[np.arange(n), labels] += 1.5
        ids = [f"{seed}-{i}" for i in range(n)]
        logits = (heat * logits).astype(np.float32)
        return Predictions(ids, ids, ids, [None] * n, ["test"] * n, labels, logits, CELLS.codes, "w")

    held = {"nll": 0, "brier": 0, "ece": 0}
    calibration = fit_calibration(world(2000, 1))
    assert calibration.scaling.method != "none"
    large = [calibration_section(world(250_000, 50 + i), calibration, draws=2) for i in range(4)]
    truth = {name: np.mean([m["metrics"][name]["difference"]["value"] for m in large]) for name in held}
    for seed in range(1000):
        found = calibration_section(world(600, 1000 + seed), calibration, draws=200)["metrics"]
        for name, value in truth.items():
            held[name] += found[name]["difference"]["low"] <= value <= found[name]["difference"]["high"]
    for name in ("nll", "brier"):
        assert 0.93 <= held[name] / 1000 <= 0.97, held
    assert held["ece"] / 1000 >= 0.93, held  # both calibration errors may be too high


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
