"""What the pictures of a source look like on the whole: colour and scale, so that another source can be brought near.

Measured on a sample of pictures without looking at their labels, and small enough to be kept beside a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .pictures import pictures_of
from .samples import CellImages

#: File beside a model that holds the appearance of the images it was trained on.
APPEARANCE_FILE = "appearance.json"
#: Pictures looked at: the means of samples of this size lie within a tenth of the SD over pictures.
SAMPLE = 400
# Every third pixel of every third row, which changes the mean colour of a picture by less than noise.
_STEP = 3
# The object looked for covers more of this middle part than any other.
_MIDDLE = 1 / 3
# Smaller than this share of a picture, it is no nucleus.
_SMALLEST = 0.005
# With a nucleus on fewer pictures than this share of the sample, the scale is not told.
_LEAST_SEEN = 0.2


@dataclass(frozen=True)
class Appearance:
    """Colour and scale of a source.

    Args:
        lab_mean, lab_sd: Mean and standard deviation of L, a and b (CIELAB, L from 0 to 100) over all pixels.
        nucleus_px: Median diameter of the nucleus in the middle of a picture, that is of the circle with its area; None
            where fewer than a fifth of the pictures show one.
        side_px: Median side of the pictures.
        images: Pictures it was measured on.
    """

    lab_mean: tuple[float, float, float]
    lab_sd: tuple[float, float, float]
    nucleus_px: float | None
    side_px: int
    images: int

    def write(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> Appearance:
        """Read what `write` wrote.

        Raises:
            DataError: The file is missing, or no appearance; names it.
        """
        try:
            found = cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); without the appearance of the training images no source "
                "can be matched to them: leave matching out, or train again"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: no appearance of a source ({error}); copy the model anew") from error
        return found

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Appearance:
        """Build it from its JSON form.

        Raises:
            ValueError: A number is missing, not finite or impossible.
        """
        known = {**document, "lab_mean": tuple(document["lab_mean"]), "lab_sd": tuple(document["lab_sd"])}
        known.pop("micrometres_per_pixel", None)  # earlier versions wrote it, and never knew it
        found = cls(**known)
        numbers = [*found.lab_mean, *found.lab_sd, float(found.side_px), float(found.images)]
        numbers += [found.nucleus_px] if found.nucleus_px is not None else []
        is_whole = len(found.lab_mean) == len(found.lab_sd) == 3 and all(map(math.isfinite, numbers))
        if not is_whole or min(*found.lab_sd, *numbers[6:]) <= 0:
            raise ValueError("three finite means, three positive deviations and positive sizes are needed")
        return found


def measure_appearance(images: CellImages, *, sample: int = SAMPLE, seed: int = 0) -> Appearance:
    """Look at a sample of the pictures of a source.

    Args:
        images: For a model, those of the training fold.
        sample: At most so many pictures, drawn at random.
        seed: Same seed, same sample.

    Raises:
        DataError: There is no picture, one cannot be read, or all are of one colour.
    """
    count = len(images.labels)
    if not count:
        raise DataError(f"{images.root}: no image to measure the appearance of")
    rows = np.sort(np.random.default_rng(seed).permutation(count)[:sample])
    pictures = pictures_of(images)
    total, squares, pixels = np.zeros(3), np.zeros(3), 0
    sides, diameters = [], []
    for row in rows.tolist():
        picture = pictures.read(row)
        sparse = np.ascontiguousarray(picture[::_STEP, ::_STEP])
        colours: np.ndarray = to_lab(sparse).reshape(-1, 3).astype(np.float64)
        total += colours.sum(axis=0)
        squares += (colours**2).sum(axis=0)
        pixels += len(colours)
        sides.append(min(picture.shape[:2]))
        diameters.append(nucleus_diameter_px(picture))
    mean = total / pixels
    deviation = np.sqrt(np.maximum(squares / pixels - mean**2, 0.0))
    if deviation[0] < 1e-3:
        raise DataError(f"{images.root}: the pictures have no contrast, so no colour can be matched to them")
    seen = [diameter for diameter in diameters if diameter is not None]
    return Appearance(
        lab_mean=_three(mean),
        # Grey pictures have no spread of a and b.
        lab_sd=_three(np.maximum(deviation, 1e-3)),
        nucleus_px=float(np.median(seen)) if len(seen) >= _LEAST_SEEN * len(rows) else None,
        side_px=int(np.median(sides)),
        images=len(rows),
    )


def to_lab(picture: np.ndarray) -> np.ndarray:
    """uint8 RGB (height, width, 3) to CIELAB, float32: L from 0 to 100, a and b around 0."""
    import cv2

    return cv2.cvtColor(picture.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def nucleus_diameter_px(picture: np.ndarray) -> float | None:
    """Diameter of the circle with the area of the nucleus in the middle of a picture.

    Nuclei take up green light more than anything else in a smear: two thresholds of the green channel part them from
    cytoplasm and red cells, and these from the ground. Gaps between the lobes of one nucleus are closed; the largest
    object of the middle third is taken whole.

    Args:
        picture: uint8 RGB (height, width, 3).

    Returns:
        Pixels, or None where nothing in the middle has the size of a nucleus, or it touches the border of the picture,
        as nuclei do that run into each other.

    Source:
        Otsu 1979, A threshold selection method from gray-level histograms (doi 10.1109/TSMC.1979.4310076), with two
        thresholds.
    """
    import cv2

    side = min(picture.shape[:2])
    # A median keeps borders sharp, where a mean would draw a rim of its own colour around every nucleus.
    smooth = cv2.medianBlur(np.ascontiguousarray(picture[..., 1]), 5)
    mask = (smooth <= _darkest_of_three(smooth)).astype(np.uint8)
    reach = max(3, side // 25) | 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
    _, objects = cv2.connectedComponents(cv2.morphologyEx(mask, cv2.MORPH_CLOSE, kernel))
    height, width = objects.shape
    margin = (1 - _MIDDLE) / 2
    rows = slice(int(height * margin), math.ceil(height * (1 - margin)))
    columns = slice(int(width * margin), math.ceil(width * (1 - margin)))
    inside = np.bincount(objects[rows, columns].ravel())
    inside[0] = 0
    if not inside.any():
        return None
    nucleus = objects == inside.argmax()
    if nucleus[[0, -1]].any() or nucleus[:, [0, -1]].any():
        return None
    area = int((nucleus & (mask > 0)).sum())
    return 2 * math.sqrt(area / math.pi) if area > _SMALLEST * mask.size else None


def _darkest_of_three(values: np.ndarray) -> int:
    """The lower of the two thresholds that part 8-bit values best into three classes."""
    counts = np.bincount(values.ravel(), minlength=256).astype(np.float64)
    below, weighted = np.cumsum(counts), np.cumsum(counts * np.arange(256))
    lower, upper = np.triu_indices(255, 1)
    spread = np.zeros(len(lower))
    ends = ((-1, lower), (lower, upper), (upper, 255))
    for first, last in ends:
        size, total = (
            c[last] - (c[first] if isinstance(first, np.ndarray) else 0.0) for c in (below, weighted)
        )
        # What the class adds to the variance between classes, but for a constant; an empty class adds nothing.
        spread += np.divide(total**2, size, out=np.zeros(len(lower)), where=size > 0)
    spread[below[lower] == 0] = -1.0  # with two values only, an empty class below them parts as well
    return int(lower[spread.argmax()])


def _three(values: np.ndarray) -> tuple[float, float, float]:
    first, second, third = values.tolist()
    return first, second, third
