"""Nothing is done twice, nothing of another recipe or other images is taken, and a failure ends all."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from study_runs import InThisProcess, make_backbone

from benchmarks.quality import arms, runs, study
from benchmarks.quality.backbones import StudyBackbone
from benchmarks.quality.images import load_images
from benchmarks.quality.scores import score_arms
from benchmarks.quality.settings import QualitySettings
from cytodino_hf.errors import CytoDinoError, DataError, RunFolderError
from cytodino_hf.evaluation.predictions import Predictions


def test_finished_runs_on_other_folds_or_more_images_are_not_taken(
    done: study.Study, settings: QualitySettings, images: Path, more: Path, tmp_path: Path
) -> None:
    copy = settings.model_copy(update={"output": tmp_path / "study"})
    shutil.copytree(settings.output, copy.output)
    changed = tmp_path / "split.csv"
    text = (images / "split.csv").read_text()
    assert "BLA_00007.png,BLA,train" in text
    changed.write_text(text.replace("BLA_00007.png,BLA,train", "BLA_00007.png,BLA,calibration"))
    with pytest.raises(RunFolderError, match="other data"):
        study.run(copy.model_copy(update={"split": changed}), start=InThisProcess)

    # Two folders of more images, one of which has lost a picture: the same recipe, another training fold.
    found = load_images(images, images / "split.csv", (more,), copy.output)
    (run,) = study.runs_of(arms.ARMS["with_more"], found, copy.model_copy(update={"seeds": (0,)}))
    on = StudyBackbone(settings.backbone, "", None)
    run.write_recipe(arms.recipe_of(arms.ARMS["with_more"], found, copy, on))
    InThisProcess(run)
    assert run.is_finished()
    fewer = tmp_path / "fewer"
    shutil.copytree(more, fewer)
    (fewer / "LYT" / "LYT_00002.png").unlink()
    other = load_images(images, images / "split.csv", (fewer,), copy.output)
    (again,) = study.runs_of(arms.ARMS["with_more"], other, copy.model_copy(update={"seeds": (0,)}))
    with pytest.raises(RunFolderError, match="other data"):
        again.is_finished()


def test_a_finished_run_in_another_precision_is_not_taken(
    done: study.Study, settings: QualitySettings, images: Path, tmp_path: Path
) -> None:
    shutil.copytree(settings.output, tmp_path / "study")
    found = load_images(images, images / "split.csv", (), tmp_path / "study")
    copy = settings.model_copy(update={"output": tmp_path / "study"})
    run = study.runs_of(arms.ARMS["published"], found, copy)[0]
    assert run.is_finished()
    file = run.folder.path / "environment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"precision": "bf16"}))
    with pytest.raises(RunFolderError, match="'bf16', the arm asks for 'no'"):
        run.is_finished()


@pytest.mark.parametrize(("precision", "expected"), [(None, "unset"), ("no", "no")])
def test_the_precision_a_study_inherited_is_not_handed_on(
    precision: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    popen = subprocess.Popen
    told = "import os; print(os.environ.get('ACCELERATE_MIXED_PRECISION', 'unset'), os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(
        runs.subprocess, "Popen", lambda words, **options: popen([sys.executable, "-c", told], **options)
    )
    monkeypatch.setattr(runs.Run, "is_finished", lambda self: False)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run = runs.Run("ours", 0, tmp_path, "", precision)
    runs.perform([run], jobs=2)
    assert run.log.read_text().split() == [expected, "3"]
    cost = runs.costs(tmp_path)[run.name]
    assert (cost.jobs, cost.threads) == (2, 3)


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
    wanted = [runs.Run(name, 0, tmp_path, "") for name in ("good", "bad", "late")]
    before = signal.getsignal(signal.SIGTERM)
    begun = time.monotonic()
    with pytest.raises(CytoDinoError, match=r"bad/seed0 failed \(exit code 2\): error: no memory left"):
        runs.perform(wanted, jobs=2)
    assert time.monotonic() - begun < 30
    assert [process.returncode for process in started] == [-signal.SIGTERM, 2]  # `late` never began
    assert signal.getsignal(signal.SIGTERM) == before
    runs.perform(wanted[2:], jobs=1)
    assert set(runs.costs(tmp_path)) == {"good/seed0", "late/seed0"}  # what was ended counts too


def test_the_parts_of_a_continued_run_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.Run, "is_finished", lambda self: False)
    run = runs.Run("ours", 0, tmp_path, "")

    class Stopped:
        def poll(self) -> runs.Cost | None:
            raise KeyboardInterrupt

        def stop(self) -> runs.Cost | None:
            return runs.Cost(5.0, 7.0)

    run.folder.path.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        runs.perform([run], jobs=1, start=lambda run: Stopped())

    class Ended(Stopped):
        def poll(self) -> runs.Cost | None:
            return runs.Cost(2.0, 3.0)

    runs.perform([run], jobs=2, start=lambda run: Ended())
    assert runs.costs(tmp_path) == {run.name: runs.Cost(7.0, 10.0, jobs=2)}
    run.folder.path.rmdir()  # somebody wants it trained anew
    runs.perform([run], jobs=1, start=lambda run: Ended())
    assert runs.costs(tmp_path) == {run.name: runs.Cost(2.0, 3.0)}


def test_a_finished_study_repeats_nothing_and_a_stopped_one_only_what_is_missing(
    done: study.Study, settings: QualitySettings
) -> None:
    InThisProcess.started.clear()
    again = study.run(settings, start=InThisProcess)
    assert InThisProcess.started == []
    assert again.arms == done.arms
    shutil.rmtree(settings.output / "runs" / "published" / "seed3")
    third = study.run(settings, start=InThisProcess)
    assert InThisProcess.started == ["published/seed3"]
    assert [arm.folds for arm in third.arms] == [
        arm.folds for arm in done.arms
    ]  # the same seed, the same run


def test_a_study_keeps_to_its_recipes_and_its_weights(
    done: study.Study, settings: QualitySettings, tmp_path: Path
) -> None:
    with pytest.raises(RunFolderError, match=r"training\.max_steps"):
        study.run(settings.model_copy(update={"max_steps": 2}), start=InThisProcess)
    study.run(settings, start=InThisProcess)  # the recipes of this study again
    other = make_backbone(tmp_path / "other", 1)
    with pytest.raises(CytoDinoError, match="another backbone"):
        study.run(settings.model_copy(update={"backbone": str(other)}), start=InThisProcess)


def test_runs_on_other_images_are_refused(
    done: study.Study, settings: QualitySettings, tmp_path: Path
) -> None:
    copy = tmp_path / "study"
    shutil.copytree(settings.output, copy)
    file = copy / "runs/published/seed0/predictions/test.parquet"
    predictions = Predictions.from_parquet(file)
    predictions.select(range(len(predictions) - 1)).to_parquet(file)
    found = load_images(settings.images, settings.split_file, (), copy)
    own = {
        arm.name: study.runs_of(arm, found, settings.model_copy(update={"output": copy}))
        for arm in arms.chosen(settings.only)
    }
    with pytest.raises(DataError, match="not of the same test"):
        score_arms(own, {"ours": "", "published": ""}, draws=100, reference="ours")
