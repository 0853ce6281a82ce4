"""How a training image is varied: geometry before the image processor's crop and resize, colour after it.

Every draw is keyed by (seed, epoch, position), so that the pixels depend neither on the number of workers nor
on where a run was interrupted, and the copies of an oversampled image differ. All ops are from albumentations
but the stain jitter; the library is imported when a preset is built.
"""

from __future__ import annotations

import functools
import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .stain import jitter_stain

if TYPE_CHECKING:
    import albumentations as A

# Ranges of the default preset. Scales and shifts of (blue, purple, residual) cover about the spread between
# images of the MLL set: the darkest purple varies by 12 % (one standard deviation), the background by 0.12,
# 0.04 and 0.04 in optical density.
_STAIN_SCALES = (0.2, 0.2, 0.1)
_STAIN_SHIFTS = (0.06, 0.03, 0.03)
_ZOOM = (0.9, 1.1)
_TRANSLATION = 0.04
# Flips and quarter turns give the other seven eighths of the circle.
_TILT_DEGREES = 45.0


@dataclass(frozen=True)
class Augmentation:
    """Random variation of one image around the image processor's geometry.

    It is pickled as its name and sizes, and built anew from them: a copy with other ops does not survive that.

    Args:
        name: Name of the preset.
        image_size_px: Side of the picture the model sees.
        center_crop_px: Side of the processor's centre crop; None for no crop.
        before: Geometry on the picture as read, or None.
        after: Colour, noise and (published) geometry on the resized picture, or None.
        cut_px: Side of the centre that is cut out first, because nothing outside can come into view; None
            cuts nothing.
    """

    name: str
    image_size_px: int
    center_crop_px: int | None
    before: A.Compose | None
    after: A.Compose | None
    cut_px: int | None = None

    def __call__(
        self,
        image: np.ndarray,
        resize: Callable[[np.ndarray], np.ndarray],
        *,
        key: tuple[int, int, int],
    ) -> np.ndarray:
        """One varied picture.

        Args:
            image: uint8 RGB (height, width, 3) as read.
            resize: The image processor's geometry, uint8 to uint8.
            key: (seed, epoch, position in the epoch), each zero or more; the same key gives the same pixels.

        Returns:
            uint8 RGB of the size `resize` gives.
        """
        geometry, colour = np.random.SeedSequence(key).spawn(2)
        if self.before is not None:
            image = _apply(self.before, _cut_centre(image, self.cut_px), geometry)
        image = resize(image)
        return image if self.after is None else _apply(self.after, image, colour)

    def __reduce__(self) -> tuple[Callable[..., Augmentation], tuple[object, ...]]:
        # A spawned worker builds the preset anew: the stain op's class exists only inside a function.
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
    return AUGMENTATIONS[name](image_size_px, center_crop_px)


def _rebuild(name: str, image_size_px: int, center_crop_px: int | None) -> Augmentation:
    return build_augmentation(name, image_size_px=image_size_px, center_crop_px=center_crop_px)


def _apply(compose: A.Compose, image: np.ndarray, sequence: np.random.SeedSequence) -> np.ndarray:
    # Compose.set_random_seed would give every op the same stream: flips would always come together.
    state = random.Random(int(sequence.generate_state(1, np.uint64)[0]))
    compose.set_random_state(np.random.Generator(np.random.PCG64(sequence)), state)
    return compose(image=image)["image"]


def _cut_centre(image: np.ndarray, side: int | None) -> np.ndarray:
    if side is None:
        return image
    height, width = image.shape[:2]
    # An even number of pixels goes, so that the centre stays where it was to the pixel.
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    return image[top : height - top, left : width - left]


def _library() -> Any:
    # Without it albumentations asks the network for a newer version when it is imported.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _none(image_size_px: int, center_crop_px: int | None) -> Augmentation:
    return Augmentation("none", image_size_px, center_crop_px, before=None, after=None)


