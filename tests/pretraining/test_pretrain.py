"""From images to a backbone that others load; a collapse that stops; what the command shows."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cytodino_hf.cli import main
from cytodino_hf.data.loading import load_split
from cytodino_hf.errors import BadNumbersError, CollapseError, NotEnoughMemoryError
from cytodino_hf.files import without_places
from cytodino_hf.model_builder import build_config, build_model
from cytodino_hf.pretraining.backbone_folder import write_teacher
from cytodino_hf.pretraining.curves import draw_pretraining
from cytodino_hf.pretraining.labelled import labelled_images
from cytodino_hf.pretraining.model_card import card
from cytodino_hf.pretraining.neighbour_probe import build_probe
from cytodino_hf.pretraining.planning import estimate_pretraining
from cytodino_hf.pretraining.pretrain import build_ibot, load_images, pretrain
from cytodino_hf.pretraining.recipe import load_pretrain_recipe, parse_pretrain_recipe
from cytodino_hf.pretraining.trainer import PretrainingTrainer
from cytodino_hf.recipe import parse_recipe

# tests/conftest.py's squares: 12 of each of 3 classes
SQUARES = 36


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("pretrain") / "images")


@pytest.fixture(scope="module")
def finished(
    images: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A RUN of `cytodino pretrain`, with everything the command does; saved in bfloat16."""
    folder = tmp_path_factory.mktemp("finished")
    document = tiny_pretraining(images, folder / "run")
    document["training"] |= {"report_to": "tensorboard", "save_dtype": "bfloat16"}
    (folder / "recipe.json").write_text(json.dumps(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        with pytest.raises(SystemExit) as end:
            main(["pretrain", str(folder / "recipe.json")])
        assert end.value.code == 0
    return folder / "run"


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "backbone" / "pretraining.json").read_text())


def test_the_backbone_is_the_teacher_and_loads_everywhere(finished: Path) -> None:
    from transformers import AutoImageProcessor, AutoModel

    folder = finished / "backbone"
    backbone = AutoModel.from_pretrained(folder)
    assert type(backbone).__name__ == "DINOv3ViTModel"
    assert backbone.dtype == torch.bfloat16
    kept = load_file(finished / "checkpoint-6" / "model.safetensors")
    start = "teacher.backbone."
    teacher = {name.removeprefix(start): kept[name] for name in kept if name.startswith(start)}
    for name, tensor in backbone.state_dict().items():
        if name in teacher:
            assert torch.equal(tensor, teacher.pop(name).bfloat16()), name
    assert teacher == {}
    processor = AutoImageProcessor.from_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    found = processor(picture, return_tensors="np")["pixel_values"][0]
    wanted = (picture / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found, np.moveaxis(wanted, -1, 0), atol=1e-5)


