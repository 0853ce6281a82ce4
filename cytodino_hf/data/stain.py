"""Stain in optical density: what May-Grünwald-Giemsa adds to an image, estimated and varied.

Light that passes dye falls off exponentially, so dyes add up in optical density OD = -log10((I + 1) / 256),
and a smear stained longer is one whose OD is multiplied. Jitter there looks like other smears; jitter of hue
or channels does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import DataError

#: Unit vectors (rows: blue, purple, residual; columns: OD of red, green, blue) of May-Grünwald-Giemsa.
#: Blue is azure and methylene blue (cytoplasm, and the grey of red cells), purple the compound of azure and
#: eosin (chromatin, granules). `estimate_stain_matrix` on the 840 training images of seven classes (120
#: each) of the MLL set, every fourth pixel of every fourth row. Samples of 100 images differ by 2-5 degrees
#: in the blue and by less than one in the purple.
MAY_GRUNWALD_GIEMSA = np.array(
    [
        [0.7611, 0.5075, 0.4039],
        [0.4766, 0.8749, 0.0856],
        [-0.5735, 0.2356, 0.7846],
    ]
)

# Macenko's threshold of stained pixels and share of pixels outside the two extreme directions.
_LEAST_DENSITY = 0.15
_EXTREME_PERCENT = 1.0
_FEWEST_PIXELS = 100
# ln((I + 1) / 256) of every 8-bit value; the natural logarithm saves a factor on the way back.
_LOG_TRANSMISSION = np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def optical_density(image: np.ndarray) -> np.ndarray:
    """-log10((I + 1) / 256) of a uint8 image, float32 of the same shape: 0 is white, 2.41 black."""
    return _LOG_TRANSMISSION[image] / -np.log(np.float32(10))


def estimate_stain_matrix(images: Iterable[np.ndarray]) -> np.ndarray:
    """The two dyes of a set of images and what is left, by Macenko's method.

    Stained pixels (OD above 0.15 in every channel) lie near a plane; the two dyes are the extreme directions
    in it (percentiles 1 and 99 of the angle), the residual is perpendicular to both.

    Args:
        images: uint8 RGB arrays (height, width, 3) of any sizes; some dozens of fields of one laboratory.

    Returns:
        float64 (3, 3): unit rows blue, purple, residual; the blue dye is the one that takes more of the red.

    Raises:
        DataError: Fewer than 100 stained pixels.

    Source:
        Macenko et al. 2009, A method for normalizing histology slides for quantitative analysis
        (doi 10.1109/ISBI.2009.5193250).
    """
    pixels = [optical_density(image).reshape(-1, 3) for image in images]
    stained = [density[(density > _LEAST_DENSITY).all(axis=1)] for density in pixels]
    density = np.concatenate([np.empty((0, 3), np.float32), *stained]).astype(np.float64)
    if len(density) < _FEWEST_PIXELS:
        raise DataError(
            f"only {len(density)} stained pixels in {len(pixels)} images; "
            "a stain matrix needs images of stained cells"
        )
    _, directions = np.linalg.eigh(np.cov(density.T))
    plane = directions[:, [2, 1]]
    plane *= np.where(plane[0] < 0, -1.0, 1.0)
    along, across = (density @ plane).T
    angles = np.percentile(np.arctan2(across, along), [_EXTREME_PERCENT, 100 - _EXTREME_PERCENT])
    dyes = [plane @ np.array([np.cos(angle), np.sin(angle)]) for angle in angles]
    blue, purple = sorted(dyes, key=lambda dye: -dye[0])
    matrix = np.stack([blue, purple, np.cross(blue, purple)])
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def jitter_stain(
    image: np.ndarray,
    scales: Sequence[float] | np.ndarray,
    shifts: Sequence[float] | np.ndarray,
    matrix: np.ndarray = MAY_GRUNWALD_GIEMSA,
) -> np.ndarray:
    """The same cell in a smear with other amounts of dye.

    The amounts c = OD M^-1 of every pixel become c * scales + shifts; scales of 1 and shifts of 0 give the
    image back to within one grey level.

    Args:
        image: uint8 RGB (height, width, 3).
        scales: Factor on each row of `matrix` (blue, purple, residual).
        shifts: Amount added everywhere, in optical density (background stain, light).
        matrix: Stain matrix (3, 3), rows of unit length.

    Returns:
        uint8 RGB of the same shape.

    Source:
        Tellez et al. 2018, Whole-slide mitosis detection in H&E breast histology (arXiv 1808.05896), with the
        stain matrix of May-Grünwald-Giemsa.
    """
    import cv2

    # Both steps in one matrix: OD' = OD M^-1 diag(scales) M + shifts M.
    mixing = (np.linalg.inv(matrix) * np.asarray(scales)) @ matrix
    offset = np.log(256.0) - np.log(10.0) * (np.asarray(shifts) @ matrix)
    logarithm = cv2.LUT(image, _LOG_TRANSMISSION)
    cv2.transform(logarithm, np.column_stack([mixing.T, offset]).astype(np.float32), dst=logarithm)
    cv2.exp(logarithm, dst=logarithm)
    # The 1 of I + 1 goes; OpenCV rounds and keeps within 0 to 255.
    return cv2.add(logarithm, (-1.0, -1.0, -1.0, 0.0), dtype=cv2.CV_8U)