def _default(image_size_px: int, center_crop_px: int | None) -> Augmentation:
    """Any orientation without empty corners, small zoom and shift, other smears, mild camera faults."""
    ops = _library()
    import cv2

    shift: dict[str, Any] = {"translate_percent": dict.fromkeys("xy", (-_TRANSLATION, _TRANSLATION))}
    cut_px = None
    if center_crop_px is not None:
        shift_px = round(_TRANSLATION * center_crop_px)
        shift = {"translate_px": dict.fromkeys("xy", (-shift_px, shift_px))}
        # The crop's diagonal at the smallest zoom, moved by the shift, and two pixels a side to interpolate.
        cut_px = math.ceil(center_crop_px * math.sqrt(2) / _ZOOM[0]) + 2 * shift_px + 4
    before = [
        ops.D4(p=1.0),
        ops.Affine(
            scale=_ZOOM,
            keep_ratio=True,
            rotate=(-_TILT_DEGREES, _TILT_DEGREES),
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.7,
            **shift,
        ),
    ]
    # Blur grows with the picture, so that it hides the same part of a cell.
    blur_px = (0.2, max(0.4, image_size_px / 250))
    after = [
        _stain_jitter_class()(p=0.8),
        ops.RandomBrightnessContrast(brightness_limit=0.06, contrast_limit=0.08, p=0.3),
        ops.OneOf(
            [
                ops.GaussianBlur(blur_limit=0, sigma_limit=blur_px),
                # Not ISONoise: its rare Poisson counts are white dots, as no camera makes them, and slow.
                ops.GaussNoise(std_range=(0.005, 0.02)),
                ops.ImageCompression(quality_range=(60, 100)),
            ],
            p=0.2,
        ),
    ]
    return Augmentation(
        "default", image_size_px, center_crop_px, ops.Compose(before), ops.Compose(after), cut_px=cut_px
    )


def _published(image_size_px: int, center_crop_px: int | None) -> Augmentation:
    """The ops of CytoDINO in its order, on the resized picture; black corners and JPEG quality 9 included."""
    ops = _library()
    import cv2

    after = [
        ops.HorizontalFlip(p=0.5),
        ops.VerticalFlip(p=0.5),
        ops.Rotate(limit=180, border_mode=cv2.BORDER_CONSTANT, fill=0, p=0.5),
        ops.OneOf(
            [
                ops.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.15, hue=0.03),
                ops.RGBShift(r_shift_limit=15, g_shift_limit=15, b_shift_limit=15),
            ],
            p=0.5,
        ),
        ops.OneOf(
            [
                ops.GaussianBlur(blur_limit=(3, 5)),
                ops.ISONoise(color_shift=(0.01, 0.05), intensity=(0.1, 0.5)),
                ops.ImageCompression(quality_range=(9, 100)),
            ],
            p=0.3,
        ),
        ops.CLAHE(clip_limit=2.0, p=0.3),
    ]
    return Augmentation("published", image_size_px, center_crop_px, before=None, after=ops.Compose(after))


@functools.cache
def _stain_jitter_class() -> Any:
    ops = _library()

    class StainJitter(ops.ImageOnlyTransform):  # type: ignore[name-defined,misc]
        """Scale and shift of the amounts of dye, evenly drawn from the ranges of this module."""

        def get_params(self) -> dict[str, Any]:
            spread = self.random_generator.uniform(-1.0, 1.0, size=(2, 3))
            return {"scales": 1.0 + spread[0] * _STAIN_SCALES, "shifts": spread[1] * _STAIN_SHIFTS}

        def apply(self, img: np.ndarray, scales: np.ndarray, shifts: np.ndarray, **params: Any) -> np.ndarray:
            return jitter_stain(img, scales, shifts)

    return StainJitter


#: Presets a recipe can name in `data.augmentation`.
AUGMENTATIONS: dict[str, Callable[[int, int | None], Augmentation]] = {
    "none": _none,
    "default": _default,
    "published": _published,
}
