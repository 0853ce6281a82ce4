"""Bring the pictures of one source near another's in colour and scale, all of them by one and the same change.

The change depends on the two sources alone, never on a single picture: matching each picture by itself would take away
what tells cells apart (an eosinophil is redder than a lymphocyte).

Source: Reinhard et al. 2001, Color transfer between images (doi 10.1109/38.946629), in CIELAB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DataError
from .appearance import Appearance, to_lab
from .pictures import Pictures

#: A larger change of scale means that the measured nuclei are none.
MOST_SCALE = 8.0


@dataclass(frozen=True)
class Matching:
    """A change of pictures.

    Args:
        gain, offset: L, a and b of every pixel become `gain * value + offset`; None leaves colours alone.
        scale: Factor on height and width; None leaves them alone.
        side_px: Side of the pictures after scaling: cut around the centre, or mirrored at their border where they are
            smaller. As large as the other source's, so that a processor that cuts and resizes does to both alike.
        scale_from: What the factor was worked out from, for reports.
    """

    gain: tuple[float, float, float] | None = None
    offset: tuple[float, float, float] | None = None
    scale: float | None = None
    side_px: int | None = None
    scale_from: str = ""

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """The changed picture: uint8 RGB (height, width, 3) -> a new array of the same kind."""
        if self.gain is not None and self.offset is not None:
            picture = _recoloured(picture, self.gain, self.offset)
        if self.scale is not None and self.side_px is not None:
            picture = _rescaled(picture, self.scale, self.side_px)
        return picture

    def in_words(self) -> str:
        """What is done, for reports."""
        parts = []
        if self.gain is not None:
            parts.append(
                "mean and deviation of L, a and b of the source brought to those of the training images (Reinhard)"
            )
        if self.scale is not None:
            parts.append(f"pictures resized by {self.scale:.3f} ({self.scale_from})")
        return "; ".join(parts) or "as it is"


def match(theirs: Appearance, ours: Appearance, *, colour: bool = False, scale: bool = False) -> Matching:
    """The change that brings pictures of one source near those of another.

    Args:
        theirs: The source whose pictures are changed.
        ours: The source they are brought near: what the model was trained on.
        colour: Match colours.
        scale: Match scale, by the median diameter of nuclei.

    Raises:
        DataError: The scale cannot be told, or the factor is beyond all reason.
    """
    if not colour and not scale:
        raise ValueError("nothing to match: neither colour nor scale")
    gain = offset = factor = None
    words = ""
    if colour:
        gain = tuple(o / t for o, t in zip(ours.lab_sd, theirs.lab_sd, strict=True))
        offset = tuple(o - g * t for o, g, t in zip(ours.lab_mean, gain, theirs.lab_mean, strict=True))
    if scale:
        factor, words = scale_factor(theirs, ours)
    return Matching(gain, offset, factor, ours.side_px if scale else None, words)  # type: ignore[arg-type]


def scale_factor(theirs: Appearance, ours: Appearance) -> tuple[float, str]:
    """By which factor pictures of one source are resized to show cells as large as the other, and how that is known.

    Raises:
        DataError: Nuclei are not known of both, or the factor is above 8 or below one eighth.
    """
    if theirs.nucleus_px is None or ours.nucleus_px is None:
        raise DataError(
            "the scale of the source cannot be told: too few of its pictures, or of the training images, show a "
            "nucleus in the middle. Match colours only"
        )
    factor = ours.nucleus_px / theirs.nucleus_px
    words = f"median diameter of nuclei {theirs.nucleus_px:.1f} and {ours.nucleus_px:.1f} pixels"
    if not 1 / MOST_SCALE <= factor <= MOST_SCALE:
        raise DataError(
            f"the source would have to be resized by {factor:.3g} ({words}), which is beyond all reason: match "
            "colours only"
        )
    return factor, words


@dataclass(frozen=True)
class MatchedPictures:
    """Pictures of a set, each changed when it is read.

    Args:
        pictures: The pictures as they are.
        matching: The change.
    """

    pictures: Pictures
    matching: Matching

    def read(self, row: int, buffer: np.ndarray | None = None) -> np.ndarray:
        """One picture; see `Pictures`."""
        return self.matching(self.pictures.read(row, buffer))


def _recoloured(
    picture: np.ndarray, gain: tuple[float, float, float], offset: tuple[float, float, float]
) -> np.ndarray:
    import cv2

    lab = to_lab(picture) * np.asarray(gain, np.float32) + np.asarray(offset, np.float32)
    rgb = cv2.cvtColor(lab, cv2.COLOR_LAB2RGB)
    return np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def _rescaled(picture: np.ndarray, scale: float, side_px: int) -> np.ndarray:
    import cv2

    height, width = (max(1, round(length * scale)) for length in picture.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    resized = cv2.resize(picture, (width, height), interpolation=way)
    top, left = max(0, height - side_px) // 2, max(0, width - side_px) // 2
    cut = resized[top : top + side_px, left : left + side_px]
    rows, columns = side_px - cut.shape[0], side_px - cut.shape[1]
    if not rows and not columns:
        return np.ascontiguousarray(cut)
    border = (rows // 2, rows - rows // 2, columns // 2, columns - columns // 2)
    # Mirrored as turned training pictures are at their corners.
    return cv2.copyMakeBorder(cut, *border, cv2.BORDER_REFLECT_101)
