"""What is no whole cell: smudged nuclei, stain deposit, platelets, dirt."""

from __future__ import annotations

import cv2
import numpy as np

from . import shapes, textures
from .canvas import Region, paint_dots, paint_lines
from .classes import CellLook
from .slides import SlideLook


def paint_smudge(
    picture: np.ndarray, centre: np.ndarray, look: CellLook, slide: SlideLook, rng: np.random.Generator
) -> None:
    """A burst nucleus: pale chromatin drawn out in streaks, without membrane or cytoplasm."""
    radius = rng.uniform(*look.diameter_px) / 2 * slide.cell_scale
    way = rng.uniform(0, 2 * np.pi)
    colour = np.array(look.nucleus_colour) + rng.normal(0, 7, 3)
    streaks = []
    for _ in range(rng.integers(14, 24)):
        middle = np.array([rng.normal(0, 0.34), rng.normal(0, 0.30)]) * radius
        streak = shapes.blob(
            rng, radius * rng.uniform(0.18, 0.36), aspect=rng.uniform(2.0, 5.0), roughness=0.06
        )
        streaks.append(shapes.turned(streak + middle, way) + centre)
    core = shapes.turned(shapes.blob(rng, radius * 0.55, aspect=1.3, roughness=0.08), way) + centre
    region = Region(picture, [*streaks, core], soft_px=3.0)
    threads = textures.cut(textures.texture_tile("coarse"), rng, region.cover.shape)
    clouds = textures.cut(textures.texture_tile("cloudy"), rng, region.cover.shape)
    region.paint(colour, -20 * threads - 24 * clouds, opacity=0.88)


def paint_debris(picture: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> None:
    """Stain deposit, a clump of platelets, or dirt."""
    (_deposit, _platelets, _dirt)[rng.integers(3)](picture, centre, rng)


def _deposit(picture: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> None:
    count = int(rng.integers(90, 220))
    clumps = centre + rng.normal(0, 26, (int(rng.integers(2, 6)), 2))
    places = clumps[rng.integers(len(clumps), size=count)] + rng.normal(0, 16, (count, 2))
    radii = rng.gamma(2.0, 1.0, count) + 0.8
    colours = np.array([74, 26, 104]) + rng.normal(0, 16, (count, 1)) + rng.normal(0, 6, (count, 3))
    paint_dots(picture, places, radii, colours)


def _platelets(picture: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(5, 14)):
        place = centre + rng.normal(0, 24, 2)
        size = rng.uniform(9, 17)
        form = shapes.turned(shapes.blob(rng, size, aspect=1.25, roughness=0.07), rng.uniform(0, 6.28))
        Region(picture, [form + place], 1.0).paint(
            np.array([196, 176, 222]) + rng.normal(0, 6, 3), opacity=0.9
        )
        dots = place + rng.normal(0, size * 0.32, (int(rng.integers(8, 18)), 2))
        ink = np.array([134, 62, 152]) + rng.normal(0, 12, (len(dots), 1)) + np.zeros(3)
        paint_dots(picture, dots, rng.uniform(1.0, 2.2, len(dots)), ink)


def _dirt(picture: np.ndarray, centre: np.ndarray, rng: np.random.Generator) -> None:
    """Angular splinters and a fibre, darker or paler than any cell."""
    for _ in range(rng.integers(2, 6)):
        corners = rng.normal(0, rng.uniform(12, 30), (int(rng.integers(5, 9)), 2))
        hull = cv2.convexHull(corners.astype(np.float32))[:, 0].astype(np.float64)
        colour = np.array(((88, 80, 74), (60, 58, 96), (150, 132, 96))[rng.integers(3)]) + rng.normal(0, 8, 3)
        region = Region(picture, [hull + centre + rng.normal(0, 18, 2)])
        if not region.is_empty:
            region.paint(colour, 22 * textures.cut(textures.texture_tile("coarse"), rng, region.cover.shape))
    steps = np.cumsum(rng.normal(0, 0.25, 14)) + rng.uniform(0, 6.28)
    fibre = np.cumsum(np.stack([np.cos(steps), np.sin(steps)], axis=1), axis=0) * 9
    paint_lines(
        picture, [fibre - fibre.mean(axis=0) + centre], np.array([84, 72, 110]), int(rng.integers(2, 5))
    )
