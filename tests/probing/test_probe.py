"""The whole probe on drawn cells, as a user calls it, and its numbers from its own predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from cytodino_hf.cli import main
from cytodino_hf.evaluation.comparison import paired_differences
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.probing import answers, systems
from cytodino_hf.probing.methods import Answer
from cytodino_hf.taxonomy import MLL


def _arguments(root: Path, out: Path, *words: str) -> list[str]:
    data = ["--data.source", "image_folder", "--data.root", str(root), "--data.image_size_px", "32"]
    return ["probe", *words, "--output", str(out), *data, "--seeds", "0,1", "--few-shot-draws", "2"]


def _run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path, tiny_backbone: Path) -> Path:
    out = tmp_path_factory.mktemp("probe")
    _run(_arguments(drawn_cells, out, str(tiny_backbone), f"random:{tiny_backbone}", "classical"))
    return out


def test_every_number_is_that_of_the_kept_predictions(probed: Path, tiny_backbone: Path) -> None:
    document = json.loads((probed / "probe.json").read_text())
    assert [s["name"] for s in document["systems"]] == [
        str(tiny_backbone),
        f"random:{tiny_backbone}",
        "classical",
    ]
    seeds = {"knn_1": 1, "knn_20": 1, "logistic": 1, "logistic_chosen": 1, "svm": 1, "extra_trees": 2}
    folds = document["data"]["images"]
    for system in document["systems"]:
        assert list(system["methods"]) == (
            ["svm", "extra_trees"] if system["name"] == "classical" else list(seeds)[:4]
        )
        for method, found in system["methods"].items():
            kept = [Predictions.from_parquet(probed / file) for file in found["predictions"]]
            assert len(kept) == (2 if system["name"].startswith("random:") else seeds[method])
            assert all(set(p.folds) == {"test"} and len(p) == sum(folds["test"].values()) for p in kept)
            metrics = found["metrics"]
            _check(
                metrics["balanced_accuracy"], [balanced_accuracy_score(p.labels, p.predicted) for p in kept]
            )
            _check(metrics["macro_f1"], [f1_score(p.labels, p.predicted, average="macro") for p in kept])
            assert ("nll" in metrics) == method.startswith("logistic")
            if "nll" in metrics:
                rows = np.arange(len(kept[0]))
                _check(metrics["nll"], [-np.log(p.probabilities[rows, p.labels]).mean() for p in kept])


def _check(score: dict, values: list[float]) -> None:
    assert score["value"] == pytest.approx(np.mean(values), rel=1e-5)
    assert score["low"] <= score["value"] <= score["high"]
    assert score["seeds"] == pytest.approx(values, rel=1e-5)
    if len(values) == 1:
        assert score["spread"] is None
    else:
        assert score["spread"] == pytest.approx(np.std(values, ddof=1), abs=1e-5)


def test_the_first_is_compared_with_each_other_one(probed: Path, tiny_backbone: Path) -> None:
    document = json.loads((probed / "probe.json").read_text())
    pairs = [
        (row["other"].split(":")[0], row["ours_method"], row["other_method"])
        for row in document["comparisons"]
    ]
    assert pairs == [
        *(("random", m, m) for m in ("knn_1", "knn_20", "logistic", "logistic_chosen")),
        ("classical", "logistic", "svm"),
        ("classical", "logistic", "extra_trees"),
    ]
    first, second = document["systems"][:2]
    ours, other = (
        [Predictions.from_parquet(probed / f) for f in s["methods"]["logistic"]["predictions"]]
        for s in (first, second)
    )
    again = paired_differences(ours, other, MLL.subset(ours[0].classes))
    kept = document["comparisons"][2]["differences"]
    assert kept == {name: json.loads(json.dumps(d.to_dict())) for name, d in again.items()}
    assert "nll" not in document["comparisons"][4]["differences"]


def test_tables_and_figure_say_the_same(probed: Path) -> None:
    document = json.loads((probed / "probe.json").read_text())
    with open(probed / "probe.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(r["system"], r["method"], r["metric"]): r for r in rows}
    assert len(found) == len(rows)
    text = (probed / "probe.md").read_text()
    for system in document["systems"]:
        assert f"`{system['name']}`" in text
        for method, entry in system["methods"].items():
            score = entry["metrics"]["balanced_accuracy"]
            row = found[system["name"], method, "balanced_accuracy"]
            assert (float(row["value"]), float(row["low"])) == (score["value"], score["low"])
            assert f"{score['value']:.3f}" in text
        for few in system["few_shot"]:
            row = found[system["name"], system["few_shot_method"], f"balanced_accuracy@{few['shots']}"]
            assert float(row["value"]) == few["mean"] == pytest.approx(np.mean(few["values"]))
            assert len(few["values"]) == 2
    assert [few["shots"] for few in document["systems"][0]["few_shot"]] == [1, 5, 10]  # 13 images a class
    assert "Drawn (synthetic) cells." in text
    assert (probed / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_probe_works_nothing_out_and_says_the_same(
    probed: Path, drawn_cells: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = json.loads((probed / "probe.json").read_text())

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("worked out again")

    for module, name in (
        (systems, "frozen_features"),
        (systems, "classical_features"),
        (answers, "ask_backbone"),
        (answers, "ask_classical"),
        (answers, "few_shot_values"),
    ):
        monkeypatch.setattr(module, name, refuse)
    _run(_arguments(drawn_cells, probed, str(tiny_backbone), f"random:{tiny_backbone}", "classical"))
    after = json.loads((probed / "probe.json").read_text())
    assert {**after, "command": ""} == {**before, "command": ""}
    with pytest.raises(AssertionError, match="worked out again"):
        _run([*_arguments(drawn_cells, probed, str(tiny_backbone)), "--data.image_size_px", "48"])


def test_names_that_differ_have_slugs_that_differ() -> None:
    names = [
        "classical",
        "a/b",
        "a_b",
        "/" + "x" * 80 + "/backbone",
        "/" + "x" * 81 + "/backbone",
        "random:a/b",
    ]
    slugs = [systems.slug(name) for name in names]
    assert len(set(slugs)) == len(names)
    assert slugs[0] == "classical"
    assert all("/" not in slug and len(slug) < 70 for slug in slugs)


def test_what_is_kept_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(stream: object, *_: object, **__: object) -> None:
        stream.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    images = SimpleNamespace(tables=[SimpleNamespace(sha256=(b"1", b"2"))])
    monkeypatch.setattr(systems.np, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        systems._stacked(images, tmp_path / "features", "a", {}, lambda table: np.zeros((2, 2)))
    assert not (tmp_path / "features" / "a.npy").exists()
    monkeypatch.setattr(answers.np, "savez", cut)
    with pytest.raises(KeyboardInterrupt):
        answers._keep(tmp_path / "a.npz", answers.Answers((Answer("svm", np.zeros((1, 2))),), {}))
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{tiny}", "{tiny}"], "named twice"),
        (["{tiny}", "--seeds", "0,x"], "--seeds 0,x: must be whole numbers"),
        (["{tiny}", "--seeds", "1,1"], "must be different"),
        (["{tiny}", "--data.image_siz_px", "32"], "did you mean 'image_size_px'"),
        (["{tiny}", "--data.source", "nothing"], "source 'nothing': unknown"),
        (["{tiny}", "--model.head", "linear"], "only keys of `data`"),
        (["{tiny}", "--data.image_size_px", "40"], "multiple of the patch of 16"),
        (["./nowhere"], "no such folder"),
        (["somebody/nothing"], "somebody/nothing"),
        (["{tiny}", "--more", "{empty}"], "no images found"),
    ],
)
def test_mistakes_end_in_a_message(
    words: list[str],
    said: str,
    drawn_cells: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "empty").mkdir()
    words = [word.format(tiny=tiny_backbone, empty=tmp_path / "empty") for word in words]
    with pytest.raises(SystemExit) as stop:
        main([*_arguments(drawn_cells, tmp_path / "out"), *words])
    assert stop.value.code in (1, 2)
    shown = capsys.readouterr().err
    assert said in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_the_floor_on_real_images(real_data: Path, tmp_path: Path) -> None:
    """Classical features reach at least what is published of the floor with this split, but for sampling noise."""
    root = real_data / "mll7"
    data = [
        "--data.source",
        "image_folder",
        "--data.root",
        str(root),
        "--data.split",
        str(root / "split.csv"),
    ]
    _run(["probe", "classical", *data, "--output", str(tmp_path), "--few-shot-draws", "0"])
    document = json.loads((tmp_path / "probe.json").read_text())
    found = document["systems"][0]["methods"]
    assert found["extra_trees"]["metrics"]["balanced_accuracy"]["value"] > 0.58
    assert found["svm"]["metrics"]["balanced_accuracy"]["value"] > 0.58
