"""The section on abstaining: thresholds come from calibration, results from test, gaps are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.calibration.artifact import fit_calibration
from cytodino_hf.evaluation.calibration.halves import calibration_halves
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.selective.figures import draw_risk_coverage
from cytodino_hf.evaluation.selective.risk_coverage import RiskCoverage
from cytodino_hf.evaluation.selective.section import ACCURACIES, COVERAGES, selective_section
from cytodino_hf.evaluation.statistics import wilson_interval
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL

CELLS = MLL.subset(["BLA", "LYT", "NGS", "ABE", "ART"])  # order ABE ART BLA LYT NGS
PART = Path(__file__).parents[3] / "cytodino_hf" / "evaluation" / "parts" / "selective.html"


def fold(name: str, n: int = 2000, seed: int = 0, gain: float = 3.0) -> Predictions:
    """Answers that are mostly right, and surer where they are; ABE has three images."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([1, 2, 3, 4], n)
    labels[:3] = 0
    logits = rng.normal(0, 1, (n, 5))
    logits[np.arange(n), labels] += gain
    ids = [f"{name}{i:05}" for i in range(n)]
    logits = (2 * logits).astype(np.float32)
    return Predictions(ids, ids, ["s"] * n, [None] * n, [name] * n, labels, logits, CELLS.codes, "w1")


@pytest.fixture(scope="module")
def section() -> dict:
    return selective_section(fold("test", seed=1), CELLS, fold("calibration", seed=2), draws=200)


def test_everything_is_plain(section: dict) -> None:
    json.dumps(section, allow_nan=False)
    assert section["threshold_images"] == section["images"] == 2000
    assert section["needed"] == {"0.95": 59, "0.99": 299, "0.995": 598}
    assert len(section["at_coverage"]) == len(COVERAGES) * 5
    assert len(section["at_accuracy"]) == len(ACCURACIES) * 5


def test_the_threshold_is_of_the_calibration_fold_and_the_result_of_the_test_fold(section: dict) -> None:
    calibration, test = fold("calibration", seed=2), fold("test", seed=1)
    row = next(r for r in section["at_accuracy"] if (r["score"], r["asked"]) == ("max_probability", 0.99))
    value = row["observed"]["calibration"]["value"]
    kept = calibration.probabilities.max(axis=1).astype(float) >= value - 1e-6
    right = calibration.predicted == calibration.labels
    assert right[kept].mean() >= 0.99
    assert row["observed"]["calibration"]["kept"] == kept.sum()
    of_test = test.probabilities.max(axis=1).astype(float) >= value - 1e-6
    hits = int((test.predicted == test.labels)[of_test].sum())
    expected = wilson_interval(hits, int(of_test.sum()))
    found = row["observed"]["test"]["accuracy"]
    assert (found["value"], found["low"], found["high"]) == (expected.value, expected.low, expected.high)
    assert row["observed"]["test"]["coverage"]["value"] == of_test.mean()
    critical = np.isin(test.labels, CELLS.critical) & of_test
    safe = np.isin(test.predicted, CELLS.safe)
    assert row["observed"]["test"]["critical_to_safe"]["hits"] == (critical & safe).sum()
    assert row["assured"]["calibration"]["value"] > value, "assurance keeps fewer"


def test_areas_are_those_of_the_curve_and_lie_in_their_intervals(section: dict) -> None:
    test = fold("test", seed=1)
    wrong = test.predicted != test.labels
    aurc, excess = RiskCoverage(test.probabilities.max(axis=1), wrong).areas(np.ones((1, 2000)))
    row = section["scores"]["max_probability"]
    assert row["aurc"]["value"] == pytest.approx(aurc[0], rel=1e-3)
    assert row["excess_aurc"]["value"] == pytest.approx(excess[0], rel=1e-3)
    for cell in (row["aurc"], row["excess_aurc"], row["critical"]["aurc"]):
        assert cell["low"] < cell["value"] < cell["high"]
    assert section["curves"]["all"]["max_probability"][-1] == pytest.approx(wrong.mean())
    assert section["curves"]["best"][-1] == pytest.approx(wrong.mean())
    assert section["curves"]["best"][0] == 0.0


