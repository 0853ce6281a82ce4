"""`cytodino explain`: every kind of image in, one picture each and a sheet out; bad ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, DINOv3ViTConfig, ViTConfig

from cytodino_hf.cli import main
from cytodino_hf.data.drawing import draw_cell, slide_look
from cytodino_hf.errors import BackboneUnavailableError, BadNumbersError, CytoDinoError
from cytodino_hf.evaluation.explain import explain_images
from cytodino_hf.evaluation.patch_pictures import Explained, draw_page, draw_sheet


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        patch_size=8, image_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, num_register_tokens=1,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("backbone")
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same cell as RGB, grey, RGBA, turned by EXIF and in another shape, two of them of one name."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "other").mkdir()
    cell = Image.fromarray(draw_cell("EOS", slide_look(0, 0, 0), np.random.default_rng(0))).resize((64, 64))
    exif = Image.Exif()
    exif[274] = 6
    cell.save(folder / "rgb.png")
    cell.convert("L").save(folder / "other" / "rgb.png")
    cell.convert("RGBA").save(folder / "rgba.png")
    cell.save(folder / "sheet.jpg", exif=exif)
    cell.resize((64, 40)).save(folder / "wide.png")
    return sorted(p for p in folder.rglob("*.*"))


def test_every_kind_of_image_gets_its_picture(backbone: Path, images: list[Path], tmp_path: Path) -> None:
    done = explain_images(str(backbone), images, tmp_path / "out", image_size_px=64)
    assert done.problems == ()
    assert sorted(p.name for p in done.pictures) == [
        "rgb.png",
        "rgb_2.png",
        "rgba.png",
        "sheet_2.png",
        "wide.png",
    ]
    assert done.sheet == tmp_path / "out" / "sheet.png"
    for picture in (*done.pictures, done.sheet):
        with Image.open(picture) as opened:
            pixels = np.asarray(opened.convert("RGB"))
        assert pixels.shape[1] >= 1000
        assert len(np.unique(pixels[::9, ::9].reshape(-1, 3), axis=0)) > 50
    alone = [
        explain_images(str(backbone), images[:1], tmp_path / name, image_size_px=64).pictures[0].read_bytes()
        for name in ("a", "b")
    ]
    assert alone[0] == alone[1]
    assert alone[0] != done.pictures[0].read_bytes()  # fitted together, the colours mean something else


def test_the_command_names_bad_images_and_goes_on(
    backbone: Path, images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "broken.png"
    bad.write_bytes(images[0].read_bytes()[:200])
    with pytest.raises(SystemExit) as stop:
        main(["explain", str(backbone), str(bad), str(images[0]), "--output", str(tmp_path / "out"),
              "--image-size-px", "32", "--pca", "each"])  # fmt: skip
    assert stop.value.code == 1
    shown = capsys.readouterr()
    assert f"problem: {bad}: " in shown.err
    assert "pictures of 1 images" in shown.out
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_the_statistics_of_the_backbone_are_used(backbone: Path, images: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    AutoModel.from_pretrained(backbone).save_pretrained(folder)
    drawn = []
    for values in (
        {},
        {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
        {"image_std": [0.9] * 3},
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
        done = explain_images(str(folder), images[:1], tmp_path / "out", image_size_px=32)
        drawn.append(done.pictures[0].read_bytes())
    assert drawn[0] == drawn[1]  # those of ImageNet where the folder says nothing
    assert drawn[0] != drawn[2]


@pytest.mark.parametrize(
    ("size", "words"), [(60, "use 56 or 64"), (4, "use 8$"), (8 * 65, "at most 512")], ids=str
)
def test_sizes_that_do_not_fit_are_named(backbone: Path, tmp_path: Path, size: int, words: str) -> None:
    with pytest.raises(CytoDinoError, match=words):
        explain_images(str(backbone), [], tmp_path, image_size_px=size)


def test_backbones_that_do_not_serve_are_named(backbone: Path, images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(BackboneUnavailableError, match="no such folder"):
        explain_images(str(tmp_path / "nowhere"), images, tmp_path)
    (tmp_path / "resnet").mkdir()
    (tmp_path / "resnet" / "config.json").write_text('{"model_type": "resnet"}')
    with pytest.raises(BackboneUnavailableError, match="'resnet' model"):
        explain_images(str(tmp_path / "resnet"), images, tmp_path)
    model = AutoModel.from_pretrained(backbone)
    model.norm.weight.data[0] = torch.nan  # type: ignore[union-attr]
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(BadNumbersError, match="not finite"):
        explain_images(str(tmp_path / "broken"), images[:1], tmp_path, image_size_px=32)
    with pytest.raises(CytoDinoError, match="together or each"):
        explain_images(str(backbone), images, tmp_path, pca="both")


def test_a_plain_vit_is_explained_at_another_size(images: list[Path], tmp_path: Path) -> None:
    config = ViTConfig(
        patch_size=8,
        image_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    AutoModel.from_config(config).save_pretrained(tmp_path / "vit")
    done = explain_images(str(tmp_path / "vit"), images[:1], tmp_path / "out", image_size_px=48)
    assert len(done.pictures) == 1


@pytest.mark.parametrize("heads", [1, 3, 6, 16])
def test_every_head_has_its_numbered_panel(heads: int) -> None:
    rng = np.random.default_rng(0)
    seen = Explained(
        "$a_cell$.png", np.zeros((32, 48, 3), np.uint8), rng.random((4, 6, 3)), rng.random((heads, 4, 6))
    )
    figure = draw_page(seen, 0.5)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.images]
    assert titles[0] == "$a_cell$.png"
    assert [t.split(":")[0] for t in titles[3:]] == [f"head {i + 1}" for i in range(heads)]
    most = seen.attention[0].max() * 24
    assert titles[3] == f"head 1: to {most:.1f} x even"
    boxes = [axes.get_position() for axes in figure.axes]
    assert all(0 <= b.x0 < b.x1 <= 1 and 0 <= b.y0 < b.y1 <= 1 for b in boxes)
    assert len(draw_sheet([seen] * 5).axes) == 18


def test_titles_are_whole_and_a_head_that_looks_elsewhere_stays_dark() -> None:
    attention = np.full((2, 4, 6), 1e-6)
    attention[0, 1, 1] = 0.9
    words = "attention of the head's query"
    seen = Explained("a.png", np.zeros((32, 48, 3), np.uint8), np.zeros((4, 6, 3)), attention, words)
    figure = draw_page(seen, 0.5)
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.images]
    ends = [axes.get_window_extent().x1 for axes in panels]
    texts = [next(text for text in axes.get_children() if getattr(text, "get_text", str)() and text.get_text() ==
             axes.get_title(loc="left")) for axes in panels]  # fmt: skip
    assert panels[2].get_title(loc="left").startswith(f"{words}, mean: to ")
    for text, end in zip(texts, ends, strict=True):
        assert text.get_window_extent().x1 <= end + 1, text.get_text()
    assert panels[4].get_title(loc="left") == "head 2: to 0.0 x even"
    (dark,) = panels[4].images
    assert dark.norm(attention[1]).max() < 0.01
    (bright,) = panels[3].images
    assert bright.norm(attention[0]).max() == 1


def test_a_classifier_shows_the_attention_of_the_query_of_its_head(
    run: Path, images: list[Path], tmp_path: Path
) -> None:
    from cytodino_hf.data.images import read_rgb
    from cytodino_hf.evaluation.lookers import ClassifierLooker, load_looker

    looker = load_looker(str(run))
    assert isinstance(looker, ClassifierLooker)
    picture = looker.picture(read_rgb(images[0]))
    maps, answer = looker.look(picture)
    model = looker.model
    with torch.inference_mode():
        pixels = looker.processor(picture, return_tensors="pt", do_center_crop=False)["pixel_values"]
        tokens = model.backbone(pixels).last_hidden_state
        query = model.head.query[None]
        *before, last = model.head.blocks
        for block in before:
            query = block(query, tokens)
        query = query + last._attend_self(last.norm_self(query))
        # torch's own attention, from the same weights
        _, weights = last.cross_attention(
            last.norm_cross(query)[:, None], tokens, tokens, average_attn_weights=False
        )
    prefix = model.config.num_prefix_tokens
    torch.testing.assert_close(torch.from_numpy(maps.attention).flatten(1), weights[0, :, 0, prefix:])
    assert answer.split()[1] in model.config.id2label.values()
    done = explain_images(str(run), images[:1], tmp_path / "out", image_size_px=64)
    assert load_looker(str(run), 64).picture(read_rgb(images[0])).shape == (64, 64, 3)
    assert len(done.pictures) == 1
    with pytest.raises(CytoDinoError, match="no multiple of the patch"):
        load_looker(str(run), 33)
