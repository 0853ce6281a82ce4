"""The report: its numbers, its named gaps, and a page that asks nobody and runs nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.errors import DataError
from cytodino_hf.evaluation.confusion import lineage_order
from cytodino_hf.evaluation.metrics import METRICS, confusion_matrix, confusion_metrics
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.evaluation.report import ReportContext, build_report, write_report
from cytodino_hf.taxonomy import MLL, CellClass, Taxonomy

CELLS = MLL.subset(["BLA", "PMO", "NGS", "LYT"])  # label order BLA LYT NGS PMO
SECTIONS = ["Verdict", "Evaluation", "Data", "Model", "Training", "Recipe and environment"]


def _predictions(labels: list[int], predicted: list[int], taxonomy: Taxonomy = CELLS) -> Predictions:
    n = len(labels)
    logits = np.full((n, len(taxonomy)), -1.0, dtype=np.float32)
    logits[np.arange(n), predicted] = 2.0
    names = [f"image{i}" for i in range(n)]
    return Predictions(
        ids=names,
        paths=[f"{name}.jpg" for name in names],
        sources=["mll"] * n,
        groups=[None] * n,
        folds=["test"] * n,
        labels=np.array(labels, dtype=np.int64),
        logits=logits,
        classes=taxonomy.codes,
        model_revision="abc",
    )


def _context(taxonomy: Taxonomy = CELLS, **changes: object) -> ReportContext:
    picture = np.full((20, 20, 3), 120, dtype=np.uint8)
    return replace(
        ReportContext(
            title="demo",
            recipe={
                "data": {"source": "mll", "oversampling": {"power": 0.7}},
                "model": {"method": "lora"},
                "loss": {"name": "focal", "gamma": 2.0},
                "training": {"learning_rate": 3e-4},
            },
            environment={"python": "3.11", "packages": {"torch": "2.13.0"}},
            data={
                "source": "mll",
                "attribution": "Matek et al. 2021",
                "is_drawn": False,
                "counts": {
                    "train": dict.fromkeys(taxonomy.codes, 9),
                    "test": dict.fromkeys(taxonomy.codes, 2),
                },
                "promise": "not patient-safe: no patient ids are known for these images",
                "group_kind": None,
                "rejected": [{"path": "x.jpg", "reason": "damaged"}],
                "notes": ["LYT is small."],
            },
            training={
                "steps": 20,
                "epochs": 1.0,
                "best_step": 20,
                "best_metric": {"name": "macro_f1", "value": 0.5},
                "seconds": 61.0,
                "log_history": [
                    {"step": 10, "loss": float("nan"), "learning_rate": 1e-4},
                    {"step": 20, "eval_loss": 1.0, "eval_macro_f1": np.float64(0.5)},
                ],
            },
            taxonomy=taxonomy,
            train_classes=taxonomy.codes,
            class_panel={code: [picture] for code in taxonomy.codes},
            augmentation_strip=[[picture, picture]],
        ),
        **changes,
    )


LABELS = [0] * 6 + [1] * 5 + [2] * 4 + [3] * 3
CALLED = [0, 0, 0, 0, 2, 3] + [1] * 5 + [2, 2, 2, 0] + [3, 3, 1]


def test_the_numbers_are_those_of_the_metrics() -> None:
    report = build_report({"test": _predictions(LABELS, CALLED)}, _context(), draws=100)
    matrix = confusion_matrix(np.array(LABELS), np.array(CALLED), 4)
    test = report["test"]
    assert test["confusion_matrix"] == matrix.tolist()
    assert test["classes"] == list(CELLS.codes)
    assert set(test["metrics"]) == set(METRICS)
    for name, value in confusion_metrics(matrix).items():
        cell = test["metrics"][name]
        assert set(cell) == {"value", "low", "high", "method", "n"}
        assert cell["value"] == pytest.approx(float(value))
        assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1
    assert report["split_promise"].startswith("not patient-safe")


def test_critical_mistakes_and_confusions_are_told() -> None:
    test = build_report({"test": _predictions(LABELS, CALLED)}, _context(), draws=100)["test"]
    # critical: BLA and PMO (9 cells), of which one BLA is called NGS and one PMO is called LYT
    critical = test["critical"]
    assert {k: critical["critical_to_safe"][k] for k in ("mistakes", "of")} == {"mistakes": 2, "of": 9}
    assert critical["critical_to_safe"]["rate"] == pytest.approx(2 / 9)
    assert critical["critical_to_safe"]["low"] < 2 / 9 < critical["critical_to_safe"]["high"]
    assert {k: critical["safe_to_critical"][k] for k in ("mistakes", "of")} == {"mistakes": 1, "of": 9}
    assert {code: row["mistakes"] for code, row in critical["per_class"].items()} == {"BLA": 1, "PMO": 1}
    first = test["top_confusions"][0]
    assert (first["true"], first["predicted"], first["count"], first["of"]) == ("PMO", "LYT", 1, 3)
    assert first["share"] == pytest.approx(1 / 3)
    assert 0 < first["low"] < first["share"] < first["high"] < 1
    row = test["per_class"][0]
    assert (row["code"], row["images"], row["predicted"]) == ("BLA", 6, 5)
    assert row["recall"]["value"] == pytest.approx(4 / 6)


def test_gaps_are_named_and_left_out_of_the_mean() -> None:
    # no LYT in the fold; PMO was not trained; the last image has no label
    labels, called = [0, 0, 2, 2, 3, -1], [0, 0, 0, 0, 0, 1]
    context = _context(train_classes=("BLA", "LYT", "NGS"))
    test = build_report({"test": _predictions(labels, called)}, context, draws=100)["test"]
    assert test["absent_classes"] == ["LYT"]
    assert test["untrained_classes"] == ["PMO"]
    assert test["never_predicted"] == ["NGS", "PMO"]
    assert (test["images"], test["unlabelled_images"]) == (5, 1)
    assert test["metrics"]["macro_f1"]["value"] == pytest.approx((2 * 2 / (2 + 5) + 0) / 2)
    assert test["per_class"][1]["recall"] is None


def test_a_fold_without_labels_gives_a_page_without_numbers(tmp_path: Path) -> None:
    report = write_report(tmp_path, {"test": _predictions([-1, -1], [0, 1])}, _context(), draws=100)
    assert report["test"]["metrics"] == {}
    assert report["test"]["critical"]["critical_to_safe"]["rate"] is None
    assert "no number to give" in (tmp_path / "report.html").read_text()
    write_report(tmp_path / "none", {}, _context(class_panel=None, augmentation_strip=None, training={}))


def test_what_could_not_be_otherwise_is_no_number(tmp_path: Path) -> None:
    # Only blasts: none of another class can be called one, so a precision says nothing.
    blasts = _predictions([0] * 8, [0] * 6 + [2, 3])
    report = write_report(tmp_path / "one", {"test": blasts}, _context(), draws=100)
    test, page = report["test"], (tmp_path / "one" / "report.html").read_text()
    assert set(METRICS) - set(test["metrics"]) == {"macro_precision", "weighted_precision"}
    reason = test["undefined"]["macro_precision"]
    assert "of one class" in reason
    assert page.count(f"none: {reason}") == 2
    # LYT was never called: no precision, as it has no recall without an image.
    assert [row["precision"] is None for row in test["per_class"]] == [False, True, False, False]
    alone = MLL.subset(["BLA"])
    single = {"test": _predictions([0] * 8, [0] * 8, alone)}
    report = write_report(tmp_path / "alone", single, _context(alone), draws=100)
    assert report["test"]["metrics"] == {}
    assert "There is one class" in (tmp_path / "alone" / "report.html").read_text()


def test_diverged_or_foreign_predictions_are_refused() -> None:
    broken = _predictions([0, 1], [0, 1])
    broken.logits[1, 0] = np.nan
    with pytest.raises(DataError, match=r"'test': 1 images .* such as image1"):
        build_report({"test": broken}, _context())
    with pytest.raises(DataError, match="score the fold again"):
        build_report({"test": _predictions([0], [0], CELLS.subset(["BLA", "LYT"]))}, _context())


def test_the_json_has_no_nan_and_is_the_same_twice(tmp_path: Path) -> None:
    predictions = {"validation": _predictions(LABELS, LABELS), "test": _predictions(LABELS, CALLED)}
    report = write_report(tmp_path / "a", predictions, _context(), draws=100)
    write_report(tmp_path / "b", predictions, _context(), draws=100)
    for name in ("report.json", "report.html", "figures/confusion_matrix.svg", "figures/class_panel.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in report.json")

    written = json.loads((tmp_path / "a" / "report.json").read_text(), parse_constant=refuse)
    assert written == report
    assert written["folds"] == ["test", "validation"]
    assert written["training"]["log_history"][0]["loss"] is None
    assert written["recipe"]["loss"]["gamma"] == 2.0


def test_drawn_images_and_groups_are_said_at_the_top(tmp_path: Path) -> None:
    data = {
        **_context().data,
        "is_drawn": True,
        "group_kind": "patient",
        "promise": "by patient: none is split",
    }
    report = write_report(tmp_path, {"test": _predictions(LABELS, CALLED)}, _context(data=data), draws=100)
    assert report["is_drawn"]
    drawn, grouped = report["notes"]
    assert "drawn by a program" in drawn
    assert "one patient resemble" in grouped
    page = (tmp_path / "report.html").read_text()
    assert page.index("drawn by a program") < page.index("<h2>Data</h2>")
    assert build_report({}, _context())["notes"] == []


def test_what_is_alike_is_said_once_and_long_lists_are_counted(tmp_path: Path) -> None:
    recipe = {"model": {"backbone": None, "revision": "cafe", "backbone_config": {"num_hidden_layers": 2}}}
    model = {"revision": "f00d"}
    # every class is read as the next one: all have an F1 of 0
    predictions = {"test": _predictions(LABELS, [(label + 1) % 4 for label in LABELS])}
    report = write_report(tmp_path, predictions, _context(recipe=recipe, model=model), draws=100)
    page = (tmp_path / "report.html").read_text()
    assert "4 of 4 classes have an F1 of 0: BLA, LYT, NGS and 1 more." in page
    assert "Source <strong>mll</strong>. Matek et al. 2021.</p>" in page
    part = page[page.index("<h2>Model</h2>") : page.index("<h2>Training</h2>")]
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", part) == [
        ("model revision", "f00d"),
        ("backbone revision", "cafe"),
        ("backbone_<wbr>config.<wbr>num_<wbr>hidden_<wbr>layers", "2"),
    ]
    methods = {report["test"]["metrics"][name]["method"] for name in ("macro_f1", "accuracy")}
    sentence = page[page.index("Ranges are 95 % intervals (") : page.index("A class never predicted")]
    assert [sentence.count(method) for method in methods] == [1] * len(methods)


class _Page(HTMLParser):
    """Collects the tags, the addresses and the event attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_the_page_holds_everything_and_asks_nobody(tmp_path: Path) -> None:
    predictions = {fold: _predictions(LABELS, CALLED) for fold in ("validation", "calibration", "test")}
    write_report(tmp_path, predictions, _context(), draws=100)
    text = (tmp_path / "report.html").read_text()
    page = _Page(text)
    assert re.findall(r"<h2>(.*?)</h2>", text) == SECTIONS
    assert page.tags.count("img") == 5
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert "default-src 'none'" in text
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "augmentation_strip.png",
        "class_f1.svg",
        "class_panel.png",
        "confusion_matrix.svg",
        "training_curves.svg",
    ]


