"""The section on sets: what it names, what it refuses, degenerate folds, its page and figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

import cytodino_hf.evaluation
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.calibration.halves import calibration_halves
from cytodino_hf.evaluation.calibration.scaling import by_temperature
from cytodino_hf.evaluation.conformal.coverage import score_sets
from cytodino_hf.evaluation.conformal.figures import draw_class_coverage, draw_set_sizes
from cytodino_hf.evaluation.conformal.section import conformal_section
from cytodino_hf.evaluation.conformal.thresholds import class_sets, class_thresholds
from cytodino_hf.evaluation.plots import figure_to_data_uri
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.page import render_template
from cytodino_hf.taxonomy import MLL, CellClass, Taxonomy

TAXONOMY = MLL.subset(["BLA", "PMO", "NGS", "LYI", "LYT"])
PARTIAL = Path(cytodino_hf.evaluation.__file__).parent / "parts" / "conformal.html"


def make(
    counts: dict[str, int],
    fold: str,
    seed: int,
    taxonomy: Taxonomy = TAXONOMY,
    groups: int | None = None,
    skill: float = 3.0,
) -> Predictions:
    labels = np.concatenate([[taxonomy.index(code)] * n for code, n in counts.items()] or [[]]).astype(
        np.int64
    )
    n = len(labels)
    logits = np.random.default_rng(seed).normal(0, 1.2, (n, len(taxonomy)))
    logits[np.arange(n), labels] += skill
    return Predictions(
        ids=[f"{fold}{i}" for i in range(n)],
        paths=[""] * n,
        sources=["s"] * n,
        groups=[f"{fold} {i % groups}" for i in range(n)] if groups else [None] * n,
        folds=[fold] * n,
        labels=labels,
        logits=logits.astype(np.float32),
        classes=taxonomy.codes,
        model_revision="r1",
        group_kind="patient" if groups else None,
    )


CALIBRATION = {"BLA": 120, "PMO": 10, "NGS": 150, "LYI": 5, "LYT": 100}
TEST = {"BLA": 90, "PMO": 12, "NGS": 100, "LYI": 3, "LYT": 80}


@pytest.fixture(scope="module")
def section() -> dict[str, Any]:
    return conformal_section(make(CALIBRATION, "calibration", 0), make(TEST, "test", 1), TAXONOMY)


def page(section: dict[str, Any]) -> str:
    return render_template(PARTIAL, {}, section=section, figures={"conformal_set_sizes": "data:,x"})


def test_small_classes_are_named_with_the_number_needed(section: dict[str, Any]) -> None:
    assert section["cells_needed"] == 9
    assert [(row["code"], row["calibration_images"]) for row in section["by_lineage"]] == [
        ("LYI", 2),
        ("PMO", 5),
    ]
    assert section["by_all_cells"] == []
    rows = {row["code"]: row for row in section["per_class"]}
    assert (rows["LYI"]["basis"], rows["LYI"]["expected"], rows["LYI"]["is_few"]) == ("lineage", None, True)
    assert rows["LYI"]["basis_images"] == 52
    assert (rows["BLA"]["basis"], rows["BLA"]["is_few"]) == ("class", False)
    assert rows["BLA"]["expected"] == pytest.approx(55 / 61)  # ceil(61 x 0.9) / 61
    assert "LYI" in page(section)


def test_half_of_the_fold_is_kept_from_the_sets_and_it_is_said(section: dict[str, Any]) -> None:
    about = section["calibration"]
    assert about["scaling_images"] + about["images"] == sum(CALIBRATION.values())
    assert "seed 0" in about["sentence"]
    assert "left as they are" in about["sentence"]
    assert not about["is_scaled"]


def test_coverage_is_that_of_the_sets_with_a_wilson_interval(section: dict[str, Any]) -> None:
    calibration, test = make(CALIBRATION, "calibration", 0), make(TEST, "test", 1)
    kept = calibration.select(calibration_halves(calibration, 0)[1])
    sets = class_sets(test.logits, class_thresholds(kept.logits, kept.labels, TAXONOMY, 0.1))
    hits = sets[np.arange(len(test)), test.labels]
    found = section["methods"]["class"]["scores"]
    reference = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    assert found["coverage"]["value"] == pytest.approx(hits.mean())
    assert (found["coverage"]["low"], found["coverage"]["high"]) == pytest.approx(tuple(reference))
    assert found["size_counts"] == np.bincount(sets.sum(1), minlength=6).tolist()
    sizes = sets.sum(axis=1)
    # Sizes differ between classes as well: within classes they spread less than all together.
    mean = found["mean_size"]
    plain = 1.96 * sizes.std(ddof=1) / np.sqrt(len(sizes))
    assert mean["value"] == pytest.approx(sizes.mean())
    assert 0.6 * plain < mean["value"] - mean["low"] < 1.1 * plain
    bla = test.labels == TAXONOMY.index("BLA")
    row = section["per_class"][TAXONOMY.index("BLA")]["methods"]["class"]
    reference = binomtest(int(hits[bla].sum()), int(bla.sum())).proportion_ci(method="wilson")
    assert (row["coverage"]["low"], row["coverage"]["high"]) == pytest.approx(tuple(reference))
    # Three images show no spread of their own.
    assert section["per_class"][TAXONOMY.index("LYI")]["methods"]["class"]["mean_size"]["low"] is None


def test_risk_control_is_refused_below_its_number(section: dict[str, Any]) -> None:
    bounds = section["risk_control"]["bounds"]
    assert [(row["risk"], row["needed"]) for row in bounds] == [(0.1, 22), (0.05, 45), (0.02, 114)]
    assert [row["refused"] is None for row in bounds] == [True, True, False]  # 67 critical cells are left
    assert "67 critical cells" in bounds[2]["refused"]
    assert "90 %" in bounds[2]["refused"]
    on_test = bounds[0]["test"]
    assert on_test["critical_images"] == 105
    assert on_test["stay_safe"]["value"] <= on_test["called_safe"]["value"]
    assert set(on_test["per_class"]) == {"BLA", "PMO", "LYI"}


def test_scaled_logits_are_used() -> None:
    calibration, test = make(CALIBRATION, "calibration", 0), make(TEST, "test", 1)
    scaled = conformal_section(calibration, test, TAXONOMY, scale=by_temperature(3.0, 5))
    by_hand = conformal_section(
        replace(calibration, logits=calibration.logits / 3), replace(test, logits=test.logits / 3), TAXONOMY
    )
    assert scaled["methods"] == by_hand["methods"]
    assert scaled["risk_control"] == by_hand["risk_control"]
    assert "fit the temperature of the probabilities" in scaled["calibration"]["sentence"]
    # A calibration that changes nothing is none.
    untouched = conformal_section(calibration, test, TAXONOMY, scale=by_temperature(1.0, 5, "none"))
    assert untouched == conformal_section(calibration, test, TAXONOMY)
    assert "left as they are" in untouched["calibration"]["sentence"]


@pytest.mark.parametrize(
    ("groups", "varies"), [([None] * 60, False), (["a"] * 60, True), (["a", "b"] * 30, True)]
)
def test_a_mean_size_that_shows_no_spread_has_no_interval(groups: list[str | None], varies: bool) -> None:
    """60 sets of two classes each, or sets of 1 to 3 classes of one and of two patients."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 4
    inside = np.arange(4) < (rng.integers(1, 4, (60, 1)) if varies else np.full((60, 1), 2))
    cell = score_sets(inside, labels, groups).mean_size
    assert (cell["value"], cell["low"], cell["high"]) == (inside.sum() / 60, None, None)
    assert "no interval" in cell["method"]
    many = score_sets(np.arange(4) < rng.integers(1, 5, (60, 1)), labels, [None] * 60).mean_size
    assert 0 < many["low"] < many["value"] < many["high"] <= 4


