"""Files that are whole or absent, whatever moment the machine stops at."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The document in a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, document: Any) -> None:
    """Write JSON so that the file is always whole."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    with whole_file(path) as file:
        file.write(f"{text}\n".encode())


def without_places(document: Any) -> Any:
    """A JSON document as anybody may read it: every absolute path in it, also behind `--key=`, is its last part.

    What goes out of the house says what was used, and not how the machine and its user are called.

    Example:
        >>> without_places({"root": "/data/ada/cells", "steps": 3, "command": ["--data.root=/data/ada/cells"]})
        {'root': 'cells', 'steps': 3, 'command': ['--data.root=cells']}
    """
    if isinstance(document, dict):
        return {key: without_places(value) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [without_places(value) for value in document]
    if not isinstance(document, str):
        return document
    key, sign, value = document.partition("=") if document.startswith("--") else ("", "", document)
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() and kind(value).name:
            return f"{key}{sign}{kind(value).name}"
    return document


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write into that is always whole: first beside, pushed to the disk, then renamed.

    Args:
        path: Its name at the end; folders are made. Where writing fails, what was there before stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two processes may write the same file, and the last one to rename it wins.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    push_to_disk(path.parent)


def push_to_disk(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
