"""How a training picture is laid down: mirrored, turned, zoomed and moved, with one interpolation at most.

The plain operations interpolate once each. Here mirror, turns, zoom, shift, crop and resize become one matrix and
one warp; what needs no interpolation is a flip. Only where the picture shrinks does the image processor's resize
come by itself, because a warp does not average and fine structure would flicker.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: The image processor's geometry: uint8 (height, width, 3) to uint8 (size, size, 3).
Resize = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pose:
    """One way to lay a picture down; the steps in this order, about its centre.

    Args:
        is_mirrored: Left becomes right.
        quarter_turns: Counter-clockwise, 0 to 3.
        turn_degrees: Further turn, counter-clockwise.
        zoom: Above 1 the cell grows.
        shift: To the right and down, in pixels of the picture.
    """

    is_mirrored: bool = False
    quarter_turns: int = 0
    turn_degrees: float = 0.0
    zoom: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    @property
    def needs_no_warp(self) -> bool:
        """Flips and quarter turns are all there is: pixels move, none is interpolated."""
        return self.turn_degrees == 0.0 and self.zoom == 1.0 and self.shift == (0.0, 0.0)

    def matrix(self) -> np.ndarray:
        """float64 (2, 2): where a point goes, (x right, y down) from the centre, without the shift."""
        angle = math.radians(90.0 * self.quarter_turns + self.turn_degrees)
        along, across = self.zoom * math.cos(angle), self.zoom * math.sin(angle)
        mirror = -1.0 if self.is_mirrored else 1.0
        return np.array([[mirror * along, across], [-mirror * across, along]])


def pose_before_crop(
    image: np.ndarray, pose: Pose, resize: Resize, *, size_px: int, crop_px: int | None
) -> np.ndarray:
    """Lay the whole picture down, then cut its centre and resize; beyond the edges it is mirrored.

    Args:
        image: uint8 RGB as read.
        pose: Shift in pixels of this picture.
        resize: The image processor's crop and resize.
        size_px: Side of the result.
        crop_px: Side of the processor's centre crop; None for no crop.
    """
    import cv2

    if pose.needs_no_warp:
        return flipped(resize(image), pose)
    rows, columns = image.shape[:2] if pose.quarter_turns % 2 == 0 else image.shape[1::-1]
    if crop_px is not None:
        rows, columns = min(rows, crop_px), min(columns, crop_px)
    shift = np.array(pose.shift)
    if max(rows, columns) > size_px:
        return resize(warp(image, pose.matrix(), shift, (rows, columns), cv2.BORDER_REFLECT_101))
    scale = np.array([size_px / columns, size_px / rows])
    return warp(
        image, scale[:, None] * pose.matrix(), scale * shift, (size_px, size_px), cv2.BORDER_REFLECT_101
    )


def pose_after_resize(
    image: np.ndarray, pose: Pose, resize: Resize, *, size_px: int, crop_px: int | None
) -> np.ndarray:
    """Cut and resize, then lay the picture down; what comes in from beyond its edges is black.

    Args:
        image: uint8 RGB as read.
        pose: Shift in pixels of the result.
        resize: The image processor's crop and resize.
        size_px: Side of the result.
        crop_px: Side of the processor's centre crop; None for no crop.
    """
    import cv2

    if pose.needs_no_warp:
        return flipped(resize(image), pose)
    height, width = image.shape[:2]
    rows, columns = (height, width) if crop_px is None else (min(height, crop_px), min(width, crop_px))
    if max(rows, columns) > size_px:
        image, rows, columns = resize(image), size_px, size_px
    else:
        top, left = (height - rows) // 2, (width - columns) // 2
        image = image[top : top + rows, left : left + columns]
    scale = np.array([size_px / columns, size_px / rows])
    return warp(image, pose.matrix() * scale, np.array(pose.shift), (size_px, size_px), cv2.BORDER_CONSTANT)


def flipped(image: np.ndarray, pose: Pose) -> np.ndarray:
    """Mirror and quarter turns of a pose alone; the image itself where there are none."""
    import cv2

    if pose.quarter_turns == 2:
        return cv2.flip(image, 0 if pose.is_mirrored else -1)
    if pose.is_mirrored:
        image = cv2.flip(image, 1)
    if pose.quarter_turns == 0:
        return image
    return cv2.rotate(
        image, cv2.ROTATE_90_COUNTERCLOCKWISE if pose.quarter_turns == 1 else cv2.ROTATE_90_CLOCKWISE
    )


def warp(
    image: np.ndarray, matrix: np.ndarray, shift: np.ndarray, shape: tuple[int, int], border: int
) -> np.ndarray:
    """Move every pixel by `matrix`, centre to centre, then by `shift`; bilinear.

    Args:
        image: uint8 (height, width, 3).
        matrix: (2, 2), from the image to the result.
        shift: (right, down) in pixels of the result.
        shape: (height, width) of the result.
        border: OpenCV's way to continue the image beyond its edges; constant is black.
    """
    import cv2

    center = np.array([image.shape[1] - 1, image.shape[0] - 1]) / 2
    moved = np.array([shape[1] - 1, shape[0] - 1]) / 2 + shift - matrix @ center
    # OpenCV warps four channels two to three times as fast as three, to the same pixels.
    four = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    four = cv2.warpAffine(four, np.column_stack([matrix, moved]), shape[::-1], borderMode=border)
    return cv2.cvtColor(four, cv2.COLOR_RGBA2RGB)
