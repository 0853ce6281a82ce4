"""Pictures that show the images themselves: what was trained on, and what augmentation does to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .plots import INK, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE_PX = 96  # a cell is 250 px wide in MLL; at 96 nucleus, granules and vacuoles can still be told
_GAP_PX = 4
_RULE = 170  # grey
_PHOTO_DPI = 144
_CAPTION_PER_TILE = 11  # letters that fit above one tile


def draw_class_panel(
    images: Mapping[str, Mapping[str, Sequence[np.ndarray]]], columns: int = 3, per_class: int = 4
) -> Figure:
    """A few images of every class under its name, the classes of a lineage together under its name.

    Args:
        images: Lineage -> class name -> uint8 images (height, width, 3); more than `per_class` are not shown.
        columns: Classes side by side.
        per_class: Images of one class side by side.
    """
    classes = [(lineage, name) for lineage, members in images.items() for name in members]
    columns = max(1, min(columns, len(classes)))
    line, margin = 20, 18
    caption = 2 * line + 6
    block_wide = per_class * (TILE_PX + _GAP_PX) + margin
    block_high = TILE_PX + caption + 10
    rows = -(-len(classes) // columns)
    canvas = np.full((rows * block_high, columns * block_wide - margin, 3), 255, dtype=np.uint8)
    captions, headings = [], []
    for number, (lineage, name) in enumerate(classes):
        top, left = number // columns * block_high, number % columns * block_wide
        goes_on = number % columns > 0 and classes[number - 1][0] == lineage
        # A rule joins the classes of one lineage; its name stands where it begins and at the head of each row.
        canvas[top : top + 2, left - margin * goes_on : left + block_wide - margin] = _RULE
        if not goes_on:
            headings.append((left, top + line, lineage))
        captions.append((left, top + 2 * line, shortened(name, per_class * _CAPTION_PER_TILE)))
        for i, image in enumerate(images[lineage][name][:per_class]):
            paste_tile(canvas, image, top + caption, left + i * (TILE_PX + _GAP_PX))
    return photo_figure(canvas, captions, headings)


def draw_augmentation_strip(rows: Sequence[Sequence[np.ndarray]]) -> Figure:
    """One row per image: the original, then the same image as training draws saw it.

    Args:
        rows: uint8 images (height, width, 3); the first of each row is the original.
    """
    caption, apart = 26, 16
    wide = max(len(row) for row in rows) * (TILE_PX + _GAP_PX) + apart
    canvas = np.full((caption + len(rows) * (TILE_PX + _GAP_PX), wide, 3), 255, dtype=np.uint8)
    for number, row in enumerate(rows):
        for i, image in enumerate(row):
            left = i * (TILE_PX + _GAP_PX) + (apart if i else 0)
            paste_tile(canvas, image, caption + number * (TILE_PX + _GAP_PX), left)
    return photo_figure(
        canvas, [(0, caption - 6, "original"), (TILE_PX + _GAP_PX + apart, caption - 6, "augmented")]
    )


def photo_figure(
    canvas: np.ndarray,
    captions: Sequence[tuple[int, int, str]],
    headings: Sequence[tuple[int, int, str]] = (),
) -> Figure:
    """One picture, pixel for pixel, with captions and bold headings (left, baseline, text) in its pixels."""
    high, wide = canvas.shape[:2]
    figure = new_figure(wide / _PHOTO_DPI, high / _PHOTO_DPI, dpi=_PHOTO_DPI, layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, interpolation="none", extent=(0, wide, high, 0), aspect="auto")
    axes.set_axis_off()
    words: dict[str, Any] = {
        "fontsize": 8,
        "color": INK,
        "va": "baseline",
        "parse_math": False,
        "clip_on": True,
    }
    for weight, texts in (("normal", captions), ("bold", headings)):
        for left, baseline, text in texts:
            axes.text(left, baseline, text, fontweight=weight, **words)
    return figure


def paste_tile(canvas: np.ndarray, image: np.ndarray, top: int, left: int) -> None:
    """Put an image into a tile of the canvas, whole, in its proportions, centred."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image, dtype=np.uint8))
    scale = TILE_PX / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    tile = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
    top, left = top + (TILE_PX - size[1]) // 2, left + (TILE_PX - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = tile
