"""Bringing a source near another in colour and scale: discs of known size and colours of known statistics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from cytodino_hf.data.appearance import Appearance, measure_appearance, nucleus_diameter_px, to_lab
from cytodino_hf.data.colour_matching import MatchedPictures, Matching, match, scale_factor
from cytodino_hf.data.samples import CellImages
from cytodino_hf.data.sources import image_folder
from cytodino_hf.errors import DataError
from cytodino_hf.other_sets import OTHER_TAXONOMIES
from cytodino_hf.taxonomy import MLL

PLAIN = Appearance((70.0, 5.0, -5.0), (10.0, 4.0, 6.0), nucleus_px=40.0, side_px=100, images=9)


def disc(side: int, diameter: float, seed: int = 0, shift: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """A purple nucleus in a pale cell on a light ground with a little noise; red cells in the corners."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    away = np.hypot(y, x)
    picture = np.full((side, side, 3), (225, 215, 225), np.float64)
    corner = np.hypot(np.abs(y) - side / 2, np.abs(x) - side / 2) < side / 6
    picture[corner] = (215, 170, 180)
    picture[away < 0.75 * diameter] = (190, 180, 215)
    picture[away < diameter / 2] = (110, 50, 140)
    picture += rng.normal(0, 4, picture.shape) + np.array(shift)
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def folder(root: Path, pictures: Sequence[np.ndarray]) -> CellImages:
    for number, picture in enumerate(pictures):
        code = ("LYT", "NGS")[number % 2]
        (root / code).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / code / f"{code}_{number:03d}.png")
    return image_folder.load(root, MLL, image_folder.Options())


@pytest.mark.parametrize(("side", "diameter"), [(120, 40), (250, 90), (360, 200)])
def test_a_nucleus_is_as_large_as_it_was_drawn(side: int, diameter: int) -> None:
    assert nucleus_diameter_px(disc(side, diameter)) == pytest.approx(diameter, rel=0.05)


def test_lobes_are_one_nucleus_and_nothing_is_none() -> None:
    """Two discs a little apart have the area of both; a bare ground has no nucleus."""
    picture = np.full((200, 200, 3), 220, np.uint8)
    y, x = np.mgrid[:200, :200]
    lobes = (np.hypot(y - 100, x - 79) < 20) | (np.hypot(y - 100, x - 121) < 20)
    picture[lobes] = (110, 50, 140)
    assert nucleus_diameter_px(picture) == pytest.approx(2 * np.sqrt(lobes.sum() / np.pi), rel=0.05)
    assert nucleus_diameter_px(np.full((100, 100, 3), 220, np.uint8)) is None


def test_lab_is_that_of_scikit_image() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_allclose(to_lab(picture), rgb2lab(picture), atol=0.5)


def test_what_is_measured_is_what_there_is(tmp_path: Path) -> None:
    pictures = [disc(120, 40 + 2 * i, seed=i) for i in range(5)]
    images = folder(tmp_path / "set", pictures)
    found = measure_appearance(images)
    pixels = np.concatenate([rgb2lab(p[::3, ::3]).reshape(-1, 3) for p in pictures])
    np.testing.assert_allclose(found.lab_mean, pixels.mean(0), atol=0.3)
    np.testing.assert_allclose(found.lab_sd, pixels.std(0), atol=0.3)
    assert found.nucleus_px == pytest.approx(44, rel=0.05)
    assert (found.side_px, found.images) == (120, 5)
    assert measure_appearance(images, sample=2, seed=1) == measure_appearance(images, sample=2, seed=1)
    assert measure_appearance(images, sample=2).images == 2
    found.write(tmp_path / "appearance.json")
    assert Appearance.read(tmp_path / "appearance.json") == found
    earlier = json.loads((tmp_path / "appearance.json").read_text()) | {"micrometres_per_pixel": None}
    assert Appearance.from_dict(earlier) == found


