"""The red mark on the centre of some real pictures, and how it is painted over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cytodino_hf.data.images import read_rgb
from cytodino_hf.model.image_processing_cytodino import paint_over_center


def test_the_centre_is_filled_from_its_border_and_nothing_else_changes() -> None:
    """A plane is continued exactly; the rest of the picture is untouched."""
    rows, columns = np.mgrid[:31, :40]
    plane = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)
    marked = plane.copy()
    marked[12:19, 16:23] = (255, 0, 0)
    painted = paint_over_center(marked, 7)
    np.testing.assert_array_equal(painted, plane)
    noise = np.random.default_rng(0).integers(0, 256, (31, 40, 3), dtype=np.uint8)
    painted = paint_over_center(noise, 7)
    outside = np.ones((31, 40), dtype=bool)
    outside[12:19, 16:23] = False
    np.testing.assert_array_equal(painted[outside], noise[outside])
    assert not np.array_equal(painted, noise)


def test_a_tiny_picture_is_left_alone() -> None:
    small = np.zeros((8, 8, 3), dtype=np.uint8)
    assert paint_over_center(small, 7) is small


def is_marked(picture: np.ndarray) -> bool:
    """A red point within one pixel of the centre that stands out from its surroundings by more than 30 levels."""
    redness = picture[110:140, 110:140].astype(int)
    redness = redness[..., 0] - redness[..., 2]
    y, x = np.unravel_index(redness.argmax(), redness.shape)
    around = np.sort(redness[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].ravel())[-12]
    return bool(redness[y, x] - around > 30 and abs(y - 15) <= 1 and abs(x - 15) <= 1)


@pytest.mark.slow
def test_real_pictures_carry_the_mark_unevenly_and_lose_it(real_data: Path) -> None:
    share, left = {}, 0
    for code in ("MON", "NIF"):
        pictures = [
            read_rgb(p)
            for folder in ("mll7", "mll7_more")
            for p in (real_data / folder / code).rglob("*.jpg")
        ]
        share[code] = np.mean([is_marked(p) for p in pictures])
        left += sum(is_marked(paint_over_center(p, 7)) for p in pictures)
    assert share["MON"] == pytest.approx(0.126, abs=0.001)
    assert share["NIF"] == 0
    assert left == 0
