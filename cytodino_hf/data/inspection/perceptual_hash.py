"""What an image looks like in 64 bits, and whether two thumbnails show the same picture.

The hash finds candidates quickly, the thumbnails decide. Both bear other compression, other sizes, other brightness
and contrast, and shifts of a pixel or two; a cell on an empty background that merely has the outline of another one
does not pass.
"""

from __future__ import annotations

import numpy as np

#: Side of the grey thumbnail; one of its pixels is about 8 pixels of an image of the MLL set.
THUMBNAIL_PX = 32
HASH_BITS = 64
#: A picture with less detail (`detail_strength`) has nothing to compare: half of the least among 5,483 real cells.
LEAST_DETAIL = 1.0
#: The eight ways a square can be turned or mirrored: (transposed, rows reversed, columns reversed).
SYMMETRIES = tuple((bool(t), bool(r), bool(c)) for t in (0, 1) for r in (0, 1) for c in (0, 1))

# Slowest waves first without the mean, closed under transposition; dealt out so that each 16-bit part of the hash
# gets waves of all speeds: the sign of the slowest is alike in most pictures of one centred cell.
_WAVES = [(u, total - u) for total in range(1, 11) for u in range(total + 1) if (u, total - u) != (5, 5)]
_ROWS, _COLUMNS = np.array([_WAVES[i] for part in range(4) for i in range(part, HASH_BITS, 4)]).T
_TRANSPOSED = np.array(
    [list(zip(_ROWS, _COLUMNS, strict=True)).index((v, u)) for u, v in zip(_ROWS, _COLUMNS, strict=True)]
)
# Detail is what a blur of one thumbnail pixel takes away, relative to the detail around it (two pixels) and to two
# grey levels, which is what compression leaves in empty places.
_DETAIL_SIGMA, _AROUND_SIGMA, _NOISE_LEVELS = 1.0, 2.0, 2.0
# Solves the regression for pictures without any detail too.
_RIDGE = 1e-6


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The whole picture as grey values, uint8 (32, 32), whatever its proportions.

    Args:
        image: uint8 RGB (height, width, 3).
    """
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)


def wave_signs(small: np.ndarray) -> np.ndarray:
    """Signs of the 64 slowest waves (discrete cosine transform) of a thumbnail, bool (64,).

    Brightness is not among them, and contrast does not change a sign.
    """
    import cv2

    return cv2.dct(small.astype(np.float32))[_ROWS, _COLUMNS] > 0


def pack_signs(signs: np.ndarray) -> np.ndarray:
    """Signs as 64-bit numbers, uint64, one for each row of (images, 64)."""
    return np.ascontiguousarray(np.packbits(signs, axis=-1)).view(np.uint64)[..., 0]


def turned_hash(hashes: np.ndarray, symmetry: tuple[bool, bool, bool]) -> np.ndarray:
    """Hashes the turned pictures would have (see `turned`), without looking at the pictures.

    A wave that is odd along an axis changes its sign when the axis is reversed.

    Args:
        hashes: uint64 (images,).
        symmetry: One of `SYMMETRIES`.
    """
    transposed, rows_reversed, columns_reversed = symmetry
    signs = np.unpackbits(hashes[:, None].view(np.uint8), axis=1).astype(bool)
    if transposed:
        signs = signs[:, _TRANSPOSED]
    odd = (_ROWS * rows_reversed + _COLUMNS * columns_reversed) % 2 == 1
    return pack_signs(signs ^ odd)


def turned(pictures: np.ndarray, symmetry: tuple[bool, bool, bool]) -> np.ndarray:
    """Square pictures (images, side, side) transposed, then with rows and columns reversed."""
    transposed, rows_reversed, columns_reversed = symmetry
    if transposed:
        pictures = pictures.transpose(0, 2, 1)
    return pictures[:, :: -1 if rows_reversed else 1, :: -1 if columns_reversed else 1]


def detail_patterns(thumbnails: np.ndarray) -> np.ndarray:
    """What stands out from its surroundings in each thumbnail, float32 (images, 32, 32).

    Detail over the strength of the detail around it: the outline of a dark nucleus then counts no more than the
    texture inside and the platelets beside it.

    Args:
        thumbnails: uint8 (images, 32, 32).
    """
    import cv2

    patterns = np.empty(thumbnails.shape, np.float32)
    for small, pattern in zip(thumbnails, patterns, strict=True):
        detail = _detail(small)
        around = cv2.GaussianBlur(detail**2, (0, 0), _AROUND_SIGMA)
        np.divide(detail, np.sqrt(around + _NOISE_LEVELS**2), out=pattern)
    return patterns


def detail_strength(small: np.ndarray) -> float:
    """Root mean square of the detail of one thumbnail, in grey levels."""
    return float(np.sqrt(np.mean(_detail(small) ** 2)))


def _detail(small: np.ndarray) -> np.ndarray:
    import cv2

    grey = small.astype(np.float32)
    blurred: np.ndarray = cv2.GaussianBlur(grey, (0, 0), _DETAIL_SIGMA)
    return grey - blurred


def similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How much of each second pattern the first one explains, small shifts allowed: multiple correlation, 0 to 1.

    The second is fitted by the first and its two slopes (a shift by less than a thumbnail pixel, to first order).
    Patterns that are alike only in reverse, and empty ones, give 0.

    Args:
        first, second: float32 (pairs, side, side), from `detail_patterns`.
    """
    inner = first[:, 1:-1, 1:-1]
    down = (first[:, 2:, 1:-1] - first[:, :-2, 1:-1]) / 2
    across = (first[:, 1:-1, 2:] - first[:, 1:-1, :-2]) / 2
    basis = np.stack([inner, down, across], axis=1).reshape(len(first), 3, -1).astype(np.float64)
    target = second[:, 1:-1, 1:-1].reshape(len(second), -1, 1).astype(np.float64)
    basis -= basis.mean(axis=2, keepdims=True)
    target -= target.mean(axis=1, keepdims=True)
    products = basis @ target  # (pairs, 3, 1)
    weights = np.linalg.solve(basis @ basis.transpose(0, 2, 1) + _RIDGE * np.eye(3), products)
    explained = (weights * products).sum(axis=(1, 2)) / np.maximum((target**2).sum(axis=(1, 2)), _RIDGE)
    return np.where(weights[:, 0, 0] > 0, np.sqrt(np.clip(explained, 0, 1)), 0.0)
