"""Images that must not be pretrained on: those of the folds that are scored later, under whatever name they lie."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..data.inspection.near_duplicates import find_duplicates
from ..data.inspection.scan import Scan
from ..data.split_files import held_out_names
from ..errors import DataError
from .looked import COPY, NAMED, UNLISTED, Looked


def hold_out_listed(file: Path, looked: Sequence[Looked]) -> str:
    """Mark what a split file names outside its training fold.

    Args:
        file: The split file.
        looked: The sets; changed.

    Returns:
        How much of it was found, in words.

    Raises:
        DataError: The file cannot be read, or none of its images is there.
    """
    names, found = held_out_names(file), 0
    for source in looked:
        for row in rows_named(names, source.images.column("path")):
            found += 1
            source.mark(row, NAMED)
    if names and not found:
        raise DataError(
            f"data.hold_out: none of the {len(names)} images that {file} names outside its training fold is in a "
            "source, so copies of them could not be told; add their folder as a source of weight 0, or leave the file "
            "out"
        )
    return (
        f"hold_out: {file.name} names {len(names)} images outside its training fold; {found} images fit them"
    )


def leave_out_copies(looked: Sequence[Looked]) -> None:
    """Mark images that show the same picture as a held-out one, whichever set that is in."""
    why_not = [why for source in looked for why in source.why_not]
    held_out = np.array([why not in (None, UNLISTED) for why in why_not])
    copies = shows_held_out([source.scan for source in looked], held_out)
    start = 0
    for source in looked:
        for row in np.flatnonzero(copies[start : start + len(source.why_not)]):
            source.mark(int(row), COPY)
        start += len(source.why_not)


def rows_named(names: Sequence[str], paths: Sequence[str]) -> list[int]:
    """Images that a list names, wherever they lie now.

    A listed path fits images whose path ends with it; where there is none, images of its file name, whatever their
    folder and suffix. A common name may so fit several images: rather one too many is held out than one too few.

    Args:
        names: Listed paths or file names.
        paths: Paths of the images.

    Returns:
        Their places in `paths`, in order.
    """
    listed = set(names)
    by_path = {}
    for row, path in enumerate(paths):
        parts = path.split("/")
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        if (end := next((end for end in ends if end in listed), None)) is not None:
            by_path[row] = end
    others = {_stem(name) for name in listed - set(by_path.values())}
    by_name = {row for row, path in enumerate(paths) if _stem(path) in others}
    return sorted(by_path.keys() | by_name)


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]


def shows_held_out(scans: Sequence[Scan], held_out: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which images show the same picture as a held-out one: equal, saved anew, resized, brightened, shifted, turned.

    Args:
        scans: Of every source, without rejected files.
        held_out: Of each image, source after source.

    Returns:
        As long as `held_out`; a held-out image itself is among them where it has such a copy.
    """
    if not held_out.any():
        return np.zeros_like(held_out)
    duplicates = find_duplicates(
        [value for scan in scans for value in scan.column("file_sha256")],
        [value for scan in scans for value in scan.column("pixel_sha256")],
        np.concatenate([scan.numbers("hash") for scan in scans]),
        np.concatenate([scan.thumbnails() for scan in scans]),
        np.concatenate([scan.numbers("detail") for scan in scans]),
    )
    clusters = duplicates.cluster_of
    touched = np.unique(clusters[held_out & (clusters >= 0)])
    return np.isin(clusters, touched)
