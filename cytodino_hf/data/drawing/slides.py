"""What cells of one patient and one slide have in common: stain, light, focus, red cells, crowding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class SlideLook:
    """The conditions under which one slide was stained and photographed.

    Args:
        stain: (3, 3) matrix that mixes optical densities of the standard stain into those of this slide.
        ground: (3,) RGB of the empty slide before light.
        red_cell: (3,) RGB of a red cell.
        red_cells, neighbours: Mean number of each in one picture.
        light: (3,) factor on RGB.
        focus_px: Mean blur, as the sigma of a Gaussian.
        noise: Camera noise in grey levels.
        cell_scale: Factor on diameters (how flat the cells lie).
        granule_scale: Factor on the radius of granules.
        chromatin_scale: Factor on the contrast of chromatin.
        tint: (3,) shift of the cytoplasm in grey levels.
        specks: Mean number of specks of dirt.
    """

    stain: np.ndarray
    ground: np.ndarray
    red_cell: np.ndarray
    red_cells: float
    neighbours: float
    light: np.ndarray
    focus_px: float
    noise: float
    cell_scale: float
    granule_scale: float
    chromatin_scale: float
    tint: np.ndarray
    specks: float


def slide_look(seed: int, patient: int, slide: int) -> SlideLook:
    """Draw the look of a slide: patients differ in biology and crowding, slides in stain and camera."""
    body = np.random.default_rng([seed, 1, patient])
    glass = np.random.default_rng([seed, 2, patient, slide])
    stain = np.eye(3) + glass.normal(0, 0.05, (3, 3))
    # Batches of stain differ in strength as a whole and in the balance of azure and eosin.
    stain *= np.exp(glass.uniform(-0.55, 0.30) + glass.normal(0, 0.15, 3))[:, None]
    grounds = ((247, 246, 240), (238, 240, 224), (236, 228, 244), (224, 232, 246))
    ground = np.array(grounds[glass.integers(len(grounds))]) + glass.normal(0, 3, 3)
    red_cells = ((206, 186, 176), (198, 178, 184), (190, 186, 182), (214, 184, 170))
    red_cell = np.array(red_cells[glass.integers(len(red_cells))]) + glass.normal(0, 8, 3)
    return SlideLook(
        stain=stain,
        ground=ground,
        red_cell=red_cell,
        red_cells=body.uniform(1, 9),
        neighbours=body.uniform(0.5, 3.5),
        light=np.minimum(glass.uniform(0.62, 1.03) * np.exp(glass.normal(0, 0.04, 3)), 1.05),
        focus_px=glass.uniform(0.4, 1.6),
        noise=glass.uniform(1.5, 8),
        cell_scale=body.uniform(0.84, 1.16),
        granule_scale=body.uniform(0.88, 1.12),
        chromatin_scale=body.uniform(0.75, 1.25),
        tint=body.normal(0, 11, 3),
        specks=glass.uniform(0, 6),
    )
