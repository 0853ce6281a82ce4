"""How a training image is varied: one pose (geometry) around the image processor's, then colour and noise.

Every draw is keyed by (seed, epoch, position), so that the pixels depend neither on the number of workers nor
on where a run was interrupted, and the copies of an oversampled image differ. `geometry.py` lays a picture down
in one warp; `fast_ops.py` holds the operations that albumentations does at a high price, the others are its own;
the library is imported when a preset is built.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .fast_ops import CLAHE, GaussNoise, ISONoise, OneOf, Operation, Plain, RGBShift, Sometimes
from .geometry import Pose, Resize, pose_after_resize, pose_before_crop
from .stain import jitter_stain

# Ranges of the default preset. Scales and shifts of (blue, purple, residual) cover about the spread between
# images of the MLL set: the darkest purple varies by 12 % (one standard deviation), the background by 0.12,
# 0.04 and 0.04 in optical density.
_STAIN_SCALES = (0.2, 0.2, 0.1)
_STAIN_SHIFTS = (0.06, 0.03, 0.03)
_ZOOM = (0.9, 1.1)
_TRANSLATION = 0.04
# Flips and quarter turns give the other seven eighths of the circle.
_TILT_DEGREES = 45.0
_TILTED_SHARE = 0.7
_PUBLISHED_TURNED_SHARE = 0.5


@dataclass(frozen=True)
class Preset:
    """What a name in a recipe stands for.

    Args:
        draw_pose: Draws a pose for a picture of which (columns, rows) are seen.
        lay_down: Where the pose comes: `pose_before_crop` or `pose_after_resize`.
        operations: Applied in this order to the picture of the model's size.
    """

    draw_pose: Callable[[np.random.Generator, tuple[int, int]], Pose]
    lay_down: Callable[..., np.ndarray]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Augmentation:
    """Random variation of one image around the image processor's geometry.

    It is pickled as its name and sizes, and built anew from them: a copy with another preset does not survive that.

    Args:
        name: Name of the preset.
        image_size_px: Side of the picture the model sees.
        center_crop_px: Side of the processor's centre crop; None for no crop.
        preset: What the name stands for; None varies nothing.
    """

    name: str
    image_size_px: int
    center_crop_px: int | None
    preset: Preset | None

    def __call__(self, image: np.ndarray, resize: Resize, *, key: tuple[int, int, int]) -> np.ndarray:
        """One varied picture.

        Args:
            image: uint8 RGB (height, width, 3) as read.
            resize: The image processor's geometry, uint8 to uint8.
            key: (seed, epoch, position in the epoch), each zero or more; the same key gives the same pixels.

        Returns:
            uint8 RGB of the model's size.
        """
        if self.preset is None:
            return resize(image)
        draws = np.random.default_rng(np.random.SeedSequence(key))
        pose = self.preset.draw_pose(draws, self._seen(image))
        sizes = {"size_px": self.image_size_px, "crop_px": self.center_crop_px}
        picture = self.preset.lay_down(image, pose, resize, **sizes)
        for operation in self.preset.operations:
            picture = operation(picture, draws)
        return picture

    def _seen(self, image: np.ndarray) -> tuple[int, int]:
        rows, columns = image.shape[:2]
        largest = self.center_crop_px or max(rows, columns)
        return min(columns, largest), min(rows, largest)

    def __reduce__(self) -> tuple[Callable[..., Augmentation], tuple[object, ...]]:
        # albumentations' operations are large when pickled; a spawned worker builds the preset anew.
        return _rebuild, (self.name, self.image_size_px, self.center_crop_px)


def build_augmentation(name: str, *, image_size_px: int, center_crop_px: int | None) -> Augmentation:
    """Make a preset.

    Args:
        name: A key of `AUGMENTATIONS`.
        image_size_px: Side of the picture the model sees.
        center_crop_px: Side of the image processor's centre crop; None for no crop.

    Raises:
        ValueError: Unknown name.
    """
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation {name!r} (known: {', '.join(AUGMENTATIONS)})")
    return Augmentation(name, image_size_px, center_crop_px, AUGMENTATIONS[name](image_size_px))


def _rebuild(name: str, image_size_px: int, center_crop_px: int | None) -> Augmentation:
    return build_augmentation(name, image_size_px=image_size_px, center_crop_px=center_crop_px)


def _library() -> Any:
    # Without it albumentations asks the network for a newer version when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _none(image_size_px: int) -> None:
    return None


def _default(image_size_px: int) -> Preset:
    """Any orientation without empty corners, small zoom and shift, other smears, mild camera faults."""
    library = _library()
    # Blur grows with the picture, so that it hides the same part of a cell.
    blur_px = (0.2, max(0.4, image_size_px / 250))
    operations = (
        Sometimes(0.8, StainJitter(_STAIN_SCALES, _STAIN_SHIFTS)),
        Sometimes(
            0.3, Plain(library.RandomBrightnessContrast(brightness_limit=0.06, contrast_limit=0.08, p=1.0))
        ),
        Sometimes(
            0.2,
            OneOf(
                [
                    Plain(library.GaussianBlur(blur_limit=0, sigma_limit=blur_px, p=1.0)),
                    # Not ISONoise: its rare Poisson counts are white dots, as no camera makes them.
                    GaussNoise(std=(0.005, 0.02)),
                    Plain(library.ImageCompression(quality_range=(60, 100), p=1.0)),
                ]
            ),
        ),
    )
    return Preset(_draw_default_pose, pose_before_crop, operations)


def _draw_default_pose(draws: np.random.Generator, seen: tuple[int, int]) -> Pose:
    mirrored, quarter, tilted = draws.random(3)
    pose = Pose(is_mirrored=bool(mirrored < 0.5), quarter_turns=int(4 * quarter))
    if tilted >= _TILTED_SHARE:
        return pose
    right, down = draws.uniform(-_TRANSLATION, _TRANSLATION, size=2) * seen
    return Pose(
        pose.is_mirrored,
        pose.quarter_turns,
        turn_degrees=draws.uniform(-_TILT_DEGREES, _TILT_DEGREES),
        zoom=draws.uniform(*_ZOOM),
        shift=(float(right), float(down)),
    )


def _published(image_size_px: int) -> Preset:
    """The ops of CytoDINO in its order, on the resized picture; black corners and JPEG quality 9 included."""
    library = _library()
    jitter = library.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.15, hue=0.03, p=1.0)
    blur = library.GaussianBlur(blur_limit=(3, 5), p=1.0)
    compression = library.ImageCompression(quality_range=(9, 100), p=1.0)
    operations = (
        Sometimes(0.5, OneOf([Plain(jitter), RGBShift(limit=15)])),
        Sometimes(0.3, OneOf([Plain(blur), ISONoise(intensity=(0.1, 0.5)), Plain(compression)])),
        Sometimes(0.3, CLAHE(clip_limit=(1.0, 2.0))),
    )
    return Preset(_draw_published_pose, pose_after_resize, operations)


def _draw_published_pose(draws: np.random.Generator, seen: tuple[int, int]) -> Pose:
    """Left-right and top-bottom flip at one half each, and in half of the cases a turn to any angle."""
    across, over, turned = draws.random(3) < (0.5, 0.5, _PUBLISHED_TURNED_SHARE)
    # A flip over is a flip across and half a turn.
    return Pose(
        is_mirrored=bool(across != over),
        quarter_turns=2 if over else 0,
        turn_degrees=draws.uniform(-180.0, 180.0) if turned else 0.0,
    )


@dataclass(frozen=True)
class StainJitter:
    """Scale and shift of the amounts of dye (blue, purple, residual), evenly drawn.

    Args:
        scales: Largest change of each factor from 1.
        shifts: Largest amount added, in optical density.
    """

    scales: tuple[float, float, float]
    shifts: tuple[float, float, float]

    def __call__(self, image: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        spread = draws.uniform(-1.0, 1.0, size=(2, 3))
        return jitter_stain(image, 1.0 + spread[0] * self.scales, spread[1] * self.shifts)


#: Presets a recipe can name in `data.augmentation`.
AUGMENTATIONS: dict[str, Callable[[int], Preset | None]] = {
    "none": _none,
    "default": _default,
    "published": _published,
}
