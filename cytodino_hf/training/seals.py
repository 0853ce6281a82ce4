"""The seal of a checkpoint: a manifest with size and sha256 of every file, written last.

What happened to the folder since it was sealed shows: a file cut, changed, lost, added or swapped, a manifest edited, a
folder renamed. A manifest is no signature: who can write the folder can seal it again.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import file_sha256, push_to_disk, write_json

MANIFEST = "manifest.json"
#: Names the layout of the manifest; another layout gets another name.
FORMAT = "cytodino-checkpoint-1"
#: Transformers' name for what Trainer knows of itself: step, log, best step.
TRAINER_STATE = "trainer_state.json"


def write_manifest(folder: Path, step: int, processes: int = 1) -> None:
    """Seal a folder: push its files to the disk and write size and sha256 of each into the manifest, last."""
    files = {}
    for path in sorted(folder.rglob("*")):
        push_to_disk(path)
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            files[name] = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    push_to_disk(folder)
    document = {"format": FORMAT, "step": step, "processes": processes, "files": files}
    write_json(folder / MANIFEST, document | {"digest": _digest(document)})


def verify(folder: Path) -> str | None:
    """Compare a checkpoint with its manifest; every byte is read.

    Returns:
        None if it is the folder that was sealed under this name, else what is wrong, in words.
    """
    if folder.is_symlink() or not folder.is_dir():
        return "is no folder" if os.path.lexists(folder) else "is missing"
    try:
        return _compare(folder, read_manifest(folder))
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error})"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        CheckpointError: It is missing, unreadable, was changed, or is of another kind.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError("was never sealed: it has no manifest.json")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        digest = document.pop("digest")
        is_ours = document["format"] == FORMAT
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("its manifest.json is unreadable") from None
    if not is_ours:
        raise CheckpointError(f"its manifest.json is foreign: not of the format {FORMAT}")
    if digest != _digest(document):
        raise CheckpointError("its manifest.json was changed")
    return document


def best_step(folder: Path) -> int | None:
    """The step of the best model so far, as a verified checkpoint knows it."""
    state = json.loads((folder / TRAINER_STATE).read_text(encoding="utf-8"))
    return state.get("best_global_step") or None


def _compare(folder: Path, manifest: dict[str, Any]) -> str | None:
    if folder.name != f"checkpoint-{manifest['step']}":
        return f"was sealed as the checkpoint after step {manifest['step']}"
    sealed = manifest["files"]
    paths = {
        p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()
    }
    for name in sorted({*sealed, *paths} - {MANIFEST}):
        path = paths.get(name)
        if path is None:
            return f"{name} is missing"
        if name not in sealed:
            return f"{name} was added"
        if path.is_symlink() or not path.is_file():
            return f"{name} is no plain file"
        size, wanted = path.stat().st_size, sealed[name]["bytes"]
        if size != wanted:
            return f"{name} has {size:,} bytes instead of {wanted:,}"
    for name in sorted(sealed):
        if file_sha256(paths[name]) != sealed[name]["sha256"]:
            return f"{name} was changed (sha256)"
    if TRAINER_STATE not in sealed:
        return f"{TRAINER_STATE} is missing"
    return None


def _digest(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
