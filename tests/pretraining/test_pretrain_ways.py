"""Whole pretrainings, each of a few steps, by the ways that a recipe can choose besides the plain one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, Dinov2Config, Dinov2Model

from cytodino_hf.pretraining.heads import Prototypes
from cytodino_hf.pretraining.model import Branch, DropPath
from cytodino_hf.pretraining.pretrain import pretrain
from cytodino_hf.pretraining.recipe import parse_pretrain_recipe

STEPS = 3
Run = Callable[..., list[dict[str, float]]]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("ways") / "images")


@pytest.fixture
def run(images: Path, tiny_pretraining: Callable[..., dict[str, Any]], tmp_path: Path) -> Run:
    """Pretrains into RUN `name`, loads what came of it and gives the log; a section is changed, `model` replaced."""

    def begin(name: str = "run", model: dict[str, Any] | None = None, **changes: Any) -> Any:
        document = tiny_pretraining(images, tmp_path / name, probe={"source": None}, **changes)
        document["training"] |= {"max_steps": STEPS, "save_steps": STEPS}
        if model is not None:
            document["model"] = model
        pretrain(parse_pretrain_recipe(document, source="test"))
        folder = tmp_path / name / "backbone"
        backbone = AutoModel.from_pretrained(folder)
        assert all(bool(p.isfinite().all()) for p in backbone.parameters())
        assert backbone.config.hidden_size == 32
        log = json.loads((folder / "pretraining.json").read_text())["training"]["log_history"]
        assert [row["step"] for row in log if "feature_rank" in row] == [
            2,
            3,
        ]  # the last of the rest of the steps
        return log

    return begin


def column(log: list[dict[str, float]], key: str) -> list[float]:
    return [row[key] for row in log if key in row]


def test_local_views_are_seen_by_the_student_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[bool, int, int]] = set()
    forward = Branch.forward

    def noted(branch: Branch, pictures: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen.add((branch.training, len(pictures), pictures.shape[-1]))
        return forward(branch, pictures, masks)

    monkeypatch.setattr(Branch, "forward", noted)
    run(views={"local_crops": 3, "local_size_px": 16})
    student, teacher = True, False
    assert seen == {(student, 8, 32), (student, 12, 16), (teacher, 8, 32)}


def test_sinkhorn_koleo_and_two_heads(run: Run, tmp_path: Path) -> None:
    log = run(objective={"centering": "sinkhorn", "koleo_weight": 0.1, "separate_patch_head": True})
    row = log[0]
    whole = row["loss_cls"] + row["loss_patch"] + 0.1 * row["loss_koleo"]
    assert row["loss"] == pytest.approx(whole, rel=1e-5)
    assert row["loss_koleo"] != 0
    assert 0 < column(log, "patch_information")[0] < math.log(32)
    kept = load_file(tmp_path / "run" / f"checkpoint-{STEPS}" / "model.safetensors")
    assert not [name for name in kept if "centre" in name]
    first, second = (kept[f"student.{head}.last_layer.weight"] for head in ("cls_head", "_own_patch_head"))
    assert not torch.equal(first, second)


def test_activation_checkpointing_computes_twice_and_learns_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = 0
    forward = DropPath.forward

    def counted(layer: DropPath, update: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return forward(layer, update)

    monkeypatch.setattr(DropPath, "forward", counted)
    plain = run("plain")
    once, calls = calls, 0
    again = run("checkpointed", training={"activation_checkpointing": True})
    assert 1.5 * once < calls <= 2 * once  # torch stops within a block when nothing is missing any more
    for key in ("loss", "grad_norm", "feature_rank"):
        assert column(again, key) == pytest.approx(column(plain, key), rel=1e-6)
    found, wanted = (
        load_file(tmp_path / name / "backbone" / "model.safetensors") for name in ("checkpointed", "plain")
    )
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor)


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dtypes: set[torch.dtype] = set()
    forward = Prototypes.forward

    def noted(layer: Prototypes, vectors: Tensor) -> Tensor:
        found = forward(layer, vectors)
        dtypes.add(found.dtype)
        return found

    monkeypatch.setattr(Prototypes, "forward", noted)
    plain = run("float32")
    assert dtypes == {torch.float32}
    dtypes.clear()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    rough = run("bfloat16")
    assert dtypes == {torch.bfloat16}
    assert column(rough, "loss") == pytest.approx(column(plain, "loss"), rel=0.03)
    assert column(rough, "loss") != column(plain, "loss")
    kept = load_file(tmp_path / "bfloat16" / f"checkpoint-{STEPS}" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


def test_a_dinov2_folder_is_continued(run: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=32, patch_size=8
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dinov2")
    run(model={"backbone": str(tmp_path / "dinov2")}, views={"local_crops": 1, "local_size_px": 16})
    folders = (tmp_path / "dinov2", tmp_path / "run" / "backbone")
    assert isinstance(AutoModel.from_pretrained(folders[1]), Dinov2Model)
    start, found = (load_file(folder / "model.safetensors") for folder in folders)
    assert start.keys() == found.keys()
    # The teacher moved, and not far: it keeps .996 of itself and more in each of three steps.
    moved = torch.cat([(found[name] - start[name]).flatten() for name in start]).norm()
    assert 0 < moved < 0.01 * torch.cat([tensor.flatten() for tensor in start.values()]).norm()
