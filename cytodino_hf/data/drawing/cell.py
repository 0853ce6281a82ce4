"""Paint one cell: outline, cytoplasm, nucleus, granules and what else its class is known by."""

from __future__ import annotations

import numpy as np

from . import shapes, textures
from .canvas import Region, paint_dots, paint_lines
from .classes import CellLook, Granules
from .slides import SlideLook


def paint_cell(
    picture: np.ndarray,
    centre: np.ndarray,
    look: CellLook,
    slide: SlideLook,
    rng: np.random.Generator,
) -> float:
    """Paint a cell in place.

    Args:
        picture: uint8 (height, width, 3) in the standard stain.
        centre: (2,) x and y of the cell, in pixels; it may lie outside the picture.

    Returns:
        Radius of the cell in pixels.
    """
    radius = rng.uniform(*look.diameter_px) / 2 * slide.cell_scale
    outline = shapes.turned(
        shapes.blob(rng, radius, aspect=rng.uniform(1.0, 1.14), roughness=0.022), rng.uniform(0, 2 * np.pi)
    )
    cytoplasm = np.array(look.cytoplasm) + slide.tint + rng.normal(0, 7, 3)
    if "hairs" in look.features:
        _hairs(picture, centre, outline, cytoplasm - 14, rng)
    if "blebs" in look.features:
        _blebs(picture, centre, outline, cytoplasm, rng)
    body = Region(picture, [outline + centre])
    if body.is_empty:
        return radius
    _cytoplasm(body, cytoplasm, look, rng)

    nucleus_radius = radius * rng.uniform(*look.nucleus_share)
    aside = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(aside), np.sin(aside)])
    middle = centre + direction * (rng.uniform(*look.eccentricity) * (radius - nucleus_radius))
    if look.features & {"golgi", "halo"}:
        _pale_zone(picture, middle - direction * nucleus_radius * 0.95, nucleus_radius, look, cytoplasm, rng)
    if "vacuoles" in look.features:
        _vacuoles(picture, centre, outline, cytoplasm, rng)
    nucleus = _nucleus(picture, middle, nucleus_radius, look, slide, rng)
    for granules in look.granules:
        _granules(picture, centre, outline, granules, nucleus, slide, rng)
    if "rods" in look.features:
        _rods(picture, centre, radius, rng)
    return radius


