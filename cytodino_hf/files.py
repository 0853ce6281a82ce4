"""Files that are whole or absent, whatever moment the machine stops at."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, document: Any) -> None:
    """Write JSON so that the file is always whole: first beside, pushed to the disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two processes may write the same file, and the last one to rename it wins.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    push_to_disk(path.parent)


def push_to_disk(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk and not only in memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
