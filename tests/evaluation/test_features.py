"""Frozen features, and backbones by name: what is taken of the tokens, which pictures, what is left as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTConfig,
    ViTModel,
    set_seed,
)

from cytodino_hf.data.dataset import CellDataset
from cytodino_hf.data.sources import SOURCES
from cytodino_hf.errors import BackboneUnavailableError, BadNumbersError, DataError
from cytodino_hf.evaluation.features import frozen_features
from cytodino_hf.evaluation.frozen_backbones import load_frozen_backbone
from cytodino_hf.model.image_processing_cytodino import CytoDinoImageProcessor
from cytodino_hf.taxonomy import MLL

SIZES = {
    "patch_size": 8, "image_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32,
}  # fmt: skip
KINDS = {
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig(**SIZES, num_register_tokens=3), 3),
    "dinov2": (Dinov2Model, Dinov2Config(**{k: v for k, v in SIZES.items() if k != "intermediate_size"}), 0),
    "dinov2 with registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(
            **{k: v for k, v in SIZES.items() if k != "intermediate_size"}, num_register_tokens=2
        ),
        2,
    ),
    "vit": (ViTModel, ViTConfig(**SIZES), 0),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, (kind, config, _) in KINDS.items():
        set_seed(3)
        found[name] = tmp_path_factory.mktemp("backbones") / name.replace(" ", "_")
        kind(config).save_pretrained(found[name])
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> CellDataset:
    root = make_images(tmp_path_factory.mktemp("cells"), per_class=4)
    images = SOURCES["image_folder"].load(root, MLL, SOURCES["image_folder"].options())
    return CellDataset(images, CytoDinoImageProcessor(size={"height": 48, "width": 48}))


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_tokens_they_say(kind: str, folders: dict, dataset: CellDataset) -> None:
    registers = KINDS[kind][2]
    backbone = load_frozen_backbone(str(folders[kind]))
    found = frozen_features(
        backbone.model, dataset, batch_size=5, pooling="cls+mean patches", show_progress=False
    )
    pixels = torch.stack([torch.from_numpy(dataset.pixels(row).copy()) for row in range(12)]).permute(
        0, 3, 1, 2
    )
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    extra = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    model = AutoModel.from_pretrained(folders[kind]).eval()
    with torch.no_grad():
        tokens = model((pixels / 255 - mean) / std, **extra).last_hidden_state
    assert tokens.shape[1] == 1 + registers + 36
    np.testing.assert_allclose(found[:, :16], tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 16:], tokens[:, 1 + registers :].mean(1), atol=1e-5)
    # CLS alone, in other batches: the same numbers.
    alone = frozen_features(backbone.model, dataset, batch_size=12, show_progress=False)
    assert alone.dtype == np.float32
    np.testing.assert_allclose(alone, found[:, :16], atol=1e-5)


def test_the_backbone_is_as_it_was(folders: dict, dataset: CellDataset) -> None:
    model = AutoModel.from_pretrained(folders["dinov3"]).train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    found = frozen_features(model, dataset, show_progress=False)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)
    # Eval mode it was: twice the same, and so in bfloat16 but for its rounding, also within autocast.
    np.testing.assert_array_equal(found, frozen_features(model, dataset, show_progress=False))
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(found, frozen_features(model, dataset, show_progress=False))
    rounded = frozen_features(model, dataset, precision="bfloat16", show_progress=False)
    assert 0 < np.abs(found - rounded).max() < 0.1 * np.abs(found).max()


def test_bad_numbers_name_the_pictures(folders: dict, dataset: CellDataset) -> None:
    model = AutoModel.from_pretrained(folders["dinov3"])
    with torch.no_grad():
        model.norm.bias[0] = float("nan")
    with pytest.raises(BadNumbersError, match="BLA_00001"):
        frozen_features(model, dataset, show_progress=False)


def test_no_image_gives_no_row(
    folders: dict, dataset: CellDataset, make_images: Callable, tmp_path: Path
) -> None:
    root = make_images(tmp_path, per_class=1)
    images = SOURCES["image_folder"].load(root, MLL, SOURCES["image_folder"].options())
    model = AutoModel.from_pretrained(folders["dinov3"])
    nothing = CellDataset(images.select([]), dataset.processor)
    assert frozen_features(model, nothing, pooling="cls+mean patches").shape == (0, 32)


def test_an_unreadable_picture_is_named(
    folders: dict, dataset: CellDataset, make_images: Callable, tmp_path: Path
) -> None:
    root = make_images(tmp_path, per_class=1)
    images = SOURCES["image_folder"].load(root, MLL, SOURCES["image_folder"].options())
    (root / "LYT" / "LYT_00001.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match="LYT_00001"):
        frozen_features(AutoModel.from_pretrained(folders["dinov3"]), CellDataset(images, dataset.processor))


def test_an_untrained_backbone_has_the_architecture_and_other_weights(folders: dict) -> None:
    name = str(folders["dinov3"])
    trained, one, again, two = (
        load_frozen_backbone(*args[:1], seed=args[1])
        for args in ((name, 0), (f"random:{name}", 1), (f"random:{name}", 1), (f"random:{name}", 2))
    )
    assert one.sha256() == again.sha256()
    assert len({trained.sha256(), one.sha256(), two.sha256()}) == 3
    assert trained.parameters() == one.parameters() == sum(p.numel() for p in trained.model.parameters())
    assert not one.model.training
    assert not any(p.requires_grad for p in one.model.parameters())
    assert load_frozen_backbone(name).sha256() == trained.sha256()


def test_the_same_weights_under_other_heads_are_another_backbone(folders: dict) -> None:
    """Features are kept by this number: those of another architecture must not be found under it."""
    backbone = load_frozen_backbone(str(folders["dinov3"]))
    before = backbone.sha256()
    backbone.model.config.num_attention_heads *= 2
    assert backbone.sha256() != before


@pytest.mark.parametrize(
    ("preprocessing", "side"),
    [
        ({}, 32),
        ({"size": {"height": 96, "width": 96}}, 96),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}}, 224),
        (
            {
                "image_processor_type": "CytoDinoImageProcessor", "do_center_crop": True,
                "size": {"height": 128, "width": 128}, "crop_size": {"height": 200, "width": 200},
            },
            128,
        ),
        ({"size": 64}, 64),
    ],
)  # fmt: skip
def test_a_backbone_says_the_size_of_its_pictures(
    preprocessing: dict, side: int, folders: dict, tmp_path: Path
) -> None:
    for file in folders["dinov3"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if preprocessing:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    assert load_frozen_backbone(str(tmp_path)).side_px == side


def test_the_size_of_dinov2_positions_is_not_that_of_its_pictures(folders: dict) -> None:
    assert load_frozen_backbone(str(folders["dinov2"])).side_px == 224


def test_what_is_no_backbone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneUnavailableError, match="no such folder"):
        load_frozen_backbone(str(tmp_path / "nothing"))
    with pytest.raises(BackboneUnavailableError, match="cannot be loaded"):
        load_frozen_backbone(str(tmp_path))
    with pytest.raises(BackboneUnavailableError, match="somebody/nothing"):
        load_frozen_backbone("random:somebody/nothing")
    BertModel(
        BertConfig(
            vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
        )
    ).save_pretrained(tmp_path / "text")
    with pytest.raises(BackboneUnavailableError, match="'bert' model; it must be one of"):
        load_frozen_backbone(str(tmp_path / "text"))
    (tmp_path / "text" / "model.safetensors").write_bytes(b"cut")
    (tmp_path / "text" / "config.json").write_text(json.dumps({"model_type": "dinov3_vit", **SIZES}))
    with pytest.raises(BackboneUnavailableError, match="cannot be loaded"):
        load_frozen_backbone(str(tmp_path / "text"))