def test_the_coverage_asked_is_met_within_chance(section: dict) -> None:
    for row in section["at_coverage"]:
        cell = row["test"]["coverage"]
        assert cell["value"] == pytest.approx(row["asked"], abs=0.05) or row["score"] == "expected_cost"
        if row["asked"] == 1.0:
            assert cell["value"] == 1.0
    alone = selective_section(fold("test", seed=1), CELLS, draws=5)
    at_67 = next(r for r in alone["at_coverage"] if (r["score"], r["asked"]) == ("margin", 0.67))
    assert at_67["test"]["coverage"]["hits"] == 1340


def test_classes_are_shown_at_the_threshold_and_rare_ones_marked(section: dict) -> None:
    point = section["per_class_point"]
    assert point["asked"] == 0.995
    rows = {row["code"]: row for row in section["per_class"]}
    assert [code for code, row in rows.items() if row["few_images"]] == ["ABE"]
    assert rows["LYT"]["called_safe"] is None
    assert sum(row["coverage"]["hits"] for row in rows.values()) == sum(
        row["accuracy"]["n"] for row in rows.values() if row["accuracy"]
    )
    assert section["review"]["cells"] >= 2000 - sum(row["coverage"]["hits"] for row in rows.values())
    assert len(section["review"]["first"]) == 20


def test_calibrated_answers_take_thresholds_from_the_half_that_fitted_nothing() -> None:
    calibration_fold, test = fold("calibration", 600, seed=2), fold("test", 300, seed=1)
    calibration = fit_calibration(calibration_fold)
    section = selective_section(test, CELLS, calibration_fold, calibration, draws=10)
    scaling, conformal = calibration_halves(calibration_fold)
    assert section["is_calibrated"]
    assert section["threshold_images"] == len(conformal)
    labels = calibration_fold.labels.copy()
    logits = calibration_fold.logits.copy()
    logits[scaling] = 0.0
    changed = selective_section(
        test, CELLS, replace(calibration_fold, labels=labels, logits=logits), calibration, draws=10
    )
    assert changed["at_accuracy"] == section["at_accuracy"]
    with pytest.raises(DataError, match="w1, the model is w2"):
        selective_section(replace(test, model_revision="w2"), CELLS, calibration_fold, calibration)


def test_a_fold_too_small_for_what_is_asked_says_so() -> None:
    section = selective_section(fold("test", 300, seed=1), CELLS, fold("calibration", 300, seed=2), draws=10)
    row = next(r for r in section["at_accuracy"] if (r["score"], r["asked"]) == ("max_probability", 0.995))
    assert row["assured"] is None
    assert (
        "300 calibration images for thresholds cannot show 99.5 %: 598 without a mistake are needed"
        in row["note"]
    )
    assert section["per_class_point"]["kind"] == "observed"


def test_without_calibration_fold_no_accuracy_is_promised() -> None:
    for nothing in (None, replace(fold("calibration", 50), labels=np.full(50, -1)), fold("x").select([])):
        section = selective_section(fold("test", 300, seed=1), CELLS, nothing, draws=10)
        assert {row["observed"] for row in section["at_accuracy"]} == {None}
        assert "no calibration fold" in section["at_accuracy"][0]["note"]
        assert "no calibration fold" in section["why"]
        assert section["per_class"] == []
        assert section["review"] is None
        assert "no calibration fold" in render_template(PART, {}, section=section, figures={})


@pytest.mark.parametrize("rows", [[], [7]], ids=["no image", "one image"])
def test_almost_nothing_gives_no_invented_number(rows: list[int]) -> None:
    section = selective_section(fold("test").select(rows), CELLS, fold("calibration", seed=2), draws=10)
    json.dumps(section, allow_nan=False)
    if rows:
        assert section["scores"]["margin"]["aurc"]["low"] is None
        assert draw_risk_coverage(section) is not None
    else:
        assert section["scores"] == {}
        assert draw_risk_coverage(section) is None
    render_template(PART, {}, section=section, figures={})


def test_a_fold_without_mistakes_has_no_interval_that_collapses() -> None:
    perfect = fold("test", 300, gain=60.0)
    section = selective_section(perfect, CELLS, fold("calibration", seed=2), draws=10)
    cell = section["scores"]["entropy"]["aurc"]
    assert (cell["value"], cell["low"]) == (0.0, None)
    assert "fewer than 10 mistakes" in cell["method"]
    assert section["curves"]["band"] is None


