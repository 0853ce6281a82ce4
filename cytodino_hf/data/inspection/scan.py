"""Look once at every image file: can it be used, what does it look like, which others show the same.

A file is read by the decoder that training uses, so that what the scan takes training can read. What was found is
kept in the user's cache by path, size and time of change; a later scan costs one look at each file's entry.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import DataError
from ..hdf5_pictures import path_on_disk
from ..images import read_file, read_rgb_and_notes
from ..parallel import Died, work_through
from ..samples import CellImages
from ..stain import MAY_GRUNWALD_GIEMSA, optical_density
from ..tables import first_few
from .near_duplicates import Duplicates, find_duplicates
from .perceptual_hash import THUMBNAIL_PX, detail_strength, pack_signs, thumbnail, wave_signs
from .scan_cache import ScanCache

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

#: Another number makes every file be looked at again. Change it with anything that `look_at` gives.
SCANNER_VERSION = 1
# Every fourth pixel of every fourth row gives the mean density within 1 % and costs a sixteenth.
_STAIN_STEP = 4
_SECONDS_BETWEEN_SAVES = 60.0
_UNSTAIN = np.linalg.inv(MAY_GRUNWALD_GIEMSA)


@dataclass(frozen=True)
class Scan:
    """What was found about each image, in the order of the images.

    Args:
        table: One row an image. `path`, `size_bytes`, `mtime_ns`; `reason` (why it cannot be used, null where it
            can); of usable ones `notes` (what a person should know, mostly null), `width`, `height` (turned as EXIF
            says), `file_sha256`, `pixel_sha256`, `hash`, `detail`, `thumbnail`, `brightness` (mean of all channels,
            0 to 255) and the mean optical density taken up by each stain: `blue`, `purple`, `residual`.
    """

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> list[Any]:
        """One column as a list."""
        values: list[Any] = self.table[name].to_pylist()
        return values

    def numbers(self, name: str) -> np.ndarray:
        """One column of numbers as an array; NaN (0 of whole numbers) where the file cannot be used."""
        values: np.ndarray = self.table[name].combine_chunks().to_numpy(zero_copy_only=False)
        return values

    def thumbnails(self) -> np.ndarray:
        """uint8 (images, 32, 32); only of a scan without rejected files."""
        column = self.table["thumbnail"].combine_chunks()
        pixels = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, THUMBNAIL_PX, THUMBNAIL_PX)
        return pixels[column.offset : column.offset + len(column)]

    def rejected(self) -> dict[int, str]:
        """Row -> reason of every file that cannot be used."""
        return {row: reason for row, reason in enumerate(self.column("reason")) if reason is not None}

    def notes(self) -> list[str]:
        """What a person should know of files that are used all the same, a line for each kind."""
        files: dict[str, list[str]] = {}
        for path, note in zip(self.column("path"), self.column("notes"), strict=True):
            if note is not None:
                files.setdefault(note, []).append(path)
        return [
            f"{len(paths)} image files: {note} ({first_few(paths)})" for note, paths in sorted(files.items())
        ]

    def select(self, rows: Sequence[int]) -> Scan:
        """Only some rows."""
        return Scan(self.table.take(np.asarray(rows, dtype=np.int64)))

    @cached_property
    def duplicates(self) -> Duplicates:
        """Exact and near-duplicates; only of a scan without rejected files."""
        return find_duplicates(
            self.column("file_sha256"),
            self.column("pixel_sha256"),
            self.numbers("hash"),
            self.thumbnails(),
            self.numbers("detail"),
        )


def scan_images(images: CellImages, *, workers: int | None = None) -> Scan:
    """Look at every image of a set that was not looked at before, in processes, with a progress bar on a terminal.

    A run that is killed keeps what was found up to the last minute; two at once do no harm.

    Args:
        images: The set; its `image` column is not used but for its files.
        workers: Processes; as many as there are cores by default.

    Returns:
        The scan. A file that kills the process that reads it is among the rejected.
    """
    from tqdm import tqdm

    paths = images.column("path")
    sizes, times = _entries(images.root, paths)
    cache = ScanCache(images.root, SCANNER_VERSION)
    known, row_of = cache.find(paths, sizes, times)
    missing = np.flatnonzero(row_of < 0)
    if not len(missing):
        return Scan(known.take(row_of))
    found: dict[int, dict[str, Any]] = {}
    started = saved = time.monotonic()
    files = [str(images.root / paths[row]) for row in missing]
    with tqdm(total=len(missing), desc="scanning images", unit="image", disable=None) as bar:
        for place, look in work_through(look_at, files, workers=workers):
            row = int(missing[place])
            entry = {"path": paths[row], "size_bytes": int(sizes[row]), "mtime_ns": int(times[row])}
            found[row] = entry | (_died(files[place]) if isinstance(look, Died) else look)
            bar.update()
            if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                cache.keep(found.values())
                saved = time.monotonic()
    cache.keep(found.values())
    logger.info("looked at %d images in %.0f s", len(missing), time.monotonic() - started)
    return _in_order(known, row_of, found, cache)


def look_at(file: str) -> dict[str, Any]:
    """Everything a scan notes about one file but its path and time.

    Args:
        file: An image file, or what has the name of one.

    Returns:
        The columns of `Scan`; only `reason` where the file cannot be used.
    """
    import cv2

    try:
        content = read_file(file)
        pixels, notes = read_rgb_and_notes({"path": file, "bytes": content})
    except DataError as error:
        return {"reason": str(error).removeprefix(f"{file}: ")}
    height, width = pixels.shape[:2]
    small = thumbnail(pixels)
    density = optical_density(pixels[::_STAIN_STEP, ::_STAIN_STEP]).mean(axis=(0, 1))
    blue, purple, residual = (density @ _UNSTAIN).tolist()
    return {
        "reason": None,
        "notes": "; ".join(notes) or None,
        "width": width,
        "height": height,
        "file_sha256": hashlib.sha256(content).digest(),
        "pixel_sha256": hashlib.sha256(pixels.tobytes() + f"{height}x{width}".encode()).digest(),
        "hash": int(pack_signs(wave_signs(small))),
        "detail": detail_strength(small),
        "thumbnail": small.tobytes(),
        "brightness": sum(cv2.mean(pixels)) / 3,
        "blue": blue,
        "purple": purple,
        "residual": residual,
    }


def _died(file: str) -> dict[str, Any]:
    logger.warning("%s: the process that read it was killed, twice; the file is left out", file)
    return {"reason": "the process that read it was killed, twice"}


def _entries(root: Path, paths: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """Size and time of change of each file, -1 where there is none."""
    entries = []
    for path in paths:
        try:
            entry = os.stat(path_on_disk(f"{root}/{path}"))
            entries.append((entry.st_size, entry.st_mtime_ns))
        except OSError:
            entries.append((-1, -1))  # `look_at` says why
    return tuple(np.array(entries, dtype=np.int64).reshape(-1, 2).T)  # type: ignore[return-value]


def _in_order(
    known: pa.Table, row_of: np.ndarray, found: dict[int, dict[str, Any]], cache: ScanCache
) -> Scan:
    """Known and new rows in the order of the images."""
    import pyarrow as pa

    rows = sorted(found)
    new = cache.table(found[row] for row in rows)
    places = row_of.copy()
    places[rows] = known.num_rows + np.arange(len(rows))
    return Scan(pa.concat_tables([known, new]).take(places))
