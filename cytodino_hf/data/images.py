"""Read one image file into RGB pixels, or say by name why not: the one decoder of training, check and prediction.

What is read and what is refused, kind by kind, is in docs/data_policy.md.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import DataError, MachineError
from .hdf5_pictures import encoded_picture, place_of
from .image_layout import BadLayoutError, read_layout
from .native_stderr import decoder_lines

#: Raise it when a change of this module changes which files are read, or a pixel of one: caches depend on it.
DECODER_VERSION = 2
#: Larger pictures are refused: a field of view is no single cell, and small files can hide huge ones.
MAX_PIXELS = 4096 * 4096
#: Larger files are refused before they are read; an uncompressed picture of `MAX_PIXELS` has a quarter of it.
MAX_BYTES = 256 * 1024 * 1024
#: Shorter sides are refused: a cell of 8 pixels shows nothing.
MIN_SIDE_PX = 8
#: Longer strips are refused: cut or squeezed to a square, nothing of a cell is left.
MAX_ASPECT = 8

#: The kinds of content that are read, whatever the suffix says. Pillow knows many more, some of which start programs.
_FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
# Pillow turns 16-bit grey white and float grey black when it converts to RGB, without a word.
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_TIFF_BITS, _TIFF_SAMPLE_FORMAT, _UNSIGNED = 258, 339, 1
# libjpeg goes on after these and fills what is missing with grey or garbage.
_DAMAGE = re.compile("Corrupt JPEG data|Premature end|Inconsistent progression|Invalid SOS")
# Not the file's fault: a good image must not be left out because the process ran out of descriptors or memory, or
# because a disk or its connection failed for a moment.
_MACHINE_TROUBLE = {
    errno.EMFILE: "close other programs, or raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "close other programs, or raise the system's limit on open files (fs.file-max)",
    errno.ENOMEM: "free some memory, or set fewer training.dataloader_num_workers",
    errno.EIO: "check the disk and its connection (`dmesg` names it); where only this file fails, copy it anew",
}
_BYTES_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


def decoder_versions() -> list[str]:
    """What decides which files are read and every pixel of them; what was kept under others no longer holds."""
    import cv2
    import PIL
    import simplejpeg

    return [
        f"decoder {DECODER_VERSION}",
        f"opencv {cv2.__version__}",
        f"pillow {PIL.__version__}",
        f"simplejpeg {simplejpeg.__version__}",
    ]


def read_rgb(image: Mapping[str, Any] | str | Path, buffer: np.ndarray | None = None) -> np.ndarray:
    """Decode one image as `transformers.image_utils.load_image` does: turned by EXIF, alpha dropped.

    Args:
        image: A path, or a row's `image` value `{"path", "bytes"}`.
        buffer: uint8, contiguous. A picture of this many bytes may be decoded straight into it; the result is then a
            view of it. What a failed attempt leaves in it has no meaning.

    Returns:
        uint8 array (height, width, 3), RGB, writable, contiguous; fresh where no buffer was given.

    Raises:
        DataError: Missing, damaged, cut short, too large, too small, deeper than 8 bits, of a kind that is not read,
            or of one colour; names the file.
        MachineError: See `read_file`.
    """
    return read_rgb_and_notes(image, buffer)[0]


def read_rgb_and_notes(
    image: Mapping[str, Any] | str | Path, buffer: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[str, ...]]:
    """`read_rgb`, and what a person should know of a picture that is read all the same.

    Args:
        image: See `read_rgb`.
        buffer: See `read_rgb`.

    Returns:
        The pixels, and notes of one sentence each; nearly always none.

    Raises:
        DataError: See `read_rgb`.
        MachineError: See `read_file`.
    """
    path, content = (image["path"], image["bytes"]) if isinstance(image, Mapping) else (str(image), None)
    name = path if path is not None else "an image in memory"
    if content is None:
        content = read_file(name)
    try:
        pixels, notes = _decode(content, buffer)
        _refuse_one_colour(pixels)
    except _NotUsableError as error:
        raise DataError(f"{name}: {error}") from error
    return pixels, notes


class _NotUsableError(Exception):
    """Why a picture is refused, without its name."""


def read_file(path: str) -> bytes:
    """All bytes of a regular file. A pipe is refused and not waited for.

    Args:
        path: The file, or a picture inside an HDF5 file (see `hdf5_pictures`).

    Returns:
        Its content.

    Raises:
        DataError: It is missing, may not be read, is too large or no regular file; names it.
        MachineError: The machine could not read it, which says nothing of the file; names it.
    """
    try:
        # Without O_NONBLOCK opening a pipe waits for a writer, for ever.
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except NotADirectoryError as error:  # the path leads into a file
        if (place := place_of(path)) is None:
            raise DataError(f"{path}: no such file") from error
        return encoded_picture(*place)
    except (OSError, ValueError) as error:
        _blame_the_machine(path, error)
        raise DataError(f"{path}: cannot be read ({error}); check its permissions, or remove it") from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: no regular file; remove it")
        if status.st_size > MAX_BYTES:
            raise DataError(
                f"{path}: {status.st_size} bytes are more than {MAX_BYTES}; cut single cells out of it first"
            )
        with os.fdopen(file, "rb", closefd=False) as opened:
            return opened.read()
    except OSError as error:
        _blame_the_machine(path, error)
        raise DataError(f"{path}: cannot be read ({error}); copy it anew, or remove it") from error
    finally:
        os.close(file)


def _blame_the_machine(path: str, error: OSError | ValueError) -> None:
    """Raise the error that leaves the file blameless, where it is."""
    if remedy := _MACHINE_TROUBLE.get(getattr(error, "errno", None) or 0):
        reason = getattr(error, "strerror", None) or error
        raise MachineError(f"{path}: cannot be read now ({reason}); {remedy}, then start again") from error


def _decode(content: bytes, buffer: np.ndarray | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """A quick decoder where its pixels are Pillow's bit for bit, Pillow for all else; the verdict is the same."""
    try:
        layout = read_layout(content)
    except BadLayoutError as error:
        raise _NotUsableError(f"cannot be decoded ({error}); copy it anew, or remove it") from error
    pixels: np.ndarray | None = None
    said: tuple[str, ...] = ()
    if layout is not None:
        _check_size(layout.width, layout.height)
        if layout.bits > 8:
            raise _too_deep(f"{layout.bits}-bit")
        if layout.kind == "JPEG" and layout.is_plain:
            is_fit = buffer is not None and buffer.size == layout.width * layout.height * 3
            quick = _decode_sound_jpeg(content, buffer if is_fit else None)
            if quick is not None:
                return quick, ()
        if layout.kind == "JPEG" or layout.is_plain:
            pixels, said = _decode_with_opencv(content)
            if pixels is not None and not said and layout.is_plain:
                return pixels, ()
    careful, notes = _decode_with_pillow(content, pixels if not said else None)
    if damage := _damage(said, content):
        raise _NotUsableError(f"damaged ({damage}); copy it anew, or save it anew if it looks right")
    return careful, notes


