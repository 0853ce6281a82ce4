"""Where things are kept that can be made again: one folder of the user's, outside every checkout."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(kind: str) -> Path:
    """Folder for one kind of kept things, such as `scans`; not created here.

    Args:
        kind: Name of the folder.

    Returns:
        `$CYTODINO_CACHE/<kind>`, else `$XDG_CACHE_HOME/cytodino_hf/<kind>`, else below `~/.cache`.
    """
    if own := os.environ.get("CYTODINO_CACHE"):
        return Path(own).expanduser() / kind
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "cytodino_hf" / kind