def test_a_fine_tuning_takes_it(
    finished: Path, images: Path, tiny_recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    document = tiny_recipe(images, tmp_path / "run")
    document["model"] |= {"backbone": str(finished / "backbone"), "backbone_config": None}
    recipe = parse_recipe(document, source="test")
    model = build_model(recipe, build_config(recipe, load_split(recipe).images.taxonomy), tmp_path / "base")
    weights = model.state_dict()
    (name,) = (name for name in weights if name.endswith("embeddings.cls_token"))
    kept = load_file(finished / "checkpoint-6" / "model.safetensors")
    assert torch.equal(weights[name], kept["teacher.backbone.embeddings.cls_token"].bfloat16().float())


def test_no_held_out_image_was_drawn(finished: Path, images: Path) -> None:
    rows = list(csv.DictReader((finished / "backbone" / "images.csv").open()))
    recipe = load_pretrain_recipe(finished / "recipe.json")
    labelled = labelled_images(recipe)
    assert labelled is not None
    files = (images / path for path in labelled.images.column("path"))
    sums = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    assert labelled.sha256 == sums
    folds = labelled.images.folds
    assert {row["sha256"] for row in rows} == {
        s for s, fold in zip(sums, folds, strict=True) if fold == "train"
    }
    assert {row["source"] for row in rows} == {"cells"}
    assert len(rows) == record(finished)["images"]["images"] < SQUARES


def test_the_record(finished: Path) -> None:
    kept = record(finished)
    training = kept["training"]
    assert training["steps"] == 6
    assert training["images_seen"] == 6 * 4
    assert training["seconds"] > 0
    assert training["learning_rate"] == pytest.approx(0.05 * 4 / 256)
    assert kept["recipe"] == without_places(load_pretrain_recipe(finished / "recipe.json").to_dict())
    assert str(finished.parent) not in json.dumps(kept)
    assert kept["environment"]["packages"]["torch"]
    log = training["log_history"]
    assert [row["step"] for row in log if "loss" in row] == [2, 4, 6]
    assert [row["step"] for row in log if "knn3_balanced_accuracy" in row] == [0, 3, 6]
    for row in log:
        if "loss" in row:
            assert row["loss"] == pytest.approx(row["loss_cls"] + row["loss_patch"], rel=1e-4)
            assert 0 < row["teacher_entropy"] < 1
            assert 1 <= row["feature_rank"] <= 32
    assert list((finished / "runs").rglob("events*"))


def test_the_card_and_the_picture(finished: Path) -> None:
    text = (finished / "backbone" / "README.md").read_text()
    for words in ("Research use", "cells |", "AutoModel.from_pretrained", "Random weights", "3 neighbours"):
        assert words in text
    assert str(finished) not in text
    assert str(finished) not in json.dumps(
        {k: v for k, v in record(finished).items() if k != "recipe"} | {"environment": 0}
    )
    assert (finished / "backbone" / "pretraining.png").read_bytes().startswith(b"\x89PNG")
    assert draw_pretraining([]).startswith(b"\x89PNG")


def test_the_card_of_a_continued_backbone_names_its_licence(finished: Path) -> None:
    hub = {"name": "facebook/dinov3-vits16-pretrain-lvd1689m", "commit": "abc123"}
    text = card(record(finished) | {"origin": hub})
    assert "license_name: dinov3-license" in text
    assert "base_model: facebook/dinov3-vits16-pretrain-lvd1689m" in text
    assert "commit abc123" in text
    again = card(record(finished) | {"origin": {"name": "backbone", "origin": hub}})
    assert "license_name: dinov3-license" in again
    assert "license" not in card(record(finished)).partition("# A backbone")[0]


def test_a_finished_run_is_left_as_it_is(finished: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (finished / "backbone" / "pretraining.json").stat().st_mtime_ns
    pretrain(load_pretrain_recipe(finished / "recipe.json"))
    assert "nothing to do" in caplog.text
    assert (finished / "backbone" / "pretraining.json").stat().st_mtime_ns == before


def test_the_probe_says_what_neighbours_say(finished: Path) -> None:
    """By hand: CLS features of both folds, cosine, the vote of the nearest one."""
    recipe = load_pretrain_recipe(finished / "recipe.json")
    probe = build_probe(recipe, load_images(recipe))
    assert probe is not None
    backbone = build_ibot(recipe).teacher.backbone

    def features(fold: Any) -> np.ndarray:
        rows = []
        for row in range(len(fold)):
            pixels = torch.from_numpy(fold.pixels(row)).permute(2, 0, 1)[None]
            with torch.no_grad():
                rows.append(backbone(fold.processor.normalize_batch(pixels)).last_hidden_state[0, 0].numpy())
        found = np.stack(rows).astype(np.float64)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    nearest = (features(probe.validation) @ features(probe.train).T).argmax(1)
    called = np.asarray(probe.train.labels)[nearest]
    wanted = (called == np.asarray(probe.validation.labels)).mean()
    scores = probe.score(backbone)
    assert scores["knn1_accuracy"] == pytest.approx(wanted)
    assert scores["knn_images"] == len(called)
    assert 0 <= scores["knn1_accuracy_low"] <= wanted <= scores["knn1_accuracy_high"] <= 1


def test_going_on_from_a_backbone_starts_with_its_weights(
    finished: Path, images: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    document = tiny_pretraining(images, tmp_path / "run")
    document["model"] = {"backbone": str(finished / "backbone")}
    model = build_ibot(parse_pretrain_recipe(document, source="test"))
    kept = load_file(finished / "checkpoint-6" / "model.safetensors")
    name = "teacher.backbone.embeddings.patch_embeddings.weight"
    wanted = kept[name].bfloat16().float()
    assert torch.equal(model.state_dict()[name], wanted)
    assert torch.equal(model.state_dict()[name.replace("teacher", "student")], wanted)


def test_without_centring_the_teacher_collapses_and_the_run_says_so(
    images: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    document = tiny_pretraining(images, tmp_path / "run", probe={"source": None})
    document["objective"] |= {"centering": "none", "momentum": 0.5}
    document["training"] |= {
        "max_steps": 60,
        "warmup_steps": 0,
        "base_learning_rate": 0.3,
        "logging_steps": 5,
    }
    with pytest.raises(CollapseError, match="centering 'sinkhorn'"):
        pretrain(parse_pretrain_recipe(document, source="test"))


def test_a_dry_run_trains_nothing(
    images: Path,
    tiny_pretraining: Callable[..., dict[str, Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(tiny_pretraining(images, tmp_path / "run")))
    with pytest.raises(SystemExit):
        main(["pretrain", str(tmp_path / "recipe.json"), "--dry-run", "--training.max_steps", "9"])
    shown = capsys.readouterr().out
    for words in (
        "9 optimizer steps of 4 images",
        "left out: ",
        "of the validation fold",
        "on a CPU",
        "nothing was",
    ):
        assert words in shown
    assert not (tmp_path / "run").exists()


def test_the_saved_dtype(
    images: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    recipe = parse_pretrain_recipe(tiny_pretraining(images, tmp_path / "run"), source="test")
    model = build_ibot(recipe)
    write_teacher(model, recipe, tmp_path / "out")
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.float32}
    assert next(model.teacher.parameters()).dtype == torch.float32


@pytest.mark.parametrize("jitters", [True, False])
def test_position_jitter(
    images: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path, jitters: bool
) -> None:
    document = tiny_pretraining(images, tmp_path / "run")
    document["model"]["position_jitter"] = jitters
    document["objective"]["drop_path"] = 0.0
    recipe = parse_pretrain_recipe(document, source="test")
    model = build_ibot(recipe)
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        seen = [model.student.backbone(pictures).last_hidden_state for _ in range(2)]
        answers = [model.teacher.backbone(pictures).last_hidden_state for _ in range(2)]
    assert torch.equal(*seen) == (not jitters)
    assert torch.equal(*answers)
    write_teacher(model, recipe, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pos_embed_rescale"] == 2.0


def test_without_a_probe_none_is_counted(
    images: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """Its pictures are far more than those of a step here."""
    document = tiny_pretraining(images, tmp_path / "run")
    document["probe"]["image_size_px"] = 64
    with_probe = estimate_pretraining(parse_pretrain_recipe(document, source="test"))
    document["probe"]["source"] = None
    without = estimate_pretraining(parse_pretrain_recipe(document, source="test"))
    assert with_probe.evaluation - without.evaluation > 128 * 3 * 64 * 64 * 4
    assert without.evaluation < 1000  # the means of the teacher's answers, which are no parameters
    assert (without.activations, without.weights) == (with_probe.activations, with_probe.weights)
    assert without.on_cpu < with_probe.on_cpu


def test_bad_numbers_stop_it_and_leave_the_last_good_backbone(
    images: Path,
    tiny_pretraining: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers import AutoModel

    document = tiny_pretraining(images, tmp_path / "run", probe={"source": None})
    normalized = PretrainingTrainer.normalized

    def spoilt(trainer: PretrainingTrainer, views: torch.Tensor) -> torch.Tensor:
        found = normalized(trainer, views)
        return found.fill_(float("nan")) if trainer.state.global_step == 2 else found

    monkeypatch.setattr(PretrainingTrainer, "normalized", spoilt)
    with pytest.raises(BadNumbersError, match=r"step 3: .*\n.*cells/") as caught:
        pretrain(parse_pretrain_recipe(document, source="test"))
    assert "lower training.base_learning_rate" in str(caught.value)
    AutoModel.from_pretrained(tmp_path / "run" / "last-good")


def test_too_little_memory_is_named(
    images: Path,
    tiny_pretraining: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(PretrainingTrainer, "compute_loss", fails)
    document = tiny_pretraining(images, tmp_path / "run", probe={"source": None})
    with pytest.raises(NotEnoughMemoryError, match="4 images at once, two views of 32 px") as caught:
        pretrain(parse_pretrain_recipe(document, source="test"))
    for key, is_ours in {"objective.out_dim": True, "data.image_size_px": False, "lora": False}.items():
        assert (key in str(caught.value)) == is_ours
