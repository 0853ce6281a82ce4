"""Painting primitives on an RGB picture: textured polygons with smooth edges, dots and lines."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_SHIFT = 4  # polygons keep sixteenths of a pixel


def fixed(points: np.ndarray) -> np.ndarray:
    """Coordinates as the fixed-point integers cv2 takes with `shift`."""
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


class Region:
    """The part of a picture that some polygons cover, with how much of each pixel they cover.

    Args:
        picture: uint8 (height, width, 3); painted on in place.
        outlines: Closed polygons in picture coordinates; they may lie partly or wholly outside.
        soft_px: Sigma by which the edge is softened.
    """

    def __init__(self, picture: np.ndarray, outlines: Sequence[np.ndarray], soft_px: float = 0.0) -> None:
        margin = 2 + round(3 * soft_px)
        points = np.concatenate(list(outlines))
        low = np.floor(points.min(axis=0)).astype(int) - margin
        high = np.ceil(points.max(axis=0)).astype(int) + margin + 1
        height, width = picture.shape[:2]
        self.x, self.y = int(max(low[0], 0)), int(max(low[1], 0))
        right, bottom = int(min(high[0], width)), int(min(high[1], height))
        self.is_empty = right <= self.x or bottom <= self.y
        self.pixels = picture[self.y : max(bottom, self.y), self.x : max(right, self.x)]
        self.cover: np.ndarray = np.zeros(self.pixels.shape[:2], np.uint8)
        if self.is_empty:
            return
        origin = np.array([self.x, self.y])
        for outline in outlines:
            cv2.fillPoly(self.cover, [fixed(outline - origin)], 255, cv2.LINE_AA, _SHIFT)
        if soft_px:
            self.cover = cv2.GaussianBlur(self.cover, (0, 0), soft_px)

    def grid(self, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x (1, width) and y (height, 1) of the pixels, seen from `centre`, float32."""
        height, width = self.cover.shape
        x = np.arange(self.x, self.x + width, dtype=np.float32) - centre[0]
        y = np.arange(self.y, self.y + height, dtype=np.float32) - centre[1]
        return x[None, :], y[:, None]

    def paint(self, colour: np.ndarray, shade: np.ndarray | None = None, opacity: float = 1.0) -> None:
        """Lay a colour over the region.

        Args:
            colour: (3,) RGB.
            shade: (height, width) grey levels added to all channels; None paints evenly.
            opacity: 1 hides what is below.
        """
        if self.is_empty:
            return
        weight = self.cover.astype(np.float32) * (opacity / 255)
        layer = np.empty_like(self.pixels)
        if shade is None:
            layer[:] = np.clip(colour, 0, 255).astype(np.uint8)
        else:
            for channel in range(3):
                np.clip(
                    shade + np.float32(colour[channel]), 0, 255, out=layer[..., channel], casting="unsafe"
                )
        self.pixels[:] = cv2.blendLinear(layer, np.ascontiguousarray(self.pixels), weight, 1 - weight)

    def covers(self, points: np.ndarray) -> np.ndarray:
        """Whether each point (n, 2) lies inside the polygons."""
        at = np.round(points - np.array([self.x, self.y])).astype(int)
        height, width = self.cover.shape
        inside = (at[:, 0] >= 0) & (at[:, 1] >= 0) & (at[:, 0] < width) & (at[:, 1] < height)
        found = np.zeros(len(points), bool)
        found[inside] = self.cover[at[inside, 1], at[inside, 0]] > 127
        return found


def paint_dots(picture: np.ndarray, centres: np.ndarray, radii_px: np.ndarray, colours: np.ndarray) -> None:
    """Round dots with smooth edges: centres (n, 2), radii (n,), colours (n, 3)."""
    places, sizes = fixed(centres).tolist(), fixed(radii_px).tolist()
    for place, size, colour in zip(places, sizes, np.clip(colours, 0, 255).tolist(), strict=True):
        cv2.circle(picture, place, size, colour, -1, cv2.LINE_AA, _SHIFT)


def paint_lines(picture: np.ndarray, lines: Sequence[np.ndarray], colour: np.ndarray, width_px: int) -> None:
    """Open lines (n, 2) of one colour and width."""
    ink = np.clip(colour, 0, 255).tolist()
    cv2.polylines(picture, [fixed(line) for line in lines], False, ink, width_px, cv2.LINE_AA, _SHIFT)
