"""The main job on small pictures: every method and kind of base, loaded again where our package is not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cytodino_hf.errors import RunFolderError
from cytodino_hf.evaluation.predictions import Predictions, read_embeddings
from cytodino_hf.finetune import finetune
from cytodino_hf.model.modeling_cytodino import CytoDinoForImageClassification
from cytodino_hf.recipe import parse_recipe

TESTS = Path(__file__).parent
HUB_ID, HUB_COMMIT = "lab/tiny-dinov3", "0123456789abcdef0123456789abcdef01234567"
DINOV2 = {
    "model_type": "dinov2", "patch_size": 14, "image_size": 28, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "mlp_ratio": 2,
}  # fmt: skip
# Name of a variant -> changes to the tiny recipe, files its RUN must hold, files it must not.
VARIANTS: dict[str, tuple[dict[str, Any], set[str], set[str]]] = {
    "lora_scratch": (
        {},
        {"adapter/adapter_model.safetensors", "base/model.safetensors"},
        {"model.safetensors"},
    ),
    "lora_norms_biases": (
        {"model": {"train_norms": True, "train_biases": True, "head": "linear"}},
        {"adapter/adapter_model.safetensors", "base/model.safetensors"},
        {"model.safetensors"},
    ),
    "head_scratch": (
        {"model": {"method": "head", "train_norms": True}},
        {"adapter/trained.safetensors", "base/model.safetensors"},
        {"model.safetensors", "adapter/adapter_config.json"},
    ),
    "full_scratch": ({"model": {"method": "full"}}, {"model.safetensors"}, {"adapter", "base"}),
    "lora_dinov2": (
        {"model": {"backbone_config": DINOV2}, "data": {"image_size_px": 28}},
        {"adapter/adapter_model.safetensors", "base/model.safetensors"},
        {"model.safetensors"},
    ),
    "lora_hub": ({}, {"adapter/adapter_model.safetensors"}, {"model.safetensors", "base"}),
    "head_hub": (
        {"model": {"method": "head"}},
        {"adapter/trained.safetensors"},
        {"model.safetensors", "base"},
    ),
    "lora_local": (
        {},
        {"adapter/adapter_model.safetensors", "base/model.safetensors"},
        {"model.safetensors"},
    ),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("images"), per_class=10)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, images: Path, tiny_recipe: Callable[..., dict]
) -> dict[str, Path]:
    """Every variant, trained for four steps."""
    folder = tmp_path_factory.mktemp("runs")
    local = folder / "local_backbone"
    cache = folder / "hub_cache"
    make_backbone(tiny_recipe(images, folder)["model"]["backbone_config"], cached_repository(cache))
    made = {}
    for name, (changes, _, _) in VARIANTS.items():
        document = tiny_recipe(images, folder / name, **changes)
        if name == "lora_local":
            make_backbone(document["model"].pop("backbone_config"), local)
            document["model"]["backbone"] = str(local)
        if name.endswith("_hub"):
            del document["model"]["backbone_config"]
            document["model"]["backbone"] = HUB_ID
            document["hub"] = {"cache_dir": str(cache), "local_files_only": True}
        made[name] = finetune(parse_recipe(document, source=name)).path
    return made


def cached_repository(cache: Path) -> Path:
    """The folder of a repository's files in a local cache of the Hub, as a download would have left it."""
    repository = cache / f"models--{HUB_ID.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(HUB_COMMIT)
    return repository / "snapshots" / HUB_COMMIT


def make_backbone(values: dict[str, Any], folder: Path) -> None:
    from transformers import AutoModel, DINOv3ViTConfig

    config = DINOv3ViTConfig(**{k: v for k, v in values.items() if k != "model_type"})
    AutoModel.from_config(config).save_pretrained(folder)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_holds_what_its_method_says(runs: dict[str, Path], name: str) -> None:
    run, (_, wanted, unwanted) = runs[name], VARIANTS[name]
    always = {
        "config.json", "preprocessor_config.json", "configuration_cytodino.py", "modeling_cytodino.py",
        "image_processing_cytodino.py", "recipe.json", "environment.json", "split.csv", "run.json",
        "predictions/validation.parquet", "predictions/calibration.parquet", "predictions/test.parquet",
        "predictions/embeddings.parquet", "report/report.json", "report/report.html",
    }  # fmt: skip
    assert [f for f in sorted(wanted | always) if not (run / f).exists()] == []
    assert [f for f in sorted(unwanted) if (run / f).exists()] == []


