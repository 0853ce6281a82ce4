"""Read one image file into RGB pixels, or say by name why not."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import DataError

#: Larger pictures are refused: a field of view is no single cell, and small files can hide huge ones.
MAX_PIXELS = 64_000_000
# Pillow turns 16-bit grey white and float grey black when it converts to RGB, without a word.
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def read_rgb(image: Mapping[str, Any] | str | Path) -> np.ndarray:
    """Decode one image as `transformers.image_utils.load_image` does: turned by EXIF, alpha dropped.

    Args:
        image: A path, or a row's `image` value `{"path", "bytes"}`.

    Returns:
        uint8 array (height, width, 3), RGB, writable.

    Raises:
        DataError: Missing, damaged, cut short, too large, or deeper than 8 bits; names the file.
    """
    path, content = (image["path"], image["bytes"]) if isinstance(image, Mapping) else (str(image), None)
    try:
        with Image.open(io.BytesIO(content) if content is not None else path) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {picture.width} x {picture.height} pixels are more than {MAX_PIXELS}; "
                    "cut single cells out of it first"
                )
            if picture.mode in _DEEP_MODES:
                raise DataError(
                    f"{path}: {picture.mode} pixels (deeper than 8 bits); convert it to 8-bit RGB first"
                )
            # Both calls copy the picture even where there is nothing to turn or to convert.
            is_upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
            upright = picture if is_upright else ImageOps.exif_transpose(picture)
            return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image; remove it or repair it") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be decoded ({error}); remove it or repair it") from error
