"""Walk class folders: which files are images, which are left out and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError
from ...taxonomy import Taxonomy
from ..samples import RejectedImage

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
# What archives and file servers leave behind; hidden files and folders (also `._` files) are ignored as well.
_IGNORED_FOLDERS = frozenset({"__MACOSX", "@eaDir"})


@dataclass
class FoundImages:
    """Images found below a folder.

    Args:
        paths: Paths relative to the folder, forward slashes, in no order.
        labels: Class code of each path.
        rejected: Files with an image's name that cannot be used, with reasons.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    rejected: list[RejectedImage] = field(default_factory=list)


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def list_folder(folder: Path | str) -> list[os.DirEntry[str]]:
    """Visible entries of a folder.

    Raises:
        DataError: It does not exist, is no folder or may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if e.name[0] != "." and e.name not in _IGNORED_FOLDERS]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check data.root") from error


def subfolders(folder: Path | str) -> list[str]:
    """Names of the visible folders (and links to folders) in a folder, sorted."""
    return sorted(entry.name for entry in list_folder(folder) if entry.is_dir())


def index_class_folders(
    root: Path, taxonomy: Taxonomy, class_of: Mapping[str, str] | None = None
) -> FoundImages:
    """Find the images of every class folder of `root`; folders inside a class folder do not matter.

    Args:
        root: The folder that holds the class folders.
        taxonomy: A folder of one of its classes must hold an image.
        class_of: Folder name -> class code, for folders not named by their code.

    Returns:
        Paths relative to `root`. A folder unknown to the taxonomy is included if it holds images, so that the
        table of images can refuse it by name.

    Raises:
        DataError: A class folder is empty, or a folder cannot be read.
    """
    found = FoundImages()
    empty = []
    for name in subfolders(root):
        code = (class_of or {}).get(name, name)
        before = len(found.paths)
        _walk(root, name, found)
        found.labels.extend([code] * (len(found.paths) - before))
        if len(found.paths) == before and code in taxonomy.codes:
            empty.append(name)
    if empty:
        raise DataError(
            f"{root}: class folders without a usable image: {', '.join(empty)}. "
            "Complete the download, or remove the folders to work without these classes."
        )
    for entry in list_folder(root):
        if has_image_suffix(entry.name) and not entry.is_dir():
            found.rejected.append(RejectedImage(_printable(entry.name), "lies in no class folder"))
    return found


def _walk(root: Path, top: str, found: FoundImages) -> None:
    """Add every image below `root/top`.

    Links to folders inside a class folder are reported and not followed: a link to a parent folder would give
    the same image many times over.
    """
    pending = [top]
    while pending:
        folder = pending.pop()
        for entry in list_folder(root / folder):
            path = f"{folder}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(path)
            elif entry.is_symlink() and entry.is_dir():
                found.rejected.append(RejectedImage(_printable(path), "a link to a folder, not followed"))
            elif not has_image_suffix(entry.name):
                continue
            elif not entry.is_file():
                found.rejected.append(
                    RejectedImage(_printable(path), "no regular file (a dangling link, a pipe)")
                )
            elif _printable(path) != path:
                found.rejected.append(RejectedImage(_printable(path), "its name is not UTF-8; rename it"))
            else:
                found.paths.append(path)


def _printable(path: str) -> str:
    """The path as text that can be written anywhere: bytes that are no UTF-8 become `\\xNN`."""
    if path.isascii():
        return path
    return os.fsencode(path).decode("utf-8", "backslashreplace")