def _decode_sound_jpeg(content: bytes, buffer: np.ndarray | None) -> np.ndarray | None:
    """Pixels of a plain JPEG that libjpeg-turbo has no complaint about; None lets the careful way decide.

    simplejpeg decodes as fast as OpenCV, but says by an error what OpenCV says on stderr, where listening costs time,
    and writes into memory that is at hand.
    """
    import simplejpeg

    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(content, "RGB", strict=True, buffer=buffer)
    except ValueError:
        return None
    return pixels


def _decode_with_opencv(content: bytes) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Pixels as stored, not turned, and what the decoder says; None for what it cannot decode."""
    import cv2

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

    def decode() -> np.ndarray | None:
        try:
            return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        except cv2.error:  # Pillow has the last word and names the reason
            return None

    return decoder_lines(decode)


def _decode_with_pillow(content: bytes, as_stored: np.ndarray | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode whatever is in `_FORMATS`.

    Args:
        content: The whole file.
        as_stored: The pixels as stored if OpenCV decoded the file without a complaint: with a header that asks for
            no turning they are right, and are not decoded again.
    """
    try:
        # What Pillow warns of, without a name, on stderr; not for threads, as the rest of this module.
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                pixels = _pixels(picture, as_stored)
                notes = _notes(picture, heard)
        return pixels, notes
    except UnidentifiedImageError as error:
        raise _NotUsableError(f"not an image of a kind that is read ({_looks_like(content)})") from error
    except Image.DecompressionBombError as error:
        raise _NotUsableError(f"more than {MAX_PIXELS} pixels; cut single cells out of it first") from error
    except (MemoryError, _NotUsableError):
        raise
    except Exception as error:
        # Pillow's readers raise nearly anything on broken files: struct.error, KeyError, TypeError, ZeroDivisionError.
        raise _NotUsableError(f"cannot be decoded ({error}); copy it anew, or remove it") from error