def inside(outline: np.ndarray, count: int, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Points spread evenly inside a star-shaped outline round the origin, (count, 2).

    Args:
        reach: Largest distance from the origin, as a share of that of the outline.
    """
    corner = rng.integers(0, len(outline), count)
    beside = outline[(corner + 1) % len(outline)]
    edge = outline[corner] + (beside - outline[corner]) * rng.uniform(0, 1, (count, 1))
    return edge * (np.sqrt(rng.uniform(0, 1, (count, 1))) * reach)


def _cytoplasm(body: Region, colour: np.ndarray, look: CellLook, rng: np.random.Generator) -> None:
    clouds = textures.cut(textures.texture_tile("cloudy"), rng, body.cover.shape)
    shade = rng.uniform(5, 11) * clouds
    height, width = clouds.shape
    x, y = body.grid(np.array([body.x + width / 2, body.y + height / 2]))
    # The rim is a little darker: the cell is thicker there in a smear, and basophilic cells show it most.
    shade -= rng.uniform(6, 16) * (np.square(x / (width / 2)) + np.square(y / (height / 2)))
    body.paint(colour + 6, shade)


def _nucleus(
    picture: np.ndarray,
    centre: np.ndarray,
    radius: float,
    look: CellLook,
    slide: SlideLook,
    rng: np.random.Generator,
) -> Region:
    form = shapes.NUCLEI[look.nucleus](rng, radius)
    angle = rng.uniform(0, 2 * np.pi)
    region = Region(
        picture, [shapes.turned(outline, angle) + centre for outline in form.outlines], soft_px=0.7
    )
    if region.is_empty:
        return region
    if look.chromatin == "spokes":
        blocks = textures.cut(textures.texture_tile("clumped"), rng, region.cover.shape)
        dark = 0.75 * textures.spokes(rng, *region.grid(centre), radius) + 0.35 * blocks
    else:
        dark = textures.cut(textures.texture_tile(look.chromatin), rng, region.cover.shape)
    contrast = look.chromatin_contrast * slide.chromatin_scale
    colour = np.array(look.nucleus_colour) + rng.normal(0, 5, 3)
    region.paint(colour, -contrast * dark)
    if form.creases:
        creases = [shapes.turned(crease, angle) + centre for crease in form.creases]
        for crease, shift in zip(creases, (-20, 22, -20), strict=False):
            fold = shapes.strip(crease, rng.uniform(3.5, 6.5))
            Region(picture, [fold], soft_px=1.2).paint(colour + shift)
    for _ in range(rng.integers(look.nucleoli[0], look.nucleoli[1] + 1)):
        _nucleolus(picture, centre, radius, colour, rng)
    return region


def _nucleolus(
    picture: np.ndarray, centre: np.ndarray, radius: float, colour: np.ndarray, rng: np.random.Generator
) -> None:
    at = rng.uniform(0, 2 * np.pi)
    place = centre + radius * rng.uniform(0.15, 0.6) * np.array([np.cos(at), np.sin(at)])
    size = radius * rng.uniform(0.13, 0.19)
    Region(picture, [shapes.blob(rng, size * 1.3, roughness=0.06) + place], 1.4).paint(colour - 24)
    Region(picture, [shapes.blob(rng, size, roughness=0.06) + place], 1.0).paint(
        colour + np.array([14, 30, 36])
    )


def _granules(
    picture: np.ndarray,
    centre: np.ndarray,
    outline: np.ndarray,
    granules: Granules,
    nucleus: Region,
    slide: SlideLook,
    rng: np.random.Generator,
) -> None:
    count = int(rng.integers(granules.count[0], granules.count[1] + 1))
    places = centre + inside(outline, count * 2, 0.95, rng)
    if not granules.over_nucleus:
        places = places[~nucleus.covers(places)]
    places = places[:count]
    radii = rng.uniform(*granules.radius_px, len(places)) * slide.granule_scale
    colours = (
        np.array(granules.colour) + rng.normal(0, 14, (len(places), 1)) + rng.normal(0, 5, (len(places), 3))
    )
    paint_dots(picture, places, radii, colours)
    if granules.radius_px[0] > 2.2:  # large granules shine
        paint_dots(picture, places - 0.3 * radii[:, None], radii * 0.35, colours + 46)


def _pale_zone(
    picture: np.ndarray,
    place: np.ndarray,
    nucleus_radius: float,
    look: CellLook,
    cytoplasm: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """The Golgi zone beside the nucleus (promyelocyte), or the halo of a plasma cell."""
    size = nucleus_radius * (rng.uniform(0.42, 0.55) if "golgi" in look.features else rng.uniform(0.5, 0.62))
    pale = cytoplasm + 0.62 * (np.array([236, 222, 236]) - cytoplasm)
    Region(picture, [shapes.blob(rng, size, aspect=1.2) + place], 3.0).paint(pale, opacity=0.9)


def _vacuoles(
    picture: np.ndarray,
    centre: np.ndarray,
    outline: np.ndarray,
    cytoplasm: np.ndarray,
    rng: np.random.Generator,
) -> None:
    count = int(rng.integers(12, 26))
    places = centre + inside(outline, count, 0.9, rng)
    pale = np.repeat((cytoplasm + 0.75 * (246 - cytoplasm))[None], count, axis=0)
    paint_dots(picture, places, rng.uniform(2.2, 5.0, count), pale)


def _hairs(
    picture: np.ndarray, centre: np.ndarray, outline: np.ndarray, colour: np.ndarray, rng: np.random.Generator
) -> None:
    count = int(rng.integers(34, 52))
    at = np.linspace(0, len(outline), count, endpoint=False) + rng.uniform(-0.4, 0.4, count)
    roots = outline[at.astype(int) % len(outline)]
    out = roots / np.hypot(roots[:, 0], roots[:, 1])[:, None]
    side = np.stack([-out[:, 1], out[:, 0]], axis=1) * rng.normal(0, 3.5, (count, 1))
    length = rng.uniform(4, 18, (count, 1))
    hairs = np.stack(
        [roots * 0.95, roots + out * length * 0.6 + side * 0.4, roots + out * length + side], axis=1
    )
    paint_lines(picture, list(hairs + centre), colour, 2)


def _blebs(
    picture: np.ndarray, centre: np.ndarray, outline: np.ndarray, colour: np.ndarray, rng: np.random.Generator
) -> None:
    for _ in range(rng.integers(1, 4)):
        root = outline[rng.integers(len(outline))] * 0.94
        bleb = shapes.blob(rng, float(np.hypot(*root)) * rng.uniform(0.16, 0.24), roughness=0.04)
        Region(picture, [bleb + root + centre]).paint(colour)


def _rods(picture: np.ndarray, centre: np.ndarray, radius: float, rng: np.random.Generator) -> None:
    """Bundles of Auer rods: needles that lie side by side."""
    for _ in range(rng.integers(3, 5)):
        at, way = rng.uniform(0, 2 * np.pi), rng.uniform(0, np.pi)
        bundle = centre + radius * rng.uniform(0.05, 0.55) * np.array([np.cos(at), np.sin(at)])
        along, across = np.array([np.cos(way), np.sin(way)]), np.array([-np.sin(way), np.cos(way)])
        needles = []
        for _ in range(rng.integers(4, 8)):
            middle = bundle + across * rng.normal(0, 4.5) + along * rng.normal(0, 5)
            tilt = along + across * rng.normal(0, 0.12)
            half = rng.uniform(9, 17)
            needles.append(np.stack([middle - tilt * half, middle + tilt * half]))
        paint_lines(picture, needles, np.array([176, 22, 92]) + rng.normal(0, 10, 3), 2)
