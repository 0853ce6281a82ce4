"""Pictures that lie in HDF5 files, as files of their own: `<file>.h5/<row>` names one, and is read only when asked for.

Every process opens a file for itself at the first picture: a handle that came through a fork reads from a place in the
file that its parent moves, and one cannot be sent to a spawned process at all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    import h5py

#: Name of the array of pictures, uint8 (pictures, height, width, 3).
PICTURES = "x"
_SUFFIXES = (".h5", ".hdf5")
# (process, file, its time of change and size) -> open file. What a fork leaves of the parent's stays untouched: closing
# it would be the parent's business.
_OPEN: dict[tuple[int, str, int, int], h5py.File] = {}


def open_hdf5(file: str | Path) -> h5py.File:
    """An HDF5 file open for reading in this process.

    Args:
        file: The file.

    Raises:
        DataError: h5py is not installed, or the file is missing, cut short or no HDF5 file; names it.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError(
            f"{file}: HDF5 files are read by h5py, which is not installed: pip install 'cytodino-hf[pcam]'"
        ) from error
    try:
        status = os.stat(file)
        key = (os.getpid(), str(file), status.st_mtime_ns, status.st_size)
        if key not in _OPEN:
            # HDF5 would take a file that was written anew for the one that is open.
            for stale in [k for k in _OPEN if k[:2] == key[:2]]:
                _OPEN.pop(stale).close()
            # Nobody writes; locks only fail on network disks.
            _OPEN[key] = h5py.File(file, "r", locking=False)
    except OSError as error:
        raise DataError(f"{file}: cannot be read as HDF5 ({error}); copy it anew") from error
    return _OPEN[key]


def place_of(path: str) -> tuple[str, int] | None:
    """File and row of a path like `<file>.h5/<row>`; None for any other path."""
    file, _, row = path.rpartition("/")
    return (file, int(row)) if file.lower().endswith(_SUFFIXES) and row.isdecimal() else None


def path_on_disk(path: str) -> str:
    """The file that holds a picture: the path itself, or the HDF5 file it leads into."""
    place = place_of(path)
    return path if place is None else place[0]


def read_picture(file: str, row: int) -> np.ndarray:
    """One picture, uint8 (height, width, 3).

    Args:
        file: The HDF5 file.
        row: Which picture.

    Raises:
        DataError: The file cannot be read there, or holds no such picture; names it.
    """
    try:
        pixels: np.ndarray = open_hdf5(file)[PICTURES][row]
    except (KeyError, IndexError, OSError, ValueError) as error:
        raise DataError(
            f"{file}/{row}: no picture can be read there ({error}); copy the file anew"
        ) from error
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise DataError(f"{file}/{row}: no 8-bit RGB picture, but {pixels.dtype} of shape {pixels.shape}")
    return pixels


def encoded_picture(file: str, row: int) -> bytes:
    """One picture as the bytes of an uncompressed image file, for what works on files.

    Args:
        file, row: See `read_picture`.

    Raises:
        DataError: See `read_picture`.
    """
    import cv2

    _, content = cv2.imencode(".bmp", cv2.cvtColor(read_picture(file, row), cv2.COLOR_RGB2BGR))
    return content.tobytes()