def test_a_taxonomy_without_dangerous_mistakes_does_without_them() -> None:
    cells = MLL.subset(["ART", "NIF", "MMZ", "PEB", "OTH"])
    test = replace(fold("test", 400, seed=1), classes=cells.codes)
    section = selective_section(
        test, cells, replace(fold("calibration", 400, seed=2), classes=cells.codes), draws=10
    )
    assert "expected_cost" not in section["scores"]
    assert section["scores"]["margin"]["critical"] is None
    figure = draw_risk_coverage(section)
    assert figure is not None
    assert len(figure.axes) == 1


def test_groups_widen_what_they_should() -> None:
    once = fold("test", 300, seed=1, gain=1.5)
    copies = once.select(np.repeat(np.arange(300), 8))
    grouped = replace(
        copies,
        ids=[f"{name}-{i}" for i, name in enumerate(copies.ids)],
        groups=list(copies.ids),
        group_kind="patient",
    )
    alone, together = (
        selective_section(p, CELLS, fold("calibration", seed=2), draws=300) for p in (once, grouped)
    )
    wide = [
        s["scores"]["margin"]["aurc"]["high"] - s["scores"]["margin"]["aurc"]["low"]
        for s in (alone, together)
    ]
    assert wide[1] == pytest.approx(wide[0], rel=0.2)
    shares = [s["at_coverage"][3]["test"]["accuracy"] for s in (alone, together)]
    assert shares[1]["high"] - shares[1]["low"] == pytest.approx(
        shares[0]["high"] - shares[0]["low"], rel=0.1
    )


