"""Classical features, the floor for a learned backbone: colour histograms, local binary patterns, oriented gradients.

Every picture is first brought to 128 px a side, where a cell of the MLL set measures some 60; histograms are taken of
the whole picture and of its middle quarter, which holds the cell.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np

from ..data.parallel import Died, work_through
from ..data.samples import CellImages
from ..errors import CytoDinoError, DataError

#: Side of the picture that is described.
SIDE_PX = 128
#: Raise it with any change of what `describe` gives: kept features depend on it.
DESCRIPTION_VERSION = 1
_COLOUR_BINS = 32
_JOINT_BINS = 6  # of each of R, G, B
# CIELAB: lightness; a and b as far as stained cells reach.
_LAB_RANGES = ((0.0, 100.0), (-40.0, 80.0), (-80.0, 40.0))
# Points and radius of the patterns: from the grain of the chromatin to the outline of the nucleus.
_PATTERNS = ((8, 1), (16, 2), (24, 4))
_GRADIENT_CELL_PX, _GRADIENT_BLOCK, _ORIENTATIONS = 32, 2, 9


def describe(picture: np.ndarray) -> dict[str, np.ndarray]:
    """Features of one picture, by kind.

    Histograms are shares, of which the square root is taken: equal steps then mean equal evidence (Hellinger).

    Args:
        picture: uint8 (128, 128, 3).

    Returns:
        `colour` (384), `joint colour` (432), `texture` (216), `gradients` (324).
    """
    from skimage import color, feature

    middle = slice(SIDE_PX // 4, -(SIDE_PX // 4))
    hsv, lab = color.rgb2hsv(picture), color.rgb2lab(picture)
    parts = [np.s_[:, :], np.s_[middle, middle]]
    colour, joint, texture = [], [], []
    for part in parts:
        colour += [_shares(hsv[part][..., i], _COLOUR_BINS, (0, 1)) for i in range(3)]
        colour += [_shares(lab[part][..., i], _COLOUR_BINS, _LAB_RANGES[i]) for i in range(3)]
        bins = (
            (picture[part].reshape(-1, 3).astype(int) * _JOINT_BINS) // 256 @ [_JOINT_BINS**2, _JOINT_BINS, 1]
        )
        joint.append(_shares(bins, _JOINT_BINS**3, (0, _JOINT_BINS**3)))
    grey = np.rint(color.rgb2gray(picture) * 255).astype(np.uint8)
    saturation = np.rint(hsv[..., 1] * 255).astype(np.uint8)
    for channel in (grey, saturation):
        for points, radius in _PATTERNS:
            codes = feature.local_binary_pattern(channel, points, radius, method="uniform")
            texture += [_shares(codes[part], points + 2, (0, points + 2)) for part in parts]
    gradients = feature.hog(
        grey,
        orientations=_ORIENTATIONS,
        pixels_per_cell=(_GRADIENT_CELL_PX, _GRADIENT_CELL_PX),
        cells_per_block=(_GRADIENT_BLOCK, _GRADIENT_BLOCK),
    )
    return {
        "colour": np.concatenate(colour),
        "joint colour": np.concatenate(joint),
        "texture": np.concatenate(texture),
        "gradients": gradients,
    }


#: Width of each kind, in the order in which `classical_features` stacks them.
WIDTHS = {"colour": 384, "joint colour": 432, "texture": 216, "gradients": 324}


def classical_features(
    images: CellImages,
    *,
    center_crop_px: int | None = None,
    hide_center_px: int = 0,
    workers: int | None = None,
    tick: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """`describe` of every image, in processes.

    Args:
        images: The rows.
        center_crop_px, hide_center_px: As in a recipe's data section.
        workers: Processes; as many as there are cores by default.
        tick: Called once for each image that is done.

    Returns:
        float32 (images, 1356).

    Raises:
        DataError: An image cannot be read; names it.
    """
    files = [f"{images.root}/{path}" for path in images.column("path")]
    found = np.zeros((len(files), sum(WIDTHS.values())), dtype=np.float32)
    function = partial(_describe_file, center_crop_px=center_crop_px, hide_center_px=hide_center_px)
    for place, row in work_through(function, files, workers=workers):
        if isinstance(row, Died):
            raise DataError(f"{row.item}: the process that read it was killed, twice")
        found[place] = row
        tick()
    return found


def _describe_file(file: str, center_crop_px: int | None, hide_center_px: int) -> np.ndarray:
    """float32 (1356,) of one file."""
    import torch

    from ..data.images import read_rgb
    from ..model.image_processing_cytodino import CytoDinoImageProcessor

    if multiprocessing.parent_process() is not None:
        torch.set_num_threads(1)  # a forked pool of threads would hang
    crop = center_crop_px or SIDE_PX
    processor = CytoDinoImageProcessor(
        hide_center_px=hide_center_px,
        size={"height": SIDE_PX, "width": SIDE_PX},
        do_center_crop=center_crop_px is not None,
        crop_size={"height": crop, "width": crop},
    )
    described = describe(processor.crop_and_resize(processor.hide_center(read_rgb(file))))
    return np.concatenate([described[name] for name in WIDTHS]).astype(np.float32)


@dataclass(frozen=True)
class EvenKinds:
    """Brings each feature to mean 0 and deviation 1, and each kind of feature to the same weight.

    Without it the kind with the most numbers would decide a distance.

    Args:
        mean, scale: (width,), taken off and divided by.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fitted(cls, train: np.ndarray, widths: Sequence[int] = tuple(WIDTHS.values())) -> EvenKinds:
        """From training images, whose squared lengths are 1 on average afterwards."""
        mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
        # A feature that never moves says nothing; a tiny deviation would blow up its noise.
        moves = deviation > 1e-6
        members = np.repeat(np.arange(len(widths)), widths)
        moving = np.bincount(members, weights=moves, minlength=len(widths))
        kinds = max(int((moving > 0).sum()), 1)
        scale = np.where(moves, deviation, np.inf) * np.sqrt(np.maximum(moving, 1) * kinds)[members]
        return cls(mean, scale)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """float64, same shape."""
        scaled: np.ndarray = (features - self.mean) / self.scale
        return scaled


def _shares(values: np.ndarray, bins: int, limits: tuple[float, float]) -> np.ndarray:
    """Square roots of a histogram's shares; what lies outside counts in the last bin of its side."""
    clipped = np.clip(values, *limits)
    return np.sqrt(np.histogram(clipped, bins, limits)[0] / values.size)


def need_skimage() -> None:
    """Say in time that scikit-image is missing.

    Raises:
        CytoDinoError: It is.
    """
    if find_spec("skimage") is None:
        raise CytoDinoError(
            "classical features need scikit-image: `pip install 'cytodino-hf[probe]'`, or leave `classical` out"
        )
