"""Walk class folders: which files are images, which are left out and why.

What is followed, ignored and rejected is in docs/data_policy.md.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError
from ...taxonomy import Taxonomy
from ..samples import RejectedImage
from ..tables import MAX_NAMED

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp"})
# Images too, but of kinds that are not read: reported, so that no part of a set is lost in silence.
_OTHER_IMAGE_SUFFIXES = frozenset(
    {
        ".avif", ".czi", ".dcm", ".dng", ".gif", ".heic", ".heif", ".j2k", ".jp2", ".jxl", ".lif", ".mrxs", ".nd2",
        ".ndpi", ".pgm", ".pnm", ".ppm", ".psd", ".scn", ".svs", ".vsi", ".zvi",
    }
)  # fmt: skip
_ALL_IMAGE_SUFFIXES = IMAGE_SUFFIXES | _OTHER_IMAGE_SUFFIXES
# What archives, file servers and disks leave behind; hidden files and folders (also `._` files) are ignored as well.
_IGNORED_FOLDERS = frozenset(
    {"__MACOSX", "@eaDir", "#recycle", "#snapshot", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
_MAX_DEPTH = 4


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

    def reject(self, path: str, reason: str, *, on_purpose: bool = False) -> None:
        """Note a file that is left out."""
        self.rejected.append(RejectedImage(printable(path), reason, on_purpose))


def suffix_of(name: str) -> str:
    """Suffix in lower case with its dot; empty for a name without one."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def printable(path: str) -> str:
    """The path as text that can be written anywhere: bytes that are no UTF-8 become `\\xNN`."""
    if path.isascii():
        return path
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def has_image_suffix(name: str) -> bool:
    """Whether a file of this name is taken for an image that can be read."""
    return suffix_of(name) in IMAGE_SUFFIXES


def list_folder(folder: Path | str) -> list[os.DirEntry[str]]:
    """Visible entries of a folder.

    Raises:
        DataError: It does not exist, is no folder or may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            return [e for e in entries if e.name[0] != "." and e.name not in _IGNORED_FOLDERS]
    except OSError as error:
        raise DataError(
            f"{printable(str(folder))}: cannot be listed ({error.strerror}); check data.root and the permissions"
        ) from error


def subfolders(folder: Path | str) -> list[str]:
    """Names of the visible folders (and links to folders) in a folder, sorted."""
    return sorted(entry.name for entry in list_folder(folder) if entry.is_dir())


def find_class_root(
    root: Path, names: Collection[str], wrappers: Collection[str] = ()
) -> tuple[Path, list[RejectedImage]] | None:
    """The folder that holds the class folders: `root`, or one inside it with nothing beside it.

    Args:
        root: Where to begin; at most four levels are looked at.
        names: What a class folder may be called.
        wrappers: Names of folders that are entered although others lie beside them.

    Returns:
        The folder, and images that lie above it, in no class; None where there is no class folder.

    Raises:
        DataError: A folder cannot be read.
    """
    folder = root
    above: list[str] = []
    for _ in range(_MAX_DEPTH):
        inside = subfolders(folder)
        if any(name in names for name in inside):
            return folder, [_in_no_class(os.path.relpath(path, folder)) for path in above]
        above += [
            e.path for e in list_folder(folder) if suffix_of(e.name) in _ALL_IMAGE_SUFFIXES and not e.is_dir()
        ]
        inner = [name for name in inside if name in wrappers] or inside
        if len(inner) != 1:
            break
        folder = folder / inner[0]
    return None


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
        if _leads_back(root, name):
            found.reject(name, "a link to a folder of the same set, not followed")
            continue
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
            + _why(found.rejected, empty)
        )
    for entry in list_folder(root):
        if suffix_of(entry.name) in _ALL_IMAGE_SUFFIXES and not entry.is_dir():
            found.rejected.append(_in_no_class(entry.name))
    return found


def index_all_images(root: Path) -> FoundImages:
    """Find every image below `root`, whatever the folders are called.

    Args:
        root: Any folder.

    Returns:
        Paths relative to `root`, without labels.

    Raises:
        DataError: A folder cannot be read.
    """
    found = FoundImages()
    for entry in list_folder(root):
        if not entry.is_dir():
            _judge(entry, entry.name, found)
        elif _leads_back(root, entry.name):
            found.reject(entry.name, "a link to a folder of the same set, not followed")
        else:
            _walk(root, entry.name, found)
    return found


def _walk(root: Path, top: str, found: FoundImages) -> None:
    """Add every image below `root/top`.

    Links to folders inside a class folder are reported and not followed: a link to a parent folder would give
    the same image many times over.
    """
    pending = [top]
    while pending:
        folder = pending.pop()
        for entry in list_folder(f"{root}/{folder}"):
            path = f"{folder}/{entry.name}"
            is_usable = suffix_of(entry.name) in IMAGE_SUFFIXES and path.isascii()
            # Nearly all entries: no question to the disk, no odd name.
            if is_usable and entry.is_file(follow_symlinks=False):
                found.paths.append(path)
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path)
            else:
                _judge(entry, path, found)


def _judge(entry: os.DirEntry[str], path: str, found: FoundImages) -> None:
    """Add or reject what is no plain image file with a plain name."""
    suffix = suffix_of(entry.name)
    if entry.is_symlink() and entry.is_dir():
        found.reject(path, "a link to a folder, not followed")
    elif suffix in _OTHER_IMAGE_SUFFIXES:
        found.reject(path, f"{suffix} files are not read; export the image as PNG or JPEG")
    elif suffix not in IMAGE_SUFFIXES:
        return
    elif not entry.is_file():
        found.reject(path, "no regular file (a dangling link, a pipe)")
    elif printable(path) != path:
        found.reject(path, "its name is not UTF-8; rename it")
    else:
        found.paths.append(path)


def _leads_back(root: Path, name: str) -> bool:
    """Whether a class folder is a link to a folder around it or beside it, which would give images twice."""
    if not (root / name).is_symlink():
        return False
    home, target = root.resolve(), (root / name).resolve()
    if home.is_relative_to(target):
        return True
    # A hidden store inside the root is not walked otherwise.
    return target.is_relative_to(home) and not target.relative_to(home).parts[0].startswith(".")


def _in_no_class(path: str) -> RejectedImage:
    return RejectedImage(printable(path), "lies in no class folder")


def _why(rejected: list[RejectedImage], folders: list[str]) -> str:
    """Why the images of some folders cannot be used, the first few."""
    of_folders = [image for image in rejected if image.path.split("/")[0] in folders][:MAX_NAMED]
    return "".join(f"\n  - {image.path}: {image.reason}" for image in of_folders)
