"""Cloudy pictures, no two of them near-duplicates, and a labelled set of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image


def picture(number: int, side: int = 64) -> np.ndarray:
    """A cloudy picture that is no other one's near-duplicate."""
    clouds = np.random.default_rng(number).integers(0, 256, (12, 12, 3)).astype(np.float32)
    return np.clip(cv2.resize(clouds, (side, side), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def labelled_set(root: Path, folds: Sequence[str], prefix: bool = False) -> Path:
    """`root/cells`, two classes with an image a fold (`CLASS/N.png`, or `CLASS/CLASS_N.png`), and `split.csv`."""
    lines = ["path,label,fold"]
    for label, code in enumerate(("BLA", "LYT")):
        for number, fold in enumerate(folds):
            path = f"{code}/{code}_{number}.png" if prefix else f"{code}/{number}.png"
            save(root / "cells" / path, picture(10 * label + number))
            lines.append(f"{path},{code},{fold}")
    (root / "split.csv").write_text("\n".join(lines) + "\n")
    return root
