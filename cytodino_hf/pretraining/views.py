"""Views of one cell: what a student and its teacher look at.

A view is one warp from the decoded picture straight to the view's size: crop, mirror, turn and resize with one
interpolation. Colour comes after it, on the small picture. Grey and solarised views are left out: in a stained smear
colour is what tells an eosinophil from a neutrophil.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from ..data.fast_ops import add_normal_noise
from ..data.geometry import Pose, warp
from ..data.stain import jitter_stain
from ..recipe import Section

# Draws of a crop that fits into the picture before the largest one is taken.
_ATTEMPTS = 10
# A warp reads four pixels: down to this scale it misses none, below it the picture is halved first.
_LEAST_SCALE = 0.5


class ViewsSection(Section):
    """How a picture becomes views. Colour and noise are drawn for each view by itself."""

    global_size_px: int = Field(128, ge=8, le=1024, description="side of the two global views")
    global_scale: list[float] = Field(
        [0.32, 1.0], min_length=2, max_length=2, description="share of the picture's area a global view shows"
    )
    local_crops: int = Field(0, ge=0, le=32, description="local views, which only the student sees")
    local_size_px: int = Field(64, ge=8, le=1024, description="side of a local view")
    local_scale: list[float] = Field(
        [0.05, 0.32], min_length=2, max_length=2, description="share of the picture's area a local view shows"
    )
    aspect: list[float] = Field(
        [0.75, 4 / 3], min_length=2, max_length=2, description="least and largest width over height of a crop"
    )
    center_crop_px: int | None = Field(None, ge=8, description="centred square cut out first; null keeps all")
    hide_center_px: int = Field(0, ge=0, le=64, description="centred square painted over in every picture")
    turn_degrees: float = Field(
        45.0, ge=0, le=180, description="largest turn either way, besides mirror and quarter turns"
    )
    stain_probability: float = Field(0.8, ge=0, le=1, description="share of the views with other stain")
    stain_scales: list[float] = Field(
        [0.3, 0.3, 0.15], min_length=3, max_length=3, description="largest change of blue, purple, residual"
    )
    stain_shifts: list[float] = Field(
        [0.08, 0.04, 0.04], min_length=3, max_length=3, description="largest amount added, in optical density"
    )
    light_probability: float = Field(0.5, ge=0, le=1, description="share with other brightness and contrast")
    brightness: float = Field(0.1, ge=0, le=1, description="largest change, of the range of values")
    contrast: float = Field(0.2, ge=0, lt=1, description="largest change of the distance from the mean")
    blur_probability: float = Field(0.3, ge=0, le=1, description="share of blurred views")
    blur_sigma: list[float] = Field(
        [0.001, 0.01], min_length=2, max_length=2, description="standard deviation, of the view's side"
    )
    noise_probability: float = Field(0.2, ge=0, le=1, description="share of noisy views")
    noise_sigma: list[float] = Field(
        [0.005, 0.02], min_length=2, max_length=2, description="standard deviation, of the range of values"
    )


def views_contradictions(views: ViewsSection, patch: int | None) -> list[str]:
    """What no key of the section can show by itself, one line each.

    Args:
        views: The section.
        patch: Side of the backbone's patches; None where it is not known yet.
    """
    found = []
    for name in ("global_scale", "local_scale", "aspect", "blur_sigma", "noise_sigma"):
        low, high = getattr(views, name)
        if not 0 < low <= high or (high > 1 and name != "aspect"):
            limit = "" if name == "aspect" else ", at most 1"
            found.append(f"views.{name} = [{low:g}, {high:g}]: must be [least, largest], both above 0{limit}")
    for name, largest in (("stain_scales", 1.0), ("stain_shifts", math.inf)):
        if any(not 0 <= value <= largest for value in getattr(views, name)):
            found.append(f"views.{name} = {getattr(views, name)}: each must be 0 or more, a scale at most 1")
    sizes = {"global_size_px": views.global_size_px}
    if views.local_crops:
        sizes["local_size_px"] = views.local_size_px
    for name, size in sizes.items():
        if patch and size % patch:
            low = size // patch * patch
            found.append(
                f"views.{name} = {size}: must be a multiple of the backbone's patch of {patch}, such as "
                f"{low or patch} or {low + patch}"
            )
    return found


@dataclass(frozen=True)
class Crop:
    """A part of a picture.

    Args:
        width, height: In pixels of the picture.
        center: (right, down) of its centre from the centre of the picture.
    """

    width: float
    height: float
    center: tuple[float, float]


def draw_crop(
    draws: np.random.Generator,
    shape: tuple[int, int],
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> Crop:
    """Draw a part of a picture: area even between the scales, aspect even in its logarithm, place even.

    Args:
        draws: Source of the draws.
        shape: (height, width) of the picture.
        scale: Least and largest share of the area.
        aspect: Least and largest width over height.

    Returns:
        The part, inside the picture. Where no draw fits, the largest one of an allowed aspect.
    """
    height, width = shape
    tries = draws.random((_ATTEMPTS, 4))
    areas = height * width * (scale[0] + tries[:, 0] * (scale[1] - scale[0]))
    ratios = aspect[0] * (aspect[1] / aspect[0]) ** tries[:, 1]
    widths, heights = np.sqrt(areas * ratios), np.sqrt(areas / ratios)
    fits = (widths <= width) & (heights <= height)
    first = int(np.argmax(fits))
    part = float(widths[first]), float(heights[first])
    if not fits[first]:
        ratio = min(max(width / height, aspect[0]), aspect[1])
        part = min(width, height * ratio), min(height, width / ratio)
    along, down = (tries[first, 2:] - 0.5) * (width - part[0], height - part[1])
    return Crop(*part, (float(along), float(down)))


class Pyramid:
    """A picture and its halves, each made when it is asked for.

    Args:
        picture: uint8 RGB (height, width, 3).
    """

    def __init__(self, picture: np.ndarray) -> None:
        self.shape = picture.shape[:2]
        self._levels = [picture]

    def level(self, scale: float) -> np.ndarray:
        """The smallest of them that need not shrink further than to a half to come to `scale` of the picture."""
        import cv2

        number = 0
        while scale < _LEAST_SCALE:
            scale, number = scale / _LEAST_SCALE, number + 1
        while len(self._levels) <= number:
            above = self._levels[-1]
            size = (max(1, round(above.shape[1] / 2)), max(1, round(above.shape[0] / 2)))
            self._levels.append(cv2.resize(above, size, interpolation=cv2.INTER_AREA))
        return self._levels[number]


def lay_down(pyramid: Pyramid, crop: Crop, pose: Pose, size_px: int) -> np.ndarray:
    """One part of a picture, turned about its own centre, as a square; beyond the edges the picture is mirrored.

    Args:
        pyramid: The picture.
        crop: Its part.
        pose: Mirror and turns.
        size_px: Side of the result.

    Returns:
        uint8 RGB (size_px, size_px, 3).
    """
    import cv2

    stretch = np.array([size_px / crop.width, size_px / crop.height])
    picture = pyramid.level(float(stretch.min()))
    halved = np.array([picture.shape[1] / pyramid.shape[1], picture.shape[0] / pyramid.shape[0]])
    matrix = stretch[:, None] * pose.matrix()
    shift = -matrix @ np.array(crop.center)
    return warp(picture, matrix / halved, shift, (size_px, size_px), cv2.BORDER_REFLECT_101)


class Views:
    """Draws the views of pictures.

    Args:
        section: Sizes, crops and colour.
    """

    def __init__(self, section: ViewsSection) -> None:
        self.section = section

    def __call__(
        self, picture: np.ndarray, draws: np.random.Generator, globals_out: np.ndarray, locals_out: np.ndarray
    ) -> None:
        """Fill the views of one picture.

        Args:
            picture: uint8 RGB (height, width, 3) as read.
            draws: Source of all draws.
            globals_out: uint8 (2, size, size, 3), filled.
            locals_out: uint8 (crops, size, size, 3), filled; there may be none.
        """
        section = self.section
        pyramid = Pyramid(self._prepared(picture))
        for out in globals_out:
            out[...] = self._view(pyramid, draws, section.global_scale, section.global_size_px)
        for out in locals_out:
            out[...] = self._view(pyramid, draws, section.local_scale, section.local_size_px)

    def _prepared(self, picture: np.ndarray) -> np.ndarray:
        from ..model.image_processing_cytodino import center_square, paint_over_center

        if self.section.hide_center_px:
            picture = paint_over_center(picture, self.section.hide_center_px)
        if self.section.center_crop_px is None:
            return picture
        return center_square(picture, self.section.center_crop_px)

    def _view(
        self, pyramid: Pyramid, draws: np.random.Generator, scale: list[float], size_px: int
    ) -> np.ndarray:
        low, high = self.section.aspect
        crop = draw_crop(draws, pyramid.shape, (scale[0], scale[1]), (low, high))
        mirrored, quarter, turn = draws.random(3)
        pose = Pose(
            is_mirrored=bool(mirrored < 0.5),
            quarter_turns=int(4 * quarter),
            turn_degrees=float(2 * turn - 1) * self.section.turn_degrees,
        )
        return self._coloured(lay_down(pyramid, crop, pose, size_px), draws)

    def _coloured(self, view: np.ndarray, draws: np.random.Generator) -> np.ndarray:
        import cv2

        section = self.section
        stains, lights, blurs, noises, amount = draws.random(5)
        if stains < section.stain_probability:
            spread = draws.uniform(-1.0, 1.0, (2, 3))
            view = jitter_stain(
                view, 1.0 + spread[0] * section.stain_scales, spread[1] * section.stain_shifts
            )
        if lights < section.light_probability:
            brighter, stronger = draws.uniform(-1.0, 1.0, 2) * (section.brightness, section.contrast)
            view = change_light(view, brighter, 1.0 + stronger)
        if blurs < section.blur_probability:
            low, high = section.blur_sigma
            view = cv2.GaussianBlur(view, (0, 0), (low + amount * (high - low)) * len(view))
        if noises < section.noise_probability:
            low, high = section.noise_sigma
            view = add_normal_noise(view, 255 * draws.uniform(low, high), draws)
        return view


def change_light(view: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Distance of every value from the mean times `contrast`, plus `brightness` of the range; cut to 0 to 255."""
    import cv2

    mean = sum(cv2.mean(view)[:3]) / 3
    values = (np.arange(256) - mean) * contrast + mean + 255 * brightness
    return cv2.LUT(view, np.clip(np.rint(values), 0, 255).astype(np.uint8))
