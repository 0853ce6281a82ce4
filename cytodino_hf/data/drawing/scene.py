"""A whole picture: ground, red cells, neighbours, the cell in the middle, stain, light, focus, noise."""

from __future__ import annotations

import cv2
import numpy as np

from . import shapes, textures
from .canvas import Region, paint_dots
from .cell import paint_cell
from .classes import GIANT_CELL, LOOKS, CellLook
from .remains import paint_debris, paint_smudge
from .slides import SlideLook

#: Pictures are square, as those of the MLL set.
IMAGE_SIZE_PX = 250
_CELLS = tuple(look for look in LOOKS.values() if look.kind == "cell")
# ln of transmitted light by 8-bit value; black is one half, so that it stays finite.
_DENSITY = np.log(np.maximum(np.arange(256), 0.5) / 255).astype(np.float32)


def draw_cell(code: str, slide: SlideLook, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture of a class.

    Args:
        code: A key of `LOOKS`.
        slide: The slide it lies on.
        rng: All chance comes from here: the same state gives the same pixels.

    Returns:
        uint8 (250, 250, 3), RGB.
    """
    picture = np.empty((IMAGE_SIZE_PX, IMAGE_SIZE_PX, 3), np.uint8)
    picture[:] = np.clip(slide.ground, 0, 255).astype(np.uint8)
    centre = IMAGE_SIZE_PX / 2 + rng.uniform(-9, 9, 2)
    _red_cells(picture, slide, rng)
    _specks(picture, slide, rng)
    look = LOOKS[code]
    if code == "OTH" and rng.random() < 0.5:
        look = GIANT_CELL
    _neighbours(picture, centre, look, slide, rng)
    blur_px = max(0.35, slide.focus_px + rng.normal(0, 0.25))
    if look.kind == "debris":
        paint_debris(picture, centre, rng)
    elif look.kind == "smudge":
        paint_smudge(picture, centre, look, slide, rng)
    elif look.kind == "lost":
        _lost_cell(picture, centre, slide, rng)
        blur_px = rng.uniform(5.0, 9.0)
    else:
        paint_cell(picture, centre, look, slide, rng)
    return _photograph(picture, slide, blur_px, rng)


def _red_cells(picture: np.ndarray, slide: SlideLook, rng: np.random.Generator) -> None:
    for _ in range(rng.poisson(slide.red_cells)):
        place = rng.uniform(-30, IMAGE_SIZE_PX + 30, 2)
        radius = rng.uniform(36, 46) * slide.cell_scale
        form = shapes.turned(shapes.blob(rng, radius, aspect=rng.uniform(1, 1.2)), rng.uniform(0, 6.28))
        Region(picture, [form + place]).paint(slide.red_cell + rng.normal(0, 4, 3), opacity=0.85)
        if rng.random() < 0.6:
            pale = 0.35 * slide.red_cell + 0.65 * slide.ground
            Region(picture, [form * rng.uniform(0.35, 0.5) + place], 5.0).paint(pale, opacity=0.8)


def _specks(picture: np.ndarray, slide: SlideLook, rng: np.random.Generator) -> None:
    count = int(rng.poisson(slide.specks))
    colours = np.array([120, 70, 150]) + rng.normal(0, 25, (count, 3))
    paint_dots(picture, rng.uniform(0, IMAGE_SIZE_PX, (count, 2)), rng.uniform(0.8, 3.0, count), colours)


def _neighbours(
    picture: np.ndarray, centre: np.ndarray, look: CellLook, slide: SlideLook, rng: np.random.Generator
) -> None:
    """Other cells, of any class, round the one in the middle and never over its centre."""
    own = look.diameter_px[1] / 2 * slide.cell_scale
    first = rng.uniform(0, 2 * np.pi)
    for number in range(min(int(rng.poisson(slide.neighbours)), 5)):
        other = _CELLS[rng.integers(len(_CELLS))]
        away = own + other.diameter_px[1] / 2 * slide.cell_scale * rng.uniform(0.7, 1.2)
        angle = first + number * 1.26 + rng.normal(0, 0.12)
        place = centre + away * np.array([np.cos(angle), np.sin(angle)])
        if np.all((place > -other.diameter_px[0] / 2) & (place < IMAGE_SIZE_PX + other.diameter_px[0] / 2)):
            paint_cell(picture, place, other, slide, rng)


def _lost_cell(picture: np.ndarray, centre: np.ndarray, slide: SlideLook, rng: np.random.Generator) -> None:
    paint_cell(picture, centre, _CELLS[rng.integers(len(_CELLS))], slide, rng)
    for _ in range(rng.integers(0, 3)):
        place = centre + rng.normal(0, 30, 2)
        form = shapes.blob(rng, rng.uniform(22, 48), aspect=rng.uniform(1, 1.6), roughness=0.06)
        Region(picture, [form + place], 3.0).paint(
            np.array([66, 40, 112]) + rng.normal(0, 10, 3), opacity=0.85
        )


def _photograph(
    picture: np.ndarray, slide: SlideLook, blur_px: float, rng: np.random.Generator
) -> np.ndarray:
    """Stain, focus, light and camera noise: the standard picture becomes one of this slide."""
    # Beer-Lambert: densities add, so the stain mixes them before the light is let through.
    mixing = np.column_stack([slide.stain, np.log(255 * slide.light)])
    blurred = cv2.GaussianBlur(picture, (0, 0), blur_px)
    light = cv2.exp(cv2.transform(cv2.LUT(blurred, _DENSITY), mixing))
    slope = rng.normal(0, 0.05, 2)
    ramp = np.linspace(-1, 1, IMAGE_SIZE_PX)
    field = (1 + slope[0] * ramp[None, :] + slope[1] * ramp[:, None]).astype(np.float32)
    lit = cv2.multiply(light, cv2.merge([field] * 3))
    noise = textures.cut(textures.noise_tile(), rng, picture.shape[:2])
    return cv2.addWeighted(lit, 1, noise, slide.noise, 0, dtype=cv2.CV_8U)
