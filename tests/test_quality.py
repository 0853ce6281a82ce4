"""The studies of quality: arms follow the recipes, nothing is done twice, tables hold what the runs said."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ lies in a checkout and is not installed

from benchmarks.quality import arms, pretraining_time, runs, study  # noqa: E402
from benchmarks.quality.images import load_images  # noqa: E402
from benchmarks.quality.scores import Score, score_arms  # noqa: E402
from benchmarks.quality.settings import (  # noqa: E402
    PretrainingTimeSettings,
    QualitySettings,
    checked_settings,
    command_line,
)
from cytodino_hf.cli import main  # noqa: E402
from cytodino_hf.errors import CytoDinoError, DataError, RunFolderError  # noqa: E402
from cytodino_hf.evaluation.predictions import Predictions  # noqa: E402
from cytodino_hf.recipe import load_recipe, parse_recipe  # noqa: E402

CLASSES = ("BLA", "LYT", "NGS")
FOLD_OF = {1: "validation", 2: "validation", 3: "test", 4: "test", 5: "test", 6: "calibration"}
# Of the recipes: where and how fast, not what; or the same for both ways in a study.
SAME_FOR_ALL = {("data", "source"), ("training", "output_dir"), ("training", "dataloader_num_workers"),
                ("training", "per_device_eval_batch_size")}  # fmt: skip


class InThisProcess:
    """A run without a process of its own."""

    started: list[str] = []  # noqa: RUF012 (the tests of this file share it and clear it)

    def __init__(self, run: runs.Run) -> None:
        from cytodino_hf.finetune import finetune

        self.started.append(run.name)
        finetune(load_recipe(run.recipe_file))

    def poll(self) -> runs.Cost | None:
        return runs.Cost(2.0, 3.0)

    def stop(self) -> None:
        pass


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    """Twelve pictures a class with a split.csv."""
    root = make_images(tmp_path_factory.mktemp("quality"), CLASSES)
    with open(root / "split.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "fold"))
        for path in sorted(root.glob("*/*.png")):
            number = int(path.stem.rpartition("_")[2])
            writer.writerow(
                (path.relative_to(root).as_posix(), path.parent.name, FOLD_OF.get(number, "train"))
            )
    return root


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other pictures of the same classes."""
    from PIL import Image

    root = tmp_path_factory.mktemp("more")
    rng = np.random.default_rng(5)
    for code in CLASSES:
        (root / code).mkdir()
        for i in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(
                root / code / f"{code}_{i + 1:05d}.png"
            )  # the same names as in the set
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_backbone(tmp_path_factory.mktemp("backbone"), 0)


def make_backbone(folder: Path, seed: int) -> Path:
    from transformers import AutoModel, DINOv3ViTConfig, set_seed

    set_seed(seed)
    config = DINOv3ViTConfig(
        patch_size=8, image_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=32, num_register_tokens=0,
    )  # fmt: skip
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, images: Path, backbone: Path) -> QualitySettings:
    return QualitySettings(
        images=images,
        images_name="coloured squares",
        backbone=str(backbone),
        seeds=(0, 3),
        output=tmp_path_factory.mktemp("study"),
        only=("ours", "published"),
        image_size_px=16,
        max_steps=1,
        draws=200,
    )


@pytest.fixture(scope="module")
def done(settings: QualitySettings) -> study.Study:
    """Two arms with two seeds."""
    InThisProcess.started.clear()
    return study.run(settings, start=InThisProcess)


def flat(document: dict[str, Any]) -> dict[tuple[str, str], Any]:
    return {
        (section, key): value for section, keys in document.items() for key, value in keys.items()
        if (section, key) not in SAME_FOR_ALL
    }  # fmt: skip


def test_what_the_arms_take_from_the_published_recipe_is_all_it_differs_in() -> None:
    takes = tuple(key for arm in arms.ARMS.values() for key in arm.takes)
    together = flat(arms.changed(arms.Arm("all", "", takes=takes)))
    published = flat(arms.changed(arms.ARMS["published"]))
    defaults = flat(
        parse_recipe({"model": {"backbone": "a/b"}, "training": {"output_dir": "x"}}, source="").to_dict()
    )
    different = {
        key for key in together.keys() | published.keys()
        if together.get(key, defaults.get(key)) != published.get(key, defaults.get(key))
    }  # fmt: skip
    assert different == set()
    assert arms.ARMS["published"].precision == arms.ARMS["float32"].precision == "no"


def test_every_arm_changes_something_and_the_unchanged_ones_are_the_recipes() -> None:
    unchanged = {
        name: [a.name for a in arms.ARMS.values() if a.recipe == name and arms.changed(a) == arms._read(name)]
        for name in (arms.OURS, arms.PUBLISHED)
    }
    assert unchanged == {
        arms.OURS: ["ours", "float32", "with_more", "with_more_long"],
        arms.PUBLISHED: ["published", "published_with_more"],
    }