def test_pipeline_without_our_package_gives_the_saved_probabilities(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "scores.json"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_CACHE": str(runs["lora_hub"].parent / "hub_cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(TESTS / "score_without_package.py"), str(out), *map(str, runs.values())]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path)
    scores = json.loads(out.read_text())
    for name, run in runs.items():
        saved = Predictions.from_parquet(run / "predictions" / "test.parquet").probabilities
        np.testing.assert_allclose(scores[name]["probabilities"], saved, atol=1e-5, err_msg=name)
        assert "transformers_modules" in scores[name]["module"]
        assert not scores[name]["training"]
        assert not scores[name]["peft"]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_folder_can_move(runs: dict[str, Path], name: str, tmp_path: Path) -> None:
    """No path of this machine in what is loaded: a moved RUN loads, and its files name no folder."""
    import shutil

    moved = tmp_path / "elsewhere"
    shutil.copytree(runs[name], moved)
    cache = runs[name].parent / "hub_cache"
    CytoDinoForImageClassification.from_pretrained(moved, cache_dir=cache, local_files_only=True)
    for file in (moved / "config.json", moved / "adapter" / "adapter_config.json"):
        if file.exists():
            assert str(runs[name].parent) not in file.read_text()


@pytest.mark.parametrize("name", ["lora_hub", "head_hub"])
def test_a_backbone_on_the_hub_is_named_by_id_and_commit(runs: dict[str, Path], name: str) -> None:
    config = json.loads((runs[name] / "config.json").read_text())
    assert (config["base_model_name_or_path"], config["base_model_revision"]) == (HUB_ID, HUB_COMMIT)


def test_the_run_notes_its_environment_and_split(runs: dict[str, Path]) -> None:
    noted = json.loads((runs["full_scratch"] / "environment.json").read_text())
    assert {"packages", "python", "system", "processor", "cores", "gpus", "precision", "git_commit"} <= set(
        noted
    )
    assert noted["packages"]["torch"].startswith("2.")
    rows = (runs["full_scratch"] / "split.csv").read_text().splitlines()
    assert rows[0] == "path,label,fold,group"
    assert {row.split(",")[2] for row in rows[1:]} == {"train", "validation", "calibration", "test"}


def test_predictions_and_embeddings_agree(runs: dict[str, Path]) -> None:
    run = runs["lora_scratch"]
    ids, embeddings = read_embeddings(run / "predictions" / "embeddings.parquet")
    names = ("validation", "calibration", "test")
    folds = [Predictions.from_parquet(run / "predictions" / f"{name}.parquet") for name in names]
    assert ids == [name for fold in folds for name in fold.ids]
    assert embeddings.shape == (len(ids), 32)
    assert len(set(ids)) == len(ids)
    split = (run / "split.csv").read_text().splitlines()[1:]
    assert len(split) == 30