def test_other_classes_and_infinite_logits_are_refused() -> None:
    test = fold("test", 30)
    with pytest.raises(DataError, match="taxonomy of the model"):
        selective_section(test, MLL)
    logits = test.logits.copy()
    logits[3, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        selective_section(replace(test, logits=logits), CELLS)


def test_the_page_part_and_the_figure(section: dict) -> None:
    text = render_template(PART, {}, section=section, figures={"risk_coverage": "data:image/png;base64,AA"})
    for words in (
        "assured with 95 % confidence",
        "as observed, no margin",
        "excess AURC",
        "data:image/png;base64,AA",
    ):
        assert words in text
    figure = draw_risk_coverage(section)
    assert figure is not None
    assert len(figure.axes) == 2
    assert figure_bytes(figure, "svg").startswith(b"<?xml")


def test_a_calibration_fold_that_scaling_uses_up_is_said_with_its_numbers() -> None:
    """Three images of three classes all go to the half for scaling: there is a fold, but nothing left of it."""
    three = fold("calibration", 400, seed=2)
    three = three.select([int(np.flatnonzero(three.labels == k)[0]) for k in (1, 2, 3)])
    section = selective_section(fold("test", 300, seed=1), CELLS, three, fit_calibration(three), draws=5)
    assert section["threshold_images"] == 0
    for row in section["at_accuracy"]:
        assert "too small: all 3 labelled images of it are for scaling" in row["note"]
    assert "too small: all 3 labelled" in section["why"]
    assert "no calibration fold" not in render_template(PART, {}, section=section, figures={})
    other = selective_section(fold("test", 60, seed=1), CELLS, no_fold="they were calibrated before", draws=5)
    assert other["at_accuracy"][0]["note"] == (
        "No threshold for 95 % can be chosen: they were calibrated before."
    )


def test_the_page_says_how_many_images_and_mistakes_an_area_rests_on(section: dict) -> None:
    text = " ".join(render_template(PART, {}, section=section, figures={}).split())
    row = section["scores"]["margin"]
    assert f"n = 2,000, {row['mistakes']:,} mistakes" in text
    critical = int(np.isin(fold("test", seed=1).labels, CELLS.critical).sum())
    assert row["critical"]["aurc"]["n"] == critical
    assert f"n = {critical:,}, {row['critical']['mistakes']:,} mistakes" in text


def test_answers_that_are_all_wrong_have_an_area_of_1_and_no_interval() -> None:
    test = fold("test", 100, gain=0.0)
    labels = (test.predicted + 1) % 5
    section = selective_section(replace(test, labels=labels), CELLS, fold("calibration", seed=2), draws=20)
    for row in section["scores"].values():
        assert (row["aurc"]["value"], row["aurc"]["low"], row["aurc"]["high"]) == (1.0, None, None)
        assert row["excess_aurc"]["value"] == pytest.approx(0, abs=1e-12)
        assert row["excess_aurc"]["value"] >= 0
        assert row["excess_aurc"]["low"] is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_groups_give_no_interval(count: int) -> None:
    test = fold("test", 400, seed=1, gain=1.5)
    test = replace(test, groups=[f"p{i % count}" for i in range(400)], group_kind="patient")
    section = selective_section(test, CELLS, fold("calibration", seed=2), draws=50)
    json.dumps(section, allow_nan=False)
    for row in section["scores"].values():
        for cell in (row["aurc"], row["excess_aurc"], row["critical"]["aurc"]):
            assert (cell["low"] is None) == (count < 3), cell
    assert (section["curves"]["band"] is None) == (count < 3)
    assert draw_risk_coverage(section) is not None


def areas_of(logits: np.ndarray, labels: np.ndarray, score: str = "max_probability") -> dict[str, float]:
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = np.sort(p / p.sum(axis=1, keepdims=True), axis=1)
    ranks = p[:, -1] if score == "max_probability" else p[:, -1] - p[:, -2]
    found = RiskCoverage(ranks, logits.argmax(axis=1) != labels).areas(np.ones((1, len(labels))))
    return {name: float(value[0]) for name, value in zip(("aurc", "excess_aurc"), found, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("counts", "gain", "heat"),
    [
        ([20] * 5, 2.2, 0.7),
        ([20, 30, 60, 120, 400], 2.3, 1.0),
        ([20, 25, 40, 80, 150, 300, 700], 2.6, 1.0),
        ([150] * 4, 1.2, 2.0),
        ([150] * 4, 2.4, 2.0),
    ],
)
def test_intervals_of_areas_hold_the_truth(counts: list[int], gain: float, heat: float) -> None:
    """1,000 folds of answers of a Bayes model of classes so frequent; the truth is that of 900,000 images."""
    share = np.array(counts) / sum(counts)
    rng = np.random.default_rng(sum(counts))

    def world(of_each: list[int]) -> tuple[np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(len(of_each)), of_each)
        logits = rng.normal(0, 1, (len(labels), len(of_each)))
        logits[np.arange(len(labels)), labels] += gain
        return heat * (gain * logits + np.log(share)), labels

    large = [areas_of(*world([150_000 // sum(counts) * n for n in counts])) for _ in range(6)]
    truth = {name: np.mean([one[name] for one in large]) for name in large[0]}
    held, given = dict.fromkeys(truth, 0), 0
    cells = MLL.subset(MLL.codes[: len(counts)])
    for _ in range(1000):
        logits, labels = world(counts)
        ids, alone = [str(i) for i in range(len(labels))], [None] * len(labels)
        one = Predictions(
            ids, ids, ids, alone, ["test"] * len(ids), labels, logits.astype(np.float32), cells.codes, "w"
        )
        found = selective_section(one, cells, draws=1)["scores"]["max_probability"]
        if found["mistakes"] >= 10:
            given += 1
            for name, value in truth.items():
                held[name] += found[name]["low"] <= value <= found[name]["high"]
    assert given > 950
    for name, count in held.items():
        assert 0.93 <= count / given <= 0.97, (name, held, given)


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.8, 1.2])
def test_intervals_of_critical_areas_hold_the_truth(gain: float) -> None:
    """1,000 folds of 1,200 images; critical cells called safe against the truth of a million images."""
    large = [
        selective_section(fold("test", 250_000, 90 + i, gain), CELLS, draws=1)["scores"] for i in range(4)
    ]
    truth = {
        n: np.mean([s["margin"]["critical"][n]["value"] for s in large]) for n in ("aurc", "excess_aurc")
    }
    held = dict.fromkeys(truth, 0)
    for seed in range(1000):
        section = selective_section(fold("test", 1200, 1000 + seed, gain), CELLS, draws=1)
        found = section["scores"]["margin"]["critical"]
        for name, value in truth.items():
            held[name] += found[name]["low"] <= value <= found[name]["high"]
    for name, count in held.items():
        assert 0.93 <= count / 1000 <= 0.97, (name, held)