def test_matched_colours_have_the_wanted_statistics(tmp_path: Path) -> None:
    """Mean and deviation in scikit-image's Lab, after a change of all pictures by one map."""
    theirs = [disc(120, 40, seed=i, shift=(-40, -15, -30)) for i in range(4)]
    ours = measure_appearance(folder(tmp_path / "ours", [disc(120, 40, seed=9)] * 2))
    images = folder(tmp_path / "theirs", theirs)
    matching = match(measure_appearance(images), ours, colour=True)
    changed = np.concatenate([rgb2lab(matching(p)).reshape(-1, 3) for p in theirs])
    before = np.concatenate([rgb2lab(p).reshape(-1, 3) for p in theirs])
    np.testing.assert_allclose(changed.mean(0), ours.lab_mean, atol=1.0)
    np.testing.assert_allclose(changed.std(0), ours.lab_sd, atol=1.0)
    assert np.abs(before.mean(0) - ours.lab_mean).max() > 5
    assert "Reinhard" in matching.in_words()
    assert matching(theirs[0]).dtype == np.uint8


def test_one_change_for_all_keeps_what_tells_pictures_apart() -> None:
    """A redder picture stays redder by the gain: matching each by itself would make both alike."""
    matching = Matching(gain=(1.0, 1.5, 1.0), offset=(0.0, 2.0, 0.0))
    pale, red = (np.full((8, 8, 3), colour, np.uint8) for colour in ((180, 170, 175), (190, 160, 165)))
    before = to_lab(red)[0, 0, 1] - to_lab(pale)[0, 0, 1]
    after = to_lab(matching(red))[0, 0, 1] - to_lab(matching(pale))[0, 0, 1]
    assert after == pytest.approx(1.5 * before, abs=0.7)


@pytest.mark.parametrize("side", [60, 120, 250])
def test_matched_pictures_show_nuclei_of_the_wanted_size(side: int) -> None:
    """From smaller and from larger pictures; all come out with the side of the training pictures."""
    theirs = replace(PLAIN, nucleus_px=20.0, side_px=side)
    matching = match(theirs, replace(PLAIN, nucleus_px=30.0, side_px=120), scale=True)
    changed = matching(disc(side, 20))
    assert changed.shape == (120, 120, 3)
    assert nucleus_diameter_px(changed) == pytest.approx(30, rel=0.07)
    assert "resized by 1.500" in matching.in_words()


def test_the_scale_is_that_of_nuclei_or_unknown() -> None:
    smaller = replace(PLAIN, nucleus_px=20.0)
    assert scale_factor(smaller, PLAIN) == (2.0, "median diameter of nuclei 20.0 and 40.0 pixels")
    with pytest.raises(DataError, match="cannot be told"):
        scale_factor(replace(PLAIN, nucleus_px=None), PLAIN)
    with pytest.raises(DataError, match="beyond all reason"):
        scale_factor(replace(PLAIN, nucleus_px=1.0), PLAIN)
    with pytest.raises(ValueError, match="nothing to match"):
        match(PLAIN, PLAIN)


def test_a_source_matched_to_itself_stays_as_it_is() -> None:
    picture = disc(100, 40)
    both = match(PLAIN, PLAIN, colour=True, scale=True)
    assert np.abs(both(picture).astype(int) - picture).max() <= 1

    class One:
        def read(self, row: int, buffer: np.ndarray | None = None) -> np.ndarray:
            return picture

    np.testing.assert_array_equal(MatchedPictures(One(), both).read(0), both(picture))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        Appearance.read(tmp_path / "absent.json")
    bad = tmp_path / "bad.json"
    for text in (
        "[]",
        "{}",
        '{"lab_mean": [1, 2], "lab_sd": [1, 2, 3], "nucleus_px": 1, "side_px": 9, "images": 1}',
    ):
        bad.write_text(text)
        with pytest.raises(DataError, match=r"bad\.json: no appearance"):
            Appearance.read(bad)
    images = folder(tmp_path / "set", [disc(60, 20)])
    with pytest.raises(DataError, match="no image to measure"):
        measure_appearance(images.select([]))


@pytest.mark.real_data
def test_real_smears_show_nuclei(real_data: Path) -> None:
    """Nuclei of white cells measure some 6 to 20 micrometres; here only that most pictures show one of sane size."""
    taxonomy = OTHER_TAXONOMIES["wbc_tecom"]
    found = measure_appearance(
        image_folder.load(real_data / "wbc_tecom", taxonomy, image_folder.Options()), sample=40
    )
    assert found.side_px == 120
    assert found.nucleus_px is not None
    assert 25 < found.nucleus_px < 90