def test_the_report_has_the_promised_keys(runs: dict[str, Path]) -> None:
    report = json.loads((runs["lora_scratch"] / "report" / "report.json").read_text())
    for name in (
        "macro_f1", "accuracy", "balanced_accuracy", "weighted_f1", "weighted_precision", "weighted_recall",
        "macro_precision", "macro_recall",
    ):  # fmt: skip
        entry = report["test"]["metrics"][name]
        assert 0 <= entry["low"] <= entry["value"] <= entry["high"] <= 1
    assert report["split_promise"].startswith("not patient-safe")
    assert not any(
        note.startswith("backbone:") for note in report["data"]["notes"]
    )  # random weights saw nothing
    on_hub = json.loads((runs["lora_hub"] / "report" / "report.json").read_text())
    assert any(f"what images {HUB_ID} saw" in note for note in on_hub["data"]["notes"]), on_hub["data"][
        "notes"
    ]
    page = (runs["lora_scratch"] / "report" / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_finished_run_is_left_alone(
    runs: dict[str, Path], images: Path, tiny_recipe: Callable[..., dict], caplog: pytest.LogCaptureFixture
) -> None:
    run = runs["lora_scratch"]
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    with caplog.at_level(logging.WARNING):
        finetune(parse_recipe(tiny_recipe(images, run), source="again"))
    assert "finished" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_another_recipe_in_the_folder_is_refused(
    runs: dict[str, Path], images: Path, tiny_recipe: Callable[..., dict]
) -> None:
    document = tiny_recipe(images, runs["lora_scratch"], model={"lora_rank": 8})
    with pytest.raises(RunFolderError, match=r"model\.lora_rank: 4 there, 8 now"):
        finetune(parse_recipe(document, source="other"))


def test_interrupted_and_started_again_equals_uninterrupted(
    images: Path, tiny_recipe: Callable[..., dict], tmp_path: Path, runs: dict[str, Path]
) -> None:
    """A run stopped after its first checkpoint continues by the same command and ends with the same weights."""
    from cytodino_hf import finetune as module

    document = tiny_recipe(images, tmp_path / "lora_scratch")
    recipe = parse_recipe(document, source="interrupted")
    build = module.build_trainer

    def stop_after_two(*args: Any, **kwargs: Any) -> Any:
        from transformers import TrainerCallback

        class Stop(TrainerCallback):
            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                raise KeyboardInterrupt

        trainer = build(*args, **kwargs)
        trainer.add_callback(Stop())
        return trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "build_trainer", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe)
    assert (tmp_path / "lora_scratch" / "checkpoint-2").is_dir()
    run = finetune(recipe)
    name = "adapter/adapter_model.safetensors"
    assert (run.path / name).read_bytes() == (runs["lora_scratch"] / name).read_bytes()


def test_other_data_in_the_folder_are_refused(
    make_images: Callable[..., Path], tiny_recipe: Callable[..., dict], tmp_path: Path
) -> None:
    root = make_images(tmp_path / "images", per_class=10)
    recipe = parse_recipe(tiny_recipe(root, tmp_path / "run"), source="first")
    run = finetune(recipe)
    state = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(state | {"state": "running"}))
    (root / "BLA" / "BLA_00001.png").unlink()
    with pytest.raises(RunFolderError, match="other data"):
        finetune(recipe)


def test_a_folder_that_is_no_run_is_refused(
    images: Path, tiny_recipe: Callable[..., dict], tmp_path: Path
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        finetune(parse_recipe(tiny_recipe(images, tmp_path), source="test"))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_start_that_was_killed_while_it_claimed_the_folder_can_be_repeated(
    images: Path, tiny_recipe: Callable[..., dict], tmp_path: Path
) -> None:
    """Whatever file of the first second is the last one written, the same command goes on."""
    from cytodino_hf import run_folder
    from cytodino_hf.data.loading import load_split

    recipe = parse_recipe(tiny_recipe(images, tmp_path / "run"), source="test")
    split = load_split(recipe)
    run_folder_write = run_folder.write_json
    for writes in range(3):
        left = iter(range(writes))

        def write(path: Path, document: Any, left: Any = left) -> None:
            if next(left, None) is None:
                path.with_name(path.name + ".partial").write_text("half")
                raise KeyboardInterrupt
            run_folder_write(path, document)

        folder = run_folder.RunFolder(tmp_path / f"run{writes}")
        folder.path.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_folder, "write_json", write)
            with pytest.raises(KeyboardInterrupt):
                folder.begin(recipe, split)
        folder.begin(recipe, split)
        assert (folder.path / "run.json").is_file()
