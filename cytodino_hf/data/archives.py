"""Unpack an archive from outside: nothing lands beside the folder, nothing grows without bound.

An archive is judged as a whole before the first byte is written; one bad name refuses all of it.
"""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from ..errors import DataError

_BLOCK = 1024 * 1024
_ENCRYPTED = 0x1
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, ValueError, NotImplementedError,
)  # fmt: skip


class RefusedArchiveError(DataError):
    """An archive that is damaged or not to be trusted: another copy of it is needed."""


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold.

    Args:
        files: Entries in all, folders counted.
        total_bytes: Bytes in all, unpacked.
        ratio: Unpacked bytes over the bytes of the archive. Pictures are packed already and hardly shrink.
    """

    files: int
    total_bytes: int
    ratio: int


@dataclass(frozen=True)
class _Entry:
    """One entry of an archive: its name, its size unpacked, why it is refused, and the library's own record of it."""

    name: str
    size: int
    is_folder: bool
    refused: str
    record: Any


def unpack(archive: Path, folder: Path, limits: Limits) -> None:
    """Unpack a zip or tar file into a new folder, all of it or nothing.

    Args:
        archive: The file; which kind it is its content says.
        folder: Takes the place of what was there before, once everything is written.
        limits: What is more than this is refused before anything is written.

    Raises:
        RefusedArchiveError: It is damaged or no archive, holds a path that leads outside, a link, a device, a name
            twice, an encrypted file, or more than `limits` allow.
        DataError: The disk is too small.
        OSError: The folder cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _opened(archive) as opened:
            entries = _judged(opened, archive, limits)
            _refuse_small_disk(folder, sum(entry.size for entry in entries), archive)
            _write(opened, entries, partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    except _DAMAGE as error:
        raise RefusedArchiveError(f"{archive.name}: the archive is damaged ({error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile | tarfile.TarFile]:
    # A tar file may hold a zip file at its end and be taken for one, so tar is asked first.
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            yield tar
    elif zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield opened
    else:
        raise RefusedArchiveError(f"{archive.name}: is neither a zip nor a tar file")


def _judged(opened: zipfile.ZipFile | tarfile.TarFile, archive: Path, limits: Limits) -> list[_Entry]:
    """All entries; stops at the first that is refused, so that a bomb is not listed to its end."""
    most = min(limits.total_bytes, limits.ratio * archive.stat().st_size)
    entries: list[_Entry] = []
    names: set[str] = set()
    total = 0
    for entry in _zip_entries(opened) if isinstance(opened, zipfile.ZipFile) else _tar_entries(opened):
        reason = entry.refused or _refused_name(entry.name)
        if not reason and not entry.is_folder:
            # Two names that differ in case are one file on many disks.
            reason = "stands in it twice" if entry.name.casefold() in names else ""
            names.add(entry.name.casefold())
        if reason:
            raise RefusedArchiveError(
                f"{archive.name}: refused, nothing was unpacked: {entry.name!r} {reason}"
            )
        entries.append(entry)
        total += entry.size
        if len(entries) > limits.files or total > most:
            raise RefusedArchiveError(
                f"{archive.name}: refused, nothing was unpacked: it holds more than {limits.files:,} entries or "
                f"{most:,} bytes ({limits.ratio} times its size, at most {limits.total_bytes:,})"
            )
    return entries


def _zip_entries(opened: zipfile.ZipFile) -> Iterator[_Entry]:
    for info in opened.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        # 0: made on a system that notes no kind. `orig_filename`: zipfile cuts a name at a zero byte.
        refused = "is a link or a device" if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else ""
        refused = refused or ("is encrypted" if info.flag_bits & _ENCRYPTED else "")
        yield _Entry(info.orig_filename, info.file_size, info.is_dir(), refused, info)


def _tar_entries(opened: tarfile.TarFile) -> Iterator[_Entry]:
    for info in opened:
        refused = "" if info.isreg() or info.isdir() else "is a link or a device"
        yield _Entry(info.name, info.size if info.isreg() else 0, info.isdir(), refused, info)


def _refused_name(name: str) -> str:
    """Why a name must not be written; empty where it may."""
    if not name or "\0" in name or "\\" in name:
        return "is no plain name"
    if name.startswith("/") or PureWindowsPath(name).drive:
        return "is an absolute path"
    if ".." in name.split("/"):
        return "leads outside the folder"
    return ""


def _refuse_small_disk(folder: Path, needed: int, archive: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise DataError(
            f"{archive.name}: needs {needed / 1e9:.1f} GB unpacked, and {free / 1e9:.1f} GB are free in {folder.parent}"
        )


def _write(opened: zipfile.ZipFile | tarfile.TarFile, entries: list[_Entry], folder: Path) -> None:
    from tqdm import tqdm

    folder.mkdir(parents=True)
    for entry in tqdm(entries, desc="unpacking", unit="file", disable=None):
        target = folder / entry.name
        if entry.is_folder:
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        with _reader(opened, entry) as source, open(target, "xb") as file:
            # Neither library gives more than the size that was judged, whatever is packed.
            shutil.copyfileobj(source, file, _BLOCK)


def _reader(opened: zipfile.ZipFile | tarfile.TarFile, entry: _Entry) -> IO[bytes]:
    if isinstance(opened, zipfile.ZipFile):
        return opened.open(entry.record)
    reader = opened.extractfile(entry.record)
    if reader is None:
        raise ValueError(f"{entry.name} cannot be read")
    return reader
