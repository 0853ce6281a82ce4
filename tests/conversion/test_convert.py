"""Converted backbones equal an independent forward pass; the folder is what recipes take; odd files are named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_vit import Weights, random_weights, tokens
from transformers import CONFIG_MAPPING, AutoImageProcessor, AutoModel

from cytodino_hf.cli import main
from cytodino_hf.conversion.convert import Converted, convert
from cytodino_hf.conversion.layouts import dinov2_config, measure
from cytodino_hf.errors import WeightsFileError

KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "DinoBloom": ({}, "dinov2"),
    "DinoBloom-G, SwiGLU": ({"swiglu": True}, "dinov2"),
    "DINOv2 with registers": ({"registers": 4}, "dinov2"),
    "iBOT": ({"layer_scale": False, "patch": 16}, "dinov2"),
    "iBOT as ViT": ({"layer_scale": False, "patch": 16}, "vit"),
}


def checkpoint(path: Path, weights: Weights, place: str = "teacher", prefix: str = "backbone.") -> Path:
    heads = {"dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.last_layer.weight_v": torch.ones(2, 2)}
    tensors = {f"{prefix}{name}": tensor for name, tensor in weights.items()} | heads
    torch.save({place: tensors} if place else tensors, path)
    return path


def run(tmp_path: Path, weights: Weights, **options: Any) -> Converted:
    return convert(checkpoint(tmp_path / "weights.pth", weights), tmp_path / "out", **options)


def test_numbers_that_many_names_share_are_refused(tmp_path: Path) -> None:
    """A small file could otherwise ask for any amount of memory."""
    weights = random_weights(width=128, depth=1)
    block = {name: tensor for name, tensor in weights.items() if name.startswith("blocks.0.")}
    for number in range(1, 12):
        weights |= {name.replace("blocks.0.", f"blocks.{number}."): tensor for name, tensor in block.items()}
    with pytest.raises(WeightsFileError, match="more than the file has"):
        run(tmp_path, weights)


@pytest.mark.parametrize("name", KINDS)
def test_the_folder_computes_what_the_published_formulas_say(tmp_path: Path, name: str) -> None:
    shape, architecture = KINDS[name]
    weights = random_weights(width=128, **shape)
    run(tmp_path, weights, architecture=architecture)
    model = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    options = {"interpolate_pos_encoding": True} if architecture == "vit" else {}
    patch = shape.get("patch", 14)
    generator = torch.Generator().manual_seed(1)
    for rows, columns in ((4, 4), (6, 6), (3, 5)):
        pixels = torch.randn(2, 3, rows * patch, columns * patch, generator=generator)
        # transformers resamples positions to the exact size, and smoothly where there are registers.
        expected = tokens(weights, pixels, heads=2, antialias="registers" in shape)
        with torch.no_grad():
            found = model(pixel_values=pixels.double(), **options)
        tolerance = 1e-9 if (rows, columns) == (4, 4) else 1e-5  # transformers resamples in float32
        torch.testing.assert_close(found.last_hidden_state, expected, atol=tolerance, rtol=0)
        torch.testing.assert_close(found.pooler_output, expected[:, 0], atol=tolerance, rtol=0)


def test_at_the_size_of_pretraining_the_original_code_agrees_and_elsewhere_nearly(tmp_path: Path) -> None:
    weights = random_weights(width=64)
    # Positions as training leaves them: neighbours are alike.
    grid = torch.linspace(-1, 1, 4)
    rows, columns = grid.repeat_interleave(4)[:, None], grid.repeat(4)[:, None]
    down, across = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    weights["pos_embed"][0, 1:] = rows * down + columns * across
    run(tmp_path, weights)
    model = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    for side, tolerance in ((4, 1e-9), (6, 0.1)):
        pixels = torch.randn(1, 3, side * 14, side * 14, generator=torch.Generator().manual_seed(2))
        original = tokens(weights, pixels, heads=1, offset=0.1)
        with torch.no_grad():
            found = model(pixel_values=pixels.double()).last_hidden_state
        assert (found - original).abs().max() < tolerance
    assert (found - original).abs().max() > 1e-6  # the documented difference is there


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ("teacher", "backbone."),
        ("state_dict", "module.backbone."),
        ("model", ""),
        ("", ""),
        ("state_dict", "module."),
    ],
)
def test_weights_are_found_wherever_they_lie(tmp_path: Path, place: str, prefix: str) -> None:
    weights = random_weights()
    source = checkpoint(tmp_path / "w.pth", weights, place, prefix)
    done = convert(source, tmp_path / "out")
    assert done.place == place
    assert sorted(done.dropped) == ["dino_head.mlp.0.weight", "ibot_head.last_layer.weight_v"]
    written = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    assert torch.equal(written["embeddings.cls_token"], weights["cls_token"])
    qkv = torch.cat([written[f"encoder.layer.1.attention.{x}_proj.weight"] for x in "qkv"])
    assert torch.equal(qkv, weights["blocks.1.attn.qkv.weight"])


def test_chunked_blocks_keep_their_numbers(tmp_path: Path) -> None:
    weights = random_weights(depth=3)
    chunked = {
        (
            f"blocks.{int(name.split('.')[1]) // 2}.{name.removeprefix('blocks.')}"
            if name.startswith("blocks")
            else name
        ): t
        for name, t in weights.items()
    }
    run(tmp_path, chunked)
    written = AutoModel.from_pretrained(tmp_path / "out").state_dict()
    for i in range(3):
        expected = weights[f"blocks.{i}.norm1.weight"]
        assert torch.equal(written[f"encoder.layer.{i}.norm1.weight"], expected)


def test_the_folder_says_where_it_comes_from(tmp_path: Path) -> None:
    done = run(tmp_path, random_weights(width=128, registers=4))
    digest = hashlib.sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    card = (tmp_path / "out" / "README.md").read_text()
    for words in (
        digest,
        "`weights.pth`",
        "`Dinov2WithRegistersModel`, float32",
        "2, 128, 2",
        "14 px, 56 px",
        "licence",
    ):
        assert words in card
    assert str(tmp_path) not in card
    assert done.sha256 == digest
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors", "preprocessor_config.json"
    ]  # fmt: skip
    assert [p.name for p in tmp_path.iterdir() if "partial" in p.name] == []
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.size == {"height": 56, "width": 56}
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


@pytest.mark.parametrize(
    ("dtype", "written"), [("keep", "bfloat16"), ("float32", "float32"), ("float16", "float16")]
)
def test_types_of_weights(tmp_path: Path, dtype: str, written: str) -> None:
    weights = {name: tensor.bfloat16() for name, tensor in random_weights().items()}
    assert run(tmp_path, weights, dtype=dtype).dtype == written
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert str(model.dtype) == f"torch.{written}"
    stored = model.state_dict()["layernorm.weight"]
    assert torch.equal(stored, weights["norm.weight"].to(stored.dtype))


def test_mixed_types_become_float32(tmp_path: Path) -> None:
    weights = random_weights()
    weights["norm.weight"] = weights["norm.weight"].half()
    assert run(tmp_path, weights).dtype == "float32"


@pytest.mark.parametrize(
    ("letter", "width", "depth", "heads", "swiglu", "millions"),
    [("S", 384, 12, 6, False, 22), ("B", 768, 12, 12, False, 86), ("L", 1024, 24, 16, False, 304),
     ("G", 1536, 40, 24, True, 1136)],
)  # fmt: skip
def test_the_four_sizes_of_dinobloom_are_recognised(
    letter: str, width: int, depth: int, heads: int, swiglu: bool, millions: int
) -> None:
    hidden = 4096 if swiglu else 4 * width
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 14, 14), "pos_embed": (1, 257, width), "blocks.0.ls1.gamma": (width,),
        "blocks.0.attn.qkv.bias": (3 * width,),
    }  # fmt: skip
    shapes |= {
        f"blocks.{i}.mlp.{'w12' if swiglu else 'fc1'}.weight": (2 * hidden if swiglu else hidden, width)
        for i in range(depth)
    }
    sizes = measure(shapes, letter)
    assert (sizes.kind, sizes.image_size, sizes.hidden, sizes.is_swiglu) == ("dinobloom", 224, hidden, swiglu)
    with torch.device("meta"):
        model = AutoModel.from_config(dinov2_config(sizes, width // 64, letter))
    assert model.config.num_attention_heads == heads
    # Published: 22, 86, 304 and 1,136 million parameters.
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == pytest.approx(millions, abs=1)


def broken(weights: Weights, change: str) -> Weights:
    weights = dict(weights)
    if change == "a tensor less":
        del weights["blocks.1.mlp.fc2.bias"]
    elif change == "a block less":
        weights = {name: t for name, t in weights.items() if not name.startswith("blocks.0.")}
    elif change == "unknown tensor":
        weights["blocks.1.attn.rel_pos_bias"] = torch.ones(3)
    elif change == "other shape":
        weights["norm.bias"] = torch.ones(3)
    elif change == "not a number":
        weights["norm.bias"] = torch.full((64,), torch.nan)
    elif change == "odd width":
        weights = random_weights(width=48)
    elif change == "odd positions":
        weights["pos_embed"] = torch.ones(1, 16, 64)
    elif change == "twice":
        weights["masked_embed"] = torch.ones(1, 64)
    elif change == "no vision transformer":
        weights = {"layer1.0.conv1.weight": torch.ones(64, 3, 7, 7)}
    elif change == "endless blocks":
        weights["blocks.4000000000.norm1.weight"] = torch.ones(64)
    return weights


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("a tensor less", r"missing: encoder\.layer\.1\.mlp\.fc2\.bias"),
        ("a block less", "only 1 blocks, numbered up to 1"),
        ("unknown tensor", r"no such model has: blocks\.1\.attn\.rel_pos_bias"),
        ("other shape", r"layernorm\.bias \(3,\) instead of \(64,\)"),
        ("not a number", r"norm\.bias holds NaN"),
        ("odd width", "--heads"),
        ("odd positions", "pos_embed"),
        ("twice", "under a second name"),
        ("no vision transformer", "layer1"),
        ("endless blocks", "only 3 blocks"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: str, words: str) -> None:
    with pytest.raises(WeightsFileError, match=words) as raised:
        run(tmp_path, broken(random_weights(), change))
    assert "weights.pth" in str(raised.value)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "ibot"}, "--kind dinobloom or auto"),
        ({"kind": "resnet"}, "must be one of auto, dinobloom, ibot"),
        ({"architecture": "vit"}, "--architecture dinov2"),
        ({"dtype": "int8"}, "must be one of keep"),
        ({"heads": 5}, "does not divide"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(WeightsFileError, match=words):
        run(tmp_path, random_weights(), **options)


def test_the_number_of_heads_can_be_given(tmp_path: Path) -> None:
    weights = random_weights(width=48, patch=8)
    run(tmp_path, weights, heads=3)
    model = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = model(pixel_values=pixels.double()).last_hidden_state
    torch.testing.assert_close(found, tokens(weights, pixels, heads=3), atol=1e-9, rtol=0)


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(WeightsFileError, match="exists already"):
        run(tmp_path, random_weights())
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_files_without_tensors_are_named(tmp_path: Path) -> None:
    for value, words in (
        ({"epoch": 3, "args": {"lr": 1}}, "its keys are epoch, args"),
        ([1, 2], "holds a list"),
    ):
        torch.save(value, tmp_path / "w.pth")
        with pytest.raises(WeightsFileError, match=words):
            convert(tmp_path / "w.pth", tmp_path / "out")


def test_the_command_says_what_it_wrote_and_recipes_take_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_recipe: Any, make_images: Any
) -> None:
    from cytodino_hf.model_builder import build_config, build_model
    from cytodino_hf.recipe import load_recipe
    from cytodino_hf.taxonomy import load_taxonomy

    weights = random_weights(layer_scale=False, patch=16, width=64)
    source, out = checkpoint(tmp_path / "ibot.pth", weights), tmp_path / "backbone"
    with pytest.raises(SystemExit) as stop:
        main(["convert", str(source), str(out), "--kind", "ibot"])
    assert stop.value.code == 0
    assert "Dinov2Model in float32, 2 blocks, 64 wide, 1 heads, patches of 16 px" in capsys.readouterr().out
    document = tiny_recipe(make_images(tmp_path / "images"), tmp_path / "run")
    del document["model"]["backbone_config"]
    document["model"]["backbone"] = str(out)
    (tmp_path / "recipe.json").write_text(json.dumps(document))
    recipe = load_recipe(str(tmp_path / "recipe.json"), [])
    taxonomy = load_taxonomy("mll")
    model = build_model(recipe, build_config(recipe, taxonomy), tmp_path / "base")
    found = model.get_base_model()(pixel_values=torch.zeros(1, 3, 32, 32)).logits  # type: ignore[operator]
    assert found.shape == (1, len(taxonomy.codes))
    assert CONFIG_MAPPING["dinov2"] is type(model.get_base_model().config.backbone_config)  # type: ignore[operator]


def test_a_hostile_checkpoint_is_converted_without_being_executed(tmp_path: Path) -> None:
    import os

    class Evil:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path / 'executed'}",))

    tensors = {f"backbone.{name}": tensor for name, tensor in random_weights().items()}
    torch.save({"cfg": Evil(), "teacher": tensors, "optimizer": {"state": [Evil()]}}, tmp_path / "w.pth")
    convert(tmp_path / "w.pth", tmp_path / "out")
    assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "executed").exists()  # what the usual way would have done