def test_names_with_html_stay_inert(tmp_path: Path) -> None:
    attack = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}'
    taxonomy = Taxonomy(
        attack,
        (
            CellClass(attack, attack, attack, is_critical=True),
            CellClass("$x", "'b'", "lineage", is_safe=True),
        ),
    )
    data = {
        "source": attack,
        "attribution": attack,
        "is_drawn": False,
        "counts": {attack: {attack: 3, "$x": 1}},
        "promise": attack,
        "group_kind": attack,
        "rejected": [{"path": attack, "reason": attack}],
        "notes": [attack],
    }
    context = _context(
        taxonomy, title=attack, data=data, recipe={attack: {attack: attack}}, environment={attack: attack}
    )
    write_report(tmp_path, {"test": _predictions([0, 0, 1], [0, 1, 0], taxonomy)}, context, draws=100)
    text = (tmp_path / "report.html").read_text()
    page = _Page(text)
    assert "script" not in page.tags
    assert not page.handlers
    assert page.tags.count("img") == 5
    assert "{{ 7 * 7 }}" in text


def test_lineages_stand_together_immature_first() -> None:
    codes = [MLL.codes[label] for label in lineage_order(MLL)]
    assert codes[:6] == ["BLA", "PMO", "MYB", "MMZ", "NGB", "NGS"]
    assert codes[6:8] == ["PEB", "EBO"]
    assert sorted(codes) == sorted(MLL.codes)
    lineages = [MLL.lineages[MLL.index(code)] for code in codes]
    changes = sum(a != b for a, b in pairwise(lineages))
    assert changes == len(set(lineages)) - 1


def test_classes_of_few_images_are_marked_wherever_their_numbers_stand(tmp_path: Path) -> None:
    taxonomy = MLL.subset(["BLA", "LYT", "NGS"])
    labels = [0] * 4 + [1] * 5 + [2] * 9
    predictions = {"test": _predictions(labels, [1] * 4 + labels[4:], taxonomy)}
    context = _context(taxonomy)
    write_report(tmp_path, predictions, context, draws=50)
    rows = re.findall(r"<tr>.*?</tr>", (tmp_path / "report.html").read_text(), re.S)
    of_few = [row for row in rows if '<span class="lead">BLA</span> blast' in row or ">BLA</td>" in row]
    marked = [row for row in of_few if '<span class="chip warn">few</span>' in row]
    assert len(marked) >= 2, "the table of classes and that of dangerous mistakes"
    assert not any("few</span>" in row for row in rows if ">LYT</td>" in row)
