"""What lies beside the images and is not looked at."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from ..sources.folders import has_image_suffix, printable, suffix_of


def count_ignored(root: Path, known: Collection[str]) -> dict[str, int]:
    """Files below a folder that are neither images of the set nor rejected, counted by kind.

    Args:
        root: The folder. Links to folders in it are not followed; a folder that cannot be listed is not counted.
        known: Paths of images and rejected files relative to the root, as a source gives them.

    Returns:
        Kind -> files: "hidden", a suffix, or what an unnamed image is.
    """
    counts: Counter[str] = Counter()
    for folder, _, files in os.walk(root):
        prefix = os.path.relpath(folder, root)
        for file in files:
            path = file if prefix == "." else f"{prefix}/{file}"
            if printable(path) in known:
                continue
            if any(part[0] == "." for part in path.split("/")):
                counts["hidden"] += 1
            elif has_image_suffix(file):
                counts["images that no table names, or in a folder that is skipped"] += 1
            else:
                counts[suffix_of(file) or "without suffix"] += 1
    return dict(sorted(counts.items()))
