"""Blood cells of the Munich Leukemia Laboratory (MLL23): 41,621 TIFF of 288 x 288 (25 um), 18 classes.

Layout: one zip file for each class, or the folders in them: `<class>/<name>.TIF`. Zip files are unpacked once, into the
user's cache. No patient id is published, so no split of it is patient-safe.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from ...errors import DataError
from ...taxonomy import Taxonomy
from ..archives import Limits, unpack
from ..samples import CellImages
from ..user_cache import user_cache
from .base import Source, SourceOptions
from .folders import find_class_root, index_class_folders, list_folder, subfolders
from .translated import build_translated, need_root, no_class_folder, own_taxonomy

ATTRIBUTION = (
    "MLL23, blood cells of the Munich Leukemia Laboratory, Zenodo, doi 10.5281/zenodo.14277609, under the licence "
    "stated there"
)
_WHERE = "Zenodo, record 14277609"
# The largest class has 8,606 pictures of 0.25 MB; room for another version, not for a bomb.
_LIMITS = Limits(files=50_000, total_bytes=15_000_000_000, ratio=200)


class Options(SourceOptions):
    """There is nothing to choose about this set."""


def load(root: Path | None, taxonomy: Taxonomy, options: Options) -> CellImages:
    """Index the set.

    Args:
        root: The folder with the class folders or with the zip files, or one up to four levels above the class folders.
        taxonomy: `mll23` for its own 18 classes; `mll` or `harmonised` for those with a counterpart there.
        options: None.

    Raises:
        DataError: No root, neither folders nor zip files, some of each, an unknown or empty class, or a zip file that
            is damaged or not to be trusted.
    """
    root = need_root("mll23", root, _WHERE)
    own = own_taxonomy("mll23")
    zips = sorted(e.name for e in list_folder(root) if e.name.lower().endswith(".zip") and e.is_file())
    place = find_class_root(root, own.codes)
    if zips and place is not None:
        unpacked = {name for name in subfolders(place[0]) if name in own.codes}
        if packed := [name for name in zips if name[:-4] in own.codes and name[:-4] not in unpacked]:
            raise DataError(
                f"{root}: some classes are folders, others zip files ({', '.join(packed)}): unpack these too"
            )
    elif zips:
        place = _unpacked(root, zips, own), []
    if place is None:
        raise no_class_folder("mll23", root, own.codes)
    folder, above = place
    found = index_class_folders(folder, own)
    found.rejected += above
    return build_translated(found, root=folder, source="mll23", taxonomy=taxonomy, attribution=ATTRIBUTION)


def _unpacked(root: Path, zips: list[str], own: Taxonomy) -> Path:
    """Folder of the class folders, unpacked; what is there already is not unpacked again."""
    if unknown := [name for name in zips if name[:-4] not in own.codes]:
        raise DataError(
            f"{root}: zip files that are no class of mll23: {', '.join(unknown)}. Classes: {', '.join(own.codes)}"
        )
    entries = [(name, *_size_and_time(root / name)) for name in zips]
    key = hashlib.sha256(json.dumps([str(root.resolve()), entries]).encode()).hexdigest()[:16]
    folder = user_cache("mll23") / key
    for name in zips:
        code = name[:-4]
        if not (folder / code).is_dir():
            _unpack_class(root / name, folder, code)
    return folder


def _size_and_time(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def _unpack_class(archive: Path, folder: Path, code: str) -> None:
    """`<folder>/<code>` appears when it is whole, with the pictures right inside, as in the layout of folders."""
    incoming = folder / f".{code}.{os.getpid()}"
    try:
        unpack(archive, incoming, _LIMITS)
        inner = incoming / code if (incoming / code).is_dir() else incoming
        os.replace(inner, folder / code)
    except OSError as error:
        raise DataError(
            f"{archive}: cannot be unpacked into {folder} ({error}); make room, or set CYTODINO_CACHE to another disk"
        ) from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)


SOURCE = Source(
    summary="blood cells MLL23 (18 classes, no patient ids), from a local root of folders or zip files",
    options=Options,
    load=load,
)
