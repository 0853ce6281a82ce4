"""Classical features: what they count, what they do not see, and that they come out alike in processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytodino_hf.data.sources import SOURCES
from cytodino_hf.errors import CytoDinoError
from cytodino_hf.probing import classical
from cytodino_hf.probing.classical import WIDTHS, classical_features, describe, need_skimage
from cytodino_hf.taxonomy import MLL


@pytest.fixture(scope="module")
def picture(drawn_cells: Path) -> np.ndarray:
    file = sorted(drawn_cells.glob("BLA/*/*.jpg"))[0]
    return np.asarray(Image.open(file).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR))


def test_histograms_are_square_roots_of_shares(picture: np.ndarray) -> None:
    found = describe(picture)
    assert {name: len(values) for name, values in found.items()} == WIDTHS
    for name, sizes in (
        ("colour", [32] * 12),
        ("joint colour", [216] * 2),
        ("texture", [10, 10, 18, 18, 26, 26] * 2),
    ):
        parts = np.split(found[name], np.cumsum(sizes)[:-1])
        np.testing.assert_allclose([(part**2).sum() for part in parts], 1.0)


def test_joint_colours_and_hues_are_counted_where_they_belong() -> None:
    # Red outside, blue in the middle half of each side, a quarter of the picture.
    picture = np.zeros((128, 128, 3), np.uint8)
    picture[..., 0] = 255
    picture[32:96, 32:96] = (0, 0, 255)
    found = describe(picture)
    whole, middle = np.split(found["joint colour"] ** 2, 2)
    assert whole[5 * 36] == pytest.approx(0.75)
    assert whole[5] == pytest.approx(0.25)
    assert middle[5] == pytest.approx(1.0)
    hue = found["colour"][:32] ** 2
    assert hue[0] == pytest.approx(0.75)  # red is hue 0, blue 2/3
    assert hue[int(32 * 2 / 3)] == pytest.approx(0.25)


def test_turning_a_picture_changes_gradients_but_neither_colour_nor_texture(picture: np.ndarray) -> None:
    upright, turned = describe(picture), describe(np.rot90(picture).copy())
    for name in ("colour", "joint colour"):
        np.testing.assert_allclose(upright[name], turned[name], atol=1e-12)
    assert np.abs(upright["texture"] - turned["texture"]).max() < 0.06
    assert np.abs(upright["gradients"] - turned["gradients"]).max() > 0.1


def test_processes_and_crops(drawn_cells: Path, monkeypatch: pytest.MonkeyPatch, picture: np.ndarray) -> None:
    images = (
        SOURCES["image_folder"].load(drawn_cells, MLL, SOURCES["image_folder"].options()).select(range(6))
    )
    seen = []
    found = classical_features(images, workers=1, tick=lambda: seen.append(1))
    assert found.shape == (6, 1356)
    assert found.dtype == np.float32
    assert len(seen) == 6
    first = np.concatenate(list(describe(picture).values()))
    # The same picture resized by the processor.
    np.testing.assert_allclose(found[0], first, atol=1e-6)
    monkeypatch.setattr("cytodino_hf.data.parallel._FEWEST_FOR_PROCESSES", 1)
    monkeypatch.setattr("cytodino_hf.data.parallel._CHUNK", 3)
    np.testing.assert_array_equal(classical_features(images, workers=2), found)
    assert np.abs(classical_features(images.select([0]), center_crop_px=100) - found[:1]).max() > 0.05


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classical, "find_spec", lambda _: None)
    with pytest.raises(CytoDinoError, match="cytodino-hf\\[probe\\]"):
        need_skimage()
