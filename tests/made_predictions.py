"""Predictions of a model that nobody trained, and what a report of them says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.taxonomy import MLL

CELLS = MLL.subset(["BLA", "LYT", "NGS", "PMO"])


def made(n: int = 240, seed: int = 0, noise: float = 1.0) -> Predictions:
    """Four classes, three folds, about 80 % right."""
    rng = np.random.default_rng(7)
    labels = np.arange(n) % 4
    folds = [("test", "calibration", "validation")[(i // 4) % 3] for i in range(n)]
    logits = 2.5 * np.eye(4)[labels] + rng.normal(0, 1, (n, 4))
    logits += noise * np.random.default_rng(seed).normal(0, 1, (n, 4))
    names = [f"image{i}" for i in range(n)]
    return Predictions(
        names,
        names,
        ["made"] * n,
        [None] * n,
        folds,
        labels,
        logits.astype(np.float32),
        CELLS.codes,
        f"w{seed}",
    )


def written(predictions: Predictions, path: Path) -> Path:
    predictions.to_parquet(path)
    return path


def report_of(folder: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in report.json")

    found: dict[str, Any] = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    return found
