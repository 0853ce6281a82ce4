"""Tables hold what the runs said, and what a reader must know to judge them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from study_runs import InThisProcess

from benchmarks.quality import study
from benchmarks.quality.images import DividedImages, StudyImages, load_images
from benchmarks.quality.probed import probed_rows
from benchmarks.quality.scores import _images_shown
from benchmarks.quality.settings import QualitySettings
from benchmarks.quality.tables import to_markdown
from cytodino_hf.data.sources import mll
from cytodino_hf.errors import CytoDinoError
from cytodino_hf.evaluation.comparison import ENOUGH_DISCORDANT
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.recipe import DataSection


def test_the_tables_hold_what_the_runs_said(done: study.Study, settings: QualitySettings) -> None:
    """Every mean, spread and difference again, from the Parquet files by scikit-learn and NumPy."""
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss

    def recomputed(arm: str, fold: str) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {}
        for seed in settings.seeds:
            p = Predictions.from_parquet(
                settings.output / f"runs/{arm}/seed{seed}/predictions/{fold}.parquet"
            )
            probabilities = np.exp(p.logits.astype(float)) / np.exp(p.logits.astype(float)).sum(
                1, keepdims=True
            )
            called, sure = probabilities.argmax(1), probabilities.max(1)
            ece = 0.0
            for k in range(15):
                inside = (sure >= k / 15) & ((sure < (k + 1) / 15) | (k == 14))
                if inside.any():
                    ece += inside.mean() * abs(sure[inside].mean() - (called == p.labels)[inside].mean())
            one = {
                "macro_f1": f1_score(p.labels, called, average="macro", zero_division=0),
                "balanced_accuracy": balanced_accuracy_score(p.labels, called),
                "accuracy": accuracy_score(p.labels, called),
                "nll": log_loss(p.labels, probabilities, labels=range(3)),
                "ece": ece,
                # Blasts (0) are critical; lymphocytes (1) and segmented neutrophils (2) are safe.
                "critical_to_safe": np.mean(called[p.labels == 0] != 0),
            }
            for name, value in one.items():
                values.setdefault(name, []).append(float(value))
        return values

    for fold, n in (("validation", 6), ("test", 9)):
        ours, published = recomputed("ours", fold), recomputed("published", fold)
        for arm, expected in zip(done.arms, (ours, published), strict=True):
            scores = arm.folds[fold]
            assert list(scores) == list(expected)
            for name, values in expected.items():
                assert scores[name].values == pytest.approx(values, abs=1e-6)
                assert scores[name].mean == pytest.approx(np.mean(values), abs=1e-6)
                assert scores[name].spread == pytest.approx(np.std(values, ddof=1), abs=1e-6)
                assert scores[name].mean_low <= scores[name].mean + 1e-9
                assert scores[name].mean_high >= scores[name].mean - 1e-9
        for name, score in done.arms[1].folds[fold].items():
            assert score.difference == pytest.approx(np.mean(published[name]) - np.mean(ours[name]), abs=1e-6)
            error = np.sqrt((np.var(published[name], ddof=1) + np.var(ours[name], ddof=1)) / 2)
            assert score.seed_error == pytest.approx(error, abs=1e-6)
            if error and name != "critical_to_safe":
                assert score.high - score.low > score.high_of_images - score.low_of_images
                is_outside = score.low is not None and not score.low <= 0 <= score.high
                assert score.is_clear == (is_outside and score.discordant >= ENOUGH_DISCORDANT)
            turned = done.ours_against_published[fold][name]
            assert (turned["difference"], turned["low"], turned["high"]) == (
                -score.difference, -score.high, -score.low,
            )  # fmt: skip
            assert turned["is_clear"] == score.is_clear
        assert done.images[fold] == n
    assert [arm.images_shown for arm in done.arms] == [16, 16]
    assert [arm.cpu_s for arm in done.arms] == [2.0, 2.0]
    assert [arm.precision for arm in done.arms] == [["no"], ["no"]]
    assert [arm.chosen_after for arm in done.arms] == [[16, 16], [16, 16]]


def test_pictures_shown_are_counted_with_the_short_steps_at_the_ends_of_epochs() -> None:
    """18 images drawn twice are epochs of 16, 16 and 4; seven steps are two epochs and 16."""
    training = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    report = {
        "recipe": {"training": training, "data": {"oversampling": {"multiplier": 2.0}}},
        "data": {"counts": {"train": {"BLA": 10, "LYT": 8}}},
        "training": {"processes": 1},
    }
    shown = [_images_shown(report, step) for step in (None, 0, 2, 3, 7)]
    assert shown == [None, 0, 32, 36, 88]


def test_notes_say_what_a_reader_must_know(done: study.Study) -> None:
    text = to_markdown(done)
    assert "Neither the number of metrics nor that of arms is corrected for" in text
    assert "over images and seeds" not in text  # said of the figure; here both are explained
    assert "runs at once: 1, threads of each: 1" in text
    minutes = done.arms[1].seconds / 60
    assert f"| as published | 16 | {minutes:.1f} | 0.0 | float32 | 16; 16 |" in text
    assert "one draw serves the four images" in text
    # Six images of each class: nothing to balance, and it says so; with other ratios it gives them.
    assert "sampler and class weights have nothing to balance here" in text
    uneven = done.model_copy(update={"train_classes": {"BLA": 6, "LYT": 3}})
    assert "nothing to balance" not in to_markdown(uneven)
    thinned = uneven.model_copy(update={"settings": uneven.settings | {"natural_ratios": True}})
    assert "thinned to the class ratios of the full MLL set (seed 0" in to_markdown(thinned)
    assert "nothing to balance" not in to_markdown(thinned)
    sure = done.arms[0].sureness
    assert sure is not None
    assert f"| ours | {sure.confidence:.3f} | {sure.accuracy:.3f} | {sure.temperature:.3f} |" in text
    assert sure.accuracy == pytest.approx(done.arms[0].folds["test"]["accuracy"].mean)
    bare = [arm.model_copy(update={"sureness": None}) for arm in done.arms]
    assert "how sure" not in to_markdown(done.model_copy(update={"arms": bare}))
    alone = done.model_copy(update={"settings": done.settings | {"seeds": [0]}})
    assert "with one seed it does not hold what other seeds would change" in to_markdown(alone)


def test_clear_differences_are_bold_and_name_the_better(done: study.Study) -> None:
    ours, published = done.arms
    score = published.folds["test"]["macro_f1"].model_copy(
        update={"difference": -0.1, "low": -0.15, "high": -0.05, "is_clear": True}
    )
    arm = published.model_copy(
        update={"folds": published.folds | {"test": published.folds["test"] | {"macro_f1": score}}}
    )
    shown = done.model_copy(
        update={"arms": [ours, arm], "ours_against_published": study._ours_against_published([ours, arm])}
    )
    assert "**-0.100 (-0.150 to -0.050)**" in to_markdown(shown)
    assert "+0.100 (+0.050 to +0.150) | ours |" in to_markdown(shown)
    arm.folds["test"]["macro_f1"] = score.model_copy(update={"is_clear": False})
    shown.ours_against_published["test"]["macro_f1"]["is_clear"] = False
    assert "; -0.100 (-0.150 to -0.050)" in to_markdown(shown)
    assert "+0.100 (+0.050 to +0.150) | undecided |" in to_markdown(shown)


def test_a_probe_of_the_same_images_stands_beside(
    done: study.Study, settings: QualitySettings, images: Path, tmp_path: Path
) -> None:
    from cytodino_hf.probing.probe import ProbeOptions, run_probe

    data = DataSection(source="mll", root=str(images), split=str(images / "split.csv"), image_size_px=16)
    options = ProbeOptions(
        (settings.backbone, f"random:{settings.backbone}"), data, {"mll": mll.Options()}, tmp_path / "probe",
        seeds=(1, 2), few_shot_draws=0, interval_draws=100, command=f"cytodino probe 'a b' --data.root {images}",
    )  # fmt: skip
    document = run_probe(options)
    beside = study.run(
        settings.model_copy(update={"probe": (tmp_path / "probe" / "probe.json",)}), start=InThisProcess
    )
    assert [(row.system.startswith("untrained"), row.is_of_study, row.method) for row in beside.probed][
        :5
    ] == [
        (False, True, "kNN 1"), (False, True, "kNN 20"), (False, True, "logistic regression"),
        (False, True, "logistic, C chosen"), (True, False, "kNN 1"),
    ]  # fmt: skip
    metrics = document["systems"][0]["methods"]["logistic"]["metrics"]
    for name, score in beside.probed[2].scores.items():
        assert (score.value, score.low, score.high) == tuple(
            metrics[name][key] for key in ("value", "low", "high")
        )
    f1 = metrics["macro_f1"]
    text = study.write(beside, json=tmp_path / "study.json")
    assert (
        f"(of this study), logistic regression | {f1['value']:.3f} ({f1['low']:.3f} to {f1['high']:.3f}) |"
        in text
    )
    assert "--probe probe.json" in text
    assert f"Frozen features: `{beside.probed[0].command}`" in text
    assert beside.probed[0].command == f"cytodino probe 'a b' --data.root {images.name}"
    assert str(tmp_path) not in text + (tmp_path / "study.json").read_text()

    other = load_images(images, images / "split.csv", (), tmp_path)
    fewer = other.plain.images.select(range(1, 36))
    changed = StudyImages(DividedImages(fewer, other.plain.section))
    with pytest.raises(CytoDinoError, match=r"other images or folds.*--data\.source mll"):
        probed_rows([tmp_path / "probe" / "probe.json"], changed, "")
    with pytest.raises(CytoDinoError, match="was not written by `cytodino probe`"):
        probed_rows([tmp_path / "study.json"], other, "")
    with pytest.raises(CytoDinoError, match="cannot be read"):
        probed_rows([tmp_path / "none.json"], other, "")


def test_what_is_written_names_no_folder_of_this_machine(done: study.Study, tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\nBefore.\n")
    text = study.write(
        done, json=tmp_path / "study.json", results=results, figure=tmp_path / "docs" / "study.png"
    )
    assert study.write(done, results=results) == text  # a second time in its place
    kept = results.read_text()
    assert kept.count("<!-- benchmark quality: Ours against as published -->") == kept.count(text) == 1
    document = (tmp_path / "study.json").read_text()
    assert str(tmp_path.parent) not in document + text
    assert json.loads(document)["arms"][1]["recipe"]["loss"]["name"] == "hierarchical_focal_published"
    macro = done.arms[0].folds["test"]["macro_f1"]
    assert f"| macro F1 | {macro.mean:.3f} (SD {macro.spread:.3f}) |" in text
    assert "validation fold (it decides)" in text
    assert (tmp_path / "docs" / "study.png").read_bytes().startswith(b"\x89PNG")