@pytest.mark.parametrize("name", arms.ARMS)
def test_an_arm_is_a_recipe_that_shows_as_many_images(
    name: str, images: Path, more: Path, backbone: Path, tmp_path: Path
) -> None:
    arm = arms.ARMS[name]
    found = load_images(images, images / "split.csv", (more,) if arm.more != "none" else (), tmp_path)
    settings = QualitySettings(images=images, backbone=str(backbone), output=tmp_path, image_size_px=16)
    document = arms.recipe_of(arm, found, settings, str(backbone))
    document["training"] |= {"output_dir": "x", "seed": 0}
    recipe = parse_recipe(document, source=name)
    train = 18 + (12 if arm.more != "none" else 0)  # 6 of 12 pictures of 3 classes, and 4 more of each
    shown = recipe.training.num_train_epochs * recipe.data.oversampling.multiplier * train
    # 8 epochs with a multiplier of 2, as both recipes have it: 16 passes over the training images.
    assert shown == pytest.approx(16 * (30 if arm.more == "all" else 18))
    batch = 4 if name in ("published", "published_with_more", "batch") else 16
    assert recipe.training.per_device_train_batch_size == batch
    assert recipe.training.gradient_accumulation_steps == 1
    assert (recipe.data.image_size_px, recipe.model.backbone) == (16, str(backbone))
    halved = arms.recipe_of(arm, found, settings.model_copy(update={"epochs": 4}), "b")
    assert halved["training"]["num_train_epochs"] == recipe.training.num_train_epochs / 2
    trial = arms.recipe_of(arm, found, settings.model_copy(update={"max_steps": 10}), "b")
    assert trial["training"]["max_steps"] * batch == 160


def test_a_finished_study_repeats_nothing_and_a_stopped_one_only_what_is_missing(
    done: study.Study, settings: QualitySettings
) -> None:
    assert InThisProcess.started == ["ours/seed0", "published/seed0", "ours/seed3", "published/seed3"]
    again = study.run(settings, start=InThisProcess)
    assert len(InThisProcess.started) == 4
    assert again.arms == done.arms
    shutil.rmtree(settings.output / "runs" / "published" / "seed3")
    third = study.run(settings, start=InThisProcess)
    assert InThisProcess.started[4:] == ["published/seed3"]
    assert [arm.folds for arm in third.arms] == [
        arm.folds for arm in done.arms
    ]  # the same seed, the same run


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
        for name, score in done.arms[1].folds[fold].items():
            assert score.difference == pytest.approx(np.mean(published[name]) - np.mean(ours[name]), abs=1e-6)
            error = np.sqrt((np.var(published[name], ddof=1) + np.var(ours[name], ddof=1)) / 2)
            assert score.seed_error == pytest.approx(error, abs=1e-6)
            turned = done.ours_against_published[fold][name]
            assert (turned["difference"], turned["low"], turned["high"]) == (
                -score.difference, -score.high, -score.low,
            )  # fmt: skip
        assert done.images[fold] == n
    assert [arm.images_shown for arm in done.arms] == [16, 16]
    assert [arm.cpu_s for arm in done.arms] == [2.0, 2.0]


def test_a_difference_is_clear_only_beyond_images_and_seeds() -> None:
    score = Score(mean=0.6, spread=0.1, values=[0.5, 0.7], difference=0.2, low=0.1, high=0.3, seed_error=0.09)
    assert score.is_clear
    assert not score.model_copy(update={"seed_error": 0.11}).is_clear
    assert not score.model_copy(update={"low": -0.01}).is_clear
    assert score.model_copy(update={"seed_error": None}).is_clear
    assert not Score(mean=0.6, spread=None, values=[0.6]).is_clear