def _pixels(picture: Image.Image, as_stored: np.ndarray | None) -> np.ndarray:
    _check_size(picture.width, picture.height)
    _check_depth(picture)
    # Turning and converting copy the picture even where there is nothing to turn or to convert.
    is_upright = picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
    is_as_stored = is_upright and picture.format == "JPEG" and picture.mode in ("L", "RGB")
    if as_stored is not None and is_as_stored:
        return as_stored
    upright = picture if is_upright else ImageOps.exif_transpose(picture)
    return np.array(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise _NotUsableError(
            f"{width} x {height} pixels are more than {MAX_PIXELS}; cut single cells out of it first"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise _NotUsableError(f"{width} x {height} pixels, less than {MIN_SIDE_PX} on a side; remove it")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise _NotUsableError(f"{width} x {height} pixels, a strip; cut single cells out of it first")


def _check_depth(picture: Image.Image) -> None:
    if picture.mode in _DEEP_MODES:
        raise _too_deep(picture.mode)
    if picture.format == "TIFF":
        tags: Mapping[int, tuple[int, ...]] = picture.tag_v2  # type: ignore[attr-defined]
        # Pillow keeps the upper 8 of 16 bits: 12-bit values of a camera would come out nearly black.
        if (bits := max(tags.get(_TIFF_BITS, (1,)))) > 8:
            raise _too_deep(f"{bits}-bit")
        if any(kind != _UNSIGNED for kind in tags.get(_TIFF_SAMPLE_FORMAT, (_UNSIGNED,))):
            raise _too_deep("signed or float")


def _too_deep(what: str) -> _NotUsableError:
    return _NotUsableError(
        f"{what} pixels (deeper than 8 bits); scale them to 8-bit RGB yourself, with one range for all images"
    )


def _notes(picture: Image.Image, heard: Sequence[warnings.WarningMessage]) -> tuple[str, ...]:
    notes = [" ".join(str(warning.message).split()) for warning in heard]
    if getattr(picture, "is_animated", False):
        notes.append("holds more than one picture; only the first is read")
    if picture.mode == "CMYK":
        notes.append("CMYK, converted to RGB without its colour profile")
    return tuple(notes)


def _damage(said: tuple[str, ...], content: bytes) -> str | None:
    """The first complaint of libjpeg that means missing or garbled pixels."""
    for line in said:
        if not _DAMAGE.search(line):
            continue
        left_over = _BYTES_LEFT_OVER.search(line)
        if left_over and _is_padding(content, int(left_over[1])):
            continue
        return line
    return None


def _is_padding(content: bytes, count: int) -> bool:
    """Whether the bytes before the end marker are the zeros with which some cameras fill up their files."""
    end = content.find(b"\xff\xd9", content.rfind(b"\xff\xda"))
    return not content[max(0, end - count) : end].strip(b"\0")


def _refuse_one_colour(pixels: np.ndarray) -> None:
    """A picture without any contrast holds no cell; training on it teaches its label to nothing."""
    first = pixels[0, 0]
    # A look at one row settles it for nearly all pictures.
    if (pixels[pixels.shape[0] // 2] == first).all() and (pixels == first).all():
        raise _NotUsableError(
            f"every pixel has the colour {tuple(int(v) for v in first)}: no cell; remove it"
        )


def _looks_like(content: bytes) -> str:
    """What a file that is no image may be, with the remedy."""
    start = content[:512].lstrip().lower()
    if not content:
        return "an empty file; copy it anew"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of git LFS; run `git lfs pull`"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page; download the image anew"
    if start.startswith(b"gif8"):
        return "GIF, at most 256 colours; export the image anew as PNG"
    return f"read are {', '.join(_FORMATS)}; remove it or convert it"