@pytest.mark.slow
@pytest.mark.parametrize("skill", [1.5, 2.5, 3.5])
def test_the_interval_of_the_mean_size_holds_the_truth(skill: float) -> None:
    """1,000 test folds of 300 cells with sets of fixed thresholds; the truth is that of a million cells."""
    taxonomy = TAXONOMY.subset(["BLA", "NGS", "LYT"])
    kept = make(dict.fromkeys(taxonomy.codes, 60), "calibration", 0, taxonomy, skill=skill)
    thresholds = class_thresholds(kept.logits, kept.labels, taxonomy, 0.1)

    def scores(n: int, seed: int) -> dict[str, Any]:
        one = make({"BLA": n // 6, "NGS": n // 2, "LYT": n // 3}, "test", seed, taxonomy, skill=skill)
        return score_sets(class_sets(one.logits, thresholds), one.labels, one.groups).mean_size

    truth = scores(900_000, 1)["value"]
    found = [scores(300, 10 + seed) for seed in range(1000)]
    held = sum(cell["low"] <= truth <= cell["high"] for cell in found)
    assert 0.93 <= held / 1000 <= 0.97


def test_groups_widen_the_intervals_and_are_said() -> None:
    counts = {"BLA": 400, "NGS": 400, "LYT": 400}
    taxonomy = TAXONOMY.subset(counts)
    calibration = make(counts, "calibration", 0, taxonomy)
    alone = make(dict.fromkeys(counts, 40), "test", 1, taxonomy)
    copies = alone.select(np.tile(np.arange(120), 10))  # ten copies of each image say what one says
    copies = replace(
        copies,
        ids=[f"t{i}" for i in range(1200)],
        groups=[f"g{i % 120}" for i in range(1200)],
        group_kind="slide",
    )
    one = conformal_section(calibration, alone, taxonomy)
    ten = conformal_section(calibration, copies, taxonomy)
    ungrouped = conformal_section(calibration, replace(copies, groups=[None] * 1200), taxonomy)

    def width(section: dict[str, Any]) -> float:
        cell = section["methods"]["lac"]["scores"]["coverage"]
        return cell["high"] - cell["low"]

    assert width(ten) == pytest.approx(width(one), rel=0.2)
    assert width(ungrouped) < 0.5 * width(one)
    assert "one slide resemble" in ten["notes"][0]
    assert one["notes"] == []


def test_unlabelled_images_are_left_out(section: dict[str, Any]) -> None:
    test = make(TEST, "test", 1)
    more = test.select(np.concatenate([np.arange(len(test)), [0, 1]]))
    labels = more.labels.copy()
    labels[-2:] = -1
    more = replace(more, labels=labels)
    assert conformal_section(make(CALIBRATION, "calibration", 0), more, TAXONOMY) == section


@pytest.mark.parametrize(
    ("calibration", "test", "why"),
    [
        ({}, TEST, "0 calibration images"),
        ({"BLA": 8}, TEST, "4 calibration images"),
        (CALIBRATION, {}, "no labelled image"),
        ({}, {}, "no labelled image"),
    ],
)
def test_empty_and_tiny_folds_make_no_sets(calibration: dict, test: dict, why: str) -> None:
    section = conformal_section(make(calibration, "calibration", 0), make(test, "test", 1), TAXONOMY)
    assert not section["possible"]
    assert why in section["why"]
    assert why in page(section)
    json.dumps(section, allow_nan=False)
    assert draw_set_sizes(section) is None
    assert draw_class_coverage(section) is None


@pytest.mark.parametrize(
    ("calibration", "test", "skill"),
    [
        ({"NGS": 40}, {"NGS": 10}, 3.0),  # one class
        (
            {"NGS": 40, "LYT": 40},
            {"BLA": 1},
            3.0,
        ),  # one sample, of a class the calibration fold does not have
        (CALIBRATION, TEST, 2000.0),  # confidence exactly 1
        (CALIBRATION, TEST, -50.0),  # always wrong
        ({"BLA": 24, "NGS": 24}, {"BLA": 2, "NGS": 2}, 3.0),
    ],
)
def test_degenerate_folds_give_defined_numbers(calibration: dict, test: dict, skill: float) -> None:
    section = conformal_section(
        make(calibration, "calibration", 0, skill=skill), make(test, "test", 1, skill=skill), TAXONOMY
    )
    assert section["possible"]
    json.dumps(section, allow_nan=False)
    assert "nan" not in page(section)
    draw_set_sizes(section)
    draw_class_coverage(section)
    for method in section["methods"].values():
        assert (method["scores"] is None) == (method["why_not"] is not None)


def test_a_taxonomy_without_critical_classes_is_said() -> None:
    taxonomy = Taxonomy("plain", (CellClass("A", "a", "x"), CellClass("B", "<b>", "y")))
    section = conformal_section(
        make({"A": 50, "B": 50}, "calibration", 0, taxonomy),
        make({"A": 9, "B": 9}, "test", 1, taxonomy),
        taxonomy,
    )
    assert "no critical class" in section["risk_control"]["why"]
    assert "no critical class" in page(section)


def test_predictions_that_do_not_belong_together_are_refused() -> None:
    calibration, test = make(CALIBRATION, "calibration", 0), make(TEST, "test", 1)
    with pytest.raises(DataError, match="score both with one model"):
        conformal_section(calibration, replace(test, model_revision="r2"), TAXONOMY)
    with pytest.raises(DataError, match="name the classes"):
        conformal_section(calibration, test, MLL)
    broken = test.logits.copy()
    broken[3, 0] = np.nan
    with pytest.raises(DataError, match="test3"):
        conformal_section(calibration, replace(test, logits=broken), TAXONOMY)


def test_the_page_and_the_figures(section: dict[str, Any]) -> None:
    json.dumps(section, allow_nan=False)
    text = page(section)
    for word in ("LAC", "APS", "RAPS", "by class", "Refused: 67", "data:,x"):
        assert word in text
    hostile = json.loads(json.dumps(section))
    hostile["per_class"][0]["code"] = "<script>"
    assert "<script>" not in page(hostile)
    sizes = draw_set_sizes(section)
    assert sizes is not None
    assert figure_to_data_uri(sizes, "png").startswith("data:image/png")
    bars = [bar.get_height() for bar in sizes.axes[0].patches]
    assert sum(bars) == pytest.approx(100)
    ordered = draw_class_coverage(section, ["PMO", "BLA", "NGS", "LYI", "LYT"])
    assert ordered is not None
    assert ordered.axes[0].get_yticklabels()[0].get_text().startswith("PMO")