def test_what_is_written_names_no_folder_of_this_machine(done: study.Study, tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\nBefore.\n")
    text = study.write(
        done, json=tmp_path / "study.json", results=results, figure=tmp_path / "docs" / "study.png"
    )
    assert study.write(done, results=results) == text  # a second time in its place
    kept = results.read_text()
    assert kept.count("<!-- benchmark quality -->") == kept.count(text) == 1
    document = (tmp_path / "study.json").read_text()
    assert str(tmp_path.parent) not in document + text
    assert json.loads(document)["arms"][1]["recipe"]["loss"]["name"] == "hierarchical_focal_published"
    macro = done.arms[0].folds["test"]["macro_f1"]
    assert f"| macro F1 | {macro.mean:.3f} (SD {macro.spread:.3f}) |" in text
    assert "validation fold (it decides)" in text
    assert (tmp_path / "docs" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_runs_on_other_images_are_refused(
    done: study.Study, settings: QualitySettings, tmp_path: Path
) -> None:
    copy = tmp_path / "study"
    shutil.copytree(settings.output, copy)
    file = copy / "runs/published/seed0/predictions/test.parquet"
    predictions = Predictions.from_parquet(file)
    predictions.select(range(len(predictions) - 1)).to_parquet(file)
    own = {
        arm.name: study.runs_of(arm, settings.model_copy(update={"output": copy}))
        for arm in arms.chosen(settings.only)
    }
    with pytest.raises(DataError, match="not of the same test"):
        score_arms(own, {"ours": "", "published": ""}, draws=100, reference="ours")


def test_a_study_keeps_to_its_recipes_and_its_weights(
    done: study.Study, settings: QualitySettings, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"training\.max_steps"):
        study.run(settings.model_copy(update={"max_steps": 2}), start=InThisProcess)
    study.run(settings, start=InThisProcess)  # the recipes of this study again
    other = make_backbone(tmp_path / "other", 1)
    with pytest.raises(CytoDinoError, match="another backbone"):
        study.run(settings.model_copy(update={"backbone": str(other)}), start=InThisProcess)


def test_more_images_join_the_training_fold_and_no_other(images: Path, more: Path, tmp_path: Path) -> None:
    from cytodino_hf.data.loading import load_split

    plain = load_images(images, images / "split.csv", (), tmp_path)
    found = load_images(images, images / "split.csv", (more,), tmp_path)
    assert (found.more, found.train_of(True), found.train_of(False)) == (12, 30, 18)
    document = {
        "data": found.section(with_more=True),
        "model": {"backbone": "a/b"},
        "training": {"output_dir": "x"},
    }
    split = load_split(parse_recipe(document, source="test"))
    ids, folds, paths = (split.images.column(name) for name in ("id", "fold", "path"))
    by_id = dict(zip(ids, folds, strict=True))
    assert {by_id[name] for name in ids if name.startswith("more")} == {"train"}
    assert sum(name.startswith("more") for name in ids) == 12
    assert all((found.common_root / path).is_file() for path in paths)
    # Every image of the set itself has the id and the fold it has without more images.
    own = dict(zip(plain.folds.column("id"), plain.folds.folds, strict=True))
    assert {name: fold for name, fold in by_id.items() if not name.startswith("more")} == own


def test_more_images_that_show_a_test_image_are_refused(images: Path, more: Path, tmp_path: Path) -> None:
    leak = tmp_path / "leak"
    shutil.copytree(more, leak)
    shutil.copy(images / "LYT" / "LYT_00003.png", leak / "LYT" / "LYT_00099.png")
    with pytest.raises(DataError, match="LYT_00003"):
        load_images(images, images / "split.csv", (leak,), tmp_path)
    with pytest.raises(CytoDinoError, match="lies in the set that is tested"):
        load_images(images, images / "split.csv", (images,), tmp_path)
    with pytest.raises(CytoDinoError, match="--more"):
        load_images(images, images / "split.csv", (), tmp_path).section(with_more=True)


def test_mistakes_of_the_command_are_told_before_anything_runs(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", "quality", "--images", str(images), "--output", str(tmp_path / "x"), *words])
        assert stop.value.code
        return capsys.readouterr().err

    assert "no such arm" in told("--only", "ours,hers", "--backbone", "b")
    assert "whole numbers" in told("--seeds", "0,a")
    assert "different numbers" in told("--seeds", "1,1")
    assert "name a CSV" in told("--split", str(tmp_path / "none.csv"))
    assert not (tmp_path / "x").exists()
    values = {
        "images": images,
        "output": tmp_path,
        "backbone": "lab/vit",
        "epochs": 4.0,
        "more": (tmp_path / "m",),
    }
    command = command_line("quality", checked_settings("QualitySettings", values))
    assert (
        command
        == "cytodino benchmark quality --images ROOT --output DIR --epochs 4.0 --more m --backbone lab/vit"
    )


def test_a_run_that_fails_stops_the_study_and_names_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes of small programs: one fails, the other is ended with it."""
    programs = {
        "bad/seed0": "import time; time.sleep(0.3); print('error: no memory left'); raise SystemExit(2)",
        "good/seed0": "import time; time.sleep(60)",
        "late/seed0": "raise SystemExit(0)",
    }
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def small(words: list[str], **options: Any) -> Any:
        name = Path(words[-1]).relative_to(tmp_path / "recipes").with_suffix("").as_posix()
        started.append(popen([sys.executable, "-c", programs[name]], **options))
        return started[-1]

    monkeypatch.setattr(runs.subprocess, "Popen", small)
    monkeypatch.setattr(runs.Run, "is_finished", lambda self: False)
    wanted = [runs.Run(name, 0, tmp_path) for name in ("good", "bad", "late")]
    before = signal.getsignal(signal.SIGTERM)
    begun = time.monotonic()
    with pytest.raises(CytoDinoError, match=r"bad/seed0 failed \(exit code 2\): error: no memory left"):
        runs.perform(wanted, jobs=2)
    assert time.monotonic() - begun < 30
    assert [process.returncode for process in started] == [-signal.SIGTERM, 2]  # `late` never began
    assert signal.getsignal(signal.SIGTERM) == before
    runs.perform(wanted[2:], jobs=1)
    assert set(runs.costs(tmp_path)) == {"late/seed0"}


def test_quality_over_the_time_of_pretraining(images: Path, backbone: Path, tmp_path: Path) -> None:
    """Two backbones of known times; logistic regression again by scikit-learn on features of our own."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from transformers import AutoModel

    folders = []
    for name, seconds in (("long", 600.0), ("short", 60.0)):
        folder = tmp_path / name / "backbone"
        shutil.copytree(backbone, folder)
        log = [{"step": 1, "loss": 1.0}, {"step": 2, "seconds": seconds / 2, "knn20_balanced_accuracy": 0.4}]
        record = {
            "training": {"seconds": seconds, "images_seen": 320, "log_history": log},
            "environment": {"gpus": [], "processor": "a processor", "cores": 2},
        }
        (folder / "pretraining.json").write_text(json.dumps(record))
        folders.append(folder)
    settings = PretrainingTimeSettings(
        images=images, backbones=tuple(folders), output=tmp_path / "study", seeds=(0, 1), image_size_px=32,
        fine_tune=False, draws=200,
    )  # fmt: skip
    found = pretraining_time.run(settings, start=InThisProcess)
    assert [(one.name, one.seconds) for one in found.backbones] == [
        ("untrained", 0.0), ("short", 60.0), ("long", 600.0),
    ]  # fmt: skip
    assert found.backbones[1].monitored == [(30.0, 0.4)]
    assert found.backbones[0].scores["logistic"].seeds == 2

    model = AutoModel.from_pretrained(backbone).eval()
    split = load_images(images, images / "split.csv", (), tmp_path).folds

    def features(fold: str) -> np.ndarray:
        from PIL import Image

        part = split.fold(fold)
        pixels = np.stack([np.asarray(Image.open(images / path)) for path in part.column("path")]) / 255
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        with torch.no_grad():
            batch = torch.tensor(((pixels - mean) / std).transpose(0, 3, 1, 2), dtype=torch.float32)
            return model(batch).last_hidden_state[:, 0].numpy()

    # DinoBloom's protocol: C = width x classes / 100.
    probe = LogisticRegression(C=16 * 3 / 100, max_iter=1000).fit(
        features("train"), split.fold("train").labels
    )
    expected = balanced_accuracy_score(split.fold("test").labels, probe.predict(features("test")))
    for one in found.backbones[1:]:
        assert one.scores["logistic"].value == pytest.approx(expected)
    text = pretraining_time.write(found, json=tmp_path / "t.json", figure=tmp_path / "t.png")
    assert f"| long | 10.0 | 320 | {found.backbones[2].scores['knn_1'].value:.3f}" in text
    assert str(tmp_path) not in text + (tmp_path / "t.json").read_text()
    with pytest.raises(CytoDinoError, match=r"pretraining\.json"):
        pretraining_time.run(settings.model_copy(update={"backbones": (backbone,)}))


@pytest.mark.slow
def test_the_command_itself(images: Path, backbone: Path, tmp_path: Path) -> None:
    """Real processes, two at a time, from the command line to the tables."""
    words = [
        "benchmark", "quality", "--images", str(images), "--output", str(tmp_path / "study"), "--backbone",
        str(backbone), "--seeds", "0", "--only", "ours,published", "--image-size-px", "16", "--max-steps", "1",
        "--jobs", "2", "--json", str(tmp_path / "study.json"),
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "cytodino_hf", *words], check=True, cwd=ROOT)
    document = json.loads((tmp_path / "study.json").read_text())
    assert [arm["seeds"] for arm in document["arms"]] == [[0], [0]]
    assert all(arm["cpu_s"] > 0 for arm in document["arms"])
    environments = {
        arm: json.loads((tmp_path / f"study/runs/{arm}/seed0/environment.json").read_text())["precision"]
        for arm in ("ours", "published")
    }
    assert environments["published"] == "no"


def test_arms_have_different_names_and_a_reference() -> None:
    assert next(iter(arms.ARMS)) == "ours"
    assert [arm.name for arm in arms.chosen(())][:2] == ["ours", "published"]
    assert [arm.name for arm in arms.chosen(("published", "ours"))] == ["ours", "published"]
    assert len({arm.title for arm in arms.ARMS.values()}) == len(arms.ARMS)
