"""Baselines: answers by scikit-learn, kept in the RUN, and an honest word where fine-tuning does not beat them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from sklearn.neighbors import KNeighborsClassifier
from transformers import AutoModel, DINOv3ViTConfig

from cytodino_hf.data.loading import load_split
from cytodino_hf.data.splits import Split
from cytodino_hf.errors import DataError
from cytodino_hf.evaluation import baselines as module
from cytodino_hf.evaluation import report
from cytodino_hf.evaluation.baseline_report import SHOWN, baselines_section, draw_baselines
from cytodino_hf.evaluation.baselines import (
    BASELINES,
    answers,
    baseline_predictions,
    kept_notes,
    own_backbone,
)
from cytodino_hf.evaluation.plots import figure_bytes
from cytodino_hf.evaluation.predictions import Predictions, softmax
from cytodino_hf.evaluation.report_parts import PARTS as PARTS_TABLE
from cytodino_hf.evaluation.report_parts import Asked, Evidence
from cytodino_hf.kept_run import KeptRun
from cytodino_hf.page import render_template
from cytodino_hf.recipe import Recipe, parse_recipe
from cytodino_hf.taxonomy import MLL

TAXONOMY = MLL.subset(["BLA", "LYT", "NGS"])
PARTS = Path(report.__file__).parent / "parts"


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(5)
    config = DINOv3ViTConfig(
        patch_size=8, image_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, num_register_tokens=1,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(
    backbone: Path,
    tmp_path_factory: pytest.TempPathFactory,
    make_images: Callable[..., Path],
    tiny_recipe: Callable[..., dict],
) -> tuple[Recipe, Split]:
    root = make_images(tmp_path_factory.mktemp("cells"), per_class=12)
    document = tiny_recipe(root, tmp_path_factory.mktemp("run") / "run")
    document["model"].pop("backbone_config")
    recipe = parse_recipe(
        document | {"model": document["model"] | {"backbone": str(backbone)}}, source="test"
    )
    return recipe, load_split(recipe)


def test_answers_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2], [30, 10])
    train = rng.normal(0, 1, (40, 6)) + 2 * labels[:, None]
    queries = rng.normal(0, 1, (9, 6)) + np.repeat([0, 4, 2], 3)[:, None]
    found = {name: logits for name, logits, _ in answers(train, labels, queries, 3)}
    assert list(found) == list(BASELINES)
    np.testing.assert_allclose(softmax(found["majority"])[0], [0.75, 0, 0.25], atol=1e-6)
    nearest = KNeighborsClassifier(1, metric="cosine", algorithm="brute").fit(train, labels).predict(queries)
    np.testing.assert_array_equal(found["knn_1"].argmax(1), nearest)
    np.testing.assert_allclose(softmax(found["logistic"]).sum(1), 1, atol=1e-6)
    assert all(np.isfinite(logits).all() for logits in found.values())
    # A class that was never trained on is never the answer.
    assert all((logits.argmax(1) != 1).all() for logits in found.values())


def test_one_class_to_learn_from_leaves_logistic_regression_out() -> None:
    given = answers(np.eye(3), np.zeros(3, dtype=int), np.ones((2, 3)), 2)
    found = {name: logits for name, logits, _ in given}
    assert list(found) == ["majority", "knn_1", "knn_20"]
    assert all((logits.argmax(1) == 0).all() for logits in found.values())


def test_the_backbone_is_the_runs_own(loaded: tuple, backbone: Path, tmp_path: Path) -> None:
    recipe, _ = loaded
    expected = AutoModel.from_pretrained(backbone).state_dict()
    found = own_backbone(recipe)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())
    assert all(torch.equal(expected[name], tensor) for name, tensor in found.state_dict().items())
    # The copy of a RUN goes before its origin; a folder that is not there changes nothing.
    found.norm.bias.data += 1
    found.save_pretrained(tmp_path / "base")
    kept = own_backbone(recipe, tmp_path / "base")
    assert torch.equal(kept.norm.bias, expected["norm.bias"] + 1)
    assert torch.equal(own_backbone(recipe, tmp_path / "nothing").norm.bias, expected["norm.bias"])


def test_a_backbone_from_scratch_is_that_of_the_seed(loaded: tuple, backbone: Path) -> None:
    recipe, _ = loaded
    values = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    scratch = recipe.model.model_copy(update={"backbone": None, "backbone_config": values})
    one, again = (own_backbone(replace(recipe, model=scratch)).state_dict() for _ in range(2))
    trained = AutoModel.from_pretrained(backbone).state_dict()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], trained[name]) for name in one)


def test_folds_are_answered_once_and_kept(
    loaded: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, split = loaded
    found = baseline_predictions(recipe, split, tmp_path)
    assert list(found) == list(BASELINES)
    images = split.images
    for per_fold in found.values():
        assert set(per_fold) == set(images.folds) - {"train"}
        for fold, predictions in per_fold.items():
            rows = images.fold(fold)
            assert predictions.ids == rows.column("id")
            assert predictions.labels.tolist() == rows.labels
            assert set(predictions.folds) == {fold}
    # Colours tell these squares apart: neighbours are right on nearly all.
    test = found["knn_1"]["test"]
    assert (test.predicted == test.labels).mean() > 0.5

    def never(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "frozen_features", never)
    again = baseline_predictions(recipe, split, tmp_path)
    np.testing.assert_array_equal(again["logistic"]["test"].logits, found["logistic"]["test"].logits)
    other = replace(recipe, evaluation=recipe.evaluation.model_copy(update={"precision": "bfloat16"}))
    with pytest.raises(AssertionError, match="computed again"):
        baseline_predictions(other, split, tmp_path)


def test_a_start_that_was_killed_begins_anew(
    loaded: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, split = loaded

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            baseline_predictions(recipe, split, tmp_path)
    assert list(baseline_predictions(recipe, split, tmp_path)) == list(BASELINES)


def test_a_fit_that_did_not_converge_is_kept_and_said(
    loaded: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, split = loaded
    baseline_predictions(recipe, split, tmp_path / "well")
    assert kept_notes(tmp_path / "well") == kept_notes(tmp_path / "nothing") == {}
    fit = module.fit_logistic
    monkeypatch.setattr(module, "fit_logistic", lambda *given: replace(fit(*given), converged=False))
    baseline_predictions(recipe, split, tmp_path / "badly")
    monkeypatch.undo()
    baseline_predictions(recipe, split, tmp_path / "badly")  # what is kept knows it
    notes = kept_notes(tmp_path / "badly")
    assert list(notes) == ["logistic"]
    assert "did not converge in 1000 iterations" in notes["logistic"]
    section = baselines_section(
        say(1, 1), {"logistic": say(0.2, 2)}, TAXONOMY, TAXONOMY.codes, notes=notes, draws=50
    )
    page = render_template(PARTS / "baselines.html", {}, section=section, figures={})
    assert f"logistic, frozen: {notes['logistic']}" in page.replace("&#39;", "'")
    without = baselines_section(
        say(1, 1), {"knn_1": say(0.2, 2)}, TAXONOMY, TAXONOMY.codes, notes=notes, draws=50
    )
    assert without["notes"] == []


def test_no_fold_to_score_and_no_training_image(loaded: tuple, tmp_path: Path) -> None:
    recipe, split = loaded
    train = replace(split, images=split.images.fold("train"))
    assert baseline_predictions(recipe, train, tmp_path) == {}
    with pytest.raises(DataError, match="training fold"):
        baseline_predictions(recipe, replace(split, images=split.images.fold("test")), tmp_path)


def say(skill: float, seed: int, n: int = 300) -> Predictions:
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


def test_what_is_not_beaten_is_said() -> None:
    ours = say(1.5, 1)
    others = {"majority": say(-3, 2), "knn_1": say(1.5, 3), "knn_20": say(4.0, 4), "logistic": say(0.2, 5)}
    section = baselines_section(ours, others, TAXONOMY, TAXONOMY.codes, draws=300)
    assert section["beaten"] == ["majority", "logistic"]
    assert section["not_beaten"] == ["knn_1", "knn_20"]
    unclear, worse = section["verdict"]
    assert unclear.startswith("Fine-tuning is not shown to beat kNN 1, frozen in macro F1: difference")
    assert worse.startswith("Fine-tuning is worse than kNN 20, frozen in macro F1")
    for system, predictions in zip(section["systems"], [ours, *others.values()], strict=True):
        expected = f1_score(predictions.labels, predictions.predicted, average="macro")
        assert system["metrics"]["macro_f1"]["value"] == pytest.approx(expected)
        assert system["metrics"]["macro_f1"]["n"] == 300
        assert ("nll" in system["metrics"]) == (system["name"] in ("fine-tuned", "majority", "logistic"))
    assert section["differences"]["knn_20"]["accuracy"]["verdict"] == "worse"
    json.dumps(section, allow_nan=False)


def test_all_beaten_names_the_closest_and_an_untrained_backbone_is_no_rival() -> None:
    others = {"majority": say(-3, 2), "knn_1": say(0.5, 3)}
    section = baselines_section(say(3, 1), others, TAXONOMY, TAXONOMY.codes, is_pretrained=False, draws=200)
    assert section["not_beaten"] == []
    assert "beats all 2 baselines" in section["verdict"][0]
    assert "the closest is kNN 1, frozen" in section["verdict"][0]
    assert "never trained" in section["verdict"][1]


def test_nothing_to_compare_says_why() -> None:
    ours = say(1, 1)
    assert "no baseline" in baselines_section(ours, {}, TAXONOMY, TAXONOMY.codes)["why"]
    unknown = replace(ours, labels=np.full(300, -1))
    section = baselines_section(unknown, {"knn_1": unknown}, TAXONOMY, TAXONOMY.codes)
    assert "no labelled image" in section["why"]
    assert "no labelled image" in baselines_section(ours, {"knn_1": ours}, TAXONOMY, [])["why"]
    page = render_template(PARTS / "baselines.html", {}, section=section, figures={})
    assert "No baseline: the fold has no labelled image" in page


def test_six_images_prove_nothing() -> None:
    ours, majority = say(9, 1, 6), say(9, 2, 6)
    majority = replace(majority, logits=np.tile([1.0, 0.0, 0.0], (6, 1)).astype(np.float32))
    others = {"majority": majority, "knn_1": say(9, 2, 6)}
    section = baselines_section(ours, others, TAXONOMY, TAXONOMY.codes, draws=100)
    assert section["beaten"] == []
    for found in section["differences"].values():
        assert not {row["verdict"] for row in found.values()} & {"better", "worse"}
        assert all(
            row["low_of_both"] is None or row["low_of_both"] < row["high_of_both"] for row in found.values()
        )
    assert section["differences"]["knn_1"]["macro_f1"]["low_of_both"] < -0.2
    assert section["differences"]["knn_1"]["critical_to_safe"]["n"] == 2
    assert section["verdict"][0].endswith("n = 6); they differ in 4 images, fewer than 10.")
    json.dumps(section, allow_nan=False)


def test_why_there_is_no_baseline_is_true(tmp_path: Path) -> None:
    def why(evidence: Evidence) -> str:
        ours = say(1, 1)
        drawn = {"draws": 10, "seed": 0, "level": 0.95}
        asked = Asked("run", "test", ours, {"test": ours}, TAXONOMY, TAXONOMY.codes, {}, evidence, drawn)
        section = PARTS_TABLE["baselines"].section(asked)
        assert isinstance(section, str)
        return section

    def gap(evaluation: dict) -> str:
        return KeptRun(tmp_path, {}, {"evaluation": evaluation}, {}, TAXONOMY).baselines_gap()

    assert why(Evidence(baselines_gap="a reason")) == "No baseline stands beside: a reason."
    assert "none answered the test fold" in why(Evidence(baselines={"knn_1": {"validation": say(1, 2)}}))
    assert gap({"baselines": False}) == "evaluation.baselines is false"
    assert "earlier version" in gap({})
    assert gap({"baselines": True}) == "predictions/baselines is missing"


def test_the_figure_and_the_page() -> None:
    others = {"majority": say(-3, 2), "knn_1": say(1.5, 3), "knn_20": say(2, 4), "logistic": say(0.2, 5)}
    section = baselines_section(say(1.5, 1), others, TAXONOMY, TAXONOMY.codes, draws=100)
    figure = draw_baselines(section)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["this run", "majority class", "kNN 1, frozen", "kNN 20, frozen", "logistic, frozen"]
    assert figure_bytes(figure, "svg") == figure_bytes(draw_baselines(section), "svg")
    page = render_template(PARTS / "baselines.html", {}, section=section, figures={"baselines": "data:x"})
    assert all(sentence.split(":")[0] in page for sentence in section["verdict"])
    assert set(SHOWN) <= set(section["systems"][0]["metrics"])


def test_one_class_to_name_has_a_verdict_without_interval() -> None:
    one = MLL.subset(["BLA"])
    same = replace(
        say(1, 1, 3), classes=one.codes, labels=np.zeros(3, int), logits=np.zeros((3, 1), np.float32)
    )
    section = baselines_section(same, {"majority": same}, one, one.codes, draws=20)
    assert section["verdict"][0].endswith("in macro F1: difference +0.000 (no interval, n = 3).")
    page = render_template(PARTS / "baselines.html", {}, section=section, figures={})
    assert '+0.000</span> <span class="range">no interval' in page
